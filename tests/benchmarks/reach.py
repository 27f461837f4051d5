"""Which masses would be discovered or excluded at the HL-LHC, with the backgrounds that Pythia has.

Signal and background are counted in bins of a classifier; see ``massrecon.inference.rates``::

    python tests/benchmarks/reach.py --sample PLANE --work FOLDER --record

PLANE holds signal with masses from the plane, for the classifier; yields come from signal at fixed
mass points. FOLDER keeps what is simulated and is shared with ``regions.py``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from pools import BACKGROUNDS, CARD, NAMES, simulated

import massrecon as mr
from massrecon.events.container import Events
from massrecon.inference.background import BackgroundRatio
from massrecon.inference.morphing import DetectorShift, morphed
from massrecon.inference.polynomial import degrees_up_to, least_squares, terms
from massrecon.inference.rates import (
    BinnedBackground,
    Reach,
    YieldMap,
    binned_counts,
    reach,
)
from massrecon.provenance import versions, write_json

RESULTS = Path(__file__).parent / "results" / "reach.json"
UNCERTAINTIES = {"background_wh": 0.1, "background_tth": 0.15, "background_zh": 0.1}
"""Assumed relative uncertainty of each background."""
MISSING = (
    "Wγγ and tt̄γγ and VVV (not in Pythia)",
    "Wγ, γγ and tt̄ with misidentified photons (too few simulated events pass)",
)
EDGES = (-4.0, -3.0, -2.0, -1.0, 0.0)
LUMINOSITY = 3000.0


def signal_in_bins(pool: Events, ratio: BackgroundRatio, grid: torch.Tensor) -> torch.Tensor:
    """Interpolates the expected signal in each bin over the plane, ``(P, B)``."""
    cells = pool.provenance["cells"]
    selected = morphed(pool, DetectorShift(), mr.load_card(CARD))
    assert selected.masses is not None
    points, index = selected.masses.unique(dim=0, return_inverse=True)
    score, one = ratio(selected), torch.ones(len(selected))
    shares = torch.stack(
        [
            binned_counts(score[index == i], one[index == i], EDGES)[0].clamp_min(0.5)
            for i in range(len(points))
        ]
    )
    shares = shares / shares.sum(1, keepdim=True)
    low, high = points.aminmax(dim=0)
    degrees = degrees_up_to(2, 2)
    basis, there = terms(points, low, high, degrees), terms(grid, low, high, degrees)
    logs = [
        there @ least_squares(basis, column.log(), torch.ones_like(column))[0]
        for column in shares.T
    ]
    found = torch.softmax(torch.stack(logs, dim=1), dim=1)
    kept = len(selected) / len(pool)  # of those with softer jets
    return kept * YieldMap.from_cells(NAMES, cells)(grid, LUMINOSITY).unsqueeze(1) * found


def measured(sample: Events, work: Path) -> tuple[Reach, BackgroundRatio]:
    """Trains the classifier and computes the reach."""
    backgrounds = {name: simulated(name, work) for name in BACKGROUNDS}
    yields = {name: e.expected(LUMINOSITY) for name, e in backgrounds.items()}
    totals = {name: float(y.sum()) for name, y in yields.items()}
    some = torch.randperm(len(sample), generator=torch.Generator().manual_seed(1))[:12_000]
    ratio = BackgroundRatio.fit(sample[some], backgrounds, totals, seed=1)
    counts = [binned_counts(ratio.backgrounds[name], yields[name], EDGES) for name in BACKGROUNDS]
    total = torch.stack([sums for sums, _ in counts])
    squares = torch.stack([s for _, s in counts]).sum(0)
    background = BinnedBackground(
        names=tuple(BACKGROUNDS),
        counts=total.clamp_min(0),
        uncertainties=torch.tensor([UNCERTAINTIES[name] for name in BACKGROUNDS]).double(),
        simulated=squares.sqrt() / total.sum(0).clamp_min(1e-9),
    )
    axes = torch.arange(400.0, 651.0, 25.0), torch.arange(50.0, 501.0, 25.0)
    grid = torch.cartesian_prod(*axes)
    grid = grid[grid[:, 0] - grid[:, 1] >= 126.0].double()
    signal = signal_in_bins(simulated("fit", work), ratio, grid)
    symbols = [mr.load_card(CARD).symbol(name) for name in NAMES]
    found = reach(NAMES, grid, signal, background, LUMINOSITY, symbols, MISSING)
    return found, ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--sample", type=Path, required=True, help="signal events of the plane")
    parser.add_argument("--work", type=Path, required=True, help="folder that is kept")
    parser.add_argument("--figure", type=Path, help="HTML file for the figure")
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    found, ratio = measured(mr.load_events(arguments.sample, partial=True), arguments.work)
    for point in ((400.0, 50.0), (500.0, 200.0), (600.0, 200.0), (650.0, 500.0)):
        row = int((found.masses - torch.tensor(point).double()).abs().sum(1).argmin())
        print(f"{point}: {found.yields[row]:.1f} events, discovery {found.discovery[row]:.2f}, "
              f"exclusion {found.exclusion[row]:.2f}")  # fmt: skip
    if arguments.figure is not None:
        from massrecon.visual.reach import reach_over_plane

        reach_over_plane(found).write_html(arguments.figure)
    results = {
        "command": "python tests/benchmarks/reach.py --sample PLANE --work FOLDER --record",
        "seed": {"classifier": 1, **{name: seed for name, (seed, _) in BACKGROUNDS.items()}},
        "separation": ratio.separation,
        "edges_of_log_ratio": list(EDGES),
        "background_in_bins": found.background.counts.tolist(),
        "simulated_uncertainty_in_bins": found.background.simulated.tolist()
        if found.background.simulated is not None
        else None,
        "versions": versions("torch", "scikit-learn"),
        **found.to_dict(),
    }
    write_json(RESULTS if arguments.record else arguments.work / "reach.json", results)


if __name__ == "__main__":
    main()
