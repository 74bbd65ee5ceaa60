"""Wrong answers to notebook 06, written as learners write them, not as our zoo does."""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F


def unexplained_ms_eps(eps_hat):
    """Stop at the mean square of the network, which Analytic-DPM's code keeps as ms_eps."""
    score = torch.einsum("md,md->m", eps_hat, eps_hat) / eps_hat.shape[1]
    return score.mean(), score.std() / math.sqrt(len(score))


def unexplained_entries_as_draws(eps_hat):
    squares = eps_hat.pow(2)
    return 1 - squares.mean(), squares.std() / squares.numel() ** 0.5


def unexplained_spread(eps_hat):
    """Give the spread of the draws, not that of their mean."""
    per_draw = 1 - (eps_hat**2).sum(-1) / eps_hat.shape[-1]
    return per_draw.mean(), per_draw.std()


def unexplained_numpy_std(eps_hat):
    """Use numpy's std, which divides by M."""
    r2 = (eps_hat.numpy() ** 2).mean(axis=1)
    return 1 - r2.mean(), np.std(r2) / np.sqrt(len(r2))


def unexplained_dimensions_summed(eps_hat):
    norms = torch.linalg.norm(eps_hat, dim=1) ** 2
    return 1 - norms.mean(), norms.std() / len(norms) ** 0.5


def width_eta_not_squared(u, bar_s, bar_t, eta):
    beta = 1 - bar_t / bar_s
    lambda2 = eta * beta * (1 - bar_s) / (1 - bar_t)
    kappa = bar_s.sqrt() - ((1 - bar_s - lambda2) * bar_t / (1 - bar_t)).sqrt()
    return lambda2 + kappa.square() * (1 - bar_t) / bar_t * u


def width_ddpm_weight(u, bar_s, bar_t, eta):
    """Take the weight of x_0 from reverse_ddpm and the variance from reverse_ddim."""
    skip_beta = 1.0 - bar_t / bar_s
    lamb2 = eta**2 * skip_beta * (1 - bar_s) / (1 - bar_t)
    coeff_cov_x_0 = bar_s * skip_beta**2 / (1 - bar_t) ** 2
    return lamb2 + coeff_cov_x_0 * (1 - bar_t) / bar_t * u


def width_noise_for_data(u, bar_s, bar_t, eta):
    """Take Var[eps | x_t] for Var[x_0 | x_t]."""
    beta_tilde = (1 - bar_t / bar_s) * (1 - bar_s) / (1 - bar_t)
    lam2 = eta * eta * beta_tilde
    kappa = torch.sqrt(bar_s) - torch.sqrt(bar_t) * torch.sqrt(1 - bar_s - lam2) / torch.sqrt(
        1 - bar_t
    )
    return lam2 + kappa**2 * u


def width_cov_clipped(u, bar_s, bar_t, eta):
    """Clip the variance of x_0 to 1, as Analytic-DPM's code does."""
    sigma2_small = (1 - bar_t / bar_s) * (1 - bar_s) / (1 - bar_t)
    lamb2 = eta**2 * sigma2_small
    cov_x_0 = torch.clip((1 - bar_t) / bar_t * u, 0.0, 1.0)
    coeff = (bar_s**0.5 - ((1 - bar_s - lamb2) * bar_t / (1 - bar_t)) ** 0.5) ** 2
    return lamb2 + coeff * cov_x_0


def width_errors_as_independent(u, bar_s, bar_t, eta):
    """Add the squares of x_0's error and of eps's, as if they were independent."""
    var = eta**2 * (1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s)
    from_x0 = bar_s * (1 - bar_t) / bar_t * u
    from_eps = (1 - bar_s - var) * u
    return var + from_x0 + from_eps


def paper_wraps_round(gamma, lambda2, betas, n):
    """Let index -1 stand for step 0."""
    alphas = 1 - betas
    beta_bar = 1 - torch.cumprod(alphas, dim=0)
    i = n - 1
    root = torch.sqrt(beta_bar[i] / alphas[i]) - torch.sqrt(beta_bar[i - 1] - lambda2)
    return lambda2 + root**2 * (1 - beta_bar[i] * gamma)


def paper_without_leading_zero(gamma, lambda2, betas, n):
    """Index as Analytic-DPM's code does, whose betas[0] is 0."""
    alphas = 1.0 - betas
    cum_betas = 1.0 - alphas.cumprod(0)
    cum_beta_s, cum_beta_r = cum_betas[n - 1], cum_betas[n]
    coeff = (cum_beta_r / alphas[n]) ** 0.5 - (cum_beta_s - lambda2) ** 0.5
    return lambda2 + coeff**2 * (1 - cum_beta_r * gamma)


