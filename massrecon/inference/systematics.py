r"""Systematic uncertainties of a mass measurement, profiled with the masses.

A detector that differs from the simulated one by delta standard deviations of some nuisance
parameter moves the masses that events appear to have. To first order, with the shift S_k(m) [GeV]
for one standard deviation of nuisance k measured on morphed or re-simulated events,

    log L(m, delta) = log L_0(m + sum_k S_k(m) delta_k) - sum_k delta_k^2 / 2,

the last term being the knowledge of delta from elsewhere. Maximising over delta widens the
likelihood along the shifts. Only the sum of the shifts matters, so that the maximum is searched
along the principal axes of C = sum_k S_k S_k^T, at most one for each mass, however many nuisances
there are. For a Gaussian likelihood of covariance V the result is Gaussian with covariance V + C.

The shifts are polynomials in the masses. What events say of delta by themselves (say, by the width
of a resonance) is not used: at the best masses all pulls are zero, at other masses they say which
detector would explain the difference.

References:
    G. Cowan et al., arXiv:1007.1727, section 2 (profile likelihood).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError
from massrecon.inference.massgrid import step_of
from massrecon.inference.polynomial import degrees_up_to, least_squares, terms
from massrecon.inference.pseudo import FARTHEST, refined_maximum

_BLOCKS = 10  # of events, whose spread gives the error of a shift
_EXCLUDED = -1e6  # in place of -inf, which cannot be interpolated
_SMALLEST = 0.5  # shifts of less are not worth a search [GeV]
_SIGMAS, _STEP = 3.0, 0.5  # reach of the search and its largest step, in standard deviations
_MOST = 60  # steps of the search to either side


@dataclass(frozen=True, eq=False, kw_only=True)
class MassShift:
    """By how much a nuisance parameter moves the apparent masses.

    Attributes:
        name: Name of the nuisance parameter.
        sigma: What one standard deviation is, for reports.
        low: Smallest masses that were simulated [GeV], shape ``(M,)``.
        high: Largest.
        degrees: Degrees of the C terms of the polynomial in each mass, shape ``(C, M)``.
        coefficients: Shift of each mass for one standard deviation [GeV], shape ``(M, C)``.
        chi_square: Weighted squared residuals per degree of freedom, shape ``(M,)``.
    """

    name: str
    sigma: str
    low: Tensor
    high: Tensor
    degrees: Tensor
    coefficients: Tensor
    chi_square: Tensor

    @classmethod
    def fit(
        cls,
        name: str,
        sigma: str,
        masses: Tensor,
        slopes: Tensor,
        errors: Tensor,
        degree: int = 1,
    ) -> MassShift:
        """Fits a polynomial to shifts at some mass points.

        Args:
            name: Name of the nuisance parameter.
            sigma: What one standard deviation is, such as ``"2 % of the jet energy"``.
            masses: Mass points [GeV], shape ``(P, M)``.
            slopes: Shift of each mass for one standard deviation [GeV], shape ``(P, M)``, see
                `slope_of`.
            errors: Their standard errors.
            degree: Total degree of the polynomial.

        Raises:
            ShapeError: If the shapes do not fit.
            InputError: If there are too few points.
        """
        if slopes.shape != masses.shape or errors.shape != masses.shape:
            raise ShapeError(
                f"'slopes' and 'errors' should have the shape of 'masses', {tuple(masses.shape)}, "
                f"got {tuple(slopes.shape)} and {tuple(errors.shape)}."
            )
        degrees = degrees_up_to(masses.shape[1], degree)
        if len(masses) < len(degrees):
            raise InputError(
                f"A polynomial of degree {degree} needs {len(degrees)} mass points, got "
                f"{len(masses)}."
            )
        low, high = masses.double().aminmax(dim=0)
        basis = terms(masses.double(), low, high, degrees)
        fits = [
            least_squares(basis, slope.double(), error.double().clamp_min(1e-6))
            for slope, error in zip(slopes.T, errors.T, strict=True)
        ]
        return cls(
            name=name,
            sigma=sigma,
            low=low,
            high=high,
            degrees=degrees,
            coefficients=torch.stack([theta for theta, _ in fits]),
            chi_square=torch.tensor([chi for _, chi in fits]),
        )

    def __call__(self, masses: Tensor) -> Tensor:
        """Returns the shift of one standard deviation at masses ``(G, M)`` [GeV], ``(G, M)``."""
        return terms(masses.double(), self.low, self.high, self.degrees) @ self.coefficients.T

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that `from_dict` reads back."""
        names = ("low", "high", "degrees", "coefficients", "chi_square")
        lists = {name: getattr(self, name).tolist() for name in names}
        return {"name": self.name, "sigma": self.sigma} | lists

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> MassShift:
        """Rebuilds a shift from plain data."""
        numbers = {
            name: torch.tensor(content[name], dtype=torch.float64)
            for name in ("low", "high", "coefficients", "chi_square")
        }
        degrees = torch.tensor(content["degrees"], dtype=torch.int64)
        return cls(name=content["name"], sigma=content["sigma"], degrees=degrees, **numbers)


