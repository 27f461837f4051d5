"""The interface of every learned posterior, and the folder it is saved to.

A model learns p(targets | reconstructed event). It is trained through `loss_prepared`, gives draws
through `sample`, and lives on disk as ``weights.safetensors`` beside ``model.json``, which holds
everything needed to rebuild it and to know where it came from. Nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from massrecon.errors import InputError, ModelError, ShapeError, reason
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.container import Events
from massrecon.models.head import DensityKind
from massrecon.provenance import file_sha256, replacing_folder, versions

FORMAT = "massrecon-model"
FORMAT_VERSION = 1
HEADER_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
HISTORY_FILE = "history.json"
SHIPPED = Path(__file__).parent / "weights"
"""Folder of the models that come with massrecon."""

# what save() itself writes to the header
_RESERVED = {
    *("format", "format_version", "model", "config", "card", "targets", "weights_sha256"),
    *("parameters", "versions"),
}

Prepared = dict[str, Tensor]
"""Inputs (and targets, where the truth is known) of N events, first axis N."""


class MassModel(nn.Module, ABC):
    """A learned posterior of the targets of a process card, given one reconstructed event.

    Attributes:
        card: The process card.
        config: The frozen configuration of the model's family.
        metadata: What else belongs to the model card, as JSON: seed, data fingerprint, metrics,
            history. Saved and loaded with the model.
        name: Name of the family.
        config_type: The dataclass of its settings.
        presets: Named configurations, as the fields that differ from the defaults.
        density: What `log_prob` returns, see `massrecon.models.head.Head`.
        solvers: Samplers to choose from, the default first; empty if a draw takes one pass.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[Any]]
    density: ClassVar[DensityKind] = "none"
    solvers: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]

    def __init__(self, card: ProcessCard, config: Any) -> None:
        super().__init__()
        self.card = card
        self.config = config
        self.metadata: dict[str, Any] = {}

    @classmethod
    @abstractmethod
    def from_config(cls, card: ProcessCard, config: Mapping[str, Any]) -> MassModel:
        """Builds an untrained model from the fields of its configuration.

        Raises:
            TypeError: If a field is unknown.
        """

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the targets, in the order of the last axis of the samples."""
        return tuple(self.card.target_names)

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return next(itertools.chain(self.parameters(), self.buffers())).device

    def true_targets(self, events: Events) -> Tensor | None:
        """Returns the true values of `target_names`, ``(N, T)``; None where they are unknown."""
        return events.targets() if events.has_targets else None

    @abstractmethod
    def prepare(self, events: Events) -> Prepared:
        """Computes all inputs of the network once, with ``targets`` where the truth is known.

        Returns:
            Tensors on the processor, float32 or bool, in GeV, first axis N.
        """

    @abstractmethod
    def fit_scaling(self, events: Events) -> None:
        """Sets the scaling of inputs and targets from the training events."""

    @abstractmethod
    def augment(self, batch: Prepared, generator: torch.Generator) -> Prepared:
        """Applies random exact symmetries of the collision to a prepared batch."""

    @abstractmethod
    def loss_prepared(self, batch: Prepared, generator: torch.Generator) -> Tensor:
        """Computes the training loss of a prepared batch on the model's device, a scalar."""

    @abstractmethod
    def sample(
        self,
        events: Events,
        n_samples: int,
        steps: int | None = None,
        solver: str | None = None,
        seed: int = 0,
        batch_size: int = 8192,
    ) -> Tensor:
        """Draws targets from the posterior of each event.

        Returns:
            Draws [GeV], float64 on the processor, shape ``(S, N, T)``.
        """

    def validation_loss_prepared(self, batch: Prepared, generator: torch.Generator) -> Tensor:
        """Computes what the validation compares models by, a scalar; the loss, as a rule."""
        return self.loss_prepared(batch, generator)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the weights for the optimiser, in groups with a ``rate`` relative to the others.

        Other entries of a group, such as ``betas``, are given to the optimiser.
        """
        return [{"params": list(self.parameters()), "rate": 1.0}]

    def log_prob(self, targets: Tensor, events: Events, batch_size: int = 2048) -> Tensor:
        """Computes the log-density of `targets`, where the family has one.

        Args:
            targets: Values of ``target_names``, shape ``(N, T)``, or ``(G, N, T)`` for G values of
                each event.
            events: Reconstructed events.
            batch_size: How many values are worked on at a time; bounds the memory.

        Returns:
            float64 on the processor, shape ``(N,)`` or ``(G, N)``.

        Raises:
            ModelError: If the family has no density.
        """
        raise ModelError(
            f"The model '{self.name}' has no density: draw from it with sample() instead."
        )

    def loss(self, events: Events, seed: int = 0) -> Tensor:
        """Computes the training loss of events with truth, a scalar."""
        batch = {name: t.to(self.device) for name, t in self.prepare(events).items()}
        if "targets" not in batch:
            raise InputError("The loss needs events with truth: use simulated events.")
        return self.loss_prepared(batch, torch.Generator(self.device).manual_seed(seed))

    def check_card(self, events: Events) -> None:
        """Checks that events have the object slots that the model was built for.

        Raises:
            InputError: If their card differs from the model's.
        """
        targets = events.card.targets or self.card.targets  # a background has none of its own
        if events.card.slots != self.card.slots or targets != self.card.targets:
            raise InputError(
                f"The events follow the card '{events.card.name}', the model the card "
                f"'{self.card.name}' with other slots or targets: pass events of that card."
            )

    def save(self, folder: str | Path, half: bool = False, **metadata: Any) -> Path:
        """Saves the model as a folder, completely or not at all.

        Args:
            folder: A new or empty folder, or one that holds a saved model, which is replaced.
            half: Whether to keep the weights in half precision, in half the space; scalings stay
                in full precision. The loaded model computes in full precision.
            **metadata: Further entries of `metadata`.

        Raises:
            InputError: If `metadata` is not JSON, or uses a reserved name.
            ModelError: If `folder` holds something else than a saved model.
        """
        folder = Path(folder)
        check_model_folder(folder)
        with replacing_folder(folder) as fresh:
            state = {k: t.detach().cpu().contiguous() for k, t in self.state_dict().items()}
            if half:
                weights = {name for name, _ in self.named_parameters()}
                state = {k: t.half() if k in weights else t for k, t in state.items()}
            safetensors.torch.save_file(state, fresh / WEIGHTS_FILE)
            header = self._header(file_sha256(fresh / WEIGHTS_FILE), {**self.metadata, **metadata})
            (fresh / HEADER_FILE).write_text(header, encoding="utf-8")
        return folder

    def _header(self, checksum: str, metadata: Mapping[str, Any]) -> str:
        if reserved := sorted(_RESERVED & metadata.keys()):
            raise InputError(f"'{reserved[0]}' is written by save() itself: choose another name.")
        header = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": self.name,
            "config": dataclasses.asdict(self.config),
            "card": self.card.to_dict(),
            "targets": list(self.target_names),
            "weights_sha256": checksum,
            "parameters": sum(p.numel() for p in self.parameters()),
            "versions": versions("torch"),
        }
        try:
            return json.dumps({**header, **metadata}, indent=2, ensure_ascii=False)
        except TypeError as error:
            raise InputError(f"The metadata of a model must be JSON: {error}.") from error


def checked_targets(targets: Tensor, events: Events, n_targets: int) -> Tensor:
    """Checks the shape of targets and returns them with the axis of several values an event.

    Raises:
        ShapeError: If they do not fit the events.
    """
    values = targets if targets.ndim == 3 else targets.unsqueeze(0)
    if values.ndim != 3 or values.shape[1:] != (len(events), n_targets):
        raise ShapeError(
            f"'targets' should have shape ({len(events)}, {n_targets}), or a further axis in "
            f"front, got {tuple(targets.shape)}."
        )
    return values


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> MassModel:
    """Rebuilds a saved model, ready to draw samples.

    Args:
        folder: The folder that `MassModel.save` wrote, or the name of a model that comes with
            massrecon, one of `shipped_models`.
        device: Where to put the weights: ``"cpu"``, ``"cuda"``, ``"mps"``.

    Raises:
        ModelError: If the folder is missing, foreign, damaged or written by a newer massrecon.
    """
    # the registry imports the model families, which import this module
    from massrecon.models import MODELS

    if not Path(folder).exists() and str(folder) in shipped_models():
        folder = SHIPPED / str(folder)
    header = read_header(folder)
    if header.get("model") not in MODELS:
        raise ModelError(
            f"'{folder}' holds a model '{header.get('model')}', unknown to this massrecon: it "
            f"knows {', '.join(MODELS)}."
        )
    return rebuilt(folder, header, MODELS[header["model"]], device)


def rebuilt(
    folder: str | Path,
    header: Mapping[str, Any],
    family: type[MassModel],
    device: str | torch.device,
) -> MassModel:
    """Builds the model of a folder from what its header says, with its weights and metadata.

    Args:
        folder: The folder.
        header: What `read_header` finds there.
        family: Class of the model.
        device: Where to put the weights.

    Raises:
        ModelError: If header or weights are damaged, or of another version.
    """
    weights = read_weights(folder, header)
    try:
        model = family.from_config(load_card(header["card"]), header["config"])
        model.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError, InputError) as error:
        raise ModelError(
            f"'{folder}' does not describe a model of this massrecon ({error}): retrain it."
        ) from error
    model.metadata = {name: value for name, value in header.items() if name not in _RESERVED}
    return model.to(device).eval()


def shipped_models() -> list[str]:
    """Returns the names of the models that come with massrecon; `load_model` takes them."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{HEADER_FILE}"))


