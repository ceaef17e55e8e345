"""The findings of one check of a mechanism."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: name of the check.
        passed: whether the property held.
        value: the statistic that was compared.
        detail: one sentence with the figure and what it was compared to.
        false_alarm: bound on the chance that a correct build fails; 0 where the check has no chance in it.
    """

    check: str
    passed: bool
    value: float
    detail: str
    false_alarm: float = 0.0
