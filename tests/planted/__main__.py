"""Runs the planted suite and prints it, one line a bug: `python -m tests.planted`. Ends with 1 if a bug is missed."""

from __future__ import annotations

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # before anything imports Flower

import sys
import tempfile
from pathlib import Path

import torch

from tests.planted.suite import ASKED, SUITE


def main() -> int:
    """Prints bug, check, result and the clean twin's result; 1 where a bug is missed or a clean twin fails."""
    torch.set_num_threads(1)
    print(f"{'bug':40s} {'check':34s} {'result':8s} clean twin", flush=True)
    failed = [name for name in ASKED if name not in {planted.bug for planted in SUITE}]
    for name in failed:
        print(f"{name:40s} is promised and not in the suite")
    for planted in SUITE:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_STATE_HOME"] = folder
            wrong, clean = planted.wrong(Path(folder) / "wrong"), planted.clean(Path(folder) / "clean")
        is_caught = not wrong.passed and wrong.check == planted.caught_by
        found = "caught" if is_caught else "MISSED"
        print(
            f"{planted.bug:40s} {planted.caught_by:34s} {found:8s} {'passes' if clean.passed else 'FAILS'}", flush=True
        )
        if not (is_caught and clean.passed):
            failed.append(planted.bug)
    verdict = f"not as it must be: {', '.join(failed)}" if failed else "all caught, all clean twins pass"
    print(f"{len(SUITE)} bugs; {verdict}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
