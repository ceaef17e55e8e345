"""How much burned-in text is blanked, and how much that is none.

    python -m benchmarks.burned_in FOLDER [--json]           # NNN.dcm beside NNN.json, its answer key
    python -m benchmarks.burned_in --synthetic 40 [--noise 0.06] [--json]

FOLDER: each JSON has "annotation": a list of {"key": {"text", "bbox"}, "value": {"text", "bbox"}}, bbox in px as
x0, y0, x1, y1. Each file goes through the reader and the blanking of intake, and is scored by what was overwritten:
a box counts as covered at 90 % of its area; "letters gone" asks for 99 % of the pixels of its letters (those at the
end of the scale at which the box is drawn). What lies further than three line heights from every box is ground without
text. An image that would be quarantined is counted as that, and its boxes as not covered unless they are.

Synthetic: short texts of 8 to 36 px in five fonts, upright or turned, of four contrasts, drawn on phantoms and, where
the pydicom-data package is installed, on its real images without text. Each image is also scored without the texts.
Times are CPU time of one thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.data import get_testdata_file

from client.deidentify.burned_in import blank_text
from client.deidentify.regions import blank_outside
from client.intake.readers.dicom import read_dicom
from client.intake.task import Limits
from ghostnet.training.phantom import chest

Floats = NDArray[np.float32]
Corners = tuple[int, int, int, int]

COVERED = 0.9  # of a box's area
GONE = 0.99  # of its letters' pixels
GROUND = 3  # line heights away from every box: ground without text
WITHOUT_TEXT = ("693_UNCI.dcm", "MR2_UNCI.dcm", "RG1_UNCI.dcm", "CT_small.dcm")
FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf", "DejaVuSerif.ttf", "STIXGeneral.ttf")
TEXTS = ("DOE^JANE", "MRN 48812973", "12-MAR-1961", "St. Mary Hospital", "F 064Y", "13:42:07", "Dr. Okafor", "SE 2")


@dataclass(frozen=True, kw_only=True)
class Text:
    """One text of an image: where it is, and its letters' pixels (h,w) within that box."""

    corners: Corners
    ink: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An image and the truth about it."""

    name: str
    pixels: Floats
    texts: tuple[Text, ...]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What blanking did to one image; `ground_blanked` is None where texts leave no ground."""

    name: str
    texts: int
    half: int
    covered: int
    whole: int
    letters_gone: int
    ground_blanked: float | None
    blanked: float
    quarantined: bool
    seconds: float


