"""Checks that noise is as large as accounted in every tensor, and fresh: never used twice, never shared.

Noise arrives by tensor, (releases, numbers), in units of its accounted standard deviation; what was under it is known
and taken off. Four checks, each with a false alarm below FALSE_ALARM, however many tensors there are:

- size: the sum of squares of each tensor has a chi-square law;
- law: all of it together is Gaussian;
- ties: correlations of any two tensors, of a tensor with itself at every distance, and between releases;
- repeats: four numbers in a row that occur twice in any releases, up to sign. Correlations miss a few among many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import fft, stats

from ghostnet.audit.findings import Finding

FALSE_ALARM = 1e-7
RUN = 4  # numbers in a row; by chance they recur once in 1e9 audits
_CLOSE = 4e-6  # two numbers that are the same but for float32 rounding, in standard deviations
_PRODUCTS_MIN = 64  # of a correlation by distance; fewer are not nearly Gaussian

Noise = Mapping[str, NDArray[np.float64]]
Row = NDArray[np.float64]
Places = NDArray[np.int64]


def check_noise(noise: Noise) -> Iterator[Finding]:
    """Size, law and ties of one release.

    Args:
        noise: by tensor, (releases, numbers), at least two releases.
    """
    if not noise or not all(np.isfinite(part).all() and part.size for part in noise.values()):
        for check in ("noise size", "noise law", "noise ties"):
            yield Finding(check=check, passed=False, value=math.nan, detail="noise is missing, or is not finite")
        return
    yield _size(noise)
    yield _law(noise)
    yield _ties(noise)


def _size(noise: Noise) -> Finding:
    chances = {}
    for name, part in noise.items():
        total = float(np.square(part).sum())
        chances[name] = 2 * min(stats.chi2.cdf(total, part.size), stats.chi2.sf(total, part.size))
    name = min(chances, key=lambda key: chances[key])
    chance = min(1.0, len(chances) * chances[name])
    size = math.sqrt(float(np.square(noise[name]).mean()))
    return Finding(
        check="noise size",
        passed=chance >= FALSE_ALARM,
        value=size,
        detail=f"noise is {size:.4f} x its accounted size in {name}, the least likely of {len(noise)} tensors "
        f"(chance {chance:.2g}, at least {FALSE_ALARM:g})",
        false_alarm=FALSE_ALARM,
    )


def _law(noise: Noise) -> Finding:
    """Kolmogorov and Smirnov's distance from the Gaussian, all tensors together."""
    found = stats.kstest(np.concatenate([part.ravel() for part in noise.values()]), "norm")
    return Finding(
        check="noise law",
        passed=bool(found.pvalue >= FALSE_ALARM),
        value=float(found.statistic),
        detail=f"noise is at most {found.statistic:.4f} away from the Gaussian's distribution "
        f"(chance {found.pvalue:.2g}, at least {FALSE_ALARM:g})",
        false_alarm=FALSE_ALARM,
    )


def _ties(noise: Noise) -> Finding:
    found = [*_between_tensors(noise), *_between_releases(noise), *_at_distances(noise)]
    chance, words, correlation = min(found) if found else (1.0, "nothing", 0.0)
    chance = min(1.0, len(found) * chance)
    return Finding(
        check="noise ties",
        passed=bool(found) and chance >= FALSE_ALARM,
        value=correlation,
        detail=f"{words} are correlated by {correlation:+.3f}, the least likely of {len(found)} correlations "
        f"(chance {chance:.2g}, at least {FALSE_ALARM:g})",
        false_alarm=FALSE_ALARM,
    )


Tie = tuple[float, str, float]
"""(chance, in words, correlation)."""


def _between_tensors(noise: Noise) -> Iterator[Tie]:
    """Two tensors number by number, from the first on and up to the last."""
    names = list(noise)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            most = min(noise[a].shape[1], noise[b].shape[1])
            yield _tie(noise[a][:, :most], noise[b][:, :most], f"{a} and {b}")
            yield _tie(noise[a][:, -most:], noise[b][:, -most:], f"the ends of {a} and {b}")


def _between_releases(noise: Noise) -> Iterator[Tie]:
    for name, part in noise.items():
        for lag in range(1, len(part)):
            yield _tie(part[:-lag], part[lag:], f"releases {lag} apart of {name}")


