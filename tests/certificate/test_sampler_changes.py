"""A sampler's folder changed in more than a thousand ways: `ghostnet verify` names each; a weak verifier does not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ghostnet.certificate import certificate, statement_checks
from ghostnet.certificate.certificate import Check, verify_sampler
from ghostnet.plan import Plan
from tests.certificate.sampler_changes import Change, changes
from tests.plans import tiny_plan
from tests.samplers import TRUSTED, publish

pytestmark = pytest.mark.usefixtures("one_thread")

Verify = Callable[[Path], list[Check]]


def plan() -> Plan:
    tiny = tiny_plan()
    return replace(tiny, privacy=replace(tiny.privacy, noise_multiplier=3.0))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published sampler's folder."""
    return publish(tmp_path_factory.mktemp("published") / "sampler", plan())


def with_all_keys(folder: Path) -> list[Check]:
    return verify_sampler(folder, trusted_keys=TRUSTED)


def unnamed(good: Path, place: Path, given: Iterable[Change], verify: Verify) -> list[str]:
    """Names of the changes after which no check fails, or none that says what was changed."""
    passed = []
    for number, change in enumerate(given):
        folder = Path(shutil.copytree(good, place / str(number) / "sampler"))
        change.apply(folder)
        said = [f"{check.name}: {check.detail}" for check in verify(folder) if not check.passed]
        if not any(word in line for line in said for word in change.about):
            passed.append(change.name)
        shutil.rmtree(place / str(number))
    return passed


def test_every_one_of_a_thousand_changes_is_named(good: Path, tmp_path: Path) -> None:
    assert [check.name for check in with_all_keys(good) if not check.passed] == []
    given = list(changes(good))
    print(f"\n{len(given)} changes")
    assert len(given) >= 1000
    assert len({change.name for change in given}) == len(given)
    assert unnamed(good, tmp_path, given, with_all_keys) == []


def test_the_same_changes_of_a_folder_whose_keys_are_unknown_never_make_it_hold(good: Path, tmp_path: Path) -> None:
    some = list(changes(good))[::25]
    for number, change in enumerate(some):
        folder = Path(shutil.copytree(good, tmp_path / str(number) / "sampler"))
        change.apply(folder)
        assert not all(check.passed for check in verify_sampler(folder)), change.name


# Weak verifiers: each lets a kind of change pass, and the list above tells.


def skips_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    real = certificate._file

    def careless(folder: Path, name: str, document: dict[str, Any]) -> str:
        return "looks fine" if name == "samples.png" else real(folder, name, document)

    monkeypatch.setattr(certificate, "_file", careless)


def tolerates_a_last_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    real = statement_checks.not_understated

    def lenient(name: str, claimed: Any, recomputed: float) -> None:
        real(name, claimed, recomputed - 2e-4)

    monkeypatch.setattr(statement_checks, "not_understated", lenient)


def believes_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "_content", lambda *arguments: "reads well")
    monkeypatch.setattr(certificate, "check_all_statements", lambda *arguments: "all there")
    monkeypatch.setattr(certificate, "_mechanism", lambda *arguments: "as ever")


def takes_any_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "_no_other_file", lambda *arguments: "the more the better")


@pytest.mark.parametrize(
    ("weaken", "passes"),
    [
        (skips_the_picture, "samples.png: bit"),
        (tolerates_a_last_digit, "north signs reserved.epsilon_pld lowered"),
        (believes_the_card, "card: line 1 claims more"),
        (takes_any_file, "'evil.py' added"),
    ],
)
def test_a_weak_verifier_is_caught_by_these_changes(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weaken: Callable[..., None], passes: str
) -> None:
    given = [change for change in changes(good) if change.name.startswith(passes)]
    assert given
    assert unnamed(good, tmp_path / "strict", given, with_all_keys) == []
    weaken(monkeypatch)
    assert len(unnamed(good, tmp_path / "weak", given, with_all_keys)) == len(given)
