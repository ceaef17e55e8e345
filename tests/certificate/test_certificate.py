"""The certificate: every byte of the folder is bound, every claim recomputed, each lie caught by its own check."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import load_file

from ghostnet.accounting.epsilon import EPSILON_STEP
from ghostnet.accounting.events import PoissonGaussianSteps, coalition_events
from ghostnet.accounting.plan_cost import claim, plan_events
from ghostnet.certificate.certificate import (
    Check,
    build_certificate,
    certificate_bytes,
    file_sha256,
    not_shown,
    verify_sampler,
)
from ghostnet.errors import VerifyError
from ghostnet.evidence import keys
from ghostnet.evidence.statement import STATEMENT_KEYS, Lifetime, mechanism, plan_epsilons
from ghostnet.exchange.arrays import to_bytes
from ghostnet.plan import Plan
from ghostnet.plan.unit import UNITS, lifetime_protects, protects
from tests.command_line import ghostnet
from tests.plans import tiny_plan
from tests.samplers import (
    PUBLIC_SHA256,
    SERVER,
    SITES,
    TRUSTED,
    publish,
    requests_of,
    statement_of,
    transcript_of,
    with_federation,
)

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]

FILES = ("README.md", "config.json", "model.safetensors", "samples.png", "transcript.safetensors")


@cache
def plan(**privacy: Any) -> Plan:
    """The tiny plan with its noise given, for patients of up to two hospitals."""
    tiny = tiny_plan(patients="patients = 20\nhospitals_per_patient = 2")
    return replace(tiny, privacy=replace(tiny.privacy, noise_multiplier=3.0, **privacy))


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published sampler's folder."""
    return publish(tmp_path_factory.mktemp("published") / "sampler", plan())


@pytest.fixture
def folder(master: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(master, tmp_path / "sampler"))


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


def faults(folder: Path) -> set[str]:
    """Checks that fail, with all keys given."""
    return failed(verify_sampler(folder, trusted_keys=TRUSTED))


def rewrite(
    folder: Path, change: Callable[[dict[str, Any]], None], *, signer: Ed25519PrivateKey | None = None
) -> set[str]:
    """Changes the certificate in its right byte form, signed again by `signer`; returns the checks that fail.

    Whose keys signed is not among them.
    """
    certificate = json.loads((folder / "certificate.json").read_text())
    change(certificate)
    if signer is not None:
        certificate.pop("signature", None)
        certificate["server_public_key"] = keys.public_hex(signer)
        certificate["signature"] = keys.sign(signer, certificate)
    (folder / "certificate.json").write_bytes(certificate_bytes(certificate))
    return failed(verify_sampler(folder)) - {"keys"}


def sign_again(statement: dict[str, Any], key: Ed25519PrivateKey) -> None:
    del statement["signature"]
    statement["signature"] = keys.sign(key, statement)


def test_an_untouched_sampler_passes_every_check(folder: Path) -> None:
    checks = verify_sampler(folder, trusted_keys=TRUSTED)
    assert failed(checks) == set()
    names = [check.name for check in checks]
    assert names[0] == "keys"
    assert {*names} >= {"certificate form", "server signature", "plan hash", "mechanism", "epsilon", "statements"}
    assert {*names} >= {"weights", "content README.md", "content config.json", *(f"file {name}" for name in FILES)}
    looked_at = ("signature", "plan", "answers", "epsilon", "software")
    assert {*names} >= {f"statement {site}: {what}" for site in SITES for what in looked_at}


def test_without_keys_the_first_check_says_unknown_keys_and_nothing_else_fails(folder: Path) -> None:
    checks = verify_sampler(folder)
    assert failed(checks) == {"keys"}
    assert checks[0].detail.startswith("unknown keys: ")
    assert all(TRUSTED[site] in checks[0].detail for site in SITES)


def test_known_keys_over_something_else_than_they_signed_are_no_signature(folder: Path) -> None:
    rewrite(folder, lambda c: c["statements"][1].update(spent=["round-1"]), signer=SERVER)
    first = verify_sampler(folder, trusted_keys=TRUSTED)[0]
    assert (first.name, first.passed) == ("keys", False)
    assert "what south signed was changed" in first.detail


