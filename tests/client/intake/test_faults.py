"""What goes wrong around an intake: a full disk, a kill, a patient who withdraws. Nothing that was done is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from client.cohort import load_cohorts
from client.config import SiteConfig, load_site
from ghostnet.errors import SiteError
from tests.client.intake.dicom_files import SECRET, image_spec, write_hospital, write_site
from tests.client.intake.picture_files import eight_bit, picture_site, write_png, write_table
from tests.client.test_cohort import NO_WORKER, entries

ROOT = Path(__file__).resolve().parents[3]

INTAKE = """
import sys
from pathlib import Path
from client.cohort import load_cohorts
from client.config import load_site
from ghostnet.errors import GhostNetError
from tests.client.intake.dicom_files import SECRET, image_spec
def tell(_, done, total):
    print(done, flush=True)

try:
    table = load_cohorts(load_site(Path(sys.argv[1])), image_spec(size=64), SECRET, tell, workers=1).table
    print("taken", table.taken, "from_cache", table.from_cache)
except GhostNetError as error:
    print("error", error)
"""


def hospital(folder: Path, images: int = 12) -> SiteConfig:
    """Pictures, one a patient."""
    rows: list[tuple[object, ...]] = [("image", "patient", "label")]
    for number in range(images):
        write_png(folder / f"images/{number}.png", eight_bit(number))
        rows.append((f"{number}.png", f"MRN-{number:05d}", ("normal", "lesion")[number % 2]))
    write_table(folder / "labels.csv", rows)
    return picture_site(folder)


def exclude(config: SiteConfig, *identifiers: str) -> SiteConfig:
    path = config.source.parent / "withdrawn.txt"
    path.write_text("".join(f"{identifier}\n" for identifier in identifiers))
    path.chmod(0o600)
    text = config.source.read_text()
    if "exclude" not in text:
        config.source.write_text(text + '[cohort]\nexclude = "withdrawn.txt"\n')
    return load_site(config.source)


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare(1) to mount a small disk of its own")
def test_a_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path: Path) -> None:
    config = hospital(tmp_path)
    config.state.mkdir()
    (tmp_path / "intake.py").write_text(INTAKE)
    run = f"PYTHONPATH={ROOT} {sys.executable} {tmp_path}/intake.py {config.source}"
    small = f"mount -t tmpfs -o size=100k tmpfs {config.state}"
    larger = f"mount -o remount,size=8m {config.state}"
    script = f"{small} || exit 77; {run}; find {config.state} -name '*.tmp*'; {larger}; {run}"
    command = ["unshare", "-rm", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this machine allows no mount in a namespace of the test's own")
    said = [line for line in done.stdout.splitlines() if not line.isdigit()]
    assert len(said) == 2, done.stdout + done.stderr
    assert said[0].startswith("error")
    assert "No space left on device" in said[0]
    assert "start again: what was done is kept" in said[0]
    assert ".tmp" not in said[0]
    words = said[1].split()
    assert words[:2] == ["taken", "12"]
    assert 0 < int(words[3]) < 12


def test_a_killed_intake_goes_on_where_it_was(tmp_path: Path) -> None:
    config = hospital(tmp_path, images=40)
    command = [sys.executable, "-c", INTAKE, str(config.source)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 5:
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=True)
    words = done.stdout.splitlines()[-1].split()
    assert words[:2] == ["taken", "40"]
    assert 5 <= int(words[3]) < 40
    assert not list(config.state.rglob("*.tmp"))


@pytest.mark.parametrize("kind", ["images", "dicom"])
def test_a_patient_who_withdraws_is_in_no_cohort_and_not_in_the_cache(tmp_path: Path, kind: str) -> None:
    config = hospital(tmp_path) if kind == "images" else write_hospital(tmp_path, patients=6, images=2)
    gone, files = ("MRN-00003", 1) if kind == "images" else ("MRN00003", 2)
    before = load_cohorts(config, image_spec(), SECRET)
    kept = len(list((config.state / "cache").rglob("*.safetensors")))
    after = load_cohorts(exclude(config, gone), image_spec(), SECRET, limits=NO_WORKER)
    assert (after.table.excluded, after.table.quarantined) == (files, {"EXCLUDED": files})
    assert after.table.patients == before.table.patients - 1
    assert set(entries(after)) < set(entries(before))
    assert len(list((config.state / "cache").rglob("*.safetensors"))) == kept - files
    again = load_cohorts(exclude(config, gone), image_spec(), SECRET)
    assert again.table.excluded == files
    assert len(list((config.state / "cache").rglob("*.safetensors"))) == kept - files


def test_a_patient_who_withdraws_is_not_read_from_an_npz_either(tmp_path: Path) -> None:
    images = np.stack([eight_bit(i) for i in range(6)])
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(6) % 2, patient=np.arange(6) // 2)
    config = write_site(tmp_path, data='[data]\nkind = "npz"\npath = "data.npz"')
    table = load_cohorts(exclude(config, "1"), image_spec(size=40), SECRET).table
    assert (table.taken, table.excluded, table.patients) == (4, 2, 2)


def test_a_list_of_withdrawn_patients_that_is_missing_ends_the_intake(tmp_path: Path) -> None:
    config = exclude(hospital(tmp_path, images=2), "MRN-00000")
    (tmp_path / "withdrawn.txt").unlink()
    with pytest.raises(SiteError, match="exclude"):
        load_cohorts(config, image_spec(), SECRET)
