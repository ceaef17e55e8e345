"""The certificate of a published sampler: what was spent of each patient's privacy, checkable by anyone, offline.

Each hospital signs a statement: this run, this plan, these files, what it answered, what that cost, this ledger head.
The certificate says nothing of its own: all of it follows from the plan and the statements, and the coordinator signs
the whole. `verify_sampler` needs the folder, and the hospitals' public keys from somewhere else: without them it says
"unknown keys" and never that a sampler holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors import SafetensorError

from ghostnet.accounting.epsilon import EPSILON_STEP
from ghostnet.certificate.statement_checks import (
    check_all_statements,
    check_pooled_hospitals,
    is_signed,
    not_understated,
    require,
    same,
    statement_looks,
)
from ghostnet.certificate.transcript import Shown, check_weights
from ghostnet.durable import PUBLIC, write_durably
from ghostnet.errors import GhostNetError, VerifyError, printable
from ghostnet.evidence import keys
from ghostnet.evidence.answers import read_answered
from ghostnet.evidence.statement import SiteStatement, mechanism, plan_epsilons, site_statement
from ghostnet.exchange.combining import WITH_MOMENTS
from ghostnet.plan import Plan, plan_from_dict
from ghostnet.plan.unit import unit_line
from ghostnet.sampler.folder import (
    CARD_FILE,
    CERTIFICATE_FILE,
    CONFIG_FILE,
    SAMPLES_FILE,
    TRANSCRIPT_FILE,
    WEIGHTS_FILE,
    file_names,
    json_object,
    texts,
)
from ghostnet.training import warm_start

__all__ = [
    "Check",
    "SiteStatement",
    "build_certificate",
    "certificate_bytes",
    "check_statement",
    "file_sha256",
    "not_shown",
    "site_statement",
    "verify_sampler",
    "write_certificate",
]

FORMAT = "ghostnet-certificate/2"
KEYS = "keys"
"""Name of the first check: whose keys signed."""

_UNREADABLE = (
    *(GhostNetError, ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, SafetensorError),
    *(TypeError, ValueError),
)
_MAX_BYTES = 10_000_000  # of a certificate that is read at all
_MAX_STATEMENTS = 1000  # each is looked at in several ways, and every look is told


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that `verify_sampler` looked at."""

    name: str
    passed: bool
    detail: str


def build_certificate(
    *, plan: Plan, statements: Sequence[SiteStatement], server_key: Ed25519PrivateKey
) -> dict[str, Any]:
    """Puts the hospitals' statements together and signs the whole; numbers are in the form that was signed.

    Args:
        plan: the resolved plan of the run.
        statements: one of each hospital that took part.
        server_key: the coordinator's key.

    Raises:
        VerifyError: there is no statement, or they are not all about one run, this plan and the same files.
    """
    if not statements:
        raise VerifyError("no hospital has signed a statement; a sampler without one is not published")
    first = statements[0]
    for statement in statements:
        about = (statement.get("run_id"), statement.get("plan_hash"), statement.get("files"))
        if about != (first["run_id"], plan.hash(), first["files"]):
            raise VerifyError(f"the statement of site {statement.get('site')} is about another run, plan or files")
    certificate = _certificate(plan, statements, keys.public_hex(server_key))
    return _signed_form({**certificate, "signature": keys.sign(server_key, certificate)})


def _certificate(plan: Plan, statements: Sequence[SiteStatement], server_public_key: str) -> dict[str, Any]:
    """All that a certificate says but its signature: a function of the plan and what the hospitals signed."""
    first = statements[0]
    certificate: dict[str, Any] = {
        "format": FORMAT,
        "run_id": first["run_id"],
        "plan": plan.to_dict(),
        "plan_hash": plan.hash(),
        "files": first["files"],
        "weights_sha256": first["files"][WEIGHTS_FILE],
        **mechanism(plan),
        **{name: max(s["reserved"][name] for s in statements) for name in plan_epsilons(plan)},
        "ledger_heads": {statement["site"]: statement["ledger_head"] for statement in statements},
        "statements": sorted(statements, key=lambda statement: str(statement["site"])),
        "server_public_key": server_public_key,
    }
    if plan.warm_start.public:
        source = Path(plan.warm_start.public).name  # "procedural" is its own name
        certificate["public_images"] = {"source": source, "sha256": first["public_images_sha256"]}
    return certificate


