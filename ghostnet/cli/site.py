"""`ghostnet site`: for the hospital."""

from __future__ import annotations

from ghostnet.cli.lazy import LazyGroup, new_app


class SiteCommands(LazyGroup):
    """The subcommands of `ghostnet site`."""

    table = {
        "init": (
            "ghostnet.cli.site_init:init",
            "Write a site.toml in which every key is explained; asks for what is not given as an option.",
        ),
        "check": (
            "ghostnet.cli.site_check:check",
            "Dry run of intake: what would be taken, left out and blanked. Spends nothing and sends nothing.",
        ),
        "review": (
            "ghostnet.cli.site_review:review",
            "Show images that wait for a person, before and after blanking, in a local page; or note what you decided.",
        ),
        "key": (
            "ghostnet.cli.site_check:key",
            "The hospital's public key as NAME=KEY: for the other hospitals' `peers`, and for `ghostnet verify --key`.",
        ),
        "budget": (
            "ghostnet.cli.site_budget:budget",
            "Show what the ledger of this state folder has spent, on what, and what is left; reads only.",
        ),
        "ledger": (
            "ghostnet.cli.site_ledger:ledger",
            "Show the ledger's state: entries, head, witness, runs, what is spent, and whether it is in order.",
        ),
    }


app = new_app("The hospital's own commands.", cls=SiteCommands)


@app.callback()
def _site() -> None:
    """Makes a group of it, whose commands are looked up by name."""
