"""Lines of equal value on a grid, as polygons: small in a figure and safe in an animation."""

from __future__ import annotations

import numpy as np

Line = tuple[np.ndarray, np.ndarray]
"""x and y of a closed line; the last point is the first."""

# the edges of a cell, from its lower left corner: (row step, column step, whether it runs up)
_BOTTOM, _RIGHT, _TOP, _LEFT = (0, 0, 0), (0, 1, 1), (1, 0, 0), (0, 0, 1)
# which edges are joined where the corners (lower left, lower right, upper right, upper left) are in
_JOINED = {
    1: ((_LEFT, _BOTTOM),), 2: ((_BOTTOM, _RIGHT),), 3: ((_LEFT, _RIGHT),),
    4: ((_RIGHT, _TOP),), 5: ((_LEFT, _BOTTOM), (_RIGHT, _TOP)), 6: ((_BOTTOM, _TOP),),
    7: ((_LEFT, _TOP),), 8: ((_TOP, _LEFT),), 9: ((_BOTTOM, _TOP),),
    10: ((_BOTTOM, _RIGHT), (_TOP, _LEFT)), 11: ((_RIGHT, _TOP),), 12: ((_LEFT, _RIGHT),),
    13: ((_BOTTOM, _RIGHT),), 14: ((_LEFT, _BOTTOM),),
}  # fmt: skip

_Edge = tuple[int, int, int]


def contour_lines(x: np.ndarray, y: np.ndarray, values: np.ndarray, level: float) -> list[Line]:
    """Finds the lines around where values are at most a level, by marching squares.

    Regions that reach the end of the grid are closed along it.

    Args:
        x: Rising coordinates across, shape ``(X,)``.
        y: Rising coordinates up, shape ``(Y,)``.
        values: Finite values, shape ``(Y, X)``.
        level: The level.
    """
    x, y = _padded(x), _padded(y)
    above = np.pad(values - level, 1, constant_values=1e-9 + abs(float(values.max()) - level))
    edges = _joined_edges(above <= 0)
    lines = []
    while edges:
        start = next(iter(edges))
        walk, before, here = [start], None, start
        while True:
            ways = edges.pop(here)
            onward = ways[0] if ways[0] != before or len(set(ways)) == 1 else ways[1]
            before, here = here, onward
            if here not in edges:
                break
            walk.append(here)
        points = np.array([_place(edge, x, y, above) for edge in [*walk, start]])
        lines.append((points[:, 0], points[:, 1]))
    return lines


def _joined_edges(inside: np.ndarray) -> dict[_Edge, list[_Edge]]:
    """Lists for each edge that a line crosses the two edges where it goes on."""
    code = (
        inside[:-1, :-1] + 2 * inside[:-1, 1:] + 4 * inside[1:, 1:] + 8 * inside[1:, :-1]
    ).astype(int)
    edges: dict[_Edge, list[_Edge]] = {}
    for row, column in np.argwhere((code > 0) & (code < 15)).tolist():
        for ends in _JOINED[int(code[row, column])]:
            one, two = ((row + r, column + c, up) for r, c, up in ends)
            edges.setdefault(one, []).append(two)
            edges.setdefault(two, []).append(one)
    return edges


def _place(edge: _Edge, x: np.ndarray, y: np.ndarray, above: np.ndarray) -> tuple[float, float]:
    """Interpolates where the level is on an edge of the grid."""
    row, column, up = edge
    first, second = above[row, column], above[row + up, column + 1 - up]
    share = first / (first - second)
    if up:
        return float(x[column]), float(y[row] + share * (y[row + 1] - y[row]))
    return float(x[column] + share * (x[column + 1] - x[column])), float(y[row])


def _padded(axis: np.ndarray) -> np.ndarray:
    """Adds half a step at both ends."""
    return np.concatenate(
        [[axis[0] - (axis[1] - axis[0]) / 2], axis, [axis[-1] + (axis[-1] - axis[-2]) / 2]]
    )