def _at_distances(noise: Noise) -> Iterator[Tie]:
    """The least likely distance of each tensor, and of all of them in a row; its chance stands for all distances."""
    whole = {"all tensors in a row": np.concatenate(list(noise.values()), axis=1)} if len(noise) > 1 else {}
    for name, part in {**noise, **whole}.items():
        releases, n = part.shape
        lags = np.arange(1, n - -(-_PRODUCTS_MIN // releases) + 1)
        if not lags.size:
            continue
        spectrum = np.square(np.abs(fft.rfft(part, fft.next_fast_len(2 * n, real=True), axis=1))).sum(0)
        products = fft.irfft(spectrum, fft.next_fast_len(2 * n, real=True))[lags]
        counts = releases * (n - lags)
        r = products / counts / max(float(np.square(part).mean()), 1e-300)
        chances = _chance(r, counts)
        least = int(chances.argmin())
        yield min(1.0, lags.size * float(chances[least])), f"numbers {lags[least]} apart of {name}", float(r[least])


def _tie(a: NDArray[np.float64], b: NDArray[np.float64], words: str) -> Tie:
    r = float((a * b).sum() / max(math.sqrt(float(np.square(a).sum() * np.square(b).sum())), 1e-300))
    return float(_chance(np.array(r), np.array(a.size))), words, r


def _chance(r: NDArray[np.float64], products: NDArray[np.int64]) -> NDArray[np.float64]:
    """Two-sided chance of an uncentred correlation of so many pairs: Student's t, exact for Gaussians."""
    freedom = np.maximum(products - 1, 1)
    t = np.abs(r) * np.sqrt(freedom / np.maximum(1 - np.square(np.minimum(np.abs(r), 1)), 1e-12))
    return np.asarray(2 * stats.t.sf(t, freedom))


def check_repeats(noise: Mapping[str, Noise]) -> Finding:
    """No four numbers in a row occur twice, in one release or in two.

    Args:
        noise: by release, by tensor.
    """
    ends = np.full(RUN, np.nan)  # near nothing, so that a run ends with its release
    rows = {name: np.concatenate([*(part.ravel() for part in parts.values()), ends]) for name, parts in noise.items()}
    row = np.abs(np.concatenate([*rows.values(), ends]))
    n = len(row) - RUN
    found, first = 0, n
    for a, b in _repeated_runs(row, n):
        found += len(a)
        first = min([first, *a.tolist(), *b.tolist()])
    starts = np.cumsum([0, *(len(part) for part in rows.values())])
    where = list(rows)[int(np.searchsorted(starts, first, side="right")) - 1] if found else "none"
    return Finding(
        check="noise repeats",
        passed=n > 0 and found == 0,
        value=float(found),
        detail=f"{found} runs of {RUN} numbers of noise occur twice among {n} of {len(noise)} releases "
        f"(must be none; the first: {where})",
        false_alarm=FALSE_ALARM,
    )


def _repeated_runs(row: Row, n: int) -> Iterator[tuple[Places, Places]]:
    """Pairs of places, below n, from which RUN numbers are the same.

    The first two numbers of both then share a cell of one of four grids, cells 2 x _CLOSE wide, that are _CLOSE apart.
    """
    starts = np.flatnonzero(np.isfinite(row[:n]) & np.isfinite(row[1 : n + 1]))
    before: list[Places] = []
    for offsets in product((0, _CLOSE), repeat=2):
        first, second = (
            np.minimum((row[starts + ahead] + offsets[ahead]) / (2 * _CLOSE), 2.0**31 - 1).astype(np.int64)
            for ahead in (0, 1)
        )
        cells = (first << 32) + second
        order = np.argsort(cells)
        ordered = cells[order]
        for shift in range(1, 5 + int(2 * _CLOSE * n)):  # as many as chance puts near each other in one number
            same = np.flatnonzero(ordered[shift:] == ordered[:-shift])
            if not same.size:
                break
            a, b = order[same], order[same + shift]
            for earlier in before:  # each pair once
                new = earlier[a] != earlier[b]
                a, b = a[new], b[new]
            a, b = starts[a], starts[b]
            for ahead in range(RUN):
                close = np.abs(row[a + ahead] - row[b + ahead]) <= _CLOSE
                a, b = a[close], b[close]
            yield a, b
        before.append(cells)
