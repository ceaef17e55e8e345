"""A utility figure in words, the same on console and page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FAR_ABOVE = 0.5
"""Of the way from chance to a perfect figure: an interval that begins above it is far above chance."""


def utility_verdict(figures: Mapping[str, Any]) -> str:
    """A sentence for a task's part of report.json, by where its interval lies beside chance.

    >>> utility_verdict({"value": 0.93, "interval": [0.88, 0.97], "chance": 0.5})
    'works: far above chance'
    """
    value, chance = figures.get("value"), figures.get("chance")
    if value is None or figures.get("informative") is False:
        return "cannot be told: too few test patients for the noise of the released counts"
    if chance is None:
        return "has no chance line to be held against"
    low, high = figures["interval"]
    if low > chance + FAR_ABOVE * (1 - chance):
        return "works: far above chance"
    if low > chance:
        return "works: above chance"
    if high <= chance:
        return f"does not work: no better than chance; {TOO_FEW}"
    return f"not shown to be better than chance; {TOO_FEW}"


TOO_FEW = "mostly that is too few patients for this epsilon: ghostnet plan suggest says what it takes"


def with_verdict(figures: dict[str, Any]) -> dict[str, Any]:
    """The same part of report.json with its sentence."""
    return figures | {"verdict": utility_verdict(figures)}
