"""`ghostnet site review`: a person looks at held images and lets them pass, or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.config import SiteConfig, load_site
from client.intake.approvals import approve, read_approvals, revoke
from client.review.review import FOLDER, shown_keys, write_review
from client.secrets import load_or_create_secret
from ghostnet.cli.arguments import SiteFile
from ghostnet.cli.console import progress_bars, results
from ghostnet.errors import SiteError
from ghostnet.plan import load_plan

MIN_KEY_DIGITS = 8  # digits; fewer could mean several images

Keys = list[str]


def review(
    site_file: SiteFile,
    plan_file: Annotated[
        Path | None, typer.Option("--plan", help="The plan that the images are prepared for; needed to look.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the page; default: review in state.")] = None,
    approved: Annotated[Keys | None, typer.Option("--approve", metavar="KEY", help="Approve an image shown.")] = None,
    approve_all: Annotated[bool, typer.Option("--approve-all", help="Approve every image shown.")] = False,
    revoked: Annotated[Keys | None, typer.Option("--revoke", metavar="KEY", help="Take an approval back.")] = None,
) -> None:
    """Show images that wait for a person, before and after blanking, in a local page; or note what you decided.

    With --plan: writes the page. With --approve, --approve-all or --revoke: notes it in state/approved.csv; the next
    `site check` and run go by it. Nothing is sent.
    """
    config = load_site(site_file)
    decides = bool(approved or approve_all or revoked)
    if decides:
        _decide(config, out or config.state / FOLDER, approved or [], approve_all, revoked or [])
    elif plan_file is None:
        raise SiteError("--plan is missing; name the plan whose images to look at, or --approve what you have seen")
    else:
        _show(config, plan_file, out)


def _decide(config: SiteConfig, folder: Path, keys: Keys, every: bool, back: Keys) -> None:
    wanted: Keys = []
    if keys or every:
        shown = shown_keys(folder)
        wanted = shown if every else [_named(key, shown, "in the last review and can be approved") for key in keys]
    unwanted = [_named(key, list(read_approvals(config.state)), "approved") for key in back]
    both = set(wanted) & set(unwanted)
    if both:
        raise SiteError(f"{len(both)} image(s) are to be approved and revoked at once; give each key once")
    lines = []
    if wanted:
        lines.append(f"{approve(config.state, wanted)} image(s) approved.")
    if unwanted:
        lines.append(f"{revoke(config.state, unwanted)} approval(s) taken back.")
    lines = lines or ["Nothing to approve."]
    lines.append(f"Approved in all: {len(read_approvals(config.state))}. `ghostnet site check` shows the effect.")
    results.print(*lines)


def _show(config: SiteConfig, plan_file: Path, out: Path | None) -> None:
    image = load_plan(plan_file).image
    config.state.mkdir(parents=True, exist_ok=True)
    secret = load_or_create_secret(config.state / "secret.key")
    with progress_bars() as progress:
        made = write_review(config, image, secret, progress, folder=out.resolve() if out else None)
    counts = made.counts
    results.print(f"{counts.held} image(s) wait for a decision, {counts.approvable} can be approved.")
    results.print(f"Open {made.page} in a browser on this machine; it shows patients' data.", soft_wrap=True)


def _named(key: str, among: Keys, what: str) -> str:
    found = [other for other in among if other.startswith(key)] if len(key) >= MIN_KEY_DIGITS else []
    if len(found) != 1:
        raise SiteError(
            f"{key!r} is not the beginning, {MIN_KEY_DIGITS} digits or more, of one key that is {what}; "
            "copy the key from the page"
        )
    return found[0]
