"""Joining folders of events into one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from massrecon.errors import InputError, StoreError
from massrecon.events.card import ProcessCard
from massrecon.events.history import JOINED, ORIGINS, join_provenance, origins_of
from massrecon.events.manifest import MANIFEST, card_of, read_manifest
from massrecon.events.store import open_folder
from massrecon.events.writer import StoreWriter


def merge_stores(paths: Sequence[str | Path], out: str | Path) -> int:
    """Joins folders of events of one process, in order, into a new folder; all or nothing.

    The provenance of every source is kept, and the counts of their mass cells are added. Events are
    copied part by part, in the memory of one.

    Args:
        paths: The folders, at least two.
        out: The new folder.

    Returns:
        Number of events.

    Raises:
        InputError: If there are fewer than two folders, or they differ in card, truth, attributes
            or alternative weights, or hold the same part of one simulation.
        StoreError: If one of them is damaged or unfinished, `out` is there already, or it cannot be
            written.
    """
    folders = [Path(path) for path in paths]
    if len(folders) < 2:
        raise InputError(f"'paths' should be at least two folders of events, got {len(folders)}.")
    if (Path(out) / MANIFEST).exists():
        raise StoreError(f"'{out}' holds events already: choose a new folder.")
    manifests = [read_manifest(folder) for folder in folders]
    card = _common_card(folders, manifests)
    _refuse_duplicates(folders, manifests)
    with StoreWriter(out, card, provenance=_provenance(folders, manifests)) as writer:
        for folder in folders:
            for arrays in open_folder(folder).pieces():
                try:
                    writer.write(arrays)
                except InputError as error:
                    raise InputError(f"'{folder}' cannot be added: {error}") from error
    return writer.n_events


def _provenance(folders: Sequence[Path], manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Joins the provenance of the folders, each with the parts that it brings."""
    samples = []
    for folder, manifest in zip(folders, manifests, strict=True):
        sample = dict(manifest["provenance"])
        if JOINED not in sample:
            sample["folder"] = folder.resolve().name
        samples.append(sample | {ORIGINS: [list(origin) for origin in origins_of(manifest)]})
    return join_provenance(samples)


def _common_card(folders: Sequence[Path], manifests: Sequence[dict[str, Any]]) -> ProcessCard:
    """Returns the card of all folders."""
    cards = [
        card_of(manifest["card"], folder / MANIFEST)
        for folder, manifest in zip(folders, manifests, strict=True)
    ]
    for folder, card in zip(folders, cards, strict=True):
        if card.fingerprint() != cards[0].fingerprint():
            raise InputError(
                f"'{folder}' holds events of another card ('{card.name}', or another version of "
                f"it) than '{folders[0]}' ('{cards[0].name}'): only events of one card can be "
                "joined."
            )
    return cards[0]


def _refuse_duplicates(folders: Sequence[Path], manifests: Sequence[dict[str, Any]]) -> None:
    """Refuses to count events twice."""
    seen: dict[tuple[str, int | str], int] = {}
    for i, manifest in enumerate(manifests):
        for simulation, number, name in origins_of(manifest):
            other = seen.setdefault((simulation, number), i)
            if other != i:
                raise InputError(
                    f"'{folders[other]}' and '{folders[i]}' both hold {name}: these events would "
                    "count twice. Join simulations with different seeds, or different files."
                )
