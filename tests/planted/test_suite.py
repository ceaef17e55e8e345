"""Every planted bug is caught by the check that is named beside it, and the clean twin passes the same check."""

import re
from pathlib import Path

import pytest

from tests.planted import __main__ as command
from tests.planted.suite import ASKED, SUITE, Planted

pytestmark = pytest.mark.usefixtures("one_thread")

# As the project's list of wrong variants has them, word for word: what the suite may never lose.
PROMISED = """
no noise, noise / B, noise / physical batches, noise x 0.5, same noise each step, no clip, batch clip,
image-level clip, two forwards with fixed fakes, fakes sized by the real batch, minibatch-stddev, relativistic loss,
shuffled batches, q/2 accounted, T/4 accounted, public values from len(dataset), fresh accountant each round,
DP skipped after a restart, NaN sigma from the server, raw metrics in a message,
no rounding reserve, pooled share with noise sigma/n, mask used twice, perceptual release not charged,
adaptive n_D asked about reals, gradient penalty at reals added after the noise, noise repeated across tensors,
noise repeated across steps, noise repeated in blocks, loss of the batch's mean logit, classes weighted by batch counts,
weight chosen from the batch's labels, norm chosen from the batch's labels, patient split over physical batches,
remainders of a batch in dcgan, remainders of a batch in keras28, remainders of a batch in stylegan,
warm start in long batches, utility counts in long batches, perceptual features in long batches,
classifier in training mode,
warm start with the noise of another table, warm start without clip, warm start with images counted fully,
perceptual release with sensitivity 2, utility counts with images counted fully, pooled share without noise,
statistic that is not in the catalogue, statistic charged with another noise
"""


@pytest.mark.parametrize("planted", SUITE, ids=lambda p: p.bug)
def test_a_planted_bug_is_caught_by_its_check_and_the_clean_twin_passes_it(planted: Planted, tmp_path: Path) -> None:
    wrong, clean = planted.wrong(tmp_path / "wrong"), planted.clean(tmp_path / "clean")
    assert not wrong.passed, f"{planted.bug} got past {planted.caught_by}: {wrong.detail}"
    assert clean.passed, f"the clean twin of {planted.bug} fails: {clean.detail}"
    assert wrong.check == clean.check == planted.caught_by


def test_no_promised_bug_is_missing_from_the_suite() -> None:
    promised = [name for name in re.split(r",\s+", PROMISED.strip())]
    assert list(ASKED) == promised
    names = [planted.bug for planted in SUITE]
    assert set(ASKED) <= set(names)
    assert len(names) == len(set(names))


def test_the_list_is_printed_one_line_a_bug_and_a_missed_one_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = [planted for planted in SUITE if planted.bug in ("no noise", "NaN sigma from the server")]
    monkeypatch.setattr(command, "SUITE", quick)
    monkeypatch.setattr(command, "ASKED", tuple(planted.bug for planted in quick))
    assert command.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(quick) + 2
    assert all("caught" in line and "passes" in line for line in lines[1:-1])
    missed = Planted(bug="harmless", caught_by="noise scale", wrong=quick[0].clean, clean=quick[0].clean)
    monkeypatch.setattr(command, "SUITE", [missed])
    assert command.main() == 1
    monkeypatch.setattr(command, "SUITE", [])
    assert command.main() == 1
    assert "not in the suite" in capsys.readouterr().out
