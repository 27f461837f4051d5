r"""Unfolding: the distribution of a true quantity from the posteriors of many events.

A network that is trained on events with the prior pi_0(x) draws from p_0(x | y), proportional to
p(y | x) pi_0(x). The mean of the posteriors of the measured events,

    u_0(x) = < p_0(x | y) >_y,

is their unfolded distribution. Where they follow another distribution than pi_0, it is pulled
towards pi_0: the model dependence. The remedy is to take u_0 as the next prior. Since the prior
is a factor of the posterior, this needs no new training: the draws of each event get the weights
pi_(k+1)(x) / pi_0(x). In bins of x, with the shares P_jb of the draws of event j,

    pi_(k+1)(b) = < P_jb r_b / sum_b' P_jb' r_b' >_j,    r_b = pi_k(b) / pi_0(b),

which is expectation maximisation for the distribution that generated the events. The weights r of
the training events, `Unfolded.ratio`, are also what a new training would start from.

At once, the mean keeps about the share of its bias that a single event leaves open: 1 - rho^2, with
rho^2 the part of the variance of x that the events explain (`information`). Iterations remove it,
but beyond a point they only follow fluctuations and the imperfections of the network. When to stop
is measured: simulated events that no network was trained on, with the weights pi_k / pi_0, must
look like the measured ones where both can be seen, in their mean posterior. `Unfolded.stop` is the
first iteration after which the chi squared of this comparison falls by less than one. Where single
events say little (rho^2 below about one half, as for the mass of a particle that decays to jets),
different priors look alike in this comparison, and it cannot tell how much of the bias is left.

References:
    G. D'Agostini, Nucl. Instrum. Meth. A 362 (1995) 487: iterated Bayesian unfolding.
    A. Andreassen et al., arXiv:1911.09107 (OmniFold); M. Backes et al., arXiv:2212.08674: iterated
    generative unfolding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.inference.statistics import effective_size
from massrecon.inference.twosample import bin_shares
from massrecon.models.quantities import quantity_label, quantity_names, quantity_values


@dataclass(frozen=True, eq=False)
class Unfolded:
    """The distribution of a true quantity after 0, 1, ... K iterations.

    Attributes:
        edges: Edges of the B bins, shape ``(B + 1,)``; the outer bins hold what is beyond.
        prior: Shares of the training events, shape ``(B,)``.
        share: Unfolded shares, shape ``(K + 1, B)``; each row adds up to one.
        covariance: Their statistical covariance, shape ``(K + 1, B, B)``.
        folded: chi squared, with B - 1 degrees of freedom, of measured events against simulated
            ones with the weights of each iteration, ``(K + 1,)``; None without such events.
    """

    edges: Tensor
    prior: Tensor
    share: Tensor
    covariance: Tensor
    folded: Tensor | None = None

    @property
    def error(self) -> Tensor:
        """Standard errors of `share`, shape ``(K + 1, B)``."""
        return self.covariance.diagonal(dim1=1, dim2=2).clamp_min(0.0).sqrt()

    @property
    def centres(self) -> Tensor:
        """Centres of the bins, shape ``(B,)``."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    @property
    def stop(self) -> int:
        """The iteration to stop at: the next one lowers `folded` by less than one.

        Raises:
            InputError: If there were no simulated events to compare with.
        """
        if self.folded is None:
            raise InputError("To know when to stop, pass draws of simulated events to unfold().")
        falls = (-self.folded.diff()).tolist()
        return next((k for k, fall in enumerate(falls) if fall < 1.0), len(falls))

    def mean(self, iteration: int) -> tuple[float, float]:
        """Returns the mean over the bins, each at its centre, and its standard error."""
        error = self.centres @ self.covariance[iteration] @ self.centres
        return float(self.share[iteration] @ self.centres), float(error.clamp_min(0.0).sqrt())

    def ratio(self, values: Tensor, iteration: int = -1) -> Tensor:
        """Returns the weights that turn training events into the unfolded distribution.

        Args:
            values: True quantity of training events, shape ``(N,)``.
            iteration: After how many iterations.

        Returns:
            Weights, shape ``(N,)``; 0 in a bin that the training never fills.
        """
        ratio = _ratio(self.share[iteration], self.prior)
        return ratio[_cell(values, self.edges)]

    def chi_square(self, truth: Tensor, iteration: int, truth_error: Tensor | None = None) -> float:
        """Compares with true shares ``(B,)``: chi squared over its B - 1 degrees of freedom.

        The inverse of a covariance from R samples is too large on average: without `truth_error`
        chi squared is, by a factor (R - 1) / (R - B - 1), 1.14 for 100 samples and 12 bins.

        Args:
            truth: True shares.
            iteration: After how many iterations.
            truth_error: Standard errors of `truth`, where it is a sample of its own.

        References:
            J. Hartlap, P. Simon and P. Schneider, astro-ph/0608064, Eq. (17): that factor.
        """
        covariance = self.covariance[iteration][:-1, :-1]
        if truth_error is not None:
            covariance = covariance + torch.diag(truth_error[:-1].square())
        difference = (self.share[iteration] - truth)[:-1]
        inverse = torch.linalg.pinv(covariance, hermitian=True)
        return float(difference @ inverse @ difference) / len(difference)


