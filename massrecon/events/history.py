"""Where joined events come from: the provenance of every sample is kept, their counts add up."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from massrecon.events.cells import merge_cells, summarise_cells

JOINED = "joined"
"""Entry of a provenance that lists those of the samples that were joined."""

ORIGINS = "origins"
"""Entry of a provenance that names the parts that were joined, so that none is joined twice."""

_SUMS = ("n_generated", "n_selected")

Origin = tuple[str, int | str, str]
"""A part of events: its simulation and number, or its checksum; and a name for messages."""


def join_provenance(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Puts together the provenance of samples that are joined.

    Args:
        samples: The provenance of each; that of samples which were joined before is unfolded.

    Returns:
        ``joined``, the list of all of them; where every one of them has them the sums
        ``n_generated`` and ``n_selected``, and ``cells``, summed by mass cell; ``origins``.
    """
    result: dict[str, Any] = {JOINED: [one for sample in samples for one in _unfolded(sample)]}
    for name in _SUMS:
        if all(name in sample for sample in samples):
            result[name] = sum(sample[name] for sample in samples)
    if all("cells" in sample for sample in samples):
        result["cells"] = merge_cells(sample["cells"] for sample in samples)
    found = [list(origin) for sample in samples for origin in sample.get(ORIGINS, ())]
    return result | ({ORIGINS: found} if found else {})


def _unfolded(sample: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the samples that a provenance speaks of."""
    if JOINED in sample and sample.keys() <= {JOINED, *_SUMS, "cells", ORIGINS}:
        yield from (dict(one) for one in sample[JOINED])
    else:
        yield {name: value for name, value in sample.items() if name != ORIGINS}


def origins_of(manifest: Mapping[str, Any]) -> list[Origin]:
    """Lists what makes each part of a folder one of a kind.

    A part of a simulation is known by the request, whatever the versions of the programs, and its
    number; any other by its checksum. Folders that were joined name the parts of their sources.
    """
    request, found = manifest["request"], []
    if request is not None:
        asked = {name: value for name, value in request.items() if name != "versions"}
        if asked.get("lhe"):  # the file counts, not where it lies
            asked["lhe"] = asked["lhe"].get("sha256")
            asked["settings"] = {**asked["settings"], "lhe": None}
        simulation = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    for entry in manifest["parts"]:
        number = entry["number"]
        if request is not None:
            found.append((simulation, number, f"part {number} of the simulation"))
        elif entry["n_events"]:
            found.append(("file", entry["sha256"], f"the same file of events, part {number}"))
    return found + [tuple(origin) for origin in manifest["provenance"].get(ORIGINS, ())]


def provenance_of_parts(
    provenance: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Counts anew for a simulation of which only some parts are used.

    Args:
        provenance: What the manifest says of all of it.
        entries: The manifest's entries of the parts that are used.
    """
    result = dict(provenance) | {"parts": [entry["number"] for entry in entries]}
    if not all("groups" in entry for entry in entries):
        return result
    groups = [group for entry in entries for group in entry["groups"]]
    flow: Counter[str] = Counter()
    for group in groups:
        flow.update(group["cut_flow"])
    fraction, sigma = provenance.get("branching_fraction", 1.0), None
    if provenance.get("lhe") and provenance.get("cells"):
        sigma = provenance["cells"][0]["cross_section_fb"]
        sigma = None if sigma is None else sigma / fraction
    rows = [row for group in groups for row in group["cells"]]
    return result | {
        "n_events": sum(entry["n_events"] for entry in entries),
        "n_generated": flow["generated"],
        "n_selected": flow["selected"],
        "cut_flow": dict(flow),
        "cells": summarise_cells(rows, fraction, sigma),
    }
