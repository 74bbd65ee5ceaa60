"""Wrong answers to notebook 05, written as learners write them, not as our zoo does."""

import math

import torch
import torch.nn.functional as F


def cosine_bars_unclipped(n_steps, s, max_beta):
    """Keep the curve itself beside the clipped betas."""
    t = torch.arange(n_steps + 1, dtype=torch.float64)
    f = torch.cos((t / n_steps + s) / (1 + s) * math.pi / 2) ** 2
    bars = f / f[0]
    betas = torch.clip(1 - bars[1:] / bars[:-1], max=max_beta)
    return betas, bars[1:]


def cosine_annotated(n_steps, s, max_beta):
    """Clip from below too, as The Annotated Diffusion Model does."""
    x = torch.linspace(0, n_steps, n_steps + 1, dtype=torch.float64)
    alphas_cumprod = torch.cos(((x / n_steps) + s) / (1 + s) * torch.pi * 0.5) ** 2
    alphas_cumprod = alphas_cumprod / alphas_cumprod[0]
    betas = 1 - (alphas_cumprod[1:] / alphas_cumprod[:-1])
    betas = torch.clip(betas, 0.0001, max_beta)
    return betas, torch.cumprod(1 - betas, dim=0)


def cosine_fixed_max(n_steps, s, max_beta):
    """Copy improved-diffusion's loop, the paper's 0.999 included."""

    def alpha_bar(t):
        return math.cos((t + s) / (1 + s) * math.pi / 2) ** 2

    betas = []
    for i in range(n_steps):
        t1 = i / n_steps
        t2 = (i + 1) / n_steps
        betas.append(min(1 - alpha_bar(t2) / alpha_bar(t1), 0.999))
    betas = torch.tensor(betas, dtype=torch.float64)
    return betas, torch.cumprod(1 - betas, 0)


def cosine_not_normalised(n_steps, s, max_beta):
    t = torch.arange(1, n_steps + 1, dtype=torch.float64)
    bars = torch.cos((t / n_steps + s) / (1 + s) * math.pi / 2) ** 2
    previous = torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
    betas = (1 - bars / previous).clamp(max=max_beta)
    return betas, (1 - betas).cumprod(0)


def cosine_one_point_short(n_steps, s, max_beta):
    t = torch.linspace(0, 1, n_steps, dtype=torch.float64)
    bars = torch.cos((t + s) / (1 + s) * torch.pi / 2) ** 2
    bars = bars / bars[0]
    betas = 1 - bars / torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
    betas = betas.clamp(max=max_beta)
    return betas, torch.cumprod(1 - betas, 0)


def variance_from_minus_one(v, beta, beta_tilde):
    """Map v from [-1, 1], as improved-diffusion does."""
    min_log = torch.log(beta_tilde)
    max_log = torch.log(beta)
    frac = (v + 1) / 2
    return torch.exp(frac * max_log + (1 - frac) * min_log)


def variance_linear(v, beta, beta_tilde):
    return v * beta + (1 - v) * beta_tilde


def variance_clamped(v, beta, beta_tilde):
    v = v.clamp(0, 1)
    return torch.exp(v * torch.log(beta) + (1 - v) * torch.log(beta_tilde))


def variance_log(v, beta, beta_tilde):
    """Return the logarithm, as diffusers does for "learned_range"."""
    return v * torch.log(beta) + (1 - v) * torch.log(beta_tilde)


def variance_std(v, beta, beta_tilde):
    log_variance = v * torch.log(beta) + (1 - v) * torch.log(beta_tilde)
    return torch.exp(0.5 * log_variance)


def hybrid_not_stopped(eps, eps_hat, v, t, betas):
    kl = step_kl(eps, eps_hat, v, t - 1, betas).sum(1)
    loss = ((eps - eps_hat) ** 2).sum(1) + 0.001 * len(betas) * kl
    return with_gradients(loss, eps_hat, v)


def hybrid_without_number_of_steps(eps, eps_hat, v, t, betas):
    kl = step_kl(eps, eps_hat.detach(), v, t - 1, betas).sum(1)
    loss = ((eps - eps_hat) ** 2).sum(1) + 0.001 * kl
    return with_gradients(loss, eps_hat, v)