def unfold(
    samples: Tensor,
    prior: Tensor,
    edges: Sequence[float] | Tensor,
    *,
    iterations: int = 4,
    weight: Tensor | None = None,
    prior_weight: Tensor | None = None,
    simulated: tuple[Tensor, Tensor, Tensor] | None = None,
    n_bootstrap: int = 100,
    seed: int = 0,
) -> Unfolded:
    """Unfolds the distribution of a quantity, and iterates the prior.

    Errors are those of the numbers of measured and of training events, from samples drawn anew
    with Poisson weights. Draws have to be many: the shares of an event in bins that its draws miss
    are zero in every iteration. Many iterations amplify statistical fluctuations, which the errors
    show; a few are enough where bins are not narrower than the resolution.

    Args:
        samples: Draws of the quantity for each measured event, shape ``(S, N)``.
        prior: True values of the training events, shape ``(M,)``.
        edges: Edges of the bins, ascending; values beyond count in the outer bins.
        iterations: Number K of iterations.
        weight: Weights of the measured events, shape ``(N,)``.
        prior_weight: Weights of the training events, shape ``(M,)``.
        simulated: Draws of simulated events that follow the training distribution but were not
            trained on ``(S', L)``, their true values ``(L,)`` and their weights ``(L,)``: to find
            out when to stop.
        n_bootstrap: How many samples are drawn anew for the errors.
        seed: Seed of these.

    Raises:
        InputError: If there is nothing to unfold, a value is not finite, or a number is out of
            range.
        ShapeError: If shapes do not fit.
    """
    edges = torch.as_tensor(edges, dtype=torch.float64)
    _check(samples, prior, edges, iterations, n_bootstrap)
    weight = _weight("weight", weight, samples.shape[1])
    prior_weight = _weight("prior_weight", prior_weight, len(prior))
    posterior = bin_shares(samples, edges[1:-1])
    cell = _cell(prior, edges)
    n_bins = len(edges) - 1
    generator = torch.Generator().manual_seed(seed)
    # the first sample is the one that was measured
    data, training = (
        torch.cat([w.unsqueeze(0), w * _poisson(n_bootstrap, len(w), generator)])
        for w in (weight, prior_weight)
    )
    priors = data.new_zeros(len(training), n_bins).index_add_(1, cell, training)
    priors = priors / priors.sum(dim=1, keepdim=True)
    shares = _iterate(posterior, data / data.sum(dim=1, keepdim=True), priors, iterations)
    spread = shares[:, 1:] - shares[:, 1:].mean(dim=1, keepdim=True)
    covariance = torch.einsum("krb,krc->kbc", spread, spread) / (n_bootstrap - 1)
    found = Unfolded(edges=edges, prior=priors[0], share=shares[:, 0], covariance=covariance)
    if simulated is None:
        return found
    return replace(found, folded=_folded(found, posterior, weight, *simulated))


def information(samples: Tensor, weight: Tensor | None = None) -> float:
    """Computes which part of the variance of a quantity the events explain, by the draws.

    It is one minus the mean variance within an event over the variance of all draws.

    Args:
        samples: Draws of the quantity for each event, shape ``(S, N)``, at least two for each.
        weight: Weights of the events, shape ``(N,)``.
    """
    weight = _weight("weight", weight, samples.shape[1])
    mean, within = samples.double().mean(dim=0), samples.double().var(dim=0)
    centre = (weight * mean).sum() / weight.sum()
    inside = float((weight * within).sum() / weight.sum())
    between = float((weight * (mean - centre).square()).sum() / weight.sum())
    # the mean of few draws scatters by a part of the width within
    between = max(between - inside / len(samples), 0.0)
    return between / max(between + inside, 1e-300)


def target_of(card: ProcessCard, quantity: str) -> tuple[str, str]:
    """Returns the targets of a model that learns a quantity, and the name of its target.

    Args:
        card: The process card.
        quantity: A mass parameter, such as ``chi10``, or a quantity of true particles, such as
            ``cos l W``, see `massrecon.models.quantities`.
    """
    if quantity in card.mass_names:
        return "masses", f"{quantity}_m"
    return quantity, quantity_names(card, quantity)[0]


def label_of(card: ProcessCard, quantity: str) -> str:
    """Writes a quantity with the symbols of the card and its unit, for a figure."""
    if quantity not in card.mass_names:
        return quantity_label(card, quantity)
    return f"<i>m</i>({card.symbol(card.targets.get(quantity, quantity))}) [GeV]"


def true_values(events: Events, quantity: str) -> Tensor:
    """Returns the true values of a quantity, float64, shape ``(N,)``; see `target_of`.

    Raises:
        InputError: If the quantity is unknown, or the events do not carry its truth.
    """
    is_mass = quantity in events.card.mass_names
    truth = events.masses if is_mass else events.partons
    if truth is None:
        raise InputError(f"The events do not carry the true '{quantity}': use simulated events.")
    if is_mass:
        return truth[:, events.card.mass_names.index(quantity)].cpu().double()
    return quantity_values(events.card, quantity, truth.cpu())[:, 0]


