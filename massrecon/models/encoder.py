"""The transformer that reads a set of reconstructed objects.

Each layer is self-attention followed by a two-layer MLP that is the same for every token, both
around a residual connection with layer normalisation in front. No token carries a code of its
position, so the output follows any permutation of the tokens, and its mean does not change.

References:
    A. Vaswani et al., arXiv:1706.03762; R. Xiong et al., arXiv:2002.04745 (normalisation first).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class EncoderLayer(nn.Module):
    """One layer of multi-head self-attention and a token-wise MLP."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.attention_out = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = token_mlp(dim, hidden)

    def forward(self, tokens: Tensor, present: Tensor, bias: Tensor | None = None) -> Tensor:
        """Maps ``(N, K, dim)`` to ``(N, K, dim)``; absent tokens are not attended to.

        A `bias` ``(N, heads, K, K)`` is added to the logits of the attention of each pair.
        """
        tokens = tokens + self._attend(self.attention_norm(tokens), present, bias)
        return tokens + self.mlp(self.mlp_norm(tokens))

    def _attend(self, tokens: Tensor, present: Tensor, bias: Tensor | None) -> Tensor:
        n, k, dim = tokens.shape
        split = self.query_key_value(tokens).view(n, k, 3, self.heads, dim // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        # here True means "may be attended to", as in `present`
        mask = present[:, None, None, :]
        if bias is not None:
            mask = bias.to(query).masked_fill(~mask, -torch.inf)
        mixed = attention(query, key, value, mask)
        return self.attention_out(mixed.transpose(1, 2).reshape(n, k, dim))


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Mixes values by the likeness of queries and keys, scaled by their width.

    Args:
        query: Shape ``(N, heads, Q, D)``.
        key: Shape ``(N, heads, K, D)``.
        value: Shape ``(N, heads, K, D)``.
        mask: True for what may be attended to, or an addition to the logits; broadcastable to
            ``(N, heads, Q, K)``.

    Returns:
        Shape ``(N, heads, Q, D)``.
    """
    if not (query.dtype == torch.bfloat16 and query.device.type == "cpu"):
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # for tens of tokens torch's own kernel takes four to six times as long there
    logits = (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).float()
    logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(dim=-1).to(value) @ value


class TransformerEncoder(nn.Module):
    """A stack of encoder layers with a final normalisation."""

    def __init__(self, dim: int, heads: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Encodes the tokens of each event.

        Args:
            tokens: Embedded tokens, shape ``(N, K, dim)``; finite also where absent.
            present: True where there is a token, shape ``(N, K)``, at least one in each event.

        Returns:
            Encoded tokens, shape ``(N, K, dim)``; of no meaning where absent.
        """
        for layer in self.layers:
            tokens = layer(tokens, present)
        return self.norm(tokens)


def token_mlp(dim: int, hidden: int) -> nn.Sequential:
    """Builds the two-layer MLP that acts on each token."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))


def masked_mean(tokens: Tensor, present: Tensor) -> Tensor:
    """Averages over the tokens that are present, ``(N, K, dim)`` -> ``(N, dim)``."""
    share = present.to(tokens.dtype)
    share = share / share.sum(dim=1, keepdim=True)
    return (share.unsqueeze(1) @ tokens).squeeze(1)
