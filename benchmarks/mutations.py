"""What intake makes of broken and hostile files: mutations of the files that pydicom is tested with.

    python -m benchmarks.mutations [--files 5000] [--seed 7] [--workers N] [--json]

Every file is one of the bundled ones, changed by one of the kinds below, all drawn from the seed. Counted are the
codes, files that took longer than 10 s until their worker had answered or was given up, the largest address space and
resident set of any worker beside the limit, and whether the run itself came through.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
from pydicom.data import get_testdata_file

from client.intake.sandbox.pool import prepare_files, usable_cores
from client.intake.task import Limits, Settings, Task
from client.modalities import MODALITIES
from client.quarantine import Code
from ghostnet.plan import ImageSpec

SLOW_S = 10.0
POLL_S = 0.2
MAX_SEED_FILE = 600_000  # bytes; what is broken about a file does not need a large one

Mutation = Callable[[bytes, random.Random], bytes]


def flip_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to a hundred bytes anywhere."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 3, 20, 100))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def flip_header(data: bytes, rng: random.Random) -> bytes:
    """One to twenty bytes of the header."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 3, 20))):
        changed[rng.randrange(128, min(len(changed), 2000))] = rng.randrange(256)
    return bytes(changed)


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Ends anywhere."""
    return data[: rng.randrange(len(data))]


def lie_about_length(data: bytes, rng: random.Random) -> bytes:
    """The length of one element, or of one fragment, is another."""
    length = rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE, rng.randrange(1 << 20)))
    marks = [b"\xfe\xff\x00\xe0", b"\xe0\x7f\x10\x00OW\0\0", b"\xe0\x7f\x10\x00OB\0\0", b"SQ\0\0", b"UN\0\0"]
    places = [(at, len(mark)) for mark in marks if (at := data.find(mark, 132)) > 0]
    if not places:
        return flip_header(data, rng)
    at, size = rng.choice(places)
    return data[: at + size] + length.to_bytes(4, "little") + data[at + size + 4 :]


def lie_about_size(data: bytes, rng: random.Random) -> bytes:
    """Rows and Columns up to 65535."""
    side = rng.choice((65535, 65535, 32768, 8192, 0, 1))
    return _set_us(_set_us(data, b"\x28\x00\x10\x00", side), b"\x28\x00\x11\x00", rng.choice((side, 65535)))


def lie_about_frames(data: bytes, rng: random.Random) -> bytes:
    """A number of frames that is not there."""
    frames = str(rng.choice((2, 200000, 2147483647, -1, 0, 99999999999))).encode()
    element = b"\x28\x00\x08\x00IS" + (len(frames) + len(frames) % 2).to_bytes(2, "little") + frames
    element += b" " * (len(frames) % 2)
    at = data.find(b"\x28\x00\x10\x00US")
    return data[:at] + element + data[at:] if at > 0 else flip_header(data, rng)


def lie_about_bits(data: bytes, rng: random.Random) -> bytes:
    """BitsAllocated, BitsStored, HighBit, PixelRepresentation, SamplesPerPixel."""
    for tag in (
        b"\x28\x00\x00\x01",
        b"\x28\x00\x01\x01",
        b"\x28\x00\x02\x01",
        b"\x28\x00\x03\x01",
        b"\x28\x00\x02\x00",
    ):
        if rng.random() < 0.4:
            data = _set_us(data, tag, rng.choice((0, 1, 3, 8, 12, 16, 32, 64, 65535)))
    return data


def stretch_codestream(data: bytes, rng: random.Random) -> bytes:
    """A JPEG 2000 stream that says it is huge, or an RLE frame of runs; elsewhere flipped bytes."""
    at = data.find(b"\xff\x4f\xff\x51")
    if at > 0:
        side = rng.choice((65535, 1 << 20, 0xFFFFFFFF)).to_bytes(4, "big")
        stretched = data[: at + 8] + side + side + data[at + 16 :]
        if rng.random() < 0.5:  # and the header agrees
            stretched = lie_about_size(stretched, rng)
        return stretched
    if b"1.2.840.10008.1.2.5\0" in data[:1000] and (item := data.find(b"\xfe\xff\x00\xe0", 300)) > 0:
        runs = b"\x81\0" * rng.choice((1000, 1_000_000))
        return data[: item + 80] + runs + data[item + 80 :]
    return flip_bytes(data, rng)


def deflate_bomb(data: bytes, rng: random.Random) -> bytes:
    """A deflated file that inflates without end."""
    whole = 132 + 12 + int.from_bytes(data[140:144], "little")
    meta = data[132:whole]
    at = meta.find(b"\x02\x00\x10\x00UI")
    if at < 0:
        return truncate(data, rng)
    end = at + 8 + int.from_bytes(meta[at + 6 : at + 8], "little")
    meta = meta[:at] + b"\x02\x00\x10\x00UI\x16\x001.2.840.10008.1.2.1.99" + meta[end:]
    meta = meta[:8] + (len(meta) - 12).to_bytes(4, "little") + meta[12:]
    squeeze = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    body = squeeze.compress(data[whole:])
    body += b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(rng.choice((8, 64, 512)))) + squeeze.flush()
    return data[:132] + meta + body


def nest_sequences(data: bytes, rng: random.Random) -> bytes:
    """Sequences in sequences, thousands deep."""
    deep = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * rng.choice((100, 2000, 50000))
    at = data.find(b"\x08\x00\x60\x00CS")
    return data[:at] + deep + data[at:] if at > 0 else flip_header(data, rng)


def pad_with_noise(data: bytes, rng: random.Random) -> bytes:
    """The header stays, everything after it is noise."""
    at = data.find(b"\xe0\x7f\x10\x00")
    keep = at + 20 if at > 0 else 400
    return data[:keep] + rng.randbytes(max(0, len(data) - keep))


KINDS: dict[str, tuple[Mutation, int]] = {
    "byte flips": (flip_bytes, 8),
    "header flips": (flip_header, 8),
    "truncated": (truncate, 4),
    "lying length": (lie_about_length, 5),
    "lying size": (lie_about_size, 4),
    "lying frames": (lie_about_frames, 3),
    "lying bits": (lie_about_bits, 4),
    "codestream bomb": (stretch_codestream, 4),
    "deflate bomb": (deflate_bomb, 1),
    "nested sequences": (nest_sequences, 1),
    "noise as pixels": (pad_with_noise, 3),
}
"""How a file is changed, and in how many of 45."""


def main() -> None:
    """Runs the mutations and prints a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=5000, help="mutated files")
    parser.add_argument("--seed", type=int, default=7, help="of everything that is drawn")
    parser.add_argument("--workers", type=int, default=None, help="worker processes; one a core")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    result = measure(arguments.files, arguments.seed, workers=arguments.workers)
    print(json.dumps(result, indent=2) if arguments.json else table(result))


