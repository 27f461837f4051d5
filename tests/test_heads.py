"""Every family as a density of x given a context: shapes, noise, densities, files, errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from massrecon.errors import InputError, ModelError, ShapeError
from massrecon.models.blocks import blocks
from massrecon.models.diffusion import DiffusionConfig, DiffusionHead
from massrecon.models.flow import FlowConfig, FlowHead
from massrecon.models.flow_matching import FlowMatchingConfig, FlowMatchingHead
from massrecon.models.gan import GANConfig, GANHead
from massrecon.models.head import Head
from massrecon.models.mass_head import MassHead, MassHeadConfig
from massrecon.models.noise import Draws
from massrecon.models.trees import TreesConfig, TreesHead
from massrecon.models.vae import VAEConfig, VAEHead
from tests.posteriors import Budget, LinearGaussian, train_head

Build = Callable[[int, int], Head]
SMALL = {"width": 32, "depth": 2}
FLOW = {**SMALL, "density_steps": 16}
HEADS: dict[str, Build] = {
    "diffusion": lambda T, C: DiffusionHead(T, C, DiffusionConfig(**FLOW)),
    "flow_matching": lambda T, C: FlowMatchingHead(T, C, FlowMatchingConfig(**FLOW)),
    "flow": lambda T, C: FlowHead(T, C, FlowConfig(width=32, transforms=3, bins=6)),
    "vae": lambda T, C: VAEHead(T, C, VAEConfig(**SMALL, latent_dim=4, bound_samples=96)),
    "gan": lambda T, C: GANHead(T, C, GANConfig(**SMALL, latent_dim=4)),
    "mass_head": lambda T, C: MassHead(T, C, MassHeadConfig(**SMALL, peaks=6)),
    "trees": lambda T, C: TreesHead(T, C, TreesConfig(n_trees=8, leaf_events=10)),
}
WITH_DENSITY = [name for name in HEADS if name != "gan"]
N_CONTEXT = 3


def build(name: str, n_targets: int = 2, seed: int = 0) -> Head:
    """An untrained head whose weights all matter."""
    torch.manual_seed(seed)
    head = HEADS[name](n_targets, N_CONTEXT)
    x, context = data(400, n_targets)
    head.fit_support(x)
    if isinstance(head, TreesHead):
        head.grow(x, context)
    with torch.no_grad():
        for weight in head.parameters():
            weight += 0.05 * torch.randn(weight.shape)
    return head.eval()


def data(n: int, n_targets: int = 2, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(n, N_CONTEXT, generator=generator)
    noise = torch.randn(n, n_targets, generator=generator)
    return 0.6 * context[:, :1] + 0.8 * noise, context


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("n_targets", [1, 2, 5])
def test_shapes_for_any_number_of_targets(name: str, n_targets: int) -> None:
    head = build(name, n_targets)
    x, context = data(6, n_targets)
    losses = head.loss(x, context, torch.Generator().manual_seed(0))
    assert losses.shape == (6,)
    assert head.score(x, context, torch.Generator().manual_seed(0)).shape == (6,)
    draws = head.sample(context, 4)
    assert draws.shape == (4, 6, n_targets)
    assert bool(draws.isfinite().all())
    assert float(draws.std(dim=0).min()) > 0
    if name != "gan":
        x = draws[0]
        assert head.log_prob(x, context).shape == (6,)
        assert bool(head.log_prob(x, context).isfinite().all())


@pytest.mark.parametrize("name", HEADS)
def test_draws_belong_to_seed_event_and_number(name: str) -> None:
    head, (_, context) = build(name), data(7)
    whole = head.sample(context, 5, seed=3)
    assert torch.equal(whole, head.sample(context, 5, seed=3))
    assert not torch.allclose(whole, head.sample(context, 5, seed=4))
    for batch_size in (1, 3, 10):
        cut = head.sample(context, 5, seed=3, batch_size=batch_size)
        torch.testing.assert_close(cut, whole, rtol=1e-3, atol=1e-3)
    draws = Draws.of_block(3, slice(0, 2), slice(4, 7), context.device)
    with torch.no_grad():
        fewer = head.draw_block(context[4:], draws, None, head.check_sampling(2, None, None, 1))
    torch.testing.assert_close(fewer, whole[:2, 4:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [n for n in HEADS if n != "trees"])
def test_every_parameter_learns(name: str) -> None:
    head, (x, context) = build(name), data(40)
    head.loss(x, context, torch.Generator().manual_seed(0)).mean().backward()
    learning = {label: p for label, p in head.named_parameters() if p.requires_grad}
    for label, weight in learning.items():
        assert weight.grad is not None, label
        assert float(weight.grad.abs().sum()) > 0, label
    grouped = [id(p) for group in head.parameter_groups() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in learning.values())


@pytest.mark.parametrize("name", WITH_DENSITY)
def test_density_integrates_to_one(name: str) -> None:
    head = build(name)
    if name != "trees":
        train_head(head, Correlated(), Budget(steps=60, batch=128, rate=5e-3))
    context = torch.tensor([[0.0, 0.0, 0.0], [0.9, -0.5, 1.0]])
    axis = torch.linspace(-5, 5, 51)
    points = torch.cartesian_prod(axis, axis).unsqueeze(1).expand(-1, 2, -1)
    log_p = head.log_prob(points, context).unflatten(0, (len(axis), len(axis)))
    total = torch.trapezoid(torch.trapezoid(log_p.exp(), axis, dim=0), axis, dim=0)
    torch.testing.assert_close(total, torch.ones(2), rtol=0, atol=0.01)


class Correlated(LinearGaussian):
    """Pairs as `data` makes them."""

    n_targets, context_dim = 2, N_CONTEXT

    def pairs(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws pairs."""
        context = torch.randn(n, N_CONTEXT, generator=generator)
        return 0.6 * context[:, :1] + 0.8 * torch.randn(n, 2, generator=generator), context


