"""Procedural chest radiographs: drawn from random anatomy, of nobody.

`draw_anatomy` draws one patient's body; `radiograph` takes an image of it, each time in another pose and exposure, with
or without lesions. Everything follows from the generator that is passed in. The images serve demonstrations and tests;
they look like frontal chest X-rays and carry labels and masks that can be learned, and no clinical truth.

Coordinates: x and y in [-1,1] over the image, y down, the patient's left on the right as in a radiograph. Densities
are brightness before exposure: air 0, lung about 0.25, soft tissue about 0.6, bone more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Label = Literal["normal", "lesion"]
LABELS: tuple[Label, ...] = ("normal", "lesion")
Plane = NDArray[np.floating]  # float32 when run; NumPy's types lose it where a Python number stands beside


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The anatomy of one patient, the same in all their images. Lengths are in half image widths."""

    shoulder: float  # half width of the body at the shoulders
    waist: float  # half width of the body at the lower edge
    lung_width: float
    apex: float  # y of the top of the lungs
    dome: float  # y of the right diaphragm's top
    heart: tuple[float, float, float]  # centre x, half width, half height
    spine: float  # half width
    bend: float  # sideways curve of the spine
    rib_gap: float
    rib_slope: float
    rib_contrast: float
    clavicle: float  # y of the inner ends
    breast: tuple[float, float]  # density (0 where none shows), y
    bubble: float  # size of the gas bubble in the stomach; 0 where none shows
    texture_seed: int  # vessels and soft-tissue texture


@dataclass(frozen=True, kw_only=True)
class Radiograph:
    """One image and the truth about it."""

    image: NDArray[np.float32]  # (size,size), in [0,1], bright = dense
    mask: NDArray[np.uint8]  # (size,size), 255 inside a lesion


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draws one patient."""
    woman = rng.random() < 0.5
    return Anatomy(
        shoulder=rng.uniform(0.92, 1.12),
        waist=rng.uniform(0.74, 0.96),
        lung_width=rng.uniform(0.29, 0.36),
        apex=rng.uniform(-0.82, -0.70),
        dome=rng.uniform(0.38, 0.58),
        heart=(rng.uniform(0.08, 0.15), rng.uniform(0.24, 0.35), rng.uniform(0.28, 0.38)),
        spine=rng.uniform(0.065, 0.09),
        bend=rng.uniform(-0.03, 0.03),
        rib_gap=rng.uniform(0.13, 0.165),
        rib_slope=rng.uniform(0.15, 0.4),
        rib_contrast=rng.uniform(0.05, 0.10),
        clavicle=rng.uniform(-0.66, -0.58),
        breast=(rng.uniform(0.05, 0.13) if woman else 0.0, rng.uniform(0.2, 0.4)),
        bubble=rng.uniform(0.06, 0.13) if rng.random() < 0.6 else 0.0,
        texture_seed=int(rng.integers(2**31)),
    )


def radiograph(anatomy: Anatomy, rng: np.random.Generator, size: int, label: Label) -> Radiograph:
    """Takes one image of a patient.

    Args:
        anatomy: the patient.
        rng: draws pose, breath, exposure and lesions.
        size: pixels a side, at least 16.
        label: "normal", or "lesion" for one to three opacities inside the lungs.
    """
    x, y = _pose(rng, size)
    breath = rng.uniform(-0.05, 0.05)
    body = _edge(_body_half_width(anatomy, y) - np.abs(x), 0.02)
    sides = [_lung(anatomy, x, y, side, breath) for side in (-1, 1)]
    lungs = np.maximum(*sides)
    tissue = 0.50 + 0.16 * _edge(y - 0.35, 0.2) - 0.1 * np.abs(x) + 0.05 * _cloud(anatomy.texture_seed, size, 6)
    density = body * tissue
    density -= 0.36 * lungs * body
    density += _vessels(anatomy, x, y, size) * lungs
    density += _mediastinum(anatomy, x, y, breath)
    density += _bones(anatomy, x, y, lungs) * body
    density += _soft_shadows(anatomy, x, y, breath)
    lesions, mask = _lesions(rng, x, y, np.minimum(lungs, _edge(0.62 - np.abs(x), 0.02)), label)
    density += lesions
    return Radiograph(image=_expose(density, rng), mask=mask)


def chest(rng: np.random.Generator, size: int, label: Label) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """One image of a fresh patient: (image (size,size) in [0,1], mask (size,size) of 0 and 255)."""
    taken = radiograph(draw_anatomy(rng), rng, size, label)
    return taken.image, taken.mask


def _pose(rng: np.random.Generator, size: int) -> tuple[Plane, Plane]:
    """Coordinates of each pixel in the patient: shifted, turned by up to 3 degrees, nearer or farther."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(axis - np.float32(rng.uniform(-0.05, 0.05)), axis - np.float32(rng.uniform(-0.05, 0.05)))
    turn, zoom = np.deg2rad(rng.uniform(-3, 3)), rng.uniform(0.95, 1.06)
    c, s = np.float32(np.cos(turn) * zoom), np.float32(np.sin(turn) * zoom)
    return c * x - s * y, s * x + c * y


