"""Checks of the hospitals' statements for `ghostnet verify`: each by itself, and all of them together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from ghostnet.accounting.catalogue import Request, events_of
from ghostnet.accounting.epsilon import EPSILON_STEP, event_from_dict, event_to_dict
from ghostnet.accounting.plan_cost import plan_events
from ghostnet.errors import VerifyError
from ghostnet.evidence import keys
from ghostnet.evidence.answers import read_answered
from ghostnet.evidence.keys import DIGEST
from ghostnet.evidence.software import PACKAGES
from ghostnet.evidence.statement import (
    FORMAT,
    SiteStatement,
    events_epsilons,
    plan_epsilons,
    signed_unit,
    statement_keys,
)
from ghostnet.exchange.secure_sum import hospitals_sha256
from ghostnet.plan import Plan
from ghostnet.plan.unit import UNITS, lifetime_protects, protects
from ghostnet.sampler.folder import file_names

Look = tuple[str, Callable[[], str]]
"""What is looked at, and what looks: gives words, or raises VerifyError."""

_SOFTWARE = {"ghostnet", "ghostnet_sha256", "client_sha256", "python", *PACKAGES}
_LIFETIME = {"epsilon_pld", "epsilon_rdp", "max_epsilon", "delta", "protects", "adoptions"}
_MAX_VERSION = 100  # characters; every version is told
_SPENT_SHOWN = 5  # of the requests that died, before "..."


def require(holds: bool, problem: str) -> None:
    """Raises VerifyError with the problem where something does not hold."""
    if not holds:
        raise VerifyError(problem)


def same(one: object, other: object) -> bool:
    """Equal in the byte form that is signed: 4 and 4.0 are, 1 and true are not."""
    try:
        return keys.canonical_json({"": one}) == keys.canonical_json({"": other})
    except (ValueError, RecursionError):
        return False


def statement_looks(statement: SiteStatement, certificate: Mapping[str, Any], plan: Plan) -> Iterator[Look]:
    """Everything that is looked at in one hospital's statement."""
    yield "signature", partial(_signature, statement, plan)
    yield "plan", partial(_plan, statement, certificate, plan)
    yield "answers", partial(_answers, statement, plan)
    yield "epsilon", partial(_epsilon, statement, plan)
    yield "software", partial(_software, statement)


def check_all_statements(certificate: Mapping[str, Any], plan: Plan) -> str:
    """Names and keys are each hospital's own, and all signed the files that the certificate lists."""
    statements = certificate["statements"]
    sites = [statement["site"] for statement in statements]
    names = all(isinstance(site, str) and keys.is_name(site) and site != keys.COORDINATOR for site in sites)
    require(names, "a hospital's name is not 1 to 32 of a-z, 0-9 and -, or is the coordinator's")
    require(len(sites) > 0, "no hospital has signed")
    require(len(set(sites)) == len(sites), "one hospital has signed twice")
    require(sites == sorted(sites), "the statements are not in the order of the hospitals' names")
    public = [statement["public_key"] for statement in statements]
    require(len(set(public)) == len(public), "two hospitals have one key")
    heads = {statement["site"]: statement["ledger_head"] for statement in statements}
    require(same(certificate["ledger_heads"], heads), "ledger_heads are not those that the hospitals signed")
    files = certificate["files"]
    require(set(files) == file_names(plan), f"files lists {', '.join(sorted(files))}: not those of a sampler")
    for statement in statements:
        require(same(statement["files"], files), f"files are not those that {statement['site']} signed")
    return ", ".join(sites)


def check_pooled_hospitals(certificate: Mapping[str, Any], plan: Plan, trusted_keys: Mapping[str, str] | None) -> str:
    """Every hospital signed, and each masked its sums with exactly the others that signed.

    Whether those were real hospitals is known from keys alone: pinned by each hospital, or known to whoever verifies.
    """
    statements = certificate["statements"]
    require(
        len(statements) == plan.federation.hospitals,
        f"{len(statements)} hospitals have signed, the noise is that of {plan.federation.hospitals} together",
    )
    known = hospitals_sha256(certificate["run_id"], {s["site"]: s["public_key"] for s in statements})
    for statement in statements:
        problem = f"{statement['site']} masked its sums with other hospitals than those that signed"
        require(statement["masked_with"].get("hospitals_sha256") == known, problem)
        unknown = f"masked_with of {statement['site']} does not say how it knew the others' keys"
        require(set(statement["masked_with"]) == {"hospitals_sha256", "keys"}, unknown)
        require(statement["masked_with"]["keys"] in ("pinned", "first use"), unknown)
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


def not_understated(name: str, claimed: object, recomputed: float) -> None:
    """Refuses an epsilon below what is recomputed. There is no tolerance: writers round up (`statement.certified`)."""
    require(keys.is_finite_number(claimed), f"{name} = {str(claimed)[:80]} is not a number")
    problem = f"{name} = {claimed} is claimed, the events give {recomputed:.4f}"
    require(keys.is_finite_number(claimed) and claimed >= recomputed, problem)


def is_signed(statement: SiteStatement) -> bool:
    """True if the signature is that of the public key that the statement names."""
    document = {key: value for key, value in statement.items() if key != "signature"}
    return keys.verify(statement["public_key"], document, statement["signature"])


