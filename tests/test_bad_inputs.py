"""Bad files, keys and options: one line each, the documented exit code, no traceback, nothing half-written."""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ghostnet.cli import main as command_line
from tests.plans import TINY, tiny_plan_text, write_striped_npz

SITE = """
name = "north"
state = "state"
[data]
kind = "npz"
path = "data.npz"
[policy]
max_epsilon = 10.0
delta = 1e-5
"""


def replaced(text: str, line: str, new: str) -> str:
    """The text with one line exchanged, which must be there."""
    assert f"\n{line}\n" in text, line
    return text.replace(f"\n{line}\n", f"\n{new}\n", 1)


# (the words of the command line); code 2
USAGE = [
    *("simulte", "pln", "plan chek plan.toml", "site chekc site.toml", "site ini", "audit legder x", "verfy x"),
    *("--bogus", "plan --bogus", "plan check", "plan check --jsn plan.toml", "plan check plan.toml extra"),
    *("plan suggest", "plan suggest --patients 5 --epsilon 1", "plan suggest --patients 5 --images x --epsilon 1"),
    *("plan suggest --patients 5 --images 64 --epsilon x", "plan suggest --images 64 --epsilon 1"),
    *("simulate", "simulate plan.toml", "simulate plan.toml --out run --sites 0 --data data.npz"),
    *("simulate plan.toml --out run --engine cloud --data data.npz", "simulate plan.toml --out run --dta data.npz"),
    *("simulate plan.toml --out run --sites x --data data.npz", "simulate plan.toml --out run --data"),
    *("sample", "sample x", "sample x -o y -n 0", "sample x -o y -n many", "sample x -o y --format tiff"),
    *("sample x -o y --seed -1", "verify", "verify x --key nonsense", "verify x --key north=zz", "doctor extra"),
    *("site check site.toml", "site check --plan plan.toml", "site budget", "site ledger", "site key", "site review"),
    *("site ledger site.toml --adopt", "site ledger site.toml --reason because", "site init a b"),
    *("site budget site.toml --audit audit.json", "site init --max-epsilon x", "audit ledger", "audit mechanism --x"),
]

# (line of the tiny plan, what stands there instead); code 3
PLAN = [
    *((line, f"{line.partition('=')[0]}= {value}")
      for line in ("epsilon = 10.0", "delta = 1e-5", "sampling_rate = 0.3")
      for value in ("nan", "inf", "-1", "0", "true", '"much"', "[1]", "1e400")),
    *(("noise_multiplier = 1.0", f"noise_multiplier = {value}") for value in ("nan", "-1", "inf", "true", '"x"')),
    *(("steps = 4", f"steps = {value}") for value in ("-1", "1.5", "true", '"4"', "99999999999", "9" * 5000)),
    *(("size = 28", f"size = {value}") for value in ("0", "27", "-28", "28.0", "4096")),
    *(("rounds = 2", f"rounds = {value}") for value in ("-1", "2.5", "1000000000", "true")),
    ("steps = 4", "stepps = 4"),
    ("latent = 8", "laten = 8"),
    ("[utility]", "[utilty]"),
    ("latent = 8", "latent = 0"),
    ("latent = 8", 'latent = 8\narchitecture = "gan9000"'),
    ('labels = ["plain", "striped"]', 'labels = ["plain", "plain"]'),
    ('labels = ["plain", "striped"]', 'labels = ["plain"]'),
    ('labels = ["plain", "striped"]', "labels = [1, 2]"),
    ("label_prior = [0.5, 0.5]", "label_prior = [0.5, 0.6]"),
    ("label_prior = [0.5, 0.5]", "label_prior = [1.0]"),
    ("label_prior = [0.5, 0.5]", "label_prior = [nan, 0.5]"),
    ("fakes = 4", "fakes = -4"),
    ("min_hospitals = 1", "min_hospitals = 0"),
    ("bins = 4", "bins = 1"),
    ('name = "tiny"', "name = 5"),
    ("epsilon = 10.0", "epsilon = 0.01"),
]  # fmt: skip