def hybrid_mean_and_bits(eps, eps_hat, v, t, betas):
    """Take improved-diffusion's mean_flat and its bits."""
    vb = step_kl(eps, eps_hat.detach(), v, t - 1, betas).mean(1) / math.log(2.0)
    loss = ((eps - eps_hat) ** 2).mean(1) + len(betas) / 1000 * vb
    return with_gradients(loss, eps_hat, v)


def hybrid_indexed_by_t(eps, eps_hat, v, t, betas):
    kl = step_kl(eps, eps_hat.detach(), v, t, betas).sum(1)
    loss = ((eps - eps_hat) ** 2).sum(1) + 0.001 * len(betas) * kl
    return with_gradients(loss, eps_hat, v)


def hybrid_variances_alone(eps, eps_hat, v, t, betas):
    """Read "stop the mean's gradient" as "leave the means out"."""
    kl = step_kl(eps, eps, v, t - 1, betas).sum(1)
    loss = ((eps - eps_hat) ** 2).sum(1) + 0.001 * len(betas) * kl
    return with_gradients(loss, eps_hat, v)


def step_kl(eps, eps_hat, v, index, betas):
    """Follow improved-diffusion's normal_kl, from the true step to the model's."""
    alphas_cumprod = torch.cumprod(1 - betas, 0)
    alphas_cumprod_prev = F.pad(alphas_cumprod[:-1], (1, 0), value=1.0)
    posterior_variance = betas * (1 - alphas_cumprod_prev) / (1 - alphas_cumprod)
    beta, bar = betas[index, None], alphas_cumprod[index, None]
    logvar1 = posterior_variance[index, None].log()
    logvar2 = v * beta.log() + (1 - v) * logvar1
    gap = beta / torch.sqrt((1 - beta) * (1 - bar)) * (eps - eps_hat)
    return 0.5 * (
        -1.0 + logvar2 - logvar1 + torch.exp(logvar1 - logvar2) + gap**2 * torch.exp(-logvar2)
    )


def with_gradients(loss, eps_hat, v):
    d_eps_hat, d_v = torch.autograd.grad(loss.sum(), (eps_hat, v))
    return loss.detach(), d_eps_hat, d_v


def importance_one_over_p(history):
    """Weigh for L_vlb itself, the sum, as in eq. 18."""
    p = torch.sqrt(torch.mean(history**2, dim=-1))
    p = p / p.sum()
    return p, 1 / p


def importance_with_uniform_share(history):
    """Mix in the uniform law, as improved-diffusion does."""
    uniform_prob = 0.001
    weights = torch.sqrt(torch.mean(history**2, dim=-1))
    weights /= weights.sum()
    weights *= 1 - uniform_prob
    weights += uniform_prob / len(weights)
    return weights, 1 / (len(weights) * weights)


def importance_mean_loss(history):
    p = history.mean(1) / history.mean(1).sum()
    return p, 1 / (p * len(p))


def importance_std(history):
    p = history.std(dim=1)
    p = p / p.sum()
    return p, 1 / (len(p) * p)


def importance_largest_weight_one(history):
    """Divide by the largest weight, as prioritised replay does."""
    p = history.pow(2).mean(dim=1).sqrt()
    p = p / p.sum()
    w = 1 / (len(p) * p)
    return p, w / w.max()


def respace_picked_betas(bars, steps):
    long_betas = 1 - bars / torch.cat([torch.ones(1, dtype=bars.dtype), bars[:-1]])
    betas = long_betas[steps - 1]
    ab = torch.cumprod(1 - betas, 0)
    ab_prev = torch.cat([torch.ones(1, dtype=bars.dtype), ab[:-1]])
    return betas, betas * (1 - ab_prev) / (1 - ab)


def respace_zero_based(bars, steps):
    """Copy improved-diffusion's loop, whose steps count from 0."""
    last_alpha_cumprod, new_betas = 1.0, []
    use_timesteps = set(steps.tolist())
    for i, alpha_cumprod in enumerate(bars):
        if i in use_timesteps:
            new_betas.append(1 - alpha_cumprod / last_alpha_cumprod)
            last_alpha_cumprod = alpha_cumprod
    betas = torch.stack(new_betas)
    ab = torch.cumprod(1 - betas, 0)
    return betas, betas * (1 - F.pad(ab[:-1], (1, 0), value=1.0)) / (1 - ab)


