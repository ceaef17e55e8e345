"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN.toml", help="What the federation agrees on.")]
SiteFile = Annotated[Path, typer.Argument(metavar="SITE.toml", help="What the hospital allows, and where its data is.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON.")]