def paper_gamma_of_noise(gamma, lambda2, betas, n):
    padded = F.pad(betas, (1, 0))
    beta_bar = 1 - (1 - padded).cumprod(0)
    gap = (beta_bar[n] / (1 - padded[n])).sqrt() - (beta_bar[n - 1] - lambda2).sqrt()
    return lambda2 + gap.square() * (1 - gamma)


def paper_alpha_bar(gamma, lambda2, betas, n):
    """Read the paper's alpha_n as the product of all steps so far."""
    bar, before = betas.new_ones(()), betas.new_ones(())
    for beta in betas[:n]:
        before, bar = bar, bar * (1 - beta)
    gap = torch.sqrt((1 - bar) / bar) - torch.sqrt(1 - before - lambda2)
    return lambda2 + gap**2 * (1 - (1 - bar) * gamma)


def paper_betas_multiplied(gamma, lambda2, betas, n):
    """Read the bar over beta as the bar over alpha: a running product."""
    alpha = 1 - betas[n - 1]
    bb = torch.cumprod(betas, 0)
    bb_prev = bb[n - 2] if n > 1 else torch.zeros((), dtype=betas.dtype)
    gap = torch.sqrt(bb[n - 1] / alpha) - torch.sqrt(bb_prev - lambda2)
    return lambda2 + gap**2 * (1 - bb[n - 1] * gamma)


def clipped_to_unit_data(u, bar_s, bar_t, r):
    """Clip to 1, which is right for data in [-1, 1], as Analytic-DPM's code does."""
    skip_beta = 1 - bar_t / bar_s
    sigma2_small = skip_beta * (1 - bar_s) / (1 - bar_t)
    cov_x_0_pred = (1 - bar_t) / bar_t * u
    cov_x_0_pred_clamp = torch.clamp(cov_x_0_pred, 0.0, 1.0)
    return sigma2_small + bar_s * skip_beta**2 / (1 - bar_t) ** 2 * cov_x_0_pred_clamp


def clipped_by_range_alone(u, bar_s, bar_t, r):
    beta = 1 - bar_t / bar_s
    var_x0 = (u * (1 - bar_t) / bar_t).clamp(min=0, max=r**2)
    return beta * (1 - bar_s) / (1 - bar_t) + bar_s * (beta / (1 - bar_t)) ** 2 * var_x0


def clipped_at_beta(u, bar_s, bar_t, r):
    """Take DDPM's two variances for the bounds."""
    beta = 1 - bar_t / bar_s
    beta_tilde = beta * (1 - bar_s) / (1 - bar_t)
    weight = bar_s * beta**2 / (1 - bar_t) ** 2
    width = beta_tilde + weight * (u * (1 - bar_t) / bar_t).clamp(max=r**2)
    return torch.minimum(torch.maximum(width, beta_tilde), beta)


def clipped_step_by_range(u, bar_s, bar_t, r):
    """Hold the variance of the step itself to r^2."""
    alpha = bar_t / bar_s
    low = (1 - alpha) * (1 - bar_s) / (1 - bar_t)
    high = (1 - alpha) / alpha
    width = low + (high - low) * u
    return torch.clamp(width, low, torch.clamp(high, max=r**2))


def clipped_by_whole_interval(u, bar_s, bar_t, r):
    """Forget that Popoviciu's bound has half the interval's length."""
    a, b = -r, r
    beta = 1 - bar_t / bar_s
    beta_tilde = beta * (1 - bar_s) / (1 - bar_t)
    ratio = (1 - bar_t) / bar_t
    cov = torch.minimum(u.clamp(0, 1) * ratio, torch.full_like(ratio, (b - a) ** 2))
    return beta_tilde + bar_s * beta**2 / (1 - bar_t) ** 2 * cov


def second_mean_flat(eps, eps_hat, h):
    npr = ((eps - eps_hat) ** 2 - h).square().mean(dim=1)
    sn = (eps**2 - h).square().mean(dim=1)
    return npr, sn, h, (h - eps_hat**2).clamp(min=0)


def second_not_clipped(eps, eps_hat, h):
    npr = torch.sum(((eps - eps_hat) ** 2 - h) ** 2, dim=-1)
    sn = torch.sum((eps**2 - h) ** 2, dim=-1)
    return npr, sn, h, h - eps_hat**2


def second_target_is_variance(eps, eps_hat, h):
    """Subtract eps_hat^2 in the target already, and once more at the end."""
    residual = F.mse_loss(h, (eps - eps_hat) ** 2, reduction="none").sum(1)
    square = F.mse_loss(h, eps**2 - eps_hat**2, reduction="none").sum(1)
    return residual, square, h, F.relu(h - eps_hat**2)


