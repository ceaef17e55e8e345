"""The packages of each role beside the base installation: the extras of pyproject.toml, by their modules' names."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from ghostnet.errors import MissingDependencyError, not_installed


@dataclass(frozen=True, kw_only=True)
class Role:
    """An extra of the package, and what it is for."""

    purpose: str
    modules: tuple[str, ...]

    def lacks(self) -> list[str]:
        """Those of its modules that are not installed here."""
        return [name for name in self.modules if importlib.util.find_spec(name) is None]


_SITE = (
    *("flwr", "opacus", "cv2", "skimage", "pywt", "pydicom", "pylibjpeg", "openjpeg", "rle", "jpeg_ls", "gdcm"),
    *("dicomanonymizer", "pynetdicom", "dicomweb_client", "requests", "urllib3", "nibabel"),
)

_OCR = ("rapidocr", "onnxruntime", "colorlog", "omegaconf", "pyclipper", "yaml", "shapely", "six", "tqdm")

ROLES = {
    "site": Role(purpose="a hospital: reads, de-identifies, trains", modules=_SITE),
    "coordinator": Role(purpose="leads a federation", modules=("flwr", "cv2")),
    "simulate": Role(purpose="a federation on one machine", modules=_SITE),
    "ray": Role(purpose="`--engine ray` and `flwr run` on one machine", modules=("ray", *_SITE)),
    "ocr": Role(purpose="finds burned-in text", modules=_OCR),
    "export": Role(purpose="writes DICOM and NIfTI files", modules=("pydicom", "nibabel")),
}


def require(extra: str) -> None:
    """Refuses to go on where a role is not installed, before anything is read.

    Raises:
        MissingDependencyError: names the first module that is not there, and the extra.
    """
    lacks = ROLES[extra].lacks()
    if lacks:
        raise not_installed(lacks[0], extra)


_OF_COMMAND = {"demo": "simulate", "simulate": "simulate", "site": "site", "audit": "site", "sample": "export"}


def missing(error: ModuleNotFoundError, arguments: list[str]) -> MissingDependencyError:
    """The line for a person whose command stopped at an import.

    Args:
        error: of that import.
        arguments: of the command line, without the program's name.

    Raises:
        ModuleNotFoundError: the same again, where no role brings the module: that is a defect and no choice.
    """
    module = (error.name or "").partition(".")[0]
    command = next((word for word in arguments if not word.startswith("-")), "")
    own = _OF_COMMAND.get(command)
    for extra in (own, *ROLES):
        if extra and module in ROLES[extra].modules:
            return not_installed((*ROLES[extra].lacks(), module)[0], extra)
    raise error
