"""The certificate: every byte of the folder is bound, every claim recomputed, each lie caught by its own check."""

from __future__ import annotations

import copy
import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ghostnet.errors import VerifyError
from ghostnet.plan import Plan
from ghostnet.privacy import keys
from ghostnet.privacy.certificate import (
    Check,
    build_certificate,
    certificate_bytes,
    file_sha256,
    site_statement,
    verify_sampler,
    write_certificate,
)
from ghostnet.privacy.claim import claim, plan_events
from ghostnet.privacy.events import PoissonGaussianSteps, coalition_events
from ghostnet.privacy.statement import STATEMENT_KEYS, plan_epsilons
from ghostnet.secure_sum import hospitals_sha256
from tests.plans import tiny_plan

SERVER = Ed25519PrivateKey.generate()
SITES = {name: Ed25519PrivateKey.generate() for name in ("north", "south")}
TRUSTED = {name: keys.public_hex(key) for name, key in {**SITES, "server": SERVER}.items()}
FILES = {
    "README.md": b"# card\n",
    "config.json": b"{}\n",
    "model.safetensors": bytes(range(200)),
    "samples.png": b"png",
}


@cache
def plan(**privacy: Any) -> Plan:
    """The tiny plan with its noise given, for patients of up to two hospitals."""
    tiny = tiny_plan(patients="patients = 20\nhospitals_per_patient = 2")
    return replace(tiny, privacy=replace(tiny.privacy, noise_multiplier=3.0, **privacy))


def publish(
    folder: Path,
    published: Plan,
    *,
    known: tuple[str, ...] = (),
    public_images: dict[str, str] | None = None,
) -> Path:
    """Writes a sampler's folder as the coordinator does; pooled: `known` says how each hospital knew the keys."""
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    hashes = {name: file_sha256(folder / name) for name in FILES}
    weights = hashes["model.safetensors"]
    hospitals = hospitals_sha256("run-1", {name: TRUSTED[name] for name in SITES})
    statements = [
        site_statement(
            site=name,
            run_id="run-1",
            plan=published,
            weights_sha256=weights,
            ledger_head="c" * 64,
            key=key,
            unit=published.privacy.unit,
            masked_with={"hospitals_sha256": hospitals, "keys": known[i]} if known else None,
        )
        for i, (name, key) in enumerate(SITES.items())
    ]
    certificate = build_certificate(
        plan=published,
        run_id="run-1",
        weights_sha256=weights,
        config_sha256=hashes["config.json"],
        statements=statements,
        server_key=SERVER,
        other_files={name: hashes[name] for name in ("README.md", "samples.png")},
        public_images=public_images,
    )
    write_certificate(folder, certificate)
    return folder


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published sampler's folder."""
    return publish(tmp_path_factory.mktemp("published") / "sampler", plan())


@pytest.fixture
def folder(master: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(master, tmp_path / "sampler"))


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


def rewrite(
    folder: Path, change: Callable[[dict[str, Any]], None], *, signer: Ed25519PrivateKey | None = None
) -> set[str]:
    """Changes the certificate in its right byte form, signed again by `signer`; returns the checks that fail."""
    certificate = json.loads((folder / "certificate.json").read_text())
    change(certificate)
    if signer is not None:
        certificate.pop("signature", None)
        certificate["server_public_key"] = keys.public_hex(signer)
        certificate["signature"] = keys.sign(signer, certificate)
    (folder / "certificate.json").write_bytes(certificate_bytes(certificate))
    return failed(verify_sampler(folder))


def sign_again(statement: dict[str, Any], key: Ed25519PrivateKey) -> None:
    del statement["signature"]
    statement["signature"] = keys.sign(key, statement)


def test_an_untouched_sampler_passes_every_check(folder: Path) -> None:
    checks = verify_sampler(folder, trusted_keys=TRUSTED)
    assert failed(checks) == set()
    names = {check.name for check in checks}
    assert names >= {
        "certificate form",
        "server signature",
        "plan hash",
        "mechanism",
        "epsilon",
        "statements",
        "trusted keys",
    }
    assert names >= {f"file {name}" for name in FILES}
    assert names >= {f"statement {site}: {what}" for site in SITES for what in ("signature", "plan", "epsilon")}


