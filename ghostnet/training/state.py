"""The networks and optimisers of whoever takes the adversarial steps, kept in one file from round to round."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.optim import Adam

from ghostnet.durable import write_durably
from ghostnet.errors import SiteError
from ghostnet.models import build_discriminator, build_generator
from ghostnet.plan import Plan
from ghostnet.training.loop import Optimizers


class LocalState:
    """The state that a hospital keeps between rounds: the discriminator, both Adam optimisers' moments, the steps done.

    The generator is here because its optimiser is bound to it; its weights arrive anew with every round and are not
    saved. Everything saved is a function of released values, so it is no more sensitive than what left the hospital.

    Attributes:
        plan: what the networks were built from.
        generator: load the server's weights into it with `weights.load_arrays`.
        discriminator: as trained so far.
        optimizers: Adam for both.
        step: discriminator steps done so far; whoever calls `train_round` moves it on.
    """

    def __init__(self, plan: Plan, device: torch.device | str = "cpu") -> None:
        """A fresh state."""
        self.plan = plan
        self.generator = build_generator(plan.networks).to(device)
        self.discriminator = build_discriminator(plan.networks).to(device)
        training, betas = plan.training, (plan.training.beta1, plan.training.beta2)
        self.optimizers = Optimizers(
            generator=Adam(self.generator.parameters(), training.learning_rate_generator, betas=betas),
            discriminator=Adam(self.discriminator.parameters(), training.learning_rate_discriminator, betas=betas),
        )
        self.step = 0

    def save_state(self, path: Path) -> None:
        """Writes the state as safetensors; the file is replaced as a whole or not at all."""
        metadata = {"plan": self.plan.hash(), "step": str(self.step)}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors().items()}
        write_durably(path, save(tensors, metadata))

    def load_state(self, path: Path) -> None:
        """Reads what `save_state` wrote for the same plan; nothing is changed unless all of it fits.

        Raises:
            SiteError: the file is missing, damaged, of another plan, or holds values that are not finite.
        """
        for optimizer in (self.optimizers.generator, self.optimizers.discriminator):
            _fill_moments(optimizer)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError) as error:
            raise SiteError(
                f"training state {path} cannot be read ({type(error).__name__}); remove it to start anew"
            ) from None
        if metadata.get("plan") != self.plan.hash() or not metadata.get("step", "").isdecimal():
            raise SiteError(f"training state {path} belongs to another plan; remove it to start anew")
        tensors = self._tensors()
        for name in tensors.keys() | read.keys():
            good = name in tensors and name in read and read[name].shape == tensors[name].shape
            if not good or not bool(torch.isfinite(read[name]).all()):
                raise SiteError(f"training state {path} is damaged at {name}; remove it to start anew")
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(read[name])
        self.step = int(metadata["step"])

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor that is saved, by name; they share memory with the networks and optimisers."""
        tensors = {f"discriminator.{name}": tensor for name, tensor in self.discriminator.state_dict().items()}
        for role, module in (("generator", self.generator), ("discriminator", self.discriminator)):
            optimizer = getattr(self.optimizers, role)
            _fill_moments(optimizer)
            for name, parameter in module.named_parameters():
                for key, value in optimizer.state[parameter].items():
                    tensors[f"adam.{role}.{name}.{key}"] = value
        return tensors


def _fill_moments(optimizer: torch.optim.Adam) -> None:
    """Gives parameters that had no step yet the zero moments that Adam would start from."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not optimizer.state[parameter]:
                optimizer.state[parameter] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
