"""Pairwise masks: the coordinator adds up the hospitals' integers and learns the total, not the parts.

Every two hospitals agree on a secret (X25519), of which the coordinator relays the public halves, each signed by its
hospital's own key. From it both draw the same stream for one request; one adds it, the other subtracts it, modulo 2^64.
In the sum over all hospitals the streams cancel to the last bit; in one hospital's message, what is left is uniform for
whoever lacks one of its streams.

There is no way to recover from a hospital that does not answer: the others' messages then stay masked for good. Schemes
that do recover (Bonawitz et al. 2017, and Flower's SecAgg+) let a coordinator that lies about who is missing unmask a
hospital; here nothing is ever revealed about a mask.

Sources: Bonawitz et al., "Practical Secure Aggregation" (2017), section 4.0.1, for the masks; RFC 7748 (X25519), RFC
5869 (HKDF), NIST SP 800-38A (CTR).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from ghostnet.errors import FederationError
from ghostnet.evidence import keys

SALT = b"ghostnet mask/1"
MAX_ROSTER_CHARACTERS = 100_000  # of a roster's text


@dataclass(frozen=True, kw_only=True)
class Member:
    """One hospital of a run: its name, its signing key, and its mask key of this run, signed. All of it is public."""

    site: str
    public_key: str  # Ed25519, 64 hex digits
    mask_key: str  # X25519, 64 hex digits
    signature: str  # by public_key, over `mask_key_document`


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The hospitals of one run, in alphabetical order, as every one of them must see it."""

    run_id: str
    plan_hash: str
    members: tuple[Member, ...]

    def to_text(self) -> str:
        """The one text form; hospitals compare it byte by byte."""
        return keys.canonical_json(asdict(self)).decode("ascii")

    def sha256(self) -> str:
        """Hex digest of the text form."""
        return hashlib.sha256(self.to_text().encode()).hexdigest()

    def hospitals_sha256(self) -> str:
        """Hex digest of who takes part; see `hospitals_sha256`."""
        return hospitals_sha256(self.run_id, {member.site: member.public_key for member in self.members})


def hospitals_sha256(run_id: str, public_keys: Mapping[str, str]) -> str:
    """Hex digest of a run's hospitals, by name and signing key; anyone can compute it from a certificate."""
    return hashlib.sha256(keys.canonical_json({"hospitals": dict(public_keys), "run": run_id})).hexdigest()


def mask_key_document(*, run_id: str, plan_hash: str, site: str, mask_key: str) -> dict[str, str]:
    """The bytes that a hospital signs to say that this mask key is its own, for this run of this plan."""
    return {"document": "ghostnet mask key", "mask_key": mask_key, "plan": plan_hash, "run": run_id, "site": site}


def sign_member(
    *, run_id: str, plan_hash: str, site: str, signing_key: Ed25519PrivateKey, mask_key: X25519PrivateKey
) -> Member:
    """The hospital's own entry of a roster."""
    public = mask_key.public_key().public_bytes_raw().hex()
    document = mask_key_document(run_id=run_id, plan_hash=plan_hash, site=site, mask_key=public)
    return Member(
        site=site,
        public_key=keys.public_hex(signing_key),
        mask_key=public,
        signature=keys.sign(signing_key, document),
    )


def make_roster(*, run_id: str, plan_hash: str, hospitals: int, members: Iterable[Member]) -> Roster:
    """Puts a run's hospitals together and checks them; see `read_roster` for what is refused."""
    ordered = tuple(sorted(members, key=lambda member: str(member.site)))
    roster = Roster(run_id=run_id, plan_hash=plan_hash, members=ordered)
    _check_roster(roster, hospitals)
    return roster


def read_roster(text: str, *, run_id: str, plan_hash: str, hospitals: int) -> Roster:
    """Reads a roster that a coordinator sent.

    Args:
        text: from `Roster.to_text`.
        run_id: the run it must be for.
        plan_hash: the plan it must be for.
        hospitals: exactly so many.

    Raises:
        FederationError: not a roster of this run and plan, another number of hospitals, two of one name or key, or a
            mask key that its hospital did not sign.
    """
    try:
        raw = json.loads(text) if len(text) <= MAX_ROSTER_CHARACTERS else None
        members = tuple(Member(**entry) for entry in raw["members"])  # type: ignore[index]
        roster = Roster(run_id=run_id, plan_hash=plan_hash, members=members)
        same = roster.to_text() == text
    except (ValueError, KeyError, TypeError, RecursionError):
        same = False
    if not same:
        raise FederationError("the roster is not one of this run and plan in its one form; the run cannot be masked")
    _check_roster(roster, hospitals)
    return roster


