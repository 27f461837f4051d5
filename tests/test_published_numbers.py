"""What README quotes is what the benchmarks recorded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tests" / "benchmarks" / "results"
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def recorded(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def quoted(pattern: str) -> tuple[float, ...]:
    """Finds numbers in README; the pattern has a group for each."""
    found = re.search(pattern, README)
    assert found is not None, f"README does not say '{pattern}'"
    return tuple(float(number) for number in found.groups())


def at(points: list[dict[str, Any]], n_events: int, method: str) -> dict[str, Any]:
    (point,) = (p for p in points if p["n_events"] == n_events and p["method"] == method)
    return point


def test_every_result_says_how_it_was_made() -> None:
    for path in sorted(RESULTS.glob("*.json")):
        text = path.read_text(encoding="utf-8")
        assert '"command"' in text, path.name
        assert '"seed"' in text or "seed=" in text, path.name
        assert '"massrecon"' in text, path.name


def test_resolution_with_ten_events() -> None:
    points = recorded("combination")["physics"]["pools"]["ev600_200"]["curve"]["points"]
    ten = at(points, 10, "combined")["resolution"]
    said = quoted(
        r"give m\(χ̃₂⁰\) within ([\d.]+) ± ([\d.]+) and m\(χ̃₁⁰\) within ([\d.]+) ± ([\d.]+) GeV"
    )
    found = [*ten["chi20"], *ten["chi10"]]
    assert said == pytest.approx([round(value, 1) for value in found])
    peak = next(p for p in points if p["n_events"] == 10 and p["method"] != "combined")
    said = quoted(r"peak of their summed posteriors ([\d.]+) and ([\d.]+) GeV")
    assert said == pytest.approx([round(peak["resolution"][n][0], 1) for n in ("chi20", "chi10")])
    said = quoted(
        r"hold the truth in ([\d.]+) ± ([\d.]+) % for 10 events and in ([\d.]+) ± ([\d.]+) % for "
        r"100, those of 95 % in ([\d.]+) ± ([\d.]+) and ([\d.]+) ± ([\d.]+) %"
    )
    found = [
        100 * v
        for level in ("0.68", "0.95")
        for n in (10, 100)
        for v in at(points, n, "combined")["coverage"][level]
    ]
    assert said == pytest.approx(found, abs=0.0501)


def test_several_events_with_the_kinematic_mixture() -> None:
    points = recorded("combination")["physics"]["pools"]["ev600_200"]["mixture"]["points"]
    number = r"([\d.]+) ± ([\d.]+)"
    said = quoted(rf"needs no training, comes within {number} and {number} GeV")
    ten = at(points, 10, "combined")
    assert said == pytest.approx(
        [*ten["resolution"]["chi20"], *ten["resolution"]["chi10"]], abs=0.0501
    )
    said = quoted(r"in (\d+) % for ten events and in (\d+) % for a hundred")
    held = [at(points, n, "combined")["coverage"]["0.68"][0] for n in (10, 100)]
    assert said == pytest.approx([100 * v for v in held], abs=0.501)


def test_coverage_of_neyman_regions() -> None:
    coverage = recorded("coverage")["coverage"]
    kinds = ("signal", "jet_scale", "background", "background_and_jet_scale")
    cells = [coverage[kind][n] for kind in kinds for n in ("1", "5", "10", "30")]
    for level, pattern in (
        ("0.68", r"hold the truth in (\d+)–(\d+) % \(claimed 68 %\)"),
        ("0.95", r"and (\d+)–(\d+) % \(95 %\) on average"),
    ):
        rates = [100 * cell[level]["mean"] for cell in cells]
        assert quoted(pattern) == (round(min(rates)), round(max(rates)))
    said = quoted(r"single points range from (\d+) to (\d+) % and from (\d+) to (\d+) %")
    ends = [
        100 * end(cell[level][which] for cell in cells)
        for level in ("0.68", "0.95")
        for which, end in (("lowest", min), ("highest", max))
    ]
    assert said == pytest.approx(ends, abs=0.501)


def test_surrogate() -> None:
    found = recorded("surrogate")
    speed = found["speed_ratio"]
    said = quoted(r"draws new ones, at (\d+) \((\d+)–(\d+)\) times")
    assert said == tuple(round(speed[name]) for name in ("median", "least", "largest"))
    kinematics, derived = (
        found["auc"][name] for name in ("object kinematics", "with derived quantities")
    )
    said = quoted(r"AUC of ([\d.]+) ± ([\d.]+) \(([\d.]+) with derived quantities; 18,000 training")
    expected = (kinematics["value"], kinematics["error"], derived["value"])
    assert said == pytest.approx(expected, abs=5.1e-4)
    assert found["n_train"] == 18_000


def test_reach() -> None:
    reach = recorded("reach")
    said = quoted(r"reaches ([\d.]+) σ at \(400, 50\) and ([\d.]+) σ at \(600, 200\) GeV")
    found = [reach["discovery"][reach["masses"].index(m)] for m in ([400.0, 50.0], [600.0, 200.0])]
    assert said == pytest.approx([round(value, 1) for value in found])


def test_plane() -> None:
    model = recorded("reconstruction")["plane"]["models"]["cascade"]
    said = quoted(
        r"m\(χ̃₂⁰\) within 30 GeV in ([\d.]+) ± ([\d.]+) and m\(χ̃₁⁰\) in ([\d.]+) ± ([\d.]+) %"
    )
    cells = [model["efficiency"][mass]["window"]["30"] for mass in ("chi20", "chi10")]
    found = [100 * cell[key] for cell in cells for key in ("value", "error")]
    assert said == pytest.approx(found, abs=0.0501)
    said = quoted(r"\(one draw ([\d.]+) and ([\d.]+) %\); 68 % intervals")
    found = [100 * model["efficiency"][m]["draw"]["30"]["value"] for m in ("chi20", "chi10")]
    assert said == pytest.approx(found, abs=0.0501)
    said = quoted(r"hold the truth in ([\d.]+) ± ([\d.]+) and ([\d.]+) ± ([\d.]+) %\. A classifier")
    cells = [model["coverage"][mass]["0.68"] for mass in ("chi20", "chi10")]
    found = [100 * cell[key] for cell in cells for key in ("value", "error")]
    assert said == pytest.approx(found, abs=0.0501)
    c2st = model["c2st_momenta"]
    assert quoted(r"C2ST ([\d.]+) ± ([\d.]+)") == pytest.approx(
        (c2st["value"], c2st["error"]), abs=0.00051
    )


def test_plane_against_the_published_network() -> None:
    plane = recorded("reconstruction")["plane"]
    model = plane["models"]["barman2025"]
    number = r"([\d.]+) ± ([\d.]+)"
    for estimator, pattern in (("window", "with its window"), ("draw", "with one draw")):
        said = quoted(rf"{number} and {number} % {pattern}")
        cells = [model["efficiency"][mass][estimator]["30"] for mass in ("chi20", "chi10")]
        found = [100 * cell[key] for cell in cells for key in ("value", "error")]
        assert said == pytest.approx(found, abs=0.0501)
    gains = plane["differences"]["barman2025"]
    said = quoted(rf"better by {number} and {number} points, window")
    found = [v for mass in ("chi20", "chi10") for v in gains[mass]["window less window"]]
    assert said == pytest.approx(found, abs=0.0501)
    said = quoted(rf"and by {number} and {number} points against its single draw")
    found = [v for mass in ("chi20", "chi10") for v in gains[mass]["window less draw"]]
    assert said == pytest.approx(found, abs=0.0501)


def test_plane_with_fewer_events() -> None:
    models = recorded("reconstruction")["plane_152k"]["models"]
    said = quoted(r"the windows found ([\d.]+) and ([\d.]+) % against ([\d.]+) and ([\d.]+) %")
    found = [
        100 * models[name]["efficiency"][mass]["window"]["30"]["value"]
        for name in ("cascade", "barman2025") for mass in ("chi20", "chi10")
    ]  # fmt: skip
    assert said == pytest.approx(found, abs=0.0501)


def test_ceilings_of_the_plane() -> None:
    models = recorded("reconstruction")["plane_ceilings"]["models"]
    said = quoted(
        r"each jet comes, .* finds ([\d.]+) and ([\d.]+) %, where it finds ([\d.]+) and ([\d.]+) % "
        r"without; told the neutrino as well, ([\d.]+) and ([\d.]+) %"
    )
    found = [
        100 * models[f"cascade:masses_alone{told}"]["efficiency"][mass]["window"]["30"]["value"]
        for told in ("+given_origins", "", "+given_both") for mass in ("chi20", "chi10")
    ]  # fmt: skip
    assert said == pytest.approx(found, abs=0.0501)


def test_masses_with_background() -> None:
    found = recorded("with_background")
    rates, share = (found["methods"][name] for name in ("expected rates", "unknown share"))
    number = r"([\d.]+) ± ([\d.]+)"
    said = quoted(rf"still give m\(χ̃₂⁰\) within {number} and m\(χ̃₁⁰\) within {number} GeV")
    widths = [rates["resolution"], rates["resolution_error"]]
    assert said == pytest.approx([widths[i][j] for j in (0, 1) for i in (0, 1)], abs=0.0501)
    said = quoted(rf"regions of 68 and 95 % hold the truth in {number} and {number} %\. With an")
    own = [
        rates[key][level] for level in ("0.68", "0.95") for key in ("coverage", "coverage_error")
    ]
    assert said == pytest.approx([100 * value for value in own], abs=0.0501)
    said = quoted(r"comes out within ([\d.]+) GeV, m\(χ̃₂⁰\) often far too low \(68 % within (\d+)")
    assert said == pytest.approx([share["resolution"][1], share["resolution"][0]], abs=0.501)


def test_line_and_second_process() -> None:
    found = recorded("reconstruction")
    number = r"([\d.]+) ± ([\d.]+)"
    said = quoted(
        rf"`cascade` finds m\(χ̃₁⁰\) within 30 GeV in {number} % with its window and `barman2025` "
        rf"in {number} %: on the same events {number} points between the windows and {number} "
    )
    line = found["line"]
    cells = [line["models"][name]["efficiency"]["chi10"]["window"]["30"]
             for name in ("cascade", "barman2025")]  # fmt: skip
    gains = line["differences"]["barman2025"]["chi10"]
    numbers = [100 * cell[key] for cell in cells for key in ("value", "error")]
    numbers += [*gains["window less window"], *gains["window less draw"]]
    assert said == pytest.approx(numbers, abs=0.0501)
    sure = line["models"]["cascade"]["self_consistency"]["chi10"]["30"]
    said = quoted(rf"it predicts {number} %\.")
    assert said == pytest.approx(
        [100 * sure[k] for k in ("predicted", "predicted_error")], abs=0.06
    )
    said = quoted(rf"four minutes: {number} and {number} % within 30 GeV")
    models = found["four_lepton"]["models"].values()
    cells = [model["efficiency"]["chi10"]["window"]["30"] for model in models]
    assert said == pytest.approx(
        [100 * cell[key] for cell in cells for key in ("value", "error")], abs=0.0501
    )
    told = recorded("ceilings")["wino_lle"]["told"]
    said = quoted(
        r"told both finds (\d+) %, one that is told the pairing of the leptons alone (\d+) %"
    )
    cells = [told[name]["means"]["30"]["chi10"][0] for name in ("both", "origins")]
    assert said == pytest.approx([100 * cell for cell in cells], abs=0.501)


def test_jets_that_are_off_go_unnoticed() -> None:
    points = recorded("generalisation")["points"]
    shifts = [points[name]["numbers"]["100"] for name in ("jet_scale_up", "jet_scale_down")]
    (percent,) = quoted(r"jets that are (\d+) % off go unnoticed even in 100 events")
    assert percent == 3
    assert max(shift["power"][0] - 2 * shift["power"][1] for shift in shifts) < 0.05
    (most,) = quoted(r"while the masses move by up to (\d+) GeV")
    off = [abs(bias[0]) for shift in shifts for bias in shift["bias"].values()]
    assert most == pytest.approx(max(off), abs=1)
