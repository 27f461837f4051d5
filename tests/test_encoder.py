"""The transformer encoder: shapes, permutations, absent tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from massrecon.models.encoder import TransformerEncoder, attention, masked_mean


@pytest.fixture(scope="module")
def encoder() -> TransformerEncoder:
    torch.manual_seed(1)
    return TransformerEncoder(dim=32, heads=4, layers=2, hidden=48).eval()


def tokens_and_presence(n: int = 6, k: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(n, k, 32, generator=generator)
    present = torch.rand(n, k, generator=generator) > 0.3
    present[:, 0] = True
    return tokens, present


@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 8), (5, 3), (64, 8)])
def test_shape_follows_the_tokens(encoder: TransformerEncoder, n: int, k: int) -> None:
    tokens, present = tokens_and_presence(n, k)
    assert encoder(tokens, present).shape == (n, k, 32)
    assert masked_mean(encoder(tokens, present), present).shape == (n, 32)


def test_permuted_tokens_give_permuted_output(encoder: TransformerEncoder) -> None:
    tokens, present = tokens_and_presence()
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    encoded = encoder(tokens, present)
    permuted = encoder(tokens[:, order], present[:, order])
    where = present[:, order]
    torch.testing.assert_close(permuted[where], encoded[:, order][where], rtol=1e-4, atol=1e-5)


def test_absent_tokens_change_nothing(encoder: TransformerEncoder) -> None:
    tokens, present = tokens_and_presence()
    garbage = torch.where(present.unsqueeze(-1), tokens, 1e3)
    torch.testing.assert_close(
        masked_mean(encoder(tokens, present), present),
        masked_mean(encoder(garbage, present), present),
    )


def test_absent_tokens_equal_shorter_input(encoder: TransformerEncoder) -> None:
    tokens, _ = tokens_and_presence()
    present = torch.arange(8).expand(6, 8) < 5
    whole = masked_mean(encoder(tokens, present), present)
    short = encoder(tokens[:, :5], present[:, :5]).mean(dim=1)
    torch.testing.assert_close(whole, short, rtol=1e-4, atol=1e-5)


def test_present_tokens_do_matter(encoder: TransformerEncoder) -> None:
    tokens, present = tokens_and_presence()
    changed = tokens.clone()
    changed[:, 0] = tokens[:, 0].flip(-1)
    difference = encoder(changed, present)[:, 0] - encoder(tokens, present)[:, 0]
    assert difference.abs().amax(dim=1).min() > 1e-2


def test_masked_mean_against_a_loop() -> None:
    tokens, present = tokens_and_presence()
    expected = torch.stack([t[p].mean(dim=0) for t, p in zip(tokens, present, strict=True)])
    torch.testing.assert_close(masked_mean(tokens, present), expected)


@pytest.mark.parametrize("kind", ["present", "bias"])
def test_attention_in_bfloat16_is_that_of_torch(kind: str) -> None:
    generator = torch.Generator().manual_seed(5)
    query, key, value = (torch.randn(6, 4, 9, 16, generator=generator) for _ in range(3))
    present = torch.rand(6, 1, 1, 9, generator=generator) < 0.7
    present[..., 0] = True
    mask = present
    if kind == "bias":
        mask = torch.randn(6, 4, 9, 9, generator=generator).masked_fill(~present, -torch.inf)
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(attention(query, key, value, mask), expected)
    halves = (tensor.bfloat16() for tensor in (query, key, value))
    found = attention(*halves, mask if kind == "present" else mask.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)
