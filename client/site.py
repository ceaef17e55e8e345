"""The only door to a hospital's data.

A `Site` answers the four requests of `ghostnet.protocol`. Each answer is charged before the first private read,
computed by a mechanism, stored, committed to the ledger and only then returned; the same request again gets the same
bytes, and a request that died half-way is refused for good.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.cohort import Cohorts, load_cohorts
from client.config import SiteConfig
from client.policy import check_plan
from client.replies import read_reply, write_reply
from client.secrets import load_or_create_secret
from ghostnet import protocol, warm_start
from ghostnet.cohort import Cohort
from ghostnet.errors import DataError, LedgerError
from ghostnet.plan import ImageSpec, Plan
from ghostnet.privacy import keys, releases
from ghostnet.privacy.claim import plan_events
from ghostnet.privacy.ledger import Ledger
from ghostnet.privacy.noise import SystemEntropy
from ghostnet.privacy.statement import site_statement
from ghostnet.progress import Progress, silent
from ghostnet.training import LocalState, train_round
from ghostnet.utility import classification, classifier
from ghostnet.weights import Arrays, arrays_sha256, check_arrays, load_arrays, to_arrays

Answer = Callable[[], Arrays]


@dataclass(frozen=True, kw_only=True)
class Joined:
    """What a hospital says when it joins a run; all of it is public."""

    name: str
    public_key: str
    ledger_head: str


class Site:
    """One hospital: its images, its limits and its ledger.

    Args:
        config: the hospital's site.toml.
        progress: told where long work is; stays on this machine.

    Guarantee:
        Unit: patient, add/remove one. Everything returned by `warm_start`, `train` and `finish` over all runs is
        together within the ledger's (epsilon, delta). Assumes: this process and its disk are not read by others.
        Not covered: the same patient at another hospital (see certificate.py).
    """

    def __init__(self, config: SiteConfig, *, progress: Progress = silent) -> None:
        self.config = config
        self._progress = progress
        self._entropy = SystemEntropy()
        self._prepared: tuple[ImageSpec, Cohorts] | None = None

    def prepare(self, image: ImageSpec) -> Cohorts:
        """Intake, de-identification and preprocessing into the site's cache: the hospital's own doing, asked by nobody.

        Raises:
            SiteError, DataError: the folder or its labels cannot be used.
        """
        if self._prepared is None or self._prepared[0] != image:
            secret = load_or_create_secret(self.config.state / "secret.key")
            self._prepared = (image, load_cohorts(self.config, image, secret, self._progress))
        return self._prepared[1]

    def join(self, plan: Plan, run_id: str, *, known_head: str = "") -> Joined:
        """Checks the plan against the hospital's policy and reserves the whole run's cost.

        Raises:
            PolicyError, BudgetError, LedgerError: the hospital does not take part; nothing private was read.
        """
        check_plan(plan, self.config.policy)
        with self._ledger() as ledger:
            ledger.check_not_rolled_back(known_head)
            self._reserve(ledger, plan, run_id)
            head = ledger.head()
        return Joined(name=self.config.name, public_key=keys.public_hex(self._key), ledger_head=head)

    def warm_start(self, plan: Plan, run_id: str) -> Arrays:
        """One noised sum of per-patient embeddings: {"noised_sum": float32 (D,)}.

        Guarantee:
            Unit: patient, add/remove one. Sensitivity: 1 (each patient's vector has norm at most 1).
            Charged as `warm_start` in `plan_events`.
        """

        def answer() -> Arrays:
            vectors = warm_start.patient_embeddings(self.prepare(plan.image).train, plan)  # (p, D)
            noised = releases.noisy_sum(
                vectors, norm_bound=1.0, noise_multiplier=plan.warm_start.noise_multiplier, entropy=self._entropy
            )
            return {protocol.NOISED_SUM: noised.numpy()}

        return self._release(plan, run_id, "warm_start", answer)

    def train(self, plan: Plan, run_id: str, server_round: int, generator: Arrays, released_mean: Arrays) -> Arrays:
        """One round of patient-level DP-SGD on the hospital's discriminator; returns the generator's moving average.

        Args:
            plan: the run's plan.
            run_id: the run that `join` reserved.
            server_round: 1-based; each round is answered once.
            generator: weights of the global generator.
            released_mean: {"released_mean": (D,)}, or nothing when the plan has no warm start.

        Guarantee:
            Unit: patient, add/remove one. Sensitivity: clip_norm a step. Assumes: Poisson sampling with rate q.
            The generator sees the data only through the noised discriminator (post-processing).
        """
        if not 1 <= server_round <= plan.federation.rounds:
            raise LedgerError(
                f"round {server_round} is not one of the plan's {plan.federation.rounds} rounds; ask for those"
            )

        def answer() -> Arrays:
            kept = self._run_folder(run_id) / "local_state.safetensors"
            state = LocalState(plan)
            if kept.exists():
                state.load_state(kept)
            load_arrays(state.generator, generator)
            mean = released_mean.get(protocol.RELEASED_MEAN)
            first_step = sum(plan.round_steps(number) for number in range(1, server_round))
            train_round(
                state.generator,
                state.discriminator,
                state.optimizers,
                self.prepare(plan.image).train,
                plan,
                first_step=first_step,
                steps=plan.round_steps(server_round),
                released_mean=None if mean is None else torch.from_numpy(mean),
                entropy=self._entropy,
                progress=self._progress,
                public_stream=_public_stream(self.config.name),
            )
            state.step = first_step + plan.round_steps(server_round)
            state.save_state(kept)
            return to_arrays(state.generator)

        return self._release(plan, run_id, f"round-{server_round}", answer)

    def finish(
        self, plan: Plan, run_id: str, generator: Arrays, public: Arrays, weights_sha256: str
    ) -> tuple[Arrays, dict[str, object]]:
        """Noised utility counts on the test patients, and the hospital's signed statement for the certificate.

        Args:
            plan: the run's plan.
            run_id: the run that `join` reserved.
            generator: final weights, to be published.
            public: a classifier trained on synthetic images ("classifier.*") and its score edges.
            weights_sha256: digest of the generator's weights as the coordinator will publish them.

        Returns:
            ({"noised_counts": float32 (cells,)} or {}, the statement).

        Guarantee:
            Unit: patient, add/remove one. Sensitivity: 1 (a patient's images share one count).
            Charged as `utility` in `plan_events`.
        """
        if arrays_sha256(generator) != weights_sha256:
            raise DataError("the digest to sign is not that of the generator received; send matching weights")

        def answer() -> Arrays:
            if plan.utility.noise_multiplier == 0:
                return {}
            test = self.prepare(plan.image).test
            model, edges = _received_classifier(plan, public)
            counts = classification.patient_counts(
                model, test, classes=len(plan.image.labels), edges=edges
            )  # (p, cells)
            noised = releases.noisy_sum(
                counts, norm_bound=1.0, noise_multiplier=plan.utility.noise_multiplier, entropy=self._entropy
            )
            self._write_own_report(plan, run_id, model, test)
            return {protocol.NOISED_COUNTS: noised.numpy()}

        released = self._release(plan, run_id, "finish", answer)
        return released, self._statement(plan, run_id, weights_sha256)

    def countersign(self, head: str, server_public_key: str, signature: str) -> None:
        """Keeps the coordinator's signature under a ledger head, as a witness against a restored old copy."""
        with self._ledger() as ledger:
            ledger.check_not_rolled_back(head)
            ledger.countersign(head, server_public_key, signature)

    def ledger_head(self) -> str:
        """Hash of the ledger's newest entry; it holds nothing that depends on a patient."""
        with self._ledger() as ledger:
            return ledger.head()

    def _ledger(self) -> Ledger:
        return Ledger.open(self.config.ledger_path, site=self.config.name)

    def _reserve(self, ledger: Ledger, plan: Plan, run_id: str) -> None:
        """Charges the whole run; for a run that is charged already, checks that the plan is still the same."""
        ledger.reserve(
            run_id=run_id,
            plan_hash=plan.hash(),
            events=plan_events(plan),
            epsilon=self.config.policy.max_epsilon,
            delta=self.config.policy.delta,
            requests=_requests(plan),
        )

    def _release(self, plan: Plan, run_id: str, request: str, answer: Answer) -> Arrays:
        """Charges, computes, stores, commits; then, and only then, returns."""
        stored = self._run_folder(run_id) / f"{request}.safetensors"
        with self._ledger() as ledger:
            self._reserve(ledger, plan, run_id)
            if ledger.state(run_id, request) == "committed":
                return read_reply(stored, ledger.digest(run_id, request))
            ledger.begin(run_id, request)
            arrays = answer()
            ledger.commit(run_id, request, write_reply(stored, arrays))
        return arrays

    def _statement(self, plan: Plan, run_id: str, weights_sha256: str) -> dict[str, object]:
        return site_statement(
            site=self.config.name,
            run_id=run_id,
            plan=plan,
            weights_sha256=weights_sha256,
            ledger_head=self.ledger_head(),
            key=self._key,
        )

    def _write_own_report(self, plan: Plan, run_id: str, model: torch.nn.Module, test: Cohort) -> None:
        """Exact figures, for the hospital's own eyes: they never leave its folder."""
        exact = classification.exact_figures(model, test, len(plan.image.labels))
        path = self._run_folder(run_id) / "report.json"
        path.write_text(json.dumps({"stays_in_the_hospital": True, "classification": exact}, indent=2) + "\n")
        path.chmod(0o600)

    @cached_property
    def _key(self) -> Ed25519PrivateKey:
        return keys.load_or_create_key(self.config.state / "site.key")

    def _run_folder(self, run_id: str) -> Path:
        folder = self.config.state / "runs" / run_id
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder


def _public_stream(name: str) -> int:
    """A public number of this hospital, so that two hospitals draw different fakes."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def _requests(plan: Plan) -> tuple[str, ...]:
    """Everything that a run of this plan may ask of the patients, each once."""
    first = ("warm_start",) if plan.warm_start.noise_multiplier > 0 else ()
    rounds = tuple(f"round-{number}" for number in range(1, plan.federation.rounds + 1))
    return (*first, *rounds, "finish")


def _received_classifier(plan: Plan, public: Mapping[str, np.ndarray]) -> tuple[torch.nn.Module, torch.Tensor | None]:
    """The coordinator's classifier and score edges, of exactly the plan's shape: the answer's size must not vary."""
    weights = {
        name.removeprefix(protocol.CLASSIFIER): array
        for name, array in public.items()
        if name.startswith(protocol.CLASSIFIER)
    }
    classes = len(plan.image.labels)
    model = classifier.build_classifier(channels=plan.image.channels, classes=classes)
    load_arrays(model, weights)
    if classes != 2:
        return model, None
    expected = {protocol.SCORE_EDGES: np.zeros(plan.utility.bins - 1, dtype=np.float32)}
    check_arrays({name: public[name] for name in expected if name in public}, expected)
    return model, torch.from_numpy(public[protocol.SCORE_EDGES])
