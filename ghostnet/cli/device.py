"""The option --device, the same wherever something heavy runs."""

from __future__ import annotations

from typing import Annotated

import typer

Device = Annotated[
    str, typer.Option("--device", metavar="auto|cpu|cuda:N", help="Where it computes; auto is a GPU if torch sees one.")
]
