"""From a file of events to masses, a check against the training sample, and a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from massrecon.errors import InputError
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.events.importers import import_events
from massrecon.events.manifest import MANIFEST
from massrecon.events.store import load_events, shipped_samples
from massrecon.inference.background import BackgroundRatio, expected_composition
from massrecon.inference.combination import measure
from massrecon.inference.composition import Composition
from massrecon.inference.measurement import MassMeasurement
from massrecon.inference.novelty import METADATA, Novelty, Reference, novelty
from massrecon.inference.prior import TrainingPrior, varying_masses
from massrecon.kinematics.mixture import KinematicMixture
from massrecon.models.base import HEADER_FILE, MassModel, load_model, shipped_models
from massrecon.models.mixture import mixture_for
from massrecon.provenance import versions, write_json
from massrecon.runs.report import Section, write_report
from massrecon.visual.measurement import mass_marginals, mass_region
from massrecon.visual.template import plain

MIXTURE = "mixture"
"""Name of the model that needs no training: the kinematic mixture of the card."""

RESULTS, REPORT, FOLDER = "results.json", "report.html", "measurement"


@dataclass(frozen=True, eq=False, kw_only=True)
class MeasuredFile:
    """What came out of a file of events.

    Attributes:
        measurement: The masses.
        likeness: Comparison with the training sample; None where nothing is known of it.
        separation: Area under the ROC curve between signal and background; None without.
        folder: Where results, report and measurement are.
    """

    measurement: MassMeasurement
    likeness: Novelty | None
    separation: float | None = None
    folder: Path

    @property
    def confidence(self) -> list[str]:
        """One sentence for each confidence region; none where no critical values are known."""
        return _confidence(self.measurement)

    @property
    def warnings(self) -> list[str]:
        """What a reader has to know before using the masses."""
        found = list(self.measurement.notes)
        if self.separation is not None:
            found.append(
                "The events were not compared with the training sample, since background, which "
                "is unlike it, may be among them."
            )
        elif self.likeness is None:
            found.append(
                "The events were not compared with the training sample, of which the model has no "
                "record: pass the training events."
            )
        elif self.likeness.alarm:
            found.append(str(self.likeness))
        return found


def measure_file(
    path: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    card: str | Path | None = None,
    training: str | Path | None = None,
    masses: Mapping[str, tuple[float, float]] | None = None,
    backgrounds: Sequence[str | Path] = (),
    luminosity: float | None = None,
    seed: int = 0,
) -> MeasuredFile:
    """Measures masses from a folder or file of events, simulated or real.

    Args:
        path: Folder of events, or a file of another program, see `massrecon.import_events`.
        model: Folder of a trained model, or ``"mixture"`` for the kinematic mixture of the card.
        out: Folder for ``results.json``, ``report.html``, the measurement, and the imported events.
        card: Process card of a file that is imported; that of the model if not given.
        training: Folder of the training events, for a model that kept no record of them.
        masses: Ranges of the masses to search [GeV].
        backgrounds: Folders of simulated background events that may be among the events. Signal
            to tell them from is `training`, or the events that come with a model by its name.
        luminosity: Integrated luminosity [fb^-1]: then the expected rates count, too; None for an
            unknown share of background.
        seed: Seed of draws, where a density has to be estimated from them, and of the classifier
            of background.

    Raises:
        InputError: If `model` is neither, there are no events, or they are of another process.
        ImportFileError: If a file of another program cannot be read.
        ModelError: If the model is damaged.
        StoreError: If a folder of events is damaged.
    """
    folder = Path(out)
    source = _source(model, card)
    events = _events(Path(path), source, card, folder)
    if isinstance(source, str):
        source = mixture_for(events.card)
    prior, reference = _records(source, training)
    background, ratio = None, None
    if backgrounds:
        signal = _signal(str(model), training)
        background, ratio = _background(events, signal, backgrounds, luminosity, seed)
    elif luminosity is not None:
        raise InputError("'luminosity' needs 'backgrounds': pass folders of simulated background.")
    found = measure(
        source, events, masses=masses, training_prior=prior, background=background, seed=seed
    )
    likeness = None
    if reference is not None and reference.masses == found.names and ratio is None:
        likeness = novelty(reference, events, found.estimate())
    separation = None if ratio is None else ratio.separation
    result = MeasuredFile(
        measurement=found, likeness=likeness, separation=separation, folder=folder
    )
    _write(result, str(path), str(model))
    return result


def _source(model: str | Path, card: str | Path | None) -> MassModel | str:
    """Loads a model; the name of the mixture stays one until the card is known."""
    if (Path(model) / HEADER_FILE).is_file() or str(model) in shipped_models():
        return load_model(model)
    if str(model) == MIXTURE:
        return MIXTURE
    names = ", ".join([*shipped_models(), MIXTURE])
    raise InputError(
        f"'{model}' is neither the folder of a trained model nor one of {names}: train one with "
        "massrecon.fit(..., out=FOLDER)."
    )


def _events(path: Path, source: MassModel | str, card: str | Path | None, folder: Path) -> Events:
    """Loads a folder of events, or imports a file of another program."""
    if (path / MANIFEST).is_file() or (not path.exists() and str(path) in shipped_samples()):
        return load_events(path, partial=True)
    if not path.exists():
        names = ", ".join(shipped_samples())
        raise InputError(
            f"There is no file or folder '{path}': check the path, or choose one of {names}."
        )
    own: str | Path | ProcessCard | None = card
    if own is None and isinstance(source, MassModel):
        own = source.card
    if own is None:
        raise InputError("A file needs a process card to be read with: pass 'card' (--card).")
    return import_events(path, own, folder / "events")


def _signal(model: str, training: str | Path | None) -> Events:
    """Loads the signal that background is told from."""
    if training is not None:
        return load_events(training, partial=True)
    if model in shipped_samples():
        return load_events(model)
    raise InputError(
        "Background is told from signal by simulated events: pass 'training', the folder of the "
        "training events of the model."
    )


def _background(
    events: Events,
    signal: Events,
    folders: Sequence[str | Path],
    luminosity: float | None,
    seed: int,
) -> tuple[Composition, BackgroundRatio]:
    """Finds out what is known of background among the events."""
    samples: dict[str, Events] = {}
    for folder in folders:
        sample = load_events(folder, partial=True)
        if sample.card.name in samples:
            raise InputError(f"There are two backgrounds '{sample.card.name}': merge their events.")
        samples[sample.card.name] = sample
    names = varying_masses(signal)[0]
    return expected_composition(events, signal, samples, names, luminosity, seed=seed)


def _records(
    source: MassModel | KinematicMixture, training: str | Path | None
) -> tuple[TrainingPrior | None, Reference | None]:
    """Returns what is known of the training sample."""
    if training is not None:
        sample = load_events(training, partial=True)
        # a mixture has a flat prior of its own
        prior = TrainingPrior.from_events(sample) if isinstance(source, MassModel) else None
        return prior, Reference.from_events(sample)
    if not isinstance(source, MassModel):
        return None, None
    kept = source.metadata.get(METADATA)
    return None, None if kept is None else Reference.from_dict(kept)


def _write(result: MeasuredFile, events: str, model: str) -> None:
    """Writes what came out, each file whole or not at all."""
    found, likeness, folder = result.measurement, result.likeness, result.folder
    folder.mkdir(parents=True, exist_ok=True)
    found.save(folder / FOLDER)
    content: dict[str, Any] = {
        "events": events,
        "model": model,
        "measurement": found.to_dict(),
        "likeness": None if likeness is None else likeness.to_dict(),
        "separation": result.separation,
        "warnings": result.warnings,
        "versions": versions("torch"),
    }
    write_json(folder / RESULTS, content)
    write_report(
        folder / REPORT,
        "Masses from events",
        f"{_sentence(found)}.",
        [_result_section(found), _fit_section(result, events, model)],
    )


def _confidence(found: MassMeasurement) -> list[str]:
    """Says the confidence regions; nothing where no critical values are known."""
    lines = []
    for level in () if found.regions is None else found.regions.levels:
        ranges = zip(found.names, found.confidence_ranges(level).tolist(), strict=True)
        spans = [f"m({name}) {low:.0f} to {high:.0f} GeV" for name, (low, high) in ranges]
        lines.append(
            f"{100 * level:g} % confidence region, from pseudo-experiments: {', '.join(spans)}, "
            "together"
        )
    return lines


def _sentence(found: MassMeasurement) -> str:
    """Says the masses in plain text, with the symbols of the card."""
    return _with_symbols(str(found), found)


def _with_symbols(text: str, found: MassMeasurement) -> str:
    for name, symbol in found.symbols.items():
        text = text.replace(f"m({name})", f"m({plain(symbol)})")
    return text


def _result_section(found: MassMeasurement) -> Section:
    rows: list[list[object]] = [["mass", "median", "mode", "68 %", "95 %"]]
    for i, name in enumerate(found.names):
        cells = [f"{float(found.estimate(kind)[i]):.1f}" for kind in ("median", "mode")]
        ranges = [found.interval(level)[i].tolist() for level in (0.68, 0.95)]
        spans = [f"{low:.1f} to {high:.1f}" for low, high in ranges]
        rows.append([f"m({plain(found.symbols.get(name, name))}) [GeV]", *cells, *spans])
    figures = [mass_marginals(found)]
    if len(found.names) > 1:
        figures.insert(0, mass_region(found))
    text = "\n\n".join(f"{_with_symbols(line, found)}." for line in _confidence(found))
    return Section(heading="The masses", text=text, table=rows, figures=figures)


def _fit_section(result: MeasuredFile, events: str, model: str) -> Section:
    found, likeness = result.measurement, result.likeness
    p = found.goodness.halves_p
    rows: list[list[object]] = [
        ["", ""],
        ["events", f"{found.n_events:,} from {events}"],
        ["model", model],
        ["densities", found.source],
        ["prior of the masses", found.prior],
        ["share of outliers allowed for", f"{found.outliers:g}"],
        ["halves agree", "one event only" if p is None else f"p = {p:.3g}"],
    ]
    for name, z in found.goodness.sharpness.items():
        rows.append([f"sharpness in {plain(found.symbols.get(name, name))}", f"z = {z:+.1f}"])
    if likeness is not None:
        rows.append(["like the training sample", f"p = {likeness.p_value:.3g}"])
        rows.append(["events far out", f"{len(likeness.far_events)} of {likeness.n_events}"])
    for name, (best, low, high) in found.composition.items():
        rows.append([name, f"{best:.3g} ({low:.3g} to {high:.3g} at 68 %)"])
    if result.separation is not None:
        rows.append(["area under the ROC curve of the background", f"{result.separation:.3f}"])
    text = "\n\n".join(result.warnings) or "Nothing speaks against these masses."
    return Section(heading="Do the events fit?", text=text, table=rows)
