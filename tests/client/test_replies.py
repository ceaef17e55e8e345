"""A stored answer is sent again as it was, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.replies import read_reply, write_reply
from client.secrets import load_or_create_secret
from ghostnet.errors import LedgerError, SiteError

ARRAYS = {"noised_sum": np.arange(5, dtype=np.float32)}


def test_a_stored_answer_comes_back_byte_for_byte(tmp_path: Path) -> None:
    digest = write_reply(tmp_path / "warm_start.safetensors", ARRAYS)
    stored = read_reply(tmp_path / "warm_start.safetensors", digest)
    np.testing.assert_array_equal(stored["noised_sum"], ARRAYS["noised_sum"])


def test_a_changed_or_missing_answer_is_never_drawn_again(tmp_path: Path) -> None:
    path = tmp_path / "warm_start.safetensors"
    digest = write_reply(path, ARRAYS)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(LedgerError, match="cannot be drawn again"):
        read_reply(path, digest)
    path.unlink()
    with pytest.raises(LedgerError, match="cannot be drawn again"):
        read_reply(path, digest)


def test_the_secret_is_made_once_and_read_by_the_owner_only(tmp_path: Path) -> None:
    first = load_or_create_secret(tmp_path / "secret.key")
    assert load_or_create_secret(tmp_path / "secret.key") == first
    assert (tmp_path / "secret.key").stat().st_mode & 0o777 == 0o600
    assert load_or_create_secret(tmp_path / "other.key") != first


def test_a_cut_off_secret_is_refused_rather_than_replaced(tmp_path: Path) -> None:
    (tmp_path / "secret.key").write_bytes(b"short")
    with pytest.raises(SiteError, match="5 bytes"):
        load_or_create_secret(tmp_path / "secret.key")