def test_the_certificate_holds_what_the_contract_names(folder: Path) -> None:
    certificate = json.loads((folder / "certificate.json").read_text())
    promised = claim(plan())
    assert certificate["plan_hash"] == plan().hash()
    assert certificate["weights_sha256"] == file_sha256(folder / "model.safetensors")
    assert certificate["noise_multiplier"] == plan().privacy.noise_multiplier
    assert (certificate["sampling_rate"], certificate["steps"], certificate["clip_norm"]) == (0.3, 4, 1.0)
    assert (certificate["unit"], certificate["adjacency"]) == ("patient", "add/remove one patient")
    assert (certificate["epsilon_pld"], certificate["epsilon_rdp"]) == (promised.epsilon_pld, promised.epsilon_rdp)
    assert certificate["epsilon_pld_all_hospitals"] == promised.epsilon_pld_all_hospitals > certificate["epsilon_pld"]
    assert certificate["ledger_heads"] == {"north": "c" * 64, "south": "c" * 64}
    assert certificate["not_covered"]
    assert all(set(statement) == STATEMENT_KEYS for statement in certificate["statements"])


@pytest.mark.parametrize("name", sorted(FILES))
def test_one_changed_byte_of_a_file_fails_the_check_of_that_file(folder: Path, name: str) -> None:
    good = (folder / name).read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        (folder / name).write_bytes(bad)
        assert failed(verify_sampler(folder)) == {f"file {name}"}
        if place > 10:
            break
    for bad in (good + b"\0", good[:-1], b""):
        (folder / name).write_bytes(bad)
        assert failed(verify_sampler(folder)) == {f"file {name}"}
    (folder / name).unlink()
    assert failed(verify_sampler(folder)) == {f"file {name}"}


def test_any_changed_byte_of_the_certificate_fails(folder: Path) -> None:
    path = folder / "certificate.json"
    good = path.read_bytes()
    chance = random.Random(3)
    for place in {*chance.sample(range(len(good)), 150), 0, len(good) - 1}:
        for replacement in (bytes([good[place] ^ 1 << chance.randrange(8)]), b" ", b"0"):
            bad = good[:place] + replacement + good[place + 1 :]
            if bad != good:
                path.write_bytes(bad)
                names = failed(verify_sampler(folder))
                assert names & {"certificate form", "server signature"}, (place, replacement)


def test_spacing_that_means_nothing_fails_too(folder: Path) -> None:
    path = folder / "certificate.json"
    certificate = json.loads(path.read_text())
    for text in (json.dumps(certificate), path.read_text() + "\n", path.read_text().replace(": ", ":  ", 1)):
        path.write_text(text)
        assert failed(verify_sampler(folder)) == {"certificate form"}


def test_a_changed_plan_fails_its_hash_and_everything_that_follows_from_it(folder: Path) -> None:
    def change(certificate: dict[str, Any]) -> None:
        certificate["plan"]["privacy"]["steps"] = 2

    assert rewrite(folder, change) >= {"server signature", "plan hash", "mechanism", "statement north: plan"}


def test_a_coordinator_that_signs_a_weaker_plan_is_caught_by_the_hospitals_statements(folder: Path) -> None:
    from ghostnet.privacy.statement import mechanism, plan_epsilons

    weaker = plan(steps=2)

    def change(certificate: dict[str, Any]) -> None:
        certificate.update(plan=weaker.to_dict(), plan_hash=weaker.hash(), **mechanism(weaker), **plan_epsilons(weaker))

    assert rewrite(folder, change, signer=SERVER) == {"statement north: plan", "statement south: plan"}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda c: c.update(epsilon_pld=c["epsilon_pld"] - 0.001), "epsilon"),
        (lambda c: c.update(epsilon_rdp=c["epsilon_rdp"] * 0.99), "epsilon"),
        (lambda c: c.update(epsilon_pld_all_hospitals=c["epsilon_pld"]), "epsilon"),
        (lambda c: c.update(epsilon_pld="0.1"), "epsilon"),
        (lambda c: c.update(epsilon_pld=True), "epsilon"),
        (lambda c: c.update(noise_multiplier=9.0), "mechanism"),
        (lambda c: c.update(unit="image"), "mechanism"),
        (lambda c: c.update(adjacency="replace one patient"), "mechanism"),
        (lambda c: c.update(not_covered=[]), "mechanism"),
        (lambda c: c.update(mechanism="anonymous"), "mechanism"),
        (lambda c: c.update(events=c["events"][:1]), "mechanism"),
        (lambda c: c.update(note="HIPAA compliant"), "mechanism"),
        (lambda c: c.pop("code_version"), "mechanism"),
        (lambda c: c.update(delta=1e-3), "mechanism"),
        (lambda c: c.update(statements=[]), "statements"),
        (lambda c: c["statements"].append(copy.deepcopy(c["statements"][0])), "statements"),
        (lambda c: c["ledger_heads"].update(north="d" * 64), "statements"),
        (lambda c: c["files"].pop("README.md"), "no other file"),
        (lambda c: c["files"].pop("model.safetensors"), "file model.safetensors"),
        (lambda c: c["files"].update({"../x": "0" * 64}), "file ../x"),
        (lambda c: c.update(weights_sha256="0" * 64), "file model.safetensors"),
        (lambda c: c.update(run_id="run-2"), "statement north: plan"),
        (lambda c: c["plan"].update(extra=1), "plan hash"),
        (lambda c: c.update(files=None), "file config.json"),
    ],
)
def test_what_a_coordinator_signs_wrongly_fails_a_named_check(folder: Path, change: Any, name: str) -> None:
    assert rewrite(folder, lambda certificate: None, signer=SERVER) == set()  # the clean twin
    names = rewrite(folder, change, signer=SERVER)
    assert name in names
    assert "server signature" not in names