def _edge(distance: Plane, softness: float) -> Plane:
    """0 outside (negative distance) to 1 inside, over about `softness`."""
    inside: Plane = 1 / (1 + np.exp(np.clip(-distance / np.float32(softness / 2), -30, 30)))
    return inside


def _ridge(distance: Plane, width: float) -> Plane:
    height: Plane = np.exp(-0.5 * np.square(distance / np.float32(width)))
    return height


def _cloud(seed: int, size: int, cells: int) -> Plane:
    """Smooth texture of zero mean, three octaves; the same at every image size."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size, size), np.float32)
    for octave in range(3):
        grid = rng.standard_normal((cells << octave, cells << octave)).astype(np.float32)
        total += cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC) / 2 ** (octave + 1)
    return total


def _body_half_width(anatomy: Anatomy, y: Plane) -> Plane:
    neck = 0.25 + (anatomy.shoulder - 0.25) * _edge(y + 0.78, 0.22)
    return neck + (anatomy.waist - anatomy.shoulder) * _edge(y - 0.05, 0.6)


def _spine_x(anatomy: Anatomy, y: Plane) -> Plane:
    bend: Plane = anatomy.bend * np.sin(2.2 * y)
    return bend


def _dome_y(anatomy: Anatomy, x: Plane, side: int, breath: float) -> Plane:
    """Height of the diaphragm; the right one (side -1) stands higher, as the liver lies under it."""
    top = anatomy.dome + breath + (0.07 if side > 0 else 0.0)
    return top + 1.6 * np.square(np.abs(x) - 0.33)


def _lung(anatomy: Anatomy, x: Plane, y: Plane, side: int, breath: float) -> Plane:
    """Aerated lung, 0 to 1; the cardiac shadow is laid over it later."""
    down = np.clip((y - anatomy.apex) / (anatomy.dome + 0.25 - anatomy.apex), 0, 1)
    outer = 0.13 + anatomy.lung_width * 1.65 * np.power(np.sin(np.pi / 2 * np.clip(down * 1.25, 0, 1)), 0.75)
    inner = 0.09 + 0.05 * np.square(down)
    across = side * (x - _spine_x(anatomy, y))
    walls = np.minimum(outer - across, across - inner)
    inside = np.minimum(np.minimum(walls, _dome_y(anatomy, x, side, breath) - y), (y - anatomy.apex) * 0.8)
    return _edge(inside, 0.035)


def _mediastinum(anatomy: Anatomy, x: Plane, y: Plane, breath: float) -> Plane:
    """Heart, great vessels and spine."""
    centre, half_width, half_height = anatomy.heart
    u, v = x - centre - 0.12 * (y - 0.2), y - (anatomy.dome + breath - 0.2)
    heart = _edge(1 - np.sqrt(np.square(u / half_width) + np.square(v / half_height)), 0.16)
    vessels = _ridge(x - 0.03, 0.13) * _edge(0.3 - y, 0.2) * _edge(y + 0.9, 0.3)
    knuckle = _edge(1 - np.sqrt(np.square((x - 0.12) / 0.1) + np.square((y + 0.3) / 0.12)), 0.3)
    trachea = _ridge(x - _spine_x(anatomy, y), 0.035) * _edge(-0.3 - y, 0.1)
    across = x - _spine_x(anatomy, y)
    vertebrae = 1 + 0.22 * np.cos(y * np.float32(2 * np.pi / 0.17))
    spine = _edge(anatomy.spine - np.abs(across), 0.03) * vertebrae
    soft = 0.30 * heart * _edge(0.8 - y, 0.3) + 0.14 * vessels + 0.09 * knuckle - 0.09 * trachea
    density: Plane = soft + 0.10 * spine
    return density


def _bones(anatomy: Anatomy, x: Plane, y: Plane, lungs: Plane) -> Plane:
    """Ribs (posterior and, fainter and steeper, anterior), clavicles and shoulder blades."""
    across = np.abs(x - _spine_x(anatomy, y))
    cage = _edge(0.16 + anatomy.lung_width * 1.75 - across, 0.05) * _edge(across - anatomy.spine, 0.03)
    cage = cage * _edge(y + 0.85, 0.1) * _edge(0.85 - y, 0.2)
    # The phase of a saw-tooth along the body, bent by the ribs' arch, numbers all ribs of a side at once.
    back = y - anatomy.rib_slope * np.square(across - 0.1) * 2.2 + 0.18 * across
    front = y + 0.75 * across - 0.5 * np.square(across)
    ribs = np.zeros_like(x)
    for height, gap, strength in ((back, anatomy.rib_gap, 1.0), (front, anatomy.rib_gap * 1.15, 0.5)):
        phase = (height / np.float32(gap)) % 1 - 0.5
        band = _edge(0.24 - np.abs(phase), 0.08)
        cortex = _ridge(np.abs(phase) - 0.21, 0.045)
        ribs += strength * (band + 0.8 * cortex)
    clavicles = np.zeros_like(x)
    for side in (-1, 1):
        along = side * x
        middle = anatomy.clavicle - 0.16 * along + 0.06 * np.sin(along * 6)
        inside = np.minimum(0.030 + 0.012 * along - np.abs(y - middle), np.minimum(along - 0.07, 0.82 - along))
        clavicles += _edge(inside, 0.02) + 0.5 * _ridge(inside - 0.008, 0.008)
    blade = _ridge(np.abs(x) - 0.78 - 0.12 * (y + 0.3), 0.02) * _edge(0.1 - y, 0.2) * _edge(y + 0.65, 0.1)
    density: Plane = anatomy.rib_contrast * ribs * cage * (0.45 + 0.55 * lungs) + 0.13 * clavicles + 0.05 * blade
    return density


def _soft_shadows(anatomy: Anatomy, x: Plane, y: Plane, breath: float) -> Plane:
    """Abdomen under the domes, breasts, and gas in the stomach."""
    density, height = anatomy.breast
    total = np.zeros_like(x)
    for side in (-1, 1):
        distance = np.sqrt(np.square((side * x - 0.45) / 0.34) + np.square((y - height) / 0.32))
        total += density * _edge(1 - distance, 0.12) * _edge(y - height + 0.1, 0.3)
        below = _edge(y - _dome_y(anatomy, x, side, breath) - 0.02, 0.1) * _edge(side * x, 0.02)
        total += 0.07 * below * _edge(0.9 - np.abs(x), 0.1)
    if anatomy.bubble:
        top = anatomy.dome + breath + 0.2
        distance = np.sqrt(np.square((x - 0.36) / (anatomy.bubble * 1.4)) + np.square((y - top) / anatomy.bubble))
        total -= 0.13 * _edge(1 - distance, 0.45)
    return total


def _vessels(anatomy: Anatomy, x: Plane, y: Plane, size: int) -> Plane:
    """Branches that leave each hilum and thin out towards the edge of the lung."""
    rng = np.random.default_rng(anatomy.texture_seed)
    canvas = np.zeros((size, size), np.float32)
    for side in (-1, 1):
        for _ in range(16):
            angle, point = rng.uniform(-1.35, 1.35), np.array([side * 0.17, -0.05 + rng.uniform(-0.08, 0.1)])
            for step in range(6):
                angle += rng.normal(0, 0.22)
                end = point + 0.075 * np.array([side * np.cos(angle), np.sin(angle)])
                ends = [tuple(int(v) for v in np.rint((p + 1) / 2 * size * 16)) for p in (point, end)]
                width = max(1, round(size / 256 * (4 - 0.6 * step)))
                cv2.line(canvas, ends[0], ends[1], 0.16 - 0.02 * step, width, cv2.LINE_AA, 4)
                point = end
    canvas = cv2.GaussianBlur(canvas, (0, 0), max(0.4, size / 256 * 1.3)).astype(np.float32)
    # Drawn upright; the pose moves it with the rest of the body.
    column, row = (x + 1) * (size / 2) - 0.5, (y + 1) * (size / 2) - 0.5
    moved = cv2.remap(canvas, column, row, cv2.INTER_LINEAR)
    hila = sum(_ridge(side * x - 0.19, 0.06) * _ridge(y + 0.02, 0.13) for side in (-1, 1))
    return moved + 0.10 * hila


def _lesions(
    rng: np.random.Generator, x: Plane, y: Plane, lungs: Plane, label: Label
) -> tuple[Plane, NDArray[np.uint8]]:
    """Up to three opacities with uneven borders, centred in aerated lung, the first, larger, at the right base."""
    density = np.zeros_like(x)
    if label == "normal":
        return density, np.zeros(x.shape, np.uint8)
    places = np.argwhere((lungs > 0.9) & (np.abs(x) > 0.2))
    basal = places[(x[places[:, 0], places[:, 1]] < 0) & (y[places[:, 0], places[:, 1]] > 0.05)]
    for number in range(int(rng.integers(1, 4))):
        at_the_base = number == 0 and len(basal) > 0
        where = basal if at_the_base else places
        row, column = where[int(rng.integers(len(where)))]
        dx, dy = x - x[row, column], y - y[row, column]
        angle = np.arctan2(dy, dx)
        radius = rng.uniform(0.18, 0.28) if at_the_base else rng.uniform(0.09, 0.16)
        lobes, phases = rng.uniform(0.0, 0.16, 3), rng.uniform(0, 2 * np.pi, 3)
        border = radius * (
            1 + sum(a * np.cos((i + 2) * angle + p) for i, (a, p) in enumerate(zip(lobes, phases, strict=True)))
        )
        inside = _edge(border - np.hypot(dx, dy), radius * 0.45) * np.minimum(1, lungs + 0.15)
        density = np.maximum(density, np.float32(rng.uniform(0.36, 0.50)) * inside)
    return density, np.where(density > 0.14, 255, 0).astype(np.uint8)


def _expose(density: Plane, rng: np.random.Generator) -> NDArray[np.float32]:
    """Film curve, exposure and scatter to [0,1]."""
    size = len(density)
    scatter = cv2.GaussianBlur(density, (0, 0), size / 14)
    sharp = density + 0.35 * (density - scatter)
    film = np.clip(sharp * rng.uniform(1.0, 1.15) + rng.uniform(-0.03, 0.03), 0, 1.3)
    image = 1 - np.exp(-np.power(film, rng.uniform(1.05, 1.35)) * 2.1)
    grain = rng.normal(0, 0.004, density.shape)
    return np.clip(image * 1.02 + 0.02 + grain, 0, 1).astype(np.float32)
