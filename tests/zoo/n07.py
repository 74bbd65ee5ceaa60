"""Wrong answers to notebook 07, written as learners write them, not as our zoo does."""

import itertools
import math

import numpy as np
import torch


def weights_as_written(h):
    """Write the closed form down, which cancels for small steps."""
    return torch.exp(h) - 1, torch.exp(h) - 1 - h


def weights_of_algorithm_1(h):
    """Give the slope half a step's weight, as DPM-Solver-2 does."""
    phi_1 = torch.expm1(h)
    return phi_1, 0.5 * h * phi_1


def weights_of_data(h):
    """Integrate e^lambda, which is what DPM-Solver++ does with x_0."""
    hh = -h
    w0 = -torch.expm1(hh)
    return w0, h - w0


def weights_phi_times_h_once(h):
    def phi_2(z):
        total, term = torch.zeros_like(z), torch.full_like(z, 0.5)
        for k in range(3, 40):
            total = total + term
            term = term * z / k
        return total

    return torch.expm1(h), h * phi_2(h)


def weights_by_parts_sign(h):
    """Integrate by parts, and lose the sign of the boundary term."""
    inner = torch.expm1(h)
    boundary = h
    return inner, boundary + inner


def middle_in_time(t, s, lambda_, time_of):
    return (t + s) / 2


def middle_geometric(t, s, lambda_, time_of):
    """Take the geometric mean, as k-diffusion does with the sigmas of variance exploding."""
    return (t * s) ** 0.5


def middle_h_backwards(t, s, lambda_, time_of):
    h = lambda_(t) - lambda_(s)
    return time_of(lambda_(t) + 0.5 * h)


def middle_not_inverted(t, s, lambda_, time_of):
    lambda_t, lambda_s = lambda_(t), lambda_(s)
    h = lambda_s - lambda_t
    return lambda_t + 0.5 * h


def middle_half_h_alone(t, s, lambda_, time_of):
    h = lambda_(s) - lambda_(t)
    return time_of(h / 2)


def second_average(x, eps, look, t, m, s):
    """Add half the change, as diffusers does, but without its 1 / r."""
    (alpha_t, sigma_t), (alpha_m, sigma_m), (alpha_s, sigma_s) = t, m, s
    h = math.log(alpha_s / sigma_s) - math.log(alpha_t / sigma_t)
    h_0 = math.log(alpha_m / sigma_m) - math.log(alpha_t / sigma_t)
    u = (alpha_m / alpha_t) * x - (sigma_m * math.expm1(h_0)) * eps
    D0, D1 = eps, look(u) - eps
    return (
        (alpha_s / alpha_t) * x
        - (sigma_s * (math.exp(h) - 1.0)) * D0
        - 0.5 * (sigma_s * (math.exp(h) - 1.0)) * D1
    )


def second_k_diffusion(x, eps, look, t, m, s):
    """Copy dpm_solver_2_step of k-diffusion, where alpha is 1."""
    r1 = 1 / 2
    lam = [math.log(alpha / sigma) for alpha, sigma in (t, m, s)]
    h = lam[2] - lam[0]
    u1 = x - m[1] * math.expm1(r1 * h) * eps
    eps_r1 = look(u1)
    return x - s[1] * math.expm1(h) * eps - s[1] / (2 * r1) * math.expm1(h) * (eps_r1 - eps)


def second_in_the_form_of_x0(x, eps, look, t, m, s):
    """Take the weights of DPM-Solver++, and give them the noise."""
    alpha_t, sigma_t = t
    alpha_m, sigma_m = m
    alpha_s, sigma_s = s
    h = math.log(alpha_s / sigma_s) - math.log(alpha_t / sigma_t)
    u = sigma_m / sigma_t * x - alpha_m * (math.exp(-h / 2) - 1) * eps
    return sigma_s / sigma_t * x - alpha_s * (math.exp(-h) - 1) * look(u)


def second_two_half_steps(x, eps, look, t, m, s):
    """Go on from the middle instead of starting again at t."""

    def first_order(x, eps, here, there):
        h = math.log(there[0] / there[1]) - math.log(here[0] / here[1])
        return there[0] / here[0] * x - there[1] * math.expm1(h) * eps

    u = first_order(x, eps, t, m)
    return first_order(u, look(u), m, s)


