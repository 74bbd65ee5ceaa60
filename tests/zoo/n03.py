"""Wrong answers to notebook 03, written as learners write them, not as our zoo does."""

import math

import numpy as np
import torch
import torch.nn.functional as F


def steps_ddim_repository(n_steps, n):
    """Copy ermongroup/ddim, whose steps count from zero and whose quadratic ones stop early."""
    linear = list(range(0, n_steps, n_steps // n))
    quadratic = [int(s) for s in np.linspace(0, np.sqrt(n_steps * 0.8), n) ** 2]
    return torch.tensor(linear), torch.tensor(quadratic)


def steps_leading(n_steps, n):
    """Begin them at 1, like diffusers' "leading" with steps_offset=1."""
    share = torch.arange(0, n, dtype=torch.float64) / n
    linear, quadratic = torch.floor(n_steps * share), torch.floor(n_steps * share**2)
    return linear.long() + 1, torch.unique(quadratic.long() + 1)


def steps_by_stride(n_steps, n):
    i = np.arange(1, n + 1)
    linear = i * (n_steps // n)
    quadratic = np.unique(np.maximum(np.floor(n_steps * (i / n) ** 2), 1)).astype(np.int64)
    return torch.from_numpy(linear), torch.from_numpy(quadratic)


def steps_raw(n_steps, n):
    i = torch.arange(1, n + 1)
    return n_steps * i // n, n_steps * i**2 // n**2


def steps_clamped(n_steps, n):
    i = torch.arange(1, n + 1)
    return n_steps * i // n, (n_steps * i**2 // n**2).clamp(min=1)


def steps_rounded(n_steps, n):
    share = torch.arange(1, n + 1, dtype=torch.float64) / n
    linear, quadratic = (torch.round(n_steps * s).long() for s in (share, share**2))
    return torch.unique(linear[linear > 0]), torch.unique(quadratic[quadratic > 0])


def steps_descending(n_steps, n):
    """Give them in the order in which a sampler walks."""
    i = torch.arange(1, n + 1)
    linear, quadratic = n_steps * i // n, n_steps * i**2 // n**2
    return linear.flip(0), torch.unique(quadratic[quadratic >= 1]).flip(0)


def sigma_variance(bars, tau, eta):
    """Return eta times the variance: diffusers takes the root one line later."""
    alpha_prod_t = bars[tau - 1]
    alpha_prod_t_prev = torch.cat([torch.ones(1, dtype=bars.dtype), alpha_prod_t[:-1]])
    beta_prod_t, beta_prod_t_prev = 1 - alpha_prod_t, 1 - alpha_prod_t_prev
    variance = (beta_prod_t_prev / beta_prod_t) * (1 - alpha_prod_t / alpha_prod_t_prev)
    return eta * variance


def sigma_eta_in_root(bars, tau, eta):
    now = bars[tau - 1]
    before = F.pad(now[:-1], (1, 0), value=1.0)
    return torch.sqrt(eta * (1 - before) / (1 - now) * (1 - now / before))


def sigma_one_step_back(bars, tau, eta):
    """Jump to tau_i - 1, as DDPM does, for tau_{i-1}."""
    padded = torch.cat((bars.new_ones(1), bars))
    a_t, a_prev = padded[tau], padded[tau - 1]
    return eta * ((1 - a_prev) / (1 - a_t) * (1 - a_t / a_prev)).sqrt()


def sigma_final_alpha(bars, tau, eta):
    """Land on alpha_bar_1, as diffusers with set_alpha_to_one=False."""
    a = bars[tau - 1]
    a_prev = torch.cat([bars[:1], a[:-1]])
    return eta * ((1 - a_prev) / (1 - a)).sqrt() * (1 - a / a_prev).sqrt()


def sigma_beta_t(bars, tau, eta):
    """Take the beta of the full chain in the posterior's variance."""
    before = F.pad(bars[:-1], (1, 0), value=1.0)
    betas = (1 - bars / before)[tau - 1]
    now = bars[tau - 1]
    landed = F.pad(now[:-1], (1, 0), value=1.0)
    return eta * torch.sqrt((1 - landed) / (1 - now) * betas)


def sigma_zero_based(bars, tau, eta):
    padded = torch.cat((torch.ones(1, dtype=bars.dtype), bars[tau[:-1]]))
    now = bars[tau.clamp(max=len(bars) - 1)]
    return eta * ((1 - padded) / (1 - now) * (1 - now / padded)).sqrt()


def sigma_hat(bars, tau, eta):
    now = bars[tau - 1]
    before = F.pad(now[:-1], (1, 0), value=1.0)
    return eta * (1 - now / before).sqrt()


def ddim_clipped(xt, eps_hat, z, bar_t, bar_s, sigma):
    """Clip the guess of x_0, as diffusers' clip_sample=True."""
    x0 = ((xt - (1 - bar_t) ** 0.5 * eps_hat) / bar_t**0.5).clamp(-1, 1)
    return bar_s**0.5 * x0 + (1 - bar_s - sigma**2) ** 0.5 * eps_hat + sigma * z


def ddim_full_direction(xt, eps_hat, z, bar_t, bar_s, sigma):
    x0_t = (xt - eps_hat * math.sqrt(1 - bar_t)) / math.sqrt(bar_t)
    return math.sqrt(bar_s) * x0_t + math.sqrt(1 - bar_s) * eps_hat + sigma * z


def ddim_sigma_unsquared(xt, eps_hat, z, bar_t, bar_s, sigma):
    x0 = (xt - (1 - bar_t) ** 0.5 * eps_hat) / bar_t**0.5
    return bar_s**0.5 * x0 + (1 - bar_s - sigma) ** 0.5 * eps_hat + sigma * z


def ddim_direction_of_t(xt, eps_hat, z, bar_t, bar_s, sigma):
    x0 = (xt - (1 - bar_t) ** 0.5 * eps_hat) / bar_t**0.5
    return bar_s**0.5 * x0 + (1 - bar_t - sigma**2) ** 0.5 * eps_hat + sigma * z


def ddim_noise_std_forgotten(xt, eps_hat, z, bar_t, bar_s, sigma):
    x0 = (xt - (1 - bar_t) * eps_hat) / bar_t.sqrt()
    return bar_s.sqrt() * x0 + (1 - bar_s - sigma**2).sqrt() * eps_hat + sigma * z


def ddim_bare_x0(xt, eps_hat, z, bar_t, bar_s, sigma):
    pred_x0 = (xt - (1 - bar_t) ** 0.5 * eps_hat) / bar_t**0.5
    dir_xt = (1 - bar_s - sigma**2) ** 0.5 * eps_hat
    return pred_x0 + dir_xt + sigma * z


def encode_noising(xs, eps_hat, bar_s, bar_t):
    """Take the forward chain's step with the guess for its noise."""
    return (bar_t / bar_s) ** 0.5 * xs + (1 - bar_t / bar_s) ** 0.5 * eps_hat


def encode_left_scaled(xs, eps_hat, bar_s, bar_t):
    sigma_s, sigma_t = ((1 - bar_s) / bar_s) ** 0.5, ((1 - bar_t) / bar_t) ** 0.5
    return xs / bar_s**0.5 + (sigma_t - sigma_s) * eps_hat


def encode_never_scaled(xs, eps_hat, bar_s, bar_t):
    sigma_s, sigma_t = ((1 - bar_s) / bar_s) ** 0.5, ((1 - bar_t) / bar_t) ** 0.5
    return xs + (sigma_t - sigma_s) * eps_hat


def encode_backwards(xs, eps_hat, bar_s, bar_t):
    sigma_s, sigma_t = ((1 - bar_s) / bar_s) ** 0.5, ((1 - bar_t) / bar_t) ** 0.5
    return bar_t**0.5 * (xs / bar_s**0.5 - (sigma_t - sigma_s) * eps_hat)


def encode_in_variance(xs, eps_hat, bar_s, bar_t):
    """Take Euler's step in sigma^2: d sigma = d sigma^2 / (2 sigma)."""
    var_s, var_t = (1 - bar_s) / bar_s, (1 - bar_t) / bar_t
    return bar_t**0.5 * (xs / bar_s**0.5 + (var_t - var_s) / (2 * var_s**0.5) * eps_hat)


def encode_vp_sigma(xs, eps_hat, bar_s, bar_t):
    """Take sigma for sqrt(1 - alpha_bar), as VP's notation has it."""
    sigma_s, sigma_t = (1 - bar_s) ** 0.5, (1 - bar_t) ** 0.5
    return bar_t**0.5 * (xs / bar_s**0.5 + (sigma_t - sigma_s) * eps_hat)


def encode_swapped(xs, eps_hat, bar_s, bar_t):
    """Take DDIM's step as it stands, x_s in the place of x_t and its alpha_bar not."""
    x0 = (xs - (1 - bar_t) ** 0.5 * eps_hat) / bar_t**0.5
    return bar_s**0.5 * x0 + (1 - bar_s) ** 0.5 * eps_hat


def slerp_lerp(a, b, share):
    return torch.lerp(a, b, share)


def slerp_unnormalised(a, b, share):
    theta = torch.acos((a * b).sum(1, keepdim=True))
    return (torch.sin((1 - share) * theta) * a + torch.sin(share * theta) * b) / torch.sin(theta)


def slerp_whole_batch(a, b, share):
    """Take one angle for all, as the snippet for Stable Diffusion's latents does."""
    dot = torch.sum(a * b) / (torch.linalg.norm(a) * torch.linalg.norm(b))
    theta = torch.arccos(dot)
    s0, s1 = torch.sin((1 - share) * theta), torch.sin(share * theta)
    return (s0 * a + s1 * b) / torch.sin(theta)


def slerp_unit(a, b, share):
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    omega = torch.acos((a * b).sum(1)).unsqueeze(1)
    so = torch.sin(omega)
    return torch.sin((1.0 - share) * omega) / so * a + torch.sin(share * omega) / so * b


def slerp_undivided(a, b, share):
    theta = torch.acos(F.cosine_similarity(a, b, dim=1)).unsqueeze(1)
    return torch.sin((1 - share) * theta) * a + torch.sin(share * theta) * b


def slerp_swapped(a, b, share):
    omega = torch.acos(F.cosine_similarity(a, b, dim=1))[:, None]
    return (torch.sin(share * omega) * a + torch.sin((1 - share) * omega) * b) / torch.sin(omega)


def slerp_roots(a, b, share):
    """Keep the variance of independent normal vectors."""
    return (1 - share) ** 0.5 * a + share**0.5 * b


def gamma_paper(bars, sigmas):
    """Copy appendix B of the paper, without its dimension."""
    return 1 / (2 * sigmas[1:] ** 2 * bars[1:])


def gamma_x0_alone(bars, sigmas):
    """Forget that the direction towards x_t holds the guess too."""
    coefficient = (bars[:-1] * (1 - bars[1:]) / bars[1:]).sqrt()
    return coefficient**2 / (2 * sigmas[1:] ** 2)


def gamma_ddpm(bars, sigmas):
    alphas = bars[1:] / bars[:-1]
    return (1 - alphas) ** 2 / (2 * sigmas[1:] ** 2 * alphas * (1 - bars[1:]))


def gamma_full_direction(bars, sigmas):
    now, before = bars[1:], bars[:-1]
    difference = (before * (1 - now) / now).sqrt() - (1 - before).sqrt()
    return difference**2 / (2 * sigmas[1:] ** 2)


def gamma_no_half(bars, sigmas):
    now, before, s = bars[1:], bars[:-1], sigmas[1:]
    c = torch.sqrt(before / now) * torch.sqrt(1 - now) - torch.sqrt(1 - before - s**2)
    return (c / s) ** 2


def gamma_of_x0(bars, sigmas):
    """Stop at the factor of the error of x_0."""
    now, before, s = bars[1:], bars[:-1], sigmas[1:]
    c = before.sqrt() - (now * (1 - before - s**2) / (1 - now)).sqrt()
    return c**2 / (2 * s**2)


WRONG = {
    "03.1": [
        (steps_ddim_repository, "counts from 0 and stops at 0.8 T"),
        (steps_leading, "1 added to i from 0"),
        (steps_by_stride, "take the floor last"),
        (steps_raw, "the first quadratic step is 0"),
        (steps_clamped, "keep each one once"),
        (steps_rounded, "round down"),
        (steps_descending, "in rising order"),
    ],
    "03.2": [
        (sigma_variance, "takes the root of both factors"),
        (sigma_eta_in_root, "outside the root"),
        (sigma_one_step_back, "not on tau_i - 1"),
        (sigma_final_alpha, "lands on x_0"),
        (sigma_beta_t, "beta_t is one step's"),
        (sigma_zero_based, "step t stands at index t - 1"),
        (sigma_hat, "that is sigma-hat"),
    ],
    "03.3": [
        (ddim_clipped, "does not clip"),
        (ddim_full_direction, "subtract sigma^2"),
        (ddim_sigma_unsquared, "subtract its square"),
        (ddim_direction_of_t, "not alpha_bar_t"),
        (ddim_noise_std_forgotten, "take the root before"),
        (ddim_bare_x0, "scale the predicted x_0"),
    ],
    "03.4": [
        (encode_noising, "do not add it anew"),
        (encode_left_scaled, "the ODE's variable"),
        (encode_never_scaled, "divide x_s by its root"),
        (encode_backwards, "the factor of eps_hat is positive"),
        (encode_in_variance, "Euler's step in sigma^2"),
        (encode_vp_sigma, "divide by the root too"),
        (encode_swapped, "walks from t to s"),
    ],
    "03.5": [
        (slerp_lerp, "linear interpolation"),
        (slerp_unnormalised, "divide the dot product by both norms"),
        (slerp_whole_batch, "an angle of its own"),
        (slerp_unit, "unit vectors are for the angle alone"),
        (slerp_undivided, "the sine of the whole angle"),
        (slerp_swapped, "share is the way gone from a"),
        (slerp_roots, "roots of shares"),
    ],
    "03.6": [
        (gamma_paper, "drops two factors"),
        (gamma_x0_alone, "x_0 stands in the direction too"),
        (gamma_ddpm, "DDPM's weight"),
        (gamma_full_direction, "1 - alpha_bar_{t-1} - sigma_t^2"),
        (gamma_no_half, "/ (2 sigma^2)"),
        (gamma_of_x0, "that weighs an error in x_0"),
    ],
}
