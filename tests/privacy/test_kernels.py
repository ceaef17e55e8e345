"""Fast clipping agrees with Opacus and with torch.func, layer by layer and network by network."""

import logging
import math
from collections.abc import Callable

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import softplus

from ghostnet.errors import PlanError
from ghostnet.models import build_discriminator
from ghostnet.models.dcgan import Discriminator
from ghostnet.privacy import groups as grouping
from ghostnet.privacy.bookkeeping import group_gradients
from ghostnet.privacy.groups import Groups, ParameterGradient
from ghostnet.privacy.layers import check_discriminator, row_independent
from tests.networks import ARCHITECTURES, network_plan

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),  # Opacus, on the first layer
]

SIZES = (1, 1, 3, 2, 1, 4, 2, 2)  # rows of each group, in runs and apart
ROWS = sum(SIZES)


def groups_of(sizes: tuple[int, ...]) -> Groups:
    return Groups(ids=torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)), sizes=sizes)


def losses_of(logits: Tensor) -> Tensor:
    """Rows of very different weight."""
    return softplus(-logits) * torch.logspace(-1, 1, len(logits), dtype=logits.dtype)


def by_vmap(network: nn.Module, images: Tensor, labels: Tensor, groups: Groups) -> dict[str, Tensor]:
    """Gradient of each group (p, ...), in float64."""
    weights = torch.logspace(-1, 1, len(images), dtype=torch.float64)
    parameters = {name: p.detach().double() for name, p in network.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        logit = functional_call(network, parameters, (image[None], label[None]))[0]
        return softplus(-logit) * weight

    images = images.double() if images.is_floating_point() else images
    per_row = vmap(grad(loss), in_dims=(None, 0, 0, 0))(parameters, images, labels, weights)
    return {name: summed(gradient, groups) for name, gradient in per_row.items()}


def summed(per_row: Tensor, groups: Groups) -> Tensor:
    """(r, ...) -> (groups, ...)."""
    return per_row.new_zeros(len(groups.sizes), *per_row.shape[1:]).index_add_(0, groups.ids, per_row)


def by_opacus(network: nn.Module, images: Tensor, labels: Tensor, groups: Groups) -> dict[str, Tensor]:
    hooked = GradSampleModule(network, loss_reduction="sum")
    losses_of(hooked(images, labels)).sum().backward()
    found = {name: summed(p.grad_sample, groups) for name, p in network.named_parameters()}
    hooked.to_standard_module()
    return found


@torch.no_grad()
def check(found: dict[str, ParameterGradient], expected: dict[str, Tensor], *, rtol: float = 1e-4) -> None:
    """Norms and any weighted sum; no group can put more into the sum than its norm says, up to 3e-6."""
    assert found.keys() == expected.keys()
    generator = torch.Generator().manual_seed(0)
    for name, gradients in expected.items():
        norms = gradients.flatten(1).double().norm(dim=1)
        assert found[name].squared_norm.shape == (ROWS,)  # never tells how many groups there are
        measured = found[name].squared_norm[: len(norms)].sqrt()
        torch.testing.assert_close(measured, norms, rtol=rtol, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")
        for one, norm in zip(torch.eye(len(norms), ROWS), measured, strict=True):
            alone = float(found[name].weighted_sum(one).double().norm())
            assert alone <= float(norm) * (1 + 3e-6) + 1e-12, f"{name}: a norm is underestimated"
        factors = torch.zeros(ROWS)
        factors[: len(norms)] = torch.rand(len(norms), generator=generator)
        summed = found[name].weighted_sum(factors).reshape(gradients.shape[1:])
        wanted = torch.tensordot(factors[: len(norms)].double(), gradients.double(), 1)
        assert float((summed - wanted).norm()) <= rtol / 10 * float(wanted.norm()) + 1e-9, name


def fast(network: nn.Module, images: Tensor, labels: Tensor, groups: Groups) -> dict[str, ParameterGradient]:
    return group_gradients(network, lambda forward: losses_of(forward(images, labels)), groups)


@row_independent
class Head(nn.Module):
    """One layer, then a fixed read-out to one logit a row."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        output = self.layer(images)
        readout = torch.cos(torch.arange(output[0].numel()) ** 1.5)  # no two neighbours alike
        return output.flatten(1) @ readout.to(output.dtype) / math.sqrt(len(readout))


@row_independent
class Scaled(nn.Linear):
    """A project layer without a kernel: weights are scaled at run time."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight / math.sqrt(self.in_features), self.bias)


@row_independent
class ScaledConvolution(nn.Conv2d):
    """Weights with an equalised learning rate, inside a residual block that halves the side."""

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 / math.sqrt(self.weight[0].numel())
        return self._conv_forward(x, self.weight * scale, self.bias) + nn.functional.avg_pool2d(x, 2)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "scaled convolution without a kernel": (lambda: ScaledConvolution(4, 4, 4, stride=2, padding=1), (4, 8, 8)),
    "strided convolution": (lambda: nn.Conv2d(3, 5, 4, stride=2, padding=1), (3, 8, 8)),
    "wide strided convolution": (lambda: nn.Conv2d(16, 64, 4, stride=2, padding=1, bias=False), (16, 8, 8)),
    "very wide convolution": (lambda: nn.Conv2d(64, 128, 4, stride=2, padding=1, bias=False), (64, 4, 4)),
    "convolution of an odd size": (lambda: nn.Conv2d(24, 32, 4, stride=2, padding=1), (24, 7, 9)),
    "convolution 3x3": (lambda: nn.Conv2d(32, 32, 3, padding=1), (32, 4, 4)),
    "convolution 3x3, stride 2": (lambda: nn.Conv2d(32, 32, 3, stride=2, padding=1), (32, 5, 5)),
    "convolution 5x5, stride 2": (lambda: nn.Conv2d(2, 6, 5, stride=2, padding=2), (2, 8, 8)),
    "convolution with groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 6, 6)),
    "dilated convolution": (lambda: nn.Conv2d(3, 4, 3, dilation=2), (3, 8, 8)),
    "uneven convolution": (lambda: nn.Conv2d(32, 64, (2, 4), stride=2, padding=(0, 1)), (32, 4, 6)),
    "strides that differ": (lambda: nn.Conv2d(3, 4, 4, stride=(2, 1)), (3, 8, 8)),
    "stride that skips pixels": (lambda: nn.Conv2d(32, 64, 2, stride=2), (32, 5, 5)),
    "convolution over the whole image": (lambda: nn.Conv2d(8, 1, 4), (8, 4, 4)),
    "padding by name": (lambda: nn.Conv2d(2, 3, 4, padding="same"), (2, 6, 6)),
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "linear over positions": (lambda: nn.Linear(40, 30, bias=False), (3, 40)),
    "linear over many positions": (lambda: nn.Linear(3, 2), (4, 5, 3)),
    "group norm": (lambda: nn.GroupNorm(2, 6), (6, 4, 4)),
    "instance norm": (lambda: nn.InstanceNorm2d(5, affine=True), (5, 4, 4)),
    "layer norm": (lambda: nn.LayerNorm((4, 3)), (5, 4, 3)),
    "layer norm without positions": (lambda: nn.LayerNorm(6), (6,)),
    "layer without a kernel": (lambda: Scaled(7, 5), (7,)),
}


def example(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(2))


def network_of(name: str) -> tuple[nn.Module, Tensor]:
    build, shape = LAYERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = Head(build())
        for p in network.parameters():  # norms start at 1 and 0, which would hide a wrong gradient
            nn.init.normal_(p, 0.3, 0.5)
    return network, example(shape)


@pytest.mark.parametrize("sizes", [SIZES, (1,) * ROWS, (ROWS,), (2,) * (ROWS // 2)], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_agrees_with_torch_func(name: str, sizes: tuple[int, ...]) -> None:
    network, images = network_of(name)
    groups, labels = groups_of(sizes), torch.zeros(ROWS, dtype=torch.int64)
    check(fast(network, images, labels, groups), by_vmap(network, images, labels, groups))


@pytest.mark.parametrize("shape", [(), (3,)])
def test_an_embedding_adds_up_what_a_group_says_about_one_label(shape: tuple[int, ...]) -> None:
    network = Head(nn.Embedding(4, 6))
    labels = torch.randint(4, (ROWS, *shape), generator=torch.Generator().manual_seed(0))
    groups = groups_of(SIZES)
    check(fast(network, labels, labels, groups), by_vmap(network, labels, labels, groups))


CONVOLUTIONS = [name for name, (build, _) in LAYERS.items() if type(build()) is nn.Conv2d]


@pytest.mark.parametrize("tile", [1 << 14, 40])
@pytest.mark.parametrize("way", ["kept", "formed twice", "norms by Gram matrices"])
@pytest.mark.parametrize("name", [*CONVOLUTIONS, "linear over positions", "linear"])
def test_every_way_to_outer_products_gives_the_same(
    way: str, tile: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "KEPT_NUMBERS", 1 << 20 if way == "kept" else 0)
    monkeypatch.setattr(grouping, "_gram_is_cheaper", lambda *shape: way == "norms by Gram matrices")
    monkeypatch.setattr(grouping, "_TILE_NUMBERS", tile)
    monkeypatch.setattr(grouping, "_TILE_ROWS", 3 if tile == 40 else 256)
    network, images = network_of(name)
    labels = torch.zeros(ROWS, dtype=torch.int64)
    for sizes in (SIZES, (1,) * ROWS):
        groups = groups_of(sizes)
        check(fast(network, images, labels, groups), by_vmap(network, images, labels, groups))


@pytest.mark.parametrize("kept_numbers", [0, 1 << 20])
@pytest.mark.parametrize("name", LAYERS)
def test_how_many_rows_others_have_does_not_change_a_bit_of_a_group(
    name: str, kept_numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The self-test's blocks always hold a group of two rows; blocks of single rows take a shorter way."""
    monkeypatch.setattr(grouping, "KEPT_NUMBERS", kept_numbers)
    network, images = network_of(name)
    labels, ones = torch.zeros(ROWS, dtype=torch.int64), torch.ones(ROWS)
    among_pairs, among_singles = (
        {
            parameter: (gradient.squared_norm[:2].clone(), [tile.values[:2].clone() for tile in gradient.scaled(ones)])
            for parameter, gradient in fast(network, images, labels, groups_of(sizes)).items()
        }
        for sizes in (SIZES, (1,) * ROWS)
    )
    assert SIZES[:2] == (1, 1)
    for parameter, (norms, tiles) in among_pairs.items():
        other_norms, other_tiles = among_singles[parameter]
        assert torch.equal(norms, other_norms)
        assert all(torch.equal(a, b) for a, b in zip(tiles, other_tiles, strict=True))


@pytest.mark.parametrize("kept_numbers", [0, 1 << 20])
def test_layers_of_one_shape_do_not_share_what_they_still_need(
    kept_numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "KEPT_NUMBERS", kept_numbers)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = Head(nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))))
    images, labels = example((4, 6, 6)), torch.zeros(ROWS, dtype=torch.int64)
    for sizes in (SIZES, (1,) * ROWS):
        groups = groups_of(sizes)
        check(fast(network, images, labels, groups), by_vmap(network, images, labels, groups))


@pytest.mark.parametrize("size", [28, 32, 64])
@pytest.mark.parametrize("norm", ["group", "none"])
def test_the_project_s_discriminators_agree_with_opacus_and_torch_func(size: int, norm: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Discriminator(size=size, planes=2, labels=3, width=16, norm=norm)  # type: ignore[arg-type]
        for p in network.parameters():
            nn.init.normal_(p, 0.02, 0.1)
    images, labels = example((2, size, size)), torch.arange(ROWS) % 3
    for sizes in (SIZES, (1,) * ROWS):
        groups = groups_of(sizes)
        found = fast(network, images, labels, groups)
        check(found, by_opacus(network, images, labels, groups))
        check(found, by_vmap(network, images, labels, groups))


def test_no_hook_stays_on_the_network() -> None:
    network, images = network_of("linear")
    fast(network, images, torch.zeros(ROWS, dtype=torch.int64), groups_of(SIZES))
    assert not any(m._forward_hooks or m._backward_hooks for m in network.modules())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_a_layer_without_a_kernel_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ghostnet.privacy.bookkeeping"):
        for name in ("linear", "layer without a kernel"):
            network, images = network_of(name)
            fast(network, images, torch.zeros(ROWS, dtype=torch.int64), groups_of(SIZES))
    assert [r.message for r in caplog.records] == ["layer layer (Scaled) has no kernel; using torch.func"]


@pytest.mark.parametrize("way", ["kept", "norms by Gram matrices"])
def test_cancelling_positions_never_make_a_norm_too_small(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient whose positions nearly cancel is where float32 loses; 300 draws, none longer than its norm by 1e-6."""
    monkeypatch.setattr(grouping, "KEPT_NUMBERS", 1 << 20 if way == "kept" else 0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        x = torch.randn(1, 50, 6, generator=generator)
        g = torch.randn(1, 40, 6, generator=generator)
        x[0, :, 3:] = x[0, :, :3] * (1 + 10.0 ** -torch.randint(2, 7, (1,), generator=generator))
        g[0, :, 3:] = -g[0, :, :3]
        found = grouping.outer_products(x, g, groups_of((1,)))
        written_out = float(found.weighted_sum(torch.ones(1)).norm())
        assert float(found.squared_norm.sqrt()) >= written_out * (1 - 1e-6)
        true = float((g[0].double() @ x[0].double().T).norm())
        assert way == "kept" or float(found.squared_norm.sqrt()) >= true  # what is kept is measured as it is


@row_independent
class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return (self.layer(self.first(images)).mul_(2.0))[:, 0]


@row_independent
class Twice(InPlace):
    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.layer(images)[:, 0] + self.layer(-images)[:, 0]


@pytest.mark.parametrize(("network", "message"), [(InPlace, "in place"), (Twice, "exactly once")])
def test_what_book_keeping_cannot_see_is_refused(network: type[nn.Module], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        fast(network(), example((4,)), torch.zeros(ROWS, dtype=torch.int64), groups_of(SIZES))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_discriminator_of_the_project_needs_the_slow_way(
    architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    """That the sums are right is tests/models/test_architectures.py's."""
    plan = network_plan(architecture)
    network = build_discriminator(plan.networks)
    check_discriminator(network)
    shape = (plan.planes, plan.image.size, plan.image.size)
    with caplog.at_level(logging.INFO, logger="ghostnet.privacy.bookkeeping"):
        found = fast(network, example(shape), torch.zeros(ROWS, dtype=torch.int64), groups_of(SIZES))
    assert found.keys() == {name for name, _ in network.named_parameters()}
    assert not caplog.records
