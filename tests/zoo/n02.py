"""Wrong answers to notebook 02, written as learners write them, not as our zoo does."""

import math

import torch
from torch.distributions import Normal


def betas_without_scale(n_steps):
    betas = torch.linspace(0.0001, 0.02, steps=n_steps, dtype=torch.float64)
    alphas = 1.0 - betas
    return betas, torch.cumprod(alphas, dim=0)


def betas_scaled_linear(n_steps):
    """Copy Stable Diffusion's "scaled_linear" schedule."""
    betas = torch.linspace(0.0001**0.5, 0.02**0.5, n_steps, dtype=torch.float64) ** 2
    betas = betas * (1000 / n_steps)
    return betas, (1 - betas).cumprod(0)


def betas_padded(n_steps):
    """Put alpha_bar_0 = 1 in front, as DDPM's code does for the posterior, and cut the end."""
    betas = torch.linspace(1e-4, 2e-2, n_steps, dtype=torch.float64) * 1000 / n_steps
    bars = torch.cumprod(1 - betas, 0)
    return betas, torch.nn.functional.pad(bars[:-1], (1, 0), value=1.0)


def betas_by_steps(n_steps):
    step = (0.02 - 0.0001) / n_steps
    betas = 1000 / n_steps * (0.0001 + step * torch.arange(n_steps, dtype=torch.float64))
    return betas, torch.cumprod(1 - betas, 0)


def loss_indexed_by_t(model, x0, t, eps, betas):
    ab = torch.cumprod(1 - betas, 0)[t].view(-1, 1)
    xt = ab.sqrt() * x0 + (1 - ab).sqrt() * eps
    return ((model(xt, t) - eps) ** 2).sum(dim=-1)


def loss_alpha_t(model, x0, t, eps, betas):
    alphas = 1 - betas
    a = alphas[t - 1].unsqueeze(1)
    return torch.sum((eps - model(a**0.5 * x0 + (1 - a) ** 0.5 * eps, t)) ** 2, 1)


def loss_mse(model, x0, t, eps, betas):
    ab = torch.exp(torch.log1p(-betas).cumsum(0))[t - 1, None]
    xt = torch.sqrt(ab) * x0 + torch.sqrt(1 - ab) * eps
    return torch.nn.functional.mse_loss(model(xt, t), eps, reduction="none").mean(1)


def loss_std_forgotten(model, x0, t, eps, betas):
    ab = (1 - betas).cumprod(0)[t - 1].reshape(-1, 1)
    return (model(ab.sqrt() * x0 + (1 - ab) * eps, t) - eps).pow(2).sum(1)


def step_always_noisy(xt, t, eps_hat, z, betas):
    alphas = 1 - betas
    ab = torch.cumprod(alphas, 0)
    coefficient = betas[t - 1] / torch.sqrt(1 - ab[t - 1])
    mean = 1 / torch.sqrt(alphas[t - 1]) * (xt - coefficient * eps_hat)
    return mean + torch.sqrt(betas[t - 1]) * z


def step_sigma_is_beta(xt, t, eps_hat, z, betas):
    alpha, ab = 1 - betas[t - 1], torch.cumprod(1 - betas, 0)[t - 1]
    mean = (xt - (1 - alpha) / (1 - ab) ** 0.5 * eps_hat) / alpha**0.5
    return mean if t == 1 else mean + betas[t - 1] * z


def step_posterior_variance(xt, t, eps_hat, z, betas):
    """Use the posterior's variance, as diffusers' fixed_small does."""
    alpha, ab = 1 - betas[t - 1], torch.cumprod(1 - betas, 0)
    mean = (xt - betas[t - 1] / (1 - ab[t - 1]).sqrt() * eps_hat) / alpha.sqrt()
    if t == 1:
        return mean
    variance = betas[t - 1] * (1 - ab[t - 2]) / (1 - ab[t - 1])
    return mean + variance.sqrt() * z


def step_everything_in_brackets(xt, t, eps_hat, z, betas):
    alpha, ab = 1 - betas[t - 1], torch.cumprod(1 - betas, 0)[t - 1]
    inside = xt - betas[t - 1] / (1 - ab).sqrt() * eps_hat
    if t > 1:
        inside = inside + betas[t - 1].sqrt() * z
    return inside / alpha.sqrt()


