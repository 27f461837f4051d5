r"""A forest of regression trees that keeps whole distributions: the `trees` family.

What is linear in the features is taken out first, x = B c + b + r. Every leaf of a tree holds the
residuals r_i of the training events that fell into it. The posterior of a new event is the mixture
of those in the leaves that it reaches, over all trees, each smoothed by a Gaussian:

    p(x | c) = mean over trees, mean over members i of the leaf of c,  N(x - B c - b; r_i, h^2).

A split is chosen such that the distributions of r on both sides differ most, not only their means:
the trees regress cos(w r) and sin(w r) for random frequencies w, whose variance within a node is
the mean squared distance of its events under a Gaussian kernel. The width h is the one under which
training events are most probable, each left out in turn.

Where events have weights, splits and both means are weighted. So a single forest gives the joint
density of all targets, exactly, and a draw walks down one tree. scikit-learn grows the trees; they
are stored as plain arrays and walked here, so that nothing needs unpickling.

References:
    N. Meinshausen, J. Mach. Learn. Res. 7 (2006) 983 (quantile regression forests); D. Cevid et
    al., J. Mach. Learn. Res. 23 (2022) 333 (splits by distributions); H. Zhang, D. Nettleton and
    Z. Zhu, arXiv:1904.10416 (forests of residuals).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.ensemble import ExtraTreesRegressor
from torch import Tensor, nn

from massrecon.errors import InputError, ModelError
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.models.base import Prepared
from massrecon.models.checkpoint import fingerprint_of
from massrecon.models.event_encoder import EventReader
from massrecon.models.event_model import EventModel, TargetConfig
from massrecon.models.head import Head
from massrecon.models.likelihood import normal_log_prob
from massrecon.models.noise import Draws
from massrecon.models.recipe import TrainingConfig, TrainingHistory
from massrecon.models.validation import Metric, examined, refuse_no_events

_ARRAYS = (
    *("feature", "threshold", "left", "right", "start", "count", "members"),
    *("values", "weight", "width", "slope", "offset"),
)
_SMOOTHINGS = torch.logspace(-2, 0, 9)
_LEFT_OUT = 200  # training events that choose one of these


@dataclass(frozen=True, kw_only=True)
class TreesConfig:
    """The forest.

    Attributes:
        n_trees: Number of trees.
        leaf_events: Fewest training events in a leaf.
        features_tried: Share of the features that each split chooses from.
        linear: Whether to take out first what is linear in the features. Leave that out for a
            target with hard ends, such as a cosine: draws would be shifted beyond them.
        frequencies: Number of random frequencies with which splits compare distributions; with 0
            they compare means.
        smoothing: Width of the Gaussians, in units of the spread inside a leaf; by default the one
            that fits left-out events best.
    """

    n_trees: int = 200
    leaf_events: int = 20
    features_tried: float = 0.5
    linear: bool = True
    frequencies: int = 8
    smoothing: float | None = None

    def __post_init__(self) -> None:
        for name in ("n_trees", "leaf_events"):
            if getattr(self, name) < 1:
                raise InputError(f"'{name}' should be at least 1, got {getattr(self, name)}.")
        smoothing = 1.0 if self.smoothing is None else self.smoothing
        if not 0 < self.features_tried <= 1 or smoothing <= 0 or self.frequencies < 0:
            raise InputError(
                "Expected 0 < features_tried <= 1, smoothing > 0 and frequencies >= 0."
            )


class TreesHead(Head):
    """A forest over x given a context; grown by `grow`, not by gradients.

    Attributes:
        feature: Feature that each node of each tree asks for, -1 in a leaf, ``(K, nodes)``.
        threshold: Largest value that goes left.
        left: Next node to the left.
        right: Next node to the right.
        start: Where the members of a leaf begin in `members`.
        count: How many they are.
        members: Numbers of training events, leaf by leaf, shape ``(K, N)``.
        values: Residuals of the training events, shape ``(N, T)``.
        weight: Weights of the training events, one on average, shape ``(N,)``.
        width: Width of the Gaussians, shape ``(T,)``.
        slope: What is linear in the features, shape ``(C, T)``.
        offset: Its constant, shape ``(T,)``.
    """

    family = "trees"
    density = "exact"
    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    start: Tensor
    count: Tensor
    members: Tensor
    values: Tensor
    weight: Tensor
    width: Tensor
    slope: Tensor
    offset: Tensor
    cumulative: Tensor

    def __init__(self, n_targets: int, context_dim: int, config: TreesConfig) -> None:
        super().__init__(n_targets, context_dim)
        self.config = config
        for name in _ARRAYS:
            self.register_buffer(name, torch.zeros(0))
        # weights of the members added up, tree after tree
        self.register_buffer("cumulative", torch.zeros(0, dtype=torch.float64), persistent=False)

    def grow(self, x: Tensor, context: Tensor, seed: int = 0, weight: Tensor | None = None) -> None:
        """Grows the forest on all training pairs at once.

        Args:
            x: True values, shape ``(N, T)``.
            context: Features, shape ``(N, C)``.
            seed: Seed of the splits.
            weight: Weights of the pairs, shape ``(N,)``; those of weight zero are left out.

        Raises:
            InputError: If a weight is negative or not finite, or all are zero.
        """
        x, context, weight = _weighted_pairs(x, context, weight)
        config = self.config
        forest = ExtraTreesRegressor(
            config.n_trees,
            min_samples_leaf=config.leaf_events,
            max_features=config.features_tried,
            random_state=seed,
        )
        self.slope, self.offset = _linear_part(x, context, weight, config.linear)
        residual = x - self._expected(context)
        forest.fit(context.numpy(), _compared(residual, config.frequencies, seed), weight.numpy())
        leaves = forest.apply(context.numpy()).T
        trees = [_tree_arrays(tree.tree_, leaf) for tree, leaf in zip(forest, leaves, strict=True)]
        nodes = max(len(tree["feature"]) for tree in trees)
        for name in trees[0]:
            size = len(x) if name == "members" else nodes
            padded = [np.pad(tree[name], (0, size - len(tree[name]))) for tree in trees]
            setattr(self, name, torch.as_tensor(np.stack(padded)))
        self.values, self.weight = residual, weight
        self._add_up_weights()
        self.width = self._spread_in_leaves()
        self.width = self.width * (config.smoothing or self._best_smoothing(context))

    def _expected(self, context: Tensor) -> Tensor:
        """Computes what is linear in the features ``(..., C)``, shape ``(..., T)``."""
        # summed exactly enough not to depend on how the events are cut into batches
        return (context.double() @ self.slope.double() + self.offset.double()).float()

    def _add_up_weights(self) -> None:
        weight = nn.functional.pad(self.weight[self.members.long()].double(), (1, 0))
        number = torch.arange(len(weight), device=weight.device).unsqueeze(1)
        self.cumulative = (weight.cumsum(dim=1) + 2 * number * weight.shape[1]).flatten()

    def _ends_of_leaves(self, tree: Tensor, node: Tensor) -> tuple[Tensor, Tensor]:
        """Returns where the members of leaves begin and end in `cumulative`."""
        first = tree * (self.members.shape[1] + 1) + self.start[tree, node]
        return first, first + self.count[tree, node]

    def _spread_in_leaves(self) -> Tensor:
        """Returns the root mean square distance from the mean of the leaf, ``(T,)``."""
        total = torch.zeros(self.n_targets, dtype=torch.float64)
        for tree, members in enumerate(self.members.long()):
            leaf = self.count[tree].nonzero().squeeze(1)
            leaf = leaf[self.start[tree][leaf].argsort()]
            number = torch.repeat_interleave(torch.arange(len(leaf)), self.count[tree][leaf].long())
            values = self.values[members].double()
            weight = self.weight[members].double().unsqueeze(1)
            sums = torch.zeros(len(leaf), self.n_targets + 1, dtype=torch.float64)
            sums = sums.index_add(0, number, torch.cat([weight * values, weight], dim=1))
            mean = sums[:, :-1] / sums[:, -1:]
            total += (weight * (values - mean[number]).square()).sum(dim=0) / weight.sum()
        return (total / len(self.members)).sqrt().clamp_min(1e-3).float()

    def _best_smoothing(self, context: Tensor) -> float:
        """Returns the width under which training events, left out one by one, are most probable."""
        rows = torch.arange(0, len(context), math.ceil(len(context) / _LEFT_OUT))
        smoothing = _SMOOTHINGS.reshape(-1, 1, 1)
        total = torch.full((len(smoothing), len(rows)), -math.inf)
        for number in range(len(self.feature)):
            member, weight = self._members(number, context[rows])
            weight = torch.where(member == rows.unsqueeze(1), 0.0, weight)
            share = weight / weight.sum(dim=1, keepdim=True).clamp_min(1e-30)
            off = (self.values[rows].unsqueeze(1) - self.values[member]) / self.width
            log_p = -0.5 * (off.square().sum(dim=-1) / smoothing.square()) + share.log()
            total = torch.logaddexp(total, log_p.logsumexp(dim=-1))
        total = total - self.n_targets * smoothing.log().squeeze(-1)
        total = total[:, total.isfinite().all(dim=0)]  # with a neighbour in some tree
        return float(_SMOOTHINGS[total.sum(dim=1).argmax()]) if total.numel() else 1.0

    def _members(self, number: int, context: Tensor) -> tuple[Tensor, Tensor]:
        """Lists the training events in the leaves of contexts ``(N, C)`` in a numbered tree.

        Returns:
            Their numbers and weights, zero where a leaf has fewer than the largest, ``(N, m)``.
        """
        node = self.leaves(context, torch.full(context.shape[:1], number, device=context.device))
        start, count = self.start[number, node], self.count[number, node]
        place = torch.arange(int(count.max()), device=context.device)
        there = place < count.unsqueeze(-1)
        place = (start.unsqueeze(-1) + place).clamp_max(self.members.shape[1] - 1)
        member = self.members[number, place.long()].long()
        return member, torch.where(there, self.weight[member], 0.0)

    def loss(self, x: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
        """Computes the negative log-density, ``(N,)``; it has no gradient."""
        return -self.log_prob(x, context)

    def leaves(self, context: Tensor, tree: Tensor) -> Tensor:
        """Finds the leaf that a context ``(..., C)`` reaches in a numbered tree, ``(...)``."""
        if self.feature.numel() == 0:
            raise ModelError("This forest has not been grown: train it first.")
        node = torch.zeros_like(tree)
        while True:
            feature = self.feature[tree, node].long()
            inside = feature >= 0
            if not bool(inside.any()):
                return node
            value = context.gather(-1, feature.clamp_min(0).unsqueeze(-1)).squeeze(-1)
            go_left = value <= self.threshold[tree, node]
            deeper = torch.where(go_left, self.left[tree, node], self.right[tree, node])
            node = torch.where(inside, deeper.long(), node)

    def draw_block(self, context: Tensor, draws: Draws, steps: int | None, solver: str) -> Tensor:
        """Draws x, see `Head.draw_block`."""
        choice, position = draws.uniform(0, 2).unbind(dim=-1)
        tree = (choice * len(self.feature)).long()
        node = self.leaves(context.expand(*tree.shape, -1), tree)
        first, last = self._ends_of_leaves(tree, node)
        below, above = self.cumulative[first], self.cumulative[last]
        chosen = below + position * (above - below)
        reached = torch.searchsorted(self.cumulative, chosen, right=True)
        # `cumulative` has one place more for each tree than `members`
        member = reached.clamp(first + 1, last) - 1 - tree
        values = self.values[self.members.flatten()[member].long()]
        return self._expected(context) + values + self.width * draws.normal(1, self.n_targets)

    def log_density(self, x: Tensor, context: Tensor) -> Tensor:
        """Adds up the trees one by one: the memory does not grow with their number."""
        total, residual = x.new_full(x.shape[:-1], -math.inf), x - self._expected(context)
        for number in range(len(self.feature)):
            member, weight = self._members(number, context)
            share = weight / weight.sum(dim=1, keepdim=True)
            log_p = normal_log_prob((residual.unsqueeze(-2) - self.values[member]) / self.width)
            total = torch.logaddexp(total, (log_p + share.log()).logsumexp(dim=-1))
        return total - math.log(len(self.feature)) - self.width.log().sum()

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: object) -> None:
        """Makes room for as many nodes and members as the saved forest has."""
        for name in _ARRAYS:
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.zeros_like(saved))
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[misc]  of torch, private
        if self.members.numel():
            self._add_up_weights()


def _weighted_pairs(
    x: Tensor, context: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Checks weights, leaves out the pairs without any, and makes the others one on average."""
    if weight is None:
        return x, context, torch.ones(len(x))
    if not bool((weight.isfinite() & (weight >= 0)).all()) or not float(weight.sum()) > 0:
        raise InputError(
            "The family 'trees' needs weights that are finite, not negative and not zero "
            "throughout: leave out events of negative weight, or choose another family."
        )
    kept = weight > 0
    return x[kept], context[kept], (weight[kept] / weight[kept].mean()).float()


