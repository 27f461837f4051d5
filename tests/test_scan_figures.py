"""Figures of scans: values at their places, seeds averaged, wrong columns named."""

from __future__ import annotations

import numpy as np
import pytest

from massrecon.errors import InputError
from massrecon.visual.scan import scan_curve, scan_map

COLUMNS = {
    "m2": [400, 400, 400, 500, 500, 600],
    "m1": [50.0, 50.0, 100.0, 50.0, 100.0, 50.0],
    "state": ["done"] * 5 + ["failed"],
    "summary.found": [0.2, 0.4, 0.5, 0.6, 0.7, None],
}


def test_map_averages_seeds_and_leaves_gaps() -> None:
    figure = scan_map(COLUMNS, "m2", "m1", "summary.found", "found [%]", 100, {"m1": "m(χ) [GeV]"})
    heat = figure.data[0]
    assert (heat.x, heat.y) == (("400", "500"), ("50", "100"))
    np.testing.assert_allclose(heat.z, [[30, 60], [50, 70]])
    assert heat.hovertext.tolist() == [["30 ± 10<br>2 points", "60<br>1 point"],
                                       ["50<br>1 point", "70<br>1 point"]]  # fmt: skip
    assert heat.text[0][0] == "30<br>±10"
    assert heat.colorbar.title.text == "found [%]"
    assert figure.layout.xaxis.title.text == "m2"
    assert figure.layout.yaxis.title.text == "m(χ) [GeV]"
    assert "5 points, averaged" in figure.layout.meta["caption"]


def test_statistical_errors_of_the_points_are_shown_and_averaged() -> None:
    columns = {**COLUMNS, "summary.error": [0.03, 0.04, 0.05, 0.06, 0.07, None]}
    figure = scan_map(columns, "m2", "m1", "summary.found", "found [%]", 100, error="summary.error")
    hover = [["30 ± 2.5<br>2 points", "60 ± 6<br>1 point"],
             ["50 ± 5<br>1 point", "70 ± 7<br>1 point"]]  # fmt: skip
    assert figure.data[0].hovertext.tolist() == hover
    assert figure.data[0].text[1][1] == "70<br>±7"
    assert figure.layout.meta["caption"].endswith("several, with statistical errors.")
    one = {name: values[2:5] for name, values in columns.items()}
    assert (
        "±5"
        in scan_map(one, "m2", "m1", "summary.found", scale=100, error="summary.error")
        .data[0]
        .text[1][0]
    )
    curve = scan_curve(columns, "m2", "summary.found", by="m1", error="summary.error")
    np.testing.assert_allclose(curve.data[0].error_y.array, [0.025, 0.06])
    with pytest.raises(InputError, match="Unknown column of the scan 'summary.errors'"):
        scan_map(columns, "m2", "m1", "summary.found", error="summary.errors")


def test_curves_by_another_axis() -> None:
    figure = scan_curve(COLUMNS, "m2", "summary.found", by="m1")
    assert [trace.name for trace in figure.data] == ["m1 = 50", "m1 = 100"]
    np.testing.assert_allclose(figure.data[0].x, [400, 500])
    np.testing.assert_allclose(figure.data[0].y, [0.3, 0.6])
    np.testing.assert_allclose(figure.data[0].error_y.array, [0.1, 0])
    alone = scan_curve(COLUMNS, "m2", "summary.found")
    np.testing.assert_allclose(alone.data[0].y, [np.mean([0.2, 0.4, 0.5]), 0.65])


def test_wrong_columns_are_named() -> None:
    with pytest.raises(InputError, match="Unknown column of the scan 'm3'"):
        scan_curve(COLUMNS, "m3", "summary.found")
    with pytest.raises(InputError, match="'state' of the scan holds no numbers"):
        scan_curve(COLUMNS, "m2", "state")
    with pytest.raises(InputError, match="No point of the scan has a result"):
        scan_map({**COLUMNS, "summary.found": [None] * 6}, "m2", "m1", "summary.found")
