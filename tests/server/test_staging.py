"""The sampler's files are settled before hospitals sign: an attempt that takes up another publishes the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import server.app
from ghostnet.evidence.ledger import verify_ledger
from server.publish import publish
from tests.server.federations import failed, ledger_kinds, plan_of, run, three_hospitals

pytestmark = pytest.mark.usefixtures("one_thread")


class Killed(BaseException):
    """Stands for SIGKILL: nothing is handled, nothing cleaned up."""


@pytest.fixture
def sites(tmp_path: Path) -> list[Path]:
    return three_hospitals(tmp_path / "sites")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "certificate.json"}


@pytest.mark.parametrize("moment", ["signed", "published"])
def test_an_attempt_that_takes_up_one_whose_files_are_signed_publishes_them_to_the_byte(
    moment: str, sites: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out = plan_of("generator"), tmp_path / "run"

    def dies(*arguments: Any) -> None:
        if moment == "published":
            publish(*arguments)
        raise Killed

    monkeypatch.setattr(server.app, "publish", dies)
    with pytest.raises(Killed):
        run(plan, sites, out)
    signed = content(out / "sampler" if moment == "published" else out / "server" / "sampler")
    assert len(signed) == 5
    monkeypatch.undo()
    # Another machine draws other pictures; what was signed is what is published all the same.
    monkeypatch.setattr("ghostnet.sampler.write.labelled_grid", lambda samples: b"another machine's picture")
    run(plan, sites, out, resume=True)
    assert content(out / "sampler") == signed
    assert failed(out) == []
    assert not (out / "server" / "sampler").exists()
    assert all(ledger_kinds(site).count("publish") == 1 for site in sites)


def test_a_statement_has_the_digests_of_what_the_coordinator_was_sent(sites: list[Path], tmp_path: Path) -> None:
    run(plan_of("gan"), sites, tmp_path / "run")
    assert failed(tmp_path / "run") == []
    for site in sites:
        entries = verify_ledger(site.parent / "ledger.sqlite")
        requests = [entry.fields["request"] for entry in entries if entry.kind == "commit"]
        assert requests == ["warm_start", "round-1", "round-2", "finish"]
        kinds = [entry.kind for entry in entries]
        assert kinds.index("publish") < len(kinds) - 1 - kinds[::-1].index("begin")  # settled before the last begins
