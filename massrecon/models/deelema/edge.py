r"""The solvability edge: where the smallest masses that solve an event stop.

Let x be the smallest mass at which an event can be solved, for the best of its assignments. Without
resolution and width x never exceeds the true mass e. Near it the density is modelled as

    f(x) = (1 - b) [g * N(0, s)](x) + b U(x),      g(y) = sum_k w_k (h + (1 - h) B_k(t)),
    t = (e - y) / (e - low) > 0,

with Bernstein polynomials B_k and a share h of constant density, so that it ends in a step, without
which the edge could not be told from the resolution; a flat background U; and a Gaussian of width
s^2 = s_i^2 + w^2 from the resolution s_i of each event and a common width w, which is fitted. All
integrals follow from

    I_0 = Phi(z),  I_1 = s (z Phi + phi),  I_(k+1) = z s I_k + k s^2 I_(k-1),     z = (e - x) / s.

An edge without resolution and width is sharp. It is taken from the largest values alone, with a
density (e - x)^p, and both e and p are integrated over.

The interval comes from a parametric bootstrap: samples are drawn from the fit and fitted again. For
sharp edges events drawn again would not do, for no sample has a value above the largest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from massrecon.errors import InputError

_DEGREE = 2
_STEP = 0.4
_PRECISE = 0.04
_N_PRECISE = 300
_MIN_EVENTS = 50
_BELOW, _ABOVE = 0.25, 0.2
_ROUNDS = 4
_STEPS = 12
_EVALUATIONS = 60
_REFIT_EVALUATIONS = 40
_WIDEST = 0.05
_SHARP = 20.0
"""An edge is sharp if fewer values than this are expected within its width."""

_TAIL = (100, 300)
_POWERS = np.linspace(0.0, 1.0, 11)


@dataclass(frozen=True, kw_only=True)
class EdgeFit:
    """A fitted edge of N values.

    Attributes:
        value: The edge [GeV].
        width: Common Gaussian width w beyond the resolution [GeV]; 0 for a sharp edge.
        background: Share of values in the fitted range that the edge does not bound.
        weights: Weights of the Bernstein polynomials.
        low: Start of the fitted range [GeV].
        high: End of the fitted range [GeV].
        n_events: Values in the fitted range.
        n_tail: Largest values that a sharp edge is taken from; 0 for a smooth one.
        power: Power with which the density vanishes at a sharp edge.
    """

    value: float
    width: float
    background: float
    weights: tuple[float, ...]
    low: float
    high: float
    n_events: int
    n_tail: int = 0
    power: float = 0.0

    @property
    def sharp(self) -> bool:
        """Whether the density ends abruptly."""
        return self.width == 0.0


def fit_edge(values: Tensor, errors: Tensor | None = None, n_max: int = 5000) -> EdgeFit:
    """Fits the upper edge of values, each with a resolution of its own.

    Args:
        values: Smallest masses [GeV], shape ``(N,)``; those that are not finite are left out.
        errors: Their resolutions [GeV], shape ``(N,)``; None for none.
        n_max: Most values that are used: those with the best resolution.

    Raises:
        InputError: If fewer than 50 values lie near the edge.
    """
    x = values.detach().cpu().double()
    s = torch.zeros_like(x) if errors is None else errors.detach().cpu().double()
    good = x.isfinite() & s.isfinite()
    x, s = x[good], s[good]
    if len(x) < _MIN_EVENTS:
        raise InputError(f"An edge needs at least {_MIN_EVENTS} values, got {len(x)}: pass more.")
    edge = _first_guess(x, s)
    fit = _Range.around(edge, x, s, n_max).fit(edge, (1.0, 0.2))
    for _ in range(_ROUNDS - 1):
        if abs(fit.value - edge) < 1e-3 * edge:
            break
        edge = fit.value
        fit = _Range.around(edge, x, s, n_max).fit(edge, (0.4,))
    return fit


def _first_guess(x: Tensor, s: Tensor) -> float:
    """Finds about where the density of the best measured values falls fastest."""
    best = x[s <= s.quantile(0.2)] if len(x) > 250 else x
    low, high = float(best.quantile(0.3)), float(best.quantile(0.995))
    grid = torch.linspace(low, high, 60, dtype=torch.float64)
    reach = 0.06 * high
    inside = (best > grid[:, None] - reach) & (best <= grid[:, None])
    beyond = (best > grid[:, None]) & (best <= grid[:, None] + reach)
    below, above = inside.sum(1).double(), beyond.sum(1).double()
    drop = (below - above) / (below + above + 10.0).sqrt()
    return float(grid[drop.argmax()])


@dataclass(frozen=True)
class _Range:
    """Values near the edge and their resolutions, each ``(N,)``, between `low` and `high`."""

    x: Tensor
    s: Tensor
    low: float
    high: float

    @classmethod
    def around(cls, edge: float, x: Tensor, s: Tensor, n_max: int) -> _Range:
        low, high = (1 - _BELOW) * edge, (1 + _ABOVE) * edge
        low = max(low, float(x[x < edge].median()))
        near = (x > low) & (x < high)
        x, s = x[near], s[near]
        if len(x) < _MIN_EVENTS:
            raise InputError(
                f"Only {len(x)} values lie between {low:.0f} and {high:.0f} GeV, near the edge: "
                "pass more events."
            )
        if len(x) > n_max:
            order = (x - edge).abs().argsort()[:n_max]
            if float(s.max()) == 0.0:
                low = float(x[order].min()) - 1e-9 * edge
                x, s = x[order], s[order]
        if float(s.max()) > 0.0:
            n_good = int((s <= _PRECISE * edge).sum())
            order = s.argsort()[: min(max(n_good, _N_PRECISE), n_max)]
            x, s = x[order], s[order]
        return cls(x, s, low, high)

    def fit(self, edge: float, widths: tuple[float, ...]) -> EdgeFit:
        """Finds the edge, starting from some widths relative to the resolution."""
        spread = max(float(self.s.median()), 0.1 * (edge - self.low))
        model = _Likelihood(self)
        found = max(
            (model.maximise(edge, width * spread, _EVALUATIONS) for width in widths),
            key=lambda f: f[0],
        )
        _, value, width, shares = found
        weights = tuple((shares[:-1] / shares[:-1].sum()).tolist())
        fit = EdgeFit(
            value=value, width=width, background=float(shares[-1]), weights=weights,
            low=self.low, high=self.high, n_events=len(self.x),
        )  # fmt: skip
        return self._sharpened(fit)

    def _sharpened(self, fit: EdgeFit) -> EdgeFit:
        """Returns the fit of a sharp edge if it is one, else the fit as it is."""
        n_within = len(self.x) * fit.width / (fit.value - self.low)
        bounded = self.x[self.x <= fit.value + 3 * fit.width].sort().values
        if float(self.s.max()) > 0.0 or n_within > _SHARP or len(bounded) < _MIN_EVENTS:
            return fit
        n_tail = min(max(len(bounded) // 3, _TAIL[0]), _TAIL[1], len(bounded) - 1)
        value, power = _tail_edge(bounded[-n_tail - 1 :].numpy())
        return replace(fit, value=value, width=0.0, n_tail=n_tail, power=power)

    def refit(self, fit: EdgeFit) -> float:
        """Finds the smooth edge of a sample like the one of `fit`, starting from it."""
        width = max(fit.width, 0.1 * float(self.s.median()))
        signal = (1 - fit.background) * torch.tensor(fit.weights, dtype=torch.float64)
        shares = torch.cat([signal, torch.tensor([fit.background], dtype=torch.float64)])
        return _Likelihood(self).maximise(fit.value, width, _REFIT_EVALUATIONS, shares)[1]


def _tail_edge(x: np.ndarray) -> tuple[float, float]:
    """Finds a sharp edge from the largest values, ascending, above the first of them.

    With t the distance to the edge the density is t^p, p between 0 and 1; both are integrated over
    with flat priors. Returns the median edge and the mean power.
    """
    low, top, n = x[0], x[-1], len(x) - 1
    spacing = (top - low) / n
    gaps = spacing * np.geomspace(1e-3, 3.0 * math.sqrt(n), 120)
    t = (top + gaps - x[1:, None]) / (top + gaps - low)
    logs = np.log(t).sum(0)
    powers = _POWERS[:, None]
    log_density = n * np.log1p(powers) + powers * logs - n * np.log(top + gaps - low)
    density = np.exp(log_density - log_density.max()) * np.gradient(gaps)
    steps = density.sum(0).cumsum()
    power = float((density.sum(1) * _POWERS).sum() / density.sum())
    return float(top + np.interp(0.5 * steps[-1], steps, gaps)), power


def bootstrap_edge(
    fit: EdgeFit, values: Tensor, errors: Tensor, n_replicas: int = 100, seed: int = 0
) -> Tensor:
    """Draws samples from a fit and fits them again.

    Args:
        fit: The fit of `values`.
        values: As in `fit_edge`.
        errors: As in `fit_edge`.
        n_replicas: Number of samples.
        seed: Their seed.

    Returns:
        Their edges [GeV], shape ``(R,)``.
    """
    rng = np.random.default_rng(seed)
    x, s = values.detach().cpu().double(), errors.detach().cpu().double()
    if fit.sharp:
        bounded = x[x.isfinite() & (x <= fit.value)]
        low = float(bounded.topk(fit.n_tail + 1).values[-1])
        return torch.tensor([_sharp_replica(fit, low, rng) for _ in range(n_replicas)]).double()
    good = x.isfinite() & s.isfinite() & (x > fit.low) & (x < fit.high)
    resolutions = s[good].sort().values[: fit.n_events].numpy()
    edges = []
    for _ in range(n_replicas):
        drawn, spread = _draw(fit, resolutions, rng)
        sample = _Range(torch.as_tensor(drawn), torch.as_tensor(spread), fit.low, fit.high)
        edges.append(sample.refit(fit))
    return torch.tensor(edges, dtype=torch.float64)


def _sharp_replica(fit: EdgeFit, low: float, rng: np.random.Generator) -> float:
    """Draws the largest values of a sharp edge and finds it again."""
    t = rng.random(fit.n_tail) ** (1 / (1 + fit.power))
    drawn = np.sort(fit.value - t * (fit.value - low))
    return _tail_edge(np.concatenate([[low], drawn]))[0]


def _draw(
    fit: EdgeFit, resolutions: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws values of a fit with resolutions, each ``(n_events,)``."""
    n = fit.n_events
    degree = rng.choice(_DEGREE + 1, n, p=np.array(fit.weights) / np.sum(fit.weights))
    tau = np.where(rng.random(n) < _STEP, rng.random(n), rng.beta(degree + 1, _DEGREE + 1 - degree))
    spread = rng.choice(resolutions, n)
    x = fit.value - tau * (fit.value - fit.low)
    x = x + np.hypot(spread, fit.width) * rng.standard_normal(n)
    x = np.where(x < fit.low, 2 * fit.low - x, x)
    flat = rng.uniform(fit.low, fit.high, n)
    return np.where(rng.random(n) < fit.background, flat, x).clip(fit.low, fit.high), spread


