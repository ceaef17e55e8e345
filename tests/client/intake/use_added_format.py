"""Uses the format "pgm" as any other: proposed, written, validated, read; prints what it found."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import numpy as np

from client.cohort import load_cohorts
from client.config import SiteConfig, load_site
from client.site_toml import write_site
from ghostnet.cli.reference import reference_page
from ghostnet.cli.site_init import kind_of
from ghostnet.errors import SiteError
from ghostnet.plan import ImageSpec
from ghostnet.plan.schema import file_schema
from ghostnet.progress import silent

SETTINGS: dict[str, object] = {
    "name": "north",
    "state": "state",
    "data.kind": "pgm",
    "data.path": "images",
    "data.labels": "labels.csv",
    "data.modality": "DX",
    "deidentify.burned_in": "trust",
    "deidentify.trusted_modalities": ["DX"],
    "policy.max_epsilon": 8.0,
    "policy.delta": 1e-5,
}


def write_images(folder: Path) -> None:
    """Six pictures of three patients, one of them cut short, and a file of another format."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    lines = ["image,patient,label"]
    for number in range(6):
        ramp = np.linspace(0, 200, 40 * 48).reshape(48, 40) + rng.integers(0, 50, (48, 40))
        data = b"P5\n# HOLLOWAYSON^ANNELIESE\n40 48\n255\n" + ramp.astype(np.uint8).tobytes()
        (folder / "images" / f"{number}.pgm").write_bytes(data[:900] if number == 5 else data)
        lines.append(f"{number}{'' if number == 1 else '.PGM' if number == 2 else '.pgm'},p{number // 2},normal")
    (folder / "images" / "other.pgm").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(600))
    lines.append("other.pgm,p9,normal")
    (folder / "labels.csv").write_text("\n".join(lines))


def main(folder: Path) -> None:
    """Prints one JSON object."""
    write_images(folder)
    write_site(folder / "site.toml", SETTINGS)
    refused = []
    for more in ({"data.frames_per_file": 2}, {"data.boxes": "boxes.csv"}):
        try:
            write_site(folder / "other.toml", SETTINGS | more)
        except SiteError as error:
            refused.append(str(error))
    image = ImageSpec(size=32, labels=("normal",), label_prior=(1.0,))
    config = load_site(folder / "site.toml")
    cohorts = load_cohorts(config, image, bytes(32), silent)
    taken = cohorts.train.images
    schema = file_schema(SiteConfig, "site.toml")
    found = {
        "proposed": kind_of(folder / "images"),
        "written": tomllib.loads((folder / "site.toml").read_text())["data"],
        "refused": refused,
        "shape": list(taken.shape),
        "range": [float(taken.min()), float(taken.max())],
        "patients": cohorts.train.patients + cohorts.test.patients,
        "syntaxes": cohorts.table.syntaxes,
        "quarantined": cohorts.table.quarantined,
        "in_schema": "pgm" in schema["$defs"]["DataSpec"]["properties"]["kind"]["enum"],
        "on_page": '"pgm", a folder of PGM files' in reference_page(),
    }
    print(json.dumps(found))


if __name__ == "__main__":  # needed: files are read in processes of their own
    main(Path(sys.argv[1]))
