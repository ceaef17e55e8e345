"""Progress of long work. Only public numbers (phase, steps done, steps in all) go through here."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (phase, done, total)."""


def silent(phase: str, done: int, total: int) -> None:
    """The progress of a caller that does not want any."""
