"""Wrong answers to notebook 01, written as learners write them, not as our zoo does."""

import torch
from torch.distributions import Normal, kl_divergence


def kl_by_torch_reversed(mean_q, std_q, mean_p, std_p):
    return kl_divergence(Normal(mean_p, std_p), Normal(mean_q, std_q)).sum(-1)


def kl_by_torch_averaged(mean_q, std_q, mean_p, std_p):
    return kl_divergence(Normal(mean_q, std_q), Normal(mean_p, std_p)).mean(dim=-1)


def kl_of_a_vae_with_variances(mean_q, std_q, mean_p, std_p):
    """Take the arguments for variances, as code that stores log-variances tempts one to."""
    log_ratio = torch.log(std_p) - torch.log(std_q)
    return 0.5 * torch.sum(log_ratio + (std_q + (mean_q - mean_p) ** 2) / std_p - 1, dim=1)


def kl_without_half(mean_q, std_q, mean_p, std_p):
    var_q, var_p = std_q**2, std_p**2
    terms = (var_p / var_q).log() + var_q / var_p + (mean_q - mean_p) ** 2 / var_p - 1
    return terms.sum(-1)


def bounds_naive(log_joint, log_q):
    weights = torch.exp(log_joint - log_q)
    return torch.mean(log_joint - log_q, 0), torch.log(weights.sum(0) / weights.shape[0])


def bounds_iwae_first(log_joint, log_q):
    w = log_joint - log_q
    k = torch.tensor(float(w.shape[0]), dtype=w.dtype)
    return torch.logsumexp(w, 0) - k.log(), w.mean(0)


def bounds_sum(log_joint, log_q):
    w = log_joint - log_q
    return w.sum(0) / w.shape[0], torch.logsumexp(w, dim=0)


def noise_index_t(x0, betas, t, eps):
    """Index a table of length T with steps that start at 1, padded so that it does not crash."""
    table = torch.cat([torch.cumprod(1.0 - betas, dim=0), torch.cumprod(1.0 - betas, dim=0)[-1:]])
    ab = table[t].unsqueeze(-1)
    return torch.sqrt(ab) * x0 + torch.sqrt(1.0 - ab) * eps


def noise_sqrt_missing(x0, betas, t, eps):
    ab = (1 - betas).log().cumsum(0).exp()[t - 1].reshape(-1, 1)
    return x0 * ab**0.5 + eps * (1 - ab)


def noise_one_step_alpha(x0, betas, t, eps):
    alphas = 1.0 - betas
    a = alphas.gather(0, t - 1).view(-1, 1)
    return torch.sqrt(a) * x0 + torch.sqrt(1 - a) * eps


def noise_data_not_rooted(x0, betas, t, eps):
    ab = torch.cumprod(1 - betas, 0).index_select(0, t - 1).view(len(t), 1)
    return ab * x0 + torch.sqrt(1 - ab) * eps


def noise_by_row(x0, betas, t, eps):
    """Write it as for one step, and forget that a batch has one step a row."""
    ab = torch.cumprod(1 - betas, dim=0)[t - 1]
    return torch.sqrt(ab) * x0 + torch.sqrt(1 - ab) * eps


def stride_beta_variance(x0, xt, alpha_bar_s, alpha_bar_t):
    alpha = alpha_bar_t / alpha_bar_s
    beta = 1 - alpha
    c0 = torch.sqrt(alpha_bar_s) * beta / (1 - alpha_bar_t)
    ct = torch.sqrt(alpha) * (1 - alpha_bar_s) / (1 - alpha_bar_t)
    return c0 * x0 + ct * xt, beta


def stride_crossed(x0, xt, alpha_bar_s, alpha_bar_t):
    alpha = alpha_bar_t / alpha_bar_s
    c0 = torch.sqrt(alpha_bar_s) * (1 - alpha) / (1 - alpha_bar_t)
    ct = torch.sqrt(alpha) * (1 - alpha_bar_s) / (1 - alpha_bar_t)
    return ct * x0 + c0 * xt, (1 - alpha) * (1 - alpha_bar_s) / (1 - alpha_bar_t)