def _linear_part(x: Tensor, context: Tensor, weight: Tensor, fit: bool) -> tuple[Tensor, Tensor]:
    """Fits x by features linearly, with slopes shrunk as much as few events need.

    Returns:
        Slope ``(C, T)`` and offset ``(T,)``; zero unless `fit`.
    """
    if not fit:
        return torch.zeros(context.shape[1], x.shape[1]), torch.zeros(x.shape[1])
    share = (weight / weight.sum()).double().unsqueeze(1)
    seen, truth = context.double(), x.double()
    middle, centre = (share * seen).sum(dim=0), (share * truth).sum(dim=0)
    spread = (share * (seen - middle).square()).sum(dim=0).sqrt()
    scaled = (seen - middle) / spread.clamp_min(1e-9)
    ridge = torch.eye(seen.shape[1], dtype=torch.float64) * seen.shape[1] / len(seen)
    slope = torch.linalg.solve(scaled.T @ (share * scaled) + ridge, scaled.T @ (share * truth))
    slope = slope / spread.clamp_min(1e-9).unsqueeze(1)
    # one layout in memory, so that a saved forest draws the same to the last bit
    return slope.float().contiguous(), (centre - middle @ slope).float()


def _compared(residual: Tensor, frequencies: int, seed: int) -> np.ndarray:
    """Computes what the splits compare the means of: cos and sin of random phases, or residuals.

    The kernel is half as wide as the median distance of two events.
    """
    if not frequencies:
        return residual.numpy() if residual.shape[1] > 1 else residual[:, 0].numpy()
    generator = torch.Generator().manual_seed(seed)
    scaled = residual / residual.std(dim=0, correction=0).clamp_min(1e-6)
    other = scaled[torch.randperm(len(scaled), generator=generator)]
    width = 0.5 * float((scaled - other).norm(dim=1).median().clamp_min(1e-6))
    phase = scaled @ torch.randn(residual.shape[1], frequencies, generator=generator) / width
    return torch.cat([phase.cos(), phase.sin()], dim=1).numpy()


