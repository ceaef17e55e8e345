"""The hospitals' last answers, published beside the weights that were made of them: transcript.safetensors.

An array is named SITE/REQUEST/NAME: "north/warm_start/noised_sum", "north/round-2/<a weight's name>". Where the
server's optimiser also uses what came before, "server/round-2/sent/NAME" and "server/round-2/moments/NAME" stand beside
them. Answers are released values, so that publishing them costs no privacy.

With the digests that the hospitals signed, anyone can check that the published weights are what the answers make.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from ghostnet.accounting.catalogue import Request
from ghostnet.errors import VerifyError
from ghostnet.exchange import protocol
from ghostnet.exchange.arrays import Arrays, arrays_sha256
from ghostnet.exchange.combining import WITH_MOMENTS, combine
from ghostnet.models.outline import outline_generator
from ghostnet.models.record import NetworkSizes
from ghostnet.plan import Plan
from ghostnet.plan.federation import FederationSpec
from ghostnet.training import warm_start

SERVER = "server"  # no hospital may have this name
WARM_START, ROUND = Request.WARM_START.value, Request.ROUND.value
SENT, MOMENTS = "sent/", "moments/"
_MASKED = "how the weights follow from pooled steps, under masks, is not shown"
_NAME = re.compile(rf"([a-z0-9-]{{1,32}})/({WARM_START}|{ROUND}[1-9][0-9]{{0,5}})/(.+)")


@lru_cache(maxsize=4)
def averaged_names(sizes: NetworkSizes) -> frozenset[str]:
    """Weights of a generator that are no parameters: its networks' running statistics."""
    return frozenset(name for name, _ in outline_generator(sizes).named_buffers())


def warm_start_record(sums: Mapping[str, np.ndarray]) -> Arrays:
    """The transcript after the warm start: each hospital's noised sum."""
    return {f"{site}/{WARM_START}/{protocol.NOISED_SUM}": value for site, value in sums.items()}


