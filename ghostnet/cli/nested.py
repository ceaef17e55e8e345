"""Nested facts as JSON or as an indented table."""

from __future__ import annotations

from rich.table import Table

from ghostnet.cli.console import results


def print_nested(values: dict[str, object], *, as_json: bool) -> None:
    """Prints a report as JSON or as an indented table."""
    if as_json:
        results.print_json(data=values)
        return
    table = Table(show_header=False, box=None)
    for key, value in values.items():
        if isinstance(value, dict):
            table.add_row(key, "")
            for inner, number in value.items():
                table.add_row(f"  {inner}", str(number))
        elif isinstance(value, list):
            table.add_row(key, "\n".join(str(entry) for entry in value))
        else:
            table.add_row(key, str(value))
    results.print(table)
