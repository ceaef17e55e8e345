"""An epsilon in digits and in words, the same on console, page, record and card."""

from __future__ import annotations

import math

STRONG, MODERATE = 1.0, 10.0
"""Epsilon up to which a guarantee is called strong, and moderate: tiers 1 and 2 of Ponomareva et al. 2023,
arXiv 2303.00654, section 5.2."""

EPSILON_PLACES = 4  # those that the accountants round up to


def epsilon_text(value: object) -> str:
    """An epsilon rounded up, never down, as it is written everywhere; what is no number guarantees nothing.

    >>> epsilon_text(9.99841)
    '9.9985'
    """
    if not isinstance(value, int | float) or not math.isfinite(value):  # a report may lack it
        return "unbounded"
    scale = 10**EPSILON_PLACES
    return f"{math.ceil(value * scale - 1e-6) / scale:.{EPSILON_PLACES}f}"


def strength(epsilon: float | None) -> str:
    """How much an epsilon promises, with the range that the word stands for.

    >>> strength(9.998)
    'moderate (1 to 10)'
    """
    if epsilon is not None and epsilon <= STRONG:
        return f"strong (up to {STRONG:g})"
    if epsilon is not None and epsilon <= MODERATE:
        return f"moderate ({STRONG:g} to {MODERATE:g})"
    return f"weak (above {MODERATE:g})"
