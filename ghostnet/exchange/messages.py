"""The messages between coordinator and hospital: a record for each request and each answer, with its limits.

`encode` gives the plain texts, whole numbers and arrays of a record, by name, which any transport can carry. Decoding
checks every one of them, on both sides: names, types, lengths, patterns and sizes here, and what only the plan knows
(shapes, ranges, signatures) where the message is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import DTypeLike
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from ghostnet.errors import FederationError, PlanError, printable
from ghostnet.evidence.keys import DIGEST, NAME, SIGNATURE
from ghostnet.exchange import protocol
from ghostnet.exchange.arrays import Arrays
from ghostnet.exchange.secure_sum import MAX_ROSTER_CHARACTERS
from ghostnet.plan import Plan, plan_from_dict
from ghostnet.plan.federation import MAX_POOLED_STEPS, MAX_ROUNDS

MAX_PLAN_CHARACTERS = 100_000
MAX_FILES = 20  # of a sampler
MAX_FILES_CHARACTERS = 2_000
MAX_KNOWN_HEADS = 1000  # that a JOIN carries, the newest; any other comes with the request after it
MAX_KNOWN_CHARACTERS = 120_000
MAX_STATEMENT_CHARACTERS = 2_000_000  # it names each of a run's rounds
MAX_ARRAYS = 4_096  # in a group
MAX_ARRAY_NAME = 200
MAX_NUMBERS = 2**28  # in a group; 1 GiB as float32
MAX_UNIX_S = 2**40
MAX_REASON_CHARACTERS = 300

_SHOWN = 200  # characters of what is wrong with a message
_AGREED = ConfigDict(
    extra="forbid",
    arbitrary_types_allowed=True,
    alias_generator=lambda name: name.replace("_", "-"),
)


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A message as a transport carries it."""

    values: Mapping[str, object]  # texts and whole numbers, by name
    arrays: Mapping[str, Arrays]  # groups of named arrays, by the group's name


def _parse(text: object, limit: int) -> object:
    """Reads a JSON text of at most so many characters."""
    if not isinstance(text, str) or len(text) > limit:
        raise ValueError(f"not a text of at most {limit} characters")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None


def _json(limit: int) -> BeforeValidator:
    return BeforeValidator(lambda text: _parse(text, limit))


def _read_plan(text: object) -> Plan:
    try:
        return plan_from_dict(_parse(text, MAX_PLAN_CHARACTERS), source="the coordinator's plan")
    except PlanError as error:
        raise ValueError(str(error)) from None


def _arrays_of(dtype: DTypeLike) -> PlainValidator:
    """Named arrays of one type; names and shapes are checked against the plan where they are used."""

    def check(group: object) -> Arrays:
        if not isinstance(group, dict) or len(group) > MAX_ARRAYS:
            raise ValueError(f"not a group of at most {MAX_ARRAYS} named arrays")
        for name, array in group.items():
            if not isinstance(name, str) or len(name) > MAX_ARRAY_NAME:
                raise ValueError(f"an array's name is not a text of at most {MAX_ARRAY_NAME} characters")
            if not isinstance(array, np.ndarray) or array.dtype != dtype:
                given = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
                raise ValueError(f"{name} holds {given}, not an array of {np.dtype(dtype).name}")
        if sum(array.size for array in group.values()) > MAX_NUMBERS:
            raise ValueError(f"more than {MAX_NUMBERS} numbers")
        return group

    return PlainValidator(check)


def _text(pattern: str) -> StringConstraints:
    return StringConstraints(pattern=f"^(?:{pattern})$", strict=True)


_AS_JSON = PlainSerializer(json.dumps)
_AS_IT_IS = PlainSerializer(lambda arrays: arrays)

