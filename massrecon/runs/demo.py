"""The demonstration: simulate, train and reconstruct on one machine in minutes, then report.

Each stage is one of the notebooks, run headless with its own folder under the results. A stage
that is finished is not run again; one that was cut off goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import massrecon as mr
from massrecon.models.base import read_header
from massrecon.provenance import write_json
from massrecon.runs.notebooks import finished_run, forget_run, run_notebook
from massrecon.runs.report import Section, write_report
from massrecon.visual import figures
from massrecon.visual.template import plain

STAGES = ("simulate", "train", "reconstruct")


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """What the demonstration does.

    Attributes:
        process: Process card.
        n_events: Selected events to simulate, training and test together.
        masses: Mass of each particle [GeV] as on the command line.
        test_fraction: Share of the mass points held out of the training.
        preset: Size of the network.
        max_minutes: Training time [min].
        n_samples: Posterior draws for each test event.
        steps: Denoising steps for each draw.
    """

    process: str = "wino_udd"
    n_events: int = 24_000
    masses: tuple[str, ...] = ("chi20=600", "chi10=50:450")
    test_fraction: float = 0.2
    preset: str = "small"
    max_minutes: float = 3.0
    n_samples: int = 64
    steps: int = 30

    def stages(self, out: Path, seed: int) -> dict[str, dict[str, Any]]:
        """Returns the notebook parameters of each stage."""
        return {
            "simulate": {
                "process": self.process,
                "n_events": self.n_events,
                "masses": list(self.masses),
                "seed": seed,
            },
            "train": {
                "events": str(out / "simulate" / "events"),
                "model": "barman2025",
                "preset": self.preset,
                "test_fraction": self.test_fraction,
                "max_minutes": self.max_minutes,
                "seed": seed,
            },
            "reconstruct": {
                "model": str(out / "train" / "model"),
                "events": str(out / "train" / "test_events"),
                "n_samples": self.n_samples,
                "steps": self.steps,
                "seed": seed,
            },
        }


def run_demo(
    out: str | Path, fresh: bool = False, seed: int = 1, plan: DemoPlan | None = None
) -> dict[str, Any]:
    """Runs the demonstration and returns its summary.

    Args:
        out: Folder for the results: one folder a stage, ``report.html``, ``summary.json``.
        fresh: Starts over instead of resuming.
        seed: Seed of simulation, split, training and sampling.
        plan: What to do; the ten-minute demonstration if not given.

    Raises:
        RunError: If a stage fails; the executed notebook is kept and named.
    """
    out, plan = Path(out).resolve(), plan or DemoPlan()
    stages = plan.stages(out, seed)
    if fresh:
        for stage in stages:
            shutil.rmtree(out / stage, ignore_errors=True)
    records = {}
    for number, (stage, parameters) in enumerate(stages.items(), 1):
        print(f"[{number}/{len(stages)}] {stage}", flush=True)
        records[stage] = _run_stage(stage, parameters, out)
    summary = _summarise(records, seed)
    write_json(out / "summary.json", summary)
    report = _write_report(out, plan, summary)
    print(f"\n{_headline(summary)}\n\nReport:  {report}\nNumbers: {out / 'summary.json'}")
    return summary


def _run_stage(stage: str, parameters: Mapping[str, Any], out: Path) -> dict[str, Any]:
    record = finished_run(stage, parameters, out / stage)
    if record is not None:
        print("      finished earlier, kept", flush=True)
        return record
    for later in STAGES[STAGES.index(stage) :]:  # what was made from the old results is stale
        forget_run(out / later)
    run_notebook(stage, parameters, out / stage)
    record = finished_run(stage, parameters, out / stage)
    assert record is not None  # run_notebook has just written it
    return record


def _summarise(records: Mapping[str, dict[str, Any]], seed: int) -> dict[str, Any]:
    simulated, trained, reconstructed = (records[stage]["summary"] for stage in STAGES)
    return {
        "process": simulated["process"],
        "card": simulated["card"],
        "model": trained["model"],
        "n_train": trained["n_train"],
        "n_test": reconstructed["n_events"],
        "efficiency": reconstructed["efficiency"],
        "no_skill": reconstructed["no_skill"],
        "self_consistency": reconstructed["self_consistency"],
        "seed": seed,
        "versions": {**simulated["versions"], **trained["versions"]},
        "wall_seconds": {stage: records[stage]["wall_seconds"] for stage in records},
        "stages": {stage: records[stage]["summary"] for stage in records},
    }


def _headline(summary: Mapping[str, Any]) -> str:
    """Says the main result in one sentence, for the mass that varies."""
    mass = _varying(summary)[0]
    symbol = plain(mr.load_card(summary["card"]).symbol(mass))
    found = summary["efficiency"][mass]["window"]["30"]
    no_skill = summary["no_skill"][mass]["30"]["value"]
    return (
        f"m({symbol}) is found within 30 GeV in {found['value']:.1%} ± {found['error']:.1%} of "
        f"{summary['n_test']:,} held-out events; the best constant guess reaches {no_skill:.1%}."
    )


def _varying(summary: Mapping[str, Any]) -> list[str]:
    """Names the masses that a constant does not guess, all of them if there is none."""
    return summary["stages"]["reconstruct"]["varying_masses"] or list(summary["no_skill"])


def _write_report(out: Path, plan: DemoPlan, summary: Mapping[str, Any]) -> Path:
    posterior = mr.Posterior.load(out / "reconstruct" / "posterior")
    table = mr.efficiency(posterior)
    events = mr.load_events(out / "simulate" / "events")
    history = read_header(out / "train" / "model")["history"]
    card, varying = posterior.card, _varying(summary)
    sections = [
        Section(heading="What was done", text=_account(plan, summary), table=_stages(summary)),
        Section(
            heading="Efficiencies",
            text="Fraction of held-out events whose mass is found within a window of the truth, "
            "with 68 % errors. 'No skill' is the best constant guess, made without looking at "
            "the event; 'predicted' is the efficiency that the posteriors themselves claim.",
            listing=str(table),
            figures=[figures.efficiency_curve(table, mass=name) for name in varying],
        ),
        Section(
            heading="Estimated against true mass",
            figures=[figures.predicted_against_true(posterior, name) for name in varying],
        ),
        Section(
            heading="Truth against generated, parton level",
            figures=[figures.truth_against_generated(posterior)],
        ),
        Section(
            heading="Single events, and whether the posteriors are calibrated",
            figures=[
                figures.event_posteriors(posterior),
                figures.self_consistency(table),
            ],
        ),
        Section(heading="Training", figures=[figures.training_curve(history)]),
        Section(
            heading="The simulated collisions",
            text=card.notes,
            listing=card.topology.sketch(),
            figures=[figures.event_overview(events), figures.mass_coverage(events)],
        ),
        Section(
            heading="To do it again",
            text=f"The same seed, {summary['seed']}, gives the same collisions and the same split. "
            "The number of training steps depends on the speed of the machine.",
            table=[["package", "version"], *summary["versions"].items()],
        ),
    ]
    title = "Masses of new particles from simulated collisions"
    return write_report(out / "report.html", title, _headline(summary), sections)


def _account(plan: DemoPlan, summary: Mapping[str, Any]) -> str:
    trained = summary["stages"]["train"]
    return (
        f"Pythia 8 and a fast HL-LHC-like detector made {plan.n_events} selected events of "
        f"'{summary['process']}' with {', '.join(plan.masses)} (GeV; low:high is a continuous "
        f"range). The network '{summary['model']}' (arXiv:2507.20869) in its {plan.preset} size "
        f"of {trained['parameters']:,} parameters learnt from {summary['n_train']} of them and "
        f"drew {plan.n_samples} samples from the posterior of each of {summary['n_test']} events "
        "whose masses it never saw.\n\nThis is a short training of a small network on few "
        "events: it shows the chain at work, not the best that the network can do."
    )


def _stages(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    simulated, trained, _ = (summary["stages"][stage] for stage in STAGES)
    results = {
        "simulate": f"{simulated['n_events']} of {simulated['n_generated']} collisions selected",
        "train": f"{trained['steps']} steps, {trained['n_train']} events, validated on "
        f"{trained['n_validation']}",
        "reconstruct": f"{summary['n_test']} events",
    }
    rows = [(s, results[s], f"{summary['wall_seconds'][s]:.0f} s") for s in STAGES]
    return [("stage", "result", "time"), *rows]