def main() -> None:
    """Runs the benchmark and prints a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="DICOM files, each with its answer key")
    parser.add_argument("--synthetic", type=int, default=0, metavar="N", help="score N images with texts drawn on them")
    parser.add_argument("--noise", type=float, default=0.0, help="Gaussian noise over the synthetic ones, of the range")
    parser.add_argument("--seed", type=int, default=0, help="of the synthetic ones")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    if (arguments.folder is None) == (arguments.synthetic == 0):
        parser.error("give FOLDER or --synthetic N")
    cv2.setNumThreads(1)
    scenes = (
        folder(arguments.folder)
        if arguments.folder
        else synthetic(arguments.synthetic, noise=arguments.noise, seed=arguments.seed)
    )
    scores = []
    for scene in scenes:
        scores.append(score(scene))
        if not arguments.json:
            print(line(scores[-1]), flush=True)
    totals = total(scores)
    print(json.dumps({"total": totals, "images": [vars(s) for s in scores]}, indent=2) if arguments.json else totals)


def score(scene: Scene) -> Score:
    """Blanks one image and compares."""
    start = time.process_time()
    result = blank_text(scene.pixels)
    seconds = time.process_time() - start
    mask = np.zeros(scene.pixels.shape[:2], bool)
    for box in result.boxes:
        mask[box.y0 : box.y1, box.x0 : box.x1] = True
    shares = [float(mask[y0:y1, x0:x1].mean()) for x0, y0, x1, y1 in (text.corners for text in scene.texts)]
    inks = [float(inside(mask, text).mean()) for text in scene.texts]
    ground = ground_of(scene)
    return Score(
        name=scene.name,
        texts=len(shares),
        half=sum(share >= 0.5 for share in shares),
        covered=sum(share >= COVERED for share in shares),
        whole=sum(share == 1 for share in shares),
        letters_gone=sum(ink >= GONE for ink in inks),
        ground_blanked=float(mask[ground].mean()) if ground.any() else None,
        blanked=float(mask.mean()),
        quarantined=not result.clean,
        seconds=seconds,
    )


def inside(mask: NDArray[np.bool_], text: Text) -> NDArray[np.bool_]:
    x0, y0, x1, y1 = text.corners
    under = mask[y0:y1, x0:x1][text.ink]
    return under if under.size else mask[y0:y1, x0:x1]


def ground_of(scene: Scene) -> NDArray[np.bool_]:
    ground = np.ones(scene.pixels.shape[:2], bool)
    for x0, y0, x1, y1 in (text.corners for text in scene.texts):
        far = GROUND * min(x1 - x0, y1 - y0)
        ground[max(0, y0 - far) : y1 + far, max(0, x0 - far) : x1 + far] = False
    return ground


def total(scores: list[Score]) -> dict[str, float | int | None]:
    grounds = [s.ground_blanked for s in scores if s.ground_blanked is not None]
    without = [s.blanked for s in scores if not s.texts]
    texts = sum(s.texts for s in scores)
    return {
        "images": len(scores),
        "texts": texts,
        "covered_half": sum(s.half for s in scores),
        "covered": sum(s.covered for s in scores),
        "covered_whole": sum(s.whole for s in scores),
        "letters_gone": sum(s.letters_gone for s in scores),
        "covered_share": sum(s.covered for s in scores) / texts if texts else None,
        "ground_blanked_mean": float(np.mean(grounds)) if grounds else None,
        "images_without_text": len(without),
        "blanked_without_text_mean": float(np.mean(without)) if without else None,
        "blanked_without_text_most": max(without, default=None),
        "quarantined": sum(s.quarantined for s in scores),
        "quarantined_without_text": sum(s.quarantined for s in scores if not s.texts),
        "cpu_seconds_mean": float(np.mean([s.seconds for s in scores])),
        "cpu_seconds_most": max(s.seconds for s in scores),
    }


def line(s: Score) -> str:
    ground = "-" if s.ground_blanked is None else f"{s.ground_blanked:.3f}"
    return (
        f"{s.name:24} texts {s.texts:3}  >=50% {s.half:3}  >=90% {s.covered:3}  100% {s.whole:3}  "
        f"letters gone {s.letters_gone:3}  blanked {s.blanked:.3f} (ground {ground})  "
        f"{'QUARANTINED ' if s.quarantined else ''}{s.seconds:.1f} s"
    )


def folder(path: Path) -> Iterator[Scene]:
    """The files of a folder; boxes outside their image are left out."""
    limits = Limits()
    for key in sorted(path.glob("*.json")):
        source = read_dicom(key.with_suffix(".dcm"), file_bytes=limits.file_bytes, pixels=limits.pixels)
        pixels = blank_outside(source.frames[0].pixels, source.text_regions)
        height, width = pixels.shape[:2]
        boxes = [
            [int(v) for v in part["bbox"]]
            for entry in json.loads(key.read_text())["annotation"]
            for part in (entry.get("key"), entry.get("value"))
            if part and part.get("bbox")
        ]
        clipped = [(max(0, x0), max(0, y0), min(width, x1), min(height, y1)) for x0, y0, x1, y1 in boxes]
        seen = [c for c in clipped if c[0] < c[2] and c[1] < c[3]]
        texts = tuple(Text(corners=c, ink=_letters(pixels[c[1] : c[3], c[0] : c[2]])) for c in seen)
        yield Scene(name=key.stem, pixels=pixels, texts=texts)


def _letters(box: Floats) -> NDArray[np.bool_]:
    """The pixels at that end of the box's scale where more of them are exactly at the end."""
    grey = box if box.ndim == 2 else box.mean(axis=2)
    low, high = grey == grey.min(), grey == grey.max()
    return low if low.sum() > high.sum() else high