def second_whole_h_to_the_middle(x, eps, look, t, m, s):
    (alpha_t, sigma_t), (alpha_m, sigma_m), (alpha_s, sigma_s) = t, m, s
    h = math.log(alpha_s * sigma_t / (sigma_s * alpha_t))
    phi = math.expm1(h)
    u = alpha_m / alpha_t * x - sigma_m * phi * eps
    return alpha_s / alpha_t * x - sigma_s * phi * look(u)


def multistep_ratio_upside_down(x, x0, x0_before, h, h_before, alpha_s, sigma_s, sigma_t):
    """Multiply by r = h_before / h, where the paper divides by it."""
    r = h_before / h
    D = x0 + r / 2 * (x0 - x0_before)
    return sigma_s / sigma_t * x - alpha_s * np.expm1(-float(h)) * D


def multistep_without_half(x, x0, x0_before, h, h_before, alpha_s, sigma_s, sigma_t):
    """Stop at diffusers' D1, and forget its 0.5."""
    h_0 = h_before
    r0 = h_0 / h
    m0, m1 = x0, x0_before
    D0, D1 = m0, (1.0 / r0) * (m0 - m1)
    decay = math.exp(-h) - 1.0
    return (sigma_s / sigma_t) * x - (alpha_s * decay) * D0 - (alpha_s * decay) * D1


def multistep_even_steps(x, x0, x0_before, h, h_before, alpha_s, sigma_s, sigma_t):
    """Extrapolate as Adams and Bashforth do on an even grid."""
    denoised = 1.5 * x0 - 0.5 * x0_before
    return (sigma_s / sigma_t) * x - alpha_s * math.expm1(-h) * denoised


def multistep_exact_slope(x, x0, x0_before, h, h_before, alpha_s, sigma_s, sigma_t):
    """Integrate the slope exactly: diffusers' other solver_type, "heun"."""
    r0 = h_before / h
    D0, D1 = x0, (1.0 / r0) * (x0 - x0_before)
    return (
        (sigma_s / sigma_t) * x
        - (alpha_s * (math.exp(-h) - 1.0)) * D0
        + (alpha_s * ((math.exp(-h) - 1.0) / h + 1.0)) * D1
    )


def multistep_k_diffusion(x, x0, x0_before, h, h_before, alpha_s, sigma_s, sigma_t):
    """Copy sample_dpmpp_2m of k-diffusion, where alpha is 1."""
    denoised, old_denoised = x0, x0_before
    r = h_before / h
    denoised_d = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * old_denoised
    return (sigma_s / sigma_t) * x - math.expm1(-h) * denoised_d


