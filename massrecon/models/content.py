"""The content of an event: which objects are there, and their discrete attributes.

It is coded as D categorical variables, the number of objects of each kind and each attribute of
each slot that varies, and learned one after the other:

    p(d | context) = prod_i p(d_i | d_1 ... d_(i-1), context).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.models.event_space import DISCRETE
from massrecon.models.network import mlp
from massrecon.models.noise import Draws

_STREAM = 1000


class ContentModel(nn.Module):
    """A categorical density of the content of events, given a context.

    Which variables there are is found in the training events, or in the saved weights.

    Args:
        card: The process card.
        context_dim: Number C of components of the context.
        width: Width of the networks.

    Attributes:
        column: Column of the codes that each variable stands for, shape ``(D,)``.
        value: Values of each variable, padded, shape ``(D, V)``.
        size: Number of values of each variable, shape ``(D,)``.
        constant: What the other columns are, shape ``(G + K * n_attributes,)``.
    """

    column: Tensor
    value: Tensor
    size: Tensor
    constant: Tensor

    def __init__(self, card: ProcessCard, context_dim: int, width: int) -> None:
        super().__init__()
        self.card, self.context_dim, self.width = card, context_dim, width
        self.attributes = tuple(name for name in card.attribute_names if name in DISCRETE)
        self.groups = card.objects
        n_columns = len(self.groups) + len(card.slots) * len(self.attributes)
        self.register_buffer("constant", torch.zeros(n_columns, dtype=torch.int64))
        self._allocate(0, 1)

    def _allocate(self, n_variables: int, most: int) -> None:
        self.register_buffer("column", torch.zeros(n_variables, dtype=torch.int64))
        self.register_buffer("value", torch.zeros(n_variables, most, dtype=torch.int64))
        self.register_buffer("size", torch.zeros(n_variables, dtype=torch.int64))

    def _build(self) -> None:
        sizes = self.size.tolist()
        before = [sum(sizes[:i]) for i in range(len(sizes))]
        self.networks = nn.ModuleList(
            mlp(self.context_dim + seen, self.width, self.width, size)
            for seen, size in zip(before, sizes, strict=True)
        )

    @property
    def n_hot(self) -> int:
        """Number of components of `one_hot`."""
        return int(self.size.sum())

    def codes(self, events: Events) -> Tensor:
        """Returns counts and attributes as integers, zero for absent objects, int64 ``(N, ...)``.

        The columns are the number of objects of each kind, then each attribute of all slots.
        """
        there = events.present
        counts = [there[:, list(events.slots_of(g.kind))].sum(dim=1) for g in self.groups]
        attributes = [
            torch.where(there, events.attributes[name].long(), 0) for name in self.attributes
        ]
        return torch.cat([torch.stack(counts, dim=1), *attributes], dim=1)

    def fit(self, codes: Tensor, present: Tensor) -> None:
        """Finds the variables and their values in the codes of training events."""
        n_groups, n_attributes = len(self.groups), len(self.attributes)
        there = torch.cat(
            [torch.ones_like(codes[:, :n_groups]), present.repeat(1, n_attributes)], 1
        )
        values = [codes[there[:, i].bool(), i].unique() for i in range(codes.shape[1])]
        varying = [i for i, found in enumerate(values) if len(found) > 1]
        for i, found in enumerate(values):
            self.constant[i] = found[0] if len(found) else 0
        self._allocate(len(varying), max((len(values[i]) for i in varying), default=1))
        for row, i in enumerate(varying):
            self.column[row], self.size[row] = i, len(values[i])
            self.value[row, : len(values[i])] = values[i]
        self._build()

    def classes(self, codes: Tensor) -> Tensor:
        """Returns the class of each variable ``(N, D)``; attributes of absent objects are in 0."""
        found = codes[:, self.column].unsqueeze(-1) == self.value
        inside = torch.arange(self.value.shape[1], device=codes.device) < self.size.unsqueeze(-1)
        return (found & inside).int().argmax(dim=-1)

    def one_hot(self, classes: Tensor) -> Tensor:
        """Returns what the kinematics are conditioned on, shape ``(N, n_hot)``."""
        parts = [
            nn.functional.one_hot(classes[:, i], size).float()
            for i, size in enumerate(self.size.tolist())
        ]
        return torch.cat([classes.new_zeros(len(classes), 0).float(), *parts], dim=1)

    def loss(self, classes: Tensor, context: Tensor) -> Tensor:
        """Computes the negative log-probability of each content, shape ``(N,)``."""
        hot, seen = self.one_hot(classes), 0
        total = context.new_zeros(len(context))
        for i, network in enumerate(self.networks):
            logits = network(torch.cat([context, hot[:, :seen]], dim=1)).float()
            total = total + nn.functional.cross_entropy(logits, classes[:, i], reduction="none")
            seen += int(self.size[i])
        return total

    def draw(self, context: Tensor, draws: Draws) -> Tensor:
        """Draws the classes of N events, shape ``(N, D)``."""
        classes = torch.zeros(len(context), 0, dtype=torch.int64, device=context.device)
        hot = context[:, :0]
        for i, network in enumerate(self.networks):
            chance = network(torch.cat([context, hot], dim=1)).softmax(dim=1).cumsum(dim=1)
            uniform = draws.uniform(_STREAM + i, 1)[0]
            drawn = (uniform > chance[:, :-1]).sum(dim=1)
            classes = torch.cat([classes, drawn.unsqueeze(1)], dim=1)
            one = nn.functional.one_hot(drawn, int(self.size[i])).float()
            hot = torch.cat([hot, one], dim=1)
        return classes

    def unpack(self, classes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns presence ``(N, K)`` and discrete attributes, each ``(N, K)``."""
        codes = self.constant.repeat(len(classes), 1)
        codes[:, self.column] = self.value.expand(len(classes), -1, -1).gather(
            2, classes.unsqueeze(-1)
        )[..., 0]
        counts = codes[:, : len(self.groups)]
        present = torch.cat(
            [
                torch.arange(group.count, device=classes.device) < counts[:, i : i + 1]
                for i, group in enumerate(self.groups)
            ],
            dim=1,
        )
        rest = codes[:, len(self.groups) :].unflatten(1, (-1, len(self.card.slots)))
        named = zip(self.attributes, rest.unbind(dim=1), strict=True)
        return present, {name: torch.where(present, values, 0) for name, values in named}

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: Any) -> None:
        """Makes room for the variables that the saved content has."""
        if (value := state_dict.get(prefix + "value")) is not None:
            self._allocate(*value.shape)
            self.size.copy_(state_dict[prefix + "size"])
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[misc]  of torch, private
