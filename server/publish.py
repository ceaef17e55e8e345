"""What a federation publishes: the sampler with its certificate, and the report.

Everything here is computed from released values; a reader of the run folder (outside `sites/`) learns nothing else.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ghostnet.errors import VerifyError
from ghostnet.plan import Plan
from ghostnet.privacy import certificate, keys
from ghostnet.privacy.claim import Claim, claim
from ghostnet.privacy.statement import not_covered
from ghostnet.progress import Progress
from ghostnet.public_images import PublicImages
from ghostnet.report.html import draw_figures, write_report
from ghostnet.sampler import Sampler, write_sampler
from ghostnet.utility import classification
from server.conversation import Hospital, Timing, tenths


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished federation, as the coordinator knows it."""

    plan: Plan
    run_id: str
    generator: torch.nn.Module
    label_prior: tuple[float, ...]  # that the sampler draws: the plan's, or the one that was released
    public: PublicImages | None  # that the generator started from
    hospitals: list[Hospital]
    noisy_counts: np.ndarray | None
    counted: int
    timings: list[Timing]
    server_s: dict[str, float]
    key: Ed25519PrivateKey


def publish(outcome: Outcome, out: Path, progress: Progress) -> None:
    """Writes RUN/sampler, RUN/report.json and RUN/report.html; the sampler appears whole or not at all."""
    progress("publish", 0, 2)
    staged = out / "sampler.tmp"
    shutil.rmtree(staged, ignore_errors=True)
    hashes = write_sampler(
        staged, outcome.generator, outcome.plan, run_id=outcome.run_id, label_prior=outcome.label_prior
    )
    bound = {"config.json", "model.safetensors"}
    document = certificate.build_certificate(
        plan=outcome.plan,
        run_id=outcome.run_id,
        weights_sha256=hashes.weights_sha256,
        config_sha256=hashes.config_sha256,
        statements=[hospital.statement for hospital in outcome.hospitals if hospital.statement is not None],
        server_key=outcome.key,
        other_files={file.name: certificate.file_sha256(file) for file in staged.iterdir() if file.name not in bound},
        public_images=outcome.public and {"source": outcome.public.source, "sha256": outcome.public.sha256},
    )
    certificate.write_certificate(staged, document)
    _require_verified(staged, outcome)
    shutil.rmtree(out / "sampler", ignore_errors=True)  # of an attempt that died before it was done
    staged.replace(out / "sampler")
    progress("publish", 1, 2)
    write_report(out, report(outcome), draw_figures(Sampler.load(out / "sampler")))
    progress("publish", 2, 2)


def _require_verified(folder: Path, outcome: Outcome) -> None:
    """Whoever receives the sampler will check it; so does whoever publishes it, with the keys that it was told."""
    told = {hospital.name: hospital.public_key for hospital in outcome.hospitals if hospital.statement is not None}
    told["server"] = keys.public_hex(outcome.key)
    failed = [check for check in certificate.verify_sampler(folder, trusted_keys=told) if not check.passed]
    if failed:
        raise VerifyError(f"nothing is published: {failed[0].name} does not hold: {failed[0].detail}")


def report(outcome: Outcome) -> dict[str, object]:
    """The content of report.json."""
    plan, promised = outcome.plan, claim(outcome.plan)
    return {
        "plan": {"name": plan.name, "hash": plan.hash(), **plan.to_dict()},
        "run_id": outcome.run_id,
        "privacy": {
            "epsilon": promised.epsilon_pld,
            "epsilon_pld": promised.epsilon_pld,
            "epsilon_rdp": promised.epsilon_rdp,
            "epsilon_all_hospitals": promised.epsilon_pld_all_hospitals,
            "delta": promised.delta,
            "unit": promised.unit,
            "adjacency": promised.adjacency,
            "protects": promised.protects,
            **_coalition(plan, promised),
            "sites": [
                {
                    "name": hospital.name,
                    "epsilon_pld": promised.epsilon_pld,
                    "epsilon_rdp": promised.epsilon_rdp,
                    "ledger_head": hospital.ledger_head,
                }
                for hospital in sorted(outcome.hospitals, key=lambda hospital: hospital.name)
            ],
            "not_covered": not_covered(plan),
        },
        "federation": {
            "share": plan.federation.share,
            "server_optimizer": None if plan.federation.is_pooled else plan.federation.server_optimizer,
            "weights": {entry.hospital: entry.weight for entry in plan.federation.weights} or "equal",
            "hospitals": len(outcome.hospitals),
        },
        "utility": _utility(outcome),
        "fidelity": {},
        "timing": {
            "rounds": [timing.to_dict() for timing in outcome.timings],
            "server": [{"work": work, "wall_s": tenths(wall)} for work, wall in outcome.server_s.items()],
            "total_s": tenths(sum(timing.wall_s for timing in outcome.timings) + sum(outcome.server_s.values())),
        },
        "sites": [{"name": h.name, "answered": h.answered} for h in outcome.hospitals],
    }


def _coalition(plan: Plan, promised: Claim) -> dict[str, float]:
    """What those who know a part of a pooled run's noise could learn."""
    if not plan.federation.is_pooled:
        return {}
    return {
        "epsilon_coalition": promised.epsilon_pld_coalition,
        "epsilon_other_hospital": promised.epsilon_pld_other_hospital,
    }


def _utility(outcome: Outcome) -> dict[str, object]:
    if outcome.noisy_counts is None:
        return {}
    utility = outcome.plan.utility
    noise_std = utility.noise_multiplier * np.sqrt(outcome.counted)
    figures = classification.figures(
        torch.from_numpy(outcome.noisy_counts),
        len(outcome.plan.image.labels),
        utility.bins,
        float(noise_std),
        labels=outcome.plan.image.labels,
    )
    released = f"noised counts of {outcome.counted} hospitals, noise multiplier {utility.noise_multiplier:g} each"
    return {"classification": {**figures, "released": released}}