def read_header(folder: str | Path) -> dict[str, Any]:
    """Reads and checks ``model.json`` of a saved model: its config, card, metrics and history.

    Raises:
        ModelError: If the folder is no saved model, is damaged, or comes from a newer massrecon.
    """
    path = Path(folder) / HEADER_FILE
    if not path.is_file():
        known = f" By name there are: {', '.join(shipped_models())}." if shipped_models() else ""
        raise ModelError(f"'{folder}' is not a saved model: it has no {HEADER_FILE}.{known}")
    return read_versioned(path, FORMAT, FORMAT_VERSION, "restore or retrain the model")


def read_versioned(path: Path, format: str, newest: int, remedy: str) -> dict[str, Any]:
    """Reads a JSON file that says of itself which format it has, in which version.

    Args:
        path: The file.
        format: Name of the format.
        newest: Newest version that can be read.
        remedy: What to do if the file is damaged, for the message.

    Raises:
        ModelError: If it is damaged, of another format, or of a newer version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"'{path}' is damaged ({reason(error)}): {remedy}.") from error
    if not isinstance(content, dict) or content.get("format") != format:
        raise ModelError(
            f"'{path}' was not written by massrecon, for its 'format' is not '{format}': pass "
            "another folder."
        )
    version = content.get("format_version")
    if not isinstance(version, int) or version > newest:
        raise ModelError(
            f"'{path}' has format version {version}, this massrecon reads up to {newest}: install "
            "a newer massrecon."
        )
    return content


def read_weights(folder: str | Path, header: Mapping[str, Any]) -> dict[str, Tensor]:
    """Reads the weights of a saved model and compares them with the checksum in its header.

    Raises:
        ModelError: If the weights are missing, truncated or changed.
    """
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise ModelError(f"'{folder}' has no {WEIGHTS_FILE}: restore or retrain the model.")
    if file_sha256(path) != header.get("weights_sha256"):
        raise ModelError(
            f"'{path}' is damaged: its checksum is not the one in {HEADER_FILE}. Restore or "
            "retrain the model."
        )
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ModelError(
            f"'{path}' is no file of weights ({error}): restore or retrain the model."
        ) from error


def check_model_folder(folder: str | Path) -> None:
    """Refuses a folder that holds anything but a saved model, before a model is written there.

    Raises:
        ModelError: If it is a file, or holds other files.
    """
    if refuse_other_files(folder, (HEADER_FILE, WEIGHTS_FILE, HISTORY_FILE)):
        read_header(folder)


def refuse_other_files(folder: str | Path, own: tuple[str, ...]) -> bool:
    """Refuses a folder with other files than `own`; says whether there is any file.

    Raises:
        ModelError: If it is a file, or holds other files.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ModelError(f"'{folder}' is a file: choose a new folder.")
    entries = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    if foreign := [name for name in entries if name not in own]:
        raise ModelError(f"'{folder}' holds other files ('{foreign[0]}'): choose a new folder.")
    return bool(entries)