def test_the_certificate_holds_what_the_contract_names(folder: Path) -> None:
    certificate = json.loads((folder / "certificate.json").read_text())
    promised = claim(plan())
    assert certificate["plan_hash"] == plan().hash()
    assert certificate["weights_sha256"] == file_sha256(folder / "model.safetensors")
    assert certificate["noise_multiplier"] == plan().privacy.noise_multiplier
    assert (certificate["sampling_rate"], certificate["steps"], certificate["clip_norm"]) == (0.3, 4, 1.0)
    assert (certificate["unit"], certificate["adjacency"]) == (promised.unit, promised.adjacency)
    for name, epsilon in plan_epsilons(plan()).items():
        assert certificate[name] == pytest.approx(epsilon + EPSILON_STEP, abs=1e-12)
        assert certificate[name] > epsilon
    assert certificate["epsilon_pld_all_hospitals"] > certificate["epsilon_pld"]
    assert certificate["ledger_heads"] == {"north": "c" * 64, "south": "c" * 64}
    assert certificate["not_covered"]
    assert all(set(statement) == STATEMENT_KEYS for statement in certificate["statements"])


@pytest.mark.parametrize("name", sorted(FILES))
def test_one_changed_byte_of_a_file_fails_the_check_of_that_file(folder: Path, name: str) -> None:
    follows = {f"content {name}"} if name in ("README.md", "config.json") else set()
    follows |= {"weights"} if name.endswith(".safetensors") else set()
    good = (folder / name).read_bytes()
    for bad in (*(flipped(good, place) for place in range(12)), good + b"\0", good[:-1], b""):
        (folder / name).write_bytes(bad)
        assert f"file {name}" in faults(folder) <= {f"file {name}"} | follows
    (folder / name).unlink()
    assert f"file {name}" in faults(folder) <= {f"file {name}"} | follows


def flipped(good: bytes, place: int) -> bytes:
    bad = bytearray(good)
    bad[place] ^= 1 << place % 8
    return bytes(bad)


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


def test_a_number_that_is_written_otherwise_fails_too(folder: Path) -> None:
    path = folder / "certificate.json"
    good = path.read_text()
    for number, otherwise in (('"clip_norm": 1,', '"clip_norm": 1.0,'), ("1e-05", "0.00001"), ("1e-05", "1E-5")):
        assert number in good
        path.write_text(good.replace(number, otherwise))
        assert faults(folder) == {"certificate form"}, otherwise


def test_spacing_that_means_nothing_fails_too(folder: Path) -> None:
    path = folder / "certificate.json"
    certificate = json.loads(path.read_text())
    for text in (json.dumps(certificate), path.read_text() + "\n", path.read_text().replace(": ", ":  ", 1)):
        path.write_text(text)
        assert faults(folder) == {"certificate form"}


def test_a_changed_plan_fails_its_hash_and_everything_that_follows_from_it(folder: Path) -> None:
    def change(certificate: dict[str, Any]) -> None:
        certificate["plan"]["privacy"]["steps"] = 2

    assert rewrite(folder, change) >= {"server signature", "plan hash", "mechanism", "statement north: plan"}


