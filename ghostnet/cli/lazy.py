"""Commands that are imported when they are run: a list of commands should not wait for torch."""

from __future__ import annotations

import difflib
import importlib
from typing import Any, ClassVar

import click
import click.shell_completion
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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in self.table or args[0].startswith("-"):
            return super().resolve_command(ctx, args)
        near = difflib.get_close_matches(args[0], self.table, n=1)
        known = f"did you mean {near[0]}" if near else f"there are {', '.join(self.table)}"
        raise click.UsageError(f"no command {args[0]!r}; {known}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in self.table.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[click.shell_completion.CompletionItem]:
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [
            click.shell_completion.CompletionItem(name, help=words)
            for name, (_, words) in self.table.items()
            if name.startswith(incomplete)
        ]


def new_app(about: str, **settings: Any) -> typer.Typer:
    """A group of commands in the manner of this command line.

    Args:
        about: what they are for.
        settings: of `typer.Typer`.
    """
    settings = {"no_args_is_help": True, "add_completion": False, "pretty_exceptions_enable": False, **settings}
    context = {"help_option_names": ["-h", "--help"]}
    return typer.Typer(help=about, rich_markup_mode=None, context_settings=context, **settings)


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