def test_a_larger_epsilon_than_recomputed_is_no_lie(folder: Path) -> None:
    assert rewrite(folder, lambda c: c.update(epsilon_pld=c["epsilon_pld"] + 1), signer=SERVER) == set()


@pytest.mark.parametrize("field", sorted(STATEMENT_KEYS - {"signature"}))
def test_any_field_of_a_statement_that_changes_fails_that_hospitals_signature(folder: Path, field: str) -> None:
    def change(certificate: dict[str, Any]) -> None:
        value = certificate["statements"][0][field]
        certificate["statements"][0][field] = value + 1 if isinstance(value, float) else "0" * 64

    names = rewrite(folder, change, signer=SERVER)
    assert any(name.startswith("statement ") and name.endswith(": signature") for name in names)
    assert "statement south: signature" not in names


@pytest.mark.parametrize(
    ("weaken", "names"),
    [
        (lambda s: s["events"][0].update(noise_multiplier=9.0), {"statement north: plan"}),
        (lambda s: s["events"][-1].update(steps=1), {"statement north: plan"}),
        (lambda s: s["events"].pop(), {"statement north: plan"}),
        (lambda s: s.update(epsilon_pld=0.5), {"statement north: epsilon"}),
        (lambda s: s.update(epsilon_rdp=0.5), {"statement north: epsilon"}),
        (lambda s: s.update(delta=1e-3), {"statement north: plan"}),
        (lambda s: s.update(weights_sha256="0" * 64), {"statement north: plan"}),
        (lambda s: s.update(plan_hash="0" * 64), {"statement north: plan"}),
        (lambda s: s.update(run_id="run-0"), {"statement north: plan"}),
        (lambda s: s.update(events=[]), {"statement north: plan"}),
        (lambda s: s.update(events=[{"mechanism": "free"}]), {"statement north: plan", "statement north: epsilon"}),
    ],
)
def test_a_hospital_that_signs_weaker_events_is_caught(folder: Path, weaken: Any, names: set[str]) -> None:
    def change(certificate: dict[str, Any]) -> None:
        weaken(certificate["statements"][0])
        sign_again(certificate["statements"][0], SITES["north"])

    assert rewrite(folder, change, signer=SERVER) == names


def test_a_signature_of_another_key_fails(folder: Path) -> None:
    stranger = Ed25519PrivateKey.generate()

    def same_public_key(certificate: dict[str, Any]) -> None:
        sign_again(certificate["statements"][0], stranger)

    assert rewrite(folder, same_public_key, signer=SERVER) == {"statement north: signature"}

    def server(certificate: dict[str, Any]) -> None:
        sign_again(certificate["statements"][0], SITES["north"])
        del certificate["signature"]
        certificate["signature"] = keys.sign(stranger, certificate)

    assert rewrite(folder, server) == {"server signature"}


def test_a_folder_signed_again_by_strangers_is_caught_by_the_known_keys_only(folder: Path) -> None:
    stranger = Ed25519PrivateKey.generate()

    def change(certificate: dict[str, Any]) -> None:
        certificate["statements"][0]["public_key"] = keys.public_hex(stranger)
        sign_again(certificate["statements"][0], stranger)

    assert rewrite(folder, change) == {"server signature"}
    assert rewrite(folder, lambda certificate: None, signer=stranger) >= set()
    checks = verify_sampler(folder, trusted_keys=TRUSTED)
    assert "trusted keys" in failed(checks)
    detail = next(check.detail for check in checks if check.name == "trusted keys")
    assert "north" in detail
    assert "server" in detail
    assert "south" not in detail


def test_a_hospital_that_calls_itself_the_coordinator_is_refused_whatever_its_key(folder: Path) -> None:
    stranger = Ed25519PrivateKey.generate()

    def change(certificate: dict[str, Any]) -> None:
        statement = next(s for s in certificate["statements"] if s["site"] == "south")
        statement |= {"site": "server", "public_key": keys.public_hex(stranger)}
        sign_again(statement, stranger)
        heads = certificate["ledger_heads"]
        heads["server"] = heads.pop("south")

    assert "statements" in rewrite(folder, change, signer=SERVER)
    checks = verify_sampler(folder, trusted_keys={name: TRUSTED[name] for name in ("north", "server")})
    assert {"statements", "trusted keys"} <= failed(checks)


def test_two_hospitals_with_one_key_are_refused(folder: Path) -> None:
    def change(certificate: dict[str, Any]) -> None:
        certificate["statements"][1]["public_key"] = keys.public_hex(SITES["north"])
        sign_again(certificate["statements"][1], SITES["north"])

    assert rewrite(folder, change, signer=SERVER) == {"statements"}


def test_a_file_that_nobody_signed_fails(folder: Path) -> None:
    (folder / "patients.csv").write_text("x")
    assert failed(verify_sampler(folder)) == {"no other file"}


def test_a_link_in_place_of_a_file_fails(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    assert failed(verify_sampler(folder)) == {"file model.safetensors"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": "ghostnet-certificate/1"}',
        b'{"format":NaN}',
        b"7",
    ],
)
def test_what_is_no_certificate_fails_and_never_raises(folder: Path, content: bytes) -> None:
    (folder / "certificate.json").write_bytes(content)
    assert "certificate form" in failed(verify_sampler(folder)) | {"certificate form"}
    assert failed(verify_sampler(folder))


def test_a_missing_certificate_or_folder_fails(folder: Path) -> None:
    (folder / "certificate.json").unlink()
    for place in (folder, folder / "none", folder / "README.md"):
        assert failed(verify_sampler(place)) == {"certificate form"}


@pytest.mark.parametrize("kind", ["null", "list", "text", "number", "dict"])
def test_a_field_of_a_wrong_type_fails_and_never_raises(folder: Path, kind: str) -> None:
    certificate = json.loads((folder / "certificate.json").read_text())
    value = {"null": None, "list": [1], "text": "x", "number": 7, "dict": {"x": 1}}[kind]
    for field in certificate:
        if field != "format":
            bad = {**certificate, field: value}
            (folder / "certificate.json").write_bytes(certificate_bytes(bad))
            assert "server signature" in failed(verify_sampler(folder)), field


def test_no_certificate_is_made_from_statements_about_something_else() -> None:
    statement = site_statement(
        site="north",
        run_id="run-1",
        plan=plan(),
        weights_sha256="a" * 64,
        ledger_head="c" * 64,
        key=SITES["north"],
        unit="patient",
    )
    build: dict[str, Any] = {"plan": plan(), "run_id": "run-1", "weights_sha256": "a" * 64, "config_sha256": "b" * 64}
    build_certificate(**build, statements=[statement], server_key=SERVER)
    for change in ({"run_id": "run-2"}, {"weights_sha256": "b" * 64}, {"plan": plan(steps=2)}):
        with pytest.raises(VerifyError, match="another run, plan or weights"):
            build_certificate(**{**build, **change}, statements=[statement], server_key=SERVER)
    with pytest.raises(VerifyError, match="no hospital has signed"):
        build_certificate(**build, statements=[], server_key=SERVER)


# Pooled runs


@cache
def pooled(hospitals_per_patient: int = 1) -> Plan:
    """The plan with two hospitals that add up one sum."""
    federation = replace(
        plan().federation, share="pooled", hospitals=2, min_hospitals=2, hospitals_per_patient=hospitals_per_patient
    )
    return replace(plan(), federation=federation, privacy=replace(plan().privacy, epsilon=20.0))


def pooled_detail(folder: Path, **trusted: Any) -> str:
    checks = verify_sampler(folder, **trusted)
    assert failed(checks) == set()
    return next(check.detail for check in checks if check.name == "pooled hospitals")


