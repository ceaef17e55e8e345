"""How useful the samplers are: train on synthetic, test on real, one command a row.

    python -m benchmarks.usefulness                          # lists the rows
    python -m benchmarks.usefulness mnist-eps1 --data ../shared/data [--seeds 0,1,2] [--out runs/usefulness]
    python -m benchmarks.usefulness --table [--json]         # the table of all that is done
    python -m benchmarks.usefulness skin --classes           # class by class
    python -m benchmarks.usefulness mnist-eps1 --again       # finished runs, by this version's classifier

A row is a shipped plan with a few keys changed (benchmarks/usefulness.toml), so two rows of a comparison differ in
exactly the keys that they name. Each seed is one `ghostnet simulate` in a process of its own, in OUT/ROW/SEED; a run
that was stopped goes on where it was, one that is done is not repeated. The plan as it ran is beside its figures.
Seeds are public randomness (networks, features, fakes, partition); sampling and noise are drawn afresh each time.
Runs whose plan is no longer the row's are neither gone on with nor shown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w

from client.config import load_site
from ghostnet.accounting.plan_cost import resolve
from ghostnet.plan import load_plan, plan_from_dict
from ghostnet.progress import silent
from ghostnet.simulation import reference

ROWS_FILE = Path(__file__).with_suffix(".toml")
EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
FIGURES = ("auc_exact", "macro_auc_exact", "accuracy_exact", "auc_real", "macro_auc_real", "accuracy_real")
SETTINGS = "settings.json"
COLUMNS = (
    "row",
    "what",
    "epsilon",
    "seeds",
    "AUC",
    "accuracy",
    "real AUC / accuracy",
    "Frechet (real)",
    "precision / recall",
    "wall",
)
LIKENESS = ("frechet", "kernel", "precision", "recall", "real_frechet")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        says: what it shows, in words.
        plan: name of a plan in docs/examples.
        data: the NPZ file, below --data.
        sites: simulated hospitals.
        partition: as of `ghostnet simulate`.
        change: dotted plan key -> value, over the shipped plan.
        size: "cpu", or "gpu" for rows that want one.
    """

    says: str
    plan: str
    data: str
    sites: int = 4
    partition: str = "iid"
    size: str = "cpu"
    change: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    """Runs rows, or prints what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to run; without any, they are listed")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the NPZ files")
    parser.add_argument("--out", type=Path, default=Path("runs/usefulness"), help="folder of the runs")
    parser.add_argument("--seeds", default="0", help="public seeds, separated by commas")
    parser.add_argument("--table", action="store_true", help="print the table of what is done, as Markdown")
    parser.add_argument("--json", action="store_true", help="with --table: print JSON")
    parser.add_argument("--again", action="store_true", help="measure what is done of the rows named once more")
    parser.add_argument("--classes", action="store_true", help="print what is done of the rows named, class by class")
    arguments = parser.parse_args()
    rows = read_rows()
    unknown = [name for name in arguments.rows if name not in rows]
    if unknown:
        parser.error(f"no row {unknown[0]!r} in {ROWS_FILE}; choose from: {', '.join(rows)}")
    for name in arguments.rows:
        if arguments.again:
            for path in sorted((arguments.out / name).glob("*/result.json")):
                measure_again(path.parent)
        elif not arguments.classes:
            for seed in arguments.seeds.split(","):
                run_row(rows[name], arguments.out / name / seed, int(seed), arguments.data)
    if arguments.classes:
        print("\n\n".join(class_table(name, rows[name], arguments.out) for name in arguments.rows))
        return
    if arguments.table:
        done = collect(rows, arguments.out)
        print(json.dumps(done, indent=2) if arguments.json else table(done))
    elif not arguments.rows:
        print("\n".join(f"{name:28} {row.size:4} {row.says}" for name, row in rows.items()))


def read_rows() -> dict[str, Row]:
    """The rows of benchmarks/usefulness.toml."""
    return {name: Row(**row) for name, row in tomllib.loads(ROWS_FILE.read_text(encoding="utf-8")).items()}


def row_plan(row: Row, seed: int) -> dict[str, Any]:
    """The shipped plan with the row's changes, as TOML tables; checked.

    Raises:
        PlanError: the changes make no plan.
    """
    tables = tomllib.loads((EXAMPLES / f"{row.plan}.toml").read_text(encoding="utf-8"))
    for key, value in {**row.change, "seed": seed}.items():
        *path, last = key.split(".")
        table_ = tables
        for part in path:
            table_ = table_.setdefault(part, {})
        table_[last] = value
    resolve(plan_from_dict(tables, source=f"row of {row.plan}"))
    return tables


def settings(row: Row, seed: int) -> dict[str, Any]:
    """All that a run's figures depend on, as it is kept beside them."""
    return {"plan": row_plan(row, seed), "data": row.data, "sites": row.sites, "partition": row.partition}


