"""site.toml: what is read, and that anything else is one clear error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from client.config import load_site
from client.formats import Kind
from client.quarantine import Code
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


def test_text_carriers_are_held_unless_the_site_says_otherwise(tmp_path: Path) -> None:
    assert load_site(write(tmp_path, GOOD)).deidentify.held_modalities == ("US", "SC", "OT")
    said = GOOD + "[deidentify]\nheld_modalities = []\n"
    assert load_site(write(tmp_path, said)).deidentify.held_modalities == ()


def test_a_pacs_has_its_folder_in_the_state(tmp_path: Path) -> None:
    text = GOOD.replace('kind = "dicom"', 'kind = "pacs"').replace('path = "images"\n', "")
    with pytest.raises(SiteError, match="pacs. is missing"):
        load_site(write(tmp_path, text))
    pacs = '[pacs]\nprotocol = "dicomweb"\nurl = "https://pacs.example/dicom-web"\nca_file = "ca.pem"\n'
    config = load_site(write(tmp_path, 'state = "s"' + text + pacs))
    assert config.data.path == tmp_path / "s" / "pacs"
    assert config.pacs is not None
    assert config.pacs.ca_file == tmp_path / "ca.pem"


def test_every_path_is_beside_the_file(tmp_path: Path) -> None:
    text = GOOD.replace('kind = "dicom"', 'kind = "images"\nmodality = "DX"\nboxes = "b.json"')
    config = load_site(write(tmp_path, text + '[cohort]\nexclude = "w.txt"\n'))
    assert (config.data.boxes, config.cohort.exclude) == (tmp_path / "b.json", tmp_path / "w.txt")


def test_an_npz_has_no_label_rules(tmp_path: Path) -> None:
    text = GOOD.replace('kind = "dicom"', 'kind = "npz"').replace('labels = "labels.csv"', "")
    with pytest.raises(SiteError, match="labels. does not go with kind = 'npz'"):
        load_site(write(tmp_path, text + '[labels]\nmissing = "normal"\n'))


def test_the_examples_of_the_handbook_load_and_every_code_is_in_it(tmp_path: Path) -> None:
    handbook = (Path(__file__).parents[2] / "docs" / "hospital-it.md").read_text()
    examples = re.findall(r"```toml\n(.*?)```", handbook, re.DOTALL)
    policy = "[policy]\nmax_epsilon = 8.0\ndelta = 1e-5\n"
    texts = [f'name = "north"\n{text}\n{policy}' for text in examples if "[data]" in text]
    kinds = [load_site(write(tmp_path, text)).data.kind for text in texts]
    assert sorted(kinds) == sorted(get_args(Kind))
    assert [code for code in Code if code.value not in handbook] == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "north"', 'name = "North Hospital"', "name"),
        ('name = "north"', 'name = "../etc"', "name"),
        ('name = "north"', 'name = "north"\nsecret = "x"', "unknown key secret"),
        ('name = "north"', 'name = "north"\nsource = "x"', "unknown key source"),
        ('name = "north"', "", "name is missing"),
        ('kind = "dicom"', 'kind = "bmp"', "data.kind"),
        ('kind = "dicom"', 'kind = "npz"', "labels"),
        ('labels = "labels.csv"', "", "labels is missing"),
        ("delta = 1e-5", "delta = 1e-13", "policy.delta"),
        ("delta = 1e-5", "delta = 1e-5\n[cohort]\ntest_fraction = nan", "cohort.test_fraction"),
        ("delta = 1e-5", "delta = 1e-5\n[cohort]\ntest_fraction = 1.0", "cohort.test_fraction"),
        ("delta = 1e-5", "delta = 1e-5\n[cohort]\ntest_fraction = -0.1", "cohort.test_fraction"),
        ("delta = 1e-5", "delta = 1e-5\n[cohort]\ntest_fraction = true", "cohort.test_fraction"),
        ("delta = 1e-5", 'delta = 1e-5\n[deidentify]\nburned_in = "trust"', "trusted_modalities"),
        ("delta = 1e-5", 'delta = 1e-5\n[deidentify]\ntrusted_modalities = ["CT"]', "trusted_modalities"),
        ("delta = 1e-5", 'delta = 1e-5\n[deidentify]\nmodalities = ["SR"]', "modalities"),
        ("delta = 1e-5", "delta = 1e-5\n[deidentify]\nmodalities = []", "modalities"),
        ('name = "north"', 'name = "north"\nstate = "images/state"', "state lies inside"),
        ('name = "north"', 'name = "north"\nstate = "images"', "state lies inside"),
        ('name = "north"', "name = north", "not valid TOML"),
        # Keys that do not go with the kind of data.
        ('kind = "dicom"', 'kind = "dicom"\nmodality = "CT"', "only with images, nifti"),
        ('kind = "dicom"', 'kind = "dicom"\nvalidation = "test"', "only with npz"),
        ('kind = "dicom"', 'kind = "dicom"\nlayout = "nih"', "only for kind = 'images'"),
        ('kind = "dicom"', 'kind = "images"', "[data].modality is missing"),
        ('kind = "dicom"', 'kind = "nifti"', "[data].modality is missing"),
        ('kind = "dicom"', 'kind = "images"\nmodality = "CT"\nframes_per_file = 2', "frames_per_file"),
        ('kind = "dicom"', 'kind = "nifti"\nmodality = "CT"\nboxes = "b.csv"', "boxes does not go with"),
        ('kind = "dicom"', 'kind = "images"\nmodality = "chest"', "data.modality"),
        ('kind = "dicom"', 'kind = "pacs"', "[data].path does not go with kind = 'pacs'"),
        ('kind = "dicom"', 'kind = "dicom"\nframes_per_file = 0', "data.frames_per_file"),
        ('kind = "dicom"', 'kind = "dicom"\nframes_per_file = 1.5', "data.frames_per_file"),
        ("delta = 1e-5", 'delta = 1e-5\n[pacs]\nprotocol = "dicomweb"', "[pacs] is only for kind = 'pacs'"),
        ("delta = 1e-5", 'delta = 1e-5\n[labels]\nmap = {"Mass" = 3}', "labels.map.Mass"),
        ("delta = 1e-5", 'delta = 1e-5\n[labels]\nmap = {"" = "a"}', "empty text"),
        ("delta = 1e-5", 'delta = 1e-5\n[labels]\nseveral = "last"', "labels.several"),
        ("delta = 1e-5", 'delta = 1e-5\n[labels]\nuncertain = "normal"', "[labels].uncertain"),
        ("delta = 1e-5", 'delta = 1e-5\n[deidentify]\nheld_modalities = ["SR"]', "held_modalities"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(SiteError) as caught:
        load_site(write(tmp_path, GOOD.replace(old, new)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


HUGE = "0x" + "f" * 6000  # more digits than Python writes in decimal


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("8.0", "1" * 5000, "not valid TOML"),
        ("8.0", HUGE, "thousands of digits"),
        ("delta = 1e-5", f"delta = 1e-5\nmax_rounds = {HUGE}", "thousands of digits"),
        ("delta = 1e-5", f"delta = 1e-5\npeers = {'[' * 5000}{']' * 5000}", "nested too deep"),
        ("delta = 1e-5", f"delta = 1e-5\npeers = {'[' * 300}{']' * 300}", "nested too deep"),
        ("delta = 1e-5", f"delta = 1e-5\n{'.'.join('a' * 3000)} = 1", "nested too deep"),
        ("delta = 1e-5", 'delta = 1e-5\n"a\\nb" = 1', r"unknown key policy.'a\nb'"),
        ("delta = 1e-5", 'delta = 1e-5\n"" = 1', "unknown key policy.''"),
        ("delta = 1e-5", f"delta = 1e-5\n{'a' * 20_000} = 1", "unknown key policy.'aaa"),
        ("delta = 1e-5", 'delta = 1e-5\n[labels.map]\n"a\\nb" = 3', r"labels.map.'a\nb' = 3"),
        ('"images"', '"a\\u0000b"', "data.path"),
        ('"labels.csv"', '"a\\u0000b"', "data.labels"),
        ("delta = 1e-5", 'delta = 1e-5\nwitness = "\\u0000"', "policy.witness"),
        ("delta = 1e-5", 'delta = 1e-5\n[labels.map]\nmissing = ""', "empty text"),
        ("delta = 1e-5", 'delta = 1e-5\n[compute]\ndevice = "cuda:\N{ARABIC-INDIC DIGIT THREE}"', "[compute].device"),
    ],
)
def test_a_hostile_file_is_one_short_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(SiteError) as caught:
        load_site(write(tmp_path, GOOD.replace(old, new)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_a_file_of_another_encoding_is_read_or_says_so(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "site.toml"
    path.write_bytes(GOOD.replace("images", "rö").encode(encoding))
    if encoding == "utf-8-sig":
        assert load_site(path).data.path == tmp_path / "rö"
    else:
        with pytest.raises(SiteError, match="not UTF-8 text; save it as UTF-8"):
            load_site(path)


def test_a_missing_file_is_said_without_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="cannot be read"):
        load_site(tmp_path / "none.toml")
