"""Names that both sides use: the five requests, the arrays that are exchanged, and codes of refusals.

`ghostnet.exchange.messages` has the requests and answers themselves.

The coordinator can only ask for these five things. Each answer consists of released values only: a ledger head, a
noised sum, weights that were trained under noise, a masked sum, noised counts, and a signed statement.
"""

from __future__ import annotations

import hashlib

from ghostnet.accounting import catalogue
from ghostnet.evidence.keys import DIGEST

JOIN = "query.join"  # the plan, ledger heads seen -> the hospital reserves the run's cost and answers with its head
WARM_START = "query.warm_start"  # nothing -> one noised sum of embeddings
TRAIN = "train"  # weights, released mean -> weights after local DP-SGD; the discriminator's too where it is shared
STEP = "query.step"  # pooled: discriminator weights, step, roster -> one masked sum over the patients
FINISH = "query.finish"  # final generator, tasks' models, digests of the sampler's files -> noised counts, a statement

NOISED_SUM = catalogue.WARM_START.array
MASKED_SUM = catalogue.POOLED_STEPS.array  # int64, uniform to whoever lacks a mask
DISCRIMINATOR = "discriminator."  # prefix of a shared discriminator's weights beside the generator's
RELEASED_MEAN = "released_mean"

REFUSED = 101  # error code: the hospital's policy, budget or ledger says no
SPENT = 103  # error code: this very request began before and died; asking again is in vain, the next one is not
FAILED = 102  # error code: something else went wrong there; the detail stays in the hospital's log
LATE = 104  # error code: nobody waits for the answer any more, by the hospital's clock; nothing was spent on it
REFUSALS = (REFUSED, SPENT, FAILED, LATE)


def is_head(value: object) -> bool:
    """True if the text has the form of a ledger head: 64 hexadecimal digits in lower case."""
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


def head_tag(run_id: str, public_key: str) -> str:
    """Name of a hospital in the list of known heads: only who knows its key can tell whose it is, in this run alone."""
    return hashlib.sha256(f"ghostnet known head {run_id} {public_key}".encode()).hexdigest()[:32]


def join_document(*, run_id: str, head: str) -> dict[str, str]:
    """The document that a hospital signs when it joins: the key is its own, so nobody else speaks for its ledger."""
    return {"document": "ghostnet join", "head": head, "run_id": run_id}
