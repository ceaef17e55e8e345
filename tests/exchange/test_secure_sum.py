"""Masks: they cancel to the last bit, hide everything else, and belong to the hospitals that signed for them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from scipy import stats

from ghostnet.errors import FederationError
from ghostnet.exchange.secure_sum import (
    Masks,
    Roster,
    hospitals_sha256,
    make_roster,
    read_roster,
    sign_member,
    sum_modulo,
)

RUN, PLAN = "ab" * 16, "cd" * 32
ABOUT = {"run_id": RUN, "plan_hash": PLAN}
FALSE_ALARM = 1e-6


def hospitals(names: tuple[str, ...] = ("a", "b", "c", "d")) -> tuple[Roster, dict[str, Masks]]:
    """A roster and each hospital's masks, of fresh keys."""
    secret = {name: X25519PrivateKey.generate() for name in names}
    members = [
        sign_member(**ABOUT, site=name, signing_key=Ed25519PrivateKey.generate(), mask_key=secret[name])
        for name in names
    ]
    roster = make_roster(**ABOUT, hospitals=len(names), members=members)
    return roster, {m.site: Masks(roster, m.site, secret[m.site], m.public_key) for m in roster.members}


def looks_uniform(values: np.ndarray) -> bool:
    """No test of bits, bytes or neighbours rejects uniform 64-bit words; false alarms below FALSE_ALARM each."""
    words = values.view(np.uint64)
    octets = np.frombuffer(words.tobytes(), dtype=np.uint8)
    by_bytes = stats.chisquare(np.bincount(octets, minlength=256)).pvalue
    ones = np.unpackbits(octets).reshape(-1, 64).sum(0)
    by_bits = min(stats.binomtest(int(k), len(words)).pvalue for k in ones) * 64
    by_size = stats.kstest(words.astype(np.float64) / 2.0**64, "uniform").pvalue
    return min(by_bytes, by_bits, by_size) > FALSE_ALARM


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c"), tuple(f"h{i:02d}" for i in range(12))])
def test_masks_cancel_bit_for_bit_in_the_sum_over_all_hospitals(names: tuple[str, ...]) -> None:
    _, masks = hospitals(names)
    extremes = [0, 1, -1, 2**62, -(2**62), 2**63 - 1, -(2**63)]
    values = {name: np.random.default_rng(i).integers(-(2**63), 2**63 - 1, 500) for i, name in enumerate(names)}
    for array in values.values():
        array[: len(extremes)] = extremes
    total = sum_modulo([masks[name].masked(values[name], "step-1") for name in names])
    plain = sum(1 * array.astype(object) for array in values.values())
    expected = np.array([(int(x) + 2**63) % 2**64 - 2**63 for x in plain], dtype=np.int64)
    np.testing.assert_array_equal(total, expected)


def test_what_the_coordinator_sees_of_one_hospital_is_uniform_whatever_the_value() -> None:
    _, masks = hospitals()
    for value in (np.zeros(20_000, dtype=np.int64), np.arange(20_000), np.full(20_000, -(2**40))):
        assert looks_uniform(masks["a"].masked(value, "step-1"))
        assert looks_uniform(masks["b"].masked(value, "step-1"))


def test_planted_an_omitted_mask_is_seen() -> None:
    value = np.random.default_rng(0).integers(-(2**38), 2**38, 20_000)
    assert not looks_uniform(value)


def test_planted_a_mask_used_for_two_values_is_seen_and_a_request_of_its_own_is_not() -> None:
    _, masks = hospitals()
    one, two = np.zeros(20_000, dtype=np.int64), np.random.default_rng(0).integers(-(2**38), 2**38, 20_000)
    reused = masks["a"].masked(one, "step-1") - masks["a"].masked(two, "step-1")
    fresh = masks["a"].masked(one, "step-1") - masks["a"].masked(two, "step-2")
    assert not looks_uniform(reused)
    assert looks_uniform(fresh)


def test_a_sum_without_one_hospital_stays_masked() -> None:
    _, masks = hospitals()
    parts = [masks[name].masked(np.zeros(20_000, dtype=np.int64), "step-1") for name in "abc"]
    assert looks_uniform(sum_modulo(parts))


def test_all_others_together_with_the_coordinator_unmask_a_hospital_which_is_why_its_own_noise_is_accounted() -> None:
    _, masks = hospitals(("a", "b", "c"))
    value = np.arange(100)
    others = [masks[name].masked(np.zeros(100, dtype=np.int64), "step-1") for name in "bc"]
    np.testing.assert_array_equal(sum_modulo([masks["a"].masked(value, "step-1"), *others]), value)


def test_other_runs_and_rosters_have_other_masks() -> None:
    secret = {name: X25519PrivateKey.generate() for name in "ab"}
    signing = {name: Ed25519PrivateKey.generate() for name in "ab"}
    masked = []
    for run in (RUN, "ba" * 16):
        members = [
            sign_member(run_id=run, plan_hash=PLAN, site=n, signing_key=signing[n], mask_key=secret[n]) for n in "ab"
        ]
        roster = make_roster(run_id=run, plan_hash=PLAN, hospitals=2, members=members)
        own = roster.members[0].public_key
        masked.append(Masks(roster, "a", secret["a"], own).masked(np.zeros(20_000, dtype=np.int64), "step-1"))
    assert looks_uniform(masked[0] - masked[1])


