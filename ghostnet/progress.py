"""Progress of long work. Only public numbers (phase, steps done, steps in all) go through here."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (phase, done, total)."""


def silent(phase: str, done: int, total: int) -> None:
    """The progress of a caller that does not want any."""


def named(name: str, progress: Progress) -> Progress:
    """The same progress, each phase after the name of whose it is."""
    return lambda phase, done, total: progress(f"{name}: {phase}", done, total)
