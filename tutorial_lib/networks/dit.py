"""The diffusion transformer: an image as tokens, with four ways to tell them time and label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tutorial_lib.networks.attention import Attention, image_to_tokens
from tutorial_lib.networks.embeddings import LabelEmbedding, sinusoidal

SIZES = {  # width, depth, heads (Peebles & Xie 2023, table 1)
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
CONDITIONINGS = ("in-context", "cross-attention", "adaLN", "adaLN-Zero")
SINES = 256  # numbers that tell the time, before it is embedded
EPSILON = 1e-6


@dataclass(frozen=True)
class DiTConfig:
    """Fix the shape of a DiT; the defaults are DiT-XL/2 for latents of ImageNet 256x256.

    Peebles & Xie 2023, section 3.2. `conditioning` is one of CONDITIONINGS.
    """

    width: int = 1152
    depth: int = 28
    heads: int = 16
    patch: int = 2
    side: int = 32
    in_channels: int = 4
    out_channels: int = 8  # with a learned variance
    conditioning: str = "adaLN-Zero"
    n_classes: int = 1000
    clock_scale: float = 1.0  # to the hundreds of units that sines of the clock expect

    @property
    def tokens(self) -> int:
        """Return how many patches an image has."""
        return (self.side // self.patch) ** 2

    @property
    def adaptive(self) -> bool:
        """Say whether time and label scale and shift the norms."""
        return self.conditioning.startswith("adaLN")


def dit(size: str, patch: int, **others: Any) -> DiTConfig:
    """Return the paper's configuration DiT-`size`/`patch`, with `others` of its fields changed."""
    width, depth, heads = SIZES[size]
    return DiTConfig(width, depth, heads, patch, **others)


class DiTBlock(nn.Module):
    """Let tokens look at one another, then think alone, told the time and the label.

    Peebles & Xie 2023, section 3.2 and figure 3. With adaLN what is told scales and shifts both
    norms; with adaLN-Zero it also gates both residual paths, and the gates begin at zero.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, plain = config.width, not config.adaptive
        self.norm1 = nn.LayerNorm(width, EPSILON, elementwise_affine=plain)
        self.itself = Attention(width, config.heads)
        self.norm2 = nn.LayerNorm(width, EPSILON, elementwise_affine=plain)
        self.alone = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)
        )
        self.gated = config.conditioning == "adaLN-Zero"
        self.modulation = nn.Linear(width, (6 if self.gated else 4) * width) if not plain else None
        crossed = config.conditioning == "cross-attention"
        self.norm_told = nn.LayerNorm(width, EPSILON) if crossed else None
        self.told = Attention(width, config.heads) if crossed else None

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """Map tokens (B, T, D), told time and label, (B, 2, D), to (B, T, D)."""
        if self.modulation is None:
            x = x + self.itself(self.norm1(x))
            if self.told is not None:
                x = x + self.told(self.norm_told(x), told)
            return x + self.alone(self.norm2(x))
        modulation = self.modulation(F.silu(told.sum(1)))  # (B, 4 D or 6 D)
        shift1, scale1, shift2, scale2, *gates = modulation[:, None].split(x.shape[2], 2)
        gate1, gate2 = gates if self.gated else (1.0, 1.0)
        x = x + gate1 * self.itself(modulated(self.norm1(x), shift1, scale1))
        return x + gate2 * self.alone(modulated(self.norm2(x), shift2, scale2))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return tokens (B, T, D), scaled by one plus `scale` and shifted, both (B, 1, D).

    Peebles & Xie 2023, section 3.2.
    """
    return x * (1 + scale) + shift