def slope_of(
    nominal: Tensor,
    shifted: Mapping[float, Tensor],
    axes: Sequence[Tensor],
    inside: Tensor,
) -> tuple[Tensor, Tensor]:
    """Measures how the best masses of many events move with a nuisance parameter.

    The events are cut into ten blocks in their order, the same of the nominal and the shifted
    sample, so that most of their fluctuation cancels; the spread of the blocks gives the error.

    Args:
        nominal: Log-likelihoods of events simulated at one mass point, shape ``(E, G)``.
        shifted: The same of shifted events, by the value of the nuisance parameter in standard
            deviations.
        axes: Evenly rising values of each of M masses [GeV]; the last one is the fastest of G.
        inside: Which points are allowed, shape ``(G,)``.

    Returns:
        Shift of each mass for one standard deviation [GeV], and its error, each ``(M,)``.

    Raises:
        InputError: If there is no shifted sample, or fewer than ten events.
    """
    if not shifted or 0.0 in shifted or min(len(t) for t in (nominal, *shifted.values())) < _BLOCKS:
        raise InputError(
            f"'shifted' should hold samples of {_BLOCKS} or more events by a value that is not 0."
        )
    start = _best_of_blocks(nominal, axes, inside)
    pulls = torch.tensor(list(shifted), dtype=torch.float64)
    moved = torch.stack([_best_of_blocks(t, axes, inside) - start for t in shifted.values()])
    slopes = torch.einsum("d,dbm->bm", pulls, moved) / pulls.square().sum()
    return slopes.mean(0), slopes.std(0) / math.sqrt(_BLOCKS)


def _best_of_blocks(log_ratio: Tensor, axes: Sequence[Tensor], inside: Tensor) -> Tensor:
    """Returns the best masses of ten blocks of events, ``(10, M)`` [GeV]."""
    total = torch.stack(
        [block.double().clamp_min(FARTHEST).sum(0) for block in log_ratio.tensor_split(_BLOCKS)]
    )
    total = total.masked_fill(~inside, -math.inf)
    _, place = refined_maximum(total, [len(axis) for axis in axes])
    start = torch.tensor([float(axis[0]) for axis in axes], dtype=torch.float64)
    step = torch.tensor([step_of(axis) for axis in axes], dtype=torch.float64)
    return start + place.double() * step