Name = Annotated[str, _text(NAME.pattern)]
Digest = Annotated[str, _text(DIGEST.pattern)]
OptionalDigest = Annotated[str, _text(f"|{DIGEST.pattern}")]
OptionalSignature = Annotated[str, _text(f"|{SIGNATURE.pattern}")]
Hex32 = Annotated[str, _text("[0-9a-f]{32}")]
UnixSeconds = Annotated[int, Field(strict=True, ge=0, le=MAX_UNIX_S)]
PlanText = Annotated[Plan, PlainValidator(_read_plan), PlainSerializer(lambda plan: json.dumps(plan.to_dict()))]
KnownHeads = Annotated[dict[Hex32, Digest], Field(max_length=MAX_KNOWN_HEADS), _json(MAX_KNOWN_CHARACTERS), _AS_JSON]
FileDigests = Annotated[dict[str, Digest], Field(max_length=MAX_FILES), _json(MAX_FILES_CHARACTERS), _AS_JSON]
Statement = Annotated[dict[str, Any], _json(MAX_STATEMENT_CHARACTERS), _AS_JSON]
FloatArrays = Annotated[Arrays, _arrays_of(np.float32), _AS_IT_IS]
IntArrays = Annotated[Arrays, _arrays_of(np.int64), _AS_IT_IS]


@dataclass(frozen=True, kw_only=True)
class Header:
    """The fields that every request carries."""

    __pydantic_config__ = _AGREED

    plan: PlanText
    run_id: Hex32
    deadline: UnixSeconds  # the coordinator waits until then, by its own clock
    server_key: Digest
    known_head: OptionalDigest = ""  # of this hospital, the last that the coordinator saw
    head_signature: OptionalSignature = ""  # the coordinator's, under that head; "" where it does not countersign


@dataclass(frozen=True, kw_only=True)
class JoinRequest:
    """Asks a hospital to take part: it checks the plan and reserves the run's whole cost."""

    __pydantic_config__ = _AGREED
    kind: ClassVar[str] = protocol.JOIN

    known_heads: KnownHeads = field(default_factory=dict)  # of many hospitals, each under its `protocol.head_tag`


@dataclass(frozen=True, kw_only=True)
class WarmStartRequest:
    """Asks for one noised sum of embeddings."""

    __pydantic_config__ = _AGREED
    kind: ClassVar[str] = protocol.WARM_START


@dataclass(frozen=True, kw_only=True)
class RoundRequest:
    """Asks for weights after a round of local training."""

    __pydantic_config__ = _AGREED
    kind: ClassVar[str] = protocol.TRAIN

    server_round: Annotated[int, Field(strict=True, ge=1, le=MAX_ROUNDS)]
    weights: FloatArrays  # the generator's; and the discriminator's where it is shared
    released_mean: FloatArrays = field(default_factory=dict)  # none without a warm start


@dataclass(frozen=True, kw_only=True)
class StepRequest:
    """Asks for one masked sum of a pooled run."""

    __pydantic_config__ = _AGREED
    kind: ClassVar[str] = protocol.STEP

    step: Annotated[int, Field(strict=True, ge=1, le=MAX_POOLED_STEPS)]
    roster: Annotated[str, Field(strict=True, max_length=MAX_ROSTER_CHARACTERS)]
    discriminator: FloatArrays


@dataclass(frozen=True, kw_only=True)
class FinishRequest:
    """Asks for noised utility counts, and for a statement about the sampler's files."""

    __pydantic_config__ = _AGREED
    kind: ClassVar[str] = protocol.FINISH

    files: FileDigests
    public_images_sha256: OptionalDigest = ""  # "" where the generator started from no public images
    generator: FloatArrays
    public: FloatArrays = field(default_factory=dict)  # models of the plan's tasks, released mean


Body = JoinRequest | WarmStartRequest | RoundRequest | StepRequest | FinishRequest


@dataclass(frozen=True, kw_only=True)
class Request:
    """A whole request."""

    header: Header
    body: Body


@dataclass(frozen=True, kw_only=True)
class JoinAnswer:
    """A hospital takes part; all of this is public."""

    __pydantic_config__ = _AGREED
    kind: ClassVar[str] = protocol.JOIN

    name: Name
    public_key: Digest
    ledger_head: Digest
    join_signature: OptionalSignature = ""  # under `protocol.join_document`: the key is this hospital's own
    mask_key: OptionalDigest = ""  # pooled: this run's, and the hospital's signature under it
    mask_key_signature: OptionalSignature = ""


@dataclass(frozen=True, kw_only=True)
class WarmStartAnswer:
    """One noised sum of embeddings."""

    __pydantic_config__ = _AGREED
    kind: ClassVar[str] = protocol.WARM_START

    ledger_head: Digest
    arrays: FloatArrays


@dataclass(frozen=True, kw_only=True)
class RoundAnswer:
    """Weights after local training."""

    __pydantic_config__ = _AGREED
    kind: ClassVar[str] = protocol.TRAIN

    ledger_head: Digest
    arrays: FloatArrays


