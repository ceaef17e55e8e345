"""A hospital with a folder of PNG files and a table takes part like any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ghostnet.certificate.certificate import verify_sampler
from ghostnet.evidence import keys
from tests.client.intake.picture_files import PLANTED, write_png, write_table
from tests.command_line import ghostnet
from tests.plans import tiny_plan_text


def write_hospital(folder: Path) -> Path:
    """Plain and striped pictures, one or two a patient, in the layout that site.toml calls plain."""
    rng = np.random.default_rng(2)
    rows: list[tuple[object, ...]] = [("image", "patient", "label")]
    for patient in range(24):
        for number in range(1 + patient % 2):
            pixels = rng.integers(60, 120, (28, 28))
            pixels[:: 4 if patient % 2 else 28] += 100
            name = f"{PLANTED}{patient}/{number}.png"
            write_png(folder / "images" / name, pixels.astype(np.uint8))
            rows.append((name, f"{PLANTED}{patient}", "stripes" if patient % 2 else "plain"))
    write_table(folder / "labels.csv", rows)
    (folder / "site.toml").write_text(
        'name = "north"\nstate = "state"\n'
        '[data]\nkind = "images"\npath = "images"\nlabels = "labels.csv"\nmodality = "DX"\n'
        '[labels]\nmap = {"stripes" = "striped"}\n'
        '[deidentify]\nburned_in = "trust"\ntrusted_modalities = ["DX"]\n'
        "[policy]\nmax_epsilon = 10.0\ndelta = 1e-5\n"
    )
    return folder / "site.toml"


def test_a_site_of_pictures_is_checked_and_trained_on(tmp_path: Path) -> None:
    site = write_hospital(tmp_path)
    (tmp_path / "plan.toml").write_text(tiny_plan_text())
    checked = ghostnet("site", "check", site, "--plan", tmp_path / "plan.toml", "--json")
    table = json.loads(checked.stdout)
    assert (table["taken"], table["patients"]) == (36, 24)
    assert table["labels"] == {"plain": 12, "striped": 24}
    ghostnet("simulate", tmp_path / "plan.toml", "--site", site, "--out", tmp_path / "run")
    known = {"north": keys.public_hex(keys.load_or_create_key(site.parent / "state" / "site.key"))}
    assert all(check.passed for check in verify_sampler(tmp_path / "run" / "sampler", trusted_keys=known))
    kept = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert kept
    assert all(PLANTED.encode() not in path.read_bytes() for path in kept)
