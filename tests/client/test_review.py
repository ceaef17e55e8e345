"""A person's review: what is held stays out until it was seen and approved, and the page shows it without a name."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import stat
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from client.cohort import check_site, load_cohorts
from client.config import SiteConfig
from client.intake.approvals import approval_key, approve, read_approvals, revoke, shown_rules
from client.intake.files import file_digest
from client.review.page import Card, Counts, render_pages
from client.review.review import outlined, shown_keys, write_review
from ghostnet.cli.site import app
from ghostnet.errors import SiteError
from tests.client.intake.dicom_files import SECRET, dicom, image_spec, picture, save, write_labels, write_site

SOP = {"US": "1.2.840.10008.5.1.4.1.1.6.1", "SC": "1.2.840.10008.5.1.4.1.1.7"}
NAME = "DOE^JANE"
PLAN = Path(__file__).parents[2] / "docs" / "examples" / "chest.toml"


def held(path: Path, modality: str, seed: int) -> None:
    """A real file of a held kind with a name burned into it."""
    pixels = picture(seed, shape=(160, 240))
    canvas = np.zeros(pixels.shape, np.uint8)
    cv2.putText(canvas, "DOE JANE 1961", (20, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 2, cv2.LINE_AA)
    pixels[canvas > 128] = 0
    dataset = dicom(pixels, patient=f"{NAME}-{seed}", Modality="OT" if modality == "SC" else modality)
    dataset.PatientName = NAME
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SOP[modality]
    save(dataset, path)


@pytest.fixture(params=["searched"])
def hospital(tmp_path: Path, request: pytest.FixtureRequest) -> SiteConfig:
    """Two held images with a name in them and a plain one; "trusted" takes the detector's time out of a test."""
    held(tmp_path / "images" / "doe_jane_us.dcm", "US", 1)
    held(tmp_path / "images" / "doe_jane_sc.dcm", "SC", 2)
    save(dicom(picture(5, shape=(160, 240)), patient="P5"), tmp_path / "images" / "plain.dcm")
    names = {"doe_jane_us.dcm": "lesion", "doe_jane_sc.dcm": "normal", "plain.dcm": "normal"}
    write_labels(tmp_path, names)
    trusted = '"CR"' if request.param == "searched" else '"CR", "US", "SC"'
    return write_site(tmp_path, deidentify=f'burned_in = "trust"\ntrusted_modalities = [{trusted}]')


not_searched = pytest.mark.parametrize("hospital", ["trusted"], indirect=True)


def pictures(page: str) -> list[np.ndarray]:
    found = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in found]


def review_files(config: SiteConfig) -> list[Path]:
    return sorted((config.state / "review").iterdir())


def test_held_images_are_shown_then_approved_then_taken_and_revoked(hospital: SiteConfig) -> None:
    image = image_spec()
    before = check_site(hospital, image)
    assert (before.taken, before.held) == (1, 2)
    # `check_site` draws the site's secret; the review keys by the same one.
    secret = (hospital.state / "secret.key").read_bytes()
    counts = write_review(hospital, image, secret, workers=1).counts
    assert (counts.held, counts.approvable, counts.approved) == (2, 2, 0)

    page = (hospital.state / "review" / "index.html").read_text()
    assert len(pictures(page)) == 4
    marked, after = pictures(page)[:2]
    assert ((marked[..., 0] > 150) & (marked[..., 1] < 80)).any()  # a red frame
    assert after.ndim == 2
    assert "doe_jane" not in page
    assert NAME not in page

    keys = shown_keys(hospital.state / "review")
    assert approve(hospital.state, keys[:1]) == 1
    table = check_site(hospital, image)
    assert (table.taken, table.held) == (2, 1)
    assert table.blanked_boxes >= 1
    assert revoke(hospital.state, keys) == 1
    assert check_site(hospital, image).held == 2


@not_searched
def test_the_folder_is_private_and_the_approvals_hold_no_name(hospital: SiteConfig) -> None:
    write_review(hospital, image_spec(), SECRET, workers=1)
    approve(hospital.state, shown_keys(hospital.state / "review"))
    assert stat.S_IMODE((hospital.state / "review").stat().st_mode) == 0o700
    for path in [*review_files(hospital), hospital.state / "approved.csv"]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = (hospital.state / "approved.csv").read_text()
    assert re.fullmatch(r"key,date\r?\n([0-9a-f]{64},\d{4}-\d\d-\d\d\r?\n){2}", text)


def test_a_changed_file_or_another_way_to_show_it_is_held_again(tmp_path: Path) -> None:
    held(tmp_path / "a.dcm", "US", 1)
    config = write_site(tmp_path, deidentify='burned_in = "blank"')
    shown = shown_rules(config)
    key = approval_key(SECRET, file_digest(tmp_path / "a.dcm"), shown)
    assert key == approval_key(SECRET, file_digest(tmp_path / "a.dcm"), shown_rules(config))
    for changed in (
        replace(config, data=replace(config.data, frames_per_file=3)),
        replace(config, deidentify=replace(config.deidentify, burned_in="quarantine")),
        replace(config, deidentify=replace(config.deidentify, burned_in="trust", trusted_modalities=("US",))),
    ):
        assert key != approval_key(SECRET, file_digest(tmp_path / "a.dcm"), shown_rules(changed))
    assert key != approval_key(bytes(32), file_digest(tmp_path / "a.dcm"), shown)
    held(tmp_path / "a.dcm", "US", 2)
    assert key != approval_key(SECRET, file_digest(tmp_path / "a.dcm"), shown)


