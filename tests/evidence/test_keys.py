"""Keys and signatures: one byte form, one owner, and nothing malformed ever verifies."""

from __future__ import annotations

import math
import multiprocessing
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostnet.errors import SiteError
from ghostnet.evidence import keys

DOCUMENT = {"site": "north", "epsilon": 3.5, "events": [1, 2]}
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
FORK = multiprocessing.get_context("fork")


def test_a_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    first = keys.load_or_create_key(path)
    data = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.public_hex(keys.load_or_create_key(path)) == keys.public_hex(first)
    assert path.read_bytes() == data
    assert [file.name for file in tmp_path.iterdir()] == ["site.key"]


def test_processes_that_race_for_a_new_key_all_get_the_same_one(tmp_path: Path) -> None:
    def work() -> None:
        start.wait()
        answers.put(keys.public_hex(keys.load_or_create_key(tmp_path / "site.key")))

    start, answers = FORK.Event(), FORK.Queue()
    children = [FORK.Process(target=work) for _ in range(6)]
    for child in children:
        child.start()
    start.set()
    assert len({answers.get(timeout=30) for _ in children}) == 1
    for child in children:
        child.join()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "site.key"
    keys.load_or_create_key(path)
    path.chmod(mode)
    with pytest.raises(SiteError, match=f"chmod 600 {path}"):
        keys.load_or_create_key(path)


def _pem(key: Any, password: bytes | None = None) -> bytes:
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        _pem(generate_private_key(SECP256R1())),
        _pem(Ed25519PrivateKey.generate(), b"word"),
        b"\xff" * 100_000,
    ],
    ids=["empty", "text", "other-curve", "encrypted", "noise"],
)
def test_what_is_no_key_is_one_line_and_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "site.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SiteError, match="site.key is not an"):
        keys.load_or_create_key(path)
    assert path.read_bytes() == content


def test_a_folder_that_is_missing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="cannot be read or made"):
        keys.load_or_create_key(tmp_path / "none" / "site.key")
    with pytest.raises(SiteError, match="cannot be read or made"):
        keys.load_or_create_key(tmp_path)


def test_a_signature_holds_for_its_document_and_key_only() -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    signature = keys.sign(key, DOCUMENT)
    assert keys.verify(keys.public_hex(key), DOCUMENT, signature)
    assert keys.verify(keys.public_hex(key), dict(reversed(DOCUMENT.items())), signature)  # order is no content
    assert not keys.verify(keys.public_hex(other), DOCUMENT, signature)
    assert not keys.verify(keys.public_hex(key), {**DOCUMENT, "epsilon": 3.4}, signature)
    assert not keys.verify(keys.public_hex(key), {**DOCUMENT, "more": 1}, signature)


def test_every_flipped_bit_of_a_signature_or_key_is_noticed() -> None:
    key = Ed25519PrivateKey.generate()
    public, signature = keys.public_hex(key), keys.sign(key, DOCUMENT)
    for text, place in ((signature, 0), (public, 1)):
        data = bytes.fromhex(text)
        for bit in range(8 * len(data)):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            pair = (public, flipped.hex()) if place == 0 else (flipped.hex(), signature)
            assert not keys.verify(pair[0], DOCUMENT, pair[1])


@pytest.mark.parametrize("bad", ["", "00", "g" * 128, "0" * 128, None, 7, b"0" * 128, ["0"], "0" * 127 + "\n"])
def test_malformed_input_never_verifies_and_never_raises(bad: Any) -> None:
    key = Ed25519PrivateKey.generate()
    assert not keys.verify(keys.public_hex(key), DOCUMENT, bad)
    assert not keys.verify(bad, DOCUMENT, keys.sign(key, DOCUMENT))
    assert not keys.verify(keys.public_hex(key), {"x": math.nan}, keys.sign(key, DOCUMENT))


def test_hex_has_one_form() -> None:
    key = Ed25519PrivateKey.generate()
    public, signature = keys.public_hex(key), keys.sign(key, DOCUMENT)
    assert not keys.verify(public, DOCUMENT, signature.upper())
    assert not keys.verify(public.upper(), DOCUMENT, signature)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, {1}, b"x", object()])
def test_what_json_has_no_form_for_is_not_signed(value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        keys.sign(Ed25519PrivateKey.generate(), {"x": value})


EXACT = 2**53 - 1  # RFC 8785's numbers
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-EXACT, EXACT) | st.floats(-EXACT, EXACT) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_a_number_that_json_cannot_hold_exactly_is_not_signed() -> None:
    with pytest.raises(ValueError, match="JSON"):
        keys.canonical_json({"": EXACT + 1})


@given(st.dictionaries(st.text(), JSON, max_size=4))
@settings(max_examples=100, deadline=None)
def test_canonical_json_survives_being_read_and_written(document: dict[str, Any]) -> None:
    import json

    once = keys.canonical_json(document)
    assert keys.canonical_json(json.loads(once)) == once


@pytest.mark.parametrize("document", [None, 5, [1], [[]], "text"])
def test_what_is_no_document_has_no_signature(document: object) -> None:
    assert not keys.verify("5e" * 32, document, "ab" * 64)  # type: ignore[arg-type]