@pytest.mark.parametrize("name", WITH_DENSITY)
def test_density_is_the_one_that_is_drawn_from(name: str) -> None:
    """The mean of p over a uniform box equals the share of the draws in it."""
    head = build(name)
    context = torch.zeros(1, N_CONTEXT)
    draws = head.sample(context, 4000, **({"steps": 60} if head.solvers else {}))[:, 0]
    low, high = draws.quantile(0.25, dim=0), draws.quantile(0.75, dim=0)
    inside = ((draws > low) & (draws < high)).all(dim=1).double().mean()
    grid = [torch.linspace(float(a), float(b), 15) for a, b in zip(low, high, strict=True)]
    points = torch.cartesian_prod(*grid).unsqueeze(1)
    density = head.log_prob(points, context).exp().reshape(15, 15)
    expected = torch.trapezoid(torch.trapezoid(density, grid[1]), grid[0])
    # the bound of the vae may only be lower
    slack = 0.03 if name != "vae" else 0.06
    assert float(inside) == pytest.approx(float(expected), abs=slack)


@pytest.mark.parametrize("name", WITH_DENSITY)
def test_density_of_many_values_an_event(name: str) -> None:
    head, (_, context) = build(name), data(5)
    x = head.sample(context, 3)
    together = head.log_prob(x, context, batch_size=4)
    apart = torch.stack([head.log_prob(values, context) for values in x])
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", HEADS)
def test_saved_weights_give_the_same_draws(name: str, tmp_path: Path) -> None:
    head, (_, context) = build(name), data(5)
    save_file({k: v.contiguous() for k, v in head.state_dict().items()}, tmp_path / "w")
    torch.manual_seed(9)
    other = HEADS[name](2, N_CONTEXT)
    other.load_state_dict(load_file(tmp_path / "w"))
    assert torch.equal(other.eval().sample(context, 3), head.sample(context, 3))


@pytest.mark.parametrize("name", ["flow", "vae", "gan", "mass_head", "trees"])
def test_one_pass_families_have_no_steps(name: str) -> None:
    head = build(name)
    with pytest.raises(InputError, match=f"'{name}' draws in a single pass: leave out 'steps'"):
        head.sample(torch.zeros(2, N_CONTEXT), 1, steps=5)


