"""`ghostnet sample` and `ghostnet verify`: for whoever receives a sampler."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ghostnet.cli.console import errors, progress_bars, results
from ghostnet.errors import VerifyError
from ghostnet.export.images import write_images
from ghostnet.privacy import keys
from ghostnet.privacy.certificate import verify_sampler
from ghostnet.sampler import Sampler

Folder = Annotated[Path, typer.Argument(metavar="SAMPLER", help="Folder of a published sampler.")]


class Format(StrEnum):
    """File formats of synthetic images."""

    PNG = "png"
    NPZ = "npz"
    DICOM = "dicom"
    NIFTI = "nifti"


def sample(
    folder: Folder,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; must be new.")],
    n: Annotated[int, typer.Option("-n", help="Number of images.", min=1)] = 16,
    label: Annotated[str | None, typer.Option(help="Name of a class; by default the plan's public shares.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same images.", min=0)] = 0,
    image_format: Annotated[Format, typer.Option("--format", help="File format.")] = Format.PNG,
) -> None:
    """Draw synthetic images from a sampler; DICOM files are marked as synthetic."""
    sampler = Sampler.load(folder)
    with progress_bars() as progress:
        write_images(sampler, n=n, label=label, seed=seed, image_format=image_format.value, out=out, progress=progress)
    results.print(f"{n} images: {out}", highlight=False, soft_wrap=True)


def verify(
    folder: Folder,
    known: Annotated[
        list[str] | None,
        typer.Option(
            "--key",
            metavar="NAME=KEY",
            help="Public key of a hospital that you have from itself (`ghostnet site key`); once for each. "
            "Then only their signatures count. The coordinator's, new in every run, may be added: server=KEY.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Check a sampler's certificate offline: hashes, signatures, and epsilon recomputed.

    Without --key this says that nothing was changed since it was signed by the keys that are printed; with all
    hospitals' keys, that it was they who signed. Exit code 9 when a check fails; the checks that failed are named.
    """
    try:
        trusted = keys.named_keys(known) if known else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--key") from None
    checks = verify_sampler(folder, trusted_keys=trusted)
    failed = [check.name for check in checks if not check.passed]
    if as_json:
        results.print_json(
            data={
                "passed": not failed,
                "keys_given": trusted is not None,
                "checks": [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in checks],
            }
        )
    else:
        for check in checks:
            mark = "[green]pass[/green]" if check.passed else "[red]FAIL[/red]"
            shown = escape(" ".join(f"{check.name}: {check.detail}".split()))  # a certificate may hold anything
            results.print(f"{mark}  {shown}", highlight=False, soft_wrap=True)
    if failed:
        raise VerifyError(f"{folder} does not hold: {', '.join(failed)} failed; do not rely on its certificate")
    errors.print(f"{folder}: every check holds", highlight=False)
    if trusted is None:
        errors.print("whose keys these are is not checked: give them with --key", highlight=False)
