"""Guidance and thresholds: a denoiser goes in, a denoiser comes out, so that they compose."""

from __future__ import annotations

from torch import Tensor

from tutorial_lib.denoiser import Condition, Denoiser, Prediction
from tutorial_lib.schedule import Time


class StaticThreshold:
    """Clip each predicted x_0 to the range of the data, and make eps agree.

    Imagen (Saharia et al. 2022), section 2.3; DDPM's released code samples so (Ho et al. 2020).
    Without it an error in eps, divided by a small alpha, throws x_0 far outside.
    """

    def __init__(self, denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> None:
        if not low < high:
            raise ValueError(f"the range is {low} to {high}: it must rise")
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.low, self.high = low, high

    def __call__(self, xt: Tensor, t: Time, cond: Condition | None = None) -> Prediction:
        """Predict as the denoiser does, within the range."""
        return self.denoiser(xt, t, cond).clipped(self.low, self.high)