def test_a_coordinator_that_signs_a_weaker_plan_is_caught_by_the_hospitals_statements(folder: Path) -> None:
    weaker = plan(steps=2)

    def change(certificate: dict[str, Any]) -> None:
        certificate.update(plan=weaker.to_dict(), plan_hash=weaker.hash(), **mechanism(weaker), **plan_epsilons(weaker))

    names = rewrite(folder, change, signer=SERVER)
    assert names >= {
        "statement north: plan",
        "statement south: plan",
        "statement north: answers",
        "content config.json",
    }


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda c: c.update(epsilon_pld=c["epsilon_pld"] - 0.001), "epsilon"),
        (lambda c: c.update(epsilon_rdp=c["epsilon_rdp"] * 0.99), "epsilon"),
        (lambda c: c.update(epsilon_pld_all_hospitals=c["epsilon_pld"]), "epsilon"),
        (lambda c: c.update(epsilon_pld="0.1"), "epsilon"),
        (lambda c: c.update(epsilon_pld=True), "epsilon"),
        (lambda c: c.update(epsilon_pld=c["epsilon_pld"] - 1e-4), "epsilon"),
        (lambda c: c.update(epsilon_pld=c["epsilon_pld"] - 1.9e-4), "epsilon"),
        (lambda c: c.update(epsilon_pld=c["epsilon_pld"] + 1), "epsilon"),
        (lambda c: c.update(epsilon_pld=2**53 - 1), "epsilon"),
        (lambda c: c.update(steps=c["steps"] + 0.5), "mechanism"),
        (lambda c: c.update(hospitals_per_patient=True), "mechanism"),
        (lambda c: c.update(noise_multiplier=9.0), "mechanism"),
        (lambda c: c.update(unit="image"), "mechanism"),
        (lambda c: c.update(adjacency="replace one patient"), "mechanism"),
        (lambda c: c.update(not_covered=[]), "mechanism"),
        (lambda c: c.update(mechanism="anonymous"), "mechanism"),
        (lambda c: c.update(events=c["events"][:1]), "mechanism"),
        (lambda c: c.update(note="HIPAA compliant"), "mechanism"),
        (lambda c: c.update(code_version="9.9"), "mechanism"),
        (lambda c: c.update(delta=1e-3), "mechanism"),
        (lambda c: c.update(statements=[]), "statements"),
        (lambda c: c["statements"].append(copy.deepcopy(c["statements"][0])), "statements"),
        (lambda c: c["ledger_heads"].update(north="d" * 64), "statements"),
        (lambda c: c["files"].pop("README.md"), "statements"),
        (lambda c: c["files"].pop("model.safetensors"), "file model.safetensors"),
        (lambda c: c["files"].update({"../x": "0" * 64}), "statements"),
        (lambda c: c.update(weights_sha256="0" * 64), "mechanism"),
        (lambda c: c["statements"].reverse(), "statements"),
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


@pytest.mark.parametrize("value", [10**400, 2**53, "\ud800"])
def test_what_canonical_json_has_no_form_for_fails_the_signature(folder: Path, value: object) -> None:
    names = rewrite(folder, lambda certificate: certificate.update(epsilon_pld=value))
    assert {"server signature", "epsilon"} <= names


@pytest.mark.parametrize("field", sorted(STATEMENT_KEYS - {"signature"}))
def test_any_field_of_a_statement_that_changes_fails_that_hospitals_signature(folder: Path, field: str) -> None:
    def change(certificate: dict[str, Any]) -> None:
        value = certificate["statements"][0][field]
        certificate["statements"][0][field] = value + 1 if isinstance(value, float) else "0" * 64

    names = rewrite(folder, change, signer=SERVER)
    assert any(name.startswith("statement ") and name.endswith(": signature") for name in names)
    assert "statement south: signature" not in names


def lower(statement: dict[str, Any], *path: str, by: float) -> None:
    for key in path[:-1]:
        statement = statement[key]
    statement[path[-1]] -= by