def round_record(
    before: Arrays,
    answers: Mapping[str, Arrays],
    *,
    server_round: int,
    sent: Arrays,
    moments: Arrays,
    federation: FederationSpec,
) -> Arrays:
    """The transcript after a round: its answers take the place of an earlier round's; the warm start's sums stay."""
    kept = {name: array for name, array in before.items() if name.split("/")[1] == WARM_START}
    request = f"{ROUND}{server_round}"
    kept |= {f"{site}/{request}/{name}": array for site, part in answers.items() for name, array in part.items()}
    if federation.server_optimizer in WITH_MOMENTS:
        parts = {SENT: sent, MOMENTS: moments}
        kept |= {f"{SERVER}/{request}/{k}{name}": array for k, part in parts.items() for name, array in part.items()}
    return kept


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The result of replaying a transcript against a sampler."""

    words: str
    released_mean: torch.Tensor | None  # (embedding.size,) of the warm start; None where the plan has none


def check_weights(folder: Path, plan: Plan, answered: Mapping[str, Mapping[str, str]]) -> Shown:
    """Holds a sampler's weights against the hospitals' answers.

    Args:
        folder: with model.safetensors and, where the plan has one, transcript.safetensors.
        plan: that the hospitals signed.
        answered: by hospital, the digest of the answer to each request, as it signed them.

    Raises:
        VerifyError: no hospital answered what the plan makes the weights of; an answer is not the one that was signed;
            or the weights are not what the answers make.
    """
    _require_contributions(plan.federation, answered)
    if not plan.has_transcript:
        return Shown(words=_MASKED, released_mean=None)
    with safe_open(folder / "transcript.safetensors", framework="np") as file:
        names = _grouped(file.keys())
        answers = {site: {r: _Lazy(file, f"{site}/{r}/", n) for r, n in of.items()} for site, of in names.items()}
        server = answers.pop(SERVER, {})
        for site, requests in answers.items():
            for request, arrays in requests.items():
                _check_answer(site, request, arrays, answered)
        mean, about_sums = _released_mean(plan, answers, server)
        about_round = _check_round(folder, plan, answers, server, answered)
    return Shown(words="; ".join(filter(None, (about_sums, about_round))), released_mean=mean)


class _Lazy(Mapping[str, np.ndarray]):
    """One answer's arrays, read from the file when they are asked for: a hundred hospitals' need not fit in memory."""

    def __init__(self, file: Any, prefix: str, names: list[str]) -> None:
        self._file, self._prefix, self._names = file, prefix, names

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        array: np.ndarray = self._file.get_tensor(self._prefix + name)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _grouped(keys: list[str]) -> dict[str, dict[str, list[str]]]:
    names: dict[str, dict[str, list[str]]] = {}
    for key in sorted(keys):
        match = _NAME.fullmatch(key)
        if not match:
            raise VerifyError(f"transcript.safetensors holds {key[:80]!r}, which is no hospital's answer")
        names.setdefault(match[1], {}).setdefault(match[2], []).append(match[3])
    return names


def _require_contributions(federation: FederationSpec, answered: Mapping[str, Mapping[str, str]]) -> None:
    """The last release was answered by as many as the plan asks for."""
    kind = "step" if federation.is_pooled else ROUND if federation.rounds else WARM_START
    took_part = [site for site, requests in answered.items() if any(r.startswith(kind) for r in requests)]
    if len(took_part) < federation.least_hospitals:
        made_of = {"step": "its pooled steps", ROUND: "its rounds", WARM_START: "its warm start"}[kind]
        raise VerifyError(
            f"the plan makes the weights of {made_of}, which {len(took_part)} of at least {federation.least_hospitals} "
            "hospitals answered: they are not these hospitals'"
        )


def _check_answer(
    site: str, request: str, arrays: Mapping[str, np.ndarray], answered: Mapping[str, Mapping[str, str]]
) -> None:
    signed = answered.get(site, {}).get(request)
    if signed is None:
        raise VerifyError(f"transcript.safetensors holds an answer of {site} to {request}, of which it signed none")
    if arrays_sha256({name: arrays[name] for name in arrays}) != signed:
        raise VerifyError(f"transcript.safetensors: the answer of {site} to {request} is not the one that it signed")


def _released_mean(
    plan: Plan, answers: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]], server: Mapping[str, object]
) -> tuple[torch.Tensor | None, str]:
    sums = {site: requests[WARM_START] for site, requests in answers.items() if WARM_START in requests}
    if WARM_START in server or (sums and plan.warm_start.noise_multiplier == 0):
        raise VerifyError("transcript.safetensors holds sums of a warm start that the plan does not have")
    if plan.warm_start.noise_multiplier == 0:
        return None, ""
    if len(sums) < plan.federation.least_hospitals:
        raise VerifyError(f"transcript.safetensors holds the warm start's sums of {len(sums)} hospitals: too few")
    for site, arrays in sums.items():
        value = arrays[protocol.NOISED_SUM]
        fits = value.dtype == np.float32 and value.shape == (plan.embedding.size,)
        if not (fits and set(arrays) == {protocol.NOISED_SUM} and np.isfinite(value).all()):
            raise VerifyError(f"transcript.safetensors: the sum of {site} is not one of the plan's warm start")
    values = {site: arrays[protocol.NOISED_SUM] for site, arrays in sums.items()}
    mean = warm_start.released_mean(values, plan.embedding, plan.warm_start, patients=plan.federation.patients)
    fit = "" if plan.federation.rounds else "; the fit of the weights to it is not replayed"
    return torch.from_numpy(mean), f"the released mean is that of the signed sums of {', '.join(sorted(sums))}{fit}"


def _check_round(
    folder: Path,
    plan: Plan,
    answers: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
    server: Mapping[str, Mapping[str, np.ndarray]],
    answered: Mapping[str, Mapping[str, str]],
) -> str:
    """The published weights are what one round's answers make, to the bit."""
    federation = plan.federation
    rounds = sorted({request for of in (*answers.values(), server) for request in of if request != WARM_START})
    if federation.is_pooled or federation.rounds == 0:
        if rounds:
            raise VerifyError(f"transcript.safetensors holds answers to {rounds[0]}, which the plan does not have")
        return _MASKED if federation.is_pooled else ""
    if len(rounds) != 1 or (federation.server_optimizer not in WITH_MOMENTS and server):
        raise VerifyError(f"transcript.safetensors holds {len(rounds)} rounds; it needs the answers of exactly one")
    (request,) = rounds
    parts = {site: of[request] for site, of in answers.items() if request in of}
    if len(parts) < federation.least_hospitals:
        raise VerifyError(f"transcript.safetensors holds {len(parts)} answers to {request}; the plan asks for more")
    published = load_file(folder / "model.safetensors")
    _require_same_names(published, parts, request)
    before = server.get(request, {})
    made = combine(
        parts,
        federation,
        names=sorted(published),
        server_round=int(request.removeprefix(ROUND)),
        sent=_part(before, SENT),
        moments=_part(before, MOMENTS),
        averaged=averaged_names(plan.networks),
    ).weights
    wrong = [name for name, array in published.items() if not _same_bits(array, made[name])]
    if wrong:
        raise VerifyError(f"the weights ({wrong[0][:80]}, ...) are not what the signed answers to {request} make")
    return f"{request} of {federation.rounds}: {_who(parts, request, answered)} to the bit{_moved_by(federation)}"


def _require_same_names(published: Arrays, parts: Mapping[str, Mapping[str, np.ndarray]], request: str) -> None:
    for site, arrays in parts.items():
        if {name for name in arrays if not name.startswith(protocol.DISCRIMINATOR)} != published.keys():
            raise VerifyError(f"model.safetensors holds other arrays than the answer of {site} to {request}")


def _who(parts: Mapping[str, object], request: str, answered: Mapping[str, Mapping[str, str]]) -> str:
    rounds = {r for of in answered.values() for r in of if r.startswith(ROUND)}
    later = sorted(r for r in rounds if _number(r) > _number(request))
    missing = sorted(site for site, of in answered.items() if request in of and site not in parts)
    words = f"the signed answers of {', '.join(sorted(parts))} make these weights"
    words += f" (without {', '.join(missing)}, who answered too)" if missing else ""
    return words + (f" (answers to {', '.join(later)} are not in them)" if later else "")


def _moved_by(federation: FederationSpec) -> str:
    if federation.server_optimizer not in WITH_MOMENTS:
        return ""
    return f", moved by {federation.server_optimizer} from weights and moments that are the coordinator's word"


def _number(request: str) -> int:
    return int(request.removeprefix(ROUND))


def _part(arrays: Mapping[str, np.ndarray], prefix: str) -> Arrays:
    return {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