def synthetic(count: int, *, noise: float = 0.0, seed: int = 0) -> Iterator[Scene]:
    """Texts drawn on images without any, each image once with and once without; from a seed."""
    rng = np.random.default_rng(seed)
    grounds = list(_real_grounds())
    for number in range(count):
        use_real = bool(grounds) and number % 2 == 1
        size = int(rng.choice([256, 384, 512, 768]))
        name, ground = grounds[number // 2 % len(grounds)] if use_real else (f"phantom {size}", _phantom(rng, size))
        drawn, texts = _draw(ground, rng)
        for kind, image, truth in (("text", drawn, texts), ("none", ground, ())):
            noisy = image + rng.normal(0, noise, image.shape).astype(np.float32) if noise else image
            yield Scene(name=f"{number} {name} {kind}", pixels=noisy.clip(0, 1).astype(np.float32), texts=truth)


def _phantom(rng: np.random.Generator, size: int) -> Floats:
    return chest(rng, size, "normal")[0].astype(np.float32)


def _real_grounds() -> Iterator[tuple[str, Floats]]:
    limits = Limits()
    for name in WITHOUT_TEXT:
        path = get_testdata_file(name, download=False)
        if path:
            pixels = _without_spacing(Path(path), limits)
            low, high = np.percentile(pixels, (0.5, 99.5))
            scaled = ((pixels - low) / (high - low)).clip(0, 1).astype(np.float32)
            most = 768 / max(scaled.shape)  # a larger ground only takes longer
            yield name, cv2.resize(scaled, None, fx=min(1, most), fy=min(1, most), interpolation=cv2.INTER_AREA)


def _without_spacing(path: Path, limits: Limits) -> Floats:
    """The pixels; some of these files give 0 as their spacing, which intake refuses and this has no use for."""
    data = pydicom.dcmread(path)
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        if name in data:
            delattr(data, name)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.dcm"
        data.save_as(copy)
        return read_dicom(copy, file_bytes=limits.file_bytes, pixels=limits.pixels).frames[0].pixels


def _draw(ground: Floats, rng: np.random.Generator) -> tuple[Floats, tuple[Text, ...]]:
    """Up to six texts that do not touch each other, all of one font, size and contrast, as one machine writes them."""
    out, texts = ground.copy(), []
    taken = np.zeros(ground.shape, bool)
    sizes = [size for size in (8, 10, 12, 16, 24, 36) if size <= min(ground.shape) / 12]
    size = int(rng.choice(sizes)) if sizes else 8
    font = str(rng.choice(FONTS)) if rng.random() < 0.8 else "hershey"
    value, alpha = [(1.0, 1.0), (0.0, 1.0), (1.0, 0.7), (1.0, 0.45)][int(rng.integers(4))]
    turns = 1 if rng.random() < 0.2 else 0
    for _ in range(40):
        if len(texts) == 6:
            break
        letters = np.rot90(_stamp(str(rng.choice(TEXTS)), font, size), turns)
        height, width = letters.shape
        if height >= ground.shape[0] or width >= ground.shape[1]:
            continue
        y, x = int(rng.integers(0, ground.shape[0] - height)), int(rng.integers(0, ground.shape[1] - width))
        under = out[y : y + height, x : x + width]
        # Letters that nobody could see are no test: they need a contrast of 0.2 to most of what is behind them.
        if taken[y : y + height, x : x + width].any() or np.quantile(np.abs(value - under) * alpha, 0.2) < 0.2:
            continue
        under += letters * alpha * (value - under)
        taken[max(0, y - size) : y + height + size, max(0, x - size) : x + width + size] = True
        texts.append(Text(corners=(x, y, x + width, y + height), ink=letters > 0.5))
    return out, tuple(texts)


def _stamp(text: str, font: str, size: int) -> Floats:
    """The letters, cut to their box; (h,w) in [0,1]. `size` is the height of a line in px."""
    plane = np.zeros((3 * size, (len(text) + 2) * size), np.uint8)
    if font == "hershey":
        scale, thick = size / 22, max(1, size // 12)
        cv2.putText(plane, text, (size, 2 * size), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_AA)
    else:
        picture = Image.fromarray(plane)
        path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font
        ImageDraw.Draw(picture).text((size, size // 2), text, fill=255, font=ImageFont.truetype(str(path), size))
        plane = np.array(picture)
    rows, columns = np.nonzero(plane)
    cut = plane[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return (cut / np.float32(255)).astype(np.float32)


if __name__ == "__main__":
    main()
