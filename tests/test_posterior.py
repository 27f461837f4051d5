"""The posterior container: shapes, estimates, selection, disk, reconstruction."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from massrecon.errors import InputError, ShapeError, StoreError
from massrecon.events.card import ProcessCard
from massrecon.events.container import Events
from massrecon.inference.posterior import Posterior, reconstruct


def random_posterior(card: ProcessCard, n_events: int, n_draws: int = 64) -> Posterior:
    """Draws spread around a random truth."""
    generator = torch.Generator().manual_seed(0)
    truth = 300 + 50 * torch.randn(n_events, 8, generator=generator, dtype=torch.float64)
    noise = torch.randn(n_draws, n_events, 8, generator=generator, dtype=torch.float64)
    return Posterior(truth + 20 * noise, card, truth, truth[:, [3, 7]])


def test_masses_are_the_right_columns(card: ProcessCard) -> None:
    posterior = random_posterior(card, 5, 3)
    assert posterior.mass_names == ("chi20", "chi10")
    masses = posterior.mass_samples()
    assert masses.shape == (3, 5, 2)
    torch.testing.assert_close(masses[..., 0], posterior.target("chi20_m"))
    torch.testing.assert_close(masses[..., 1], posterior.mass_samples("chi10"))
    torch.testing.assert_close(posterior.samples[..., 7], posterior.mass_samples("chi10"))
    torch.testing.assert_close(posterior.true_target("chi10_m"), posterior.true_masses()[:, 1])


def test_a_target_is_a_view_of_the_draws(card: ProcessCard) -> None:
    posterior = random_posterior(card, 5, 3)
    assert posterior.target("chi20_px").data_ptr() == posterior.samples.data_ptr()


def test_true_masses_come_from_the_targets_where_there_are_no_parameters(card: ProcessCard) -> None:
    full = random_posterior(card, 4, 2)
    posterior = Posterior(full.samples, card, truth=full.truth)
    torch.testing.assert_close(posterior.true_masses(), full.true_masses())


def test_a_fixed_mass_does_not_vary(card: ProcessCard) -> None:
    full = random_posterior(card, 4, 2)
    masses = torch.tensor([[600.0, 100.0], [600.0, 120.0]]).repeat(2, 1)
    posterior = Posterior(full.samples, card, masses=masses)
    assert posterior.varies("chi10")
    assert posterior.varies("chi20")  # one true value, but draws that differ
    constant = full.samples.clone()
    constant[..., full.target_names.index("chi20_m")] = 600.0
    assert not Posterior(constant, card, masses=masses).varies("chi20")
    assert not Posterior(constant, card).varies("chi20")


def test_estimates_and_intervals_have_an_axis_for_the_masses(card: ProcessCard) -> None:
    posterior = random_posterior(card, 6)
    for name in ("draw", "mean", "median", "window"):
        assert posterior.estimate(name).shape == (6, 2)
    torch.testing.assert_close(posterior.estimate("draw"), posterior.mass_samples()[0])
    interval = posterior.interval(0.68)
    assert interval.shape == (6, 2, 2)
    median = posterior.estimate("median")
    assert bool(((interval[..., 0] < median) & (median < interval[..., 1])).all())


def test_cut_prior_keeps_what_is_inside_and_its_momenta(card: ProcessCard) -> None:
    full = random_posterior(card, 40, 200)
    cut = full.within({"chi10": (280.0, 320.0)}, seed=1)
    before, after = full.mass_samples("chi10"), cut.mass_samples("chi10")
    inside = (before >= 280) & (before <= 320)
    assert torch.equal(cut.samples[inside], full.samples[inside])
    assert float(after.min()) >= 280
    assert float(after.max()) <= 320
    event = int(inside.double().mean(0).sub(0.5).abs().argmin())
    known = {tuple(row) for row in full.samples[inside[:, event], event].tolist()}
    assert {tuple(row) for row in cut.samples[:, event].tolist()} <= known
    # the others are drawn from the posterior inside, not piled up anywhere
    own = before[inside[:, event], event]
    assert abs(float(after[:, event].mean() - own.mean())) < 4 * float(own.std()) / 10
    far = full.within({"chi10": (1000.0, 1100.0)})
    assert bool((far.mass_samples("chi10") == 1000).all())
    with pytest.raises(InputError, match="The range of 'chi10' is empty: got 5 to 5 GeV"):
        full.within({"chi10": (5.0, 5.0)})
    with pytest.raises(InputError, match="Unknown mass 'chi1'"):
        full.within({"chi1": (5.0, 6.0)})


@pytest.mark.parametrize(
    "index", [2, -1, slice(1, 4), [0, 3], np.array([True, False] * 3), torch.tensor([5, 0]), []]
)
def test_selection_keeps_everything_together(card: ProcessCard, index: object) -> None:
    full = random_posterior(card, 6, 4)
    full = Posterior(full.samples, card, full.truth, full.masses, torch.arange(6.0) + 1, {"a": 1})
    rows = torch.arange(6)[[index] if isinstance(index, int) else index]
    part = full[index]
    assert len(part) == len(rows)
    assert part.provenance == {"a": 1}
    torch.testing.assert_close(part.samples, full.samples[:, rows])
    torch.testing.assert_close(part.true_masses(), full.true_masses()[rows])
    torch.testing.assert_close(part.truth, full.truth[rows])
    torch.testing.assert_close(part.weights, full.weights[rows])


def test_an_event_that_is_not_there_is_refused(card: ProcessCard) -> None:
    with pytest.raises(IndexError, match="Event 6 is out of range: there are 6 events"):
        random_posterior(card, 6, 2)[6]


def test_disk_gives_back_the_same(card: ProcessCard, tmp_path: Path) -> None:
    full = random_posterior(card, 6, 4)
    weight = torch.arange(6, dtype=torch.float64) + 1
    saved = Posterior(full.samples, card, full.truth, full.masses, weight, {"seed": 3})
    saved.save(tmp_path / "posterior")
    loaded = Posterior.load(tmp_path / "posterior")
    for name in ("samples", "truth", "masses", "weight"):
        assert torch.equal(getattr(loaded, name), getattr(saved, name)), name
    assert loaded.provenance == {"seed": 3}
    assert loaded.card.fingerprint() == card.fingerprint()
    Posterior(full.samples, card).save(tmp_path / "posterior")  # replaces the old one
    assert Posterior.load(tmp_path / "posterior").masses is None
    assert [path.name for path in tmp_path.iterdir()] == ["posterior"]


def test_a_selection_can_be_saved(card: ProcessCard, tmp_path: Path) -> None:
    part = random_posterior(card, 6, 4)[1:3]
    part.save(tmp_path / "part")
    assert torch.equal(Posterior.load(tmp_path / "part").samples, part.samples)


def flip_a_byte(folder: Path) -> None:
    path = folder / "posterior.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def cut_short(folder: Path) -> None:
    path = folder / "posterior.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def remove_tensors(folder: Path) -> None:
    (folder / "posterior.safetensors").unlink()


def remove_description(folder: Path) -> None:
    (folder / "posterior.json").unlink()


def break_description(folder: Path) -> None:
    (folder / "posterior.json").write_text('{"format": ')


def change_format(folder: Path) -> None:
    (folder / "posterior.json").write_text('{"format": "something else"}')


def remove_card(folder: Path) -> None:
    path = folder / "posterior.json"
    description = json.loads(path.read_text())
    del description["card"]
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "posterior.safetensors' is damaged: its checksum differs"),
        (cut_short, "posterior.safetensors' is damaged: its checksum differs"),
        (remove_tensors, "does not hold a whole posterior.*posterior.safetensors"),
        (remove_description, "is not a posterior: it has no posterior.json"),
        (break_description, "posterior.json' cannot be read"),
        (change_format, "does not describe a posterior of this version"),
        (remove_card, "does not hold a whole posterior: 'card'"),
    ],
)
def test_a_damaged_folder_is_refused(
    card: ProcessCard, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "posterior"
    random_posterior(card, 3, 2).save(folder)
    damage(folder)
    with pytest.raises(StoreError, match=message):
        Posterior.load(folder)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere' is not a posterior"):
        Posterior.load(tmp_path / "nowhere")


def test_wrong_shapes_and_values_are_refused(card: ProcessCard) -> None:
    good = random_posterior(card, 3, 2)
    truth, masses = good.true_masses(), good.true_masses()
    with pytest.raises(ShapeError, match=r"\(draws, events, 8\).*got \(3, 8\)"):
        Posterior(good.samples[0], card)
    with pytest.raises(ShapeError, match=r"\(draws, events, 8\).*got \(0, 3, 8\)"):
        Posterior(good.samples[:0], card)
    with pytest.raises(ShapeError, match=r"'truth' should have shape \(3, 8\), got \(3, 2\)"):
        Posterior(good.samples, card, truth)
    with pytest.raises(ShapeError, match=r"'masses' should have shape \(3, 2\), got \(2, 2\)"):
        Posterior(good.samples, card, masses=masses[:2])
    with pytest.raises(ShapeError, match=r"'weight' should have shape \(3,\), got \(3, 1\)"):
        Posterior(good.samples, card, weight=torch.ones(3, 1))
    with pytest.raises(InputError, match="add up to a positive number"):
        Posterior(good.samples, card, weight=torch.zeros(3))
    broken = good.samples.clone()
    broken[1, 2, 4] = torch.nan
    with pytest.raises(InputError, match="'samples' is not finite in 1 of 3 events, first in .* 2"):
        Posterior(broken, card)
    masses = masses.clone()
    masses[1:, 0] = torch.inf
    with pytest.raises(InputError, match="'masses' is not finite in 2 of 3 events, first in .* 1"):
        Posterior(good.samples, card, masses=masses)


def test_unknown_names_list_the_choices(card: ProcessCard) -> None:
    posterior = random_posterior(card, 3, 2)
    with pytest.raises(InputError, match="Unknown target 'chi20_e'.*chi20_px, chi20_py"):
        posterior.target("chi20_e")
    with pytest.raises(InputError, match="Unknown mass 'chi1'.*choose from chi20, chi10"):
        posterior.mass_samples("chi1")
    with pytest.raises(InputError, match="Unknown estimator 'mode'.*draw, mean, median, window"):
        posterior.estimate("mode")


def test_without_truth_there_are_no_true_values(card: ProcessCard) -> None:
    posterior = Posterior(random_posterior(card, 3, 2).samples, card)
    assert "without truth" in repr(posterior)
    with pytest.raises(InputError, match="carries no truth: reconstruct simulated events"):
        posterior.true_masses()
    with pytest.raises(InputError, match="carries no truth"):
        posterior.true_target("chi20_px")


class TruthWithNoise:
    """Stands for a trained model: draws are the true targets with seeded noise."""

    name, device = "truth_with_noise", torch.device("cpu")

    def __init__(self, card: ProcessCard) -> None:
        self.card, self.target_names = card, card.target_names
        self.asked: dict[str, object] = {}

    def sample(self, events: Events, n_samples: int, **options: int) -> Tensor:
        self.asked = dict(options)
        generator = torch.Generator().manual_seed(options["seed"])
        noise = torch.randn(n_samples, len(events), 8, generator=generator, dtype=torch.float64)
        return events.targets() + noise

    def true_targets(self, events: Events) -> Tensor:
        return events.targets()


def test_reconstruct_fills_truth_and_keeps_provenance(
    card: ProcessCard, toy_events: Callable[..., Events]
) -> None:
    events = toy_events(12, seed=1)
    model = TruthWithNoise(card)
    posterior = reconstruct(model, events, n_samples=5, steps=7, seed=4)
    assert model.asked == {"steps": 7, "solver": None, "seed": 4, "batch_size": 2048}
    assert posterior.samples.shape == (5, 12, 8)
    torch.testing.assert_close(posterior.truth, events.targets())
    torch.testing.assert_close(posterior.true_masses(), events.masses)
    assert float((posterior.samples - posterior.truth).abs().max()) < 6
    kept = {name: posterior.provenance[name] for name in ("model", "n_samples", "steps", "seed")}
    assert kept == {"model": "truth_with_noise", "n_samples": 5, "steps": 7, "seed": 4}
    assert posterior.provenance["events"] == dict(events.provenance)
    json.dumps(dict(posterior.provenance))


def test_reconstruct_refuses_what_makes_no_sense(
    card: ProcessCard, toy_events: Callable[..., Events]
) -> None:
    events = toy_events(4, seed=1)
    model = TruthWithNoise(card)
    with pytest.raises(InputError, match="no events to reconstruct"):
        reconstruct(model, events[[]])
    with pytest.raises(InputError, match="'n_samples' should be at least 1, got 0"):
        reconstruct(model, events, n_samples=0)
    other = TruthWithNoise(SimpleNamespace(target_names=("top_px", "top_m")))
    with pytest.raises(
        InputError, match="reconstructs top_px, top_m, but the events of 'wino_udd'"
    ):
        reconstruct(other, events)
