"""Writes report.json and report.html of a run."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ghostnet import __version__
from ghostnet.accounting.strength import epsilon_text, strength
from ghostnet.durable import replace_file
from ghostnet.plan.unit import protects
from ghostnet.report.plots import interval_chart, round_chart
from ghostnet.report.template import PAGE, STYLE
from ghostnet.sampler.contact_sheet import png_bytes, strip
from ghostnet.sampler.pixels import to_uint8
from ghostnet.sampler.sampler import Sampler
from ghostnet.utility.task import find_task
from ghostnet.utility.verdict import utility_verdict

MAX_TILES = 6  # more exact figures than these are a table
MAX_ODDS = 1e6  # a larger factor guarantees nothing that a reader could picture; it is not printed


@dataclass(frozen=True, kw_only=True)
class ReportFigures:
    """Pictures for the report: label -> uint8 (n,h,w) or (n,h,w,3); masks uint8 0/1 (n,h,w) of the same samples."""

    samples: Mapping[str, np.ndarray] = field(default_factory=dict)
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)


def draw_figures(sampler: Sampler, *, per_label: int = 10, seed: int = 0) -> ReportFigures:
    """A few samples of each class, with their first mask where there is one; not picked, the first of the seed."""
    drawn = {label: sampler.draw(per_label, label, seed) for label in sampler.labels}
    image_range = sampler.config.image.range
    return ReportFigures(
        samples={label: to_uint8(part.images, image_range) for label, part in drawn.items()},
        masks={label: part.masks[:, 0].numpy() for label, part in drawn.items() if part.masks is not None},
    )


def write_report(run_folder: Path, report: Mapping[str, Any], figures: ReportFigures) -> tuple[Path, Path]:
    """Writes RUN/report.json and RUN/report.html, each complete or not at all.

    Args:
        run_folder: an existing folder.
        report: the facts (DESIGN section 5); a number that is not finite becomes null.
        figures: pictures for the page.

    Returns:
        The paths of the page and of the JSON file.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    facts = _finite(report)
    page = render_page(facts, figures)
    replace_file(run_folder / "report.json", (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())
    replace_file(run_folder / "report.html", page.encode())
    return run_folder / "report.html", run_folder / "report.json"


def render_page(report: Mapping[str, Any], figures: ReportFigures) -> str:
    """The page as one HTML text that loads nothing from anywhere. Every fact is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"epsilon": epsilon_text, "number": _number, "share": _share, "plain": _plain}
    plan, privacy = report.get("plan", {}), report.get("privacy", {})
    sites = report.get("sites", [])
    return environment.from_string(PAGE).render(
        style=STYLE,
        plan=plan,
        privacy=privacy,
        protects=protects(privacy.get("unit", "patient")),
        run_id=report.get("run_id", ""),
        lead=_lead(report),
        odds=_odds(privacy.get("epsilon")),
        strength=strength(privacy.get("epsilon")),
        left_out=(report.get("federation") or {}).get("left_out", ()),
        facts=_plan_facts(plan),
        samples=_sample_rows(figures),
        tasks=[_task_parts(name, figures) for name, figures in report.get("utility", {}).items()],
        sites=sites,
        site_columns=list(dict.fromkeys(key for site in sites for key in site)),
        fidelity=[(name.replace("_", " "), _plain(value)) for name, value in (report.get("fidelity") or {}).items()],
        sampler_path=report.get("sampler_path", "sampler"),
        version=__version__,
        **_timing_parts(report.get("timing", {})),
    )


def _lead(report: Mapping[str, Any]) -> str:
    image = report.get("plan", {}).get("image", {})
    hospitals = len(report.get("privacy", {}).get("sites", []))
    labels = ", ".join(image.get("labels", ()))
    what = f"synthetic images of {labels}" if labels else "synthetic images"
    who = {0: "Hospitals", 1: "One hospital"}.get(hospitals, f"{hospitals} hospitals")
    return (
        f"{who} trained one generator of {what}. "
        "No patient’s image left a hospital; this page says what did, and at what cost."
    )


def _odds(epsilon: float | None) -> str:
    if epsilon is None or epsilon > math.log(MAX_ODDS):
        return ""
    return f"{math.exp(epsilon):,.2f}" if epsilon < 3 else f"{math.exp(epsilon):,.0f}"


def _plan_facts(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    image, model, privacy = plan.get("image", {}), plan.get("model", {}), plan.get("privacy", {})
    federation, warm = plan.get("federation", {}), plan.get("warm_start", {})
    facts: list[tuple[str, str]] = []
    if image:
        colour = "grey" if image.get("channels") == 1 else "colour"
        masks = f" + {image['mask_channels']} mask" if image.get("mask_channels") else ""
        facts.append(("images", f"{image['size']} × {image['size']} {colour}{masks}"))
        facts.append(("classes", ", ".join(image["labels"])))
    if model:
        facts.append(("network", f"{model['architecture']}, width {model['generator_width']}"))
    if federation:
        started = "warm start" if warm.get("noise_multiplier") else ""
        rounds = f"{federation['rounds']}" if federation["rounds"] or not started else ""
        facts.append(("rounds", " + ".join(filter(None, (rounds, started)))))
        facts.append(("what is shared", f"the {federation['share']}"))
    if warm.get("noise_multiplier"):
        facts.append(("noise σ of the warm start", _number(warm["noise_multiplier"])))
    if privacy and privacy["steps"]:
        facts.append(("steps at a hospital", f"{privacy['steps']:,}"))
        facts.append(("noise σ of a step", _number(privacy["noise_multiplier"])))
        facts.append(("sampling rate q", _number(privacy["sampling_rate"])))
        facts.append(("clip norm C", _number(privacy["clip_norm"])))
    elif privacy:
        facts.append(("adversarial steps", "none: the warm start alone"))
    return facts


def _sample_rows(figures: ReportFigures) -> list[dict[str, str]]:
    rows = []
    for label, images in figures.samples.items():
        rows.append(
            {
                "label": label,
                "kind": "",
                "data": _inline(png_bytes(strip(images, scale=2))),
                "alt": f"Synthetic: {label}",
            }
        )
        if label in figures.masks:
            masks = figures.masks[label] * np.uint8(255)
            rows.append(
                {
                    "label": label,
                    "kind": "masks",
                    "data": _inline(png_bytes(strip(masks, scale=2))),
                    "alt": f"Masks: {label}",
                }
            )
    return rows


def _task_parts(name: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    task = find_task(name)
    shown = task.shown(figures)
    return {
        "name": name,
        "model_name": task.model_name,
        "figures": figures,
        "shown": shown,
        "verdict": utility_verdict(figures),
        "compared": _compared(figures.get("simulation") or {}) if len(shown.simulated) > MAX_TILES else [],
        "chart": _inline(interval_chart(shown.rows)),
    }


def _compared(exact: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Rows (figure, trained on synthetic, trained on real), where there are too many for tiles."""
    rows: dict[str, dict[str, Any]] = {}
    for key, value in exact.items():
        kind = next((kind for kind in ("exact", "real") if f"_{kind}" in key), "exact")
        rows.setdefault(key.replace(f"_{kind}", "", 1).replace("_", " "), {})[kind] = value
    return [(name, found.get("exact"), found.get("real")) for name, found in rows.items()]


def _timing_parts(timing: Mapping[str, Any]) -> dict[str, Any]:
    rounds = [{**entry, "overhead": _overhead([entry])} for entry in timing.get("rounds", ())]
    if not rounds:
        return {"rounds": [], "timing_chart": "", "timing_sentence": ""}
    sentence = _time_in_words(timing, rounds)
    return {"rounds": rounds, "timing_chart": _inline(round_chart(rounds)), "timing_sentence": sentence}


def _time_in_words(timing: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> str:
    """All time that passed in the run, by whose it was."""
    work = sum(float(entry["slowest_client_s"]) for entry in rounds)
    total = timing.get("total_s")
    if total is None:
        return f"Overhead: {_overhead(rounds)} of the rounds’ time is beyond the slowest hospital’s own work."
    server = {entry["work"]: float(entry["wall_s"]) for entry in timing.get("server", ())}
    rest = max(0.0, float(total) - work - sum(server.values()))
    own = "".join(f", the coordinator {_duration(seconds)} ({words})" for words, seconds in server.items())
    share = rest / float(total) if total else 0.0
    return (
        f"The whole run took {_duration(total)}, reading of images before it not counted: the slowest hospitals "
        f"{_duration(work)}{own}, messages and waiting {_duration(rest)} ({share:.1%})."
    )


def _overhead(rounds: Sequence[Mapping[str, Any]]) -> str:
    wall = sum(float(entry["wall_s"]) for entry in rounds)
    work = sum(float(entry["slowest_client_s"]) for entry in rounds)
    return f"{(wall - work) / wall:.1%}" if wall > 0 else "–"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _number(value: Any) -> str:
    return re.sub(r"e([+-])0", r"e\1", f"{value:.4g}") if isinstance(value, int | float) else "–"


def _share(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "–"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(inner) for inner in value)
    return "–" if value is None or isinstance(value, jinja2.Undefined) else str(value)


def _finite(value: Any) -> Any:
    """The same value in what JSON knows; NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, np.generic):
        return _finite(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
