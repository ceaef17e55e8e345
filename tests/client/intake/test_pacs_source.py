"""A site whose images come from a PACS: fetched by its label table, then read like a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import pytest

from client.cohort import load_cohorts
from client.config import SiteConfig, load_site
from ghostnet.errors import SiteError
from tests.client.intake.dicom_files import SECRET, dicom, image_spec, picture, save, write_labels, write_site
from tests.client.intake.picture_files import state_bytes
from tests.client.intake.test_pacs_hostile import STUDY, Answer, body, file_of, listing, parts, serving, web_server

INSTANCES = {"1.2.3.5": 20, "1.2.3.6": 24, "1.2.3.7": 28}
"""Side of each image, in px: they differ."""

ARCHIVE = serving(body(listing(*INSTANCES)), lambda name: parts(file_of(name, INSTANCES[name])))


def site(folder: Path, url: str) -> SiteConfig:
    data = (
        f'[data]\nkind = "pacs"\nlabels = "labels.csv"\n[pacs]\nprotocol = "dicomweb"\nurl = "{url}"\npatience_s = 0.0'
    )
    return write_site(folder, data=data, more="[cohort]\ntest_fraction = 0.0")


def test_a_label_table_of_studies_is_fetched_and_read_and_not_fetched_again(tmp_path: Path) -> None:
    write_labels(tmp_path, {STUDY: "lesion"})
    with web_server(ARCHIVE) as (url, asked):
        config = site(tmp_path, url)
        first = load_cohorts(config, image_spec(), SECRET)
        assert asked
    assert (first.table.kind, first.table.taken, first.table.patients) == ("pacs", 3, 1)
    assert sorted(path.name for path in (config.state / "pacs" / STUDY).glob("*.dcm")) == [
        f"{x}.dcm" for x in INSTANCES
    ]
    again = load_cohorts(config, image_spec(), SECRET)  # the PACS is gone
    assert (again.table.taken, again.table.from_cache) == (3, 3)


def test_single_instances_may_be_named_each_with_its_label(tmp_path: Path) -> None:
    write_labels(tmp_path, {f"{STUDY}/1.2.3.5": "lesion", f"{STUDY}/1.2.3.7": "normal"})
    with web_server(ARCHIVE) as (url, _):
        table = load_cohorts(site(tmp_path, url), image_spec(), SECRET).table
    assert table.labels == {"lesion": 1, "normal": 1}


def test_without_a_table_the_studies_of_a_period_have_the_label_of_missing_findings(tmp_path: Path) -> None:
    found = json.dumps([{"0020000D": {"vr": "UI", "Value": [STUDY]}}]).encode()

    def archive(path: str) -> Answer:
        return body(found) if path.startswith("/pacs/studies?") and "offset=0" in path else ARCHIVE(path)

    with web_server(archive) as (url, asked):
        data = (
            f'[data]\nkind = "pacs"\n[labels]\nmissing = "normal"\n[pacs]\nprotocol = "dicomweb"\nurl = "{url}"\n'
            'patience_s = 0.0\nstudy_date = "20200101-20201231"'
        )
        config = write_site(tmp_path, data=data, more="[cohort]\ntest_fraction = 0.0")
        strange = config.state / "pacs" / "9.9.9" / "9.9.9.1.dcm"  # of another period, fetched before
        strange.parent.mkdir(parents=True)
        strange.write_bytes(file_of("9.9.9.1"))
        table = load_cohorts(config, image_spec(), SECRET).table
    assert any("StudyDate=20200101-20201231" in path for path in asked)
    assert table.labels == {"normal": 3}
    assert table.quarantined == {"NO_LABEL": 1}


def test_a_pacs_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    write_labels(tmp_path, {STUDY: "lesion"})
    with web_server(ARCHIVE) as (url, _):
        pass
    with pytest.raises(SiteError, match="PACS http") as caught:
        load_cohorts(site(tmp_path, url), image_spec(), SECRET)
    assert "\n" not in str(caught.value)
    assert STUDY not in str(caught.value)


def test_what_the_pacs_did_not_send_is_in_the_table(tmp_path: Path) -> None:
    write_labels(tmp_path, {STUDY: "lesion", "9.8.7": "normal"})

    def archive(path: str) -> Answer:
        if "9.8.7" in path:
            return body(listing())
        return body(b"nothing") if path.endswith("/1.2.3.6") else ARCHIVE(path)

    with web_server(archive) as (url, _):
        config = site(tmp_path, url)
        table = load_cohorts(config, image_spec(), SECRET).table
    counts = table.source_counts
    assert (table.taken, counts.images_missing, counts.studies_missing, counts.studies_failed) == (2, 1, 1, 0)
    assert json.loads((config.state / "intake.json").read_text())["images_missing"] == 1


def withdrawn_site(folder: Path, url: str, *patients: str) -> SiteConfig:
    (folder / "out.txt").write_text("".join(f"{patient}\n" for patient in patients))
    config = site(folder, url)
    text = config.source.read_text().replace("test_fraction = 0.0", 'test_fraction = 0.0\nexclude = "out.txt"')
    config.source.write_text(text)
    return load_site(config.source)


def names(config: SiteConfig) -> set[str]:
    return {path.stem for path in (config.state / "pacs").rglob("*.dcm")}


def served(patients: Mapping[str, str]) -> Callable[[str], Answer]:
    """An archive whose images each have a patient; 1.2.3.6 is of a class whose images wait for a person."""

    def file(name: str) -> Answer:
        dataset = dicom(picture(int(name[-1])), patient=patients[name], modality="CR")
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = name
        if name == "1.2.3.6":
            dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
            dataset.Modality = "OT"
        content = BytesIO()
        dataset.save_as(content, enforce_file_format=True)
        return parts(content.getvalue())

    return serving(body(listing(*patients)), file)


def test_files_of_a_withdrawn_patient_are_deleted_and_not_fetched_again(tmp_path: Path) -> None:
    write_labels(tmp_path, {STUDY: "lesion"})
    patients = {"1.2.3.5": "ANNA", "1.2.3.6": "ANNA", "1.2.3.7": "BERTA"}
    with web_server(served(patients)) as (url, asked):
        config = withdrawn_site(tmp_path, url)
        assert load_cohorts(config, image_spec(), SECRET).table.quarantined == {"HELD": 1}
        assert names(config) == set(patients)
        config = withdrawn_site(tmp_path, url, "ANNA")
        table = load_cohorts(config, image_spec(), SECRET).table
        assert (table.taken, table.source_counts.files_deleted) == (1, 2)  # also the one that waits for a person
        assert names(config) == {"1.2.3.7"}
        kept = state_bytes(config)
        assert not any(text in kept for text in (b"ANNA", b"1.2.3.5", b"1.2.3.6"))
        asked.clear()
        assert load_cohorts(config, image_spec(), SECRET).table.taken == 1
        (config.state / "pacs" / STUDY / ".complete").unlink()
        assert load_cohorts(config, image_spec(), SECRET).table.source_counts.images_missing == 0
        assert not any(path.endswith(("1.2.3.5", "1.2.3.6")) for path in asked)
        load_cohorts(withdrawn_site(tmp_path, url), image_spec(), SECRET)  # the patient is no longer on the list
        assert names(config) == {"1.2.3.7"} | set(patients)


def test_a_study_of_which_nothing_is_left_is_not_asked_for(tmp_path: Path) -> None:
    write_labels(tmp_path, {STUDY: "lesion", "9.9.9/9.9.9.1": "normal"})
    patients = dict.fromkeys(INSTANCES, "ANNA")
    with web_server(served(patients)) as (url, asked):
        config = withdrawn_site(tmp_path, url, "ANNA")
        other = config.state / "pacs" / "9.9.9" / "9.9.9.1.dcm"
        save(dicom(picture(1), patient="BERTA"), other)
        load_cohorts(config, image_spec(), SECRET)
        assert [path.name for path in (config.state / "pacs").iterdir() if path.is_dir()] == ["9.9.9"]
        asked.clear()
        assert load_cohorts(config, image_spec(), SECRET).table.taken == 1
        assert not asked