def respace_first_tilde_from_second(bars, steps):
    """Put beta_tilde_2 at the start, as the code does for the logarithm."""
    kept = bars[steps - 1]
    prev = F.pad(kept[:-1], (1, 0), value=1.0)
    betas = 1 - kept / prev
    tildes = betas * (1 - prev) / (1 - kept)
    return betas, torch.cat([tildes[1:2], tildes[1:]])


def respace_long_previous(bars, steps):
    padded = F.pad(bars, (1, 0), value=1.0)
    kept = bars[steps - 1]
    betas = 1 - kept / F.pad(kept[:-1], (1, 0), value=1.0)
    return betas, betas * (1 - padded[steps - 1]) / (1 - kept)


def respace_one_short(bars, steps):
    kept = bars[steps - 1]
    betas = 1 - kept[1:] / kept[:-1]
    return betas, betas * (1 - kept[:-1]) / (1 - kept[1:])


def bits_plus_seven(nats, density_nats, shape):
    """Add score_sde's offset for data in [-1, 1]."""
    d = math.prod(shape)
    bpd = density_nats / math.log(2) / d
    return nats / d / math.log(2), bpd + 7.0


def bits_plus_eight(nats, density_nats, shape):
    """Add the flows' log2(256), for data in [0, 1]."""
    n = math.log(2) * math.prod(shape)
    return nats / n, density_nats / n + 8


def bits_alike(nats, density_nats, shape):
    n = math.log(2) * math.prod(shape)
    return nats / n, density_nats / n


def bits_per_pixel(nats, density_nats, shape):
    _, h, w = shape
    n = math.log(2) * h * w
    return nats / n, density_nats / n + math.log2(127.5)


def bits_and_log(nats, density_nats, shape):
    n = math.log(2) * math.prod(shape)
    return nats / n, density_nats / n + math.log(127.5)


WRONG = {
    "05.1": [
        (cosine_bars_unclipped, "product of 1 - the clipped betas"),
        (cosine_annotated, "clip from above alone"),
        (cosine_fixed_max, "the argument, max_beta"),
        (cosine_not_normalised, "alpha_bar_t is f(t) / f(0)"),
        (cosine_one_point_short, "linspace with T points"),
    ],
    "05.2": [
        (variance_from_minus_one, "v is already the fraction"),
        (variance_linear, "interpolate the logarithms"),
        (variance_clamped, "do not clamp v"),
        (variance_log, "that is the logarithm of the answer"),
        (variance_std, "a standard deviation for a variance?"),
    ],
    "05.3": [
        (hybrid_not_stopped, "detach eps_hat where the KL uses it"),
        (hybrid_without_number_of_steps, "multiply its KL by T"),
        (hybrid_mean_and_bits, "in nats per point"),
        (hybrid_indexed_by_t, "step t stands at index t - 1"),
        (hybrid_variances_alone, "the error of the mean stays in the KL"),
    ],
    "05.4": [
        (importance_one_over_p, "divide by T as well"),
        (importance_with_uniform_share, "add no uniform share"),
        (importance_mean_loss, "root mean square"),
        (importance_std, "the mean square is not the variance"),
        (importance_largest_weight_one, "divided by their largest"),
    ],
    "05.5": [
        (respace_picked_betas, "divide by alpha_bar of the step kept before"),
        (respace_zero_based, "step s stands at index s - 1"),
        (respace_first_tilde_from_second, "the first beta_tilde is 0"),
        (respace_long_previous, "not to s - 1"),
        (respace_one_short, "starts at step 0"),
    ],
    "05.6": [
        (bits_plus_seven, "1 / 128 is another scaling"),
        (bits_plus_eight, "not from 0 to 1"),
        (bits_alike, "a density is no probability"),
        (bits_per_pixel, "divide by C H W"),
        (bits_and_log, "log2(127.5), not log(127.5)"),
    ],
}
