"""What a coordinator may ask of a hospital, and the names in the messages that carry it.

The coordinator can only ask for these five things. Each answer consists of released values only: a ledger head, a
noised sum, weights that were trained under noise, a masked sum, noised counts, and a signed statement.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

from ghostnet.accounting import catalogue
from ghostnet.errors import FederationError
from ghostnet.evidence.keys import DIGEST

JOIN = "query.join"  # the plan, ledger heads seen -> the hospital reserves the run's cost and answers with its head
WARM_START = "query.warm_start"  # nothing -> one noised sum of embeddings
TRAIN = "train"  # weights, released mean -> weights after local DP-SGD; the discriminator's too where it is shared
STEP = "query.step"  # pooled: discriminator weights, step, roster -> one masked sum over the patients
FINISH = "query.finish"  # final generator, tasks' models, digests of the sampler's files -> noised counts, a statement

ARRAYS = "arrays"  # the values released, or the model to start from
PUBLIC = "public"  # further public arrays that a request carries
CONFIG = "config"
FILES = "files"  # in a finish request's config: SHA-256 of every file of the sampler, as a JSON object
PUBLIC_IMAGES = "public-images-sha256"  # in a finish request's config: "" where the generator started from none
METRICS = "metrics"  # one constant: Flower's averaging wants a weight, and a true one would tell the cohort's size
WEIGHT = "weight"

NOISED_SUM = catalogue.WARM_START.array
MASKED_SUM = catalogue.POOLED_STEPS.array  # int64, uniform to whoever lacks a mask
DISCRIMINATOR = "discriminator."  # prefix of a shared discriminator's weights beside the generator's
RELEASED_MEAN = "released_mean"

REFUSED = 101  # error code: the hospital's policy, budget or ledger says no
SPENT = 103  # error code: this very request began before and died; asking again is in vain, the next one is not
FAILED = 102  # error code: something else went wrong there; the detail stays in the hospital's log

MAX_KNOWN_HEADS = 1000  # that a JOIN carries, the newest; what is beyond comes with the request after it
_KNOWN = re.compile(rf"([0-9a-f]{{32}})=({DIGEST.pattern})")
MAX_KNOWN_CHARACTERS = MAX_KNOWN_HEADS * (32 + 1 + 64 + 1)


def is_head(value: object) -> bool:
    """Whether it is a ledger head in form: 64 hexadecimal digits in lower case."""
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


def head_tag(run_id: str, public_key: str) -> str:
    """Name of a hospital in the list of known heads: only who knows its key can tell whose it is, in this run alone."""
    return hashlib.sha256(f"ghostnet known head {run_id} {public_key}".encode()).hexdigest()[:32]


def write_known_heads(run_id: str, heads: Iterable[tuple[str, str]]) -> str:
    """The text that a JOIN carries, from (public key, head); a hospital's own key is known only after its answer."""
    return " ".join(f"{head_tag(run_id, key)}={head}" for key, head in heads)


def read_known_heads(text: str) -> Mapping[str, str]:
    """Heads by tag.

    Raises:
        FederationError: it is something else.
    """
    matches = [_KNOWN.fullmatch(word) for word in text.split()]
    if len(matches) > MAX_KNOWN_HEADS or not all(matches):
        raise FederationError(f"the known heads of a JOIN are not at most {MAX_KNOWN_HEADS} of TAG=HEAD")
    return {match[1]: match[2] for match in matches if match}


def join_document(*, run_id: str, head: str) -> dict[str, str]:
    """What a hospital signs when it joins: that the key is its own, so that nobody speaks for its ledger."""
    return {"document": "ghostnet join", "head": head, "run_id": run_id}
