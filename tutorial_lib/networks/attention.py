"""Attention: every token gathers from the others, or from a second sequence."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Let tokens gather from a context, by default from themselves, with several heads.

    Attention Is All You Need (Vaswani et al. 2017), section 3.2: softmax(Q K^T / sqrt(d)) V.
    """

    def __init__(self, width: int, heads: int = 1, context_width: int | None = None) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads cannot share a width of {width} evenly")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width or width, width)
        self.value = nn.Linear(context_width or width, width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Map (B, L, width), and a context (B, M, context_width) if any, to (B, L, width).

        `mask`, (B, M) or (B, L, M), is True where a token of the context may be looked at.
        """
        source = x if context is None else context
        heads = [self._split(y) for y in (self.query(x), self.key(source), self.value(source))]
        seen = mask if mask is None or mask.ndim == 3 else mask[:, None]
        seen = None if seen is None else seen[:, None]  # (B, 1, 1 or L, M)
        h = F.scaled_dot_product_attention(*heads, attn_mask=seen)  # (B, heads, L, d)
        return self.out(h.transpose(1, 2).flatten(2))  # (B, L, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, L, d)


def image_to_tokens(x: Tensor) -> Tensor:
    """Read an image's positions as tokens, (B, C, H, W) to (B, H W, C)."""
    return x.flatten(2).transpose(1, 2)


def tokens_to_image(x: Tensor, like: Tensor) -> Tensor:
    """Put tokens (B, H W, C) back into the image `like` (B, C, H, W)."""
    return x.transpose(1, 2).reshape(like.shape).contiguous(memory_format=_layout(like))


def _layout(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
