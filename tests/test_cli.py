"""The command line's list of commands: quick, and true."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from ghostnet.cli.audit import AuditCommands
from ghostnet.cli.lazy import LazyGroup
from ghostnet.cli.main import Commands, app
from ghostnet.cli.plan import PlanCommands
from ghostnet.cli.site import SiteCommands

HEAVY = ("torch", "opacus", "flwr", "scipy", "matplotlib", "pydicom", "dp_accounting", "numpy", "client", "server")


@pytest.mark.parametrize("group", [Commands, SiteCommands, PlanCommands, AuditCommands])
def test_the_list_says_of_each_command_what_its_own_help_says(group: type[LazyGroup]) -> None:
    for place, words in group.table.values():
        module, _, attribute = place.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        said = found.info.help if isinstance(found, typer.Typer) else found.__doc__.split("\n\n")[0]
        assert " ".join(said.split()) == words, place


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], ["--version"], ["site", "--help"], ["simulte"]], ids=" ".join
)
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from ghostnet.cli.main import main\n"
        f"sys.argv = ['ghostnet', *{arguments}]\n"
        "try: main()\nexcept SystemExit as end: assert end.code in (0, 2)\n"
        f"print('LOADED', *({set(HEAVY)} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_an_error_is_one_line_whatever_it_quotes() -> None:
    command = [sys.executable, "-m", "ghostnet", "plan", "check", "x\nghostnet: all is well"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)


def test_every_command_answers_to_help_and_a_wrong_one_is_named() -> None:
    runner = CliRunner()
    listed = runner.invoke(app, ["--help"]).output
    for name in Commands.table:
        assert name in listed
        own = runner.invoke(app, [name, "--help"])
        assert own.exit_code == 0
        assert "\\[" not in own.output  # rich's markup, where nothing reads it
    wrong = runner.invoke(app, ["simulte"])
    assert (wrong.exit_code, "simulte" in wrong.output) == (2, True)
