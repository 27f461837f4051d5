"""Chosen objects, summary observables, scaling and augmentation."""

from __future__ import annotations

import math

import pytest
import torch

from massrecon.errors import CardError, InputError
from massrecon.events.card import ProcessCard
from massrecon.kinematics import fourvectors as fv
from massrecon.models import features


def momenta(*rows: tuple[float, float, float]) -> torch.Tensor:
    """Massless momenta of one event from (pt, eta, phi)."""
    pt, eta, phi = torch.tensor(rows, dtype=torch.float64).T
    return fv.from_ptetaphim(pt, eta, phi, torch.zeros_like(pt)).unsqueeze(0)


def there(*present: bool) -> torch.Tensor:
    return torch.tensor([present])


def test_leading_slots_of_the_card(card: ProcessCard) -> None:
    slots = features.leading_slots(card, {"lepton": 1, "photon": 2, "jet": 4}, "m")
    assert [card.slots[i] for kind in slots.values() for i in kind] == [
        "lepton", "photon1", "photon2", "jet1", "jet2", "jet3", "jet4",
    ]  # fmt: skip


def test_leading_slots_refuses_a_card_without_them(card: ProcessCard) -> None:
    with pytest.raises(CardError, match=r"'m' reads 3 lepton slots, but .* only 1 of kind"):
        features.leading_slots(card, {"lepton": 3}, "m")


def test_extra_observables_of_a_hand_made_event() -> None:
    lepton = momenta((50, 0, 0))
    photons = momenta((60, 1, 0), (40, 0, 2))
    jets = momenta((100, 0, 3), (70, -2, 0), (900, 5, 1))
    values = features.extra_observables(
        (lepton, there(True)),
        (photons, there(True, True)),
        (jets, there(True, True, False)),
        torch.tensor([[3.0, 4.0]], dtype=torch.float64),
    )[0].tolist()
    expected = [5.0, 2.0, 3.0, 1.0, 2.0, 1.0, math.hypot(1, 3), 170.0]
    assert len(features.EXTRA_NAMES) == len(values) == 8
    assert values == pytest.approx(expected)


def test_extra_observables_without_jets_are_finite() -> None:
    nothing = (torch.zeros(1, 4, 4, dtype=torch.float64), there(False, False, False, False))
    lepton, photons = (momenta((50, 0, 0)), there(True)), (momenta((60, 1, 0)), there(True))
    ptmiss = torch.zeros(1, 2, dtype=torch.float64)
    values = features.extra_observables(lepton, photons, nothing, ptmiss)[0].tolist()
    assert values == pytest.approx([0, 0, 0, 1, 1, 0, 0, 0])


def test_observables_of_four_hand_made_leptons() -> None:
    leptons = momenta((50, 0, 0), (40, 1, 0), (30, 0, 2), (20, 3, 3))
    ptmiss = torch.tensor([[0.0, 5.0]], dtype=torch.float64)
    values = features.four_lepton_observables((leptons, there(True, True, True, False)), ptmiss)
    half = math.pi / 2
    expected = [5.0, 1, 2, 0, math.hypot(1, 2), 0, 0, half, half, abs(2 - half), 0]
    assert len(features.FOUR_LEPTON_NAMES) == values.shape[1] == 11
    assert values[0].tolist() == pytest.approx(expected)


def test_scaling_is_invertible_and_standard() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5000, 3, generator=generator) * torch.tensor([1.0, 50, 0]) + 600
    scaling = features.Scaling(3)
    scaling.fit(values)
    scaled = scaling(values)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(scaled[:, :2].std(0), torch.ones(2), rtol=1e-3, atol=0)
    back = scaling.inverse(scaled)
    assert back.dtype == torch.float64
    torch.testing.assert_close(back, values.double(), rtol=1e-6, atol=1e-4)
    # the third column does not vary: a mass that is fixed in the sample
    assert scaling.scale[2] == 1.0
    assert scaled[:, 2].abs().max() < 1e-3


def test_momentum_scaling_respects_the_symmetries() -> None:
    generator = torch.Generator().manual_seed(1)
    values = 100 * torch.randn(4000, 8, generator=generator) + 30
    scaling = features.Scaling(8)
    scaling.fit_momenta(values)
    assert scaling.offset.view(2, 4)[:, :3].abs().max() == 0
    assert (scaling.scale.view(2, 4)[:, 0] == scaling.scale.view(2, 4)[:, 1]).all()
    angle = torch.tensor(0.7)

    def rotate(rows: torch.Tensor) -> torch.Tensor:
        return fv.rotate_z(rows.view(-1, 2, 4), angle).flatten(1)

    torch.testing.assert_close(scaling(rotate(values)), rotate(scaling(values)))


@pytest.mark.parametrize("bad", [torch.zeros(0, 4), torch.full((3, 4), float("nan"))])
def test_scaling_refuses_nothing_and_nan(bad: torch.Tensor) -> None:
    for fit in (features.Scaling(4).fit, features.Scaling(4).fit_momenta):
        with pytest.raises(InputError, match="finite values of at least one event"):
            fit(bad)


def test_augmentation_keeps_what_the_symmetries_keep() -> None:
    generator = torch.Generator().manual_seed(2)
    objects = 100 * torch.randn(500, 7, 4, generator=generator, dtype=torch.float64)
    targets = 100 * torch.randn(500, 2, 4, generator=generator, dtype=torch.float64)
    turned, moved = features.augment_momenta(objects, targets, generator=generator)
    torch.testing.assert_close(turned[..., 3], objects[..., 3])
    torch.testing.assert_close(fv.pt(turned), fv.pt(objects))
    torch.testing.assert_close(turned[..., 2].abs(), objects[..., 2].abs())
    # both tensors of an event turn together: every scalar product in it stays
    before = torch.cat([objects, targets], 1)[..., :3]
    after = torch.cat([turned, moved], 1)[..., :3]
    torch.testing.assert_close(after @ after.mT, before @ before.mT)


def test_augmentation_covers_all_angles_and_both_signs() -> None:
    generator = torch.Generator().manual_seed(3)
    along_x = torch.tensor([1.0, 0, 1, 1]).expand(4000, 1, 4)
    (turned,) = features.augment_momenta(along_x, generator=generator)
    angles = torch.atan2(turned[:, 0, 1], turned[:, 0, 0])
    counts = torch.histc(angles, bins=8, min=-math.pi, max=math.pi)
    assert counts.min() > 400
    assert counts.max() < 600
    assert abs(turned[:, 0, 2].mean()) < 0.08