class Masks:
    """One hospital's masks of one run.

    Args:
        roster: the run's hospitals, checked.
        site: this hospital.
        mask_key: this hospital's private half of its mask key of the run.
        public_key: this hospital's own signing key, public half. Under another one it would mask for a run whose
            certificate can never hold.

    Raises:
        FederationError: this hospital is not in the roster with these two keys, or a peer's key is no point.

    Guarantee:
        For whoever does not hold one of this hospital's pair secrets (the coordinator, and any hospitals but at least
        one other honest one), a masked message is indistinguishable from uniform, given that a request's name is
        used for one value only. Assumes: X25519, HKDF-SHA256 and AES-256-CTR; that the roster's signing keys are the
        hospitals' own, which pinning shows and first use does not.
        Not covered: the total; the noise in it must do (pooled.py).
    """

    def __init__(self, roster: Roster, site: str, mask_key: X25519PrivateKey, public_key: str) -> None:
        own = (site, mask_key.public_key().public_bytes_raw().hex(), public_key)
        if not any((member.site, member.mask_key, member.public_key) == own for member in roster.members):
            raise FederationError(
                f"the roster does not hold {site} with its own signing key and its mask key of this run; nothing is "
                "masked"
            )
        self._context = {"document": "ghostnet mask", "roster": roster.sha256(), "run": roster.run_id}
        self._site = site
        self._secrets = {
            member.site: _pair_secret(mask_key, member) for member in roster.members if member.site != site
        }

    def masked(self, values: NDArray[np.int64], request: str) -> NDArray[np.int64]:
        """Adds this hospital's masks of a request, modulo 2^64. Never call it for two values of one request.

        Args:
            values: int64 (d,).
            request: names the one use of these masks; the same at every hospital.

        Returns:
            int64 (d,).
        """
        total = values.astype(np.int64).view(np.uint64)
        for peer, secret in self._secrets.items():
            stream = self._stream(secret, peer, request, total.size)
            total = total + stream if self._site < peer else total - stream
        return total.view(np.int64)

    def _stream(self, secret: bytes, peer: str, request: str, size: int) -> NDArray[np.uint64]:
        low, high = sorted((self._site, peer))
        info = keys.canonical_json({**self._context, "high": high, "low": low, "request": request})
        # The key serves this one stream, so that the counter may start at zero.
        key = HKDF(algorithm=SHA256(), length=32, salt=SALT, info=info).derive(secret)
        stream = Cipher(AES(key), CTR(bytes(16))).encryptor().update(bytes(8 * size))
        return np.frombuffer(stream, dtype="<u8").astype(np.uint64, copy=False)


def sum_modulo(parts: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Sum of int64 arrays of one shape modulo 2^64; the masks cancel in it when every hospital's part is there.

    Raises:
        FederationError: there is no part, or two have different shapes.
    """
    parts = [part.view(np.uint64) for part in parts]
    if not parts or any(part.shape != parts[0].shape for part in parts):
        raise FederationError(f"{len(parts)} masked sums of {len({p.shape for p in parts})} shapes cannot be added up")
    total = np.zeros_like(parts[0])
    for part in parts:
        total += part
    return total.view(np.int64)


def _check_roster(roster: Roster, hospitals: int) -> None:
    if len(roster.members) != hospitals:
        raise FederationError(
            f"the roster holds {len(roster.members)} hospitals, the plan asks for exactly {hospitals} "
            "([federation].hospitals)"
        )
    names = [member.site for member in roster.members]
    if names != sorted(set(names)):
        raise FederationError("the roster does not hold each hospital once, in alphabetical order")
    for field in ("public_key", "mask_key"):
        if len({getattr(member, field) for member in roster.members}) != hospitals:
            raise FederationError(f"two hospitals of the roster have one {field}; they would not be two")
    for member in roster.members:
        document = mask_key_document(
            run_id=roster.run_id, plan_hash=roster.plan_hash, site=member.site, mask_key=member.mask_key
        )
        if not keys.verify(member.public_key, document, member.signature):
            raise FederationError(f"the mask key of {member.site[:32]} is not signed by its hospital for this run")
        _pair_secret(X25519PrivateKey.generate(), member)  # refused now, not by every other hospital at every step


def _pair_secret(own: X25519PrivateKey, member: Member) -> bytes:
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(member.mask_key)))
    except ValueError:  # not 32 bytes, or a point of small order, with which the secret would be known to all
        raise FederationError(f"the mask key of {member.site[:32]} is not an X25519 public key") from None
