"""DeeLeMa: masses from a decay topology and unlabelled events.

A network finds the invisible momenta of each event such that the masses of the decaying particles
agree within the event and with global masses, which are learnt along with it. Nothing but the decay
topology and the trial masses of the invisible particles is put in.

    L(M) has a flat valley: masses somewhat heavier than the true ones solve the events as well.

Its lower tip, where the first events become unsolvable, is the truth. The `anchor` measures it on
the same events and ties the global masses to it; without it the result depends on the start. Where
resolution and natural widths blur it, toys with the same ones tell how far: see `calibration`.

References:
    K. Ban, D. W. Kang, T.-G. Kim, S. C. Park, Y. Park, Phys. Rev. Res. 5 (2023) 043186,
    arXiv:2212.12836: the loss and the network (preset "published").
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from massrecon.errors import InputError, ModelError, ShapeError
from massrecon.events.container import Events
from massrecon.kinematics.legs import DecayLegs
from massrecon.kinematics.topology import DecayTopology
from massrecon.models.base import read_versioned, refuse_other_files
from massrecon.models.deelema.anchor import Edge
from massrecon.models.deelema.calibration import Simulator, anchor_edges
from massrecon.models.deelema.config import DeeLeMaConfig
from massrecon.models.deelema.fitting import Fit, FitRecord, run_fit
from massrecon.models.deelema.inputs import Prepared, pick_scale, prepare
from massrecon.models.deelema.loss import Loss
from massrecon.models.deelema.momenta import MassFunction, invisible_momenta, safe_root
from massrecon.models.deelema.network import Network, OrderedMasses
from massrecon.models.deelema.scan import TrialMassScan, scan_trial_mass
from massrecon.models.deelema.structure import Structure
from massrecon.provenance import file_sha256, replacing_folder, versions

HEADER_FILE = "deelema.json"
WEIGHTS_FILE = "weights.safetensors"
FORMAT = "massrecon-deelema"
FORMAT_VERSION = 1
_CHUNK = 16_384

Sample = Events | tuple[Tensor, Tensor]
"""Events of a card whose slots are the visible legs, or (visible momenta, ptmiss)."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What DeeLeMa finds in N events.

    Attributes:
        invisible: Four-momenta (px, py, pz, E) [GeV] of the I invisible legs, ``(N, I, 4)``.
        invisible_labels: Their labels in the topology.
        masses: Masses of the T targets [GeV], shape ``(N, T)``.
        labels: Labels of the targets.
        permutation: The way in which visible particles were taken as legs, shape ``(N, L)``.
        weights: Probability of every way, the given one first, shape ``(N, P)``.
        loss: Loss of the taken way [GeV], shape ``(N,)``.
    """

    invisible: Tensor
    invisible_labels: tuple[str, ...]
    masses: Tensor
    labels: tuple[str, ...]
    permutation: Tensor
    weights: Tensor
    loss: Tensor

    def mass(self, label: str) -> Tensor:
        """Returns the masses of one target [GeV], shape ``(N,)``.

        Raises:
            InputError: If there is no such target.
        """
        if label not in self.labels:
            raise InputError(f"No target '{label}': choose from {', '.join(self.labels)}.")
        return self.masses[:, self.labels.index(label)]


class DeeLeMa:
    """Mass estimation from topology alone.

    >>> legs = DecayLegs.of("p p > A A, (A > a B, B > b C)", invisible=["C"])
    >>> model = DeeLeMa(legs, DeeLeMaConfig(m_invisible={"C": 700.0}))
    >>> model.masses
    {'B': 1000.0, 'A': 1300.0}

    Attributes:
        structure: What the topology says.
        config: The settings.
        edges: The solvability edge of each species, after a fit with an anchor.
        record: How the last fit went.
        seed: Seed of the initial weights.
    """

    def __init__(
        self,
        topology: DecayLegs | DecayTopology | str,
        config: DeeLeMaConfig,
        *,
        invisible: Iterable[str] = (),
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        """Prepares a fit.

        Args:
            topology: The decay with the roles of its legs; or the tree or its string, with
                `invisible` naming the legs that are not seen.
            config: Settings.
            invisible: Names of invisible legs, unless `topology` has them already.
            device: Where to compute: ``"cpu"``, ``"cuda"``, ``"mps"``.
            seed: Seed of the initial weights.

        Raises:
            TopologyError: If the decay has no invisible leg.
            InputError: If the masses of the settings do not belong to the decay.
        """
        if not isinstance(topology, DecayLegs):
            topology = DecayLegs.of(topology, invisible=invisible)
        self.structure, self.config, self.seed = Structure(topology), config, seed
        self.device = torch.device(device)
        self.edges: dict[str, Edge] = {}
        self.record = FitRecord()
        self._intervals: dict[str, tuple[float, float]] = {}
        self._build(config.scale or 1.0)

    def _build(self, scale: float) -> None:
        """Makes network and global masses for a scale [GeV]."""
        n_inputs = 4 * len(self.structure.legs.visible) + 2
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network = Network(n_inputs, self.structure.n_unknown, self.config)
        self.global_masses = OrderedMasses(self.structure, self.config, scale)
        self.scale = scale
        self.network.to(self.device)
        self.global_masses.to(self.device)
        self.loss = Loss(self.structure, self.config)
        self._mass_function = MassFunction(self.structure, self.device)

    @property
    def masses(self) -> dict[str, float]:
        """Global masses [GeV] by species, daughters before mothers."""
        with torch.no_grad():
            values = (self.global_masses().double() * self.scale).tolist()
        return {name: round(m, 6) for name, m in zip(self.structure.groups, values, strict=True)}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """68.3 % intervals of the masses [GeV] from the bootstrap of the edges, if anchored."""
        return dict(self._intervals)

    def fit(
        self,
        sample: Sample,
        *,
        seed: int = 0,
        n_bootstrap: int = 50,
        edges: Mapping[str, Edge] | None = None,
        simulate: Simulator | None = None,
        folder: str | Path | None = None,
        progress: bool = True,
        on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> DeeLeMa:
        """Finds masses and invisible momenta from unlabelled events.

        Args:
            sample: Events, or (visible, ptmiss): momenta of the visible legs (px, py, pz, E) [GeV],
                ``(N, L, 4)`` in the order of the topology, and ``(N, 2)``. Truth is not looked at.
            seed: Seed of the order of the events.
            n_bootstrap: Replicas for the uncertainty of the anchored masses, at least 1.
            edges: Edges by species that the masses are tied to, such as those of an earlier fit of
                the same events; None to measure them.
            simulate: Makes toys for the calibration of the edges from masses by species [GeV], a
                number and a seed: (visible, ptmiss) as in `sample`, selected as the events are.
                None for toys from phase space with the resolution and widths of the settings.
            folder: Folder for a checkpoint at each epoch. A fit that was stopped goes on from
                there, to the same result.
            progress: Whether to show a bar with the running masses.
            on_epoch: Called after each epoch with ``epoch``, ``loss`` and the masses by species.

        Returns:
            This model.

        Raises:
            InputError: If the events do not fit the topology, or are too few for an edge or for the
                normalisation of the layers; or if there would be no replica.
            ShapeError: If a shape is wrong.
            TopologyError: If an anchor is asked for and the topology has none.
            ModelError: If `folder` holds the checkpoint of another fit.
        """
        visible, ptmiss = self.momenta(sample)
        if self.config.batch_norm and self._step_size(len(visible)) < 2:
            raise InputError(
                "'batch_norm' needs more than one event in a step: pass more events, or set "
                "'batch_size' above 1 or 'batch_norm' to False."
            )
        self._build(self.config.scale or pick_scale(visible, self.config))
        if edges is None:
            edges = self._measure(visible, ptmiss, simulate, n_bootstrap, seed)
        self.edges = dict(edges)
        prepared = self._prepare(visible, ptmiss)
        if self.config.normalise:
            self.network.set_scaling(prepared.inputs.flatten(0, 1))
        fit = Fit(
            self.network, self.global_masses, self.loss, self._mass_function, prepared,
            self._anchor_targets(), seed,
        )  # fmt: skip
        folder = None if folder is None else Path(folder)
        self.record = run_fit(fit, folder=folder, progress=progress, on_epoch=on_epoch)
        ranges = {name: edge.interval() for name, edge in self.edges.items()}
        self._intervals = {k: (round(low, 6), round(high, 6)) for k, (low, high) in ranges.items()}
        return self

    def _measure(
        self,
        visible: Tensor,
        ptmiss: Tensor,
        simulate: Simulator | None,
        n_bootstrap: int,
        seed: int,
    ) -> dict[str, Edge]:
        if self.config.anchor == "none":
            return {}
        if n_bootstrap < 1:
            raise InputError(f"'n_bootstrap' should be at least 1, got {n_bootstrap}.")
        return anchor_edges(
            self.structure, self.config, visible.cpu(), ptmiss.cpu(),
            simulate=simulate, n_bootstrap=n_bootstrap, seed=seed,
        )  # fmt: skip

    def _step_size(self, n_events: int) -> int:
        """Returns how many events the layers see in a step, in all ways to take them."""
        return min(self.config.batch_size, n_events) * len(self._ways())

    def _anchor_targets(self) -> tuple[Tensor, Tensor]:
        """Edges and errors of the groups in units of the scale, each ``(G,)``; NaN for none."""
        rows = [self.edges.get(name) for name in self.structure.groups]
        values = [float("nan") if e is None else e.value for e in rows]
        errors = [1.0 if e is None else max(e.error, 1e-5 * e.value) for e in rows]
        pair = torch.tensor([values, errors]) / self.scale
        return pair[0].to(self.device), pair[1].to(self.device)

    @torch.no_grad()
    def predict(self, sample: Sample) -> Prediction:
        """Finds the invisible momenta of events, also of new ones.

        Args:
            sample: As in `fit`.

        Raises:
            InputError: If the events do not fit the topology.
            ShapeError: If a shape is wrong.
        """
        visible, ptmiss = self.momenta(sample)
        self.network.eval()
        parts = [
            self._predict(visible[i : i + _CHUNK], ptmiss[i : i + _CHUNK])
            for i in range(0, max(len(visible), 1), _CHUNK)
        ]
        joined = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
        return Prediction(
            invisible=joined[0],
            invisible_labels=tuple(leg.label for leg in self.structure.legs.invisible),
            masses=joined[1],
            labels=tuple(target.label for target in self.structure.targets),
            permutation=joined[2],
            weights=joined[3],
            loss=joined[4],
        )

    def _predict(self, visible: Tensor, ptmiss: Tensor) -> tuple[Tensor, ...]:
        """Predicts momenta, masses, permutation, weights and loss of a chunk."""
        data = self._prepare(visible, ptmiss, torch.float64)
        n_ways, n = data.inputs.shape[:2]
        unknown = self.network(data.inputs.flatten(0, 1).float()).double()
        trial = self.global_masses.trial.double()
        momenta = invisible_momenta(unknown, data.ptmiss.flatten(0, 1), trial)
        squared = self._mass_function.squared(data.sums.flatten(0, 1), momenta)
        losses = self.loss.each(squared, self.global_masses().double()).reshape(n_ways, n)
        best = losses.argmin(0)
        rows = best * n + torch.arange(n, device=best.device)
        lab = data.to_laboratory(momenta)[rows] * self.scale
        taken = self._ways().to(best.device)[best]
        # in the frame the sides may be exchanged: masses by label are those in the laboratory
        legs = visible.gather(1, taken.unsqueeze(-1).expand(-1, -1, 4))
        squared = self._mass_function.squared(self._mass_function.visible_sums(legs), lab)
        return (
            lab.cpu(),
            safe_root(squared).cpu(),
            taken.cpu(),
            self.loss.weights(losses).T.cpu(),
            (losses.min(0).values * self.scale).cpu(),
        )

    def _ways(self) -> Tensor:
        ways = self.structure.permutations
        return ways if self.config.assignment == "soft" else ways[:1]

    def _prepare(
        self, visible: Tensor, ptmiss: Tensor, dtype: torch.dtype = torch.float32
    ) -> Prepared:
        data = prepare(self.structure, visible, ptmiss, self._ways(), self.scale, self.config.frame)
        return data.to(self.device, dtype)

    def momenta(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Reads events: visible momenta in the order of the legs, and ptmiss, float64 [GeV].

        Raises:
            InputError: If the events do not have the legs of the topology, or are not finite.
            ShapeError: If a shape is wrong.
        """
        labels = [leg.label for leg in self.structure.legs.visible]
        if isinstance(sample, Events):
            visible, ptmiss = _from_events(sample, self.structure), sample.ptmiss
        else:
            visible, ptmiss = sample
        if visible.ndim != 3 or visible.shape[1:] != (len(labels), 4):
            raise ShapeError(
                f"'visible' should have shape (N, {len(labels)}, 4), got {tuple(visible.shape)}: "
                f"pass the momenta of {', '.join(labels)}."
            )
        if ptmiss.shape != (len(visible), 2):
            raise ShapeError(
                f"'ptmiss' should have shape ({len(visible)}, 2), got {tuple(ptmiss.shape)}."
            )
        if len(visible) == 0:
            raise InputError("There are no events: pass at least one.")
        if not bool(visible.isfinite().all() & ptmiss.isfinite().all()):
            raise InputError("The momenta should be finite: leave out the other events.")
        return visible.double().to(self.device), ptmiss.double().to(self.device)

    def scan_trial_mass(
        self, sample: Sample, trial_masses: Sequence[float], n_bootstrap: int = 50, seed: int = 0
    ) -> TrialMassScan:
        """Estimates the mass of the invisible particle; see `scan.scan_trial_mass`."""
        visible, ptmiss = self.momenta(sample)
        return scan_trial_mass(
            self.structure, visible.cpu(), ptmiss.cpu(), trial_masses,
            n_bootstrap=n_bootstrap, seed=seed,
        )  # fmt: skip

    def save(self, folder: str | Path, **metadata: Any) -> Path:
        """Saves the model as a folder of safetensors and JSON, completely or not at all.

        Args:
            folder: A new or empty folder, or one with a saved DeeLeMa, which is replaced.
            **metadata: Further entries for the header, as JSON.

        Raises:
            ModelError: If `folder` holds something else.
        """
        folder = Path(folder)
        refuse_other_files(folder, (HEADER_FILE, WEIGHTS_FILE))
        with replacing_folder(folder) as fresh:
            state = {**_state("network", self.network), **_state("masses", self.global_masses)}
            safetensors.torch.save_file(state, fresh / WEIGHTS_FILE)
            header = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "topology": _legs_to_dict(self.structure.legs),
                "config": dataclasses.asdict(self.config),
                "scale": self.scale,
                "seed": self.seed,
                "masses": self.masses,
                "intervals": self._intervals,
                "record": dataclasses.asdict(self.record),
                "weights_sha256": file_sha256(fresh / WEIGHTS_FILE),
                "versions": versions("torch"),
                "metadata": metadata,
            }
            text = json.dumps(header, indent=2, ensure_ascii=False)
            (fresh / HEADER_FILE).write_text(text, encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> DeeLeMa:
        """Reads a saved model.

        Raises:
            ModelError: If the folder is missing, damaged, foreign or of a newer massrecon.
        """
        header = _read_header(Path(folder))
        weights = Path(folder) / WEIGHTS_FILE
        if not weights.is_file() or file_sha256(weights) != header.get("weights_sha256"):
            raise ModelError(f"'{weights}' is missing or damaged: restore it or fit again.")
        try:
            legs = _legs_from_dict(header["topology"])
            config = DeeLeMaConfig(**_config_fields(header["config"]))
            model = cls(legs, config, device=device, seed=header["seed"])
            model._build(header["scale"])
            state = safetensors.torch.load_file(weights, device=str(device))
            model.network.load_state_dict(_part(state, "network"))
            model.global_masses.load_state_dict(_part(state, "masses"))
            model._intervals = {k: (v[0], v[1]) for k, v in header["intervals"].items()}
            model.record = FitRecord(**header["record"])
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise ModelError(
                f"'{folder}' does not describe a DeeLeMa of this massrecon ({error}): fit again."
            ) from error
        return model


def _from_events(events: Events, structure: Structure) -> Tensor:
    """Takes the visible legs from the slots of the same particle name, in their order."""
    names = [leg.name for leg in structure.legs.visible]
    kinds = list(events.card.slot_kinds)
    if sorted(names) != sorted(kinds):
        raise InputError(
            f"The slots of the card '{events.card.name}' ({', '.join(kinds)}) are not the visible "
            f"legs ({', '.join(names)}): pass (visible, ptmiss) with one momentum for each leg."
        )
    if not bool(events.present.all()):
        raise InputError("Some events lack an object: keep those with all legs present.")
    free = {name: [i for i, kind in enumerate(kinds) if kind == name] for name in names}
    return events.p4[:, [free[name].pop(0) for name in names]]


def _state(prefix: str, module: torch.nn.Module) -> dict[str, Tensor]:
    found = module.state_dict().items()
    return {f"{prefix}.{name}": tensor.detach().cpu().contiguous() for name, tensor in found}


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name[len(start) :]: t for name, t in state.items() if name.startswith(start)}


def _legs_to_dict(legs: DecayLegs) -> dict[str, Any]:
    return {"text": legs.topology.text, "kinds": legs.kinds, "species": legs.species}


def _legs_from_dict(stored: Mapping[str, Any]) -> DecayLegs:
    topology = DecayTopology.parse(stored["text"])
    return DecayLegs(topology, tuple(stored["kinds"]), tuple(stored["species"]))


def _config_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Turns lists of JSON to the tuples of the configuration."""
    tables = {k: tuple(tuple(row) for row in v) for k, v in stored["resolution"].items()}
    return {**stored, "resolution": tables}


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / HEADER_FILE
    if not path.is_file():
        raise ModelError(f"'{folder}' is not a saved DeeLeMa: it has no {HEADER_FILE}.")
    return read_versioned(path, FORMAT, FORMAT_VERSION, "restore it or fit again")
