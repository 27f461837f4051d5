"""The fit: all events in memory, whole steps as tensors, a checkpoint at each epoch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from scipy.optimize import minimize
from torch import Tensor
from tqdm import tqdm

from massrecon.errors import ModelError
from massrecon.models.deelema.inputs import Prepared
from massrecon.models.deelema.loss import Loss, anchor_penalty
from massrecon.models.deelema.momenta import MassFunction, invisible_momenta
from massrecon.models.deelema.network import Network, OrderedMasses
from massrecon.provenance import replacing_folder

CHECKPOINT = "checkpoint"
_WARM_UP = 0.25
_START_SHARE = 0.04
_SETTLE_EVENTS = 8192
_ARRIVAL = 0.3
"""Share of the steps after which the masses should have come to their edges."""


@dataclass(kw_only=True)
class FitRecord:
    """How a fit went.

    Attributes:
        epochs: One entry an epoch: ``epoch``, ``loss`` [GeV] and the masses by species [GeV].
        seconds: Processor time of the network's fit.
        n_events: Number of events.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    n_events: int = 0


class Fit:
    """The state of a fit and its steps."""

    def __init__(
        self,
        network: Network,
        masses: OrderedMasses,
        loss: Loss,
        mass_function: MassFunction,
        data: Prepared,
        anchor: tuple[Tensor, Tensor],
        seed: int,
    ) -> None:
        """Puts a fit together.

        Args:
            network: Changed in place, as are the masses.
            masses: The global masses.
            loss: The loss, with the settings.
            mass_function: Masses of the targets.
            data: The events.
            anchor: Edges and their errors in units of the scale, each ``(G,)``; NaN for none.
            seed: Seed of the order of the events.
        """
        self.network, self.masses, self.loss = network, masses, loss
        self.mass_function, self.data = mass_function, data
        self.config = config = loss.config
        self.edges, self.errors = anchor
        self.anchored = bool(self.edges.isfinite().any())
        self.seed, self.n = seed, data.inputs.shape[1]
        self.size = min(config.batch_size, self.n)
        self.steps = max(self.n // self.size, 1)
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(network.parameters()), "peak": config.learning_rate},
                {"params": list(masses.parameters()), "peak": self._mass_rate()},
            ],
            betas=(0.9, 0.99),
            fused=True,
        )

    @torch.no_grad()
    def _mass_rate(self) -> float:
        """Returns the learning rate of the masses: large enough to reach the edges early on."""
        rate = self.config.mass_learning_rate
        if not self.anchored:
            return rate
        known = self.edges.isfinite()
        furthest = float((self.masses() - self.edges)[known].abs().max())
        return max(rate, furthest / (_ARRIVAL * self.config.epochs * self.steps))

    def epoch(self, number: int) -> float:
        """Runs one epoch and returns its mean loss, in units of the scale."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        order = torch.randperm(self.n, generator=generator).to(self.edges.device)
        self.network.train()
        total = torch.zeros((), device=self.edges.device)
        for i in range(self.steps):
            self._set_rates(number * self.steps + i)
            total += self._step(order[i * self.size : (i + 1) * self.size])
        return float(total) / self.steps

    def _step(self, rows: Tensor) -> Tensor:
        data = self.data
        inputs, ptmiss = data.inputs[:, rows].flatten(0, 1), data.ptmiss[:, rows].flatten(0, 1)
        momenta = invisible_momenta(self.network(inputs), ptmiss, self.masses.trial)
        squared = self.mass_function.squared(data.sums[:, rows].flatten(0, 1), momenta)
        masses = self.masses()
        losses = self.loss.each(squared, masses).reshape(-1, len(rows))
        loss = whole = self.loss.total(losses)
        if self.anchored:
            pull = anchor_penalty(masses, self.edges, self.errors)
            whole = loss + self.config.anchor_weight * pull
        self.optimizer.zero_grad(set_to_none=True)
        whole.backward()
        self.optimizer.step()
        self.masses.keep_sensitive()
        return loss.detach()

    def _set_rates(self, step: int) -> None:
        """Sets the learning rates of a step."""
        progress = step / max(self.config.epochs * self.steps, 1)
        if self.config.schedule == "polynomial":
            share = (1 - math.floor(progress * self.config.epochs) / self.config.epochs) ** 2
        elif progress < _WARM_UP:
            rise = 0.5 - 0.5 * math.cos(math.pi * progress / _WARM_UP)
            share = _START_SHARE + (1 - _START_SHARE) * rise
        else:
            share = 0.5 + 0.5 * math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP))
        for group in self.optimizer.param_groups:
            group["lr"] = share * group["peak"]

    @torch.no_grad()
    def settle(self) -> None:
        """Sets the global masses to the minimum of loss and anchor for the network as it is."""
        rows = torch.arange(min(self.n, _SETTLE_EVENTS), device=self.edges.device)
        data = self.data
        inputs, ptmiss = data.inputs[:, rows].flatten(0, 1), data.ptmiss[:, rows].flatten(0, 1)
        momenta = invisible_momenta(self.network(inputs), ptmiss, self.masses.trial)
        squared = self.mass_function.squared(data.sums[:, rows].flatten(0, 1), momenta)
        centre = torch.where(self.edges.isfinite(), self.edges, self.masses())

        def value(pulls: np.ndarray) -> float:
            at = centre + self.errors * torch.as_tensor(pulls, dtype=centre.dtype).to(centre.device)
            losses = self.loss.each(squared, at).reshape(-1, len(rows))
            pull = anchor_penalty(at, self.edges, self.errors)
            return float(self.loss.total(losses) + self.config.anchor_weight * pull)

        start = np.zeros(len(centre))
        simplex = np.vstack([start, np.eye(len(centre))])
        options = {"initial_simplex": simplex, "maxfev": 40 * len(centre), "xatol": 1e-2}
        best = minimize(value, start, method="Nelder-Mead", options=options).x
        found = centre.cpu().double().numpy() + self.errors.cpu().double().numpy() * best
        found *= self.masses.scale
        self.masses.assign(dict(zip(self.masses.structure.groups, found.tolist(), strict=True)))

    def identity(self) -> str:
        """Returns a checksum of what decides the result."""
        digest = hashlib.sha256(self.data.inputs.cpu().contiguous().numpy().tobytes())
        digest.update(self.edges.cpu().numpy().tobytes())
        digest.update(json.dumps([dataclasses.asdict(self.config), self.seed]).encode())
        for parameter in self.network.parameters():
            digest.update(parameter.detach().cpu().numpy().tobytes())
        return digest.hexdigest()


def run_fit(
    fit: Fit,
    *,
    folder: Path | None,
    progress: bool,
    on_epoch: Callable[[Mapping[str, Any]], None] | None,
) -> FitRecord:
    """Trains network and global masses in place; see `DeeLeMa.fit`.

    Raises:
        ModelError: If the checkpoint in `folder` belongs to another fit.
    """
    config, masses = fit.config, fit.masses
    identity = "" if folder is None else fit.identity()
    record = FitRecord(n_events=fit.n)
    if folder is not None:
        record = _resume(fit, folder / CHECKPOINT, identity) or record
    first = len(record.epochs)
    with tqdm(
        total=config.epochs, initial=first, desc="DeeLeMa", unit=" epochs",
        disable=not progress, file=sys.stderr,
    ) as bar:  # fmt: skip
        for number in range(first, config.epochs):
            start = time.process_time()
            value = fit.epoch(number) * masses.scale
            record.seconds += time.process_time() - start
            entry = {"epoch": number + 1, "loss": value, **_masses(masses)}
            record.epochs.append(entry)
            if folder is not None:
                _save(fit, folder / CHECKPOINT, identity, record)
            bar.set_postfix_str(_running(entry))
            bar.update()
            if on_epoch is not None:
                on_epoch(entry)
    fit.network.eval()
    if fit.anchored:
        fit.settle()
    return record


@torch.no_grad()
def _masses(masses: OrderedMasses) -> dict[str, float]:
    values = (masses().double() * masses.scale).tolist()
    return dict(zip(masses.structure.groups, values, strict=True))


def _running(entry: Mapping[str, float]) -> str:
    shown = [f"{k} {v:.1f}" for k, v in entry.items() if k not in ("epoch", "loss")]
    return f"loss {entry['loss']:.2f} GeV, masses {', '.join(shown)} GeV"


def _save(fit: Fit, folder: Path, identity: str, record: FitRecord) -> None:
    """Writes a checkpoint, whole or not at all."""
    state = {f"network.{k}": t for k, t in fit.network.state_dict().items()}
    state |= {f"masses.{k}": t for k, t in fit.masses.state_dict().items()}
    for key, slots in fit.optimizer.state_dict()["state"].items():
        state |= {f"adam.{key}.{name}": torch.as_tensor(t) for name, t in slots.items()}
    with replacing_folder(folder) as fresh:
        contiguous = {k: t.detach().cpu().contiguous() for k, t in state.items()}
        safetensors.torch.save_file(contiguous, fresh / "state.safetensors")
        text = json.dumps({"identity": identity, "record": dataclasses.asdict(record)})
        (fresh / "state.json").write_text(text, encoding="utf-8")


def _resume(fit: Fit, folder: Path, identity: str) -> FitRecord | None:
    """Takes up a checkpoint, if there is one."""
    if not folder.is_dir():
        return None
    try:
        header = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        state = safetensors.torch.load_file(folder / "state.safetensors")
    except Exception as error:
        raise ModelError(f"'{folder}' is damaged ({error}): delete it to start over.") from error
    if header.get("identity") != identity:
        raise ModelError(
            f"'{folder}' belongs to a fit with other events or settings: choose another folder, or "
            "delete it to start over."
        )
    for prefix, module in (("network.", fit.network), ("masses.", fit.masses)):
        part = {k[len(prefix) :]: t for k, t in state.items() if k.startswith(prefix)}
        module.load_state_dict(part)
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.startswith("adam."):
            _, key, slot = name.split(".")
            slots.setdefault(int(key), {})[slot] = tensor
    fit.optimizer.load_state_dict({**fit.optimizer.state_dict(), "state": slots})
    return FitRecord(**header["record"])