def binned_truth(
    values: Tensor, edges: Sequence[float] | Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the shares of true values in bins, and their standard errors, each ``(B,)``.

    Args:
        values: True values, shape ``(N,)``.
        edges: Edges of the bins; values beyond count in the outer bins.
        weight: Weights, shape ``(N,)``.
    """
    edges = torch.as_tensor(edges, dtype=torch.float64)
    weight = _weight("weight", weight, len(values))
    cell = _cell(values, edges)
    sums = weight.new_zeros(len(edges) - 1).index_add_(0, cell, weight)
    share = sums / weight.sum()
    return share, (share * (1 - share) / effective_size(weight)).sqrt()


def _iterate(posterior: Tensor, data: Tensor, priors: Tensor, iterations: int) -> Tensor:
    """Iterates the prior of R samples at once.

    Args:
        posterior: Shares of the draws of each event, shape ``(N, B)``.
        data: Weights of the events in each sample, shape ``(R, N)``; each row adds up to one.
        priors: Shares of the training events, shape ``(R, B)``.
        iterations: Number K of iterations.

    Returns:
        Unfolded shares, shape ``(K + 1, R, B)``.
    """
    shares = [data @ posterior]
    for _ in range(iterations):
        ratio = _ratio(shares[-1], priors)
        # a sum over bins for each event, then one over events: no (R, N, B) in memory
        total = (ratio @ posterior.T).clamp_min(1e-12)
        share = ratio * ((data / total) @ posterior)
        shares.append(share / share.sum(dim=1, keepdim=True))
    return torch.stack(shares)


def _folded(
    found: Unfolded, posterior: Tensor, weight: Tensor, draws: Tensor, values: Tensor, own: Tensor
) -> Tensor:
    """Compares measured with simulated events after each iteration, see `Unfolded.folded`."""
    own = _weight("the weights of 'simulated'", own, draws.shape[1])
    measured, error = _mean_share(posterior, weight)
    simulated = bin_shares(draws, found.edges[1:-1])
    chi_squares = []
    for iteration in range(len(found.share)):
        folded, folded_error = _mean_share(simulated, own * found.ratio(values, iteration))
        difference = (measured - folded)[:-1]
        inverse = torch.linalg.pinv((error + folded_error)[:-1, :-1], hermitian=True)
        chi_squares.append(difference @ inverse @ difference)
    return torch.stack(chi_squares)


def _mean_share(posterior: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Averages shares ``(N, B)``, and returns the covariance of the average ``(B, B)``."""
    weight = weight / weight.sum()
    mean = weight @ posterior
    rest = weight.unsqueeze(1) * (posterior - mean)
    return mean, rest.T @ rest


def _cell(values: Tensor, edges: Tensor) -> Tensor:
    """Returns the bin of each value; the outer bins hold what is beyond."""
    return torch.bucketize(values.to(edges).contiguous(), edges[1:-1], right=True)


def _ratio(share: Tensor, prior: Tensor) -> Tensor:
    return torch.where(prior > 0, share / prior.clamp_min(1e-12), 0.0)


def _poisson(n_samples: int, n_events: int, generator: torch.Generator) -> Tensor:
    return torch.poisson(torch.ones(n_samples, n_events, dtype=torch.float64), generator)


def _weight(name: str, weight: Tensor | None, n_events: int) -> Tensor:
    if weight is None:
        return torch.ones(n_events, dtype=torch.float64)
    if tuple(weight.shape) != (n_events,):
        raise ShapeError(f"'{name}' should have shape ({n_events},), got {tuple(weight.shape)}.")
    if not bool((weight.isfinite() & (weight >= 0)).all()) or not float(weight.sum()) > 0:
        raise InputError(f"'{name}' should be finite, not negative, and not zero throughout.")
    return weight.cpu().double()


def _check(
    samples: Tensor, prior: Tensor, edges: Tensor, iterations: int, n_bootstrap: int
) -> None:
    if samples.ndim != 2 or prior.ndim != 1:
        raise ShapeError(
            f"'samples' should have shape (S, N) and 'prior' (M,), got {tuple(samples.shape)} and "
            f"{tuple(prior.shape)}."
        )
    if samples.numel() == 0 or len(prior) == 0:
        raise InputError("Unfolding needs draws of at least one event, and training events.")
    if not bool(samples.isfinite().all()) or not bool(prior.isfinite().all()):
        raise InputError("'samples' and 'prior' should be finite.")
    if edges.ndim != 1 or len(edges) < 3 or not bool((edges.diff() > 0).all()):
        raise InputError("'edges' should rise and make at least two bins.")
    if iterations < 0 or n_bootstrap < 2:
        raise InputError(
            f"'iterations' should not be negative and 'n_bootstrap' at least 2, got {iterations} "
            f"and {n_bootstrap}."
        )
