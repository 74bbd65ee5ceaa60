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


def betas_shrunk(n_steps):
    betas = torch.linspace(1e-4, 0.02, n_steps, dtype=torch.float64) * (n_steps / 1000)
    return betas, torch.cumprod(1 - betas, dim=0)


def bars_then_betas(n_steps):
    scale = 1000 / n_steps
    betas = torch.linspace(scale * 1e-4, scale * 0.02, n_steps, dtype=torch.float64)
    alpha_bar = (1 - betas).cumprod(0)
    return alpha_bar, betas


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


def loss_flat_bars(model, x0, t, eps, betas):
    ab = torch.cumprod(1 - betas, 0)[t - 1]
    xt = torch.sqrt(ab) * x0 + torch.sqrt(1 - ab) * eps
    return ((eps - model(xt, t)) ** 2).sum(1)


def loss_axes_of_images(model, x0, t, eps, betas):
    """Shape alpha_bar as code for images does."""
    ab = torch.cumprod(1 - betas, 0)[t - 1].view(-1, 1, 1, 1)
    xt = ab.sqrt() * x0 + (1 - ab).sqrt() * eps
    return ((eps - model(xt, t)) ** 2).flatten(1).sum(1)


def loss_step_with_axis(model, x0, t, eps, betas):
    t = t.unsqueeze(1)
    ab = torch.cumprod(1 - betas, 0)[t - 1]
    xt = ab.sqrt() * x0 + (1 - ab).sqrt() * eps
    return ((eps - model(xt, t)) ** 2).sum(1)


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


def step_indexed_by_t(xt, t, eps_hat, z, betas):
    alpha, ab = 1 - betas[t], torch.cumprod(1 - betas, 0)[t]
    mean = 1 / alpha.sqrt() * (xt - (1 - alpha) / (1 - ab).sqrt() * eps_hat)
    return mean if t == 1 else mean + betas[t].sqrt() * z


def step_bar_late(xt, t, eps_hat, z, betas):
    beta, ab = betas[t - 1], torch.cumprod(1 - betas, 0)[t]
    mean = (xt - beta * eps_hat / torch.sqrt(1 - ab)) / torch.sqrt(1 - beta)
    return mean + (t > 1) * beta.sqrt() * z


def step_bar_before(xt, t, eps_hat, z, betas):
    beta, ab = betas[t - 1], torch.cumprod(1 - betas, 0)[t - 2]
    mean = (xt - beta * eps_hat / torch.sqrt(1 - ab)) / torch.sqrt(1 - beta)
    return mean + (t > 1) * beta.sqrt() * z


def step_padded(xt, t, eps_hat, z, betas):
    ab = torch.cat([torch.ones(1, dtype=betas.dtype), torch.cumprod(1 - betas, 0)])
    mean = (xt - betas[t - 1] / (1 - ab[t - 1]) ** 0.5 * eps_hat) / (1 - betas[t - 1]) ** 0.5
    return mean + (t > 1) * betas[t - 1] ** 0.5 * z


def step_own_noise(xt, t, eps_hat, z, betas):
    """Invert x_t = sqrt(alpha) x_(t-1) + sqrt(beta) eps, with the guess for this step's eps."""
    beta = betas[t - 1]
    mean = (xt - torch.sqrt(beta) * eps_hat) / torch.sqrt(1 - beta)
    return mean + torch.sqrt(beta) * z if t > 1 else mean


def step_in_place(xt, t, eps_hat, z, betas):
    ab = torch.cumprod(1 - betas, 0)[t - 1]
    xt -= betas[t - 1] / torch.sqrt(1 - ab) * eps_hat
    return xt + torch.sqrt(betas[t - 1]) * z if t > 1 else xt


def stride_last_entry(xt, eps_hat, s, t, betas):
    ab = torch.cumprod(1 - betas, 0)
    kept = ab[t - 1] / ab[s - 1]
    return (xt - (1 - kept) / torch.sqrt(1 - ab[t - 1]) * eps_hat) / torch.sqrt(kept)


def stride_through_x0(xt, eps_hat, s, t, betas):
    """Guess x_0 and scale it to step s."""
    ab = torch.cat([torch.ones(1, dtype=betas.dtype), torch.cumprod(1 - betas, 0)])
    x0_hat = (xt - (1 - ab[t]).sqrt() * eps_hat) / ab[t].sqrt()
    return ab[s].sqrt() * x0_hat


def stride_subtracts_variances(xt, eps_hat, s, t, betas):
    ab = torch.cat([betas.new_ones(1), (1 - betas).cumprod(0)])
    added = (1 - ab[t]) - (1 - ab[s])
    share = added / (1 - ab[t])
    return torch.sqrt(ab[s] / ab[t]) * (xt - share * torch.sqrt(1 - ab[t]) * eps_hat)


def stride_adds_betas(xt, eps_hat, s, t, betas):
    """Generalise the one step's beta / sqrt(1 - alpha_bar)."""
    alphas = 1 - betas
    mean = xt - betas[s:t].sum() / (1 - alphas[:t].prod()).sqrt() * eps_hat
    return mean / alphas[s:t].prod().sqrt()


