"""Signatures: one Ed25519 key a party, over canonical JSON.

A hospital signs what it released; the coordinator signs the ledger heads it has seen and the certificate. The private
key stays in one file that only its owner can read.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import rfc8785
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ghostnet.durable import create_durably, sync_folder
from ghostnet.errors import SiteError

COORDINATOR = "server"
"""Name of the coordinator among the parties that sign; no hospital may have it."""

DIGEST = re.compile(r"[0-9a-f]{64}")
"""64 hexadecimal digits: a SHA-256, a ledger head, a public key."""

SIGNATURE = re.compile(r"[0-9a-f]{128}")
NAME = re.compile(r"[a-z0-9-]{1,32}")
"""What a party can be called."""

_NAMED = re.compile(rf"({NAME.pattern})=({DIGEST.pattern})")


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """The one byte form of a JSON document (RFC 8785): the same in every language, so that anybody can check a hash.

    Raises:
        ValueError: the document holds NaN, an infinity, a whole number beyond 2^53 or something that is no JSON.
    """
    try:
        return rfc8785.dumps(dict(document))
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise ValueError(f"document is not plain JSON: {error}") from None


def is_finite_number(value: object) -> TypeGuard[float]:
    """True if a JSON value is a finite number; RFC 8785 writes 4.0 as 4, so whole numbers count."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def load_or_create_key(path: Path) -> Ed25519PrivateKey:
    """Reads the private key at `path`, or makes one there (PKCS#8 PEM, mode 0600, never overwritten).

    Raises:
        SiteError: the file cannot be read or written, is not an Ed25519 key, or other users can read it.
    """
    try:
        if not path.exists():
            _create(path)
        return _load(path)
    except OSError as error:
        raise SiteError(
            f"key {path} cannot be read or made ({error.strerror}); give a folder that this user owns"
        ) from None


def is_name(text: str) -> bool:
    """True if a text can be a party's name: 1 to 32 lower-case letters, digits and hyphens."""
    return NAME.fullmatch(text) is not None


def public_hex(key: Ed25519PrivateKey) -> str:
    """The public half, 64 hex digits."""
    return key.public_key().public_bytes_raw().hex()


def named_keys(entries: Iterable[str]) -> dict[str, str]:
    """Public keys by the name of their owner, from "name=64 hexadecimal digits" each.

    Raises:
        ValueError: an entry that is something else, or two keys of one name.
    """
    known: dict[str, str] = {}
    for entry in entries:
        match = _NAMED.fullmatch(entry)
        if not match:
            raise ValueError(f"{entry[:80]!r}, which is not 'name=64 hexadecimal digits'")
        if known.setdefault(match[1], match[2]) != match[2]:
            raise ValueError(f"two keys of {match[1]}")
    return known


def sign(key: Ed25519PrivateKey, document: Mapping[str, Any]) -> str:
    """Ed25519 (RFC 8032) signature of the document's canonical JSON, 128 hex digits."""
    return key.sign(canonical_json(document)).hex()


def verify(public: str, document: Mapping[str, Any], signature: str) -> bool:
    """True if `signature` is `public`'s over `document`; False for anything else, malformed input included.

    Upper-case hex is refused too, so that a signed document has one byte form.
    """
    if not (isinstance(public, str) and isinstance(signature, str)):
        return False
    if not (DIGEST.fullmatch(public) and SIGNATURE.fullmatch(signature)):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(
            bytes.fromhex(signature), canonical_json(document)
        )
    except (InvalidSignature, TypeError, ValueError):
        return False
    return True


def head_document(*, site: str, head: str) -> dict[str, str]:
    """The document that countersigns a hospital's ledger: the hospital's name and its ledger's head."""
    return {"document": "ghostnet ledger head", "head": head, "site": site}


def _load(path: Path) -> Ed25519PrivateKey:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise SiteError(f"key {path} has mode {mode:04o}: other users can read it; run: chmod 600 {path}")
        data = file.read(65536)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise SiteError(f"key {path} is not an unencrypted PEM private key; restore it from a backup") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SiteError(f"key {path} is not an Ed25519 key; move it away and a new one is made")
    return key


def _create(path: Path) -> None:
    """Writes a fresh key; of two processes that race here, one key wins whole."""
    data = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    create_durably(path, data)
    sync_folder(path.parent)
