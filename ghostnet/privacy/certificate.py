"""The certificate of a published sampler: what was spent of each patient's privacy, checkable by anyone, offline.

Each hospital signs a statement: this run, this plan, these weights, these events, this ledger head. The coordinator
binds the statements to the files of the sampler's folder and signs the whole. `verify_sampler` needs the folder alone;
whoever also holds the parties' public keys passes them in and learns that it was these parties who signed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ghostnet.errors import GhostNetError, VerifyError
from ghostnet.plan import Plan
from ghostnet.privacy import keys
from ghostnet.privacy.accounting import event_from_dict, event_to_dict
from ghostnet.privacy.claim import plan_events
from ghostnet.privacy.statement import (
    SiteStatement,
    code_version,
    events_epsilons,
    mechanism,
    plan_epsilons,
    signed_unit,
    site_statement,
    statement_keys,
)
from ghostnet.privacy.unit import unit_line
from ghostnet.secure_sum import hospitals_sha256
from ghostnet.tables import read_table

__all__ = [
    "Check",
    "SiteStatement",
    "build_certificate",
    "certificate_bytes",
    "file_sha256",
    "site_statement",
    "verify_sampler",
    "write_certificate",
]

FORMAT = "ghostnet-certificate/1"
FILE_NAME = "certificate.json"
_EPSILON_TOLERANCE = 2e-4  # two steps of the grid that epsilon_pld is rounded up to: another machine's last digit
_MOST_BYTES = 10_000_000  # of a certificate that is read at all
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9-]{1,32}")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that `verify_sampler` looked at."""

    name: str
    passed: bool
    detail: str