def stride_std(x0, xt, alpha_bar_s, alpha_bar_t):
    alpha = alpha_bar_t / alpha_bar_s
    c0 = torch.sqrt(alpha_bar_s) * (1 - alpha) / (1 - alpha_bar_t)
    ct = torch.sqrt(alpha) * (1 - alpha_bar_s) / (1 - alpha_bar_t)
    return c0 * x0 + ct * xt, torch.sqrt((1 - alpha) * (1 - alpha_bar_s) / (1 - alpha_bar_t))


def tweedie_minus(xt, score, hessian, alpha_bar):
    var = 1.0 - alpha_bar
    mean = (xt - var * score) / torch.sqrt(alpha_bar)
    return mean, (torch.eye(xt.shape[-1], dtype=xt.dtype) * var + var**2 * hessian) / alpha_bar


def tweedie_sigma(xt, score, hessian, alpha_bar):
    var = 1.0 - alpha_bar
    mean = (xt + torch.sqrt(var) * score) / torch.sqrt(alpha_bar)
    return mean, (torch.eye(xt.shape[-1], dtype=xt.dtype) * var + var**2 * hessian) / alpha_bar


def tweedie_only_curvature(xt, score, hessian, alpha_bar):
    var = 1.0 - alpha_bar
    return (xt + var * score) / alpha_bar**0.5, var**2 * hessian / alpha_bar


def tweedie_jacobian(xt, score, hessian, alpha_bar):
    """Differentiate the mean, and take that for the covariance."""
    var = 1.0 - alpha_bar
    jacobian = (torch.eye(xt.shape[-1], dtype=xt.dtype) + var * hessian) / alpha_bar**0.5
    return (xt + var * score) / alpha_bar**0.5, jacobian


def cost_simple(eps, eps_hat, alpha_bar_s, alpha_bar_t):
    return torch.linalg.vector_norm(eps - eps_hat, dim=1) ** 2


def cost_by_alpha_bar(eps, eps_hat, alpha_bar_s, alpha_bar_t):
    return (alpha_bar_s - alpha_bar_t) / (2 * alpha_bar_t) * ((eps - eps_hat) ** 2).sum(1)


def cost_no_half(eps, eps_hat, alpha_bar_s, alpha_bar_t):
    snr = [a / (1 - a) for a in (alpha_bar_s, alpha_bar_t)]
    return ((eps - eps_hat) ** 2).sum(-1) * (snr[0] - snr[1]) / snr[1]


def cost_inverted(eps, eps_hat, alpha_bar_s, alpha_bar_t):
    snr = [a / (1 - a) for a in (alpha_bar_s, alpha_bar_t)]
    return torch.sum((eps - eps_hat) ** 2, dim=1) * 0.5 * (snr[1] / snr[0] - 1)


def cost_mse(eps, eps_hat, alpha_bar_s, alpha_bar_t):
    snr = [a / (1 - a) for a in (alpha_bar_s, alpha_bar_t)]
    error = torch.nn.functional.mse_loss(eps_hat, eps, reduction="none").mean(1)
    return 0.5 * (snr[0] / snr[1] - 1) * error


WRONG = {
    "01.1": [
        (kl_by_torch_reversed, "KL(p || q)"),
        (kl_by_torch_averaged, "sum over the dimensions"),
        (kl_of_a_vae_with_variances, "standard deviations"),
        (kl_without_half, "1/2"),
    ],
    "01.2": [
        (bounds_naive, "logsumexp"),
        (bounds_iwae_first, "first the ELBO"),
        (bounds_sum, "subtract log K"),
    ],
    "01.3": [
        (noise_index_t, "off by one"),
        (noise_sqrt_missing, "square root"),
        (noise_one_step_alpha, "cumprod"),
        (noise_data_not_rooted, "sqrt(alpha_bar), not by alpha_bar"),
        (noise_by_row, "second axis"),
    ],
    "01.4": [
        (stride_beta_variance, "forward step's variance"),
        (stride_crossed, "weights are swapped"),
        (stride_std, "not its square root"),
    ],
    "01.5": [
        (cost_no_half, "1/2"),
        (cost_inverted, "upside down"),
        (cost_mse, "sum the squared error"),
        (cost_simple, "simple loss"),
        (cost_by_alpha_bar, "no ratio of SNRs"),
    ],
    "01.6": [
        (tweedie_minus, "towards the data"),
        (tweedie_sigma, "not by its square root"),
        (tweedie_only_curvature, "I is missing"),
        (tweedie_jacobian, "Jacobian"),
    ],
}
