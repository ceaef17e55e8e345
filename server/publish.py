"""Publishes a run's results: the sampler with its certificate, and the report.

Everything here is computed from released values; a reader of the run folder (outside `sites/`) learns nothing else.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ghostnet.accounting.plan_cost import Claim, claim
from ghostnet.certificate import certificate
from ghostnet.errors import VerifyError
from ghostnet.evidence import keys
from ghostnet.evidence.statement import not_covered
from ghostnet.exchange.arrays import arrays_sha256, to_arrays
from ghostnet.plan import Plan
from ghostnet.progress import Progress
from ghostnet.report.html import draw_figures, write_report
from ghostnet.sampler.folder import CERTIFICATE_FILE, WEIGHTS_FILE
from ghostnet.sampler.sampler import Sampler
from ghostnet.sampler.write import write_sampler
from ghostnet.utility.task import find_task, task_spec
from ghostnet.utility.verdict import with_verdict
from server.checkpoint import Checkpoint
from server.conversation import Hospital, Timing, tenths


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished federation, as the coordinator knows it."""

    plan: Plan
    run_id: str
    staged: Path  # the sampler's folder, as the hospitals signed it
    hospitals: list[Hospital]
    noisy_counts: Mapping[str, np.ndarray]  # of each task, summed over the hospitals
    counted: int  # hospitals in that sum
    timings: list[Timing]
    server_s: dict[str, float]
    key: Ed25519PrivateKey
    left_out: Sequence[str] = ()  # "NAME: why"


def stage(
    generator: torch.nn.Module, plan: Plan, checkpoint: Checkpoint, *, label_prior: tuple[float, ...]
) -> dict[str, str]:
    """Writes the sampler's files for the hospitals to sign, and returns the SHA-256 of each by its name.

    A hospital signs one set of files in a run, whatever fails later: an attempt that takes up an earlier one publishes
    the earlier one's files, to the byte.
    """
    staged, published = checkpoint.staged, checkpoint.out / "sampler"
    if published.exists() and not staged.exists():  # an attempt died between publishing and saying so
        published.replace(staged)
    (staged / CERTIFICATE_FILE).unlink(missing_ok=True)
    if staged.exists():
        files = {file.name: certificate.file_sha256(file) for file in staged.iterdir()}
        if files.get(WEIGHTS_FILE) == arrays_sha256(to_arrays(generator)):
            return files
        shutil.rmtree(staged)
    return write_sampler(
        staged,
        generator,
        plan,
        run_id=checkpoint.run_id,
        label_prior=label_prior,
        transcript=checkpoint.transcript,
    )


def publish(outcome: Outcome, out: Path, progress: Progress) -> None:
    """Writes RUN/sampler, RUN/report.json and RUN/report.html; the sampler appears whole or not at all."""
    progress("publish", 0, 2)
    document = certificate.build_certificate(
        plan=outcome.plan,
        statements=[hospital.statement for hospital in outcome.hospitals if hospital.statement is not None],
        server_key=outcome.key,
    )
    certificate.write_certificate(outcome.staged, document)
    _require_verified(outcome.staged, outcome)
    outcome.staged.replace(out / "sampler")
    progress("publish", 1, 2)
    write_report(out, report(outcome), draw_figures(Sampler.load(out / "sampler")))
    progress("publish", 2, 2)


def _require_verified(folder: Path, outcome: Outcome) -> None:
    """Verifies the sampler before it is published, as its recipients will, with the keys that it was given."""
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
            "left_out": list(outcome.left_out),
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
    """Epsilon against those who know a part of a pooled run's noise."""
    if not plan.federation.is_pooled:
        return {}
    return {
        "epsilon_coalition": promised.epsilon_pld_coalition,
        "epsilon_other_hospital": promised.epsilon_pld_other_hospital,
    }


def _utility(outcome: Outcome) -> dict[str, object]:
    spec, noise_multiplier = task_spec(outcome.plan), outcome.plan.utility.noise_multiplier
    noise_std = float(noise_multiplier * np.sqrt(outcome.counted))
    released = f"noised counts of {outcome.counted} hospitals, noise multiplier {noise_multiplier:g} each"
    return {
        name: with_verdict({**find_task(name).figures(torch.from_numpy(counts), spec, noise_std), "released": released})
        for name, counts in outcome.noisy_counts.items()
    }
