"""A noise schedule that is learned: the log-SNR as a monotone network of time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tutorial_lib.schedule import Time, VariancePreserving, as_time


class LearnedVP(nn.Module, VariancePreserving):
    """Learn lambda(t), a monotone network between fixed ends (Kingma et al. 2021, section 3.2).

    h(t) = c t + sum_k w_k sigmoid(a_k t + b_k) with c, w_k, a_k > 0 rises; lambda falls from
    `lambda_max` at t = 0 to `lambda_min` at t = 1 in proportion to it. Unlike the fixed schedules
    it starts at a finite log-SNR.
    """

    def __init__(
        self, lambda_max: float, lambda_min: float, width: int = 16, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.lambda_max, self.lambda_min = lambda_max, lambda_min
        steep = torch.full((width,), math.log(math.expm1(width / 2)), dtype=torch.float64)
        centres = torch.rand(width, generator=generator, dtype=torch.float64)
        self.linear = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.weight = nn.Parameter(torch.full((width,), -2.0, dtype=torch.float64))
        self.slope = nn.Parameter(steep)
        self.offset = nn.Parameter(-centres * width / 2)

    def _rise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return h(t) and its derivative."""
        softplus = nn.functional.softplus
        slope, weight, linear = softplus(self.slope), softplus(self.weight), softplus(self.linear)
        gate = torch.sigmoid(slope * t[..., None] + self.offset)
        rate = linear + (weight * slope * gate * (1 - gate)).sum(-1)
        return linear * t + (weight * gate).sum(-1), rate

    def _ends(self) -> tuple[Tensor, Tensor]:
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=self.offset.device)
        start, end = self._rise(ends)[0]
        return start, end - start

    def lambda_(self, t: Time) -> Tensor:
        """Return lambda(t), falling from `lambda_max` to `lambda_min`."""
        start, span = self._ends()
        share = (self._rise(as_time(t))[0] - start) / span
        return self.lambda_max + share * (self.lambda_min - self.lambda_max)

    def log_alpha(self, t: Time) -> Tensor:
        """Return log alpha = 1/2 log sigmoid(2 lambda)."""
        return self.log_level(t)[0]

    def log_level(self, t: Time) -> tuple[Tensor, Tensor]:
        """Return 1/2 log sigmoid(2 lambda) and 1/2 log sigmoid(-2 lambda)."""
        double = 2 * self.lambda_(t)
        logsigmoid = nn.functional.logsigmoid
        return 0.5 * logsigmoid(double), 0.5 * logsigmoid(-double)

    def drift(self, t: Time) -> Tensor:
        """Return d log alpha / dt = sigma^2 d lambda / dt."""
        t = as_time(t)
        rate = self._rise(t)[1] / self._ends()[1] * (self.lambda_min - self.lambda_max)
        return self.sigma(t) ** 2 * rate

    def time_of(self, lambda_: Time) -> Tensor:
        """Return the t at which lambda is `lambda_`, by 60 halvings of [0, 1]."""
        target = torch.as_tensor(lambda_, dtype=torch.float64)
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(60):
            middle = 0.5 * (low + high)
            above = self.lambda_(middle) > target
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return 0.5 * (low + high)

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        return self.time_of(log_alpha - 0.5 * (-torch.expm1(2 * log_alpha)).log())