def test_a_roster_survives_its_text_form_and_nothing_else_is_one() -> None:
    roster, _ = hospitals()
    text = roster.to_text()
    assert read_roster(text, **ABOUT, hospitals=4) == roster
    document = json.loads(text)
    document["members"][0]["more"] = 1
    for bad in ("", "[]", "{}", text + " ", text.replace('"a"', '"e"'), json.dumps(document), "[" * 5000, "é" * 10):
        with pytest.raises(FederationError):
            read_roster(bad, **ABOUT, hospitals=4)
    for about in ({**ABOUT, "run_id": "00" * 16}, {**ABOUT, "plan_hash": "00" * 32}):
        with pytest.raises(FederationError):
            read_roster(text, **about, hospitals=4)
    for number in (3, 5):
        with pytest.raises(FederationError, match="exactly"):
            read_roster(text, **ABOUT, hospitals=number)


def test_a_key_that_its_hospital_did_not_sign_for_this_run_is_refused() -> None:
    roster, _ = hospitals()
    first, second = roster.members[:2]
    stranger = X25519PrivateKey.generate()
    forged = sign_member(**ABOUT, site="a", signing_key=Ed25519PrivateKey.generate(), mask_key=stranger)
    other_run = sign_member(
        run_id="00" * 16, plan_hash=PLAN, site="a", signing_key=Ed25519PrivateKey.generate(), mask_key=stranger
    )
    for wrong in (
        dataclasses.replace(first, mask_key=forged.mask_key),  # swapped on the way
        dataclasses.replace(forged, public_key=first.public_key),  # signed by another
        dataclasses.replace(first, signature=""),
        dataclasses.replace(first, signature=second.signature),
        other_run,
    ):
        with pytest.raises(FederationError, match="signed"):
            make_roster(**ABOUT, hospitals=4, members=[wrong, *roster.members[1:]])


def test_two_hospitals_that_are_one_are_refused() -> None:
    key, mask_key = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
    a = sign_member(**ABOUT, site="a", signing_key=key, mask_key=mask_key)
    for twin in (
        sign_member(**ABOUT, site="b", signing_key=key, mask_key=X25519PrivateKey.generate()),
        sign_member(**ABOUT, site="b", signing_key=Ed25519PrivateKey.generate(), mask_key=mask_key),
        sign_member(**ABOUT, site="a", signing_key=Ed25519PrivateKey.generate(), mask_key=X25519PrivateKey.generate()),
    ):
        with pytest.raises(FederationError):
            make_roster(**ABOUT, hospitals=2, members=[a, twin])


@pytest.mark.parametrize("point", ["00" * 32, "01" + "00" * 31, "zz" * 32, "00" * 31])
def test_a_point_of_small_order_or_no_point_gives_no_secret(point: str) -> None:
    own, peer = X25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    a = sign_member(**ABOUT, site="a", signing_key=Ed25519PrivateKey.generate(), mask_key=own)
    b = dataclasses.replace(
        sign_member(**ABOUT, site="b", signing_key=peer, mask_key=X25519PrivateKey.generate()), mask_key=point
    )
    with pytest.raises(FederationError, match="X25519"):  # a hospital may sign what it likes
        Masks(Roster(**ABOUT, members=(a, b)), "a", own, a.public_key)


def test_a_hospital_masks_only_with_a_roster_that_holds_its_own_two_keys() -> None:
    own, signing = X25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    a = sign_member(**ABOUT, site="a", signing_key=signing, mask_key=own)
    b = sign_member(**ABOUT, site="b", signing_key=Ed25519PrivateKey.generate(), mask_key=X25519PrivateKey.generate())
    roster = make_roster(**ABOUT, hospitals=2, members=[a, b])
    Masks(roster, "a", own, a.public_key)
    for site, mask_key, public_key in (
        ("a", X25519PrivateKey.generate(), a.public_key),
        ("a", own, b.public_key),
        ("a", own, "00" * 32),
        ("b", own, a.public_key),
        ("e", own, a.public_key),
    ):
        with pytest.raises(FederationError, match="does not hold"):
            Masks(roster, site, mask_key, public_key)


def test_anyone_can_tell_from_names_and_keys_who_was_masked_with() -> None:
    roster, _ = hospitals()
    keys = {member.site: member.public_key for member in roster.members}
    assert roster.hospitals_sha256() == hospitals_sha256(RUN, keys)
    assert roster.hospitals_sha256() != hospitals_sha256(RUN, {**keys, "a": "00" * 32})


def test_parts_of_different_shapes_are_not_added() -> None:
    with pytest.raises(FederationError):
        sum_modulo([np.zeros(3, dtype=np.int64), np.zeros(4, dtype=np.int64)])
    with pytest.raises(FederationError):
        sum_modulo([])
