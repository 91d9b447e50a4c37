"""Attention to a prefix that many rows share, without a copy of the prefix for each row.

A query's attention over prefix and own tokens is split in two and put together by the two parts'
log-sum-exp, which is exact (Juravsky et al., Hydragen, arXiv 2402.05099). The prefix part is one
product of all rows' queries with one copy of the prefix's keys; the own part is causal.
"""

from typing import NamedTuple

import torch

_aten = torch.ops.aten


class Part(NamedTuple):
    """Attention over some of the keys.

    Attributes:
        out: [batch, heads, queries, width].
        lse: Log-sum-exp of the scores, float32 [batch, heads, queries].
    """

    out: torch.Tensor
    lse: torch.Tensor


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    causal: bool = False,
    mask: torch.Tensor | None = None,
) -> Part:
    """Attention with its log-sum-exp, by the fastest kernel of the device.

    Args:
        query: [batch, heads, queries, width].
        key: [batch, heads, keys, width].
        value: Like `key`.
        scale: Factor of the scores.
        causal: Whether query t sees keys 0..t only.
        mask: Added to the scores, broadcastable to [batch, heads, queries, keys]; not if causal.
    """
    if query.device.type == "cpu":
        kernel = _aten._scaled_dot_product_flash_attention_for_cpu
        return Part(*kernel(query, key, value, 0.0, causal, attn_mask=mask, scale=scale))
    if query.device.type == "cuda" and mask is None:
        if query.dtype in (torch.bfloat16, torch.float16):
            kernel = _aten._scaled_dot_product_flash_attention
            found = kernel(query, key, value, 0.0, causal, scale=scale)
        else:
            kernel = _aten._scaled_dot_product_efficient_attention
            found = kernel(query, key, value, None, True, 0.0, causal, scale=scale)
        return Part(found[0], found[1][..., : query.shape[2]])
    return _plain(query, key, value, scale, causal, mask)


def _plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    causal: bool,
    mask: torch.Tensor | None,
) -> Part:
    scores = (query * scale) @ key.transpose(-1, -2)
    if causal:
        mask = torch.full_like(scores[0, 0], float("-inf")).triu(1)
    scores = (scores if mask is None else scores + mask).float()
    lse = torch.logsumexp(scores, dim=-1)
    return Part((scores - lse[..., None]).exp().to(value.dtype) @ value, lse)


def merged(
    first: torch.Tensor, first_lse: torch.Tensor, second: torch.Tensor, second_lse: torch.Tensor
) -> torch.Tensor:
    """Two parts as one attention.

    Args:
        first: [tokens, heads, width], over some of the keys.
        first_lse: float32 [tokens, heads].
        second: Over the other keys.
        second_lse: Its log-sum-exp.
    """
    weight = torch.sigmoid(second_lse - first_lse)[..., None].to(first.dtype)
    return torch.lerp(first, second, weight)
