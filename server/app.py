"""The coordinator's Flower app: the whole federation, top to bottom.

It can only ask (see `ghostnet.exchange.messages`); what a hospital spends is decided by the hospital. Every phase ends
with a checkpoint, so that a run that was cut off goes on where it stopped: hospitals answer a repeated request with the
same bytes, and are charged once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from logging import WARNING
from pathlib import Path

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from ghostnet.accounting import catalogue
from ghostnet.accounting.plan_cost import resolve
from ghostnet.certificate import certificate, transcript
from ghostnet.errors import FederationError
from ghostnet.exchange import protocol
from ghostnet.exchange.arrays import join_pair, load_arrays, split_pair, to_arrays
from ghostnet.exchange.flower import from_record, to_record
from ghostnet.exchange.messages import FinishAnswer, FinishRequest, WarmStartAnswer, WarmStartRequest
from ghostnet.models import build_discriminator, build_generator
from ghostnet.plan import Plan, load_plan
from ghostnet.progress import Progress, silent
from ghostnet.training import warm_start
from ghostnet.training.device import AUTO, find_device
from ghostnet.training.public_start import PublicImages, fit_public, load_public
from ghostnet.utility.synthetic import Synthetic, train_on_synthetic
from ghostnet.utility.task import TaskModel, find_task, models_to_arrays, task_spec
from server.checkpoint import RELEASED, TRANSCRIPT, Checkpoint
from server.conversation import Conversation, Hospital
from server.pooled import train_pooled
from server.publish import Outcome, publish, stage
from server.strategy import CheckedStrategy

_SHOWN = 300  # characters of what is wrong with a statement


def build_app(
    *,
    run_config: Mapping[str, str | bool | int | float] | None = None,
    plan: Plan | None = None,
    device: str = AUTO,
    progress: Progress = silent,
) -> ServerApp:
    """The ServerApp of a federation.

    Args:
        run_config: "plan" (path of a plan.toml), "out" (the run folder), "sites" (how many, or their site.toml paths),
            "resume" and "device"; by default the run config that Flower hands over.
        plan: resolved already by a simulation, which knows its hospitals' data; None loads the file "plan".
        device: of the coordinator's fits, where the run config names none.
        progress: told where the run is.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        config = {**context.run_config, **(run_config or {})}
        plan_path, out = str(config.get("plan", "")), str(config.get("out", ""))
        if not plan_path or not out:
            raise FederationError('a run needs a plan and an output folder: -c \'plan="plan.toml" out="runs/one"\'')
        expected = hospital_count(str(config.get("sites", "")))
        agreed = plan or resolve(load_plan(Path(plan_path)))
        checkpoint = Checkpoint.open(Path(out), agreed, resume=bool(config.get("resume", False)))
        public = None
        if source := agreed.warm_start.public:
            public = load_public(source, agreed.image, Path(plan_path).parent, seed=agreed.seed)
        found = find_device(str(config.get("device", device)), key="device")
        coordinate(grid, agreed, checkpoint, expected=expected, public=public, device=found, progress=progress)

    return app


def hospital_count(sites: str) -> int:
    """The number of hospitals in the run config's "sites": names, or paths of site.toml, separated by commas.

    Raises:
        FederationError: a path that is not there, such as a part of one with a comma in it; nobody would answer for it.
    """
    parts = [part for part in sites.split(",") if part]
    for part in parts:
        if (os.sep in part or part.endswith(".toml")) and not Path(part).is_file():
            raise FederationError(
                f"sites names {part!r}, and there is no such file; give absolute paths of site.toml files, separated "
                "by commas, none of them with a comma in its name"
            )
    return len(parts)


def coordinate(
    grid: Grid,
    plan: Plan,
    checkpoint: Checkpoint,
    *,
    expected: int,
    public: PublicImages | None = None,
    device: torch.device | str = "cpu",
    progress: Progress,
) -> None:
    """Runs one federation from joining to the published sampler.

    Args:
        grid: Flower's grid.
        plan: the resolved plan.
        checkpoint: what an earlier attempt already has.
        expected: hospitals to wait for before asking them to join.
        public: images that the generator starts from, where the plan names some.
        device: where the coordinator fits the generator and trains the models of the report.
        progress: told where the run is.

    Raises:
        FederationError: too few hospitals take part, or one answers with something else than asked.
    """
    conversation = Conversation(grid, plan, checkpoint.run_id, checkpoint.key, checkpoint.known, checkpoint.timings)

    # Join: each hospital checks the plan against its own limits and reserves the whole run's cost.
    progress("hospitals join", 0, 1)
    conversation.join(max(expected, plan.federation.least_hospitals))
    checkpoint.note(conversation.hospitals.values())
    progress("hospitals join", 1, 1)

    # Round 0: one noised sum of embeddings from each; the generator is fitted to their mean.
    torch.manual_seed(plan.seed)
    generator = build_generator(plan.networks).to(device)
    if checkpoint.weights:
        load_arrays(generator, split_pair(checkpoint.weights)[0])
    elif plan.warm_start.noise_multiplier > 0:
        sums = _warm_start(conversation, plan)
        warm, patients = plan.warm_start, plan.federation.patients
        released_mean = warm_start.released_mean(sums, plan.embedding, warm, patients=patients)
        with checkpoint.timed("fit the warm start"):
            if public is not None:
                fit_public(generator, public, plan.embedding, warm, latent=plan.model.latent, progress=progress)
            noise_std = warm_start.release_noise_std(warm, hospitals=len(sums), patients=patients)
            warm_start.fit_generator(
                generator,
                torch.from_numpy(released_mean),
                plan.embedding,
                warm,
                latent=plan.model.latent,
                noise_std=0.0 if warm.shrink_classes else noise_std,
                progress=progress,
            )
        checkpoint.save(TRANSCRIPT, transcript.warm_start_record(sums))
        checkpoint.save(RELEASED, {protocol.RELEASED_MEAN: released_mean})
        checkpoint.note(conversation.hospitals.values())  # who contributed, before what they contributed to
        checkpoint.save_round(0, to_arrays(generator))

    # Adversarial rounds: weights out, locally trained weights back, combined; or, pooled, one sum a step.
    train = train_pooled if plan.federation.is_pooled else _train
    train(conversation, plan, generator, checkpoint, progress)

    # Finish: the sampler's files; then usefulness as noised counts, and a statement about the files from each hospital.
    drawn = warm_start.with_released_prior(plan, checkpoint.released_mean)  # as the sampler draws
    files = stage(generator, plan, checkpoint, label_prior=drawn.image.label_prior)
    models = _train_models(generator, drawn, checkpoint, progress)
    noisy_counts, counted = _finish(conversation, checkpoint, generator, files, public, models)
    checkpoint.note(conversation.hospitals.values())
    _require_all_signed(conversation, checkpoint)
    outcome = Outcome(
        plan=plan,
        run_id=checkpoint.run_id,
        staged=checkpoint.staged,
        hospitals=list(conversation.hospitals.values()),
        noisy_counts=noisy_counts,
        counted=counted,
        timings=checkpoint.timings,
        server_s=checkpoint.server_s,
        key=checkpoint.key,
        left_out=_left_out(conversation, expected),
    )
    publish(outcome, checkpoint.out, progress)
    checkpoint.finish()


def _left_out(conversation: Conversation, expected: int) -> list[str]:
    """Whose answers were not used, and why; never silently, however few hospitals the plan asks for."""
    absent = expected - len(conversation.hospitals)
    unused = [h.name for h in conversation.hospitals.values() if not h.answered]
    return [
        *conversation.left_out,
        *(f"{name}: joined, and no answer of its was used" for name in sorted(unused)),
        *([f"{absent} of {expected} expected hospitals did not take part"] if absent > 0 else []),
    ]


def _warm_start(conversation: Conversation, plan: Plan) -> dict[str, np.ndarray]:
    """Each hospital's noised sum, by its name."""
    reasons: list[str] = []
    replies = conversation.ask(WarmStartRequest(), WarmStartAnswer, conversation.hospitals, refused=reasons)
    expected = {protocol.NOISED_SUM: np.zeros(plan.embedding.size, dtype=np.float32)}
    answers = conversation.fitting(replies, expected, reasons)
    conversation.require(len(answers), "released the warm start's sum", reasons)
    return {name: arrays[protocol.NOISED_SUM] for name, arrays in answers.items()}


