"""Solvers of the reverse SDE, of the flow with its marginals, and Langevin's correction of both.

All are samplers: generator functions that yield x after every step. All take `generator`, those
that draw nothing too, so that each can stand where another does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.integrate import RK45, OdeSolver, solve_ivp
from torch import Tensor

from tutorial_lib.denoiser import Condition, Denoiser
from tutorial_lib.schedule import Schedule

Sampler = Callable[..., Iterator[Tensor]]


def _draw(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def _walk(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None,
    generator: torch.Generator,
    numbers: tuple[Tensor, Tensor, Tensor],
) -> Iterator[Tensor]:
    """Walk back along `times` by x_s = keep x_t + gain eps + std noise, no noise where s = 0."""
    keeps, gains, stds = numbers
    stds = stds * (times[1:] > 0)
    columns = (keeps.tolist(), gains.tolist(), stds.tolist())
    for t, keep, gain, std in zip(times[:-1], *columns, strict=True):
        x = keep * x + gain * denoiser(x, t, cond).eps
        if std > 0:
            x = x + std * _draw(x, generator)
        yield x


def euler_maruyama(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    generator: torch.Generator,
    eta: float = 1.0,
) -> Iterator[Tensor]:
    """Walk back along `times` by dx = [f x - (1 + eta^2) / 2 g^2 score] dt + eta g dw.

    All eta have the same marginals (Zhang & Chen 2023, eq. 4 and proposition 1, their lambda):
    1 is the reverse SDE (Song et al. 2021, Score SDE, eq. 6), 0 the probability flow, above 1
    over-noised. Small steps are those of `ddim` with this eta. A step that ends at s = 0 adds no
    noise; there eta = 1 removes what is left of it, 0 only half (solve the flow by `heun`).
    """
    schedule, t = denoiser.schedule, times[:-1]
    h = t - times[1:]
    if not bool((h > 0).all()):
        raise ValueError("the reverse SDE runs from noise to data: times must fall")
    g2h = schedule.diffusion2(t) * h
    gains = -0.5 * (1 + eta**2) * g2h / schedule.sigma(t)  # on eps = -sigma score
    numbers = (1 - schedule.drift(t) * h, gains, eta * g2h.sqrt())
    yield from _walk(denoiser, x, times, cond, generator, numbers)


def reverse_diffusion(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Walk back along `times`, undoing each forward transition as it was made.

    Song et al. (2021), Score SDE, appendix E: x_t = x_s + f(x_s) + G noise is reversed by
    x_s = x_t - f(x_t) + G^2 score + G noise; here f(x) = (scale - 1) x and G^2 is the variance,
    both of q(x_t | x_s). With alpha = 1, as on VE, it is `ancestral` with the variance beta. A
    step that ends at s = 0 adds no noise.
    """
    scales, variances = denoiser.schedule.transition(times[1:], times[:-1])
    gains = -variances / denoiser.schedule.sigma(times[:-1])
    yield from _walk(denoiser, x, times, cond, generator, (2 - scales, gains, variances.sqrt()))


def _mean_norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).mean()


def langevin(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    generator: torch.Generator,
    snr: float = 0.16,
) -> Iterator[Tensor]:
    """Take a step x + step score + sqrt(2 step) noise at each of `times`, which may be all equal.

    step = 2 (snr |noise| / |score|)^2 (Song et al. 2021, Score SDE, algorithm 4), with the
    norms' means over the batch as in the released code: a step of each row's own would depend on
    x, and no longer leave q(x_t) as it is. It does so as snr -> 0: of a Gaussian it keeps the
    mean and multiplies the variance by 1 + snr^2. Algorithm 5 shortens the step by the
    forward step's alpha_i, about 1, left out here. A ValueError where sigma = 0.
    """
    if not bool((denoiser.schedule.sigma(times) > 0).all()):
        raise ValueError("there is no score where sigma = 0: take Langevin steps at t > 0")
    for t in times:
        score, noise = denoiser(x, t, cond).score, _draw(x, generator)
        step = 2 * (snr * _mean_norm(noise) / _mean_norm(score)) ** 2
        x = x + step * score + (2 * step).sqrt() * noise
        yield x


