"""A published sampler without a run: answers are drawn instead of trained, everything after them is the real thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import client
from client.requests import Publication
from ghostnet.accounting.catalogue import run_requests
from ghostnet.certificate import transcript
from ghostnet.certificate.certificate import build_certificate, write_certificate
from ghostnet.evidence import keys
from ghostnet.evidence.software import installed_software
from ghostnet.evidence.statement import Lifetime, SiteStatement, plan_epsilons, site_statement
from ghostnet.exchange.arrays import Arrays, arrays_sha256, join_pair, load_arrays, split_pair
from ghostnet.exchange.combining import combine
from ghostnet.exchange.secure_sum import hospitals_sha256
from ghostnet.models import build_discriminator, build_generator
from ghostnet.plan import Plan
from ghostnet.plan.unit import protects
from ghostnet.sampler.folder import WEIGHTS_FILE, file_names, sha256, texts
from ghostnet.sampler.write import write_sampler
from ghostnet.training import warm_start

RUN = "ab" * 16
SERVER = Ed25519PrivateKey.generate()
SITES = {name: Ed25519PrivateKey.generate() for name in ("north", "south")}
TRUSTED = {name: keys.public_hex(key) for name, key in {**SITES, "server": SERVER}.items()}
PUBLIC_SHA256 = "ab" * 32
SOFTWARE = installed_software(Path(client.__file__).resolve().parent)


def sums_of(plan: Plan) -> dict[str, np.ndarray]:
    """A warm start's noised sum of each hospital."""
    if plan.warm_start.noise_multiplier == 0:
        return {}
    rng = np.random.default_rng(1)
    size = plan.embedding.size
    return {site: 1 + rng.standard_normal(size).astype(np.float32) / 4 for site in sorted(SITES)}


def answers_of(plan: Plan) -> dict[str, Arrays]:
    """Each hospital's answer to the last round: weights near the initial ones."""
    discriminator = build_discriminator(plan.networks) if plan.federation.share == "gan" else None
    start, rng = join_pair(build_generator(plan.networks), discriminator), np.random.default_rng(2)
    return {
        site: {
            name: array + np.float32(0.1) * rng.random(array.shape, dtype=np.float32) for name, array in start.items()
        }
        for site in sorted(SITES)
    }


def transcript_of(plan: Plan) -> tuple[Arrays, torch.nn.Module]:
    """What is published of the answers, and the generator that they make."""
    record, generator = transcript.warm_start_record(sums_of(plan)), build_generator(plan.networks)
    if plan.federation.is_pooled or plan.federation.rounds == 0:
        return record, generator
    answers = answers_of(plan)
    sent = {name: array * np.float32(0.9) for name, array in answers["north"].items()}
    last, moments = plan.federation.rounds, {f"m.{name}": array / np.float32(7) for name, array in sent.items()}
    if plan.federation.server_optimizer == "fedadam":
        moments |= {f"v.{name}": array**2 for name, array in sent.items()}
    made = combine(
        answers,
        plan.federation,
        names=sent,
        server_round=last,
        sent=sent,
        moments=moments,
        averaged=transcript.averaged_names(plan.networks),
    )
    load_arrays(generator, split_pair(made.weights)[0])
    return transcript.round_record(
        record, answers, server_round=last, sent=sent, moments=moments, federation=plan.federation
    ), generator


def requests_of(plan: Plan, record: Mapping[str, np.ndarray], site: str) -> dict[str, str]:
    """Everything that the plan asks, answered; those in the transcript with their own digests."""
    digests = {request: sha256(f"{site} {request}".encode()) for request in run_requests(plan)}
    for request in digests:
        prefix = f"{site}/{request}/"
        arrays = {name.removeprefix(prefix): array for name, array in record.items() if name.startswith(prefix)}
        if arrays:
            digests[request] = arrays_sha256(arrays)
    return digests


def statement_of(plan: Plan, site: str, files: Mapping[str, str], requests: Mapping[str, str], **more: Any) -> Any:
    """What a hospital signs that has run nothing else; `more` are other arguments of `site_statement`."""
    unit = more.get("unit", plan.privacy.unit)
    pld, rdp = (plan_epsilons(plan)[name] for name in ("epsilon_pld", "epsilon_rdp"))
    given: dict[str, Any] = {
        "site": site,
        "run_id": RUN,
        "plan": plan,
        "files": files,
        "requests": requests,
        "lifetime": Lifetime(
            epsilon_pld=pld,
            epsilon_rdp=rdp,
            max_epsilon=30.0,
            delta=plan.privacy.delta,
            protects=protects(unit),
            adoptions=0,
        ),
        "software": SOFTWARE,
        "ledger_head": "c" * 64,
        "key": SITES[site],
        "unit": unit,
        "public_images_sha256": PUBLIC_SHA256 if plan.warm_start.public else "",
    }
    return site_statement(**{**given, **more})


def publish(
    folder: Path,
    plan: Plan,
    *,
    known: tuple[str, ...] = (),
    requests: Mapping[str, Mapping[str, str]] | None = None,
    **more: Any,
) -> Path:
    """Writes a sampler's folder as the coordinator does.

    Args:
        folder: to write.
        plan: resolved.
        known: pooled: how each hospital knew the others' keys.
        requests: by hospital, what it answered; default everything.
        more: of every statement (`statement_of`).
    """
    record, generator = transcript_of(plan)
    mean, sums = None, sums_of(plan)
    if sums:
        patients = plan.federation.patients
        mean = torch.from_numpy(warm_start.released_mean(sums, plan.embedding, plan.warm_start, patients=patients))
    prior = warm_start.with_released_prior(plan, mean).image.label_prior
    files = write_sampler(folder, generator, plan, run_id=RUN, label_prior=prior, transcript=record)
    hospitals = hospitals_sha256(RUN, {name: TRUSTED[name] for name in SITES})
    statements: list[SiteStatement] = []
    for i, site in enumerate(SITES):
        masked = {"hospitals_sha256": hospitals, "keys": known[i]} if known else None
        answered = (requests or {}).get(site, requests_of(plan, record, site))
        statements.append(statement_of(plan, site, files, answered, masked_with=masked, **more))
    write_certificate(folder, build_certificate(plan=plan, statements=statements, server_key=SERVER))
    return folder


def publication(plan: Plan, run_id: str, generator: Arrays, *, prior: tuple[float, ...] | None = None) -> Publication:
    """Digests that a hospital signs for these weights; picture and transcript are any."""
    weights = arrays_sha256(generator)
    files = dict.fromkeys(file_names(plan), "5" * 64) | {WEIGHTS_FILE: weights}
    written = texts(plan, run_id=run_id, weights_sha256=weights, label_prior=prior)
    files |= {name: sha256(content) for name, content in written.items()}
    return Publication(files=files, public_images_sha256=PUBLIC_SHA256 if plan.warm_start.public else "")


def keys_of(sites: Path) -> dict[str, str]:
    """Public keys of the hospitals whose folders are in `sites`, as each would give its own."""
    files = sorted(sites.glob("*/site.key"))
    return {file.parent.name: keys.public_hex(keys.load_or_create_key(file)) for file in files}


def with_federation(plan: Plan, **changes: Any) -> Plan:
    """The plan with another [federation]."""
    return replace(plan, federation=replace(plan.federation, **changes))
