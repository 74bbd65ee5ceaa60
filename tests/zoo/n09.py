"""Wrong answers to notebook 09, written as learners write them, not as our zoo does."""

import numpy as np
import torch


def extrapolate_diffusers(eps_cond, eps_uncond, w):
    """Start at the unconditional one, as diffusers does, whose scale is 1 + w."""
    noise_pred_uncond, noise_pred_text = eps_uncond, eps_cond
    return noise_pred_uncond + w * (noise_pred_text - noise_pred_uncond)


def extrapolate_labml(eps_cond, eps_uncond, w):
    """Copy labml's formula as its page prints it: s c + (s - 1) u."""
    s = w
    return s * eps_cond + (s - 1) * eps_uncond


def extrapolate_weights_plus(eps_cond, eps_uncond, w):
    """Add the unconditional one, so that the weights sum to 1 + 2 w."""
    e = torch.stack([eps_cond, eps_uncond])
    coef = e.new_tensor([1 + w, w])
    return torch.einsum("k,k...->...", coef, e)


def extrapolate_order_of_chunk(eps_cond, eps_uncond, w):
    """Unpack in diffusers' order, the unconditional one first."""
    e_t_uncond, e_t = torch.cat([eps_cond, eps_uncond]).chunk(2)
    return e_t + w * (e_t - e_t_uncond)


def extrapolate_between(eps_cond, eps_uncond, w):
    """Mix the two, which goes from the conditional one back to the unconditional."""
    return torch.lerp(eps_cond, eps_uncond, w)


def w_wrong_way(number, written):
    """Solve the other way: from w to what is written."""
    if written == "s":
        return number + 1
    if written == "half":
        return 2 * number + 1
    return number


def w_weight_of_cond(number, written):
    """Read off the weight of eps_c, which is 1 + w."""
    weights = {"w": number, "s": number, "half": 0.5 + number / 2}
    return weights[written]


def w_weight_of_uncond(number, written):
    """Read off the weight of eps_u, which is -w."""
    match written:
        case "w":
            return number
        case "s":
            return 1 - number
        case "half":
            return 0.5 * (1 - number)


def w_no_guidance_below_one(number, written):
    """Switch guidance off at scales up to 1, as diffusers does."""
    guidance_scale = {"w": 1 + number, "s": number, "half": (1 + number) / 2}[written]
    do_classifier_free_guidance = guidance_scale > 1.0
    return torch.where(do_classifier_free_guidance, guidance_scale - 1, torch.zeros_like(number))


def w_half_from_uncond(number, written):
    """Read the mean of both as if it were eps_u."""
    if written == "w":
        return number
    s = number if written == "s" else number / 2
    return s - 1


def drop_in_place(y, draws, p, null):
    """Write into y, as `x[mask] = null` does in many a training loop."""
    mask = draws < p
    y[mask] = null
    return y


def drop_whole_batch(y, draws, p, null):
    """Toss one coin for the batch, as `if np.random.random() < 0.1: labels = None` does."""
    if draws[0] < p:
        return torch.full_like(y, null)
    return y.clone()


def drop_to_class_zero(y, draws, p, null):
    """Multiply by the mask, which gives the label 0: a class."""
    context_mask = 1 - (draws < p).to(y.dtype)
    return y * context_mask


def drop_fresh_bernoulli(y, draws, p, null):
    """Draw a mask of one's own."""
    drop_ids = torch.rand(y.shape[0], device=y.device) < p
    return torch.where(drop_ids, null, y)


def drop_where_swapped(y, draws, p, null):
    """Take numpy's where for "keep where": the labels stay with probability p."""
    return torch.from_numpy(np.where(draws.numpy() < p, y.numpy(), null))


def both_uncond_first(network, x, t, y, null, w):
    """Put the null labels first, and unpack as if they were last."""
    x_in = torch.cat([x] * 2)
    t_in = torch.cat([t] * 2)
    c_in = torch.cat([torch.full_like(y, null), y])
    eps_c, eps_u = network(x_in, t_in, c_in).chunk(2)
    return (1 + w) * eps_c - w * eps_u


