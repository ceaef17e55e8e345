"""site.toml: what is read, and that anything else is one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.config import load_site
from ghostnet.errors import SiteError

GOOD = """
name = "north"
[data]
kind = "dicom"
path = "images"
labels = "labels.csv"
[policy]
max_epsilon = 8.0
delta = 1e-5
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "site.toml"
    path.write_text(text)
    return path


def test_paths_are_absolute_and_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD)
    monkeypatch.chdir(tmp_path)
    config = load_site(Path("site.toml"))
    assert config.data.path == tmp_path / "images"
    assert config.data.labels == tmp_path / "labels.csv"
    assert config.state == tmp_path
    assert config.source == tmp_path / "site.toml"
    assert config.ledger_path == tmp_path / "ledger.sqlite"


def test_what_is_left_out_is_the_careful_choice(tmp_path: Path) -> None:
    config = load_site(write(tmp_path, GOOD))
    assert config.cohort.test_fraction == 0.2
    assert config.deidentify.burned_in == "blank"
    assert config.deidentify.trusted_modalities == ()


def test_npz_needs_no_label_table(tmp_path: Path) -> None:
    text = GOOD.replace('kind = "dicom"', 'kind = "npz"').replace('labels = "labels.csv"', "")
    assert load_site(write(tmp_path, text)).data.labels is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "north"', 'name = "North Hospital"', "name"),
        ('name = "north"', 'name = "../etc"', "name"),
        ('name = "north"', 'name = "north"\nsecret = "x"', "unknown key secret"),
        ('name = "north"', 'name = "north"\nsource = "x"', "unknown key source"),
        ('name = "north"', "", "name is missing"),
        ('kind = "dicom"', 'kind = "pacs"', "data.kind"),
        ('kind = "dicom"', 'kind = "npz"', "labels"),
        ('labels = "labels.csv"', "", "labels is missing"),
        ("delta = 1e-5", "delta = 1e-5\n[cohort]\ntest_fraction = nan", "cohort.test_fraction"),
        ("delta = 1e-5", "delta = 1e-5\n[cohort]\ntest_fraction = 1.0", "cohort.test_fraction"),
        ("delta = 1e-5", "delta = 1e-5\n[cohort]\ntest_fraction = -0.1", "cohort.test_fraction"),
        ("delta = 1e-5", "delta = 1e-5\n[cohort]\ntest_fraction = true", "cohort.test_fraction"),
        ("delta = 1e-5", 'delta = 1e-5\n[deidentify]\nburned_in = "trust"', "trusted_modalities"),
        ("delta = 1e-5", 'delta = 1e-5\n[deidentify]\ntrusted_modalities = ["CT"]', "trusted_modalities"),
        ("delta = 1e-5", 'delta = 1e-5\n[deidentify]\nmodalities = ["US"]', "modalities"),
        ("delta = 1e-5", "delta = 1e-5\n[deidentify]\nmodalities = []", "modalities"),
        ('name = "north"', 'name = "north"\nstate = "images/state"', "state lies inside"),
        ('name = "north"', 'name = "north"\nstate = "images"', "state lies inside"),
        ('name = "north"', "name = north", "not valid TOML"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(SiteError) as caught:
        load_site(write(tmp_path, GOOD.replace(old, new)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_said_without_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="cannot be read"):
        load_site(tmp_path / "none.toml")
