"""The only door to a hospital's data.

A `Site` answers the five requests of `ghostnet.exchange.messages`. Each answer is charged before the first private
read, computed by a mechanism, stored, committed to the ledger and only then returned; the same request again gets the
same bytes, and a request that died half-way is refused for good.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.cohort import Cohorts, load_cohorts
from client.config import SiteConfig
from client.intake.unit import data_unit
from client.masking import RunMasks
from client.policy import check_coalition, check_plan, check_unit
from client.replies import read_reply, write_reply
from client.requests import (
    Publication,
    check_publication,
    public_stream,
    received_mean,
)
from client.secrets import load_or_create_secret
from ghostnet.accounting import catalogue
from ghostnet.accounting.catalogue import Request, run_requests
from ghostnet.accounting.plan_cost import plan_events
from ghostnet.errors import LedgerError, SpentError
from ghostnet.evidence import keys
from ghostnet.evidence.faults import RUNS_NAME
from ghostnet.evidence.ledger import Ledger
from ghostnet.evidence.software import installed_software
from ghostnet.evidence.statement import Lifetime, plan_epsilons, site_statement
from ghostnet.exchange import pooled, protocol
from ghostnet.exchange.arrays import Arrays, join_pair, load_arrays, split_pair
from ghostnet.exchange.messages import JoinAnswer
from ghostnet.models import build_discriminator, build_generator
from ghostnet.plan import ImageSpec, Plan
from ghostnet.privacy.noise import SystemEntropy
from ghostnet.progress import Progress, silent
from ghostnet.training import warm_start
from ghostnet.training.cohort import Cohort
from ghostnet.training.device import find_device
from ghostnet.training.loop import train_round
from ghostnet.training.release import release_vectors
from ghostnet.training.state import LocalState
from ghostnet.utility.task import TaskModel, find_task, received_models, task_spec

Answer = Callable[[], Arrays]


class Site:
    """One hospital: its images, its limits and its ledger.

    Args:
        config: the hospital's site.toml.
        progress: told where long work is; stays on this machine.
        keep_ledger_open: between the steps of a pooled run; for a process that serves all requests of a run.

    Guarantee:
        Unit: patient, add/remove one; the image where the data names no patients (`client.intake.unit`), which a plan
        has to say. Everything returned by `warm_start`, `train` and `finish`, and the totals that `step` adds to, are
        over all runs together within the ledger's (epsilon, delta). Assumes: this process and its disk are not read by
        others.
        Not covered: the same patient at another hospital (see certificate.py), or in another state folder: a budget
        belongs to one state folder, and a second site.toml over the same images has its own.
    """

    def __init__(self, config: SiteConfig, *, progress: Progress = silent, keep_ledger_open: bool = False) -> None:
        self.config = config
        self._keep_ledger_open = keep_ledger_open
        self._progress = progress
        self._entropy = SystemEntropy()
        self._device = find_device(config.compute.device, key=f"[compute].device in {config.source}")
        self._loaded: tuple[ImageSpec, Cohorts] | None = None
        self._held: Ledger | None = None
        self._software = installed_software(Path(__file__).resolve().parent)  # as this process has loaded it

    def prepare(self, image: ImageSpec) -> Cohorts:
        """Intake, de-identification and preprocessing into the site's cache: the hospital's own doing, asked by nobody.

        Raises:
            SiteError, DataError: the folder or its labels cannot be used.
        """
        return self._take_in(image, strict=True)

    def _cohorts(self, image: ImageSpec) -> Cohorts:
        """For answering a coordinator: never refuses because of one row, which would tell about one patient."""
        if self._loaded is None or self._loaded[0] != image:
            self._loaded = (image, self._take_in(image, strict=False))
        return self._loaded[1]

    def _train_patients(self, image: ImageSpec) -> Cohort:
        """The training patients, however many: whether a hospital answers never depends on their number."""
        return self._cohorts(image).train

    def _take_in(self, image: ImageSpec, *, strict: bool) -> Cohorts:
        secret = load_or_create_secret(self.config.state / "secret.key")
        return load_cohorts(self.config, image, secret, self._progress, strict=strict)

    def join(
        self, plan: Plan, run_id: str, *, known_head: str = "", known_heads: Mapping[str, str] = MappingProxyType({})
    ) -> JoinAnswer:
        """Checks the plan against the hospital's policy and reserves the whole run's cost.

        Args:
            plan: the run's plan.
            run_id: the run.
            known_head: the newest head of this hospital that the coordinator knows; "" where it knows none.
            known_heads: or such heads of many hospitals, each under `protocol.head_tag`.

        Raises:
            PolicyError, BudgetError, LedgerError: the hospital does not take part; nothing private was read.
        """
        self.close()
        with self._ledger() as ledger:
            self._require_key(ledger)
            public_key = keys.public_hex(self._key)
            ledger.check_not_rolled_back(known_head or known_heads.get(protocol.head_tag(run_id, public_key), ""))
            self._reserve(ledger, plan, run_id)
            head = ledger.head()
            joined = JoinAnswer(
                name=self.config.name,
                public_key=public_key,
                ledger_head=head,
                join_signature=keys.sign(self._key, protocol.join_document(run_id=run_id, head=head)),
            )
            if not plan.federation.is_pooled:
                return joined
            member = self._masks(plan, run_id).member()
            return dataclasses.replace(joined, mask_key=member.mask_key, mask_key_signature=member.signature)

    def warm_start(self, plan: Plan, run_id: str) -> Arrays:
        """One noised sum of per-patient embeddings: {"noised_sum": float32 (D,)}.

        Guarantee:
            Unit: patient, add/remove one. Sensitivity: 1 (each patient's vector has norm at most 1).
            Charged as `catalogue.WARM_START`.
        """

        def answer() -> Arrays:
            patients = self._train_patients(plan.image)
            vectors = warm_start.iter_patient_embeddings(
                patients, plan.embedding, plan.privacy.images_per_patient, self._device
            )  # (some p, D) each
            noised = release_vectors(catalogue.WARM_START, vectors, plan, entropy=self._entropy)
            return {protocol.NOISED_SUM: noised.numpy()}

        return self._release(plan, run_id, Request.WARM_START.value, lambda: answer)

    def train(self, plan: Plan, run_id: str, server_round: int, weights: Arrays, released_mean: Arrays) -> Arrays:
        """One round of patient-level DP-SGD on the hospital's discriminator; returns the generator's moving average.

        With `share = "gan"` the discriminator comes from the coordinator and goes back too: it has learned from noised
        sums alone. Adam's moments of both networks stay here and go on from round to round.

        Args:
            plan: the run's plan.
            run_id: the run that `join` reserved.
            server_round: 1-based; each round is answered once.
            weights: of the global generator, and of the discriminator where it is shared.
            released_mean: {"released_mean": (D,)}, or nothing when the plan has no warm start.

        Guarantee:
            Unit: patient, add/remove one. Sensitivity: clip_norm a step. Assumes: Poisson sampling with rate q.
            The generator sees the data only through the noised discriminator (post-processing).
        """
        shared = plan.federation.share == "gan"
        if plan.federation.is_pooled or not 1 <= server_round <= plan.federation.rounds:
            raise LedgerError(
                f"round {server_round} is not one of the plan's {plan.federation.rounds} rounds; ask for those"
            )

        def receive() -> Answer:
            state = LocalState(plan, self._device)
            generator, discriminator = split_pair(weights) if shared else (weights, {})
            load_arrays(state.generator, generator)
            if shared:
                load_arrays(state.discriminator, discriminator)
            mean = received_mean(plan, released_mean)
            return lambda: answer(state, mean)

        def answer(state: LocalState, mean: torch.Tensor | None) -> Arrays:
            kept = self._run_folder(run_id) / "local_state.safetensors"
            if kept.exists():
                received = join_pair(state.generator, state.discriminator)
                state.load_state(kept)
                if shared:  # the moments are this hospital's, the weights the federation's
                    load_arrays(state.discriminator, split_pair(received)[1])
            first_step = sum(plan.round_steps(number) for number in range(1, server_round))
            train_round(
                state.generator,
                state.discriminator,
                state.optimizers,
                self._train_patients(plan.image),
                warm_start.with_released_prior(plan, mean),
                first_step=first_step,
                steps=plan.round_steps(server_round),
                released_mean=mean,
                entropy=self._entropy,
                progress=self._progress,
                public_stream=public_stream(self.config.name),
            )
            state.step = first_step + plan.round_steps(server_round)
            state.save_state(kept)
            return join_pair(state.generator, state.discriminator if shared else None)

        return self._release(plan, run_id, f"{Request.ROUND.value}{server_round}", receive)

    def step(self, plan: Plan, run_id: str, step: int, discriminator: Arrays, roster: str) -> Arrays:
        """One step of a pooled run: this hospital's noised sum under masks, {"masked_sum": int64 (d,)}.

        The masks of a step are used for one value: the ledger lets a step begin once, and a repeated request gets the
        stored bytes. Only the newest answer is kept; the coordinator asks for a step when it has the one before.

        Args:
            plan: the run's plan, with `share = "pooled"`.
            run_id: the run that `join` reserved.
            step: 1-based.
            discriminator: weights that the gradients are taken at.
            roster: the run's hospitals and their mask keys; pinned at the first step.

        Guarantee:
            Unit: patient, add/remove one. In the sum of all hospitals: the sampled Gaussian mechanism (q, sigma). To
            the coordinator together with all other hospitals: (q, sigma / sqrt(n)), bounded over all runs by
            [policy].max_coalition_epsilon. To the coordinator alone the masked sum is uniform (`client.masking`).
        """
        if not plan.federation.is_pooled or not 1 <= step <= plan.privacy.steps:
            raise LedgerError(f"step {step} is not one of a pooled plan's {plan.privacy.steps} steps; ask for those")

        def receive() -> Answer:
            masks = self._masks(plan, run_id).masks(roster)
            network = build_discriminator(plan.networks).to(self._device)
            load_arrays(network, discriminator)

            def answer() -> Arrays:
                share = pooled.noised_share(network, self._train_patients(plan.image), plan, entropy=self._entropy)
                return {protocol.MASKED_SUM: masks.masked(share, request)}

            return answer

        request = f"{Request.STEP.value}{step}"
        if self._keep_ledger_open and self._held is None:
            self._held = self._open_ledger()
        answered = self._release(plan, run_id, request, receive)
        for older in self._run_folder(run_id).glob(f"{Request.STEP.value}*.safetensors"):
            if older.stem != request:
                older.unlink()
        return answered

    def finish(
        self, plan: Plan, run_id: str, generator: Arrays, public: Arrays, publication: Publication
    ) -> tuple[Arrays, dict[str, object]]:
        """Noised utility counts on the test patients, and the hospital's signed statement for the certificate.

        Args:
            plan: the run's plan.
            run_id: the run that `join` reserved.
            generator: final weights, to be published.
            public: of each task whose counts the plan releases, a model trained on synthetic images
                (`utility.task.models_to_arrays`); the released mean where its class shares are the sampler's.
            publication: digests of the sampler's files as the coordinator will publish them. The first that fits is
                written into the ledger before anything else, and this run is never signed for another.

        Returns:
            ({array of the task's counts: float32 (cells,)} of each task, the statement).

        Guarantee:
            Unit: patient, add/remove one. Sensitivity: 1 in each task's counts (a patient's images share one count).
            Charged as `catalogue.UTILITY_COUNTS` of each task.
        """

        def receive() -> Answer:
            plan_epsilons(plan)  # finite, or there will be nothing to sign
            load_arrays(build_generator(plan.networks), generator)
            released = {name: public[name] for name in (protocol.RELEASED_MEAN,) if name in public}
            mean = received_mean(plan, released) if plan.image.released_prior else None
            check_publication(publication, plan, run_id, generator, mean)
            models = received_models(catalogue.counted_tasks(plan), public, task_spec(plan))
            return (lambda: answer(models)) if models else dict

        def answer(models: dict[str, TaskModel]) -> Arrays:
            test, released = self._cohorts(plan.image).test, {}
            for name, model in models.items():
                model.network.to(self._device)
                statistic = catalogue.UTILITY_COUNTS[name]
                counts = find_task(name).counts(model, test, task_spec(plan))  # (p, cells)
                noised = release_vectors(statistic, counts, plan, entropy=self._entropy)
                released[statistic.array] = noised.numpy()
            self._write_own_report(plan, run_id, models, test)
            return released

        self._settle(plan, run_id, publication, receive)
        try:
            released = self._release(plan, run_id, Request.FINISH.value, receive)
        except SpentError:
            released = {}  # the counts died with an earlier attempt; the statement reads no patient
        statement = self._statement(plan, run_id, publication)
        self.close()
        return released, statement

    def countersign(self, head: str, server_public_key: str, signature: str) -> None:
        """Keeps the coordinator's signature under a ledger head, as a witness against a restored old copy."""
        with self._ledger() as ledger:
            ledger.check_not_rolled_back(head)
            if ledger.entries()[-1].kind != "countersign":  # one between any two answers; repeats add nothing
                ledger.countersign(head, server_public_key, signature)

    def ledger_head(self) -> str:
        """Hash of the ledger's newest entry; it holds nothing that depends on a patient."""
        with self._ledger() as ledger:
            return ledger.head()

    def close(self) -> None:
        """Lets go of the ledger where a pooled run keeps it open between its steps."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def check_head(self, head: str) -> None:
        """Refuses when the ledger lacks a head that the coordinator has seen: before a request reads a patient.

        Raises:
            LedgerError: this ledger is an old copy or a fork.
        """
        with self._ledger() as ledger:
            ledger.check_not_rolled_back(head)

    def _open_ledger(self) -> Ledger:
        config = self.config
        return Ledger.open(config.ledger_path, site=config.name, unit=data_unit(config), witness=config.witness_path)

    @contextmanager
    def _ledger(self) -> Iterator[Ledger]:
        """The open ledger. Opening re-checks its whole chain: too long, in the end, for each of thousands of steps."""
        if self._held is None:
            with self._open_ledger() as ledger:
                yield ledger
            return
        try:
            yield self._held
        except BaseException:
            self.close()
            raise

    def _masks(self, plan: Plan, run_id: str) -> RunMasks:
        return RunMasks(
            self._run_folder(run_id),
            plan=plan,
            run_id=run_id,
            site=self.config.name,
            signing_key=self._key,
            peers=self.config.policy.peers,
        )

    def _reserve(self, ledger: Ledger, plan: Plan, run_id: str) -> None:
        """Every request comes through here: the hospital's limits first, then the whole run's charge, once.

        For a run that is charged already the ledger checks that the plan is still the same.
        """
        check_plan(plan, self.config.policy)
        unit = data_unit(self.config)
        check_unit(plan, unit)
        self._require_key(ledger)
        events = plan_events(plan)
        check_coalition(ledger.events(besides=run_id) + events, self.config.policy)
        ledger.reserve(
            run_id=run_id,
            plan_hash=plan.hash(),
            events=events,
            epsilon=self.config.policy.max_epsilon,
            delta=self.config.policy.delta,
            requests=run_requests(plan),
            unit=unit,
        )

    def _release(self, plan: Plan, run_id: str, request: str, receive: Callable[[], Answer]) -> Arrays:
        """Checks policy and charge, then what was received; computes, stores, commits; then, and only then, returns.

        Args:
            plan: the run's plan.
            run_id: the run.
            request: its name in the ledger.
            receive: checks the coordinator's arrays and gives the computation. Nothing of the plan is built before the
                hospital's limits have passed, and nothing is spent on arrays that do not fit.

        Raises:
            LedgerError: no statistic of the catalogue is released by such a request, or the answer holds other arrays
                than the catalogue names; then it is spent, and nothing of it is stored or sent.
        """
        with self._ledger() as ledger:
            self._reserve(ledger, plan, run_id)
            released = catalogue.answer_arrays(plan, request)
            stored = (
                self._run_folder(run_id) / f"{request}.safetensors"
            )  # after the ledger: a run tells that there is one
            known = ledger.state(run_id, request)
            if known == "committed":
                return read_reply(stored, ledger.digest(run_id, request))
            if known == "begun":
                raise SpentError(
                    f"L01: {request} of run {run_id} began before and died; it is spent and not drawn again"
                )
            answer = receive()
            ledger.begin(run_id, request)
            arrays = answer()
            if released is not None and arrays.keys() != released:
                raise LedgerError(
                    f"an answer to {request} holds {sorted(arrays)}, the catalogue of released statistics has "
                    f"{sorted(released)}; it is not sent"
                )
            ledger.commit(run_id, request, write_reply(stored, arrays))
        return arrays

    def _settle(self, plan: Plan, run_id: str, publication: Publication, receive: Callable[[], Answer]) -> None:
        """Writes into the ledger which sampler the run publishes, once everything received fits; later only that one.

        Raises:
            LedgerError: the run has settled on other files.
        """
        with self._ledger() as ledger:
            self._reserve(ledger, plan, run_id)
            if not ledger.published(run_id):
                receive()
                ledger.publish(run_id, publication.sha256())
            elif ledger.published(run_id) != publication.sha256():
                raise LedgerError("this run's statement was signed for other files; a run publishes one sampler")

    def _statement(self, plan: Plan, run_id: str, publication: Publication) -> dict[str, object]:
        masked_with: dict[str, str] = {}
        if plan.federation.is_pooled:
            masks = self._masks(plan, run_id)
            masked_with = masks.statement_fields()
            masks.forget_key()
        policy = self.config.policy
        with self._ledger() as ledger:
            spent = ledger.spent(policy.delta)
            return site_statement(
                site=self.config.name,
                run_id=run_id,
                plan=plan,
                files=publication.files,
                requests=ledger.requests(run_id),
                lifetime=Lifetime(
                    epsilon_pld=spent.epsilon_pld,
                    epsilon_rdp=spent.epsilon_rdp,
                    max_epsilon=policy.max_epsilon,
                    delta=policy.delta,
                    protects=spent.protects,
                    adoptions=spent.adoptions,
                ),
                software=self._software,
                ledger_head=ledger.head(),
                key=self._key,
                unit=data_unit(self.config),
                public_images_sha256=publication.public_images_sha256,
                masked_with=masked_with,
            )

    def _write_own_report(self, plan: Plan, run_id: str, models: dict[str, TaskModel], test: Cohort) -> None:
        """Exact figures, for the hospital's own eyes: they never leave its folder, nor does whether there are any."""
        spec = task_spec(plan)
        try:
            exact = {name: find_task(name).exact(model.network, test, spec) for name, model in models.items()}
        except Exception:
            logging.getLogger("ghostnet.site").exception("the hospital's own figures could not be computed")
            return
        path = self._run_folder(run_id) / "report.json"
        path.write_text(json.dumps({"stays_in_the_hospital": True, **exact}, indent=2) + "\n")
        path.chmod(0o600)

    def _require_key(self, ledger: Ledger) -> None:
        """The key is made with a fresh ledger and never again: coordinators know this ledger by it."""
        if not self.config.key_path.exists() and not ledger.is_fresh:
            raise LedgerError(
                f"{self.config.key_path} is gone and the ledger is not; restore the key from a backup, or make another "
                "by ghostnet site ledger SITE.toml --adopt"
            )
        _ = self._key

    @cached_property
    def _key(self) -> Ed25519PrivateKey:
        return keys.load_or_create_key(self.config.key_path)

    def _run_folder(self, run_id: str) -> Path:
        folder = self.config.state / RUNS_NAME / run_id
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder
