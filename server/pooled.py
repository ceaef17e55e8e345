"""The pooled federation's steps, as the coordinator takes them: ask, add up, keep, step.

The coordinator sees each hospital's sum under masks and the total in the clear. A total is on its disk before it is
used, and before the next one is asked for: a run that was cut off goes on behind the last total, and repeats in between
only what is public. Hospitals keep their last answer, so that a total that was half collected is collected again from
the same bytes.
"""

from __future__ import annotations

from logging import getLogger

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ghostnet.errors import FederationError
from ghostnet.exchange import protocol
from ghostnet.exchange.arrays import Arrays, check_arrays, load_arrays, to_arrays
from ghostnet.exchange.messages import StepAnswer, StepRequest
from ghostnet.exchange.pooled import share_std, total_gradient, trained_parameters
from ghostnet.exchange.secure_sum import Roster, make_roster, read_roster, sum_modulo
from ghostnet.plan import Plan
from ghostnet.privacy.noise import SystemEntropy
from ghostnet.progress import Progress
from ghostnet.training import warm_start
from ghostnet.training.cohort import Cohort
from ghostnet.training.loop import train_round
from ghostnet.training.state import LocalState
from server.checkpoint import Checkpoint, write_arrays
from server.conversation import Conversation, Timing

ATTEMPTS = 2  # a hospital whose process died answers the second time, if only that the step is spent

_TOTAL = "total"


def train_pooled(
    conversation: Conversation,
    plan: Plan,
    generator: torch.nn.Module,
    checkpoint: Checkpoint,
    progress: Progress,
) -> None:
    """Runs all steps of a pooled federation; the generator is changed in place.

    Args:
        conversation: joined by exactly the plan's hospitals.
        plan: resolved.
        generator: on entry as the warm start left it.
        checkpoint: what an earlier attempt already has.
        progress: told where the run is.

    Raises:
        FederationError: a hospital is missing or did not answer a step; nothing of that step was unmasked.
    """
    steps = StepSums(conversation, plan, checkpoint)
    state = LocalState(plan, next(generator.parameters()).device)
    steps.discriminator = state.discriminator
    if checkpoint.rounds_done:
        state.load_state(steps.folder / f"round-{checkpoint.rounds_done}.safetensors")
    drawn = warm_start.with_released_prior(plan, checkpoint.released_mean)
    for number in range(checkpoint.rounds_done + 1, plan.federation.rounds + 1):
        first = sum(plan.round_steps(earlier) for earlier in range(1, number))
        load_arrays(state.generator, to_arrays(generator))
        train_round(
            state.generator,
            state.discriminator,
            state.optimizers,
            no_patients(plan),
            drawn,
            first_step=first,
            steps=plan.round_steps(number),
            released_mean=checkpoint.released_mean,
            entropy=SystemEntropy(),
            progress=progress,
            add_noise=steps.add_total,
        )
        state.step = first + plan.round_steps(number)
        state.save_state(steps.folder / f"round-{number}.safetensors")
        load_arrays(generator, to_arrays(state.generator))
        checkpoint.timings.append(steps.timing(number))
        checkpoint.note(conversation.hospitals.values())
        checkpoint.save_round(number, to_arrays(generator))
        steps.forget(before_round=number)
        progress("rounds", number, plan.federation.rounds)


class StepSums:
    """Totals of a run's steps, from the disk or from the hospitals.

    Args:
        conversation: joined by exactly the plan's hospitals.
        plan: resolved.
        checkpoint: gives the folder, and keeps the roster.

    Attributes:
        discriminator: what hospitals take their next step on; set it before the first `add_total`.
        folder: where totals lie until their round is saved.
    """

    def __init__(self, conversation: Conversation, plan: Plan, checkpoint: Checkpoint) -> None:
        self._conversation, self._plan = conversation, plan
        self._roster = _agreed_roster(conversation, plan, checkpoint)
        self.discriminator: torch.nn.Module | None = None
        self.folder = checkpoint.out / "server" / "pooled"
        self.folder.mkdir(exist_ok=True)
        self._wall_s = self._slowest_s = 0.0

    def add_total(self, step: int, summed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Adds the hospitals' noised total of a step to the fakes' clipped sum.

        Args:
            step: 0-based.
            summed: float64 by parameter name, public.

        Returns:
            float32 by parameter name; zeros for a step that died at a hospital, which is spent and has no total.
        """
        if self.discriminator is None:
            raise FederationError("no discriminator was set; a step is about its weights")
        path = self.folder / f"step-{step + 1}.safetensors"
        if not path.exists():
            write_arrays(path, self._collect(step + 1, to_arrays(self.discriminator)))
        total = load_file(path).get(_TOTAL)
        if total is None:
            return {name: torch.zeros_like(value).float() for name, value in summed.items()}
        gradient = total_gradient(total, self.discriminator, std=share_std(self._plan))
        return {name: (value + gradient[name].to(value)).float() for name, value in summed.items()}

    def timing(self, number: int) -> Timing:
        """The time of the hospitals' part of a round, all its steps together."""
        taken = Timing(phase="pooled steps", round=number, wall_s=self._wall_s, slowest_client_s=self._slowest_s)
        self._wall_s = self._slowest_s = 0.0
        return taken

    def forget(self, *, before_round: int) -> None:
        """Removes totals and states that a saved round has made needless."""
        for path in self.folder.glob("*.safetensors"):
            if path.name != f"round-{before_round}.safetensors":
                path.unlink()

    def _collect(self, step: int, weights: Arrays) -> Arrays:
        """{"total": int64 (d,)}, or nothing for a step that is spent at a hospital."""
        hospitals = self._conversation.hospitals
        parts: dict[int, NDArray[np.int64]] = {}
        spent: list[str] = []
        reasons: list[str] = []
        for _ in range(ATTEMPTS):
            missing = [node_id for node_id in hospitals if node_id not in parts]
            if not missing or spent:
                break
            reasons.clear()
            parts |= self._ask(step, weights, missing, reasons)
            spent = list(self._conversation.spent)
        if spent:
            getLogger("flwr").warning("step %s is spent at %s hospital(s); it is skipped", step, len(spent))
            return {}
        absent = sorted(hospital.name for node_id, hospital in hospitals.items() if node_id not in parts)
        if absent:
            said = "; ".join(reasons) or "no reply came in time"
            raise FederationError(
                f"step {step}: {', '.join(absent)} did not answer ({said}). A pooled step needs all {len(hospitals)} "
                "hospitals and nothing of it was unmasked: resume once they are back"
            )
        return {_TOTAL: sum_modulo(parts.values())}

    def _ask(self, step: int, weights: Arrays, nodes: list[int], reasons: list[str]) -> dict[int, NDArray[np.int64]]:
        in_round = step % max(1, self._plan.round_steps(1)) == 0
        replies = self._conversation.ask(
            StepRequest(step=step, roster=self._roster.to_text(), discriminator=weights),
            StepAnswer,
            nodes,
            refused=reasons,
            countersign=in_round,
        )
        timing = self._conversation.timings.pop()  # thousands of them; a round's are added up
        self._wall_s, self._slowest_s = self._wall_s + timing.wall_s, self._slowest_s + timing.slowest_client_s
        numbers = sum(shape.numel() for shape in trained_parameters(self.discriminator).values())  # type: ignore[arg-type,misc]
        expected = {protocol.MASKED_SUM: np.zeros(numbers, dtype=np.int64)}
        parts = {}
        for reply in replies:
            hospital, arrays = self._conversation.hospitals[reply.node_id], reply.answer.arrays
            try:
                check_arrays(arrays, expected)
            except FederationError as error:
                problem = f"step {step}: {hospital.name} sent something else than a masked sum: {error}"
                raise FederationError(problem) from None
            hospital.note_answer(StepAnswer.kind)
            parts[reply.node_id] = arrays[protocol.MASKED_SUM]
        return parts


def no_patients(plan: Plan) -> Cohort:
    """The coordinator's own cohort."""
    none = torch.zeros(0, dtype=torch.int64)
    size = plan.image.size
    return Cohort(images=torch.zeros(0, plan.planes, size, size), labels=none, owners=none, patients=0)


def _agreed_roster(conversation: Conversation, plan: Plan, checkpoint: Checkpoint) -> Roster:
    """The run's roster: what an earlier attempt used, or the hospitals that joined now.

    Raises:
        FederationError: other hospitals than the plan asks for, or than took part before.
    """
    wanted = plan.federation.hospitals
    if not checkpoint.roster:
        members = [hospital.as_member() for hospital in conversation.hospitals.values()]
        roster = make_roster(run_id=conversation.run_id, plan_hash=plan.hash(), hospitals=wanted, members=members)
        checkpoint.note_roster(roster.to_text())
        return roster
    roster = read_roster(checkpoint.roster, run_id=conversation.run_id, plan_hash=plan.hash(), hospitals=wanted)
    here = {hospital.name: hospital.mask_key for hospital in conversation.hospitals.values()}
    others = sorted(m.site for m in roster.members if here.get(m.site) != m.mask_key)
    if others:
        raise FederationError(
            f"{', '.join(others)} started this run and is not back with the same key; a pooled run goes on with all of "
            "its hospitals or not at all"
        )
    return roster
