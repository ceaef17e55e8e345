"""`ghostnet sample` and `ghostnet verify`: for whoever receives a sampler."""

from __future__ import annotations

import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ghostnet.certificate.certificate import KEYS, not_shown, verify_sampler
from ghostnet.cli.arguments import AsJson
from ghostnet.cli.console import errors, progress_bars, results
from ghostnet.cli.device import Device
from ghostnet.errors import UnknownKeysError, VerifyError
from ghostnet.evidence import keys
from ghostnet.export.images import write_images
from ghostnet.sampler.sampler import NoCertificateWarning, Sampler, fresh_seed, no_certificate

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
    seed: Annotated[
        int | None, typer.Option(help="Same seed, same images; without it fresh ones, and their seed is told.", min=0)
    ] = None,
    image_format: Annotated[Format, typer.Option("--format", help="File format.")] = Format.PNG,
    denoise: Annotated[bool, typer.Option("--denoise", help="Take specks out by a 3x3 median.")] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Draw synthetic images from a sampler; DICOM files are marked as synthetic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoCertificateWarning)  # told below, as one line
        sampler = Sampler.load(folder, device=device)
    if not sampler.has_certificate:
        errors.print(f"warning: {no_certificate(folder)}", soft_wrap=True)
    used = fresh_seed() if seed is None else seed
    with progress_bars() as progress:
        files = write_images(
            sampler,
            n=n,
            label=label,
            seed=used,
            image_format=image_format.value,
            out=out,
            denoise=denoise,
            progress=progress,
        )
    if as_json:
        known = {"certificate": sampler.has_certificate, "denoised": denoise}
        results.print_json(data={"out": str(out), "images": n, "seed": used, "files": files, **known})
    else:
        results.print(f"{n} images: {out} (seed {used})", soft_wrap=True)


def verify(
    folder: Folder,
    known: Annotated[
        list[str] | None,
        typer.Option(
            "--key",
            metavar="NAME=KEY",
            help="Public key of a hospital that you have from itself (`ghostnet site key`); once for each. "
            "Only with all of them does a sampler hold. The coordinator's, new in every run, may be added: server=KEY.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a sampler offline: whose keys signed, every file, what hospitals answered, epsilon recomputed.

    Exit code 0: every check holds, signed with the keys that you gave. 15, "unknown keys": without --key nothing says
    who made this; all else holds. 9: a check fails; the checks that failed are named. It ends with what even a
    certificate that holds does not show.
    """
    try:
        trusted = keys.named_keys(known) if known else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--key") from None
    checks, unseen = verify_sampler(folder, trusted_keys=trusted), not_shown(folder)
    failed = [check.name for check in checks if not check.passed]
    unknown = failed == [KEYS] and trusted is None
    if as_json:
        results.print_json(
            data={
                "verdict": "unknown keys" if unknown else "fails" if failed else "holds",
                "passed": not failed,
                "keys_given": trusted is not None,
                "checks": [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in checks],
                "not_shown": list(unseen),
            }
        )
    else:
        for check in checks:
            unsure = check.name == KEYS and trusted is None
            mark = ("pass", "green") if check.passed else ("????", "yellow") if unsure else ("FAIL", "red")
            _tell(Text.assemble(mark, "  "), f"{check.name}: {check.detail}")
        for words in unseen:
            _tell(Text("not shown: "), words)
    if unknown:
        raise UnknownKeysError(
            f"{folder}: unknown keys: nothing was changed since it was signed, but anyone can sign; get each "
            "hospital's key from itself and give all of them with --key NAME=KEY"
        )
    if failed:
        raise VerifyError(f"{folder} does not hold: {', '.join(failed)} failed; do not rely on its certificate")
    errors.print(f"{folder}: every check holds, signed with the keys that were given")


def _tell(mark: Text, words: str) -> None:
    results.print(mark.append(" ".join(words.split())), soft_wrap=True)
