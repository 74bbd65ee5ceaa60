"""Text for networks: a small transformer that turns a caption's tokens into features.

Tokens are whole numbers, of which 0 fills captions up to one length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from tutorial_lib.networks.attention import Attention
from tutorial_lib.networks.embeddings import sinusoidal

FILLING = 0  # the token that fills captions up, and is not looked at
SLOWEST = 100.0  # words: the longest period of the places' sines, over 2 pi


@dataclass(frozen=True)
class TextConfig:
    """Fix the shape of a text encoder.

    A `causal` one looks only back, as CLIP's does (Radford et al. 2021, section 2.4): what has
    been said before tells tokens the order of the words. Otherwise their places' codes must, which
    are sines before training, of root mean square `position_scale`; where they are weak, a small
    encoder may stay a bag of words for long.
    """

    vocabulary: int
    length: int
    width: int = 128
    depth: int = 2
    heads: int = 4
    position_scale: float = 0.7
    causal: bool = True


class TextBlock(nn.Module):
    """Let tokens look at one another, then think alone (Vaswani et al. 2017; norms first)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1, self.itself = nn.LayerNorm(width), Attention(width, config.heads)
        self.norm2 = nn.LayerNorm(width)
        self.alone = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (B, L, width) to the same shape; mask (B, L, L) is True where i may look at j."""
        h = self.norm1(x)
        x = x + self.itself(h, h, mask)
        return x + self.alone(self.norm2(x))


class TextEncoder(nn.Module):
    """Map captions to a feature of every token (GLIDE, Nichol et al. 2021, section 4.1)."""

    def __init__(self, config: TextConfig, *, generator: Generator) -> None:
        super().__init__()
        self.config = config
        with torch.device("meta"):
            self.words = nn.Embedding(config.vocabulary, config.width)
            self.places = nn.Parameter(torch.empty(config.length, config.width))
            self.blocks = nn.ModuleList(TextBlock(config) for _ in range(config.depth))
            self.norm = nn.LayerNorm(config.width)
        initialise_text(self, generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, L), of which those that are FILLING are not seen, to (B, L, width)."""
        if tokens.ndim != 2 or tokens.shape[1] > self.config.length:
            wanted = f"(B, L), L at most {self.config.length}"
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}: this net takes {wanted}")
        x, length = self.words(tokens) + self.places[: tokens.shape[1]], tokens.shape[1]
        seen = (tokens != FILLING)[:, None].expand(-1, length, -1)  # (B, L, L)
        if self.config.causal:
            seen = seen & torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        for block in self.blocks:
            x = block(x, seen)
        return self.norm(x)


class Projected(nn.Module):
    """Let a network read features of another width, through one layer that learns.

    They are those of an encoder that has learned elsewhere, from text alone (Imagen, Saharia et
    al. 2022, section 2.1).
    """

    def __init__(self, net: nn.Module, given: int, wanted: int, *, generator: Generator) -> None:
        super().__init__()
        self.net, self.project = net, nn.Linear(given, wanted, device=generator.device)
        nn.init.xavier_uniform_(self.project.weight, generator=generator)
        nn.init.zeros_(self.project.bias)

    def forward(self, xt: Tensor, clock: Tensor, cond: Any) -> Tensor:
        """Map xt (B, C, H, W) and clock (B,) as the network does; cond.text is (B, L, given).

        A hint of that shape is added to it: noise, in training.
        """
        text = cond.text if cond.hint is None else cond.text + cond.hint
        return self.net(xt, clock, replace(cond, text=self.project(text), hint=None))


class Captioned(nn.Module):
    """Give a network that reads features of text an encoder of its own: it reads tokens.

    Both learn together, as in GLIDE (Nichol et al. 2021, section 4.1), or the encoder is frozen
    (Imagen, Saharia et al. 2022, section 2.1). An empty caption, and not an absent one, is what
    guidance compares with.
    """

    def __init__(self, net: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.net, self.encoder = net, encoder

    def told(self, cond: Any) -> Any:
        """Return the condition with features (B, L, D) and a mask in place of tokens (B, L)."""
        return replace(cond, text=self.encoder(cond.text), mask=cond.text != FILLING)

    def forward(self, xt: Tensor, clock: Tensor, cond: Any) -> Tensor:
        """Map xt (B, C, H, W) and clock (B,) as the network does; cond.text is (B, L)."""
        return self.net(xt, clock, self.told(cond))


def initialise_text(encoder: TextEncoder, generator: Generator) -> None:
    """Draw weights: of words N(0, 1), of layers uniform; places begin as sines.

    A layer's lie on +-sqrt(3 / fan_in), those that end a residual path on a share of it that falls
    with the depth (GPT-2, Radford et al. 2019, section 2.3).
    """
    encoder.to_empty(device=generator.device)
    ends = (2 * max(1, encoder.config.depth)) ** -0.5
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            reach = (3 / module.in_features) ** 0.5
            nn.init.uniform_(module.weight, -reach, reach, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    with torch.no_grad():
        for block in encoder.blocks:
            for last in (block.itself.out, block.alone[-1]):
                last.weight.mul_(ends)
        nn.init.normal_(encoder.words.weight, generator=generator)
        length, width = encoder.places.shape
        codes = sinusoidal(torch.arange(float(length)), width, SLOWEST)
        encoder.places.copy_(encoder.config.position_scale * 2**0.5 * codes)