def build_certificate(
    *,
    plan: Plan,
    run_id: str,
    weights_sha256: str,
    config_sha256: str,
    statements: Sequence[SiteStatement],
    server_key: Ed25519PrivateKey,
    other_files: Mapping[str, str] | None = None,
    public_images: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Binds the hospitals' statements to the sampler's files and signs the whole.

    Args:
        plan: the resolved plan of the run.
        run_id: the run.
        weights_sha256: SHA-256 of model.safetensors.
        config_sha256: SHA-256 of config.json.
        statements: one of each hospital that took part.
        server_key: the coordinator's key.
        other_files: name to SHA-256 of every other file of the folder (README.md, samples.png).
        public_images: `source` and `sha256` of the public images that the generator started from, if there were any.

    Raises:
        VerifyError: there is no statement, or one that is not about this run, plan and weights.
    """
    for statement in statements:
        about = (statement.get("run_id"), statement.get("plan_hash"), statement.get("weights_sha256"))
        if about != (run_id, plan.hash(), weights_sha256):
            raise VerifyError(f"the statement of site {statement.get('site')} is about another run, plan or weights")
    if not statements:
        raise VerifyError("no hospital has signed a statement; a sampler without one is not published")
    certificate: dict[str, Any] = {
        "format": FORMAT,
        "code_version": code_version(),
        "run_id": run_id,
        "plan": plan.to_dict(),
        "plan_hash": plan.hash(),
        "files": {**(other_files or {}), "config.json": config_sha256, "model.safetensors": weights_sha256},
        "weights_sha256": weights_sha256,
        "config_sha256": config_sha256,
        **mechanism(plan),
        **plan_epsilons(plan),
        "ledger_heads": {statement["site"]: statement["ledger_head"] for statement in statements},
        "statements": sorted(statements, key=lambda statement: str(statement["site"])),
        "server_public_key": keys.public_hex(server_key),
        **({"public_images": dict(public_images)} if public_images else {}),
    }
    return {**certificate, "signature": keys.sign(server_key, certificate)}


def certificate_bytes(certificate: Mapping[str, Any]) -> bytes:
    """The one byte form of certificate.json; any other spacing or order fails verification."""
    return (json.dumps(certificate, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode(
        "ascii"
    )


def write_certificate(folder: Path, certificate: Mapping[str, Any]) -> Path:
    """Writes certificate.json into a sampler's folder, whole or not at all."""
    path = folder / FILE_NAME
    fresh = path.with_name(FILE_NAME + ".new")
    fresh.write_bytes(certificate_bytes(certificate))
    return fresh.replace(path)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_sampler(folder: Path, *, trusted_keys: Mapping[str, str] | None = None) -> list[Check]:
    """Checks a sampler's folder against its certificate: files, signatures, plan, and every epsilon recomputed.

    Args:
        folder: README.md, config.json, model.safetensors, samples.png and certificate.json.
        trusted_keys: public keys known from elsewhere of all hospitals, by name; the coordinator's, which is new in
            every run, may be among them as "server". Without them a folder re-made and re-signed as a whole by somebody
            else passes: the checks then name the keys to compare.

    Returns:
        One Check for each thing looked at. The sampler holds what it says if all of them passed.
    """
    found: list[dict[str, Any]] = []
    form = _check("certificate form", lambda: _read_certificate(folder, found))
    if not found:
        return [form]
    certificate = found[0]
    checks = [form, _check("server signature", partial(_server_signature, certificate))]
    plans: list[Plan] = []
    checks.append(_check("plan hash", lambda: _read_plan(certificate, plans)))
    checks.extend(_check(f"file {name}", partial(_file, folder, name, certificate)) for name in _files(certificate))
    checks.append(_check("no other file", partial(_no_other_file, folder, certificate)))
    if plans:
        checks.append(_check("mechanism", partial(_mechanism, certificate, plans[0])))
        checks.append(_check("epsilon", partial(_plan_epsilon, certificate, plans[0])))
        checks.append(_check("statements", partial(_all_statements, certificate)))
        if plans[0].federation.is_pooled:
            checks.append(_check("pooled hospitals", partial(_pooled_hospitals, certificate, plans[0], trusted_keys)))
        checks.extend(_statement_checks(certificate, plans[0]))
    if trusted_keys is not None:
        checks.append(_check("trusted keys", partial(_trusted, certificate, trusted_keys)))
    return checks


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name=name, passed=True, detail=look())
    except VerifyError as error:
        return Check(name=name, passed=False, detail=str(error))
    except (GhostNetError, ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        # The certificate may hold anything; whatever cannot be read does not hold.
        return Check(name=name, passed=False, detail=f"cannot be read: {error}")


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise VerifyError(problem)


def _read_certificate(folder: Path, found: list[dict[str, Any]]) -> str:
    path = folder / FILE_NAME
    _require(path.is_file() and not path.is_symlink(), f"{path} is missing; give the folder of a sampler")
    _require(path.stat().st_size <= _MOST_BYTES, f"{path} has more than {_MOST_BYTES} bytes")
    data = path.read_bytes()
    try:
        certificate = json.loads(data)
    except (ValueError, RecursionError):
        raise VerifyError(f"{path} is not JSON") from None
    _require(isinstance(certificate, dict) and certificate.get("format") == FORMAT, f"{path} is not a {FORMAT}")
    found.append(certificate)
    _require(certificate_bytes(certificate) == data, f"{path} is not in the byte form that was signed")
    return FORMAT


def _server_signature(certificate: dict[str, Any]) -> str:
    document = {key: value for key, value in certificate.items() if key != "signature"}
    public = certificate["server_public_key"]
    _require(
        keys.verify(public, document, certificate["signature"]), "the signature does not hold: something was changed"
    )
    return f"by key {public}"


def _read_plan(certificate: dict[str, Any], plans: list[Plan]) -> str:
    plan = read_table(Plan, certificate["plan"], source=FILE_NAME, error=VerifyError)
    _require(plan.to_dict() == certificate["plan"], "the plan is not in its one form")
    plans.append(plan)
    _require(
        plan.hash() == certificate["plan_hash"],
        f"the plan inside has hash {plan.hash()}, not {certificate['plan_hash']}",
    )
    return plan.hash()


def _files(certificate: dict[str, Any]) -> Iterator[str]:
    files = certificate.get("files")
    yield from sorted({"config.json", "model.safetensors", *(files if isinstance(files, dict) else ())})


def _file(folder: Path, name: str, certificate: dict[str, Any]) -> str:
    path, expected = folder / name, certificate["files"][name]
    _require(Path(name).name == name and name != FILE_NAME, f"{name!r} is not the name of a file of the folder")
    _require(path.is_file() and not path.is_symlink(), f"{name} is missing")
    _require(file_sha256(path) == expected, f"{name} was changed: its SHA-256 is not {expected}")
    twin = {"config.json": "config_sha256", "model.safetensors": "weights_sha256"}.get(name)
    _require(twin is None or certificate[twin] == expected, f"{name} has two hashes in the certificate")
    return str(expected)


def _no_other_file(folder: Path, certificate: dict[str, Any]) -> str:
    other = sorted({path.name for path in folder.iterdir()} - {FILE_NAME, *certificate["files"]})
    _require(not other, f"not covered by the certificate: {', '.join(other)}")
    return f"{len(certificate['files'])} files are covered"


def _mechanism(certificate: dict[str, Any], plan: Plan) -> str:
    for name, expected in mechanism(plan).items():
        _require(certificate[name] == expected, f"{name} is not what the plan says")
    signed = {"format", "code_version", "run_id", "plan", "plan_hash", "files", "weights_sha256", "config_sha256"}
    signed |= {"ledger_heads", "statements", "server_public_key", "signature", *mechanism(plan), *plan_epsilons(plan)}
    if plan.warm_start.public:
        signed |= {"public_images"}
        _public_images(certificate["public_images"], plan)
    _require(set(certificate) == signed, f"unknown or missing: {', '.join(sorted(set(certificate) ^ signed))}")
    return unit_line(plan.privacy.unit)


def _public_images(named: dict[str, str], plan: Plan) -> None:
    """What the generator started from is named as the plan names it, with a hash, and nothing else is said there."""
    source = Path(plan.warm_start.public).name  # "procedural" is its own name
    problem = f"public_images = {named!r} is not the source {source!r} and a SHA-256 in hex"
    _require(isinstance(named, dict) and set(named) == {"source", "sha256"} and named["source"] == source, problem)
    _require(isinstance(named["sha256"], str) and bool(_SHA256.fullmatch(named["sha256"])), problem)


def _plan_epsilon(certificate: dict[str, Any], plan: Plan) -> str:
    for name, recomputed in plan_epsilons(plan).items():
        _not_understated(name, certificate[name], recomputed)
    pld = plan_epsilons(plan)["epsilon_pld"]
    _require(
        pld <= plan.privacy.epsilon + _EPSILON_TOLERANCE,
        f"the plan promised {plan.privacy.epsilon}, its events cost {pld}",
    )
    return f"{pld:.4f} by PLD at delta {plan.privacy.delta:g}, {unit_line(plan.privacy.unit)}"


def _not_understated(name: str, claimed: object, recomputed: float) -> None:
    is_number = isinstance(claimed, float | int) and not isinstance(claimed, bool)
    _require(is_number, f"{name} = {claimed!r} is not a number")
    problem = f"{name} = {claimed} is claimed, the events give {recomputed:.4f}"
    _require(isinstance(claimed, float | int) and claimed >= recomputed - _EPSILON_TOLERANCE, problem)


def _all_statements(certificate: dict[str, Any]) -> str:
    sites = [statement["site"] for statement in certificate["statements"]]
    names = all(isinstance(site, str) and _NAME.fullmatch(site) and site != keys.COORDINATOR for site in sites)
    _require(names, "a hospital's name is not 1 to 32 of a-z, 0-9 and -, or is the coordinator's")
    _require(len(sites) > 0, "no hospital has signed")
    _require(len(set(sites)) == len(sites), "one hospital has signed twice")
    public = [statement["public_key"] for statement in certificate["statements"]]
    _require(len(set(public)) == len(public), "two hospitals have one key")
    heads = {statement["site"]: statement["ledger_head"] for statement in certificate["statements"]}
    _require(certificate["ledger_heads"] == heads, "ledger_heads are not those that the hospitals signed")
    return ", ".join(sites)


def _statement_checks(certificate: dict[str, Any], plan: Plan) -> Iterator[Check]:
    statements = certificate.get("statements")
    for statement in statements if isinstance(statements, list) else ():
        site = statement.get("site") if isinstance(statement, dict) else statement
        yield _check(f"statement {site}: signature", partial(_statement_signature, statement, plan))
        yield _check(f"statement {site}: plan", partial(_statement_plan, statement, certificate, plan))
        yield _check(f"statement {site}: epsilon", partial(_statement_epsilon, statement))


def _pooled_hospitals(certificate: dict[str, Any], plan: Plan, trusted_keys: Mapping[str, str] | None) -> str:
    """Every hospital signed, and each masked its sums with exactly the others that signed.

    Whether those were real hospitals is known from keys alone: pinned by each hospital, or known to whoever verifies.
    """
    statements = certificate["statements"]
    _require(
        len(statements) == plan.federation.hospitals,
        f"{len(statements)} hospitals have signed, the noise is that of {plan.federation.hospitals} together",
    )
    known = hospitals_sha256(certificate["run_id"], {s["site"]: s["public_key"] for s in statements})
    for statement in statements:
        problem = f"{statement['site']} masked its sums with other hospitals than those that signed"
        _require(statement["masked_with"].get("hospitals_sha256") == known, problem)
        unknown = f"masked_with of {statement['site']} does not say how it knew the others' keys"
        _require(set(statement["masked_with"]) == {"hospitals_sha256", "keys"}, unknown)
        _require(statement["masked_with"]["keys"] in ("pinned", "first use"), unknown)
    detail = f"{len(statements)} hospitals, each masked with all others"
    believed = [s["site"] for s in statements if s["masked_with"]["keys"] == "first use"]
    if not believed or trusted_keys is not None:
        return detail
    name = "epsilon_pld_coalition" + ("_all_hospitals" if plan.federation.hospitals_per_patient > 1 else "")
    return (
        f"{detail}; {', '.join(believed)} took the others' keys from the coordinator (first use), who may have played "
        f"them: against the coordinator only epsilon {plan_epsilons(plan)[name]:.4f} ({name}) holds, unless these are "
        "the hospitals' own keys: compare them"
    )


def _statement_signature(statement: SiteStatement, plan: Plan) -> str:
    document = {key: value for key, value in statement.items() if key != "signature"}
    wrong = set(statement) ^ statement_keys(plan)
    _require(not wrong, f"unknown or missing: {', '.join(sorted(wrong))}")
    holds = keys.verify(statement["public_key"], document, statement["signature"])
    _require(holds, f"the signature is not that of key {statement['public_key']}")
    return f"by key {statement['public_key']}"


def _statement_plan(statement: SiteStatement, certificate: dict[str, Any], plan: Plan) -> str:
    for name in ("run_id", "plan_hash", "weights_sha256", "delta"):
        _require(statement[name] == certificate[name], f"its {name} is not the certificate's")
    planned = [event_to_dict(event) for event in plan_events(plan)]
    _require(statement["events"] == planned, "its events are not the plan's")
    if "released" in statement:
        _require(statement["released"] == certificate["released"], "its released is not the certificate's")
    if "epsilon_pld_coalition" in statement:
        recomputed = plan_epsilons(plan)["epsilon_pld_coalition"]
        _not_understated("epsilon_pld_coalition", statement["epsilon_pld_coalition"], recomputed)
    return f"{signed_unit(statement, plan)}, {len(planned)} events, ledger head {statement['ledger_head']}"


def _statement_epsilon(statement: SiteStatement) -> str:
    events = tuple(event_from_dict(event) for event in statement["events"])
    pld, rdp = events_epsilons(events, statement["delta"])
    _not_understated("epsilon_pld", statement["epsilon_pld"], pld)
    _not_understated("epsilon_rdp", statement["epsilon_rdp"], rdp)
    return f"{pld:.4f} by PLD, {rdp:.4f} by RDP"


def _trusted(certificate: dict[str, Any], trusted_keys: Mapping[str, str]) -> str:
    signed = {statement["site"]: statement["public_key"] for statement in certificate["statements"]}
    known = {name: public for name, public in trusted_keys.items() if name != keys.COORDINATOR}
    server, coordinator = certificate["server_public_key"], trusted_keys.get(keys.COORDINATOR)
    strangers = sorted(name for name in signed.keys() & known.keys() if known[name] != signed[name])
    strangers += [keys.COORDINATOR] if coordinator not in (None, server) else []
    _require(not strangers, f"signed with a key that is not the known one: {', '.join(strangers)}")
    unknown, silent = sorted(signed.keys() - known.keys()), sorted(known.keys() - signed.keys())
    _require(not unknown, f"signed by {', '.join(unknown)}, of whom no key is given")
    _require(not silent, f"not signed by {', '.join(silent)}, of whom a key is given")
    rest = "not among those given" if coordinator is None else "the known one too"
    return f"{len(signed)} hospitals' keys are the known ones; the coordinator's is {rest}"