def measure(files: int, seed: int, *, workers: int | None = None, limits: Limits | None = None) -> dict[str, Any]:
    """Writes mutated files to a temporary folder, takes them in as a site does, and counts what came of them."""
    limits = limits or Limits()
    with tempfile.TemporaryDirectory() as folder:
        kinds = []
        for number, (kind, data) in enumerate(mutated(files, seed)):
            (Path(folder) / f"{number}.dcm").write_bytes(data)
            kinds.append(kind)
        tasks = [Task(path=Path(folder) / f"{number}.dcm") for number in range(files)]
        watch = Watch(limits.memory_bytes)
        started = time.monotonic()
        outcomes, seconds = _run(tasks, limits, workers)
        wall = time.monotonic() - started
        watch.stop()
    codes = Counter(outcome for _, outcome in outcomes)
    by_kind = {kind: dict(Counter(code for k, code in _with_kind(kinds, outcomes) if k == kind)) for kind in KINDS}
    return {
        "files": files,
        "seed": seed,
        "codes": dict(codes.most_common()),
        "by_kind": by_kind,
        "answered": len(outcomes),
        "crashes_of_the_run": files - len(outcomes),
        "slower_than_10_s": sum(took > SLOW_S for took in seconds.values()),
        "slowest_s": round(max(seconds.values()), 2),
        "peak_resident_mb": watch.resident >> 20,
        "peak_above_idle_mb": watch.grown >> 20,
        "limit_above_idle_mb": limits.memory_bytes >> 20,
        "wall_s": round(wall, 1),
        "workers": workers or usable_cores(),
        "parent_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def mutated(files: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yields (kind, bytes of a mutated file)."""
    rng = random.Random(seed)
    folder = Path(str(get_testdata_file("CT_small.dcm"))).parent
    sources = sorted(p for p in folder.rglob("*") if p.is_file() and 400 < p.stat().st_size < MAX_SEED_FILE)
    originals = [data for path in sources if (data := path.read_bytes())[128:132] == b"DICM" and _is_image(path)]
    names, weights = list(KINDS), [weight for _, weight in KINDS.values()]
    for kind in rng.choices(names, weights, k=files):
        yield kind, KINDS[kind][0](rng.choice(originals), rng)


class Watch:
    """Looks at the memory of all workers from outside, a few times a second."""

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self.resident = 0
        self.grown = 0
        self._idle: dict[int, int] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stopped.wait(POLL_S):
            for process in _children():
                try:
                    fields = dict(
                        line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines()
                    )
                    limit = Path(f"/proc/{process}/limits").read_text().split("Max address space")[1].split()[0]
                except (OSError, IndexError):
                    continue
                if limit == "unlimited" or "VmPeak" not in fields:
                    continue  # it still loads its libraries
                peak = int(fields["VmPeak"].split()[0]) << 10
                self.resident = max(self.resident, int(fields["VmHWM"].split()[0]) << 10)
                idle = self._idle.setdefault(process, int(limit) - self._allowed)
                self.grown = max(self.grown, peak - idle)


def table(result: dict[str, Any]) -> str:
    """The counts as text."""
    codes = "\n".join(f"  {code:<18}{count:>7}" for code, count in result["codes"].items())
    kinds = "\n".join(
        f"  {kind:<18}{sum(counts.values()):>7}  taken {counts.get('taken', 0)}"
        for kind, counts in result["by_kind"].items()
    )
    return "\n".join(
        [
            f"{result['files']} mutated files, seed {result['seed']}",
            f"{result['workers']} workers, {result['wall_s']} s",
            kinds,
            "outcomes:",
            codes,
            f"crashes of the run: {result['crashes_of_the_run']}",
            f"files over {SLOW_S:.0f} s: {result['slower_than_10_s']} (slowest {result['slowest_s']} s)",
            f"memory of a worker above its idle size: {result['peak_above_idle_mb']} MB of "
            f"{result['limit_above_idle_mb']} MB allowed; largest resident set {result['peak_resident_mb']} MB",
        ]
    )


def _run(tasks: list[Task], limits: Limits, workers: int | None) -> tuple[list[tuple[int, str]], dict[int, float]]:
    """Every outcome, and the seconds that each file's slowest try took."""
    image = ImageSpec(size=32, labels=("a",), label_prior=(1.0,))
    settings = Settings(
        image=image, burned_in="trust", trusted_modalities=MODALITIES, modalities=MODALITIES, frames_per_file=3
    )
    seconds: dict[int, float] = {}

    def timed(index: int, took: float) -> None:
        seconds[index] = max(took, seconds.get(index, 0.0))

    outcomes = []
    for index, outcome in prepare_files(tasks, settings, limits=limits, workers=workers, timed=timed):
        outcomes.append((index, outcome.value if isinstance(outcome, Code) else "taken"))
    return outcomes, seconds


def _with_kind(kinds: list[str], outcomes: list[tuple[int, str]]) -> Iterator[tuple[str, str]]:
    return ((kinds[index], code) for index, code in outcomes)


def _children() -> list[int]:
    try:
        tasks = Path(f"/proc/{os.getpid()}/task")
        return [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]
    except OSError:
        return []


def _is_image(path: Path) -> bool:
    try:
        return "Rows" in pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Rows"])
    except Exception:  # noqa: BLE001 - some of the bundled files are broken already
        return False


def _set_us(data: bytes, tag: bytes, value: int) -> bytes:
    at = data.find(tag + b"US\x02\x00", 132)
    if at > 0:
        return data[: at + 8] + value.to_bytes(2, "little") + data[at + 10 :]
    at = data.find(tag + b"\x02\x00\x00\x00", 132)
    return data[: at + 8] + value.to_bytes(2, "little") + data[at + 10 :] if at > 0 else data


if __name__ == "__main__":
    main()
