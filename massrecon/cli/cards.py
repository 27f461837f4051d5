"""``massrecon cards``: list, show, check and copy process cards."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from massrecon.errors import CardError, InputError

if TYPE_CHECKING:
    from massrecon.events.card import ProcessCard
    from massrecon.kinematics.topology import Node

app = typer.Typer(help="List, show, check and copy process cards.", no_args_is_help=False)

_WIDTH = 96

Name = Annotated[str, typer.Argument(help="Name of a card, or path of your own.")]


@app.callback(invoke_without_command=True)
def list_cards(context: typer.Context) -> None:
    """List all process cards, built-in and your own; or show, check or copy one."""
    if context.invoked_subcommand is not None:
        return
    from massrecon.events.card import load_card
    from massrecon.events.library import FOLDERS, card_names, own_cards

    own = own_cards()
    for name in card_names():
        place = f"  [{own[name][0]}]" if name in own else ""
        try:
            card = load_card(name)
        except InputError as error:
            first = str(error).splitlines()[0]
            typer.secho(f"{name}{place}\n    cannot be used: {first}", fg="red")
            continue
        typer.secho(f"{name}{place}", bold=True)
        for line in (card.title, _in_short(card)):
            typer.echo(textwrap.fill(line, _WIDTH, initial_indent="    ", subsequent_indent="    "))
    typer.echo(
        f"\n'massrecon cards show NAME' tells more. Own cards: set {FOLDERS} to their folder."
    )


@app.command()
def show(
    name: Name,
    svg: Annotated[
        Path | None, typer.Option(help="Also draw the decay diagram into this file.")
    ] = None,
) -> None:
    """Show everything about a card: its decay, masses, selection, notes, how to simulate it."""
    from massrecon.events.card import load_card
    from massrecon.provenance import write_text

    card = load_card(name)
    typer.echo("\n".join(_description(card, name)))
    if svg is not None:
        from massrecon.visual.diagram import decay_diagram

        write_text(svg, decay_diagram(card))
        typer.echo(f"\nThe decay diagram is in {svg}")


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="Card files, or folders of them.")],
) -> None:
    """Check card files: every mistake with its line and remedy. Exit code 1 if there is one."""
    from massrecon.events.cardcheck import check_card

    n_mistakes = 0
    for path in _card_files(files):
        report = check_card(path)
        n_mistakes += len(report.mistakes)
        for mistake in report.mistakes:
            typer.secho(mistake, fg="red", err=True)
        for hint in report.hints:
            typer.secho(f"{hint} (hint)", fg="yellow", err=True)
        if report.card is not None and not report.mistakes:
            typer.secho(f"{path}: good", fg="green")
            typer.echo(textwrap.indent(_in_short(report.card), "    "))
    if n_mistakes:
        typer.secho(f"{n_mistakes} mistake{'s' if n_mistakes > 1 else ''}", fg="red", err=True)
        raise typer.Exit(1)


@app.command()
def copy(
    name: Name,
    file: Annotated[Path, typer.Argument(help="New file; its name becomes that of the card.")],
) -> None:
    """Copy a card to a file of your own, to start from."""
    from massrecon.events.library import FOLDERS, find_card, read_card
    from massrecon.provenance import write_text

    if file.suffix not in (".yaml", ".yml"):
        raise InputError(f"'{file}' should end in .yaml, which marks a card.")
    if not re.fullmatch(r"[A-Za-z][\w\-]*", file.stem):
        raise InputError(f"'{file.stem}' cannot name a card: use letters, digits, _ and -.")
    if file.exists():
        raise CardError(f"'{file}' is there already: choose another name, or remove it.")
    own = Path(name)
    text = read_card(own) if own.suffix in (".yaml", ".yml") else find_card(name)[0]
    write_text(file, re.sub(r"^name:.*$", f"name: {file.stem}", text, count=1, flags=re.MULTILINE))
    typer.echo(
        f"{file} is a copy of '{name}'. After a change run 'massrecon cards check {file}'. In the "
        f"folder that {FOLDERS} names it is found as '{file.stem}'."
    )


def _card_files(paths: list[Path]) -> Iterator[Path]:
    """Replaces folders by the card files in them."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
        if not found:
            raise CardError(f"The folder '{path}' holds no card: there is no .yaml file in it.")
        yield from found


def _generator(card: ProcessCard) -> str:
    """Names what generates the events."""
    if card.phase_space is not None:
        return "toy"
    return "Pythia on Les Houches events" if card.pythia.lhe else "Pythia"


def _in_short(card: ProcessCard) -> str:
    """Sums a card up in one line."""
    parts = [f"{_generator(card)}, {card.beam_energy / 1000:g} TeV", f"seen: {_seen(card)}"]
    if card.masses:
        parts.append(", ".join(_range(card, name) for name in card.masses))
    if card.presets:
        parts.append(f"presets: {', '.join(card.presets)}")
    return "; ".join(parts)