@not_searched
def test_with_approvals_each_file_is_read_once_for_its_hash(
    hospital: SiteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_review(hospital, image_spec(), SECRET, workers=1)
    approve(hospital.state, shown_keys(hospital.state / "review")[:1])
    hashed = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: (hashed.append(file.name), digest(file, kind))[1])
    load_cohorts(hospital, image_spec(), SECRET, workers=1)
    assert sorted(hashed) == sorted(str(path) for path in (hospital.source.parent / "images").iterdir())


@pytest.mark.parametrize("text", ["", "key,date\nJANE,2026-01-01\n", f"key,date\n{'a' * 64},soon\n", "x\n"])
def test_an_approval_that_this_program_did_not_write_is_not_believed(tmp_path: Path, text: str) -> None:
    (tmp_path / "approved.csv").write_text(text)
    with pytest.raises(SiteError) as error:
        read_approvals(tmp_path)
    assert "JANE" not in str(error.value)


@not_searched
def test_a_folder_with_something_else_in_it_is_left_alone(hospital: SiteConfig, tmp_path: Path) -> None:
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("words")
    with pytest.raises(SiteError):
        write_review(hospital, image_spec(), SECRET, folder=other, workers=1)
    assert (other / "chapter.txt").read_text() == "words"


def test_what_was_blanked_is_framed_and_nothing_else() -> None:
    before = np.full((64, 64), 90, np.uint8)
    after = before.copy()
    after[20:30, 10:50] = 200
    red = (outlined(before, after) == (220, 38, 38)).all(axis=2)
    assert red[16:34, 6:54].sum() == red.sum() > 0
    assert not (outlined(before, before) == (220, 38, 38)).all(axis=2).any()


def test_a_long_review_has_several_pages_and_escapes_what_it_shows() -> None:
    cards = [Card(key=f"{i:064x}", code="BURNED_IN_TEXT", held=True, modality="<b>") for i in range(90)]
    counts = Counts(held=90, shown=90, approvable=0, approved=0, blanked=0, blanked_shown=0)
    pages = dict(render_pages(cards, counts, site="<i>site.toml", folder="/state/review"))
    assert list(pages) == ["index.html", "page-2.html", "page-3.html"]
    assert sum(page.count("cannot be approved:") for page in pages.values()) == 90
    assert all("<i>site" not in page and 'src="http' not in page for page in pages.values())


@not_searched
def test_the_command_shows_notes_and_refuses_keys_that_were_not_shown(hospital: SiteConfig) -> None:
    write_labels(hospital.source.parent, {"doe_jane_us.dcm": "pneumonia", "doe_jane_sc.dcm": "normal"})
    site, run = str(hospital.source), CliRunner().invoke
    assert isinstance(run(app, ["review", site, "--approve-all"]).exception, SiteError)
    assert isinstance(run(app, ["review", site]).exception, SiteError)
    result = run(app, ["review", site, "--plan", str(PLAN)])
    assert result.exit_code == 0, result.exception
    keys = shown_keys(hospital.state / "review")
    assert isinstance(run(app, ["review", site, "--approve", "0" * 64]).exception, SiteError)
    assert isinstance(run(app, ["review", site, "--approve", keys[0][:4]]).exception, SiteError)
    assert run(app, ["review", site, "--approve", keys[0][:12]]).exit_code == 0
    assert list(read_approvals(hospital.state)) == [keys[0]]
    assert run(app, ["review", site, "--approve-all"]).exit_code == 0
    assert set(read_approvals(hospital.state)) == set(keys)
    assert run(app, ["review", site, "--revoke", keys[1]]).exit_code == 0
    assert list(read_approvals(hospital.state)) == [keys[0]]


def test_an_image_that_loses_more_than_a_quarter_to_text_waits_for_a_person(tmp_path: Path) -> None:
    for name, lines in (("page", 3), ("line", 1)):
        pixels = picture(7, shape=(256, 320)) // 4 + np.arange(256, dtype=np.uint16)[:, None]  # no row saturated
        canvas = np.zeros(pixels.shape, np.uint8)
        for row in range(lines):
            cv2.putText(canvas, "DOE JANE 19610412", (8, 24 + 28 * row), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 255, 2)
        pixels[canvas > 128] = 0
        save(dicom(pixels, patient=name), tmp_path / "images" / f"{name}.dcm")
    write_labels(tmp_path, {"page.dcm": "lesion", "line.dcm": "normal"})
    config = write_site(tmp_path, deidentify='burned_in = "blank"')
    table = check_site(config, image_spec())
    assert (table.quarantined, table.taken, table.blanked_images) == ({"HELD": 1}, 1, 1)
    write_review(config, image_spec(), (config.state / "secret.key").read_bytes(), workers=1)
    assert approve(config.state, shown_keys(config.state / "review")) == 1
    assert check_site(config, image_spec()).taken == 2
