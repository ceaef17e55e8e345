"""A hospital's answers in one run, as its statement lists them: requests, digests, and the events of those alone.

Requests are named as in the ledger (`accounting.catalogue.Request`). A run of thousands of pooled steps is listed as
one entry, with one digest over those of all its answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ghostnet.accounting.catalogue import Request, run_requests
from ghostnet.errors import VerifyError
from ghostnet.evidence.keys import DIGEST
from ghostnet.plan import Plan
from ghostnet.plan.federation import MAX_POOLED_STEPS

_STEP = Request.STEP.value


def answered_words(requests: Mapping[str, str]) -> dict[str, Any]:
    """A statement's `answered` and `spent`.

    Args:
        requests: in the ledger's order, the digest of the answer to each; "" for one that began and died.
    """
    answers = {request: digest for request, digest in requests.items() if digest}
    steps = {int(r.removeprefix(_STEP)): digest for r, digest in answers.items() if r.startswith(_STEP)}
    entries: list[dict[str, Any]] = [
        {"request": request, "digest": digest} for request, digest in answers.items() if not request.startswith(_STEP)
    ]
    if steps:
        together = hashlib.sha256("".join(digest for _, digest in sorted(steps.items())).encode("ascii")).hexdigest()
        entries.append(
            {"request": "steps", "first": min(steps), "last": max(steps), "count": len(steps), "digest": together}
        )
    return {"answered": entries, "spent": [request for request, digest in requests.items() if not digest]}


def read_answered(plan: Plan, answered: Sequence[Mapping[str, Any]], spent: Sequence[str]) -> dict[str, str]:
    """The digest of the answer to each request, as `answered_words` wrote them; a step's is that of all together.

    Raises:
        VerifyError: something that a run of the plan cannot ask, or that is listed twice.
    """
    found: dict[str, str] = {}
    for entry in answered:
        fields = {"request", "digest", *(("first", "last", "count") if entry["request"] == "steps" else ())}
        if set(entry) != fields or not DIGEST.fullmatch(entry["digest"]):
            raise VerifyError(f"an answer to {entry['request']} is not listed with a digest and nothing else")
        for request in _steps(entry, spent) if entry["request"] == "steps" else (entry["request"],):
            if request in found:
                raise VerifyError(f"two answers to {request} are listed")
            found[request] = entry["digest"]
    unknown = ({*found} | {*spent}) - {*run_requests(plan)}
    if unknown or len({*spent}) != len(spent) or {*found} & {*spent}:
        raise VerifyError(f"answered or spent is what the plan does not have, or listed twice: {sorted(unknown)[:3]}")
    return found


def _steps(entry: Mapping[str, Any], spent: Collection[str]) -> list[str]:
    first, last, count = entry["first"], entry["last"], entry["count"]
    if not (type(first) is type(last) is type(count) is int and 1 <= first <= last <= MAX_POOLED_STEPS):
        raise VerifyError(f"steps from {first!r} to {last!r} are not steps of a run")
    steps, died = [f"{_STEP}{number}" for number in range(first, last + 1)], {*spent}
    answered = [step for step in steps if step not in died]
    if count != len(answered):
        raise VerifyError(f"{count} answers are listed for steps {first} to {last}, less {len(spent)} that died")
    return answered
