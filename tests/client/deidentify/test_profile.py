"""The allow-list against PS3.15's table: nothing that the standard removes is kept."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.uid import UID, UID_dictionary

from client.deidentify import profile
from client.deidentify.headers import SOP_CLASSES, SOURCES, HeaderRecord
from client.deidentify.profile import EDITION, ROWS, check_allow_list, listed_attributes_in, load_profile
from client.modalities import HELD, MODALITIES
from ghostnet.errors import GhostNetError, MissingDependencyError


def test_the_table_is_the_pinned_edition() -> None:
    table = load_profile()
    assert (EDITION, ROWS) == ("2026c", 655)
    assert len(table.tags) + len(table.ranges) == ROWS


def test_the_table_lists_what_identifies() -> None:
    keywords = ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "StudyInstanceUID", "StudyDate")
    assert listed_attributes_in(keywords) == keywords
    table = load_profile()
    assert table.lists((0x5000, 0x3000))
    assert table.lists((0x6002, 0x3000))
    assert table.lists((0x6002, 0x4000))
    assert table.lists((0x0009, 0x0010))
    assert not table.lists((0x6002, 0x0010))
    assert not table.lists((0x0028, 0x0010))
    assert listed_attributes_in(["NoSuchKeyword"]) == ("NoSuchKeyword",)


def test_nothing_that_is_kept_is_on_the_table() -> None:
    check_allow_list()
    kept = [keyword for keywords in SOURCES.values() for keyword in keywords]
    assert all(tag_for_keyword(keyword) for keyword in kept)
    assert listed_attributes_in(kept) == ()
    assert set(SOURCES) == {field.name for field in fields(HeaderRecord)}


def test_an_allow_list_with_a_listed_attribute_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "view_position", ("ViewPosition", "PatientName"))
    with pytest.raises(GhostNetError, match="keeps PatientName"):
        check_allow_list()


def test_another_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("EDITION", "2023"), ("EDITION", "1066")):
        monkeypatch.setattr(profile, name, value)
        load_profile.cache_clear()
        with pytest.raises(MissingDependencyError, match="not 655"):
            load_profile()
    load_profile.cache_clear()


def test_the_object_classes_are_image_storage_classes_of_the_standard() -> None:
    for uid, modality in SOP_CLASSES.items():
        assert UID_dictionary[uid][1] == "SOP Class", uid
        name = UID(uid).name
        assert re.search("(Image|Volume) Storage", name), name
        assert not any(word in name for word in ("Video", "Segmentation", "Whole Slide", "Encapsulated")), name
        if modality in ("CT", "MR"):
            assert modality in name
    assert set(SOP_CLASSES.values()) == set(MODALITIES) - {"OT"}
    assert set(HELD) <= set(MODALITIES)