def predictor_corrector(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    generator: torch.Generator,
    predictor: Sampler = reverse_diffusion,
    corrector_steps: int = 1,
    snr: float = 0.16,
) -> Iterator[Tensor]:
    """Walk back along `times` by any sampler, each step followed by Langevin steps where it ends.

    Song et al. (2021), Score SDE, algorithms 2-3. The released code corrects before it predicts:
    the same chain, but for a correction at times[0] in place of the one at times[-1]. A step
    that ends at s = 0 is not corrected, which would add noise to the data.
    """
    for i in range(len(times) - 1):
        (x,) = predictor(denoiser, x, times[i : i + 2], cond, generator=generator)
        if times[i + 1] > 0:
            stay = times[i + 1].expand(corrector_steps)
            *_, x = x, *langevin(denoiser, x, stay, cond, generator=generator, snr=snr)
        yield x


def _polar(schedule: Schedule, times: Tensor) -> tuple[Tensor, Tensor]:
    """Return r and phi of alpha = r cos phi and sigma = r sin phi."""
    log_alpha, log_sigma = schedule.log_level(times)
    alpha, sigma = log_alpha.exp(), log_sigma.exp()
    return torch.hypot(alpha, sigma), torch.atan2(sigma, alpha)


def _turns(schedule: Schedule, times: Tensor) -> tuple[list[float], list[float]]:
    """Return by how much phi changes in each step, and by what factor r does."""
    radii, angles = _polar(schedule, times)
    return angles.diff().tolist(), (radii[1:] / radii[:-1]).tolist()


def euler(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Follow the probability flow along `times` by Euler's steps, of order 1.

    The flow (Song et al. 2021, Score SDE, eq. 13) is written d(x / r) / d phi = v / r, with
    alpha = r cos phi and sigma = r sin phi (Salimans & Ho 2022, appendix D, where r = 1): it is
    regular at both ends, s = 0 too, and knows nothing of the schedule but where it stands. A
    step of `ddim` turns by the same angle on the circle on which this one goes straight. Times
    that rise encode data.
    """
    columns = _turns(denoiser.schedule, times)
    for t, turn, growth in zip(times[:-1], *columns, strict=True):
        x = growth * (x + turn * denoiser(x, t, cond).v)
        yield x


def heun(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Follow the probability flow along `times` by Heun's steps, of order 2, two looks each.

    The flow is written as in `euler`; the slope is the mean of those at t and at Euler's point at
    s (Karras et al. 2022, algorithm 1). A step that ends where sigma = 0 is Euler's, since no
    network has looked there. Times that rise encode data.
    """
    schedule = denoiser.schedule
    columns = (*_turns(schedule, times), (schedule.sigma(times[1:]) > 0).tolist())
    for t, s, turn, growth, noisy in zip(times[:-1], times[1:], *columns, strict=True):
        end = growth * (x + turn * denoiser(x, t, cond).v)
        x = 0.5 * (end + growth * x + turn * denoiser(end, s, cond).v) if noisy else end
        yield x


def probability_flow(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    generator: torch.Generator | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: type[OdeSolver] = RK45,
) -> Iterator[Tensor]:
    """Follow the probability flow to within a tolerance, by one of scipy's adaptive solvers.

    Song et al. (2021), Score SDE, section 4.3, tolerances as in the released code; the flow is
    written as in `euler`. The solver chooses its steps, the same for all of x, whose error it
    holds on average; `times` say where it is read, between steps by interpolation. Times that
    rise encode data. A ValueError where sigma = 0, a RuntimeError when the solver gives up.
    """
    schedule = denoiser.schedule
    radii, angles = _polar(schedule, times)
    if not bool((angles > 0).all()):
        raise ValueError("the solver would look where sigma = 0: let times end at t > 0")

    @torch.no_grad()
    def slope(angle: float, y: np.ndarray) -> np.ndarray:
        t = schedule.time_of(-math.log(math.tan(angle))).clamp(times.min(), times.max())
        r = _polar(schedule, t)[0].item()
        v = denoiser(r * torch.from_numpy(y).to(x).view_as(x), t, cond).v
        return (v / r).double().flatten().numpy(force=True)

    start = (x / radii[0].item()).double().flatten().numpy(force=True)
    stops, tolerances = angles.tolist(), {"rtol": rtol, "atol": atol}
    found = solve_ivp(slope, (stops[0], stops[-1]), start, method, stops[1:], **tolerances)
    if not found.success:
        raise RuntimeError(f"the flow was not solved to rtol {rtol:g}: {found.message}")
    for y, r in zip(found.y.T, radii[1:].tolist(), strict=True):
        yield torch.from_numpy(r * y).to(x).view_as(x)