@dataclass(frozen=True, kw_only=True)
class StepAnswer:
    """One masked sum."""

    __pydantic_config__ = _AGREED
    kind: ClassVar[str] = protocol.STEP

    ledger_head: Digest
    arrays: IntArrays


@dataclass(frozen=True, kw_only=True)
class FinishAnswer:
    """Noised counts, or none, and the hospital's signed statement."""

    __pydantic_config__ = _AGREED
    kind: ClassVar[str] = protocol.FINISH

    ledger_head: Digest
    arrays: FloatArrays
    statement: Statement


Answer = JoinAnswer | WarmStartAnswer | RoundAnswer | StepAnswer | FinishAnswer
ReleasedAnswer = WarmStartAnswer | RoundAnswer | StepAnswer | FinishAnswer

REQUESTS: Mapping[str, type[Body]] = {
    cls.kind: cls for cls in (JoinRequest, WarmStartRequest, RoundRequest, StepRequest, FinishRequest)
}


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A hospital does not answer; says nothing of why but its code."""

    code: int
    reason: str


R = TypeVar("R", bound=Header | Body | Answer)
A = TypeVar("A", bound=Answer)


def encode(record: Header | Body | Answer) -> Plain:
    """A record's texts, whole numbers and arrays, by name."""
    named = _adapter(type(record)).dump_python(record, by_alias=True)
    return Plain(
        values={name: value for name, value in named.items() if not isinstance(value, dict)},
        arrays={name: value for name, value in named.items() if isinstance(value, dict)},
    )


def decode_request(kind: str, plain: Plain) -> Request:
    """The request that a coordinator sent.

    Raises:
        FederationError: it is none: a field is unknown, missing, too long, or of another form than agreed.
    """
    if kind not in REQUESTS:
        raise FederationError(f"{printable(kind[:_SHOWN])!r} is no request; a coordinator asks for {sorted(REQUESTS)}")
    what = f"the request {kind}"
    named = _named(plain, what)
    own = {name: value for name, value in named.items() if name in _HEADER_NAMES}
    rest = {name: value for name, value in named.items() if name not in _HEADER_NAMES}
    return Request(header=_read(Header, own, what), body=_read(REQUESTS[kind], rest, what))


def decode_answer(cls: type[A], plain: Plain) -> A:
    """The answer that a hospital sent.

    Raises:
        FederationError: it is none; see `decode_request`.
    """
    what = f"the answer to {cls.kind}"
    return _read(cls, _named(plain, what), what)


def read_refusal(code: int, reason: str) -> Refusal:
    """A refusal that arrived: its reason cut and without control characters, its code one of those agreed."""
    known = code if code in protocol.REFUSALS else protocol.FAILED
    return Refusal(code=known, reason=printable(reason[:MAX_REASON_CHARACTERS]))


_HEADER_NAMES = frozenset(spec.name.replace("_", "-") for spec in fields(Header))


def _named(plain: Plain, what: str) -> dict[str, object]:
    twice = plain.values.keys() & plain.arrays.keys()
    if twice:
        raise FederationError(f"{what} holds {printable(min(twice)[:_SHOWN])!r} as a value and as arrays; send one")
    return {**plain.values, **plain.arrays}


def _read(cls: type[R], named: Mapping[str, object], what: str) -> R:
    try:
        return _adapter(cls).validate_python(dict(named))
    except ValidationError as refused:
        fault = refused.errors(include_url=False, include_context=False, include_input=False)[0]
    name = printable(str(fault["loc"][0] if fault["loc"] else "")[:_SHOWN])
    if fault["type"] == "unexpected_keyword_argument":
        said = f"{what} holds {name!r}, which is not one of its fields"
    elif fault["type"] == "missing":
        said = f"{what} gives no {name}"
    else:
        said = f"{what} gives no {name} as agreed: {printable(fault['msg'].removeprefix('Value error, ')[:_SHOWN])}"
    raise FederationError(f"{said}; both sides need the same release of GhostNet")


_adapters: dict[type, TypeAdapter[Any]] = {}


def _adapter(cls: type[R]) -> TypeAdapter[R]:
    """Made once for each record."""
    if cls not in _adapters:
        _adapters[cls] = TypeAdapter(cls)
    return _adapters[cls]