def certificate_bytes(certificate: Mapping[str, Any]) -> bytes:
    """The one byte form of certificate.json; any other spacing, order or form of a number fails verification."""
    return (json.dumps(certificate, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode(
        "ascii"
    )


def write_certificate(folder: Path, certificate: Mapping[str, Any]) -> Path:
    """Writes certificate.json into a sampler's folder, whole or not at all."""
    path = folder / CERTIFICATE_FILE
    write_durably(path, certificate_bytes(certificate), mode=PUBLIC)
    return path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_sampler(folder: Path, *, trusted_keys: Mapping[str, str] | None = None) -> list[Check]:
    """Checks a sampler's folder: whose keys signed, every file, what the hospitals answered, every epsilon recomputed.

    Args:
        folder: the files of `sampler_files.file_names` and certificate.json.
        trusted_keys: public keys known from elsewhere of all hospitals, by name; the coordinator's, which is new in
            every run, may be among them as "server". Without them the first check, "keys", does not pass: a folder
            re-made and re-signed as a whole by somebody else would pass all the others.

    Returns:
        One Check for each thing looked at, "keys" first where there is a certificate to read. The sampler holds what
        its certificate says if all of them passed; `not_shown` says what that is not.
    """
    found: list[dict[str, Any]] = []
    form = _check("certificate form", lambda: _read_certificate(folder, found))
    if not found:
        return [form]
    certificate = found[0]
    checks = [_check(KEYS, partial(_keys, certificate, trusted_keys)), form]
    checks.append(_check("server signature", partial(_server_signature, certificate)))
    plans: list[Plan] = []
    checks.append(_check("plan hash", lambda: _read_plan(certificate, plans)))
    names = file_names(plans[0]) if plans else frozenset({CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, SAMPLES_FILE})
    checks.extend(_check(f"file {name}", partial(_file, folder, name, certificate)) for name in sorted(names))
    checks.append(_check("no other file", partial(_no_other_file, folder, names)))
    if plans:
        checks.extend(_plan_checks(folder, certificate, plans[0], trusted_keys))
    return checks


def check_statement(
    statement: SiteStatement, *, plan: Plan, run_id: str, public_images_sha256: str = ""
) -> list[Check]:
    """Checks one hospital's statement before there is a certificate: what `verify_sampler` looks at in it by itself.

    Args:
        statement: as the hospital sent it.
        plan: the resolved plan of the run.
        run_id: the run.
        public_images_sha256: of the images that the generator started from; "" where the plan names none.
    """
    about = {**mechanism(plan), "run_id": run_id, "public_images": {"sha256": public_images_sha256}}
    return [_check(what, look) for what, look in statement_looks(statement, about, plan)]


def not_shown(folder: Path) -> tuple[str, ...]:
    """The limits of a valid certificate, in words; empty where there is no certificate to read."""
    found: list[dict[str, Any]] = []
    plans: list[Plan] = []
    read = _check("", lambda: _read_certificate(folder, found) and _read_plan(found[0], plans))
    if not read.passed:
        return ()
    return (
        *_weights_not_shown(plans[0]),
        "that these weights drew samples.png: the hospitals signed its digest alone",
        "anything about other patients than those of the hospitals that signed",
        "which software really ran: a hospital signs what it says is installed",
        *mechanism(plans[0])["not_covered"],
    )


def _weights_not_shown(plan: Plan) -> list[str]:
    federation, unseen = plan.federation, []
    if federation.is_pooled:
        unseen.append("how the weights follow from the hospitals' pooled steps: those are under masks, not published")
    elif federation.rounds == 0:
        unseen.append("that the weights were fitted to the released mean and to nothing else: no fit is replayed")
    elif federation.server_optimizer in WITH_MOMENTS:
        unseen.append(f"what {federation.server_optimizer} started the last round from: the coordinator's word")
    if not federation.is_pooled and federation.rounds > 1:
        unseen.append("the rounds before the last: of their answers the digests alone are signed")
    if plan.warm_start.public:
        unseen.append("what the public images were: their digest is the coordinator's word")
    return unseen


def _check(name: str, look: Callable[[], str]) -> Check:
    """Looks; the words may be those of whoever made the folder, so that none of them commands a terminal."""
    try:
        passed, detail = True, look()
    except VerifyError as error:
        passed, detail = False, str(error)
    except _UNREADABLE as error:
        # The folder may hold anything; whatever cannot be read does not hold.
        passed, detail = False, f"cannot be read: {str(error)[:300]}"
    return Check(name=printable(name), passed=passed, detail=printable(detail))


def _read_certificate(folder: Path, found: list[dict[str, Any]]) -> str:
    path = folder / CERTIFICATE_FILE
    require(path.is_file() and not path.is_symlink(), f"{path} is missing or a link; give the folder of a sampler")
    require(path.stat().st_size <= _MAX_BYTES, f"{path} has more than {_MAX_BYTES} bytes")
    data = path.read_bytes()
    certificate = json_object(data, str(path))
    require(certificate.get("format") == FORMAT, f"{path}: its format is not {FORMAT!r}, which this version reads")
    statements = certificate.get("statements")
    few = not isinstance(statements, list) or len(statements) <= _MAX_STATEMENTS
    require(few, f"{path} holds more than {_MAX_STATEMENTS} statements")
    found.append(certificate)
    require(certificate_bytes(_signed_form(certificate)) == data, f"{path} is not in the byte form that was signed")
    return FORMAT


def _signed_form(certificate: Mapping[str, Any]) -> dict[str, Any]:
    """Each number as RFC 8785 reads it: 4.0 is 4, so that no byte can change under the same signatures."""
    return dict(json.loads(keys.canonical_json(certificate)))


def _keys(certificate: Mapping[str, Any], trusted_keys: Mapping[str, str] | None) -> str:
    signed = {statement["site"]: statement["public_key"] for statement in certificate["statements"]}
    if trusted_keys is None:
        listed = ", ".join(f"{site} {public}" for site, public in signed.items())
        raise VerifyError(f"unknown keys: {listed}; get each hospital's key from itself, and give all with --key")
    known = {name: public for name, public in trusted_keys.items() if name != keys.COORDINATOR}
    server, coordinator = certificate["server_public_key"], trusted_keys.get(keys.COORDINATOR)
    strangers = sorted(name for name in signed.keys() & known.keys() if known[name] != signed[name])
    strangers += [keys.COORDINATOR] if coordinator not in (None, server) else []
    require(not strangers, f"signed with a key that is not the known one: {', '.join(strangers)}")
    unknown, silent = sorted(signed.keys() - known.keys()), sorted(known.keys() - signed.keys())
    require(not unknown, f"signed by {', '.join(unknown)}, of whom no key is given")
    require(not silent, f"not signed by {', '.join(silent)}, of whom a key is given")
    unsigned = sorted(s["site"] for s in certificate["statements"] if not is_signed(s))
    require(
        not unsigned, f"what {', '.join(unsigned)} signed was changed: the known key is there, its signature is not"
    )
    rest = "not among those given" if coordinator is None else "the known one too"
    return f"signed by {', '.join(sorted(signed))}, with the keys that were given; the coordinator's is {rest}"


def _server_signature(certificate: Mapping[str, Any]) -> str:
    document = {key: value for key, value in certificate.items() if key != "signature"}
    public = certificate["server_public_key"]
    holds = keys.verify(public, document, certificate["signature"])
    require(holds, "the signature is not that of server_public_key: something was changed")
    return f"by key {public}"


def _read_plan(certificate: Mapping[str, Any], plans: list[Plan]) -> str:
    plan = plan_from_dict(certificate["plan"], source=CERTIFICATE_FILE)
    require(same(plan.to_dict(), certificate["plan"]), "the plan is not in its one form")
    plans.append(plan)
    expected = certificate["plan_hash"]
    require(plan.hash() == expected, f"the plan inside has plan_hash {plan.hash()}, not {str(expected)[:80]}")
    return plan.hash()


def _file(folder: Path, name: str, certificate: Mapping[str, Any]) -> str:
    path, expected = folder / name, certificate["files"][name]
    _require_plain(folder, name)
    require(file_sha256(path) == expected, f"{name} was changed: its SHA-256 is not {str(expected)[:80]}")
    return str(expected)


def _require_plain(folder: Path, *names: str) -> None:
    """Nothing else is opened: a pipe would never end, nor would a link to a device."""
    for name in names:
        require(not (folder / name).is_symlink(), f"{name} is a link, not a file")
        require((folder / name).is_file(), f"{name} is missing or no file")


def _no_other_file(folder: Path, names: frozenset[str]) -> str:
    other = sorted({path.name for path in folder.iterdir()} - {CERTIFICATE_FILE, *names})
    require(not other, f"not a file of a sampler: {', '.join(repr(name)[:80] for name in other)}")
    return f"{', '.join(sorted(names))} and {CERTIFICATE_FILE}"


def _plan_checks(
    folder: Path, certificate: dict[str, Any], plan: Plan, trusted_keys: Mapping[str, str] | None
) -> Iterator[Check]:
    yield _check("mechanism", partial(_mechanism, certificate, plan))
    yield _check("epsilon", partial(_epsilon, certificate, plan))
    yield _check("statements", partial(check_all_statements, certificate, plan))
    if plan.federation.is_pooled:
        yield _check("pooled hospitals", partial(check_pooled_hospitals, certificate, plan, trusted_keys))
    statements = certificate.get("statements")
    for statement in statements if isinstance(statements, list) else ():
        if not isinstance(statement, dict):
            yield Check(name=printable(f"statement {str(statement)[:40]}"), passed=False, detail="is no statement")
            continue
        for what, look in statement_looks(statement, certificate, plan):
            yield _check(f"statement {str(statement.get('site'))[:40]}: {what}", look)
    shown: list[Shown] = []
    yield _check("weights", lambda: _weights(folder, certificate, plan, shown))
    for name in (CONFIG_FILE, CARD_FILE):
        yield _check(f"content {name}", partial(_content, folder, name, certificate, plan, shown))


def _mechanism(certificate: dict[str, Any], plan: Plan) -> str:
    for name, expected in mechanism(plan).items():
        require(name in certificate and same(certificate[name], expected), f"{name} is not what the plan says")
    derived = _certificate(plan, certificate["statements"], certificate["server_public_key"])
    wrong = set(certificate) ^ {*derived, "signature"}
    require(not wrong, f"unknown or missing: {', '.join(sorted(wrong))}")
    rest = derived.keys() - plan_epsilons(plan).keys()
    others = sorted(name for name in rest if not same(certificate[name], derived[name]))
    require(not others, f"not what the hospitals signed: {', '.join(others)}")
    return unit_line(plan.privacy.unit)


def _epsilon(certificate: Mapping[str, Any], plan: Plan) -> str:
    recomputed = plan_epsilons(plan)
    for name, value in recomputed.items():
        not_understated(name, certificate[name], value)
        signed = max(statement["reserved"][name] for statement in certificate["statements"])
        require(same(certificate[name], signed), f"{name} = {certificate[name]} is not the largest that was signed")
    pld = recomputed["epsilon_pld"]
    most = plan.privacy.epsilon + 1.5 * EPSILON_STEP  # calibrated on a machine with another last digit
    require(pld <= most, f"the plan promised {plan.privacy.epsilon}, its events cost {pld}")
    return f"{certificate['epsilon_pld']:.4f} by PLD at delta {plan.privacy.delta:g}, {unit_line(plan.privacy.unit)}"


def _weights(folder: Path, certificate: Mapping[str, Any], plan: Plan, shown: list[Shown]) -> str:
    _require_plain(folder, WEIGHTS_FILE, *([TRANSCRIPT_FILE] if plan.has_transcript else []))
    answered = {s["site"]: read_answered(plan, s["answered"], s["spent"]) for s in certificate["statements"]}
    shown.append(check_weights(folder, plan, answered))
    return shown[0].words


def _content(folder: Path, name: str, certificate: Mapping[str, Any], plan: Plan, shown: list[Shown]) -> str:
    """The file is, to the byte, what plan, run, weights and released prior give."""
    _require_plain(folder, name)
    mean = shown[0].released_mean if shown else None
    require(mean is not None or not plan.image.released_prior, "the released class shares are not known: see weights")
    drawn = warm_start.with_released_prior(plan, mean)
    expected = texts(
        plan,
        run_id=certificate["run_id"],
        weights_sha256=certificate["weights_sha256"],
        label_prior=drawn.image.label_prior,
    )
    problem = f"{name} is not what the plan, the run and the weights give; read nothing into it"
    path = folder / name
    require(path.stat().st_size == len(expected[name]) and path.read_bytes() == expected[name], problem)
    return "follows from the plan, the run and the weights"