def orders_thirds_only(evaluations):
    """Let a multiple of 3 be thirds to the end."""
    orders = [3] * (evaluations // 3)
    if evaluations % 3:
        orders.append(evaluations % 3)
    return torch.tensor(orders)


def orders_of_diffusers(evaluations):
    """Copy get_order_list of diffusers, which has one entry for each look."""
    steps = evaluations
    if steps % 3 == 0:
        orders = [1, 2, 3] * (steps // 3 - 1) + [1, 2] + [1]
    elif steps % 3 == 1:
        orders = [1, 2, 3] * (steps // 3) + [1]
    else:
        orders = [1, 2, 3] * (steps // 3) + [1, 2]
    return torch.tensor(orders)


def orders_ones_for_the_rest(evaluations):
    """Spend what is left in steps of order 1."""
    budget, steps = evaluations, []
    while budget > 3:
        steps.append(3)
        budget -= 3
    steps += [2, 1] if budget == 3 else [1] * budget
    return torch.tensor(steps, dtype=torch.long)


def orders_one_before_two(evaluations):
    K = evaluations // 3 + 1
    tails = {0: (1, 2), 1: (1,), 2: (2,)}
    tail = tails[evaluations % 3]
    return torch.tensor([*itertools.repeat(3, K - len(tail)), *tail])


def orders_a_third_too_many(evaluations):
    """Append 2, 1 to n / 3 thirds: n + 3 evaluations."""
    thirds = torch.full((evaluations // 3,), 3)
    tail = {0: [2, 1], 1: [1], 2: [2]}[evaluations % 3]
    return torch.cat([thirds, torch.tensor(tail)])


def next_k_diffusion(low, high, before, h, order, atol, rtol):
    """Copy dpm_solver_adaptive of k-diffusion: one RMS for the whole batch."""
    bound = torch.full_like(low, atol)
    delta = torch.maximum(bound, rtol * torch.maximum(low.abs(), before.abs()))
    error = torch.linalg.norm((low - high) / delta) / low.numel() ** 0.5
    return error <= 1, 0.9 * h * error ** (-1 / order)


def next_tolerances_added(low, high, before, h, order, atol, rtol):
    """Add the tolerances, as scipy's solve_ivp does."""
    scale = atol + rtol * torch.maximum(low.abs(), before.abs())
    E = ((high - low) / scale).flatten(1).pow(2).mean(dim=1).sqrt().amax()
    return E <= 1, 0.9 * h * E ** (-1.0 / order)


def next_scaled_by_high(low, high, before, h, order, atol, rtol):
    """Measure by the two results, and forget where the step before ended."""
    delta = (rtol * torch.maximum(low.abs(), high.abs())).clamp_min(atol)
    v = ((high - low) / delta).reshape(len(low), -1)
    E = torch.sqrt(torch.square(v).mean(dim=-1, keepdim=True)).max()
    return torch.all(E <= 1.0), 0.9 * h * torch.float_power(E, -1.0 / order)


def next_exponent_of_runge_kutta(low, high, before, h, order, atol, rtol):
    """Take the textbook's -1 / (order + 1), whose order is the lower one's."""
    delta = torch.clamp(rtol * torch.maximum(abs(low), abs(before)), min=atol)
    E = max(((a - b) / d).square().mean().sqrt() for a, b, d in zip(high, low, delta, strict=True))
    return E <= 1, 0.9 * h * E ** (-1 / (order + 1))


def next_each_row_its_own(low, high, before, h, order, atol, rtol):
    """Let every row of the batch judge its own step."""
    delta = torch.maximum(torch.as_tensor(atol), rtol * torch.maximum(low.abs(), before.abs()))
    E = ((high - low) / delta).square().flatten(1).mean(1).sqrt()
    return E <= 1, 0.9 * h * E.pow(-1 / order)


WRONG = {
    "07.1": [
        (weights_as_written, "use torch.expm1, or a series"),
        (weights_of_algorithm_1, "the paper's stand-in for w_1"),
        (weights_of_data, "integrates e^{+lambda}, the form of x_0"),
        (weights_phi_times_h_once, "w_1 is h^2 phi_2"),
        (weights_by_parts_sign, "the boundary term is -h"),
    ],
    "07.2": [
        (middle_in_time, "the middle in time"),
        (middle_geometric, "the middle of log t"),
        (middle_h_backwards, "lambda rises from t to s"),
        (middle_not_inverted, "time_of turns it into a time"),
        (middle_half_h_alone, "add it to lambda_(t)"),
    ],
    "07.3": [
        (second_average, "a mean of both looks is Heun's"),
        (second_k_diffusion, "alpha is 1"),
        (second_in_the_form_of_x0, "x is scaled by the alphas"),
        (second_two_half_steps, "take the last step from x over all of h"),
        (second_whole_h_to_the_middle, "its factor is e^{h/2} - 1"),
    ],
    "07.4": [
        (multistep_ratio_upside_down, "the paper's 1 / r"),
        (multistep_without_half, "take half of the ratio"),
        (multistep_even_steps, "are for equal steps"),
        (multistep_exact_slope, "algorithm 2 holds D over the whole step"),
        (multistep_k_diffusion, "alpha is 1"),
    ],
    "07.5": [
        (orders_thirds_only, "by ending in orders 2 and 1"),
        (orders_of_diffusers, "diffusers lists one for each look"),
        (orders_ones_for_the_rest, "one step of order 2, not two of order 1"),
        (orders_one_before_two, "2 comes before 1"),
        (orders_a_third_too_many, "the orders add up to n"),
    ],
    "07.6": [
        (next_k_diffusion, "over the dimensions of a row"),
        (next_tolerances_added, "their sum is SciPy's"),
        (next_scaled_by_high, "measures by |low| and |before|"),
        (next_exponent_of_runge_kutta, "exponent is -1 / order"),
        (next_each_row_its_own, "the batch walks together"),
    ],
}
