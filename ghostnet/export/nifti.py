"""One NIfTI file for one synthetic image, and one for its mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ghostnet.errors import not_installed

try:
    import nibabel
except ImportError:
    raise not_installed("nibabel", "export") from None

NOTICE = b"SYNTHETIC - NOT FOR DIAGNOSTIC USE (GhostNet)"
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])  # NIfTI-1 DT_RGB24


def write_nifti(path: Path, pixels: np.ndarray) -> None:
    """Writes one picture as a single-slice volume, 1 unit a pixel.

    Axes follow NIfTI: first x, then y, then the slice; the affine makes x run to the patient's left and y to the
    back, so that viewers show the picture as it is.

    Args:
        path: ends in .nii or .nii.gz.
        pixels: uint8 (h,w) grey or mask, or (h,w,3) RGB.
    """
    flat = np.ascontiguousarray(pixels, dtype=np.uint8)
    plane = flat.view(RGB)[..., 0] if flat.ndim == 3 else flat  # (h,w)
    volume = nibabel.Nifti1Image(np.ascontiguousarray(plane.T)[:, :, None], np.diag([-1.0, -1.0, 1.0, 1.0]))
    volume.header["descrip"] = NOTICE
    nibabel.save(volume, path)
