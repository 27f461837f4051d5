"""The demonstration: simulate, train and reconstruct on one machine in minutes, then report.

Each stage is one of the notebooks, run headless with its own folder under the results. A stage
that is finished is not run again; one that was cut off goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import massrecon as mr
from massrecon.inference.comparison import Judgement, comparison_table, judge
from massrecon.models.base import read_header
from massrecon.provenance import write_json
from massrecon.runs.notebooks import SUMMARY_FILE, finished_run, forget_run, run_notebook
from massrecon.runs.report import Section, write_report
from massrecon.visual import figures
from massrecon.visual.template import plain

STAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "simulate": ("simulate", ()),
    "train": ("train", ("simulate",)),
    "reconstruct": ("reconstruct", ("train",)),
    "train_published": ("train", ("simulate",)),
    "reconstruct_published": ("reconstruct", ("train_published",)),
}
"""The stages in their order: the notebook of each, and the stages whose results it reads."""

_PUBLISHED = "_published"  # ending of the stages of the model to compare with


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """What the demonstration does.

    Attributes:
        process: Process card.
        n_events: Selected events to simulate, training and test together.
        masses: Mass of each particle [GeV] as on the command line.
        test_fraction: Share of the mass points held out of the training.
        model: Family of the model.
        published: Family of the published model that it is compared with.
        preset: Size of the networks.
        max_minutes: Training time of each [min].
        n_samples: Posterior draws for each test event.
        steps: Network evaluations for each draw.
    """

    process: str = "wino_udd"
    n_events: int = 20_000
    masses: tuple[str, ...] = ("chi20=600", "chi10=50:450")
    test_fraction: float = 0.2
    model: str = "cascade"
    published: str = "barman2025"
    preset: str = "small"
    max_minutes: float = 1.4
    n_samples: int = 64
    steps: int = 20

    def stages(self, out: Path, seed: int) -> dict[str, dict[str, Any]]:
        """Returns the notebook parameters of each stage."""
        found = {
            "simulate": {
                "process": self.process,
                "n_events": self.n_events,
                "masses": list(self.masses),
                "seed": seed,
            }
        }
        for model, ending in ((self.model, ""), (self.published, _PUBLISHED)):
            found[f"train{ending}"] = {
                "events": str(out / "simulate" / "events"),
                "model": model,
                "preset": self.preset,
                "test_fraction": self.test_fraction,
                "max_minutes": self.max_minutes,
                "seed": seed,
            }
            found[f"reconstruct{ending}"] = {
                "model": str(out / f"train{ending}" / "model"),
                "events": str(out / f"train{ending}" / "test_events"),
                "n_samples": self.n_samples,
                "steps": self.steps,
                "seed": seed,
            }
        return found


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
    write_json(out / SUMMARY_FILE, summary)
    report = _write_report(out, plan, summary)
    print(f"\n{_headline(summary)}\n\nReport:  {report}\nNumbers: {out / SUMMARY_FILE}")
    return summary


def _run_stage(stage: str, parameters: Mapping[str, Any], out: Path) -> dict[str, Any]:
    notebook = STAGES[stage][0]
    record = finished_run(notebook, parameters, out / stage)
    if record is not None:
        print("      finished earlier, kept", flush=True)
        return record
    for later, (_, needs) in STAGES.items():  # what was made from the old results is stale
        if stage in needs:
            forget_run(out / later)
    run_notebook(notebook, parameters, out / stage)
    record = finished_run(notebook, parameters, out / stage)
    assert record is not None  # run_notebook has just written it
    return record


def _summarise(records: Mapping[str, dict[str, Any]], seed: int) -> dict[str, Any]:
    stages = {stage: record["summary"] for stage, record in records.items()}
    simulated, trained = stages["simulate"], stages["train"]
    return {
        "process": simulated["process"],
        "card": simulated["card"],
        "n_train": trained["n_train"],
        "n_test": stages["reconstruct"]["n_events"],
        **_results(stages, ""),
        "published": _results(stages, _PUBLISHED),
        "seed": seed,
        "versions": {**simulated["versions"], **trained["versions"]},
        "wall_seconds": {stage: records[stage]["wall_seconds"] for stage in records},
        "stages": stages,
    }


def _results(stages: Mapping[str, dict[str, Any]], ending: str) -> dict[str, Any]:
    """Returns what a model found: its name, efficiencies, and how well it knows them."""
    found = stages[f"reconstruct{ending}"]
    names = ("efficiency", "no_skill", "self_consistency")
    return {"model": stages[f"train{ending}"]["model"], **{name: found[name] for name in names}}


def _headline(summary: Mapping[str, Any]) -> str:
    """Says the main result in one sentence, for the mass that varies."""
    mass = _varying(summary)[0]
    symbol = plain(mr.load_card(summary["card"]).symbol(mass))
    found = summary["efficiency"][mass]["window"]["30"]
    published = summary["published"]["efficiency"][mass]["window"]["30"]
    no_skill = summary["no_skill"][mass]["30"]["value"]
    return (
        f"m({symbol}) is found within 30 GeV in {found['value']:.1%} ± {found['error']:.1%} of "
        f"{summary['n_test']:,} held-out events by '{summary['model']}', in "
        f"{published['value']:.1%} ± {published['error']:.1%} by the published network "
        f"'{summary['published']['model']}' after the same time on the same events; the best "
        f"constant guess reaches {no_skill:.1%}."
    )


def _varying(summary: Mapping[str, Any]) -> list[str]:
    """Names the masses that a constant does not guess, all of them if there is none."""
    return summary["stages"]["reconstruct"]["varying_masses"] or list(summary["no_skill"])


def _write_report(out: Path, plan: DemoPlan, summary: Mapping[str, Any]) -> Path:
    posterior = mr.Posterior.load(out / "reconstruct" / "posterior")
    published = mr.Posterior.load(out / "reconstruct_published" / "posterior")
    names = summary["model"], summary["published"]["model"]
    judged = {n: judge(p) for n, p in zip(names, (posterior, published), strict=True)}
    table = judged[names[0]].efficiency
    events = mr.load_events(out / "simulate" / "events")
    histories = [read_header(out / f"train{e}" / "model")["history"] for e in ("", _PUBLISHED)]
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
        _comparison(judged, varying),
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
        Section(
            heading=f"Training of '{names[0]}', then of '{names[1]}'",
            figures=[figures.training_curve(history) for history in histories],
        ),
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


def _comparison(judged: Mapping[str, Judgement], masses: Sequence[str]) -> Section:
    """Sets the model beside the published one."""
    tables = {name: found.efficiency for name, found in judged.items()}
    return Section(
        heading=f"Beside the published network, '{list(judged)[1]}'",
        text="Both saw the same events for the same time and are judged on the same held-out "
        "events. 'draw' is one sample of the posterior, 'window' the centre of its most probable "
        "window; 'predicted' is what the posterior claims for it, '68 % int.' how often its 68 % "
        "interval holds the truth. In per cent.",
        listing="\n\n".join(comparison_table(judged, mass, 30.0) for mass in masses),
        figures=[figures.efficiency_by_model(tables, mass, 30.0) for mass in masses],
    )


def _account(plan: DemoPlan, summary: Mapping[str, Any]) -> str:
    trained, published = (summary["stages"][f"train{e}"] for e in ("", _PUBLISHED))
    return (
        f"Pythia 8 and a fast HL-LHC-like detector made {plan.n_events} selected events of "
        f"'{summary['process']}' with {', '.join(plan.masses)} (GeV; low:high is a continuous "
        f"range). The model '{summary['model']}' ({trained['parameters']:,} parameters) and the "
        f"published network '{published['model']}' (arXiv:2507.20869, here in its {plan.preset} "
        f"size of {published['parameters']:,} parameters) each learnt for {plan.max_minutes:g} "
        f"minutes from {summary['n_train']} of them and drew {plan.n_samples} samples from the "
        f"posterior of each of {summary['n_test']} events whose masses they never saw.\n\nThese "
        "are short trainings of small networks on few events: they show the chain at work, not "
        "the best that either can do."
    )


def _stages(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    accounts = {
        "simulate": "{n_events} of {n_generated} collisions selected",
        "train": "{model}: {steps} steps, {n_train} events, validated on {n_validation}",
        "reconstruct": "{n_events} events",
    }
    rows = [
        (
            stage,
            accounts[notebook].format(**summary["stages"][stage]),
            f"{summary['wall_seconds'][stage]:.0f} s",
        )
        for stage, (notebook, _) in STAGES.items()
    ]
    return [("stage", "result", "time"), *rows]
