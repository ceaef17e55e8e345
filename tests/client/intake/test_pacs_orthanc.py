"""Against a real Orthanc: what arrives is what is there, once, whatever the server does in the middle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import orthanc
from tests.client.intake.pacs_in_namespace import IMAGES, STUDIES

SCRIPT = Path(__file__).with_name("pacs_in_namespace.py")
SAME = {"absent": 0, "extra": 0, "different": 0}


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All scenes, played once in a network of their own."""
    reason = orthanc.why_not()
    if reason:
        pytest.skip(reason)
    done = orthanc.run_isolated(SCRIPT, str(tmp_path_factory.mktemp("pacs")), timeout_s=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    print(f"all scenes: {found['seconds']:.0f} s")
    return found


def same(facts: dict[str, Any]) -> bool:
    """Every file wanted is there, none else, and pixel data and header are those in the PACS."""
    return {name: facts[name] for name in SAME} == SAME


@pytest.mark.parametrize("way", ["dicomweb", "get"])
def test_200_images_arrive_as_they_are_and_only_once(facts: dict[str, Any], way: str) -> None:
    found = facts[way]
    print(f"{way}: {found['a second']:.0f} images a second, start of the process and fsync included")
    assert (found["new"], found["again"], found["rewritten"]) == (STUDIES * IMAGES, 0, 0)
    assert same(found)


def test_only_a_study_that_is_not_known_to_be_complete_is_asked_for_again(facts: dict[str, Any]) -> None:
    assert facts["dicomweb"]["asked again"] == facts["get"]["asked again"] == IMAGES


def test_files_are_for_the_sites_user_alone(facts: dict[str, Any]) -> None:
    assert facts["dicomweb"]["modes"] == facts["get"]["modes"] == ["0o600", "0o700"]
    assert facts["dicomweb"]["root mode"] == "0o700"


def test_c_move_brings_a_study_to_our_own_receiver(facts: dict[str, Any]) -> None:
    assert facts["move"]["new"] == IMAGES
    assert same(facts["move"])


@pytest.mark.parametrize("way", ["single", "single by DIMSE"])
def test_single_images_come_without_the_rest_of_their_study(facts: dict[str, Any], way: str) -> None:
    assert (facts[way]["new"], facts[way]["not sent"], facts[way]["again"]) == (2, 1, 0)
    assert same(facts[way])


@pytest.mark.parametrize("way", ["by date, dicomweb", "by date, dimse"])
def test_dates_and_modalities_select_studies(facts: dict[str, Any], way: str) -> None:
    assert facts[way] == {"2010": 9, "until 2011": 12, "MR": 3, "CR or MR": 12}


@pytest.mark.parametrize("way", ["restart, dicomweb", "restart, get"])
def test_a_server_killed_and_started_again_in_the_middle_is_waited_for(facts: dict[str, Any], way: str) -> None:
    found = facts[way]
    assert (found["killed"], found["waited"], found["new"]) == (1, True, 2 * IMAGES)
    assert same(found)


def test_a_fetch_that_was_cut_off_goes_on_where_it_stopped(facts: dict[str, Any]) -> None:
    found = facts["cut off"]
    assert found["error"] == "SiteError"
    assert found["before"] + found["after"] == 2 * IMAGES
    assert found["before"] >= 40
    assert found["halves"] == 0
    assert same(found)


@pytest.mark.parametrize(
    ("scene", "error", "words"),
    [
        ("wrong password", "SiteError", "wrong credentials"),
        ("no password", "SiteError", "wrong credentials"),
        ("untrusted", "SiteError", "certificate is not trusted"),
        ("other name", "SiteError", "certificate is not trusted, or is for another name"),
        ("DIMSE untrusted", "SiteError", "certificate is not trusted"),
        ("DIMSE without TLS", "SiteError", "broke the connection"),
        ("http", "SiteError", "broke the connection"),
        ("unknown AE", "SiteError", "does not know itself by [pacs].called_aet"),
        ("unknown destination", "DataError", "registered as a destination"),
        ("wrong path", "SiteError", "no DICOMweb service at this path"),
        ("unreachable", "SiteError", "nothing answers there"),
        ("unreachable by DIMSE", "SiteError", "nothing answers there"),
        ("missing", "DataError", "no image of any of the 2 studies"),
        ("right password", "DataError", "no image of any of the 1 studies"),  # let in, and none of that name
        ("DIMSE over TLS", "DataError", "no image of any of the 1 studies"),
    ],
)
def test_each_failure_is_one_line_that_says_why_and_names_no_patient(
    facts: dict[str, Any], scene: str, error: str, words: str
) -> None:
    found = facts[scene]
    assert found["error"] == error
    assert words in found["text"]
    assert "\n" not in found["text"]
    assert not found["names a UID"]