class DiT(nn.Module):
    """Map a noisy image and a clock to a prediction of its size (Peebles & Xie 2023).

    The last norm is scaled and shifted by time and label whatever the conditioning of the blocks.
    """

    def __init__(self, config: DiTConfig, *, generator: Generator) -> None:
        super().__init__()
        if config.conditioning not in CONDITIONINGS:
            known = ", ".join(CONDITIONINGS)
            raise ValueError(
                f"there is no conditioning {config.conditioning!r}: choose of {known}"
            )
        if config.side % config.patch:
            raise ValueError(f"patches of {config.patch} do not tile a side of {config.side}")
        self.config, width = config, config.width
        with torch.device("meta"):
            self.patches = nn.Linear(config.in_channels * config.patch**2, width)
            self.clock = nn.Sequential(nn.Linear(SINES, width), nn.SiLU(), nn.Linear(width, width))
            self.label = LabelEmbedding(config.n_classes, width) if config.n_classes else None
            self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
            self.norm = nn.LayerNorm(width, EPSILON, elementwise_affine=False)
            self.modulation = nn.Linear(width, 2 * width)
            self.last = nn.Linear(width, config.out_channels * config.patch**2)
        initialise_dit(self, generator)
        self.register_buffer("places", grid_places(config.side // config.patch, width))

    def told(self, clock: Tensor, cond: Any = None) -> Tensor:
        """Return the embeddings of the clock (B,) and of cond.label (B,), (B, 2, D)."""
        sines = sinusoidal(clock * self.config.clock_scale, SINES).to(self.last.weight.dtype)
        time = self.clock(sines)  # (B, D)
        label = None if cond is None else cond.label
        if self.label is not None:
            return torch.stack([time, self.label(label).expand_as(time)], 1)
        if label is not None:
            raise ValueError("this net knows no labels: build it with n_classes, or pass none")
        return torch.stack([time, torch.zeros_like(time)], 1)

    def forward(self, xt: Tensor, clock: Tensor, cond: Any = None) -> Tensor:
        """Map xt (B, C, H, W) and clock (B,) to (B, out_channels, H, W)."""
        config = self.config
        if xt.shape[1:] != (config.in_channels, config.side, config.side):
            wanted = f"(B, {config.in_channels}, {config.side}, {config.side})"
            raise ValueError(f"xt has shape {tuple(xt.shape)}: this net takes {wanted}")
        told = self.told(clock, cond)
        x = image_to_tokens(F.pixel_unshuffle(xt, config.patch))  # (B, T, C p p)
        x = self.patches(x) + self.places  # (B, T, D)
        if config.conditioning == "in-context":
            x = torch.cat([x, told], 1)  # (B, T + 2, D)
        for block in self.blocks:
            x = block(x, told)
        x = x[:, : config.tokens]
        shift, scale = self.modulation(F.silu(told.sum(1)))[:, None].chunk(2, 2)
        x = self.last(modulated(self.norm(x), shift, scale))  # (B, T, out p p)
        grid = x.transpose(1, 2).unflatten(2, (config.side // config.patch, -1))
        return F.pixel_shuffle(grid, config.patch)


def grid_places(side: int, width: int) -> Tensor:
    """Return codes of the places of a grid, row by row, (side^2, width): sines of row and column.

    As in MAE (He et al. 2022), whose codes the paper takes; half the width tells the column.
    """
    rows, columns = torch.meshgrid(*2 * [torch.arange(side, dtype=torch.float64)], indexing="ij")
    codes = [sinusoidal(x.flatten(), width // 2) for x in (columns, rows)]
    return torch.cat(codes, 1).float()


def initialise_dit(net: DiT, generator: Generator) -> None:
    """Draw weights as the authors' code does, and zero what the paper says begins at zero.

    Linear layers are uniform on +-sqrt(6 / (fan_in + fan_out)), those of the clock and the labels
    N(0, 0.02^2). Zero are the last layer, its norm's scale and shift, and in adaLN-Zero all that
    a block's modulation says: each block is then the identity.
    """
    net.to_empty(device=generator.device)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    small = [net.clock[0], net.clock[2]] + ([net.label.table] if net.label else [])
    for module in small:
        nn.init.normal_(module.weight, std=0.02, generator=generator)
    gated = [block.modulation for block in net.blocks if block.gated]
    for module in (*gated, net.modulation, net.last):
        nn.init.zeros_(module.weight)


def multiply_adds(config: DiTConfig) -> int:
    """Return what one image costs, forward, as Peebles & Xie 2023 count (table 4, in billions).

    A multiply-add is one operation, and so is a number that a norm without weights normalises.
    """
    d, t = config.width, config.tokens + 2 * (config.conditioning == "in-context")
    block = 12 * d * d * t + 2 * d * t * t
    if config.adaptive:
        block += (6 if config.conditioning == "adaLN-Zero" else 4) * d * d + 2 * d * t
    if config.conditioning == "cross-attention":
        block += 2 * d * d * t + 4 * d * d + 4 * d * t  # queries and out; keys and values of two
    numbers = config.tokens * config.patch**2
    ends = numbers * (config.in_channels + config.out_channels) * d
    told = SINES * d + d * d + 2 * d * d  # the clock's layers, the last norm's scale and shift
    return config.depth * block + ends + told + config.tokens * d
