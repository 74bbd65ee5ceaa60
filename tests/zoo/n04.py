"""Wrong answers to notebook 04, written as learners write them, not as our zoo does."""

import math
from itertools import pairwise

import torch


def kernel_quarter(integral):
    """Keep the 0.25 of Song's log_mean_coeff, which is there for t^2 (beta_1 - beta_0)."""
    log_mean_coeff = -0.25 * integral
    mean = torch.exp(log_mean_coeff)
    std = torch.sqrt(1.0 - torch.exp(2.0 * log_mean_coeff))
    return (mean, std), (mean, 1 - torch.exp(2.0 * log_mean_coeff))


def kernel_covariances(integral):
    """Copy eq. 29 as it is printed, where N(mean, covariance) is meant."""
    mean = torch.exp(-0.5 * integral)
    return (mean, 1 - torch.exp(-integral)), (mean, (1 - torch.exp(-integral)) ** 2)


def kernel_sub_like_vp(integral):
    alpha_bar = torch.exp(-integral)
    vp = (alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
    return vp, vp


def kernel_sub_from_diffusion(integral):
    """Take 1 - exp(-2B) of sub-VP's g(t) for its variance."""
    mean = torch.exp(-integral / 2)
    std = torch.sqrt(-torch.expm1(-integral))
    return (mean, std), (mean, torch.sqrt(1 - torch.exp(-2 * integral)))


def kernel_whole_exponent(integral):
    mean = torch.exp(-integral)
    std = torch.sqrt(1 - mean**2)
    return (mean, std), (mean, 1 - mean**2)


def kernel_mean_not_squared(integral):
    mean = torch.exp(-0.5 * integral)
    return (mean, torch.sqrt(1 - mean)), (mean, 1 - mean)


def kernel_sub_covariance_only(integral):
    mean, var = torch.exp(-0.5 * integral), 1 - torch.exp(-integral)
    return (mean, var.sqrt()), (mean, var.square())


def dsm_sign(score, x0, t, eps, mean_factor, std):
    m, s = mean_factor[:, None], std[:, None]
    perturbed = m * x0 + s * eps
    return torch.sum((s * score(perturbed, t) - eps) ** 2, dim=1)


def dsm_noise_prediction(score, x0, t, eps, mean_factor, std):
    """Train as DDPM does: the network against eps."""
    x_t = mean_factor.view(-1, 1) * x0 + std.view(-1, 1) * eps
    return ((score(x_t, t) - eps) ** 2).sum(-1)


def dsm_unweighted(score, x0, t, eps, mean_factor, std):
    m, s = mean_factor.unsqueeze(-1), std.unsqueeze(-1)
    target = -eps / s
    return (score(m * x0 + s * eps, t) - target).pow(2).sum(dim=-1)


def dsm_reduce_mean(score, x0, t, eps, mean_factor, std):
    """Reduce as Song's code does with reduce_mean=True."""
    mean, std = mean_factor[:, None] * x0, std[:, None]
    losses = torch.square(score(mean + std * eps, t) * std + eps)
    return torch.mean(losses.reshape(losses.shape[0], -1), dim=-1)


def dsm_reduce_half(score, x0, t, eps, mean_factor, std):
    """Reduce as Song's code does with reduce_mean=False."""
    mean, std = mean_factor[:, None] * x0, std[:, None]
    losses = torch.square(score(mean + std * eps, t) * std + eps)
    return 0.5 * torch.sum(losses.reshape(losses.shape[0], -1), dim=-1)


def dsm_target_over_variance(score, x0, t, eps, mean_factor, std):
    """Divide eps, not x_t - mean, by the variance."""
    m, s = mean_factor[:, None], std[:, None]
    residual = score(m * x0 + s * eps, t) + eps / s**2
    return (s**2 * residual**2).sum(1)


def dsm_weighted_once(score, x0, t, eps, mean_factor, std):
    m, s = mean_factor[:, None], std[:, None]
    residual = score(m * x0 + s * eps, t) + eps / s
    return std * residual.square().sum(1)


def dsm_ve_perturbation(score, x0, t, eps, mean_factor, std):
    s = std[:, None]
    x_t = x0 + s * eps
    return torch.sum((score(x_t, t) * s + eps) ** 2, dim=1)


def dsm_broadcast(score, x0, t, eps, mean_factor, std):
    x_t = mean_factor * x0 + std * eps
    return torch.sum((score(x_t, t) * std + eps) ** 2, dim=1)


def dsm_broadcast_swapped(score, x0, t, eps, mean_factor, std):
    x_t = x0 * mean_factor + eps * std
    return ((std * score(x_t, t) + eps) ** 2).sum(1)


def reverse_half_score(x, score, beta, dt, z):
    drift = -0.5 * beta * x - 0.5 * beta * score
    return x - drift * dt + (beta * dt) ** 0.5 * z


def reverse_time_rises(x, score, beta, dt, z):
    drift = -0.5 * beta * x - beta * score
    x_mean = x + drift * dt
    return x_mean + (beta * dt) ** 0.5 * z


def reverse_score_sign(x, score, beta, dt, z):
    return x + (0.5 * beta * x - beta * score) * dt + (beta * dt) ** 0.5 * z


def reverse_contraction_kept(x, score, beta, dt, z):
    """Turn the score's sign, not the drift's."""
    return x - 0.5 * beta * x * dt + beta * score * dt + (beta * dt) ** 0.5 * z


def reverse_noise_by_dt(x, score, beta, dt, z):
    drift, diffusion = -0.5 * beta * x - beta * score, beta**0.5
    return x - drift * dt + diffusion * dt * z


def reverse_noise_without_dt(x, score, beta, dt, z):
    drift, diffusion = -0.5 * beta * x - beta * score, beta**0.5
    return x - drift * dt + diffusion * z


def reverse_diffusion_is_beta(x, score, beta, dt, z):
    drift = -0.5 * beta * x - beta**2 * score
    return x - drift * dt + beta * dt**0.5 * z


def reverse_ancestral(x, score, beta, dt, z):
    """Step as vpsde_update_fn of Song's AncestralSamplingPredictor."""
    beta = beta * dt
    x_mean = (x + beta * score) / (1.0 - beta) ** 0.5
    return x_mean + beta**0.5 * z


def reverse_drift_whole(x, score, beta, dt, z):
    return x + beta * (x + score) * dt + (beta * dt) ** 0.5 * z


def family_linear(x, score, beta, lam):
    """Go linearly between the 0.5 and the 1 of Song's probability_flow switch."""
    drift = -0.5 * beta * x - beta * score * (0.5 + 0.5 * lam)
    return drift, lam * beta**0.5


def family_reverse_drift(x, score, beta, lam):
    return -0.5 * beta * x - beta * score, lam * beta**0.5


def family_flow_drift(x, score, beta, lam):
    return -0.5 * beta * (x + score), lam * beta**0.5


def family_forward_sign(x, score, beta, lam):
    """Correct for the noise as if time rose."""
    return -0.5 * beta * x - 0.5 * (1 - lam**2) * beta * score, lam * beta**0.5


def family_variance(x, score, beta, lam):
    return -0.5 * beta * x - 0.5 * (1 + lam) * beta * score, (lam * beta) ** 0.5


def family_no_half(x, score, beta, lam):
    g = beta**0.5
    return -0.5 * beta * x - (1 + lam**2) * g**2 * score, lam * g


def family_sampling_direction(x, score, beta, lam):
    return 0.5 * beta * x + (1 + lam**2) / 2 * beta * score, lam * beta**0.5


def family_lam_beta(x, score, beta, lam):
    return -0.5 * beta * (x + (1 + lam**2) * score), lam * beta


def family_lam_alone(x, score, beta, lam):
    """Put lam^2 in the place of (1 + lam^2) / 2."""
    return -0.5 * beta * x - lam**2 * beta * score, lam * beta**0.5


def hutchinson_sum(f, x, signs):
    total = 0
    for eps in signs:
        x = x.detach().requires_grad_(True)
        grad = torch.autograd.grad(torch.sum(f(x) * eps), x)[0]
        total = total + torch.sum(grad * eps, dim=1)
    return total


def hutchinson_first_only(f, x, signs):
    """Return inside the loop."""
    for eps in signs:
        x = x.detach().requires_grad_(True)
        grad = torch.autograd.grad(torch.sum(f(x) * eps), x)[0]
        return torch.sum(grad * eps, dim=1)


def hutchinson_mean_sign(f, x, signs):
    eps = signs.mean(0)
    _, vjp = torch.func.vjp(f, x)
    return (vjp(eps)[0] * eps).sum(-1)


def hutchinson_mean_everywhere(f, x, signs):
    _, pull = torch.func.vjp(f, x)
    return torch.stack([pull(v)[0] * v for v in signs]).mean((0, 2))


def hutchinson_no_second_dot(f, x, signs):
    x = x.detach().requires_grad_(True)
    y = f(x)
    grads = [torch.autograd.grad(y, x, v, retain_graph=True)[0] for v in signs]
    return torch.stack(grads).mean(0).sum(1)


def hutchinson_one_pass(f, x, signs):
    """Give Song's divergence estimate every eps at once."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        grad = torch.autograd.grad(torch.sum(f(x) * signs), x)[0]
    return torch.sum(grad * signs, dim=-1).mean(0)


def hutchinson_graph_freed(f, x, signs):
    x = x.detach().requires_grad_(True)
    y, total = f(x), 0
    for v in signs:
        total = total + (torch.autograd.grad((y * v).sum(), x)[0] * v).sum(1)
    return total / len(signs)


def hutchinson_no_gradient(f, x, signs):
    products = [(torch.autograd.grad((f(x) * v).sum(), x)[0] * v).sum(1) for v in signs]
    return torch.stack(products).mean(0)


def hutchinson_whole_batch(f, x, signs):
    x = x.detach().requires_grad_(True)
    estimates = []
    for v in signs:
        grad = torch.autograd.grad((f(x) * v).sum(), x)[0]
        estimates.append((grad * v).sum())
    return sum(estimates) / len(estimates)


def likelihood_minus(x, drift, divergence, times, log_prior):
    delta = torch.zeros(len(x), dtype=x.dtype)
    for t, after in pairwise(times):
        dt = after - t
        delta = delta - divergence(x, t) * dt
        x = x + drift(x, t) * dt
    return log_prior(x) + delta


def likelihood_moves_first(x, drift, divergence, times, log_prior):
    delta = 0.0
    for i in range(len(times) - 1):
        dt = times[i + 1] - times[i]
        x = x + dt * drift(x, times[i])
        delta = delta + dt * divergence(x, times[i])
    return log_prior(x) + delta


def likelihood_moves_then_next_time(x, drift, divergence, times, log_prior):
    delta = 0.0
    for i in range(len(times) - 1):
        dt = times[i + 1] - times[i]
        x = x + dt * drift(x, times[i])
        delta = delta + dt * divergence(x, times[i + 1])
    return log_prior(x) + delta


def likelihood_prior_of_data(x, drift, divergence, times, log_prior):
    logp = log_prior(x)
    for t, dt in zip(times[:-1], times.diff(), strict=True):
        logp = logp + divergence(x, t) * dt
        x = x + drift(x, t) * dt
    return logp


def likelihood_from_noise(x, drift, divergence, times, log_prior):
    """Run the sampler's loop, from T down."""
    times, delta = times.flip(0), 0.0
    for t, after in pairwise(times):
        dt = after - t
        delta = delta + divergence(x, t) * dt
        x = x + drift(x, t) * dt
    return log_prior(x) + delta


def likelihood_later_time(x, drift, divergence, times, log_prior):
    delta, before = 0.0, times[0]
    for t in times[1:]:
        dt = t - before
        delta, x = delta + divergence(x, t) * dt, x + drift(x, t) * dt
        before = t
    return log_prior(x) + delta


def likelihood_one_dt(x, drift, divergence, times, log_prior):
    delta, dt = 0.0, times[1] - times[0]
    for t in times[:-1]:
        delta, x = delta + divergence(x, t) * dt, x + drift(x, t) * dt
    return log_prior(x) + delta


def likelihood_in_bits(x, drift, divergence, times, log_prior):
    """Return Song's bits per dimension."""
    dims, delta = x.shape[1], 0.0
    for t, dt in zip(times[:-1], times.diff(), strict=True):
        delta, x = delta + divergence(x, t) * dt, x + drift(x, t) * dt
    return -(log_prior(x) + delta) / math.log(2) / dims


def likelihood_without_dt(x, drift, divergence, times, log_prior):
    delta = 0.0
    for t, dt in zip(times[:-1], times.diff(), strict=True):
        delta = delta + divergence(x, t)
        x = x + drift(x, t) * dt
    return log_prior(x) + delta


WRONG = {
    "04.1": [
        (kernel_quarter, "Song's 0.25"),
        (kernel_covariances, "take the root of both"),
        (kernel_sub_like_vp, "the sub-VP SDE adds less noise"),
        (kernel_sub_from_diffusion, "is a factor of sub-VP's g^2"),
        (kernel_whole_exponent, "those of twice the integral"),
        (kernel_mean_not_squared, "yours lacks the square"),
        (kernel_sub_covariance_only, "its std has no square"),
    ],
    "04.2": [
        (dsm_sign, "it is -eps / std"),
        (dsm_noise_prediction, "not the noise that DDPM's network guesses"),
        (dsm_unweighted, "multiply by std^2"),
        (dsm_reduce_mean, "sum over them, do not average"),
        (dsm_reduce_half, "everything is ≈ 0.5 times the answer"),
        (dsm_target_over_variance, "divided by the variance it leaves -eps / std"),
        (dsm_weighted_once, "std^2, not std"),
        (dsm_ve_perturbation, "scale x_0 before you add the noise"),
        (dsm_broadcast, "a second axis"),
        (dsm_broadcast_swapped, "a second axis"),
    ],
    "04.3": [
        (reverse_half_score, "half of the score is for the flow"),
        (reverse_time_rises, "the whole drift changes its sign"),
        (reverse_score_sign, "the score pulls towards the data"),
        (reverse_contraction_kept, "on the way back x grows"),
        (reverse_noise_by_dt, "sqrt(dt), not dt"),
        (reverse_noise_without_dt, "yours lacks dt"),
        (reverse_diffusion_is_beta, "beta is g^2"),
        (reverse_ancestral, "DDPM's step divides"),
        (reverse_drift_whole, "the drift of x is beta / 2 x"),
    ],
    "04.4": [
        (family_linear, "the score's weight is (1 + lam^2) / 2"),
        (family_reverse_drift, "less noise takes less of the score"),
        (family_flow_drift, "noise blurs the marginals"),
        (family_forward_sign, "is for noise added with dt > 0"),
        (family_variance, "its lam multiplies g^2"),
        (family_no_half, "at lam = 1 it must be the reverse SDE's"),
        (family_sampling_direction, "asked in forward time"),
        (family_lam_beta, "the diffusion is lam times its root"),
        (family_lam_alone, "at lam = 0 the flow must remain"),
    ],
    "04.5": [
        (hutchinson_sum, "average over the n probes"),
        (hutchinson_first_only, "only the first probe was asked"),
        (hutchinson_mean_sign, "a mean of probes is no probe"),
        (hutchinson_mean_everywhere, "sum over the last axis"),
        (hutchinson_no_second_dot, "multiply the product v J by v"),
        (hutchinson_one_pass, "one backward pass for all probes mixes them"),
        (hutchinson_graph_freed, "or retain_graph"),
        (hutchinson_no_gradient, "autograd must watch x"),
        (hutchinson_whole_batch, "has shape (), expected (4,)"),
    ],
    "04.6": [
        (likelihood_minus, "it began denser than it ends"),
        (likelihood_moves_first, "add the divergence, then move"),
        (likelihood_moves_then_next_time, "ask for both before the step"),
        (likelihood_prior_of_data, "ask it where the point arrives"),
        (likelihood_from_noise, "take the times as they rise"),
        (likelihood_later_time, "at the time where it begins"),
        (likelihood_one_dt, "a dt of its own"),
        (likelihood_in_bits, "-0.7213 times the answer"),
        (likelihood_without_dt, "multiply it by the step dt"),
    ],
}
