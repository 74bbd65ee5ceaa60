"""Latent diffusion: a denoiser works on small pictures, and what it draws is made large."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tutorial_lib.first_stage import FirstStage


@dataclass(frozen=True)
class LatentSpace:
    """Hold a first stage, and the factor that gives its latents a standard deviation of 1.

    Rombach et al. 2022, section 4.3.2 and appendix G: noise schedules are made for data of that
    size. What is diffused inside is a picture to all of the course's code.
    """

    stage: FirstStage
    scale: float

    def enter(self, x: Tensor) -> Tensor:
        """Return the scaled latents (B, C, h, w) of pictures (B, 3, H, W): means, none drawn."""
        return self.scale * self.stage.law(x).mean

    def leave(self, z: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W), not clamped, from scaled latents."""
        return self.stage.decode(z / self.scale)


def latent_space(stage: FirstStage, x: Tensor) -> LatentSpace:
    """Return a first stage's space, scaled by what it makes of some pictures x (B, 3, H, W).

    Rombach et al. 2022, appendix G.
    """
    return LatentSpace(stage, 1 / stage.law(x).mean.std().item())