def both_as_dit(network, x, t, y, null, w):
    """Copy DiT's forward_with_cfg, which returns the guided eps twice."""
    combined = torch.cat([x, x], dim=0)
    y_null = torch.tensor([int(null)] * len(y), device=y.device)
    eps = network(combined, torch.cat([t, t], 0), torch.cat([y, y_null], 0))
    cond_eps, uncond_eps = torch.split(eps, len(eps) // 2, dim=0)
    half_eps = uncond_eps + (1 + w) * (cond_eps - uncond_eps)
    return torch.cat([half_eps, half_eps], dim=0)


def both_interleaved(network, x, t, y, null, w):
    """Repeat each row beside itself, and split as if copy followed copy."""
    xx, tt = x.repeat_interleave(2, dim=0), t.repeat_interleave(2)
    yy = torch.stack([y, torch.full_like(y, null)], dim=1).flatten()
    out = network(xx, tt, yy)
    n = x.shape[0]
    return out[:n] + w * (out[:n] - out[n:])


def both_null_is_zero(network, x, t, y, null, w):
    """Take zeros for the null label, as InterGen does with its conditions."""
    B = len(x)
    out = network(x.repeat(2, 1), t.repeat(2), torch.cat([y, torch.zeros_like(y)]))
    out_cond, out_uncond = out[:B], out[B:]
    s = 1 + w
    return s * out_cond + (1 - s) * out_uncond


def both_one_after_the_other(network, x, t, y, null, w):
    """Call the network twice, as lucidrains' forward_with_cond_scale does."""
    logits = network(x, t, y)
    null_logits = network(x, t, torch.full_like(y, null))
    return null_logits + (logits - null_logits) * (1 + w)


def variances_both_tilted(v_cond, v_uncond, w):
    """Believe that guidance draws from the tilted law."""
    precision = (1 + w) * v_cond.reciprocal() - w * v_uncond.reciprocal()
    return 1 / precision, 1 / precision


def variances_deviation_of_flow(v_cond, v_uncond, w):
    """Solve dx/dk for x, which grows as the standard deviation, and forget the square."""
    stretch = torch.exp(0.5 * (1 + w) * v_cond.log() - 0.5 * w * v_uncond.log())
    tilted = v_cond * v_uncond / ((1 + w) * v_uncond - w * v_cond)
    return stretch, tilted


def variances_of_stable_diffusion(v_cond, v_uncond, w):
    """Take w for the scale s of eps_u + s (eps_c - eps_u)."""
    flow = v_uncond * (v_cond / v_uncond) ** w
    tilted = 1 / (1 / v_uncond + w * (1 / v_cond - 1 / v_uncond))
    return flow, tilted


def variances_extrapolated(v_cond, v_uncond, w):
    """Extrapolate the variances as the noises are extrapolated."""
    flow = v_cond + w * (v_cond - v_uncond)
    tilted = ((1 + w) / v_cond - w / v_uncond) ** -1
    return flow, tilted


def variances_precision(v_cond, v_uncond, w):
    """Leave the tilted law's precision as it is."""
    log_flow = (1 + w) * np.log(v_cond.numpy()) - w * np.log(v_uncond.numpy())
    return torch.as_tensor(np.exp(log_flow)), (1 + w) / v_cond - w / v_uncond


def implicit_score_without_minus(eps_cond, eps_uncond, sigma):
    """Take eps / sigma for the score."""
    score_cond, score_uncond = eps_cond / sigma, eps_uncond / sigma
    return score_cond - score_uncond


def implicit_by_variance(eps_cond, eps_uncond, sigma):
    """Divide by sigma^2, as Tweedie's formula does for a denoised image."""
    return (eps_uncond - eps_cond) / sigma.square()


def implicit_times_sigma(eps_cond, eps_uncond, sigma):
    """Turn gradient into noise, where noise was to be turned into gradient."""
    sqrt_one_minus_alpha_bar = sigma
    return -sqrt_one_minus_alpha_bar * (eps_cond - eps_uncond)


def implicit_score_of_cond(eps_cond, eps_uncond, sigma):
    """Give the score of p(x_t | y), and forget p(x_t)."""
    log_p_grad = eps_cond.neg().div(sigma)
    return log_p_grad


def implicit_difference_of_noises(eps_cond, eps_uncond, sigma):
    """Take the difference of the noises for the classifier's gradient, without a scale."""
    return torch.einsum(
        "k,k...->...", eps_cond.new_tensor([-1, 1]), torch.stack([eps_cond, eps_uncond])
    )


WRONG = {
    "09.1": [
        (extrapolate_diffusers, "takes w for the s of GLIDE"),
        (extrapolate_labml, "they are s and 1 - s"),
        (extrapolate_weights_plus, "eps_uncond is subtracted"),
        (extrapolate_order_of_chunk, "yours are swapped"),
        (extrapolate_between, "guidance leads away from it"),
    ],
    "09.2": [
        (w_wrong_way, "that turns w into the others"),
        (w_weight_of_cond, "those are the weights of eps_c"),
        (w_weight_of_uncond, "those are the weights of eps_u"),
        (w_no_guidance_below_one, "a scale below 1 is a w below 0"),
        (w_half_from_uncond, "half a difference beyond eps_u"),
    ],
    "09.3": [
        (drop_in_place, "write into a clone of it"),
        (drop_whole_batch, "each row has a draw of its own"),
        (drop_to_class_zero, "0 is a class like the others"),
        (drop_fresh_bernoulli, "it changes from call to call"),
        (drop_where_swapped, "y stays where draws >= p"),
    ],
    "09.4": [
        (both_uncond_first, "answers keep the order of the labels"),
        (both_as_dit, "return B rows"),
        (both_interleaved, "not by turns"),
        (both_null_is_zero, "0 is a class like the others"),
        (both_one_after_the_other, "call the network once"),
    ],
    "09.5": [
        (variances_both_tilted, "the flow draws another law"),
        (variances_deviation_of_flow, "a standard deviation for a variance"),
        (variances_of_stable_diffusion, "w and 1 - w are the weights of s"),
        (variances_extrapolated, "w extrapolates log v, not v"),
        (variances_precision, "a variance is one over it"),
    ],
    "09.6": [
        (implicit_score_without_minus, "a score is -eps / sigma"),
        (implicit_by_variance, "so sigma is left"),
        (implicit_times_sigma, "on the way back, divide by sigma"),
        (implicit_score_of_cond, "take off that of p(x_t)"),
        (implicit_difference_of_noises, "that is a difference of noises"),
    ],
}
