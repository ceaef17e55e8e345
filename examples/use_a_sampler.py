"""Check a published sampler, then draw labelled images from it as an array.

    python examples/use_a_sampler.py runs/demo/sampler --images 64 --out drawn.npz --key north=<public key> ...

Each hospital prints its own key: `ghostnet site key site.toml`. Without keys the first check fails: anybody could have
made such a folder and signed it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ghostnet import Sampler
from ghostnet.certificate.certificate import not_shown, verify_sampler
from ghostnet.evidence.keys import named_keys


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where every check of the certificate held."""
    parser = argparse.ArgumentParser(description="Check a sampler and draw from it.")
    parser.add_argument("sampler", type=Path, help="folder of a published sampler")
    parser.add_argument("--images", type=int, default=64, help="number of images to draw")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same images")
    parser.add_argument("--out", type=Path, required=True, help="NPZ file to write")
    parser.add_argument("--key", action="append", default=[], help="NAME=KEY of a hospital; once for each")
    given = parser.parse_args(arguments)

    # Signatures, hashes, weights and epsilons, all computed again, without a network.
    keys = named_keys(given.key)
    checks = verify_sampler(given.sampler, trusted_keys=keys or None)
    for check in checks:
        print("pass" if check.passed else "FAIL", check.name, check.detail)
    for sentence in not_shown(given.sampler):
        print("not shown:", sentence)
    if not all(check.passed for check in checks):
        return 1

    # Images are float32 (n, channels, height, width) in the range that the plan says, here written as uint8.
    sampler = Sampler.load(given.sampler)
    drawn = sampler.draw(given.images, seed=given.seed)
    low, high = (-1.0, 1.0) if sampler.config.image.range == "[-1,1]" else (0.0, 1.0)
    pixels = ((drawn.images - low) / (high - low) * 255).round().clamp(0, 255).numpy().astype(np.uint8)
    np.savez(given.out, images=pixels, labels=drawn.labels.numpy(), label_names=np.array(sampler.labels))
    print(f"{len(pixels)} images of {', '.join(sampler.labels)}: {given.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