def test_errors_name_the_remedy() -> None:
    context = torch.zeros(2, N_CONTEXT)
    with pytest.raises(ModelError, match="'gan' has no density: draw from it with sample"):
        build("gan").log_prob(torch.zeros(2, 2), context)
    head = build("diffusion")
    with pytest.raises(InputError, match="Unknown solver of diffusion 'huen'.*did you mean 'heun'"):
        head.sample(context, 1, solver="huen")
    with pytest.raises(InputError, match="'steps' should be at least 1, got 0"):
        head.sample(context, 1, steps=0)
    with pytest.raises(InputError, match="'n_samples' should be at least 1, got 0"):
        head.sample(context, 0)
    with pytest.raises(ShapeError, match=r"'x' should have shape \(2, 2\)"):
        head.log_prob(torch.zeros(3, 2), context)
    with pytest.raises(InputError, match="at least one target"):
        HEADS["flow"](0, 3)
    with pytest.raises(ModelError, match="has not been grown"):
        HEADS["trees"](2, 3).sample(context, 1)


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (DiffusionConfig, {"schedule": "linear"}, "'schedule' should be 'cosine' or 'lognormal'"),
        (DiffusionConfig, {"sigma_min": 30.0}, "0 < sigma_min < sigma_max"),
        (FlowMatchingConfig, {"noise_draws": 0}, "'noise_draws' should be at least 1"),
        (FlowConfig, {"bins": 1}, "'bins' should be at least 2"),
        (VAEConfig, {"latent_dim": 0}, "'latent_dim' should be at least 1"),
        (GANConfig, {"penalty": 0.0}, "'penalty' should be positive"),
        (MassHeadConfig, {"least_scale": 2.0}, r"'least_scale' should be in \(0, 1\)"),
        (TreesConfig, {"features_tried": 0.0}, "0 < features_tried <= 1"),
    ],
)
def test_bad_configurations(
    config: Callable[..., object], fields: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        config(**fields)


def test_blocks_cover_everything_once() -> None:
    for n_draws, n_events, size in ((5, 7, 3), (2, 9, 8), (1, 4, 100), (3, 0, 4)):
        seen = torch.zeros(n_draws, n_events)
        for draws, events in blocks(n_draws, n_events, size):
            seen[draws, events] += 1
            assert seen[draws, events].numel() <= size
        assert bool((seen == 1).all())


def test_peaks_beyond_the_ends_are_cut_off() -> None:
    head = build("mass_head")
    assert isinstance(head, MassHead)
    head.lowest.fill_(-1.0)
    head.highest.fill_(0.5)
    context = torch.zeros(1, N_CONTEXT)
    draws = head.sample(context, 3000)[:, 0]
    assert float(draws.min()) >= -1
    assert float(draws.max()) <= 0.5
    outside = torch.tensor([[[0.6, 0.0]], [[0.0, -1.1]]])
    assert bool((head.log_prob(outside, context) == -math.inf).all())


def test_a_ceiling_follows_the_earlier_mass() -> None:
    head = build("mass_head")
    assert isinstance(head, MassHead)
    head.set_ceiling(1, 0, offset=-0.3, slope=1.0)
    context = torch.zeros(1, N_CONTEXT)
    draws = head.sample(context, 3000)[:, 0]
    room = head.lowest[1] + 0.3 < draws[:, 0]
    assert bool((draws[room, 1] <= draws[room, 0] - 0.3 + 2e-3).all())
    axis = torch.linspace(-4, 4, 401)
    points = torch.cartesian_prod(axis, axis).unsqueeze(1)
    density = head.log_prob(points, context).exp().reshape(401, 401)
    closed = axis > torch.maximum(axis.unsqueeze(1) - 0.3, head.lowest[1]) + 2e-3
    assert float(density[closed].max()) == 0.0
    # where there is no room, all is in a strip that is thinner than the grid
    assert float(density.sum() * 0.02**2) == pytest.approx(float(room.double().mean()), abs=0.03)
    with pytest.raises(InputError, match="follow from an earlier one, got 1"):
        head.set_ceiling(1, 1, 0.0, 1.0)


def test_trees_are_walked_as_scikit_learn_walks_them() -> None:
    from sklearn.ensemble import ExtraTreesRegressor

    x, context = data(500)
    plain = TreesConfig(n_trees=8, leaf_events=10, linear=False, frequencies=0, smoothing=0.3)
    head = TreesHead(2, N_CONTEXT, plain)
    head.grow(x, context, seed=4)
    forest = ExtraTreesRegressor(8, min_samples_leaf=10, max_features=0.5, random_state=4)
    forest.fit(context.numpy(), x.numpy())
    _, new = data(300, seed=7)
    expected = torch.as_tensor(forest.apply(new.numpy())).T
    for tree in range(8):
        found = head.leaves(new, torch.full((300,), tree))
        assert torch.equal(found, expected[tree])
    mean = head.sample(new[:20], 3000).mean(dim=0)
    torch.testing.assert_close(
        mean, torch.as_tensor(forest.predict(new[:20].numpy())).float(), rtol=0, atol=0.08
    )


def test_trees_count_members_by_their_weight() -> None:
    x, context = data(300, seed=2)
    weight = torch.randint(0, 4, (300,), generator=torch.Generator().manual_seed(3)).double()
    plain = TreesConfig(n_trees=1, leaf_events=30, linear=False, smoothing=1e-3)
    head = TreesHead(2, N_CONTEXT, plain)
    head.grow(x, context, weight=weight)
    kept, seen = x[weight > 0], context[weight > 0]
    tree = torch.zeros(len(seen), dtype=torch.int64)
    at = head.leaves(context[:1], tree[:1])
    inside = head.leaves(seen, tree) == at
    share = weight[weight > 0][inside] / weight[weight > 0][inside].sum()
    draws = head.sample(context[:1], 20_000, seed=1)[:, 0]
    nearest = torch.cdist(draws, kept[inside]).argmin(dim=1)
    found = torch.bincount(nearest, minlength=len(share)) / len(draws)
    torch.testing.assert_close(found.double(), share, rtol=0, atol=0.01)
    density = head.log_prob(kept[inside].unsqueeze(1), context[:1])[:, 0].exp()
    torch.testing.assert_close(density.double() / density.double().sum(), share, rtol=1e-3, atol=0)


def test_trees_take_out_what_is_linear() -> None:
    """A shift of x that is linear in the features moves the draws by just that."""
    x, context = data(400, seed=5)
    slope = torch.tensor([[0.7, -0.4]]).expand(N_CONTEXT, 2)
    heads = [TreesHead(2, N_CONTEXT, TreesConfig(n_trees=8, leaf_events=10)) for _ in range(2)]
    heads[0].grow(x, context)
    heads[1].grow(x + context @ slope, context)
    new = data(20, seed=6)[1]
    still, moved = (head.sample(new, 50) for head in heads)
    # few events shrink the slopes a little
    torch.testing.assert_close(moved, still + new @ slope, rtol=0, atol=0.15)


def test_trees_split_where_only_the_width_changes() -> None:
    generator = torch.Generator().manual_seed(8)
    context = torch.rand(4000, 1, generator=generator)
    wide = context > 0.5
    x = torch.randn(4000, 1, generator=generator) * torch.where(wide, 1.0, 0.1)
    head = TreesHead(1, 1, TreesConfig(n_trees=10, leaf_events=100, features_tried=1.0))
    head.grow(x, context)
    narrow, broad = head.sample(torch.tensor([[0.2], [0.8]]), 4000).std(dim=0).flatten()
    assert float(broad) == pytest.approx(1.0, abs=0.15)
    # the kernel is the same everywhere
    assert float(narrow) < 0.35


def test_trees_choose_the_smoothing_that_fits_left_out_events() -> None:
    generator = torch.Generator().manual_seed(9)
    context = torch.rand(2000, 1, generator=generator)
    sharp = torch.randint(0, 2, (2000, 1), generator=generator) * 2.0 - 1
    sharp = sharp + 0.02 * torch.randn(2000, 1, generator=generator)
    smooth = torch.randn(2000, 1, generator=generator)
    found = []
    for x in (sharp, smooth):
        head = TreesHead(1, 1, TreesConfig(n_trees=10, leaf_events=50, features_tried=1.0))
        head.grow(x, context)
        found.append(float(head.width))
    assert found[0] < 0.1 < found[1]


def test_trees_refuse_negative_weights() -> None:
    x, context = data(30)
    with pytest.raises(InputError, match="weights that are finite, not negative"):
        HEADS["trees"](2, N_CONTEXT).grow(x, context, weight=x[:, 0])
