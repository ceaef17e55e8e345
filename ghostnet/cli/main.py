"""The `ghostnet` command: where the three packages are put together."""

from __future__ import annotations

import os
import sys

import typer

import ghostnet.cli.quiet  # noqa: F401  # first: nobody is told of a run
from ghostnet.cli import audit, demo, doctor, plan, sampler, simulate, site
from ghostnet.cli.console import errors
from ghostnet.errors import GhostNetError
from ghostnet.protocol import printable

app = typer.Typer(
    name="ghostnet",
    help="Train one generator of medical images across hospitals; each enforces its own patients' privacy budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _options(debug: bool = typer.Option(False, "--debug", help="Show a traceback when something goes wrong.")) -> None:
    if debug:
        os.environ["GHOSTNET_DEBUG"] = "1"


app.command("demo")(demo.demo)
app.command("simulate")(simulate.simulate)
app.command("sample")(sampler.sample)
app.command("verify")(sampler.verify)
app.command("doctor")(doctor.doctor)
app.add_typer(plan.app, name="plan")
app.add_typer(site.app, name="site")
app.add_typer(audit.app, name="audit")


def main() -> None:
    """Runs the command line; a `GhostNetError` becomes one line and its documented exit code (docs/exit-codes.md)."""
    try:
        app()
    except GhostNetError as error:
        if os.environ.get("GHOSTNET_DEBUG"):
            raise
        said = "\n".join(printable(line) for line in str(error).split("\n"))  # it may quote what somebody else wrote
        errors.print(f"ghostnet: {said}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("ghostnet: interrupted; add --resume to the same command to go on", highlight=False)
        sys.exit(130)


if __name__ == "__main__":
    main()