def _tree_arrays(tree: Any, leaf: np.ndarray) -> dict[str, np.ndarray]:
    """Turns a scikit-learn tree and the leaf of each training event into arrays."""
    is_leaf = tree.children_left < 0
    # features are compared as float32: the largest float32 that is not above the threshold
    rounded = tree.threshold.astype(np.float32)
    lower = np.nextafter(rounded, np.float32(-np.inf))
    count = np.bincount(leaf, minlength=tree.node_count)
    return {
        "feature": np.where(is_leaf, -1, tree.feature).astype(np.int16),
        "threshold": np.where(rounded > tree.threshold, lower, rounded),
        "left": tree.children_left.astype(np.int32),
        "right": tree.children_right.astype(np.int32),
        "start": (np.cumsum(count) - count).astype(np.int32),
        "count": count.astype(np.int32),
        "members": np.argsort(leaf, kind="stable").astype(np.int32),
    }


@dataclass(frozen=True, kw_only=True)
class TreesModelConfig(TreesConfig, TargetConfig):
    """Everything that the family `trees` can be told: forest and targets."""

    def __post_init__(self) -> None:
        TreesConfig.__post_init__(self)
        TargetConfig.__post_init__(self)


class FlatFeatures(EventReader):
    """The features of an event in a row, without a network: objects in their slots, pair masses.

    Attributes:
        context_dim: Number of features.
    """

    def __init__(self, card: ProcessCard) -> None:
        super().__init__(card)
        pairs = self.n_slots * (self.n_slots + 1) // 2
        self.context_dim = self.n_slots * (self.object_width + 1) + self.event_width + pairs

    def fit(self, prepared: Prepared) -> None:
        """Does nothing: trees need no scaling."""

    def forward(self, batch: Prepared) -> Tensor:
        """Computes the features of a prepared batch, shape ``(N, C)``."""
        objects, event = self.features(batch)
        there = batch["present"].to(objects).unsqueeze(-1)
        slots = torch.cat([objects * there, there], dim=-1).flatten(1)
        p4 = batch["objects"].double()
        i, j = torch.triu_indices(p4.shape[1], p4.shape[1], device=p4.device)
        dot = p4[:, i, 3] * p4[:, j, 3] - (p4[:, i, :3] * p4[:, j, :3]).sum(dim=-1)
        # an object with itself has no pair mass: its place holds how it lies to ptmiss
        along = (p4[..., :2] * batch["ptmiss"].double().unsqueeze(1)).sum(dim=-1)
        pairs = torch.where(i == j, along[:, i], (2 * dot).clamp_min(0).sqrt())
        return torch.cat([slots, event, pairs.float()], dim=-1)


