"""The terminal: progress bars and messages on stderr, results on stdout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bars,
)

from ghostnet.progress import Progress

# What is printed may hold anything: no markup, no emoji, no guessing at what is a number.
errors = Console(stderr=True, markup=False, emoji=False, highlight=False)
results = Console(markup=False, emoji=False, highlight=False)


def notice(text: str) -> None:
    """Tells a person something on stderr, on as many lines as the terminal makes of it."""
    errors.print(text, soft_wrap=True)


def result(text: str) -> None:
    """Prints one line of a result, as long as it is: a pipe must not break a path."""
    results.print(text, soft_wrap=True)


@contextmanager
def progress_bars(*, plain: bool | None = None) -> Iterator[Progress]:
    """Shows one bar a phase on stderr while the block runs.

    Args:
        plain: one line a phase instead of bars; by default, where stderr is not a terminal.
    """
    if plain if plain is not None else not errors.is_terminal:
        yield _plain_progress()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=errors) as bars:
        tasks: dict[str, TaskID] = {}

        def show(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done, total=total)

        yield show


def _plain_progress() -> Progress:
    """Lines for logs: the start of a phase, every tenth of it, and its end."""
    shown: dict[str, int] = {}

    def show(phase: str, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if shown.get(phase) != tenth:
            shown[phase] = tenth
            errors.print(f"{phase}: {done}/{total}", soft_wrap=True)

    return show
