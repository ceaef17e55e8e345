"""`ghostnet plan suggest`: a plan from the numbers that everybody may know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ghostnet.accounting.suggest import Suggestion
from ghostnet.accounting.suggest import suggest as propose
from ghostnet.cli.arguments import AsJson
from ghostnet.cli.console import results
from ghostnet.errors import PlanError
from ghostnet.plan import Plan
from ghostnet.plan.template import file_text

HEADING = """\
Proposed by `ghostnet plan suggest` from public numbers: {given}.
Expect: {verdict}.
{reasons}
Next: ghostnet plan check THIS_FILE"""


def suggest(
    patients: Annotated[
        str, typer.Option(help="PUBLIC nominal training patients of each hospital, as in 1200,900,400.")
    ],
    images: Annotated[int, typer.Option(help="Pixels a side: 28, 32, 64 or 128.")],
    epsilon: Annotated[float, typer.Option(help="Budget of one patient for the whole run.")],
    delta: Annotated[
        float | None, typer.Option(help="Default 1e-5, or a tenth of 1 / patients where that is less.")
    ] = None,
    labels: Annotated[str, typer.Option(help="Names of the classes, separated by commas.")] = "normal,abnormal",
    channels: Annotated[int, typer.Option(help="1 grey, 3 colour.")] = 1,
    images_per_patient: Annotated[int, typer.Option(help="At most this many images of a patient are used.")] = 1,
    minutes: Annotated[float, typer.Option(help="Compute for the adversarial steps at a hospital, 2 cores.")] = 20.0,
    out: Annotated[Path | None, typer.Option(help="Plan file to write; must not exist.")] = None,
    as_json: AsJson = False,
) -> None:
    """Propose a plan and say what usefulness to expect of it, and why; reads no data.

    Sampling rate, steps, noise, steps of the generator and the warm start's share of the budget follow from the
    hospitals' sizes and epsilon. It also says when there are too few patients for the epsilon asked for.

    Example: ghostnet plan suggest --patients 1200,900,400 --images 64 --epsilon 8 --out plan.toml
    """
    if out is not None and out.exists():
        raise PlanError(f"{out} exists already; give --out the name of a new file")
    suggestion = propose(
        patients=_counts(patients),
        size=images,
        epsilon=epsilon,
        delta=delta,
        labels=[name.strip() for name in labels.split(",")],
        channels=channels,
        images_per_patient=images_per_patient,
        minutes=minutes,
    )
    if out is not None:
        given = f"patients {patients}, {images} px, epsilon {epsilon:g}"
        try:
            out.write_text(plan_text(suggestion, given), encoding="utf-8")
        except OSError as error:
            raise PlanError(f"--out {out} cannot be written ({error.__class__.__name__}); give another file") from None
    if as_json:
        results.print_json(data=_figures(suggestion) | {"plan": suggestion.plan.to_dict()})
        return
    for key, value in _figures(suggestion).items():
        lines = value if isinstance(value, list) else [value]
        for i, line in enumerate(lines):
            shown = f"{line:.6g}" if isinstance(line, float) else line
            results.print(f"{key.replace('_', ' ') if i == 0 else '':26} {shown}", soft_wrap=True)
    results.print(f"plan: {out}" if out else "add --out plan.toml to have it written")


def plan_text(suggestion: Suggestion, given: str) -> str:
    """The plan as TOML, its reasons above it as comments."""
    reasons = "\n".join(f"- {reason}" for reason in suggestion.reasons)
    heading = HEADING.format(given=given, verdict=suggestion.verdict, reasons=reasons)
    return file_text(Plan, _flat(suggestion.plan.to_dict()), heading=heading)


def _flat(tables: Mapping[str, Any], table: str = "") -> dict[str, object]:
    """The values of a plan by dotted key."""
    found: dict[str, object] = {}
    for name, value in tables.items():
        found |= _flat(value, f"{name}.") if isinstance(value, dict) else {f"{table}{name}": value}
    return found


def _figures(suggestion: Suggestion) -> dict[str, object]:
    plan = suggestion.plan
    return {
        "expect": suggestion.verdict,
        "sampling_rate": plan.privacy.sampling_rate if plan.privacy.steps else 0.0,
        "discriminator_steps": plan.privacy.steps,
        "noise_multiplier": plan.privacy.noise_multiplier,
        "steps_a_generator_step": plan.training.discriminator_steps,
        "warm_start_noise_multiplier": plan.warm_start.noise_multiplier,
        "warm_start_share": suggestion.warm_share,
        "delta": plan.privacy.delta,
        "class_signal": suggestion.class_signal,
        "steps_signal": suggestion.steps_signal,
        "why": list(suggestion.reasons),
    }


def _counts(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise PlanError(f"--patients {text!r} is not whole numbers separated by commas, as in 1200,900,400") from None
