"""`ghostnet demo`: three hospitals of procedural chest phantoms, and the real path on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ghostnet.cli.console import errors, progress_bars
from ghostnet.cli.demo_data import write_demo_plan, write_hospitals
from ghostnet.cli.simulate import Engine, run, tell
from ghostnet.plan import load_plan
from ghostnet.privacy.claim import resolve
from server.checkpoint import check_free


def demo(
    out: Annotated[Path, typer.Option(help="Run folder to write; must be new, or unfinished with --resume.")] = Path(
        "runs/demo"
    ),
    resume: Annotated[bool, typer.Option(help="Go on with the unfinished run in --out.")] = False,
) -> None:
    """Train one sampler across three made-up hospitals, in a few minutes on two cores.

    Writes DICOM folders of procedural chest phantoms (with planted names and burned-in text), then runs intake,
    de-identification, training under DP, federation and publication on them: the same path as `ghostnet simulate`.
    """
    check_free(out, resume=resume)
    with progress_bars() as progress:
        sites = sorted((out / "sites").glob("*/site.toml")) if resume else []
        if not sites:
            sites = write_hospitals(out / "sites", progress=progress)
        plan_file = write_demo_plan(out / "sites")
        run(plan_file, resolve(load_plan(plan_file)), out, sites, None, 0, "iid", Engine.EMBEDDED, resume, progress)
    tell(out, as_json=False)
    errors.print(f"check the certificate: ghostnet verify {out / 'sampler'}", highlight=False, soft_wrap=True)
