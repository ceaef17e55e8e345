"""Identifiers become keyed hashes: the same patient, file or split coin each time, and nothing that can be looked up.

An unkeyed hash of an 8-digit record number falls to brute force in minutes; these need the site's secret, which is
drawn by the operating system and never leaves the hospital. Each use has its own prefix, so that a file's key can
never be taken for a patient's.
"""

from __future__ import annotations

import hashlib
import hmac
import unicodedata


def patient_key(secret: bytes, patient_id: str) -> str:
    """64 hex digits that stand for a patient.

    Args:
        secret: the site's secret, 32 bytes.
        patient_id: as the source wrote it. Surrounding spaces and NULs are padding (PS3.5 section 6.2) and do not
            count, nor does the Unicode form of its letters (NFC); everything else does.

    Raises:
        ValueError: nothing is left of the identifier.

    Guarantee:
        Without the secret the key cannot be linked to the identifier (HMAC-SHA256 as a pseudorandom function).
        Not covered: one patient under two identifiers is two patients.
    """
    stripped = unicodedata.normalize("NFC", patient_id.strip(" \t\r\n\0"))
    if not stripped:
        raise ValueError("no patient identifier")
    return _keyed(secret, b"patient", stripped.encode("utf-8", "surrogatepass"))


def file_key(secret: bytes, relative_path: str) -> str:
    """64 hex digits that stand for a file: paths often hold names and record numbers."""
    return _keyed(secret, b"file", relative_path.encode("utf-8", "surrogatepass"))


def content_key(secret: bytes, *digests: bytes) -> str:
    """64 hex digits that stand for the content of files, given their digests."""
    return _keyed(secret, b"content", b"".join(hashlib.sha256(digest).digest() for digest in digests))


def in_test_split(secret: bytes, patient: str, test_fraction: float) -> bool:
    """True if a patient is a test patient: a keyed coin, the same on every run and for all of the patient's images.

    Args:
        secret: the site's secret.
        patient: the key that `patient_key` gave.
        test_fraction: share of patients that is kept for testing, in [0,1].
    """
    coin = int(_keyed(secret, b"split", patient.encode())[:13], 16) / 16**13  # 52 bits: exact in a float
    return coin < test_fraction


def _keyed(secret: bytes, use: bytes, value: bytes) -> str:
    return hmac.new(secret, use + b"\0" + value, hashlib.sha256).hexdigest()