# (line of the site.toml, what stands there instead); code 4
SITES = [
    *((line, f"{line.partition('=')[0]}= {value}")
      for line in ("max_epsilon = 10.0", "delta = 1e-5") for value in ("nan", "-1", "0", "true", '"x"', "inf")),
    *(('name = "north"', f"name = {value}") for value in ('""', '"North West"', "5", '"a/b"', '"' + "a" * 33 + '"')),
    *(('kind = "npz"', f"kind = {value}") for value in ('"zip"', "1", '""')),
    ('path = "data.npz"', "path = 5"),
    ('path = "data.npz"', 'pth = "data.npz"'),
    ('path = "data.npz"', 'path = "data.npz"\nlabels = "x.csv"'),
    ("[policy]", "[polcy]"),
    ("delta = 1e-5", "delta = 1e-5\nmax_rounds_ = 3"),
    ("delta = 1e-5", "delta = 1e-5\n[cohort]\ntest_fraction = 1.0"),
    ("delta = 1e-5", 'delta = 1e-5\n[deidentify]\nburned_in = "ignore"'),
    ("delta = 1e-5", 'delta = 1e-5\n[compute]\ndevice = 3'),
]  # fmt: skip

# What a toml file may hold instead of toml.
NO_TOML: dict[str, bytes | None] = {
    "missing": None,
    "empty": b"",
    "text": b"hello",
    "binary": bytes(range(256)),
    "utf16": TINY.encode("utf-16"),
    "cut": TINY.encode()[:40] + b'"',
    "twice": b'name = "a"\nname = "b"\n',
    "nested": b"a = " + b"[" * 5000,
    "json": b'{"name": "tiny"}',
    "emoji": b"name = :smile:",
}

