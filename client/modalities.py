"""The modalities that may be taken in, and the treatment of text in their pixels: closed lists of words."""

from __future__ import annotations

from typing import Literal, get_args

Modality = Literal[
    "CR", "DX", "MG", "IO", "CT", "MR", "PT", "NM", "XA", "RF", "US", "SC", "OT", "XC", "OP", "OPT", "ES", "GM", "DMS"
]
"""What may be taken in (PS3.3 section C.7.3.1.1.1); `SOP_CLASSES` says as which objects. "SC" stands for every
secondary capture object, whatever modality it claims; "OT" and the rest are also for pictures and NIfTI files, whose
modality site.toml gives."""


MODALITIES: tuple[Modality, ...] = get_args(Modality)


HELD: tuple[Modality, ...] = ("US", "SC", "OT")
"""The usual carriers of text in the pixels: a person looks first, unless site.toml says otherwise."""


BurnedIn = Literal["blank", "quarantine", "trust"]
"""What is done about text in the pixels."""