def _seen(card: ProcessCard) -> str:
    """Says which objects a card keeps and asks for."""
    kept = []
    for group in card.objects:
        needed = f" (at least {group.minimum})" if 0 < group.minimum < group.count else ""
        kept.append(f"{group.count} {group.kind}{needed}")
    return ", ".join(kept)


def _range(card: ProcessCard, name: str) -> str:
    parameter = card.masses[name]
    return f"{name} {parameter.default:g} ({parameter.range[0]:g} to {parameter.range[1]:g}) GeV"


def _description(card: ProcessCard, asked: str) -> Iterator[str]:
    """Yields the lines that describe a card."""
    yield from (f"{card.name}: {card.title}", "")
    yield f"{_generator(card)}, proton-proton collisions at {card.beam_energy / 1000:g} TeV"
    if card.reference:
        yield _wrapped("Reference: ", card.reference)
    yield from ("", "Decay, by the names of the true particles", *_sketch(card), "")
    yield from _masses(card)
    yield from _selection(card)
    if card.targets:
        learned = ", ".join(f"{mass} from {label}" for mass, label in card.targets.items())
        yield _wrapped("Learned (px, py, pz, m): ", learned)
    if card.notes:
        yield from ("", _wrapped("", card.notes))
    yield from ("", "To simulate it", *_how_to(card, asked))


def _sketch(card: ProcessCard) -> Iterator[str]:
    """Yields the decay tree with what becomes of each particle."""
    first, *lines = card.topology.sketch().splitlines()
    width = max(len(line) for line in lines) + 3
    yield f"  {first}"
    for line, node in zip(lines, card.topology.nodes, strict=True):
        yield f"  {line:{width}}{_remark(card, node)}".rstrip()


def _remark(card: ProcessCard, node: Node) -> str:
    """Says what is known of a particle of the tree."""
    from massrecon.events.toycard import mass_parameter

    codes = ", ".join(str(code) for code in card.particles[node.name].pdg)
    parameter, toy = mass_parameter(card, node.name), card.phase_space
    parts = [f"PDG {codes}"]
    if parameter:
        parts.append(f"mass {parameter}")
    if toy is not None and toy.widths.get(node.name):
        parts.append(f"width {toy.widths[node.name]:g} GeV")
    if toy is not None and not node.children:
        parts.append("seen" if node.name in card.slot_kinds else "invisible")
    return "; ".join(parts)


def _masses(card: ProcessCard) -> Iterator[str]:
    """Yields the mass parameters, what must be open, and the presets."""
    for name in card.masses:
        yield f"Mass {_range(card, name)}"
    for channel in card.open_channels:
        less = " - ".join([channel.parent, *channel.daughters])
        yield f"  with {less} >= {channel.minimum_gap:g} GeV"
    for name, masses in card.presets.items():
        values = ", ".join(f"{mass} {_value(value)}" for mass, value in masses.items())
        yield _wrapped(f"Preset {name}: ", values)


def _value(value: object) -> str:
    if isinstance(value, list):
        return ",".join(f"{item:g}" for item in value)
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _selection(card: ProcessCard) -> Iterator[str]:
    """Yields what an event must have."""
    for group in card.objects:
        slots = "slot" if group.count == 1 else "slots"
        text = f"{group.count} {slots}, pT > {group.pt_min:g} GeV, |eta| < {group.eta_max:g}"
        if group.minimum:
            text += f", at least {group.minimum}"
        if group.maximum is not None:
            text += f", at most {group.maximum}"
        if group.pair_mass is not None:
            text += f", the pair nearest to {group.pair_mass:g} GeV"
        yield f"Objects {group.kind}: {text}"
    cuts = card.cuts
    if cuts.ptmiss_min:
        yield f"Cut: ptmiss > {cuts.ptmiss_min:g} GeV"
    if cuts.lepton_charge is not None:
        yield f"Cut: the lepton charges add up to {cuts.lepton_charge}"
    if cuts.btags:
        yield f"Cut: at least {cuts.btags} b-tags"


def _how_to(card: ProcessCard, asked: str) -> Iterator[str]:
    """Yields a command and a call that simulate the card."""
    masses = "".join(f" --masses {n}={m.default:g}" for n, m in card.masses.items())
    yield f"  massrecon simulate {asked} --events 1000{masses} --out my_events"
    chosen = ", ".join(f'"{name}": {m.default:g}' for name, m in card.masses.items())
    given = f", masses={{{chosen}}}" if chosen else ""
    yield f'  massrecon.simulate("{asked}", 1000{given})'
    if card.phase_space is not None and card.phase_space.exchanged:
        yield f"  massrecon simulate {asked} --set contamination=0.1 --out wrong_pairs"
        yield f'  massrecon.simulate("{asked}", 1000, settings={{"contamination": 0.1}})'


def _wrapped(head: str, text: str) -> str:
    return textwrap.fill(head + text, _WIDTH, subsequent_indent="  " if head else "")
