"""The `ghostnet` command: where the three packages are put together."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
import typer

import ghostnet
import ghostnet.cli.quiet  # noqa: F401  # first: nobody is told of a run
from ghostnet.cli.console import errors
from ghostnet.cli.lazy import LazyGroup, new_app
from ghostnet.cli.roles import missing
from ghostnet.errors import GhostNetError, Interrupted, printable


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
    add_completion=True,
)

DEBUG = "--debug"
_HELP_ASKED = getattr(click.exceptions, "NoArgsIsHelpError", ())  # click before 8.2 prints the help itself


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ghostnet {ghostnet.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: bool = typer.Option(False, DEBUG, help="Show a traceback when something goes wrong; anywhere in the line."),
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_tell_version, is_eager=True),
) -> None:
    """Describes the options of every command; `main` looks for --debug itself."""


def main() -> None:
    """Runs the command line; a problem becomes one line and its documented exit code (docs/exit-codes.md)."""
    arguments = [argument for argument in sys.argv[1:] if argument != DEBUG]
    try:
        code = _run(arguments)
    except (Exception, KeyboardInterrupt) as error:
        if len(arguments) < len(sys.argv[1:]) and not isinstance(error, click.ClickException):
            raise
        code, words = _as_line(error)
        # It may quote what somebody else wrote, and stays one line.
        errors.print(f"ghostnet: {printable(words)}", style="red", soft_wrap=True)
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int:
    """The exit code of one command; its problems are raised."""
    try:
        code = typer.main.get_command(app).main(list(arguments), prog_name="ghostnet", standalone_mode=False)
    except _HELP_ASKED as error:
        error.show()
        return click.UsageError.exit_code
    except ModuleNotFoundError as error:
        raise missing(error, list(arguments)) from error
    if code == Interrupted.exit_code:  # typer gives this number for Ctrl-C instead of the exception
        raise Interrupted("stopped from the keyboard")
    return int(code or 0)


def _as_line(error: BaseException) -> tuple[int, str]:
    """Exit code and sentence of a problem, foreseen or not."""
    if isinstance(error, GhostNetError):
        return error.exit_code, str(error)
    if isinstance(error, click.UsageError):
        asked = error.ctx.command_path if error.ctx else "ghostnet"
        return error.exit_code, f"{error.format_message().rstrip('.')}; see {asked} --help"
    if isinstance(error, click.ClickException):
        return error.exit_code, error.format_message()
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return Interrupted.exit_code, "stopped before the last answer; nothing was written"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return 1, f"{where}{error.strerror}; correct the path, its rights or the disk, and run it again"
    return 1, f"unforeseen {type(error).__name__}: {error}; add {DEBUG} for the traceback, and report it"


if __name__ == "__main__":
    main()