@pytest.mark.parametrize(
    ("weaken", "name"),
    [
        (lambda s: s["events"][0].update(noise_multiplier=9.0), "answers"),
        (lambda s: s["events"][-1].update(steps=1), "answers"),
        (lambda s: s["events"].pop(), "answers"),
        (lambda s: s.update(events=[]), "answers"),
        (lambda s: s.update(events=[{"mechanism": "free"}]), "epsilon"),
        (lambda s: s["answered"].pop(), "answers"),
        (lambda s: s["answered"].append(dict(s["answered"][0])), "answers"),
        (lambda s: s["answered"][0].update(request="round-3"), "answers"),
        (lambda s: s["answered"][0].update(note="x"), "answers"),
        (lambda s: s["answered"][0].update(digest="x"), "answers"),
        (lambda s: s.update(spent=["round-1"]), "answers"),
        (lambda s: s.update(spent=["round-7"]), "answers"),
        (lambda s: s.update(spent={}), "answers"),
        (lambda s: s.update(epsilon_pld=0.5), "epsilon"),
        (lambda s: s.update(epsilon_rdp=0.5), "epsilon"),
        (lambda s: s.update(epsilon_pld=str(s["epsilon_pld"])), "epsilon"),
        (lambda s: lower(s, "epsilon_pld", by=1.9e-4), "epsilon"),
        (lambda s: lower(s, "epsilon_rdp", by=1.9e-4), "epsilon"),
        (lambda s: lower(s, "reserved", "epsilon_pld", by=1.9e-4), "epsilon"),
        (lambda s: lower(s, "reserved", "epsilon_rdp_all_hospitals", by=1.9e-4), "epsilon"),
        (lambda s: s["reserved"].pop("epsilon_rdp"), "epsilon"),
        (lambda s: lower(s, "lifetime", "epsilon_pld", by=1.9e-4), "epsilon"),
        (lambda s: s["lifetime"].update(max_epsilon=1.0), "epsilon"),
        (lambda s: s["lifetime"].update(protects="anonymous"), "epsilon"),
        (lambda s: s["lifetime"].update(protects=protects("image")), "epsilon"),
        (lambda s: s["lifetime"].pop("adoptions"), "epsilon"),
        (lambda s: s["lifetime"].update(adoptions=-1), "epsilon"),
        (lambda s: s["lifetime"].update(adoptions=False), "epsilon"),
        (lambda s: s.update(unit="image", protects=protects("image")), "plan"),
        (lambda s: s.update(protects="anonymous"), "plan"),
        (lambda s: s.update(delta=1e-3), "plan"),
        (lambda s: s.update(files={**s["files"], "samples.png": "0" * 64}), None),
        (lambda s: s.update(plan_hash="0" * 64), "plan"),
        (lambda s: s.update(run_id="run-0"), "plan"),
        (lambda s: s.update(ledger_head="x"), "plan"),
        (lambda s: s["software"].pop("torch"), "software"),
        (lambda s: s["software"].update(client_sha256="mine"), "software"),
        (lambda s: s.update(format="ghostnet-statement/1"), "signature"),
        (lambda s: s.update(note="anonymous"), "signature"),
    ],
)
def test_a_hospital_that_signs_something_weaker_or_else_is_caught(folder: Path, weaken: Any, name: str | None) -> None:
    def change(certificate: dict[str, Any]) -> None:
        statement = certificate["statements"][0]
        weaken(statement)
        sign_again(statement, SITES["north"])
        certificate["ledger_heads"]["north"] = statement["ledger_head"]

    names = rewrite(folder, change, signer=SERVER)
    assert (f"statement north: {name}" if name else "statements") in names
    assert not any(name.startswith("statement south") for name in names)


def test_an_epsilon_of_another_machine_may_be_a_step_higher_and_is_never_below(folder: Path) -> None:
    def signed(by: float) -> set[str]:
        def change(certificate: dict[str, Any]) -> None:
            for statement in certificate["statements"]:
                for part in (statement, statement["reserved"], statement["lifetime"]):
                    part["epsilon_pld"] = round(part["epsilon_pld"] + by, 10)
                sign_again(statement, SITES[statement["site"]])
            certificate["epsilon_pld"] = certificate["statements"][0]["reserved"]["epsilon_pld"]

        return rewrite(folder, change, signer=SERVER)

    assert signed(0) == set()
    assert signed(-EPSILON_STEP) == set()  # what is recomputed here, to the digit
    assert signed(-EPSILON_STEP) >= {"epsilon", "statement north: epsilon"}  # now a step below it


def test_a_signature_of_another_key_fails(folder: Path) -> None:
    stranger = Ed25519PrivateKey.generate()

    def same_public_key(certificate: dict[str, Any]) -> None:
        sign_again(certificate["statements"][0], stranger)

    assert "statement north: signature" in rewrite(folder, same_public_key, signer=SERVER)

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
    assert "keys" in failed(checks)
    detail = next(check.detail for check in checks if check.name == "keys")
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
    assert {"statements", "keys"} <= failed(checks)


def test_two_hospitals_with_one_key_are_refused(folder: Path) -> None:
    def change(certificate: dict[str, Any]) -> None:
        certificate["statements"][1]["public_key"] = keys.public_hex(SITES["north"])
        sign_again(certificate["statements"][1], SITES["north"])

    assert "statements" in rewrite(folder, change, signer=SERVER)