def _even_shares() -> Tensor:
    return torch.full((_DEGREE + 2,), 1 / (_DEGREE + 2), dtype=torch.float64)


class _Likelihood:
    """The likelihood of values in a range."""

    def __init__(self, data: _Range) -> None:
        self.data = data
        self.flat = torch.full_like(data.x, 1 / (data.high - data.low))
        self.equal = float(data.s.min()) == float(data.s.max())

    def components(self, edge: float, width: float) -> Tensor:
        """Computes the densities of the components, shape ``(degree + 2, N)``."""
        s = (self.data.s.square() + width**2).sqrt()
        span = edge - self.data.low
        here = _moments(edge - self.data.x, s, _DEGREE + 1)
        # where all resolutions are equal, so are the norms
        each = s[:1] if self.equal else s
        low = _moments(torch.full_like(each, span), each, _DEGREE + 2)
        high = _moments(torch.full_like(each, edge - self.data.high), each, _DEGREE + 2)
        rows = []
        for terms in _BERNSTEIN:
            top, norm = torch.zeros_like(s), torch.zeros_like(each)
            for k, factor in terms:
                top = top + factor * here[k] / span**k
                norm = norm + factor * (low[k + 1] - high[k + 1]) / ((k + 1) * span**k)
            rows.append((top / norm.clamp_min(1e-12)).clamp_min(0.0))
        return torch.stack([*rows, self.flat])

    def shares(self, edge: float, width: float, start: Tensor) -> tuple[float, Tensor]:
        """Climbs to the most likely shares of the components: log-likelihood and shares."""
        densities = self.components(edge, width)
        shares = start
        for _ in range(_STEPS):
            parts = shares[:, None] * densities
            shares = (parts / parts.sum(0).clamp_min(1e-300)).mean(1)
        density = (shares[:, None] * densities).sum(0)
        return float(density.clamp_min(1e-300).log().mean()), shares

    def maximise(
        self, edge: float, width: float, evaluations: int, shares: Tensor | None = None
    ) -> tuple[float, float, float, Tensor]:
        """Climbs to the maximum: log-likelihood, edge, width and shares of the components."""
        start = _even_shares() if shares is None else shares
        best = [-math.inf, edge, width, start]

        def loss(theta: np.ndarray) -> float:
            at, w = edge + width * float(theta[0]), width * math.exp(float(theta[1]))
            if not self.data.low < at < self.data.high or w > _WIDEST * edge:
                return math.inf
            value, found = self.shares(at, w, 0.98 * best[3] + 0.02 / (_DEGREE + 2))
            if value > best[0]:
                best[:] = [value, at, w, found]
            return -value

        step = 1.0 if shares is None else 0.4
        simplex = step * np.array([[-0.3, 0.3], [0.7, 0.3], [-0.3, -0.7]])
        minimize(
            loss, simplex[0], method="Nelder-Mead",
            options={
                "initial_simplex": simplex, "maxfev": evaluations, "fatol": 1e-6, "xatol": 1e-3,
            },
        )  # fmt: skip
        return tuple(best)


def _bernstein() -> list[list[tuple[int, float]]]:
    """Lists, for each polynomial of the degree, powers of t with their factors."""
    n, found = _DEGREE, []
    for j in range(n + 1):
        scale = (1 - _STEP) * (n + 1) * math.comb(n, j)
        terms = [(j + i, (-1) ** i * math.comb(n - j, i) * scale) for i in range(n - j + 1)]
        found.append([(0, _STEP), *terms])
    return found


_BERNSTEIN = _bernstein()


def _moments(d: Tensor, s: Tensor, highest: int) -> list[Tensor]:
    """Computes I_k for k up to `highest`, at distances d below the edge, each ``(N,)``."""
    s = s.clamp_min(1e-9)
    z = (d / s).clamp(-30.0, 1e9)
    phi = torch.exp(-0.5 * z.clamp_max(40.0).square()) / math.sqrt(2 * math.pi)
    found = [torch.special.ndtr(z), s * (z * torch.special.ndtr(z) + phi)]
    for k in range(1, highest):
        found.append(z * s * found[k] + k * s.square() * found[k - 1])
    return found