def run_row(row: Row, folder: Path, seed: int, data: Path) -> None:
    """One seed of one row: starts it, goes on with it, or leaves it be when it is done.

    Raises:
        SystemExit: the folder holds a run with other settings.
    """
    plan, run = folder / "plan.toml", folder / "run"
    if folder.exists() and not _is_of(row, seed, folder):
        raise SystemExit(
            f"{folder} was run with other settings than the row has today; remove it, or give another --out"
        )
    if (folder / "result.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    plan.write_text(tomli_w.dumps(row_plan(row, seed)), encoding="utf-8")
    (folder / SETTINGS).write_text(json.dumps(settings(row, seed), indent=2), encoding="utf-8")
    command = [sys.executable, "-m", "ghostnet", "simulate", str(plan), "--data", str(data / row.data)]
    command += ["--sites", str(row.sites), "--partition", row.partition, "--out", str(run)]
    command += ["--resume"] if run.exists() else []
    print(f"{folder}: {' '.join(command[1:])}", file=sys.stderr, flush=True)
    start = time.monotonic()
    subprocess.run(command, check=True)  # noqa: S603 - our own program
    _write_result(folder, seed=seed, wall_s=round(time.monotonic() - start, 1))


def measure_again(folder: Path) -> None:
    """Measures a finished run's sampler once more with the classifier of this version; nothing is trained or charged.

    The counts that the hospitals released stay: another release of them would have to be paid for.
    """
    run = folder / "run"
    configs = [load_site(path) for path in sorted(run.glob("sites/*/site.toml"))]
    print(f"{folder}: exact figures once more", file=sys.stderr, flush=True)
    reference.add_to_report(run, load_plan(run / "plan.toml"), configs, silent, again=True)
    before = json.loads((folder / "result.json").read_text())
    _write_result(folder, seed=before["seed"], wall_s=before["wall_s"])


def _write_result(folder: Path, *, seed: int, wall_s: float) -> None:
    report = json.loads((folder / "run" / "report.json").read_text())
    result = {
        "seed": seed,
        "wall_s": wall_s,
        "epsilon_pld": report["privacy"]["epsilon_pld"],
        "delta": report["privacy"]["delta"],
        "measured_again": any(found.get("simulation_again") for found in report["utility"].values()),
        **{key: value for found in report["utility"].values() for key, value in found.get("simulation", {}).items()},
        **{key: value for key, value in report["fidelity"].items() if key in LIKENESS},
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")


def collect(rows: dict[str, Row], out: Path) -> list[dict[str, Any]]:
    """Every row of which at least one seed is done: mean, spread and number of seeds of each figure."""
    done = []
    for name, row in rows.items():
        if results := _results(row, out / name):
            known = {key for result in results for key in result}
            figures = {key: _summary([r[key] for r in results if key in r]) for key in (*FIGURES, *LIKENESS, "wall_s")
                       if key in known}  # fmt: skip
            epsilon = max(result["epsilon_pld"] for result in results)
            done.append(
                {
                    "row": name,
                    "says": row.says,
                    "seeds": len(results),
                    "epsilon_pld": epsilon,
                    **figures,
                    "measured_again": any(result.get("measured_again") for result in results),
                }
            )
    return done


def table(done: Sequence[dict[str, Any]]) -> str:
    """Markdown: mean over the seeds and, with three or more of them, their standard deviation."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for entry in done:
        shown = partial(_shown, seeds=entry["seeds"])
        real = f"{shown(_auc(entry, 'real'))} / {shown(entry.get('accuracy_real'))}"
        cells = [
            f"`{entry['row']}`",
            entry["says"],
            f"{entry['epsilon_pld']:.3g}",
            str(entry["seeds"]) + (", measured again" if entry["measured_again"] else ""),
            shown(_auc(entry, "exact")),
            shown(entry.get("accuracy_exact")),
            real,
            f"{shown(entry.get('frechet'))} ({shown(entry.get('real_frechet'))})",
            f"{shown(entry.get('precision'))} / {shown(entry.get('recall'))}",
            f"{entry['wall_s']['mean'] / 60:.1f} min",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def class_table(name: str, row: Row, out: Path) -> str:
    """Markdown: AUC (one class against the rest) and recall of each class, synthetic and real, over the seeds done."""
    results = _results(row, out / name)
    classes = [key.removeprefix("auc_exact of ") for key in (results or [{}])[0] if key.startswith("auc_exact of ")]
    lines = [
        f"| `{name}`, {len(results)} seeds | AUC | recall | AUC, real images | recall, real images |",
        "|---|---|---|---|---|",
    ]
    for label in classes:
        keys = [f"{metric}_{kind} of {label}" for kind in ("exact", "real") for metric in ("auc", "recall")]
        known = [[result[key] for result in results if key in result] for key in keys]
        lines.append(
            f"| {label} | " + " | ".join(_shown(_summary(k) if k else None, len(results)) for k in known) + " |"
        )
    return "\n".join(lines)


def _results(row: Row, folder: Path) -> list[dict[str, Any]]:
    """Of the seeds that were run with the row's settings; of the others a line on stderr."""
    known = []
    for path in sorted(folder.glob("*/result.json")):
        if path.parent.name.isdecimal() and _is_of(row, int(path.parent.name), path.parent):
            known.append(json.loads(path.read_text()))
        else:
            print(f"{path.parent}: left out, run with other settings than the row has today", file=sys.stderr)
    return known


def _is_of(row: Row, seed: int, folder: Path) -> bool:
    """Whether what was run there is the row of today."""
    try:
        stored = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(stored == settings(row, seed))


def _auc(entry: dict[str, Any], kind: str) -> dict[str, float] | None:
    """Of two classes the AUC; of more the mean of each against the rest."""
    figure: dict[str, float] | None = entry.get(f"auc_{kind}", entry.get(f"macro_auc_{kind}"))
    return figure


def _summary(values: Sequence[float]) -> dict[str, float]:
    spread = {"spread": statistics.stdev(values)} if len(values) > 2 else {}
    return {"mean": statistics.fmean(values), "seeds": len(values), **spread}


def _shown(figure: dict[str, float] | None, seeds: int) -> str:
    """The mean, its spread if it has one, and its number of seeds where that is not the row's."""
    if figure is None:
        return "-"
    spread = f" ± {figure['spread']:.3f}" if "spread" in figure else ""
    fewer = f" (of {figure['seeds']})" if figure["seeds"] < seeds else ""
    return f"{figure['mean']:.3f}{spread}{fewer}"


if __name__ == "__main__":
    main()