def _train(
    conversation: Conversation, plan: Plan, generator: torch.nn.Module, checkpoint: Checkpoint, progress: Progress
) -> None:
    rounds_done = checkpoint.rounds_done
    rounds_left = plan.federation.rounds - rounds_done
    if rounds_left <= 0:
        return
    discriminator = build_discriminator(plan.networks) if plan.federation.share == "gan" else None
    if discriminator is not None and (kept := split_pair(checkpoint.weights)[1]):
        load_arrays(discriminator, kept)
    strategy = CheckedStrategy(
        conversation,
        checkpoint.released,
        rounds_done,
        averaged=transcript.averaged_names(plan.networks),
        moments=checkpoint.optimizer,
    )

    def keep(server_round: int, arrays: object) -> MetricRecord | None:
        if server_round:
            checkpoint.note(conversation.hospitals.values())
            weights = from_record(arrays)  # type: ignore[arg-type]
            if strategy.combined is not None:  # before the round counts as done: a run that is taken up asks again
                checkpoint.save(TRANSCRIPT, strategy.combined.recorded(checkpoint.transcript, plan.federation))
            checkpoint.save_round(server_round + rounds_done, weights, strategy.moments)
        progress("rounds", server_round + rounds_done, plan.federation.rounds)
        return None

    result = strategy.start(
        grid=conversation.grid,
        initial_arrays=to_record(join_pair(generator, discriminator)),
        num_rounds=rounds_left,
        timeout=plan.federation.round_timeout_s,
        train_config=ConfigRecord(),
        evaluate_fn=keep,
    )
    load_arrays(generator, split_pair(from_record(result.arrays))[0])


def _train_models(
    generator: torch.nn.Module, plan: Plan, checkpoint: Checkpoint, progress: Progress
) -> dict[str, TaskModel]:
    """The model of each task that is counted, trained on synthetic images alone."""
    source = Synthetic(generator=generator, sizes=plan.networks, label_prior=plan.image.label_prior)
    models = {}
    for name in catalogue.counted_tasks(plan):
        task = find_task(name)
        with checkpoint.timed(f"train the report's {task.model_name}"):
            models[name] = train_on_synthetic(task, source, task_spec(plan), progress)
    return models


def _finish(
    conversation: Conversation,
    checkpoint: Checkpoint,
    generator: torch.nn.Module,
    files: dict[str, str],
    images: PublicImages | None,
    models: dict[str, TaskModel],
) -> tuple[dict[str, np.ndarray], int]:
    """Asks for the last answers; (sum of the noised counts of each task, number of hospitals in it)."""
    plan = conversation.plan
    public = models_to_arrays(models)
    if plan.image.released_prior:
        public |= checkpoint.released
    reasons: list[str] = []
    request = FinishRequest(
        files=files,
        public_images_sha256=images.sha256 if images else "",
        generator=to_arrays(generator),
        public=public,
    )
    replies = conversation.ask(request, FinishAnswer, conversation.hospitals, refused=reasons)
    for reply in replies:
        hospital = conversation.hospitals[reply.node_id]
        problem = _statement_problem(reply.answer.statement, hospital, conversation, request)
        if problem:
            log(WARNING, "the statement of %s is left out: %s", hospital.name, problem)
            reasons.append(f"{hospital.name}: {problem}")
            continue
        hospital.statement = reply.answer.statement
        hospital.note_answer(FinishAnswer.kind)
    replies = [reply for reply in replies if conversation.hospitals[reply.node_id].statement is not None]
    conversation.require(sum(h.statement is not None for h in conversation.hospitals.values()), "signed", reasons)
    if not models:
        return {}, 0
    counts = {name: catalogue.UTILITY_COUNTS[name].array for name in models}
    cells = {name: find_task(name).cells(task_spec(plan)) for name in models}
    answers = conversation.fitting(replies, {counts[name]: np.zeros(cells[name], np.float32) for name in models})
    totals = {name: np.zeros(cells[name], dtype=np.float64) for name in models}
    for arrays in answers.values():
        for name, total in totals.items():
            total += arrays[counts[name]]
    return totals, len(answers)


def _statement_problem(
    statement: dict[str, object], hospital: Hospital, conversation: Conversation, request: FinishRequest
) -> str:
    """The reason why no certificate could hold a hospital's statement; "" where one can."""
    about = {"site": hospital.name, "public_key": hospital.public_key, "files": request.files}
    others = [name for name, value in about.items() if statement.get(name) != value]
    if others:
        return f"its {others[0]} is not the one of this hospital and run"
    looks = certificate.check_statement(
        statement,
        plan=conversation.plan,
        run_id=conversation.run_id,
        public_images_sha256=request.public_images_sha256,
    )
    return next((f"{look.name}: {look.detail[:_SHOWN]}" for look in looks if not look.passed), "")


def _require_all_signed(conversation: Conversation, checkpoint: Checkpoint) -> None:
    """A certificate names every hospital whose patients the generator learned from, or there is none."""
    signed = {hospital.name for hospital in conversation.hospitals.values() if hospital.statement is not None}
    unsigned = [name for name in checkpoint.contributors if name not in signed]
    if unsigned:
        raise FederationError(
            f"{', '.join(unsigned)} took part and did not sign; nothing is published without: resume once they are back"
        )


app = build_app()