@pytest.mark.parametrize("name", ["patients.csv", ".hidden", "evil.py", "other.safetensors", "sub/"])
def test_a_file_that_nobody_signed_fails_and_is_named(folder: Path, name: str) -> None:
    (folder / name).mkdir() if name.endswith("/") else (folder / name).write_text("x")
    checks = verify_sampler(folder, trusted_keys=TRUSTED)
    assert failed(checks) == {"no other file"}
    assert name.strip("/") in next(check.detail for check in checks if check.name == "no other file")


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_link_in_place_of_a_file_fails(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    assert {f"file {name}"} <= faults(folder) <= {f"file {name}", f"content {name}", "weights"}  # and it is not read


def told_elsewhere(code: str, folders: list[Path]) -> list[Any]:
    """A line of JSON for each folder, from a process of its own with 8 GB, and time for whatever ends at all."""
    limit = (
        "import json, resource, sys; from pathlib import Path\nresource.setrlimit(resource.RLIMIT_AS, (8 << 30,) * 2)\n"
    )
    command = [sys.executable, "-c", limit + code, *map(str, folders)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"after {len(done.stdout.splitlines())} of {folders}: {done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("kind", ["pipe", "endless link"])
def test_what_never_ends_is_named_and_not_read(master: Path, tmp_path: Path, kind: str) -> None:
    """A pipe would wait for a writer and a link to a device would fill the memory: no check opens either."""
    names = [*FILES, "certificate.json"]
    folders = [Path(shutil.copytree(master, tmp_path / name)) for name in names]
    for folder, name in zip(folders, names, strict=True):
        path = folder / name
        path.unlink()
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    code = "from ghostnet.certificate.certificate import verify_sampler as v\n"
    code += "for f in sys.argv[1:]: print(json.dumps([c.name for c in v(Path(f)) if not c.passed]), flush=True)"
    for name, failed_checks in zip(names, told_elsewhere(code, folders), strict=True):
        assert ("certificate form" if name == "certificate.json" else f"file {name}") in failed_checks


@pytest.mark.parametrize("kind", ["pipe", "link to endless zeros", "folder"])
def test_what_is_no_file_of_a_sampler_is_named_and_never_read(master: Path, tmp_path: Path, kind: str) -> None:
    """In a process of its own: reading a pipe would never end, and reading zeros not before memory does."""
    spoilt = {tmp_path / "files": sorted(FILES), tmp_path / "certificate": ["certificate.json"]}
    for folder, names in spoilt.items():
        shutil.copytree(master, folder)
        for name in names:
            (folder / name).unlink()
            if kind == "pipe":
                os.mkfifo(folder / name)
            elif kind == "folder":
                (folder / name).mkdir()
            else:
                (folder / name).symlink_to("/dev/zero")
    code = "from tests.command_line import ghostnet\n"
    code += "for f in sys.argv[1:]: d = ghostnet('verify', f, check=False); "
    code += "print(json.dumps([d.returncode, d.stdout, d.stderr]), flush=True)"
    for names, (status, stdout, stderr) in zip(spoilt.values(), told_elsewhere(code, list(spoilt)), strict=True):
        assert status == 9, stderr
        assert all(name in stdout for name in names)
        assert "Traceback" not in stderr


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["words", "JSON"])
def test_a_certificate_commands_no_terminal(folder: Path, form: tuple[str, ...]) -> None:
    """As site, version and name of a field, in a process that prints it."""
    words = "\x1b[2J\x1b[1;1H pass \ud800\u202e"

    def change(certificate: dict[str, Any]) -> None:
        certificate["statements"][0]["site"] = words
        certificate["statements"][1]["software"]["torch"] = words
        certificate[words] = 1

    rewrite(folder, change)  # nobody can sign it: canonical JSON has no form for half a surrogate pair
    done = ghostnet("verify", folder, *form, check=False)
    assert done.returncode == 9, done.stderr
    assert "Traceback" not in done.stderr
    assert (done.stdout + done.stderr).replace("\n", "").isprintable()


def test_a_certificate_of_endless_statements_is_not_told_line_by_line(folder: Path) -> None:
    certificate = json.loads((folder / "certificate.json").read_text())
    certificate["statements"] = [{}] * 1001
    (folder / "certificate.json").write_bytes(certificate_bytes(certificate))
    (check,) = verify_sampler(folder, trusted_keys=TRUSTED)
    assert check.name == "certificate form"
    assert "more than 1000 statements" in check.detail


def test_a_repeated_key_is_named(folder: Path) -> None:
    path = folder / "certificate.json"
    path.write_bytes(path.read_bytes().replace(b"{\n", b'{\n  "epsilon_pld": 0.1,\n', 1))
    (check,) = verify_sampler(folder, trusted_keys=TRUSTED)
    assert (check.name, check.passed) == ("certificate form", False)
    assert "'epsilon_pld' is repeated" in check.detail


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": "ghostnet-certificate/2"}',
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
    files = dict.fromkeys(FILES, "a" * 64)
    north, south = (statement_of(plan(), site, files, {}) for site in SITES)
    build_certificate(plan=plan(), statements=[north, south], server_key=SERVER)
    other = (
        statement_of(plan(), "south", files, {}, run_id="cd" * 16),
        statement_of(plan(), "south", {**files, "samples.png": "b" * 64}, {}),
        statement_of(plan(steps=2), "south", files, {}),
    )
    for statement in other:
        with pytest.raises(VerifyError, match="another run, plan or files"):
            build_certificate(plan=plan(), statements=[north, statement], server_key=SERVER)
    with pytest.raises(VerifyError, match="another run, plan or files"):
        build_certificate(plan=plan(steps=2), statements=[north], server_key=SERVER)
    with pytest.raises(VerifyError, match="no hospital has signed"):
        build_certificate(plan=plan(), statements=[], server_key=SERVER)


# Files that a coordinator makes up and has signed: a hospital that only compared digests would sign them.


def signed_files(folder: Path, write: Callable[[Path], object]) -> set[str]:
    """Changes files and has everybody sign their new digests; returns the checks that fail, with all keys given."""
    write(folder)

    def change(certificate: dict[str, Any]) -> None:
        certificate["files"] = {name: file_sha256(folder / name) for name in certificate["files"]}
        certificate["weights_sha256"] = certificate["files"]["model.safetensors"]
        for statement in certificate["statements"]:
            statement["files"] = certificate["files"]
            sign_again(statement, SITES[statement["site"]])

    rewrite(folder, change, signer=SERVER)
    return faults(folder)


def test_a_card_that_claims_more_is_named_even_where_every_hospital_signed_it(folder: Path) -> None:
    assert signed_files(folder, lambda f: None) == set()
    card = "# Model card\nEpsilon 0.01, delta 1e-12. 200 hospitals. Anonymous data.\n"
    assert signed_files(folder, lambda f: (f / "README.md").write_text(card)) == {"content README.md"}


@pytest.mark.parametrize("change", ["labels", "plan_hash", "label_prior", "name", "weights_sha256", "run_id"])
def test_a_config_with_another_meaning_is_named_even_where_every_hospital_signed_it(folder: Path, change: str) -> None:
    def write(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        part = config["image"] if change.startswith("label") else config
        part[change] = part[change][::-1] if change == "labels" else [0.9, 0.1] if change == "label_prior" else "1" * 64
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    assert signed_files(folder, write) == {"content config.json"}


def test_other_weights_are_named_even_where_every_hospital_signed_them(folder: Path) -> None:
    def write(folder: Path) -> None:
        arrays = load_file(folder / "model.safetensors")
        name = sorted(arrays)[0]
        arrays[name] = arrays[name].copy()
        arrays[name].view(np.uint32).flat[0] ^= 1  # the last bit of one weight
        (folder / "model.safetensors").write_bytes(to_bytes(arrays))

    checks = signed_files(folder, write)
    assert checks == {"weights", "content config.json", "content README.md"}


# What makes the weights


def test_finish_straight_after_join_gives_no_certificate_of_trained_weights(tmp_path: Path) -> None:
    nothing = {site: {"finish": "d" * 64} for site in SITES}
    folder = publish(tmp_path / "sampler", plan(), requests=nothing)
    checks = verify_sampler(folder, trusted_keys=TRUSTED)
    assert failed(checks) == {"weights"}
    said = {check.name: check.detail for check in checks}
    assert "the plan makes the weights of its rounds, which 0 of at least 1 hospitals answered" in said["weights"]
    assert said["statement north: answers"] == "answered finish: nothing of its patients is in the weights"
    assert "what it answered costs 1." in said["statement north: epsilon"]


@pytest.mark.parametrize("federation", [{"rounds": 0}, {"share": "pooled", "hospitals": 2, "min_hospitals": 2}])
def test_nor_of_a_fit_to_a_warm_start_or_of_pooled_steps_that_nobody_answered(
    federation: dict[str, Any], tmp_path: Path
) -> None:
    asked = with_federation(plan(), **federation)
    if asked.federation.rounds == 0:
        asked = replace(asked, privacy=replace(asked.privacy, steps=0))
    known = ("pinned", "pinned") if asked.federation.is_pooled else ()
    asked = replace(asked, privacy=replace(asked.privacy, epsilon=20.0))
    assert faults(publish(tmp_path / "good", asked, known=known)) == set()
    nothing = {site: {"finish": "d" * 64} for site in SITES}
    assert faults(publish(tmp_path / "bad", asked, known=known, requests=nothing)) == {"weights"}


def test_a_hospital_that_answered_nothing_is_said_to_be_in_nothing(tmp_path: Path) -> None:
    record, _ = transcript_of(plan())
    asked = {"north": requests_of(plan(), record, "north"), "south": {}}
    checks = verify_sampler(publish(tmp_path / "sampler", plan(), requests=asked), trusted_keys=TRUSTED)
    said = {check.name: check for check in checks}
    assert said["statement south: answers"].detail == "answered nothing: nothing of its patients is in the weights"
    assert not said["weights"].passed
    assert "of south to" in said["weights"].detail
    assert "of which it signed none" in said["weights"].detail


def test_a_request_that_died_is_listed_as_charged_without_an_answer(tmp_path: Path) -> None:
    record, _ = transcript_of(plan())
    asked = {site: requests_of(plan(), record, site) | {"round-1": ""} for site in SITES}
    checks = verify_sampler(publish(tmp_path / "sampler", plan(), requests=asked), trusted_keys=TRUSTED)
    assert failed(checks) == set()
    said = {check.name: check.detail for check in checks}
    assert said["statement north: answers"].endswith("finish; charged and died without an answer: round-1")
    certificate = json.loads((tmp_path / "sampler" / "certificate.json").read_text())
    statement = certificate["statements"][0]
    assert statement["epsilon_pld"] < statement["reserved"]["epsilon_pld"]
    assert statement["events"][-1]["steps"] == plan().round_steps(2)


def test_a_lifetime_epsilon_on_an_adopted_ledger_says_that_earlier_runs_may_be_missing(tmp_path: Path) -> None:
    for adoptions, told in ((0, False), (2, True)):
        lifetime = Lifetime(
            epsilon_pld=25.0,
            epsilon_rdp=29.0,
            max_epsilon=30.0,
            delta=1e-5,
            protects=lifetime_protects(UNITS),  # an earlier run of it was per image
            adoptions=adoptions,
        )
        checks = verify_sampler(publish(tmp_path / str(adoptions), plan(), lifetime=lifetime), trusted_keys=TRUSTED)
        assert failed(checks) == set()
        (said,) = (check.detail for check in checks if check.name == "statement north: epsilon")
        assert "per image: in some runs this data named no patients" in said
        assert ("its ledger was ADOPTED 2 time(s): earlier runs may be missing" in said) == told
        assert ("ADOPTED" in said) == told


def test_it_ends_with_what_a_certificate_does_not_show(folder: Path, tmp_path: Path) -> None:
    words = " / ".join(not_shown(folder))
    for part in ("rounds before the last", "samples.png", "other patients", "software really ran", "other runs"):
        assert part in words
    pooled_words = not_shown(publish(tmp_path / "pooled", pooled(), known=("pinned", "pinned")))
    assert "how the weights follow from the hospitals' pooled steps" in pooled_words[0]
    moved = publish(tmp_path / "moved", with_federation(plan(), server_optimizer="fedavgm"))
    assert faults(moved) == set()
    assert "what fedavgm started the last round from" in not_shown(moved)[0]
    assert not_shown(tmp_path) == ()


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
    assert failed(checks) - {"keys"} == set()
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

    assert "pooled hospitals" in rewrite(folder, change, signer=SERVER)


def test_a_coalitions_epsilon_is_never_understated(tmp_path: Path) -> None:
    folder = publish(tmp_path / "sampler", pooled(), known=("pinned", "pinned"))

    def lowered(by: float) -> set[str]:
        def change(certificate: dict[str, Any]) -> None:
            for statement in certificate["statements"]:
                lower(statement, "reserved", "epsilon_pld_coalition", by=by)
                sign_again(statement, SITES[statement["site"]])
            certificate["epsilon_pld_coalition"] = certificate["statements"][0]["reserved"]["epsilon_pld_coalition"]

        return rewrite(folder, change, signer=SERVER)

    assert lowered(0) == set()
    assert lowered(1.9e-4) >= {"epsilon", "statement north: epsilon", "statement south: epsilon"}


def test_thousands_of_steps_are_one_entry_and_those_that_died_are_named(tmp_path: Path) -> None:
    many = replace(pooled(), privacy=replace(pooled().privacy, steps=3000, sampling_rate=0.001, epsilon=100.0))
    record, _ = transcript_of(many)
    asked = {site: requests_of(many, record, site) | {"step-7": ""} for site in SITES}
    folder = publish(tmp_path / "sampler", many, known=("pinned", "pinned"), requests=asked)
    assert faults(folder) == set()
    certificate = json.loads((folder / "certificate.json").read_text())
    steps = certificate["statements"][0]["answered"][-1]
    assert (steps["request"], steps["first"], steps["last"], steps["count"]) == ("steps", 1, 3000, 2999)
    assert certificate["statements"][0]["events"][-1]["steps"] == 2999

    def change(by: dict[str, Any]) -> set[str]:
        def alter(certificate: dict[str, Any]) -> None:
            certificate["statements"][0]["answered"][-1].update(by)
            sign_again(certificate["statements"][0], SITES["north"])

        return rewrite(folder, alter, signer=SERVER)

    for by in ({"count": 3000}, {"last": 3001, "count": 3000}, {"first": 0}, {"last": 10**9}, {"count": True}):
        assert "statement north: answers" in change(by)


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
    assert "epsilon" in rewrite(folder, lambda c: c.update({name: two["epsilon_pld_coalition"]}), signer=SERVER)


# Public images


def with_public(named: str) -> Plan:
    return replace(plan(), warm_start=replace(plan().warm_start, public=named))


def test_public_images_are_named_as_the_plan_names_them_with_the_digest_that_was_signed(tmp_path: Path) -> None:
    given = publish(tmp_path / "file", with_public("images/start.npz"))
    assert faults(given) == set()
    assert json.loads((given / "certificate.json").read_text())["public_images"]["source"] == "start.npz"
    drawn = publish(tmp_path / "drawn", with_public("procedural"))
    assert faults(drawn) == set()
    signed = {"source": "start.npz", "sha256": PUBLIC_SHA256}
    for wrong in (
        {**signed, "source": "procedural"},
        {**signed, "source": "images/start.npz"},
        {**signed, "sha256": "cd" * 32},
        {**signed, "sha256": 7},
        {**signed, "note": "anonymous"},
        {"source": "start.npz"},
        {},
        "start.npz",
        None,
    ):
        names = rewrite(given, lambda c, wrong=wrong: c.update(public_images=wrong), signer=SERVER)
        assert "mechanism" in names


def test_class_shares_that_were_released_are_those_of_the_signed_sums(tmp_path: Path) -> None:
    asked = replace(plan(), image=replace(plan().image, released_prior=True))
    folder = publish(tmp_path / "sampler", asked)
    assert faults(folder) == set()
    prior = json.loads((folder / "config.json").read_text())["image"]["label_prior"]
    assert prior != [0.5, 0.5]

    def write(folder: Path) -> None:
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace(f"{prior[0]}", "0.5").replace(f"{prior[1]}", "0.5"))

    assert signed_files(folder, write) == {"content config.json"}
