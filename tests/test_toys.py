"""Toys: determinism, slots, smearing, exchanges, and the published test runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from massrecon.errors import CardError, InputError, StoreError
from massrecon.events import toys
from massrecon.events.card import ProcessCard, load_card
from massrecon.events.container import Events
from massrecon.events.generator import simulate
from massrecon.events.part import Part
from massrecon.events.regeneration import regeneration_differences
from massrecon.events.request import Request
from massrecon.events.sections import B_JET_RESOLUTION
from massrecon.events.store import load_events
from massrecon.events.toys import GROUP_EVENTS, ToyMaker, smeared
from massrecon.kinematics import fourvectors as fv

P_LOWEST = 1e-3
"""Fixed seeds: a correct toy fails with this probability for one choice of the seed."""


def make_part(
    name: str | dict[str, Any],
    settings: dict[str, Any] | None = None,
    masses: Any = None,
    number: int = 0,
    seed: int = 5,
    n: int = 1,
) -> tuple[ProcessCard, Part]:
    """Makes a part, up to the group with the n-th event, in this process."""
    request = Request.of(name, masses, seed, settings)
    return request.card, ToyMaker(request).make(number, lambda: n, lambda *_: None)


def seen_of(card: ProcessCard, part: Part, label: str) -> np.ndarray:
    """The true four-momenta (px, py, pz, E) of a particle."""
    row = torch.as_tensor(part.arrays["partons"][:, card.parton_names.index(label)])
    return fv.from_pxpypzm(row).numpy()


def changed(phase_space: dict[str, Any] | None = None, **entries: Any) -> dict[str, Any]:
    """The card antler with other entries, and others in its `phase_space`."""
    content = load_card("antler").to_dict() | entries
    content["phase_space"] |= phase_space or {}
    return content


def test_without_smearing_the_slots_hold_the_true_particles_side_a_first() -> None:
    card, part = make_part("antler")
    assert card.slots == ("a1", "a2", "b1", "b2")
    for slot, label in enumerate(("a_a", "a_b", "b_a", "b_b")):
        np.testing.assert_allclose(part.arrays["p4"][:, slot], seen_of(card, part, label))
    assert part.arrays["present"].all()
    invisible = seen_of(card, part, "C_a") + seen_of(card, part, "C_b")
    np.testing.assert_allclose(part.arrays["ptmiss"], invisible[:, :2], atol=1e-9)
    masses = part.arrays["masses"]
    np.testing.assert_array_equal(masses, np.tile([1000.0, 800.0, 700.0], (len(masses), 1)))
    for label, mass in (("A_b", 1000.0), ("B_a", 800.0), ("C_b", 700.0), ("a_a", 0.0)):
        assert (part.arrays["partons"][:, card.parton_names.index(label), 3] == mass).all()


@pytest.mark.parametrize("contamination", [0.1, 0.5])
def test_the_exchanged_particle_changes_sides_in_the_stated_fraction(contamination: float) -> None:
    card, part = make_part("antler", {"contamination": contamination}, n=20_000)
    first = part.arrays["p4"][:, 0, :3]
    own = (first == seen_of(card, part, "a_a")[:, :3]).all(axis=1)
    other = (first == seen_of(card, part, "a_b")[:, :3]).all(axis=1)
    assert (own ^ other).all()
    found = stats.binomtest(int(other.sum()), len(other), contamination)
    assert found.pvalue > P_LOWEST
    for slot, label in ((2, "b_a"), (3, "b_b")):
        np.testing.assert_allclose(part.arrays["p4"][:, slot], seen_of(card, part, label))
    # the truth and ptmiss know nothing of it
    _, clean = make_part("antler", n=20_000)
    np.testing.assert_array_equal(part.arrays["partons"], clean.arrays["partons"])
    np.testing.assert_array_equal(part.arrays["ptmiss"], clean.arrays["ptmiss"])


def test_an_exchange_takes_charge_and_flavour_along() -> None:
    card, part = make_part("antler_ttbar", {"exchanged": "l", "contamination": 1.0})
    assert (part.arrays["charge"] == [0, 0, -1, 1]).all()
    assert set(np.unique(part.arrays["flavour"][:, 2:])) == {11, 13}
    assert (part.arrays["flavour"][:, :2] == 0).all()
    np.testing.assert_allclose(part.arrays["p4"][:, 2], seen_of(card, part, "l_b"))


def test_smearing_has_the_published_resolution_and_ptmiss_takes_part() -> None:
    rng = np.random.default_rng(1)
    for pt, resolution in B_JET_RESOLUTION:
        momenta = np.tile([pt, 0.0, 3.0 * pt, 4.7], (20_000, 1))
        factor = smeared(momenta, B_JET_RESOLUTION, rng)[:, 0] / pt
        expected = stats.truncnorm(-1 / resolution, np.inf, loc=1, scale=resolution)
        assert stats.kstest(factor, expected.cdf).pvalue > P_LOWEST, pt
    between = np.tile([np.sqrt(50.0 * 100.0), 0.0, 0.0, 0.0], (20_000, 1))
    spread = smeared(between, B_JET_RESOLUTION, rng)[:, 0].std() / between[0, 0]
    assert spread == pytest.approx((0.13 + 0.10) / 2, rel=0.02)
    card, part = make_part("antler_ttbar")
    p4, ptmiss = part.arrays["p4"], part.arrays["ptmiss"]
    total = p4.sum(axis=1)[:, :2] + ptmiss  # nothing recoils
    np.testing.assert_allclose(total, 0.0, atol=1e-9)
    invisible = seen_of(card, part, "nu_a") + seen_of(card, part, "nu_b")
    assert np.abs(ptmiss - invisible[:, :2]).mean() > 2.0


def test_smearing_keeps_direction_and_mass() -> None:
    rows = np.array([[30.0, -40.0, 100.0, 4.7], [0.0, 5.0, 1.0, 0.0]])
    out = smeared(rows, B_JET_RESOLUTION, np.random.default_rng(3))
    cosine = np.sum(out[:, :3] * rows[:, :3], axis=1)
    cosine /= np.linalg.norm(out[:, :3], axis=1) * np.linalg.norm(rows[:, :3], axis=1)
    np.testing.assert_allclose(cosine, 1.0, atol=1e-12)
    squared = out[:, 3] ** 2 - np.sum(out[:, :3] ** 2, axis=1)
    np.testing.assert_allclose(squared, rows[:, 3] ** 2, atol=1e-9)


def test_top_pairs_are_those_of_the_published_run() -> None:
    card, part = make_part("antler_ttbar", n=50_000)
    assert card.phase_space is not None
    assert card.phase_space.contamination == 0.2
    assert card.phase_space.smearing == {"b": B_JET_RESOLUTION}
    partons = part.arrays["partons"]
    for label, pole, width in (("t_a", 173.0, 1.4915), ("W_b", 80.419, 2.0476)):
        mass = partons[:, card.parton_names.index(label), 3]
        low, high = pole - 15 * width, pole + 15 * width
        assert mass.min() >= low
        assert mass.max() <= high

        def angle(m: Any, pole: float = pole, width: float = width) -> Any:
            return np.arctan((np.asarray(m) ** 2 - pole**2) / (pole * width))

        def cdf(m: Any, low: float = low, high: float = high, angle: Any = angle) -> Any:
            return (angle(m) - angle(low)) / (angle(high) - angle(low))

        # a decay that would be closed hardly ever cuts the line shape here
        assert stats.kstest(mass, cdf).pvalue > P_LOWEST, label
    for label in ("b_a", "l_b", "nu_a"):
        assert (partons[:, card.parton_names.index(label), 3] == 0).all()
    wrong = np.abs(
        part.arrays["p4"][:, 0, :3] / part.arrays["p4"][:, 0, 3:]
        - partons[:, 1, :3] / np.linalg.norm(partons[:, 1, :3], axis=1)[:, None]
    )
    n_wrong = int((wrong.max(axis=1) > 1e-9).sum())
    assert stats.binomtest(n_wrong, len(wrong), 0.2).pvalue > P_LOWEST


def test_radiation_recoils_and_is_measured() -> None:
    card, part = make_part("antler", {"recoil": 60.0})
    roots = seen_of(card, part, "A_a") + seen_of(card, part, "A_b")
    kick = np.hypot(roots[:, 0], roots[:, 1])
    assert np.median(kick) == pytest.approx(60.0, rel=0.1)
    invisible = seen_of(card, part, "C_a") + seen_of(card, part, "C_b")
    np.testing.assert_allclose(part.arrays["ptmiss"], invisible[:, :2], atol=1e-9)


def test_all_events_of_a_block_share_a_mass_point() -> None:
    card, part = make_part("antler", masses={"A": (900, 1200), "B": (500, 850), "C": 100}, number=2)
    blocks, masses = part.arrays["block"], part.arrays["masses"]
    assert len(np.unique(masses, axis=0)) == GROUP_EVENTS // toys.BLOCK_EVENTS
    for block in np.unique(blocks)[:10]:
        assert len(np.unique(masses[blocks == block], axis=0)) == 1
    drawn = part.arrays["partons"][:, card.parton_names.index("B_b"), 3]
    np.testing.assert_array_equal(drawn, masses[:, 1])
    assert blocks.min() == 2 * toys.PART_GROUPS * toys.BLOCKS_PER_GROUP


def test_limits_of_a_card_remove_particles_and_events() -> None:
    content = changed()
    content["objects"][0] |= {"pt_min": 200.0, "eta_max": 1.5, "minimum": 1}
    content["cuts"] = {"ptmiss_min": 100.0}
    card, part = make_part(content)
    assert card.cuts.ptmiss_min == 100.0
    p4, present = part.arrays["p4"], part.arrays["present"]
    pt = np.hypot(p4[..., 0], p4[..., 1])
    assert (pt[:, :2][present[:, :2]] > 200.0).all()
    assert (p4[~present] == 0).all()
    assert present[:, :2].any(axis=1).all()
    assert not present[:, :2].all()
    assert present[:, 2:].all()
    assert (np.hypot(*part.arrays["ptmiss"].T) >= 100.0).all()
    flow = part.groups[0]["cut_flow"]
    assert list(flow) == ["generated", "ptmiss", "a", "b", "selected"]
    assert flow["generated"] > flow["ptmiss"] > flow["a"] == flow["b"] == flow["selected"]
    assert flow["selected"] == len(part.arrays["weight"])
    assert part.groups[0]["cells"][0]["n_selected"] == flow["selected"]


def test_parts_do_not_depend_on_what_was_made_before() -> None:
    request = Request.of("antler", {"A": (900, 1100)}, 9, {"contamination": 0.3})
    maker = ToyMaker(request)
    maker.make(0, lambda: 1, lambda *_: None)
    one = maker.make(3, lambda: 1, lambda *_: None)
    two = ToyMaker(request).make(3, lambda: 2 * GROUP_EVENTS, lambda *_: None)
    for name, values in one.arrays.items():
        np.testing.assert_array_equal(values, two.arrays[name][: len(values)], err_msg=name)
    assert one.groups == two.groups[:1]
    assert not one.complete


def test_parts_do_not_depend_on_the_number_of_threads() -> None:
    n_threads, parts = torch.get_num_threads(), []
    for wanted in (1, 2):
        torch.set_num_threads(wanted)
        try:
            parts.append(make_part("antler_ttbar", {"recoil": 20.0})[1])
        finally:
            torch.set_num_threads(n_threads)
    for name, values in parts[0].arrays.items():
        assert values.tobytes() == parts[1].arrays[name].tobytes(), name


def assert_same(one: Events, two: Events) -> None:
    assert torch.equal(one.p4, two.p4)
    assert torch.equal(one.ptmiss, two.ptmiss)
    assert one.partons is not None
    assert two.partons is not None
    assert torch.equal(one.partons, two.partons)
    assert one.provenance == two.provenance


def test_a_sample_is_the_same_for_any_number_of_workers_and_after_a_stop(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "masses": {"A": 1000, "B": (750, 900), "C": 700},
        "seed": 3,
        "settings": {"contamination": 0.2},
        "progress": False,
    }
    n = toys.GROUP_EVENTS * toys.PART_GROUPS + 500  # two parts
    one = simulate("antler", n, workers=1, out=tmp_path / "one", **options)
    assert one.provenance["n_generated"] == n // GROUP_EVENTS * GROUP_EVENTS + GROUP_EVENTS
    small = simulate("antler", 700, workers=1, out=tmp_path / "two", **options)
    assert torch.equal(small.p4, one.p4[:700])
    resumed = simulate("antler", n, workers=2, out=tmp_path / "two", **options)
    assert_same(resumed, one)
    assert_same(load_events(tmp_path / "one"), one)
    assert (
        sum(cell["n_generated"] for cell in one.provenance["cells"])
        == one.provenance["n_generated"]
    )
    assert regeneration_differences(tmp_path / "two", 1) == []
    with pytest.raises(StoreError, match="another simulation.*contamination"):
        simulate("antler", n, out=tmp_path / "one", **options | {"settings": {"contamination": 0}})


def test_a_number_of_collisions_is_rounded_up_to_groups() -> None:
    events = simulate("antler", n_generated=6_000, workers=1, progress=False)
    assert len(events) == events.provenance["n_generated"] == 10_000
    assert events.provenance["cells"][0]["cross_section_fb"] is None


def test_a_toy_needs_neither_pythia_nor_fastjet(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "if __name__ == '__main__':\n"
        "    sys.modules['pythia8mc'] = sys.modules['fastjet'] = None\n"
        "    import massrecon\n"
        "    print(len(massrecon.simulate('antler', 10, workers=1, progress=False)))\n"
    )
    script = tmp_path / "toy.py"
    script.write_text(code, encoding="utf-8")
    # the worker, too: a package that cannot be imported stands first in its path
    for package in ("pythia8mc", "fastjet"):
        (tmp_path / f"{package}.py").write_text("raise ImportError('not here')")
    result = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
    )
    assert result.stdout.strip() == "10", result.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contaminaton": 0.1}, r"Unknown simulation setting 'contaminaton' \(did you mean"),
        ({"contamination": 1.5}, "'contamination': input should be less than or equal to 1"),
        ({"exchanged": "B"}, "'exchanged': 'B' should be seen once on each.*a, b"),
        ({"smearing": {"a": "jet"}}, "'smearing.a': should be a resolution.*b_jet, got 'jet'"),
        ({"smearing": {"a": [[20, 0.1], [10, 0.2]]}}, "'smearing.a': .*pT rising"),
        ({"smearing": {"C": 0.1}}, "'smearing.C': is not seen.*choose from a, b"),
        ({"widths": {"A": -1}}, "'widths.A': should be at least 0 GeV, got -1"),
        ({"widths": {"a": 1.0}}, "'widths.a': only a particle that decays"),
        ({"masses": {"A": 3.0}}, "'masses.A': the parameter 'A' sets it"),
        ({"parton_exponents": [0.0, -1.0]}, "second exponent should be at least 0"),
        ({"multiparton": True}, "Unknown simulation setting 'multiparton'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Request.of("antler", None, 0, settings)


def test_settings_replace_those_of_the_card_and_survive_the_manifest() -> None:
    given = {"widths": {"B": 4.0}, "smearing": {"a": 0.1, "b": "b_jet"}, "masses": {"b": 5.0}}
    request = Request.of("antler", None, 0, given)
    toy = request.settings.phase_space
    assert toy is not None
    assert toy.widths == {"B": 4.0}
    assert toy.smearing == {"a": ((1.0, 0.1),), "b": B_JET_RESOLUTION}
    stored = request.to_dict()
    again = Request.of(request.card.to_dict(), stored["masses"], 0, stored["settings"])
    assert again.to_dict() == stored
    assert not request.differences(stored)
    part = ToyMaker(request).make(0, lambda: 1, lambda *_: None)
    names = request.card.parton_names
    assert (part.arrays["partons"][:, names.index("b_a"), 3] == 5.0).all()
    assert part.arrays["partons"][:, names.index("B_a"), 3].std() > 2.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(pythia={}), "either 'pythia' or 'phase_space': remove one"),
        (changed(masses={}, open_channels=[], targets={}), "the mass of 'A' is missing"),
        (changed(detector={"tagging": True}), "a toy has no detector"),
        (changed(cuts={"btags": 1}), "only knows 'ptmiss_min'"),
        (changed({"exchanged": "C"}), "'C' should be seen once on each of two sides"),
        (changed({"contamination": 0.1, "exchanged": None}), "'contamination' needs to know what"),
    ],
)
def test_a_card_of_a_toy_is_checked(content: dict[str, Any], message: str) -> None:
    with pytest.raises(CardError, match=message):
        load_card(content)


def test_any_decay_can_be_a_toy() -> None:
    content = {
        "name": "mine",
        "title": "three-body decays",
        "beam_energy": 14000.0,
        "decay": "p p > G G, (G > q q N), (G > q q N)",
        "particles": {
            "G": {"pdg": 1000021, "symbol": "g̃"},
            "q": {"pdg": [1, 2], "symbol": "q"},
            "N": {"pdg": 1000022, "symbol": "N"},
        },
        "masses": {"G": {"sets": [1000021], "default": 1500, "range": [500, 3000]}},
        "phase_space": {"masses": {"N": 300.0}, "smearing": {"q": 0.05}},
        "objects": [{"kind": "q", "count": 4, "pt_min": 20.0, "eta_max": 4.0, "minimum": 2}],
        "targets": {"G": "G_a"},
    }
    card, part = make_part(content, masses={"G": [1000, 2000]})
    assert card.slots == ("q1", "q2", "q3", "q4")
    assert card.parton_names == ("G_a", "q1_a", "q2_a", "N_a", "G_b", "q1_b", "q2_b", "N_b")
    assert (part.arrays["partons"][:, 3, 3] == 300.0).all()
    Events.from_arrays(card, {k: v for k, v in part.arrays.items() if k != "block"}).validate()


def test_a_decay_that_closes_is_reported() -> None:
    content = changed()
    del content["open_channels"]
    with pytest.raises(InputError, match="A > a B is closed by 100 GeV at A = 700 GeV"):
        make_part(content, masses={"A": 700.0, "B": 800.0})


@pytest.mark.parametrize(("name", "file"), [("antler", "m2_toy"), ("antler_ttbar", "m2_ttbar")])
def test_visible_masses_agree_with_events_of_another_program(name: str, file: str) -> None:
    folder = os.environ.get("MASSRECON_REFERENCE")
    if folder is None:
        pytest.skip("MASSRECON_REFERENCE does not name the folder of reference files")
    theirs = np.load(Path(folder) / f"{file}.npz")
    right = ~theirs["wrong_pairing"].astype(bool)
    _, part = make_part(name, {"contamination": 0.0}, n=20_000)
    for slot, side in enumerate("ab"):
        pair = theirs[f"visible_upper_{side}"] + theirs[f"visible_lower_{side}"]
        ours = part.arrays["p4"][:, slot] + part.arrays["p4"][:, slot + 2]
        masses = [fv.mass(torch.as_tensor(p4)).numpy() for p4 in (pair[right], ours)]
        assert stats.ks_2samp(*masses).pvalue > P_LOWEST, side