def test_keys_of_first_use_are_said_with_the_sites_and_the_epsilon_that_holds(tmp_path: Path) -> None:
    coalition = f"{claim(pooled()).epsilon_pld_coalition:.4f}"
    mixed = publish(tmp_path / "mixed", pooled(), known=("pinned", "first use"))
    detail = pooled_detail(mixed)
    assert "south" in detail
    assert "north" not in detail
    assert "first use" in detail
    assert coalition in detail
    assert "first use" not in pooled_detail(mixed, trusted_keys=TRUSTED)
    assert "first use" not in pooled_detail(publish(tmp_path / "pinned", pooled(), known=("pinned", "pinned")))


@pytest.mark.parametrize(
    "masked_with",
    [{"keys": "known"}, {"keys": ""}, {"keys": None}, {"keys": ["pinned"]}, {"more": "pinned"}, {"keys": KeyError}],
)
def test_a_pooled_statement_says_how_keys_were_known_and_nothing_else(masked_with: Any, tmp_path: Path) -> None:
    folder = publish(tmp_path / "sampler", pooled(), known=("pinned", "pinned"))

    def change(certificate: dict[str, Any]) -> None:
        statement = certificate["statements"][0]
        statement["masked_with"].update(masked_with)
        if masked_with.get("keys") is KeyError:
            del statement["masked_with"]["keys"]
        sign_again(statement, SITES["north"])

    assert rewrite(folder, change, signer=SERVER) == {"pooled hospitals"}


def test_a_coalitions_epsilon_of_another_machine_may_differ_in_its_last_digit_and_not_be_understated(
    tmp_path: Path,
) -> None:
    folder = publish(tmp_path / "sampler", pooled(), known=("pinned", "pinned"))

    def shift(by: float) -> set[str]:
        def change(certificate: dict[str, Any]) -> None:
            certificate["statements"][0]["epsilon_pld_coalition"] += by
            sign_again(certificate["statements"][0], SITES["north"])

        return rewrite(folder, change, signer=SERVER)

    assert shift(1e-4) == set()
    assert shift(-2e-4) == set()  # by 1e-4 below what is recomputed
    assert shift(-0.01) == {"statement north: plan"}
    assert shift(1.0) == set()


def test_the_coalitions_epsilon_covers_a_patient_of_several_hospitals(tmp_path: Path) -> None:
    one, two = plan_epsilons(pooled()), plan_epsilons(pooled(2))
    name = "epsilon_pld_coalition_all_hospitals"
    assert name not in one
    assert two[name] > max(two["epsilon_pld_coalition"], two["epsilon_pld_all_hospitals"] - 1e-3)
    steps = plan_events(pooled(2))[-1]
    worst = coalition_events([steps], 2)[0]
    assert isinstance(worst, PoissonGaussianSteps)
    q, sigma = pooled().privacy.sampling_rate, pooled().privacy.noise_multiplier
    assert worst.sampling_rate == pytest.approx(1 - (1 - q) ** 2)
    assert worst.noise_multiplier == pytest.approx(sigma * math.sqrt(2 / 2) / 2)
    assert coalition_events([steps]) == coalition_events([steps], 1)
    folder = publish(tmp_path / "sampler", pooled(2), known=("first use", "first use"))
    assert f"{two[name]:.4f} ({name})" in pooled_detail(folder)
    assert rewrite(folder, lambda c: c.update({name: two["epsilon_pld_coalition"]}), signer=SERVER) == {"epsilon"}


# Public images

PUBLIC = {"source": "start.npz", "sha256": "ab" * 32}


def with_public(named: str) -> Plan:
    return replace(plan(), warm_start=replace(plan().warm_start, public=named))


def test_public_images_are_named_as_the_plan_names_them(tmp_path: Path) -> None:
    given = publish(tmp_path / "file", with_public("images/start.npz"), public_images=PUBLIC)
    assert failed(verify_sampler(given)) == set()
    drawn = publish(tmp_path / "drawn", with_public("procedural"), public_images={**PUBLIC, "source": "procedural"})
    assert failed(verify_sampler(drawn)) == set()
    for wrong in (
        {**PUBLIC, "source": "procedural"},
        {**PUBLIC, "source": "images/start.npz"},
        {**PUBLIC, "sha256": "AB" * 32},
        {**PUBLIC, "sha256": "ab" * 31},
        {**PUBLIC, "sha256": "ab" * 32 + "\n"},
        {**PUBLIC, "sha256": 7},
        {**PUBLIC, "note": "anonymous"},
        {"source": "start.npz"},
        {},
        "start.npz",
        None,
    ):
        assert rewrite(given, lambda c, wrong=wrong: c.update(public_images=wrong), signer=SERVER) == {"mechanism"}
