"""The U-Net of the image track: DDPM's as it stands, IDDPM's and ADM's by a few options."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tutorial_lib.networks.attention import Attention, image_to_tokens, tokens_to_image
from tutorial_lib.networks.embeddings import LabelEmbedding, sinusoidal


@dataclass(frozen=True)
class UNetConfig:
    """Fix the shape of a U-Net; the defaults are DDPM's for CIFAR-10 (Ho et al. 2020, app. B).

    The widths of the levels are `channels` times the `multipliers`; each level has `depth` blocks
    on the way down and one more on the way up, and half the side of the one before. Attention
    stands where the side is in `attention`, with heads of `head_width` channels (None: one head).
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    depth: int = 2
    attention: tuple[int, ...] = (16,)
    head_width: int | None = None
    dropout: float = 0.1
    side: int = 32
    patch: int = 1  # squares of pixels that the first layer reads, and the last writes, as one
    in_channels: int = 3
    out_channels: int = 3  # twice as many for a learned variance
    adaptive_norm: bool = False  # time scales and shifts the second norm, not only shifts
    resample_in_blocks: bool = False  # BigGAN's: residual blocks halve and double the sides
    n_classes: int = 0
    text_width: int = 0  # of the tokens that attention looks at; 0 for no text
    embedding_width: int = 0  # of a picture's embedding that joins the time's; 0 for none
    augmented: bool = False  # the time's embedding says how noisy a smaller picture is, too
    clock_scale: float = 1.0  # to the hundreds of units that sines of the clock expect

    @property
    def levels(self) -> list[tuple[int, int]]:
        """Return width and side of each level, the widest image first."""
        side = self.side // self.patch
        return [(self.channels * m, side // 2**i) for i, m in enumerate(self.multipliers)]

    @property
    def skips(self) -> list[int]:
        """Return the widths of the skips in the order in which the encoder leaves them."""
        widths = [width for width, _ in self.levels]
        runs = [width for width in widths for _ in range(self.depth + 1)]  # blocks, then a halving
        return [self.channels, *runs[:-1]]  # the last level is not halved


DDPM = UNetConfig()
# IDDPM for CIFAR-10 (Nichol & Dhariwal 2021, appendix A): both attentions of four heads
IDDPM = UNetConfig(
    depth=3, attention=(16, 8), head_width=64, dropout=0.3, adaptive_norm=True, out_channels=6
)
# ADM for ImageNet 64x64 (Dhariwal & Nichol 2021, table 11)
ADM = UNetConfig(
    channels=192,
    multipliers=(1, 2, 3, 4),
    depth=3,
    attention=(32, 16, 8),
    head_width=64,
    side=64,
    out_channels=6,
    adaptive_norm=True,
    resample_in_blocks=True,
    n_classes=1000,
)


class Downsample(nn.Module):
    """Halve an image's sides by a convolution of stride 2 (DDPM, Ho et al. 2020, app. B)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor, cond: Any = None) -> Tensor:
        """Map (B, C, H, W) to (B, C, H / 2, W / 2)."""
        return self.conv(x)


class Upsample(nn.Module):
    """Double an image's sides by repeating pixels, then convolve (Ho et al. 2020, app. B)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor, cond: Any = None) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2 H, 2 W)."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class ResidualBlock(nn.Module):
    """Add to an image two convolutions of it that know the time (Ho et al. 2020, appendix B).

    With `adaptive` the time scales and shifts the second norm (AdaGN: Dhariwal & Nichol 2021,
    section 3); `resample` halves or doubles the sides on both paths (BigGAN: Brock et al. 2019).
    """

    def __init__(
        self,
        before: int,
        after: int,
        emb: int,
        config: UNetConfig,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.adaptive, self.resample = config.adaptive_norm, resample or nn.Identity()
        self.norm1 = group_norm(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.time = nn.Linear(emb, 2 * after if self.adaptive else after)
        self.norm2 = group_norm(after)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, emb: Tensor, cond: Any = None) -> Tensor:
        """Map (B, before, H, W) and emb (B, E) to (B, after, H', W')."""
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        time = self.time(emb)[:, :, None, None]  # (B, after or 2 after, 1, 1)
        if self.adaptive:
            scale, shift = time.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + time)
        return self.skip(self.resample(x)) + self.conv2(self.dropout(F.silu(h)))


class AttentionBlock(nn.Module):
    """Let positions look at one another, and at the tokens of a text where there are any.

    Self-attention as in DDPM (Ho et al. 2020, app. B); cross-attention as in latent diffusion
    (Rombach et al. 2022, section 3.3).
    """

    def __init__(self, width: int, config: UNetConfig) -> None:
        super().__init__()
        heads = width // (config.head_width or width)
        self.norm, self.itself = group_norm(width), Attention(width, heads)
        self.text_norm = group_norm(width) if config.text_width else None
        self.text = Attention(width, heads, config.text_width) if config.text_width else None

    def forward(self, x: Tensor, emb: Tensor, cond: Any = None) -> Tensor:
        """Map (B, C, H, W) to the same shape; reads cond.text (B, L, D) and cond.mask (B, L)."""
        x = x + tokens_to_image(self.itself(image_to_tokens(self.norm(x))), like=x)
        if self.text is None or cond is None or cond.text is None:
            return x
        tokens = image_to_tokens(self.text_norm(x))
        return x + tokens_to_image(self.text(tokens, cond.text, cond.mask), like=x)


class Stage(nn.Sequential):
    """Pass an image, the time's embedding and the condition through one layer after another."""

    def forward(self, x: Tensor, emb: Tensor, cond: Any = None) -> Tensor:
        """Map (B, C, H, W) as the layers do."""
        for layer in self:
            x = layer(x, emb, cond)
        return x


class Encoder(nn.Module):
    """Map a noisy image and a clock to features, one for each skip and one for the middle.

    The first half of a U-Net; on its own, a classifier's trunk (Dhariwal & Nichol 2021, section 4)
    and what ControlNet copies. Downsampling pads on both sides (IDDPM's code), not on the right
    alone (DDPM's).
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels, emb = config.channels, 4 * config.channels
        self.clock = nn.Sequential(nn.Linear(channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label = LabelEmbedding(config.n_classes, emb) if config.n_classes else None
        self.end = nn.Linear(config.text_width, emb) if config.text_width else None
        self.picture = nn.Linear(config.embedding_width, emb) if config.embedding_width else None
        self.augmentation = nn.Linear(channels, emb) if config.augmented else None
        self.first = nn.Conv2d(config.in_channels * config.patch**2, channels, 3, padding=1)
        self.stages = nn.ModuleList()
        h, last = channels, len(config.multipliers) - 1
        for level, (width, side) in enumerate(config.levels):
            for _ in range(config.depth):
                self.stages.append(_stage(h, width, side, config))
                h = width
            if level < last:
                self.stages.append(Stage(_down(width, emb, config)))
        ends = (ResidualBlock(h, h, emb, config) for _ in range(2))
        self.middle = Stage(next(ends), AttentionBlock(h, config), next(ends))

    def embed(self, clock: Tensor, cond: Any = None) -> Tensor:
        """Return what every block reads: clock (B,) to silu(time + what is said), (B, 4 channels).

        Of a text it is the last token that may be seen (GLIDE, Nichol et al. 2021, section 4.1);
        a picture's embedding is projected (DALL-E 2, Ramesh et al. 2022, section 2.1), and a
        smaller picture's noise told as the time is (Imagen, Saharia et al. 2022, section 2.4).
        """
        emb = self.clock(self._sines(clock))
        if self.picture is not None and cond is not None and cond.image_embedding is not None:
            emb = emb + self.picture(cond.image_embedding)
        if self.augmentation is not None and cond is not None and cond.aug_level is not None:
            emb = emb + self.augmentation(self._sines(cond.aug_level))
        if self.end is not None and cond is not None and cond.text is not None:
            emb = emb + self.end(last_seen(cond.text, cond.mask))
        label = None if cond is None else cond.label
        if self.label is not None:
            return F.silu(emb + self.label(label))
        if label is not None:
            raise ValueError("this net knows no labels: build it with n_classes, or pass none")
        return F.silu(emb)

    def _sines(self, clock: Tensor) -> Tensor:
        sines = sinusoidal(clock * self.config.clock_scale, self.config.channels)
        return sines.to(next(self.parameters()).dtype)

    def forward(self, xt: Tensor, emb: Tensor, cond: Any = None) -> list[Tensor]:
        """Return the skips, from the first convolution's to the smallest, then the middle's."""
        side = self.config.side
        if xt.shape[1:] != (self.config.in_channels, side, side):
            wanted = f"(B, {self.config.in_channels}, {side}, {side})"
            raise ValueError(f"xt has shape {tuple(xt.shape)}: this net takes {wanted}")
        skips = [self.first(F.pixel_unshuffle(xt, self.config.patch))]
        for stage in self.stages:
            skips.append(stage(skips[-1], emb, cond))
        return [*skips, self.middle(skips[-1], emb, cond)]


class UNet(nn.Module):
    """Map a noisy image and a clock to a prediction of its size (DDPM, Ho et al. 2020, app. B).

    Each stage of the encoder leaves its output as a skip that one stage of the decoder reads.
    """

    def __init__(self, config: UNetConfig = DDPM, *, generator: Generator) -> None:
        super().__init__()
        self.config = config
        with torch.device("meta"):
            self.encoder = Encoder(config)
            self.decoder = nn.ModuleList()
            h, skips = config.levels[-1][0], config.skips
            for level, (width, side) in reversed(list(enumerate(config.levels))):
                for _ in range(config.depth + 1):
                    self.decoder.append(_stage(h + skips.pop(), width, side, config))
                    h = width
                if level > 0:
                    self.decoder[-1].append(_up(width, 4 * config.channels, config))
            self.last = nn.Sequential(
                group_norm(h),
                nn.SiLU(),
                nn.Conv2d(h, config.out_channels * config.patch**2, 3, padding=1),
            )
        initialise_unet(self, generator)
        nn.init.zeros_(self.last[-1].weight)

    def decode(self, features: Sequence[Tensor], emb: Tensor, cond: Any = None) -> Tensor:
        """Return the prediction, (B, out_channels, H, W), from what the encoder returned."""
        skips = list(features)
        h = skips.pop()
        for stage in self.decoder:
            h = stage(torch.cat([h, skips.pop()], dim=1), emb, cond)
        return F.pixel_shuffle(self.last(h), self.config.patch)

    def forward(
        self, xt: Tensor, clock: Tensor, cond: Any = None, control: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Map xt (B, C, H, W) and clock (B,) to (B, out_channels, H, W).

        `control` is added to the skips and the middle (ControlNet, Zhang et al. 2023, section 3).
        """
        emb = self.encoder.embed(clock, cond)
        features = self.encoder(xt, emb, cond)
        if control is not None:
            features = [x + c for x, c in zip(features, control, strict=True)]
        return self.decode(features, emb, cond)


def last_seen(text: Tensor, mask: Tensor | None) -> Tensor:
    """Return the last token of each text (B, L, D) that its mask (B, L) lets be seen, (B, D)."""
    if mask is None:
        return text[:, -1]
    last = mask.sum(1) - 1  # what may be seen comes first
    return text.gather(1, last[:, None, None].expand(-1, 1, text.shape[2]))[:, 0]


def group_norm(width: int) -> nn.GroupNorm:
    """Return a norm of 32 groups, or fewer in a narrow network (Wu & He 2018).

    A group has 4 channels at least: alone, a channel would lose all that time adds to it.
    """
    groups = next(
        g for g in (32, 16, 8, 4, 2, 1) if width % g == 0 and (width // g >= 4 or g == 1)
    )
    return nn.GroupNorm(groups, width, eps=1e-6)


def _stage(before: int, after: int, side: int, config: UNetConfig) -> Stage:
    block = ResidualBlock(before, after, 4 * config.channels, config)
    return (
        Stage(block, AttentionBlock(after, config)) if side in config.attention else Stage(block)
    )


def _down(width: int, emb: int, config: UNetConfig) -> nn.Module:
    if not config.resample_in_blocks:
        return Downsample(width)
    return ResidualBlock(width, width, emb, config, resample=nn.AvgPool2d(2))


def _up(width: int, emb: int, config: UNetConfig) -> nn.Module:
    if not config.resample_in_blocks:
        return Upsample(width)
    return ResidualBlock(width, width, emb, config, resample=nn.Upsample(scale_factor=2))


def initialise_unet(net: nn.Module, generator: Generator) -> None:
    """Draw weights uniform on +-sqrt(6 / (fan_in + fan_out)); zero what ends a residual path.

    DDPM's code (Ho et al. 2020), `default_init`, which scales those by 1e-10 instead. A network
    built under `torch.device("meta")` is given memory on the generator's device.
    """
    net.to_empty(device=generator.device)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, generator=generator)
    for module in net.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, Attention):
            nn.init.zeros_(module.out.weight)
