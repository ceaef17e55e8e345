"""The masking state of a hospital in a pooled run: its mask key, and the roster that it saw first.

Both are written once. The roster never changes within a run, whatever the coordinator sends later; peers whose keys the
hospital's own people have put into site.toml must be in it with those keys.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ghostnet.durable import sync_folder, write_durably
from ghostnet.errors import LedgerError, PolicyError
from ghostnet.evidence import keys
from ghostnet.exchange.secure_sum import Masks, Member, Roster, read_roster, sign_member
from ghostnet.plan import Plan


class RunMasks:
    """One hospital's masking of one run.

    Args:
        folder: the run's folder in the hospital's state, readable by its owner only.
        plan: resolved, pooled.
        run_id: the run.
        site: this hospital's name.
        signing_key: this hospital's key.
        peers: "name=public key" of every other hospital, from [policy].peers; none = trusted as first seen.

    Guarantee:
        Unit: one masked message. See `ghostnet.exchange.secure_sum.Masks`; with `peers` it holds against a coordinator
        that lies about the others' keys. Not covered: without `peers`, such a coordinator can play all of the others.
    """

    def __init__(
        self,
        folder: Path,
        *,
        plan: Plan,
        run_id: str,
        site: str,
        signing_key: Ed25519PrivateKey,
        peers: Iterable[str] = (),
    ) -> None:
        self._key_path, self._roster_path = folder / "mask.key", folder / "roster.json"
        self._plan, self._run_id, self._site, self._signing_key = plan, run_id, site, signing_key
        self._peers = known_peers(peers)

    def member(self) -> Member:
        """This hospital's entry for the roster; the same in every attempt of a run."""
        pinned = self.pinned()
        if pinned is not None:
            return next(member for member in pinned.members if member.site == self._site)
        return sign_member(
            run_id=self._run_id,
            plan_hash=self._plan.hash(),
            site=self._site,
            signing_key=self._signing_key,
            mask_key=_load_or_create(self._key_path),
        )

    def masks(self, roster_text: str) -> Masks:
        """The run's masks, once the roster is the one that was pinned, or may be pinned now.

        Raises:
            FederationError: the roster is not signed by its hospitals, or this hospital is not in it with its own keys.
            PolicyError: P18, a hospital of the roster is not one that this hospital knows, or the roster has changed.
            LedgerError: this run's mask key is gone, because the run has ended here.
        """
        roster = read_roster(
            roster_text,
            run_id=self._run_id,
            plan_hash=self._plan.hash(),
            hospitals=self._plan.federation.hospitals,
        )
        self._check_peers(roster)
        if not self._key_path.exists():
            raise LedgerError(f"the mask key of run {self._run_id} is gone: the run has ended here; start a new one")
        own = keys.public_hex(self._signing_key)
        masks = Masks(roster, self._site, _load_or_create(self._key_path), own)
        pinned = self.pinned()
        if pinned is None:
            _write_once(self._roster_path, roster_text.encode("ascii"))
            pinned = self.pinned()
        if pinned != roster:
            raise PolicyError("P18: the roster is not the one that this run began with; hospitals do not change midway")
        return masks

    def pinned(self) -> Roster | None:
        """The roster that this run is masked with; None before the first step."""
        if not self._roster_path.exists():
            return None
        return read_roster(
            self._roster_path.read_text(encoding="ascii"),
            run_id=self._run_id,
            plan_hash=self._plan.hash(),
            hospitals=self._plan.federation.hospitals,
        )

    def statement_fields(self) -> dict[str, str]:
        """For the hospital's statement: who masked with it, and how their keys were known."""
        pinned = self.pinned()
        if pinned is None:
            return {}
        # site.toml may have changed since the last step
        known = bool(self._peers) and not any(self._unknown_peers(pinned))
        return {"hospitals_sha256": pinned.hospitals_sha256(), "keys": "pinned" if known else "first use"}

    def forget_key(self) -> None:
        """Removes the mask key: from now on nobody, this hospital included, can make these masks again."""
        self._key_path.unlink(missing_ok=True)

    def _check_peers(self, roster: Roster) -> None:
        for member in self._unknown_peers(roster) if self._peers else ():
            raise PolicyError(
                f"P18: {member.site[:32]} with key {member.public_key[:16]}... is not among [policy].peers of "
                "site.toml; add it once you have its key from the hospital itself"
            )

    def _unknown_peers(self, roster: Roster) -> list[Member]:
        """Other hospitals of the roster that [policy].peers does not hold with their keys."""
        return [m for m in roster.members if m.site != self._site and self._peers.get(m.site) != m.public_key]


def known_peers(peers: Iterable[str]) -> dict[str, str]:
    """Public keys of [policy].peers, by hospital.

    Raises:
        PolicyError: P18, an entry is not "name=64 hexadecimal digits".
    """
    try:
        return keys.named_keys(peers)
    except ValueError as error:
        raise PolicyError(f"P18: [policy].peers holds {error}") from None


def _load_or_create(path: Path) -> X25519PrivateKey:
    if not path.exists():
        _write_once(path, X25519PrivateKey.generate().private_bytes_raw())
    return X25519PrivateKey.from_private_bytes(path.read_bytes())


def _write_once(path: Path, data: bytes) -> None:
    """Writes a new file, readable by its owner only, and syncs it and its folder; it is whole or not there."""
    write_durably(path, data)
    sync_folder(path.parent)