GREY = np.zeros((4, 28, 28), dtype=np.uint8)
# Columns of an NPZ file; code 5
COLUMNS: dict[str, dict[str, np.ndarray]] = {
    "no-images": {"labels": np.zeros(4, dtype=np.int64)},
    "flat": {"images": GREY[0]},
    "two-channels": {"images": np.zeros((4, 28, 28, 2), dtype=np.uint8)},
    "float": {"images": GREY.astype(np.float32)},
    "objects": {"images": np.array([None, None], dtype=object)},
    "no-rows": {"images": GREY[:0]},
    "too-few-labels": {"images": GREY, "labels": np.array([0, 1, 0])},
    "label-nan": {"images": GREY, "labels": np.array([0, 1, np.nan, 0])},
    "patients-short": {"images": GREY, "patient": np.array(["a"])},
    "masks-shape": {"images": GREY, "masks": GREY[:, :5]},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a plan and a site.toml that hold, to be spoilt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.toml").write_text(tiny_plan_text())
    (tmp_path / "site.toml").write_text(SITE)
    return tmp_path


Refused = Callable[..., str]


@pytest.fixture
def refused(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command line that must end with a code, one line, and the folder as it was."""

    def run(code: int, *arguments: str, silent: bool = True) -> str:
        before = contents(folder)
        monkeypatch.setattr(sys, "argv", ["ghostnet", *arguments])
        with pytest.raises(SystemExit) as end:
            command_line.main()
        out, err = capsys.readouterr()
        assert (end.value.code, contents(folder) == before) == (code, True), err
        faults = one_line(out if silent else "", err)
        assert not faults, (faults, err)
        return err

    return run


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file of a folder with its bytes; folders without."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def one_line(out: str, err: str) -> list[str]:
    """Faults of what a refused command printed."""
    return [
        *(["stdout is not empty"] if out else []),
        *(["not one line"] if len(err.splitlines()) != 1 else []),
        *(["does not begin with ghostnet:"] if not err.startswith("ghostnet: ") else []),
        *(["a traceback"] if "Traceback" in err else []),
        *(["a defect is not a refusal"] if "unforeseen" in err else []),
    ]


@pytest.mark.parametrize("words", USAGE)
def test_a_wrong_command_line(words: str, refused: Refused) -> None:
    refused(2, *words.split())


@pytest.mark.parametrize(("line", "new"), PLAN, ids=[f"{i}-{new[:24]}" for i, (_, new) in enumerate(PLAN)])
def test_a_plan_with_a_wrong_line(line: str, new: str, folder: Path, refused: Refused) -> None:
    (folder / "plan.toml").write_text(replaced(TINY, line, new))
    refused(3, "plan", "check", "plan.toml")


@pytest.mark.parametrize(("line", "new"), SITES, ids=[f"{i}-{new[:24]}" for i, (_, new) in enumerate(SITES)])
def test_a_site_with_a_wrong_line(line: str, new: str, folder: Path, refused: Refused) -> None:
    (folder / "site.toml").write_text(replaced(SITE, line, new))
    refused(4, "site", "ledger", "site.toml")


@pytest.mark.parametrize(("name", "code"), [("plan", 3), ("site", 4)])
@pytest.mark.parametrize("kind", NO_TOML)
def test_a_file_that_is_no_toml(name: str, code: int, kind: str, folder: Path, refused: Refused) -> None:
    file, content = folder / f"{name}.toml", NO_TOML[kind]
    file.unlink() if content is None else file.write_bytes(content)
    refused(code, *(("plan", "check") if name == "plan" else ("site", "budget")), file.name)


@pytest.mark.parametrize("kind", COLUMNS)
def test_an_npz_with_a_wrong_column(kind: str, folder: Path, refused: Refused) -> None:
    np.savez(folder / "data.npz", **COLUMNS[kind])  # type: ignore[arg-type]
    refused(5, "simulate", "plan.toml", "--data", "data.npz", "--out", "run")


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04cut", b"no zip"], ids=["missing", "empty", "cut", "text"])
def test_a_file_that_is_no_npz(content: bytes | None, folder: Path, refused: Refused) -> None:
    if content is not None:
        (folder / "data.npz").write_bytes(content)
    refused(5, "simulate", "plan.toml", "--data", "data.npz", "--out", "run")


@pytest.mark.parametrize("partition", ["", "iid:3", "dirichlet", "dirichlet:x", "dirichlet:-1", "column:nowhere"])
def test_a_partition_that_is_none(partition: str, folder: Path, refused: Refused) -> None:
    write_striped_npz(folder / "data.npz", patients=8)
    refused(5, "simulate", "plan.toml", "--data", "data.npz", "--out", "run", "--partition", partition)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (4, "simulate plan.toml --out run"),
        (4, "simulate plan.toml --out run --data data.npz --site site.toml"),
        (4, "simulate plan.toml --out run --site nowhere.toml"),
        (3, "simulate nowhere.toml --out run --data site.toml"),
        (4, "simulate plan.toml --out run --site site.toml --device cuda:9"),
        (11, "simulate plan.toml --out run --data site.toml --resume"),
        (11, "simulate plan.toml --out full --data site.toml"),
        (11, "simulate plan.toml --out site.toml --data site.toml"),
        (8, "audit ledger nowhere.sqlite"),
        (8, "audit ledger site.toml"),
        (8, "audit ledger ."),
        (13, "audit mechanism --build nowhere:X"),
        (13, "audit mechanism --build json:loads"),
        (9, "sample nowhere -o drawn"),
        (9, "sample full -o drawn"),
        (9, "sample site.toml -o drawn"),
        (3, "plan suggest --patients x --images 64 --epsilon 1"),
        (3, "plan suggest --patients 0 --images 64 --epsilon 1"),
        (3, "plan suggest --patients 5 --images 63 --epsilon 1"),
        (3, "plan suggest --patients 5 --images 64 --epsilon nan"),
        (3, "plan suggest --patients 5 --images 64 --epsilon 1 --delta 2"),
        (3, "plan suggest --patients 50 --images 64 --epsilon 1 --out plan.toml"),
        (3, "plan suggest --patients 500 --images 64 --epsilon 1 --out nowhere/plan.toml"),
        (4, "site init full --yes"),
        (4, "site init . --yes"),
        (4, "site key nowhere.toml"),
        (4, "site check nowhere.toml --plan plan.toml"),
        (3, "site check site.toml --plan nowhere.toml"),
        (4, "site review site.toml"),
    ],
)
def test_what_is_not_there_or_does_not_fit(code: int, words: str, folder: Path, refused: Refused) -> None:
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")
    refused(code, *words.split())


@pytest.mark.parametrize("name", ["certificate.json", "config.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe"], ids=["empty", "no-keys", "list", "bytes"])
def test_a_sampler_of_nonsense(name: str, content: bytes, folder: Path, refused: Refused) -> None:
    (folder / "sampler").mkdir()
    (folder / "sampler" / name).write_bytes(content)
    refused(9, "verify", "sampler", silent=False)


def test_a_ledger_of_another_program(folder: Path, refused: Refused) -> None:
    base = sqlite3.connect(folder / "ledger.sqlite")
    base.execute("create table entries (a, b)")
    base.commit()
    base.close()
    refused(8, "audit", "ledger", "ledger.sqlite")


def test_site_init_asks_for_all_that_is_missing_at_once(folder: Path, refused: Refused) -> None:
    (folder / "new").mkdir()
    said = refused(4, "site", "init", "new", "--yes")
    assert all(flag in said for flag in ("--kind", "--max-epsilon", "--delta"))
    assert "--name" not in said  # the folder's own is proposed


@pytest.mark.parametrize(
    ("typed", "meant"), [("simulte", "simulate"), ("plan chek", "check"), ("site bugdet", "budget")]
)
def test_the_nearest_command_is_named(typed: str, meant: str, refused: Refused) -> None:
    assert f"did you mean {meant}" in refused(2, *typed.split())


# --- The checks themselves have power ---


@pytest.mark.parametrize(
    ("out", "err"),
    [
        ("x", "ghostnet: a\n"),
        ("", "ghostnet: a\nghostnet: b\n"),
        ("", "ghostnet: Traceback\n"),
        ("", "oh\n"),
        ("", "ghostnet: unforeseen KeyError: 'x'\n"),
        ("", ""),
    ],
)
def test_what_is_no_refusal_is_noticed(out: str, err: str) -> None:
    assert one_line(out, err)
    assert not one_line("", "ghostnet: a\n")


def planted(error: BaseException) -> Callable[..., object]:
    """A plan reader that fails as a defect, a full disk or Ctrl-C would."""

    def fails(*_: object) -> object:
        raise error

    return fails


def unforeseen() -> Iterator[tuple[BaseException, int, str]]:
    """(what a command raises, exit code, what is said)."""
    yield KeyError("x"), 1, "unforeseen KeyError: 'x'; add --debug"
    yield OSError(28, "No space left on device", "run/a.bin"), 1, "run/a.bin: No space left on device; "
    yield KeyboardInterrupt(), 130, "stopped from the keyboard"
    yield RecursionError("deep\nly"), 1, r"deep\nly"


@pytest.mark.parametrize(("error", "code", "said"), tuple(unforeseen()), ids=lambda value: type(value).__name__)
def test_what_nobody_foresaw_is_one_line_and_a_traceback_with_debug_only(
    error: BaseException,
    code: int,
    said: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("ghostnet.cli.plan.load_plan", planted(error))
    monkeypatch.setattr(sys, "argv", ["ghostnet", "plan", "check", "plan.toml"])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    err = capsys.readouterr().err
    assert (end.value.code, len(err.splitlines())) == (code, 1)
    assert said in err
    monkeypatch.setattr(sys, "argv", ["ghostnet", "plan", "check", "plan.toml", "--debug"])
    with pytest.raises((type(error), command_line.Interrupted)):
        command_line.main()


def test_every_code_here_is_documented() -> None:
    text = (Path(__file__).parents[1] / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    documented = set(map(int, re.findall(r"^## (\d+)", text, flags=re.M)))
    assert {1, 2, 3, 4, 5, 8, 9, 11, 13, 130} <= documented