@dataclass(frozen=True, eq=False)
class Systematics:
    """All nuisance parameters of a measurement.

    Attributes:
        shifts: What each of them does to the masses.
    """

    shifts: tuple[MassShift, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the nuisance parameters."""
        return tuple(shift.name for shift in self.shifts)

    def impacts(self, mass: Tensor) -> Tensor:
        """Returns by how much each nuisance moves the masses at ``(M,)`` [GeV], ``(K, M)``."""
        return torch.stack([shift(mass.reshape(1, -1))[0] for shift in self.shifts])

    def profiled(self, total: Tensor, axes: Sequence[Tensor]) -> Tensor:
        """Maximises likelihoods over the nuisance parameters, within three standard deviations.

        Args:
            total: log L on the product of the axes, -inf where it is not allowed, ``(T, G)``.
            axes: Evenly rising values of each of M masses [GeV]; the last one is the fastest.

        Returns:
            Profiled log L, shape ``(T, G)``; -inf where `total` is.

        Raises:
            ShapeError: If the shapes do not fit.
        """
        if total.ndim != 2 or total.shape[1] != math.prod(len(axis) for axis in axes):
            raise ShapeError(
                f"'total' should have shape (T, G) with a column for each point of the axes, got "
                f"{tuple(total.shape)}."
            )
        points = torch.cartesian_prod(*(axis.double() for axis in axes)).reshape(-1, len(axes))
        slopes = torch.stack([shift(points) for shift in self.shifts], dim=-1)
        variance, direction = torch.linalg.eigh(slopes @ slopes.transpose(1, 2))
        length = variance.clamp_min(0).sqrt()
        used = (length.amax(0) > _SMALLEST).nonzero()[:, 0].tolist()
        columns = total.T.contiguous().clamp_min(_EXCLUDED)
        best = columns.clone()
        steps = [_search(direction[:, :, k] * length[:, k : k + 1], axes) for k in used]
        for z in itertools.product(*steps):
            offset = torch.zeros_like(points)
            for k, value in zip(used, z, strict=True):
                offset += direction[:, :, k] * length[:, k : k + 1] * value
            penalty = 0.5 * sum(value**2 for value in z)
            best = torch.maximum(best, _moved(columns, axes, points + offset).sub_(penalty))
        return best.T.masked_fill(total == -math.inf, -math.inf)

    def pulls(self, total: Tensor, axes: Sequence[Tensor], mass: Tensor) -> tuple[Tensor, Tensor]:
        """Finds the nuisance parameters that explain a measurement if the masses were known.

        The likelihood is taken as Gaussian, with the mean and covariance that it has on the grid.

        Args:
            total: log L on the product of the axes, not profiled, shape ``(T, G)``.
            axes: Evenly rising values of each of M masses [GeV].
            mass: The masses [GeV], shape ``(M,)``.

        Returns:
            Best values in standard deviations, and their errors, each ``(T, K)``.
        """
        points = torch.cartesian_prod(*(axis.double() for axis in axes)).reshape(-1, len(axes))
        share = torch.softmax(total.double(), dim=1)
        mean = share @ points
        second = torch.einsum("tg,gi,gj->tij", share, points, points)
        covariance = second - mean[:, :, None] * mean[:, None, :]
        slopes = self.impacts(mass).T
        gain = slopes.T @ torch.linalg.inv(covariance + slopes @ slopes.T)
        values = (gain @ (mean - mass.double()).unsqueeze(-1))[..., 0]
        left = torch.eye(len(self.shifts), dtype=torch.float64) - gain @ slopes
        return values, torch.diagonal(left, dim1=1, dim2=2).clamp_min(0).sqrt()

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that `from_dict` reads back."""
        return {"shifts": [shift.to_dict() for shift in self.shifts]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Systematics:
        """Rebuilds nuisance parameters from plain data."""
        return cls(tuple(MassShift.from_dict(shift) for shift in content["shifts"]))


def _search(shift: Tensor, axes: Sequence[Tensor]) -> list[float]:
    """Lists the standard deviations at which to look along a shift ``(G, M)`` [GeV].

    Between two of them no mass moves by more than a cell of its axis, which a likelihood that is
    much narrower than the shift needs.
    """
    cells = max(
        float(column.abs().amax()) / step_of(axis)
        for column, axis in zip(shift.T, axes, strict=True)
    )
    number = math.ceil(_SIGMAS * max(cells, 1 / _STEP))
    return torch.linspace(-_SIGMAS, _SIGMAS, 2 * min(number, _MOST) + 1).tolist()


def _moved(columns: Tensor, axes: Sequence[Tensor], points: Tensor) -> Tensor:
    """Interpolates ``(G, T)`` linearly at one point for each row; -inf beyond the grid."""
    shape = [len(axis) for axis in axes]
    lefts, shares = [], []
    outside = torch.zeros(len(points), dtype=torch.bool)
    for m, axis in enumerate(axes):
        place = (points[:, m] - float(axis[0])) / step_of(axis)
        outside |= (place < -1e-9) | (place > len(axis) - 1 + 1e-9)
        left = place.floor().clamp(0, len(axis) - 2).long()
        lefts.append(left)
        shares.append((place - left).clamp(0, 1).to(columns))
    found = torch.zeros_like(columns)
    for corner in itertools.product((0, 1), repeat=len(axes)):
        index = torch.zeros(len(points), dtype=torch.int64)
        weight = columns.new_ones(len(points))
        for left, share, step, size in zip(lefts, shares, corner, shape, strict=True):
            index = index * size + left + step
            weight = weight * (share if step else 1 - share)
        found.addcmul_(columns[index], weight.unsqueeze(1))
    return found.masked_fill_(outside.unsqueeze(1), -math.inf)