def weight_bar(betas):
    ab = torch.cumprod(1 - betas, 0)
    return betas**2 / (2 * betas * ab * (1 - ab))


def weight_no_variance(betas):
    alphas = 1 - betas
    return betas**2 / (2 * alphas * (1 - alphas.cumprod(0)))


def weight_no_half(betas):
    return betas / (1 - betas) / (1 - torch.cumprod(1 - betas, 0))


def sample_forwards(model, x_T, noises, betas):
    x = x_T
    for t in range(1, len(betas) + 1):
        x = one_step(model, x, t, noises, betas)
    return x


def sample_zero_based(model, x_T, noises, betas):
    x = x_T
    for t in reversed(range(len(betas))):
        seen = torch.full((x.shape[0],), t)
        x = clean_step(x, t + 1, model(x, seen), noises, betas)
    return x


def sample_stops_early(model, x_T, noises, betas):
    x = x_T
    for t in range(len(betas), 1, -1):
        x = one_step(model, x, t, noises, betas)
    return x


def one_step(model, x, t, noises, betas):
    return clean_step(x, t, model(x, torch.full((len(x),), t)), noises, betas)


def clean_step(x, t, eps_hat, noises, betas):
    alpha, ab = 1 - betas[t - 1], torch.cumprod(1 - betas, 0)[t - 1]
    mean = (x - betas[t - 1] / torch.sqrt(1 - ab) * eps_hat) / torch.sqrt(alpha)
    return mean + torch.sqrt(betas[t - 1]) * noises[t - 1] if t > 1 else mean


def pixels_by_density(x, mean, std):
    return Normal(mean, std).log_prob(x).sum(dim=1)


def pixels_in_bits(x, mean, std):
    upper = torch.where(x > 0.999, torch.inf, x + 1 / 255)
    lower = torch.where(x < -0.999, -torch.inf, x - 1 / 255)
    law = Normal(mean, std)
    return torch.log2(law.cdf(upper) - law.cdf(lower)).sum(1)


def pixels_without_tails(x, mean, std):
    law = Normal(mean, std)
    return (law.cdf(x + 1 / 255) - law.cdf(x - 1 / 255)).log().sum(1)


def pixels_wide(x, mean, std):
    """Take 1/127.5, the distance of two values, for half of it."""
    upper = torch.where(x > 0.999, math.inf, x + 1 / 127.5)
    lower = torch.where(x < -0.999, -math.inf, x - 1 / 127.5)
    law = Normal(mean, std)
    return (law.cdf(upper) - law.cdf(lower)).log().sum(1)


WRONG = {
    "02.1": [
        (betas_without_scale, "multiply the betas by 1000 / T"),
        (betas_scaled_linear, "linear in their square root"),
        (betas_padded, "do not begin with 1"),
        (betas_by_steps, "linspace with T points"),
    ],
    "02.2": [
        (loss_indexed_by_t, "step t stands at index t - 1"),
        (loss_alpha_t, "use alpha_bar, the product"),
        (loss_mse, "sum the squared error over the dimensions"),
        (loss_std_forgotten, "take its root"),
    ],
    "02.3": [
        (step_always_noisy, "take z = 0 at t = 1"),
        (step_sigma_is_beta, "sigma_t^2 is beta_t"),
        (step_posterior_variance, "the other choice of variance"),
        (step_everything_in_brackets, "multiplies the mean alone"),
    ],
    "02.4": [
        (weight_bar, "one step's factor"),
        (weight_no_variance, "one factor of beta cancels"),
        (weight_no_half, "/ (2 sigma^2)"),
    ],
    "02.5": [
        (sample_forwards, "run t from T down to 1"),
        (sample_zero_based, "not about t - 1"),
        (sample_stops_early, "still x_1"),
    ],
    "02.6": [
        (pixels_by_density, "a density is not a probability"),
        (pixels_in_bits, "use the natural logarithm"),
        (pixels_without_tails, "reach to infinity"),
        (pixels_wide, "1 / 255 to either side"),
    ],
}
