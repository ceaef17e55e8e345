"""Commands that are imported when they are run: a list of commands should not wait for torch."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import click
import typer
import typer.core
from typer.core import TyperGroup

typer.core.HAS_RICH = False  # else it escapes "[" for rich, which does not print our help


class LazyGroup(TyperGroup):
    """A group whose commands are named by where they are.

    Attributes:
        table: name of a command -> ("module:attribute", first sentence of its help). The attribute is a function or a
            `typer.Typer`. A test holds the sentences against the docstrings.
    """

    table: ClassVar[dict[str, tuple[str, str]]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load(cmd_name, self.table[cmd_name][0]) if cmd_name in self.table else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in self.table.items()])


def new_app(about: str, **settings: Any) -> typer.Typer:
    """A group of commands in the manner of this command line.

    Args:
        about: what they are for.
        settings: of `typer.Typer`.
    """
    settings = {"no_args_is_help": True, "add_completion": False, "pretty_exceptions_enable": False, **settings}
    return typer.Typer(help=about, rich_markup_mode=None, **settings)


def load(name: str, place: str) -> click.Command:
    """Imports a command.

    Args:
        name: that it is called by.
        place: "module:attribute".
    """
    module, _, attribute = place.partition(":")
    found: Any = getattr(importlib.import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        app = new_app("", no_args_is_help=False)
        app.command(name)(found)
        found = app
    command = typer.main.get_command(found)
    command.name = name
    return command