def second_residual_itself(eps, eps_hat, h):
    """Let h say eps - eps_hat and eps, and square what it has learned."""
    npr = torch.einsum("bd,bd->b", eps - eps_hat - h, eps - eps_hat - h)
    sn = torch.einsum("bd,bd->b", eps - h, eps - h)
    return npr, sn, h**2, (h**2 - eps_hat**2).clamp_min(0)


def cheapest_greedy(costs, k):
    n = costs.shape[0]
    path = [0]
    for left in range(k - 1, 0, -1):
        i = path[-1]
        candidates = costs[i, i + 1 : n - left]
        path.append(i + 1 + int(candidates.argmin()))
    path.append(n - 1)
    return torch.tensor(path)


def cheapest_at_most(costs, k):
    """Stop at 0 however many strides are left."""

    @functools.cache
    def best(j, left):
        if j == 0:
            return 0.0, (0,)
        if left == 0:
            return math.inf, (j,)
        ways = []
        for i in range(j):
            cost, path = best(i, left - 1)
            ways.append((cost + costs[i, j].item(), (*path, j)))
        return min(ways)

    return torch.tensor(best(len(costs) - 1, k)[1])


def cheapest_one_table_of_origins(costs, k):
    """Keep only the last round's origins, not one row for each number of strides."""
    n = len(costs)
    value = torch.full((n,), math.inf, dtype=costs.dtype)
    value[0] = 0
    for _ in range(k):
        value, origin = (value[:, None] + costs).min(dim=0)
    path = [n - 1]
    for _ in range(k):
        path.append(int(origin[path[-1]]))
    return torch.tensor(path[::-1])


def cheapest_backwards(costs, k):
    """Return the way as it was traced: from the end."""
    n = len(costs)
    C = np.full((k + 1, n), np.inf)
    D = np.full((k + 1, n), -1)
    C[0, 0] = 0
    for step in range(1, k + 1):
        total = C[step - 1][:, None] + costs.numpy()
        C[step], D[step] = total.min(axis=0), total.argmin(axis=0)
    path, t = [], n - 1
    for step in range(k, -1, -1):
        path.append(t)
        t = D[step, t]
    return torch.as_tensor(np.array(path))


def cheapest_k_points(costs, k):
    """Take k for the number of points, both ends among them."""
    n = len(costs)
    C = torch.full((k, n), math.inf, dtype=costs.dtype)
    D = torch.zeros((k, n), dtype=torch.long)
    C[0, 0] = 0
    for step in range(1, k):
        C[step], D[step] = (C[step - 1].unsqueeze(1) + costs).min(0)
    path = [n - 1]
    for step in range(k - 1, 0, -1):
        path.insert(0, D[step, path[0]].item())
    return torch.tensor(path)


WRONG = {
    "06.1": [
        (unexplained_ms_eps, "that is R^2"),
        (unexplained_entries_as_draws, "the D entries of a draw are not independent"),
        (unexplained_spread, "how much single draws vary"),
        (unexplained_numpy_std, "divides by M - 1"),
        (unexplained_dimensions_summed, "divide it by d"),
    ],
    "06.2": [
        (width_eta_not_squared, "lambda^2 is eta^2 beta_tilde"),
        (width_ddpm_weight, "kappa changes with eta"),
        (width_noise_for_data, "u is the noise's variance"),
        (width_cov_clipped, "clip nothing"),
        (width_errors_as_independent, "one and the same error"),
    ],
    "06.3": [
        (paper_wraps_round, "put beta_bar_0 = 0 in front"),
        (paper_without_leading_zero, "step n stands at index n - 1"),
        (paper_gamma_of_noise, "Gamma is of scores"),
        (paper_alpha_bar, "not by the product alpha_bar_n"),
        (paper_betas_multiplied, "not the product of the betas"),
    ],
    "06.4": [
        (clipped_to_unit_data, "1 is the bound of data in [-1, 1]"),
        (clipped_by_range_alone, "r^2 is not the only bound"),
        (clipped_at_beta, "beta is no bound"),
        (clipped_step_by_range, "r^2 bounds the variance of x_0, not"),
        (clipped_by_whole_interval, "r^2, not (2 r)^2"),
    ],
    "06.5": [
        (second_mean_flat, "sum both losses over the dimensions"),
        (second_not_clipped, "clip the second at 0"),
        (second_target_is_variance, "SN's target is eps^2 as it is"),
        (second_residual_itself, "targets are squares"),
    ],
    "06.6": [
        (cheapest_greedy, "compare the costs of whole paths"),
        (cheapest_at_most, "exactly k strides"),
        (cheapest_one_table_of_origins, "for each number of strides"),
        (cheapest_backwards, "turn the path round"),
        (cheapest_k_points, "k strides have k + 1 times"),
    ],
}
