"""The events of a Les Houches file as arrays, and what physics says about them.

A flipped digit in a text file goes unnoticed by the format, but not by physics: particles lie on
their mass shell, the outgoing momenta and charges add up to the incoming ones, and so do those of
the decay products of every intermediate particle. What these checks cannot see are changes below a
relative `TOLERANCE`, and numbers that obey no law: weights, scales, couplings, colours and spins.

References:
    J. Alwall et al., Comput. Phys. Commun. 176 (2007) 300, hep-ph/0609017 (the format);
    J. Butterworth et al., arXiv:1405.1067, section "LHEF version 3" (weights).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from massrecon.events.particles import Floats, Integers, Mask, finite_rows, total_by

TOLERANCE = 1e-5
"""Largest relative violation of mass shell and momentum conservation: files have 7 to 11 digits."""

N_HEADER, N_COLUMNS = 6, 13
INCOMING, OUTGOING, RESONANCE, SPACELIKE = -1, 1, 2, -2

_WEIGHT = re.compile(rb"<wgt\s+id\s*=\s*(['\"])(.*?)\1\s*>([^<]*)</wgt\s*>")
_LIST = re.compile(rb"<weights>([^<]*)</weights>")
_PARTICLE_END = re.compile(rb"[<#]")


@dataclass(frozen=True)
class HardEvents:
    """Hard collisions as flat arrays.

    Attributes:
        header: For each event the number of particles, process, weight, scale [GeV] and the two
            couplings, shape ``(N, 6)``.
        rows: For each particle PDG code, status, two mothers (counted from 1), two colours, px, py,
            pz, E, m [GeV], lifetime [mm] and spin, shape ``(n, 13)``.
        first: First particle of each event and the end, shape ``(N + 1,)``.
    """

    header: Floats
    rows: Floats
    first: Integers

    @classmethod
    def of(cls, parsed: Sequence[tuple[list[float], list[list[float]]]]) -> HardEvents:
        """Joins what `parse_event` returns."""
        header = np.array([head for head, _ in parsed], float).reshape(-1, N_HEADER)
        rows = np.array([row for _, body in parsed for row in body], float)
        first = np.concatenate([[0], np.cumsum([len(body) for _, body in parsed])])
        return cls(header, rows.reshape(-1, N_COLUMNS), first.astype(np.int64))

    @property
    def n_events(self) -> int:
        """Number of events."""
        return len(self.header)

    @property
    def event(self) -> Integers:
        """Number of the event of each particle, shape ``(n,)``."""
        return np.repeat(np.arange(self.n_events), np.diff(self.first))

    @property
    def pdg(self) -> Integers:
        """PDG code of each particle, shape ``(n,)``."""
        return self.rows[:, 0].astype(np.int64)

    @property
    def status(self) -> Integers:
        """-1 incoming, 1 outgoing, 2 intermediate, -2 space-like, shape ``(n,)``."""
        return self.rows[:, 1].astype(np.int64)

    @property
    def mothers(self) -> Integers:
        """First and last mother, counted within the event from 0, -1 for none, ``(n, 2)``."""
        return self.rows[:, 2:4].astype(np.int64) - 1

    @property
    def p4(self) -> Floats:
        """Four-momenta (px, py, pz, E) [GeV], shape ``(n, 4)``."""
        return self.rows[:, 6:10]


def split_block(block: bytes) -> tuple[bytes, bytes]:
    """Cuts an ``<event>`` block into its numbers and what follows them."""
    body = block[block.index(b">") + 1 :]
    end = _PARTICLE_END.search(body)
    at = end.start() if end else len(body)
    return body[:at], body[at:]


def parse_event(body: bytes) -> tuple[list[float], list[list[float]]]:
    """Reads the numbers of one event.

    Args:
        body: The first part that `split_block` returns.

    Returns:
        The six numbers of the first line and the thirteen of each particle.

    Raises:
        ValueError: If their count is wrong, or one cannot be read.
    """
    if b"_" in body:
        raise ValueError("there is an underscore among its numbers")
    lines = [line.split() for line in body.strip().split(b"\n")]
    if len(lines[0]) != N_HEADER:
        raise ValueError(f"its first line has {len(lines[0])} numbers instead of {N_HEADER}")
    numbers = [[float(word) for word in line] for line in lines]
    if numbers[0][0] != len(lines) - 1:
        raise ValueError(f"it has {len(lines) - 1} particles and says {lines[0][0].decode()}")
    for row in numbers[1:]:
        if len(row) != N_COLUMNS:
            raise ValueError(f"a particle has {len(row)} numbers instead of {N_COLUMNS}")
    return numbers[0], numbers[1:]


def parse_weights(tail: bytes, listed: Sequence[str]) -> dict[str, float]:
    """Reads the alternative weights of one event.

    Args:
        tail: The second part that `split_block` returns.
        listed: Names of the weights in a ``<weights>`` list, from the header of the file.

    Raises:
        ValueError: If a weight cannot be read, is not finite, or is there twice.
    """
    tail = b"\n".join(line for line in tail.split(b"\n") if not line.lstrip().startswith(b"#"))
    found = [(m[2].decode("ascii"), m[3]) for m in _WEIGHT.finditer(tail)]
    if len(found) != tail.count(b"<wgt") or len(found) != tail.count(b"</wgt"):
        raise ValueError("one of its '<wgt>' entries is damaged")
    compressed = _LIST.search(tail)
    if compressed:
        values = compressed[1].split()
        names = listed if len(listed) == len(values) else [str(i) for i in range(len(values))]
        found += zip(names, values, strict=True)
    weights = {name.strip(): float(text) for name, text in found}
    if len(weights) != len(found):
        raise ValueError("it has two weights of one name")
    if not np.isfinite(list(weights.values())).all():
        raise ValueError("one of its weights is not finite")
    return weights


def defects(events: HardEvents, beam_energy: float) -> dict[int, str]:
    """Finds the events that contradict physics, and what is wrong with each.

    Args:
        events: Hard collisions.
        beam_energy: Energy of one beam [GeV]; no incoming parton has more.
    """
    found: dict[int, str] = {}
    with np.errstate(all="ignore"):  # every overflow ends as not finite, which is the first check
        for bad, what in _checks(events, beam_energy):
            for number in np.flatnonzero(bad).tolist():
                found.setdefault(number, what)
    return found


def _checks(events: HardEvents, beam_energy: float) -> list[tuple[Mask, str]]:
    n, event, p4, status = events.n_events, events.event, events.p4, events.status
    mass_squared = events.rows[:, 10] * np.abs(events.rows[:, 10])
    off_shell = p4[:, 3] ** 2 - np.sum(p4[:, :3] ** 2, axis=1) - mass_squared
    integers = events.rows[:, :6]
    scale = total_by(event[status == INCOMING], p4[status == INCOMING, 3], n)
    flow = (status == OUTGOING).astype(float) - (status == INCOMING)
    balance = np.stack([total_by(event, flow * p4[:, i], n) for i in range(4)])
    incoming = np.bincount(event[status == INCOMING], minlength=n)
    allowed = np.isin(status, (INCOMING, OUTGOING, RESONANCE, SPACELIKE, 3, -9))

    def anywhere(bad: np.ndarray) -> Mask:
        return np.bincount(event[bad], minlength=n) > 0

    return [
        (~finite_rows(events.header), "its first line is not finite"),
        (anywhere(~finite_rows(events.rows)), "a number of a particle is not finite"),
        (anywhere((integers != np.rint(integers)).any(1)), "a code or mother is not an integer"),
        (anywhere(~allowed), "a particle has an unknown status"),
        (anywhere((p4[:, 3] < 0) & (status != SPACELIKE)), "an energy is negative"),
        (incoming != 2, "it does not have two incoming particles"),
        (
            anywhere((status == INCOMING) & (p4[:, 3] > beam_energy * (1 + TOLERANCE))),
            "an incoming particle has more energy than its beam",
        ),
        (anywhere(np.abs(off_shell) > TOLERANCE * p4[:, 3] ** 2), "a particle is off its mass"),
        (
            np.logical_or.reduce(np.abs(balance) > TOLERANCE * scale, axis=0),
            "momentum is not conserved",
        ),
        (_bad_decays(events, scale), "a decay does not conserve momentum, or a mother is missing"),
        (_charge_violated(events), "charge is not conserved"),
    ]


def _bad_decays(events: HardEvents, scale: Floats) -> Mask:
    """Finds events where the decay products of an intermediate particle do not add up to it."""
    event, mothers = events.event, events.mothers
    length = np.diff(events.first)[event]
    bad = (mothers < -1).any(1) | (mothers >= length[:, None]).any(1)
    single = ~bad & (mothers[:, 0] >= 0)
    single &= (mothers[:, 1] == mothers[:, 0]) | (mothers[:, 1] == -1)
    mother = (events.first[event] + mothers[:, 0])[single]
    n = len(event)
    total = np.stack([total_by(mother, events.p4[single, i], n) for i in range(4)], axis=1)
    decays = (np.bincount(mother, minlength=n) > 0) & (events.status == RESONANCE)
    bad |= decays & (np.abs(total - events.p4) > TOLERANCE * scale[event][:, None]).any(1)
    return np.bincount(event[bad], minlength=events.n_events) > 0


def _charge_violated(events: HardEvents) -> Mask:
    """Finds events whose charges do not add up, as far as all codes are known."""
    charge, known = _three_charge(events.pdg)
    flow = (events.status == OUTGOING).astype(float) - (events.status == INCOMING)
    total = total_by(events.event, flow * charge, events.n_events)
    unsure = np.bincount(events.event[~known & (flow != 0)], minlength=events.n_events) > 0
    return (total != 0) & ~unsure


def _three_charge(pdg: Integers) -> tuple[Floats, Mask]:
    """Returns three times the electric charge, and whether the code is known."""
    code = np.abs(pdg) % 1_000_000
    new = np.abs(pdg) // 1_000_000
    up = np.isin(code, (2, 4, 6))
    down = np.isin(code, (1, 3, 5))
    lepton = np.isin(code, (11, 13, 15))
    boson = np.isin(code, (24, 37)) & (new <= 1)
    neutral = np.isin(code, (12, 14, 16, 21, 22, 23, 25, 35, 36, 39)) & (new <= 2)
    charge = np.select([up, down, lepton, boson, neutral], [2.0, -1.0, -3.0, 3.0, 0.0], np.nan)
    known = np.isfinite(charge) & (new <= 2)
    return np.where(known, charge * np.sign(pdg), 0.0), known