class Trees(EventModel):
    """A forest over the targets of any card; the baseline that needs no network."""

    name = "trees"
    density = TreesHead.density
    config_type = TreesModelConfig
    head_type = TreesHead
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"full": {}, "small": {"n_trees": 60}}

    def build_encoder(self) -> FlatFeatures:
        """Builds the row of features."""
        return FlatFeatures(self.card)


def grow_forest(
    model: Trees,
    train_events: Events,
    validation_events: Events,
    config: TrainingConfig,
    metrics: Mapping[str, Metric],
) -> TrainingHistory:
    """Trains a forest in place, all trees at once; of the recipe only the seed counts.

    Raises:
        InputError: If there are no events, or they carry no truth.
    """
    refuse_no_events(train_events, validation_events)
    started = time.monotonic()
    model.fit_scaling(train_events)
    data, validation = model.prepare(train_events), model.prepare(validation_events)
    head = model.trained_head
    assert isinstance(head, TreesHead)
    x, context = model.targets.encode(data["targets"]), model.encode(data)
    head.grow(x, context, config.seed, data["weight"])
    model.eval()
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        losses = [float(model.validation_loss_prepared(d, generator)) for d in (data, validation)]
    looked_at = examined(validation_events, config)
    record = {
        "step": 1,
        "epoch": 1.0,
        "seconds": round(time.monotonic() - started, 3),
        "train_loss": losses[0],
        "validation_loss": losses[1],
        "learning_rate": 0.0,
        "metrics": {name: metric(model, looked_at) for name, metric in metrics.items()},
    }
    return TrainingHistory(
        records=[record],
        total_steps=1,
        best_step=1,
        seed=config.seed,
        data_fingerprint=fingerprint_of(data),
        config=dataclasses.asdict(config),
    )