def stride_by_ddim(xt, eps_hat, s, t, betas):
    """Predict x_0, and put the same noise back at the level s."""
    alpha_bar = torch.cat([torch.ones(1, dtype=betas.dtype), (1 - betas).cumprod(0)])
    x0 = (xt - (1 - alpha_bar[t]).sqrt() * eps_hat) / alpha_bar[t].sqrt()
    return alpha_bar[s].sqrt() * x0 + (1 - alpha_bar[s]).sqrt() * eps_hat


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


def sample_counts_noises(model, x_T, noises, betas):
    x = x_T
    for used, t in enumerate(range(len(betas), 0, -1)):
        eps_hat = model(x, torch.full((len(x),), t))
        x = clean_step(x, t, eps_hat, noises[used].expand(len(betas), *x.shape), betas)
    return x


def sample_from_one_below(model, x_T, noises, betas):
    x = x_T
    for t in range(len(betas) - 1, 0, -1):
        x = one_step(model, x, t, noises, betas)
    return x


def sample_noise_at_t(model, x_T, noises, betas):
    x = x_T
    for t in range(len(betas), 0, -1):
        mean = clean_step(x, t, model(x, torch.full((len(x),), t)), 0 * noises, betas)
        x = mean + betas[t - 1].sqrt() * noises[t] * (t > 1)
    return x


def sample_plain_int(model, x_T, noises, betas):
    x = x_T
    for t in range(len(betas), 0, -1):
        x = clean_step(x, t, model(x, t), noises, betas)
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


def pixels_squared_std(x, mean, std):
    """Pass the variance where torch wants the standard deviation."""
    upper = torch.where(x > 0.999, math.inf, x + 1 / 255)
    lower = torch.where(x < -0.999, -math.inf, x - 1 / 255)
    law = Normal(mean, std**2)
    return (law.cdf(upper) - law.cdf(lower)).log().sum(1)


def pixels_top_only(x, mean, std):
    upper = torch.where(x >= 1, 1.0, Normal(mean, std).cdf(x + 1 / 255))
    return torch.log(upper - Normal(mean, std).cdf(x - 1 / 255)).sum(-1)


def pixels_bottom_only(x, mean, std):
    z_low, z_high = (x - 1 / 255 - mean) / std, (x + 1 / 255 - mean) / std
    low, high = (0.5 * (1 + torch.erf(z / 2**0.5)) for z in (z_low, z_high))
    return torch.log(high - torch.where(x <= -1, 0.0, low)).sum(-1)


WRONG = {
    "02.1": [
        (betas_without_scale, "multiply the betas by 1000 / T"),
        (betas_scaled_linear, "linear in their square root"),
        (betas_padded, "do not begin with 1"),
        (betas_by_steps, "linspace with T points"),
        (betas_shrunk, "not T / 1000"),
        (bars_then_betas, "the other way round"),
    ],
    "02.2": [
        (loss_indexed_by_t, "step t stands at index t - 1"),
        (loss_alpha_t, "use alpha_bar, the product"),
        (loss_mse, "sum the squared error over the dimensions"),
        (loss_std_forgotten, "take its root"),
        (loss_flat_bars, "give it a second axis"),
        (loss_axes_of_images, "must be (B, 1)"),
        (loss_step_with_axis, "takes t of shape (B,)"),
    ],
    "02.3": [
        (step_always_noisy, "take z = 0 at t = 1"),
        (step_sigma_is_beta, "sigma_t^2 is beta_t"),
        (step_posterior_variance, "the other choice of variance"),
        (step_everything_in_brackets, "multiplies the mean alone"),
        (step_indexed_by_t, "read every table at t - 1"),
        (step_bar_late, "that of step t + 1"),
        (step_bar_before, "that of step t - 1"),
        (step_padded, "stands in front"),
        (step_own_noise, "the noise of all t steps"),
        (step_in_place, "divide the mean by it"),
    ],
    "02.4": [
        (stride_last_entry, "reads the last step"),
        (stride_through_x0, "x_s keeps the noise"),
        (stride_subtracts_variances, "not a difference"),
        (stride_adds_betas, "not the sum"),
        (stride_by_ddim, "as notebook 03 will"),
    ],
    "02.5": [
        (sample_forwards, "run t from T down to 1"),
        (sample_zero_based, "not about t - 1"),
        (sample_stops_early, "still x_1"),
        (sample_counts_noises, "not in order of use"),
        (sample_from_one_below, "range(T, 0, -1)"),
        (sample_noise_at_t, "index T is beyond the end"),
        (sample_plain_int, "takes t of shape (B,)"),
    ],
    "02.6": [
        (pixels_by_density, "a density is not a probability"),
        (pixels_in_bits, "use the natural logarithm"),
        (pixels_without_tails, "reach to infinity"),
        (pixels_wide, "1 / 255 to either side"),
        (pixels_squared_std, "not by its square"),
        (pixels_top_only, "the bin of 0 is open too"),
        (pixels_bottom_only, "the bin of 255 is open too"),
    ],
}
