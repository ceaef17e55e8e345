"""Reads what `ghostnet audit mechanism --json` printed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghostnet.errors import AuditError

_MAX_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """The outcome of one mechanism audit, as a file tells it; nobody has signed the file."""

    file: str  # its name
    sha256: str  # of its bytes
    build: str
    passed: bool
    failed: tuple[str, ...]  # names of the checks that did not hold
    checks: int
    epsilon: float  # claimed for the audited run, by PLD; infinite without noise
    delta: float
    lower_bound: float  # on epsilon, from one run with canaries, 95 %
    adjacency: str


def read_result(path: Path) -> AuditResult:
    """Reads an audit's JSON.

    Args:
        path: a file that holds the output of `ghostnet audit mechanism --json`, and nothing else.

    Raises:
        AuditError: the file cannot be read, is of another form, or its verdict is not that of its findings.
    """
    expected = "give a file that `ghostnet audit mechanism --json` wrote"
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise AuditError(f"{path} has more than {_MAX_BYTES} bytes; {expected}")
        content = path.read_bytes()
        found = _result(path, content, json.loads(content))
    except OSError as error:
        raise AuditError(f"{path} cannot be read ({error.strerror}); {expected}") from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise AuditError(f"{path} is no audit's result ({type(error).__name__}: {error}); {expected}") from None
    return found


def _result(path: Path, content: bytes, document: Mapping[str, Any]) -> AuditResult:
    failed = tuple(str(finding["check"]) for finding in document["findings"] if finding["passed"] is not True)
    told = (document["verdict"], tuple(document["failed"]))
    if not document["findings"] or told != ("fail" if failed else "pass", failed):
        raise ValueError("its verdict is not that of its findings")
    claim = document["claim"]
    return AuditResult(
        file=path.name,
        sha256=hashlib.sha256(content).hexdigest(),
        build=str(document["build"]),
        passed=not failed,
        failed=failed,
        checks=len(document["findings"]),
        epsilon=math.inf if claim["epsilon_pld"] is None else _number(claim["epsilon_pld"]),
        delta=_number(claim["delta"]),
        lower_bound=_number(document["lower_bounds"]["one_run"]),
        adjacency=str(claim["adjacency"]),
    )


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]} is not a finite number")
    return float(value)
