"""The report's charts, as PNG bytes. Colours are told apart in grey print and by colour-blind readers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT, DEEP, LIGHT, WARM = "#1f2a37", "#8a94a3", "#0f766e", "#99d5cd", "#b45309"
DPI = 200
FONT_SIZE = 9


def round_chart(rounds: Sequence[Mapping[str, Any]]) -> bytes:
    """Bars of time per round: the slowest hospital's work, and what the federation adds to it.

    Args:
        rounds: `timing.rounds` of a report.
    """
    figure = Figure(figsize=(7.4, 0.9 + 0.34 * len(rounds)))
    axes = figure.add_subplot()
    names = [f"{entry['round']} · {entry['phase']}" for entry in rounds]
    work = [float(entry["slowest_client_s"]) for entry in rounds]
    added = [max(0.0, float(entry["wall_s"]) - own) for entry, own in zip(rounds, work, strict=True)]
    places = range(len(rounds))
    axes.barh(places, work, color=DEEP, height=0.56, label="slowest hospital")
    axes.barh(places, added, left=work, color=LIGHT, height=0.56, label="federation overhead")
    axes.set_yticks(list(places), names)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.8)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=FONT_SIZE, labelcolor=INK)
    return _png(figure, axes)


def interval_chart(rows: Sequence[tuple[str, float | None, Sequence[float], float | None]]) -> bytes:
    """Points with intervals on one 0-to-1 axis, a tick where chance lies.

    Args:
        rows: (name, value, (low, high), chance); an unknown value draws its interval only.
    """
    figure = Figure(figsize=(7.4, 0.8 + 0.36 * len(rows)))
    axes = figure.add_subplot()
    for place, (_, value, (low, high), chance) in enumerate(rows):
        axes.plot([low, high], [place, place], color=LIGHT, linewidth=7, solid_capstyle="round", zorder=2)
        if value is not None:
            axes.plot([value], [place], "o", color=DEEP, markersize=7, zorder=3)
        if chance is not None:
            axes.plot([chance, chance], [place - 0.38, place + 0.38], color=WARM, linewidth=1.6, linestyle=(0, (3, 2)))
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.0)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.8)
    return _png(figure, axes)


def _png(figure: Figure, axes: Axes) -> bytes:
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#cbd5e1")
    axes.tick_params(axis="y", length=0, colors=INK)
    axes.tick_params(axis="x", colors=FAINT)
    axes.xaxis.label.set_color(FAINT)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label):
        text.set_fontsize(FONT_SIZE)
    figure.set_layout_engine("constrained")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
