"""The first stage of latent diffusion: autoencoders whose latents are smaller pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from tutorial_lib.autoencoder import diagonal_gaussian
from tutorial_lib.gaussian import Gaussian, sum_over_dims
from tutorial_lib.networks.convolutional import downward, upward

COMMITMENT = 0.25  # of the encoder to its code (van den Oord et al. 2017, section 3.2)


@dataclass(frozen=True)
class FirstStageConfig:
    """Fix the shape of an autoencoder of pictures, with a halving of their sides per width.

    Its latents have `channels`. They are Gaussian, or, where there are `codes`, each place's is
    one of so many vectors: Rombach et al. 2022, section 3.1, KL-reg. and VQ-reg.
    """

    widths: tuple[int, ...] = (32, 64)
    channels: int = 4
    depth: int = 1
    codes: int = 0

    @property
    def factor(self) -> int:
        """Return f, by which the sides become smaller."""
        return 2 ** len(self.widths)


@dataclass(frozen=True)
class Quantised:
    """Hold latents replaced by vectors of a codebook, (B, C, H, W), and these vectors' numbers.

    `codes` is (B, H, W); `error` (B,), what learning adds to the loss, summed over all places.
    Gradients pass to the latents as if nothing had been replaced.
    """

    z: Tensor
    codes: Tensor
    error: Tensor


class Quantiser(nn.Module):
    """Replace each place's vector by the nearest of a codebook that is learned.

    VQ-VAE (van den Oord et al. 2017), eqs. 1 to 3, with the straight-through gradient.
    """

    def __init__(self, codes: int, channels: int, *, generator: Generator) -> None:
        super().__init__()
        self.book = nn.Parameter(torch.randn(codes, channels, generator=generator))

    def forward(self, z: Tensor) -> Quantised:
        """Map latents (B, C, H, W) to the nearest codes."""
        places = z.movedim(1, 3)  # (B, H, W, C)
        codes = torch.cdist(places.flatten(0, 2), self.book).argmin(1).view(places.shape[:3])
        nearest = self.vectors(codes)
        error = sum_over_dims((z.detach() - nearest).square())
        error = error + COMMITMENT * sum_over_dims((z - nearest.detach()).square())
        return Quantised(z + (nearest - z).detach(), codes, error)

    def vectors(self, codes: Tensor) -> Tensor:
        """Return the vectors (B, C, H, W) of codes (B, H, W)."""
        return self.book[codes].movedim(3, 1)

    @torch.no_grad()
    def renew(self, z: Tensor, *, generator: Generator) -> int:
        """Move vectors that are nearest to none of the latents z onto some of these; count them.

        Left alone, what is never chosen never learns (Dhariwal et al. 2020, section 3: random
        restarts).
        """
        places = z.movedim(1, 3).flatten(0, 2)
        used = torch.cdist(places, self.book).argmin(1).bincount(minlength=len(self.book)) > 0
        rows = torch.randint(len(places), (int((~used).sum()),), generator=generator)
        self.book[~used] = places[rows.to(places.device)]
        return len(rows)


@dataclass(frozen=True)
class Restored:
    """Hold pictures that went through an autoencoder, and what their latents cost, (B,).

    `price` is the divergence of the latents from N(0, I), in nats, or a quantiser's error.
    """

    x: Tensor
    price: Tensor


class FirstStage(nn.Module):
    """Make pictures smaller and larger again; smaller, they stay pictures.

    Rombach et al. 2022, section 3.1. Autocast lowers the precision of the convolutions, not that
    of the latents.
    """

    def __init__(self, config: FirstStageConfig, *, generator: Generator) -> None:
        super().__init__()
        self.config, channels = config, config.channels
        told = channels if config.codes else 2 * channels  # means, and how far to trust them
        shape = (config.widths, config.depth)
        self.encoder = downward(3, *shape, told, generator=generator)
        self.decoder = upward(channels, config.widths[::-1], config.depth, 3, generator=generator)
        self.quantiser = None
        if config.codes:
            self.quantiser = Quantiser(config.codes, channels, generator=generator)

    def law(self, x: Tensor) -> Gaussian:
        """Return q(z|x) of pictures (B, 3, H, W), over (B, channels, H / f, W / f).

        Its variance is 0 where there are codes, before they are chosen: a latent diffusion draws
        that, and the choice is the decoder's first layer (Rombach et al. 2022, section 3.1).
        """
        told = self.encoder(x).to(x.dtype)
        return Gaussian(told, 0.0) if self.quantiser else diagonal_gaussian(told)

    def decode(self, z: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W), not clamped, from latents (B, channels, H / f, W / f)."""
        z = self.quantiser(z).z if self.quantiser else z
        return self.decoder(z).to(z.dtype)

    def forward(self, x: Tensor, *, generator: Generator) -> Restored:
        """Return pictures after the way down and up, with latents drawn."""
        law = self.law(x)
        if self.quantiser is None:
            price = law.kl(Gaussian(torch.zeros_like(law.mean), 1.0))
            return Restored(self.decode(law.sample(generator=generator)), price)
        chosen = self.quantiser(law.mean)
        return Restored(self.decoder(chosen.z).to(x.dtype), chosen.error)