def _signature(statement: SiteStatement, plan: Plan) -> str:
    wrong = set(statement) ^ statement_keys(plan)
    require(not wrong, f"unknown or missing: {', '.join(sorted(wrong))}")
    require(statement["format"] == FORMAT, f"format is not {FORMAT}")
    require(is_signed(statement), f"the signature is not that of key {statement['public_key']}: something was changed")
    return f"by key {statement['public_key']}"


def _plan(statement: SiteStatement, certificate: Mapping[str, Any], plan: Plan) -> str:
    expected = {"run_id": certificate["run_id"], "plan_hash": plan.hash(), "delta": plan.privacy.delta}
    for name, value in expected.items():
        require(same(statement[name], value), f"its {name} is not the certificate's")
    if "released" in statement:
        require(same(statement["released"], certificate["released"]), "its released is not the certificate's")
    if plan.warm_start.public:
        digest = statement["public_images_sha256"]
        require(isinstance(digest, str) and bool(DIGEST.fullmatch(digest)), "public_images_sha256 is no SHA-256")
        require(digest == certificate["public_images"]["sha256"], "its public images are not the certificate's")
    head = statement["ledger_head"]
    require(isinstance(head, str) and bool(DIGEST.fullmatch(head)), "ledger_head is no SHA-256")
    return f"{protects(signed_unit(statement, plan))}; ledger head {head}"


def _answers(statement: SiteStatement, plan: Plan) -> str:
    spent = statement["spent"]
    require(isinstance(spent, list), "spent is not a list")
    answered = read_answered(plan, statement["answered"], spent)
    events = [event_to_dict(event) for event in events_of(plan, answered)]
    require(same(statement["events"], events), "its events are not those of what it answered")
    kinds = [entry["request"] for entry in statement["answered"]]
    made_of = [kind for kind in kinds if kind != Request.FINISH.value]
    words = f"answered {', '.join(kinds)}" if kinds else "answered nothing"
    words += "" if made_of else ": nothing of its patients is in the weights"
    shown = f"{', '.join(spent[:_SPENT_SHOWN])}{', ...' if len(spent) > _SPENT_SHOWN else ''}"
    return words + (f"; charged and died without an answer: {shown}" if spent else "")


def _epsilon(statement: SiteStatement, plan: Plan) -> str:
    events = tuple(event_from_dict(event) for event in statement["events"])
    pld, rdp = events_epsilons(events, plan.privacy.delta)
    not_understated("epsilon_pld", statement["epsilon_pld"], pld)
    not_understated("epsilon_rdp", statement["epsilon_rdp"], rdp)
    recomputed = plan_epsilons(plan)
    reserved = statement["reserved"]
    require(set(reserved) == set(recomputed), "reserved is not every epsilon of the plan")
    for name, value in recomputed.items():
        not_understated(f"reserved.{name}", reserved[name], value)
        much = f"reserved.{name} = {reserved[name]} is claimed, the plan gives {value:.4f}"
        require(reserved[name] <= value + 2.5 * EPSILON_STEP, much)  # the certificate gives the largest that was signed
    return (
        f"what it answered costs {statement['epsilon_pld']:.4f} by PLD, {statement['epsilon_rdp']:.4f} by RDP; the run "
        f"reserved {reserved['epsilon_pld']:.4f}; {_lifetime(statement, plan)}"
    )


def _lifetime(statement: SiteStatement, plan: Plan) -> str:
    lifetime = statement["lifetime"]
    require(set(lifetime) == _LIFETIME, "lifetime lacks or adds a value")
    cap, delta = lifetime["max_epsilon"], lifetime["delta"]
    good = all(keys.is_finite_number(x) and x > 0 for x in (cap, delta)) and delta < 1
    require(good, "the hospital's cap is no number")
    at_cap = events_epsilons(tuple(plan_events(plan)), delta)  # this run is one of all runs
    not_understated("lifetime.epsilon_pld", lifetime["epsilon_pld"], at_cap[0])
    not_understated("lifetime.epsilon_rdp", lifetime["epsilon_rdp"], at_cap[1])
    spent, words, adoptions = (lifetime[name] for name in ("epsilon_pld", "protects", "adoptions"))
    require(spent <= cap + 1.5 * EPSILON_STEP, f"all its runs cost {spent}, past its own cap {cap}")
    unit = signed_unit(statement, plan)  # of this run: the others were of that unit too, or of both
    known = (lifetime_protects([unit]), lifetime_protects(UNITS))
    require(words in known, f"all its runs protect {str(words)[:80]!r}, which does not go with this one's {unit!r}")
    require(type(adoptions) is int and adoptions >= 0, f"adoptions = {str(adoptions)[:80]} is no count")
    told = f"all runs on its ledger {spent:.4f} of {cap:g} at delta {delta:g}, {words}"
    return f"{told}; its ledger was ADOPTED {adoptions} time(s): earlier runs may be missing" if adoptions else told


def _software(statement: SiteStatement) -> str:
    software = statement["software"]
    require(set(software) == _SOFTWARE, f"software lists {', '.join(sorted(software))}")
    digests = [software[name] for name in ("ghostnet_sha256", "client_sha256")]
    short = all(isinstance(value, str) and len(value) <= _MAX_VERSION for value in software.values())
    require(short, f"a version is not a text of at most {_MAX_VERSION} characters")
    require(all(DIGEST.fullmatch(digest) for digest in digests), "a digest of sources is no SHA-256")
    versions = ", ".join(f"{name} {software[name]}" for name in ("ghostnet", "python", *PACKAGES))
    return f"it says: sources {digests[0][:16]} (ghostnet), {digests[1][:16]} (client); {versions}"
