"""The `ghostnet` command: where the three packages are put together."""

from __future__ import annotations

import os
import sys

import typer

import ghostnet
import ghostnet.cli.quiet  # noqa: F401  # first: nobody is told of a run
from ghostnet.cli.console import errors
from ghostnet.cli.lazy import LazyGroup, new_app
from ghostnet.cli.roles import missing
from ghostnet.errors import GhostNetError, printable


class Commands(LazyGroup):
    """The commands of `ghostnet`."""

    table = {
        "demo": (
            "ghostnet.cli.demo:demo",
            "Train one sampler across three made-up hospitals, in a few minutes on two cores.",
        ),
        "simulate": ("ghostnet.cli.simulate:simulate", "Train one sampler across hospitals on this machine."),
        "sample": (
            "ghostnet.cli.sampler:sample",
            "Draw synthetic images from a sampler; DICOM files are marked as synthetic.",
        ),
        "verify": (
            "ghostnet.cli.sampler:verify",
            "Check a sampler offline: whose keys signed, every file, what hospitals answered, epsilon recomputed.",
        ),
        "doctor": ("ghostnet.cli.doctor:doctor", "Say what is missing on this machine and what to do about it."),
        "plan": ("ghostnet.cli.plan:app", "Check what a plan promises and costs."),
        "site": ("ghostnet.cli.site:app", "The hospital's own commands."),
        "audit": ("ghostnet.cli.audit:app", "Audit a ledger, or the private step itself."),
    }


app = new_app(
    "Train one generator of medical images across hospitals; each enforces its own patients' privacy budget.",
    cls=Commands,
    name="ghostnet",
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ghostnet {ghostnet.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: bool = typer.Option(False, "--debug", help="Show a traceback when something goes wrong."),
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_tell_version, is_eager=True),
) -> None:
    if debug:
        os.environ["GHOSTNET_DEBUG"] = "1"


def main() -> None:
    """Runs the command line; a `GhostNetError` becomes one line and its documented exit code (docs/exit-codes.md)."""
    try:
        try:
            app()
        except ModuleNotFoundError as error:
            raise missing(error, sys.argv[1:]) from error
    except GhostNetError as error:
        if os.environ.get("GHOSTNET_DEBUG"):
            raise
        said = printable(str(error))  # one line; it may quote what somebody else wrote
        errors.print(f"ghostnet: {said}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("ghostnet: interrupted; add --resume to the same command to go on", highlight=False)
        sys.exit(130)


if __name__ == "__main__":
    main()
