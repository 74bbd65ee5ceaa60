"""Wrong answers to notebook 08, written as learners write them, not as our zoo does."""

import math

import numpy as np
import torch
import torch.nn.functional as F


def noise_added(eps, gradient, sigma, scale):
    """Climb by adding, as the mean is moved: the noise is what is taken away."""
    cond_grad = scale * gradient
    noise_pred = eps + sigma * cond_grad
    return noise_pred


def noise_k_diffusion(eps, gradient, sigma, scale):
    """Take k-diffusion's sigma ** 2, which moves the denoised image, for the noise."""
    cond_grad = gradient.mul(scale)
    return eps - cond_grad * sigma**2


def noise_left_as_score(eps, gradient, sigma, scale):
    """Guide the score, as Song's SDE code does, and forget to turn it back into noise."""
    score = -eps / sigma
    return score + scale * gradient


def noise_unit_gradient(eps, gradient, sigma, scale):
    """Let the gradient give only the direction, as CLIP guidance often does."""
    direction = gradient / torch.linalg.norm(gradient, dim=-1, keepdim=True)
    return eps - scale * sigma * direction


def noise_no_sigma(eps, gradient, sigma, scale):
    """Subtract the gradient as it is, as in jannerm/diffuser's `x + scale * grad`."""
    return torch.sub(eps, gradient, alpha=float(scale))


def step_std_on_slope(mean, variance, slope, scale, z):
    """Give the slope the standard deviation that the noise has."""
    std = variance**0.5
    return mean + std * (scale * slope(mean) + z)


def step_guided_after_noise(mean, variance, slope, scale, z):
    """Draw first, and take the slope where the draw fell."""
    sample = mean + variance.sqrt() * z
    return sample + scale * variance * slope(sample)


def step_without_variance(mean, variance, slope, scale, z):
    """Copy n_step_guided_p_sample of jannerm/diffuser with scale_grad_by_std off."""
    model_std = torch.sqrt(variance)
    x = mean + scale * slope(mean)
    return x + model_std * z


def step_as_log_variance(mean, variance, slope, scale, z):
    """Copy guided-diffusion's p_sample, whose model returns the log of the variance."""
    new_mean = mean + variance * (scale * slope(mean))
    return new_mean + torch.exp(0.5 * variance) * z


def step_variance_on_noise(mean, variance, slope, scale, z):
    """Hand the variance to something that wants a standard deviation."""
    loc = mean + scale * variance * slope(mean)
    posterior = torch.distributions.Normal(loc, variance.expand_as(loc))
    return posterior.loc + posterior.scale * z


def uphill_mean_cross_entropy(logits, x, y):
    """Take the loss's default reduction: every row has only 1 / B of its slope."""
    x_in = x.detach().requires_grad_(True)
    loss = F.cross_entropy(logits(x_in), y)
    return -torch.autograd.grad(loss, x_in)[0]


def uphill_logit_alone(logits, x, y):
    """Climb the label's logit, and forget the other classes in the softmax."""
    x_in = x.clone().requires_grad_()
    out = logits(x_in)
    selected = out[range(len(out)), y.view(-1)]
    return torch.autograd.grad(selected.sum(), x_in)[0]


def uphill_all_pairs(logits, x, y):
    """Index [:, y], which is every row with every row's label."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        log_p = F.log_softmax(logits(x), dim=-1)
        return torch.autograd.grad(log_p[:, y].sum(), x)[0]


def uphill_grad_of_the_wrong_tensor(logits, x, y):
    """Differentiate a copy and ask the original for its gradient, which is None."""
    x_in = x.detach().clone().requires_grad_()
    log_probs = logits(x_in).log_softmax(dim=1)
    log_probs.gather(1, y.unsqueeze(1)).sum().backward()
    return x.grad


def uphill_probability(logits, x, y):
    """Climb p(y | x) itself, not its logarithm."""
    x.requires_grad_()
    probs = torch.softmax(logits(x), dim=1)
    one_hot = F.one_hot(y, probs.shape[1]).to(probs.dtype)
    torch.einsum("bk,bk->", probs, one_hot).backward()
    return x.grad


def loss_softmax_twice(logits, x0, y, t, eps, alpha, sigma):
    """Give probabilities to cross_entropy, which wants logits."""
    x_t = alpha(t).unsqueeze(-1) * x0 + sigma(t).unsqueeze(-1) * eps
    pred = torch.softmax(logits(x_t, t), dim=-1)
    return F.cross_entropy(pred, y, reduction="none")


def loss_of_alphas_cumprod(logits, x0, y, t, eps, alpha, sigma):
    """Copy q_sample, where alpha is the product of DDPM, under a root."""
    alphas_cumprod = alpha(t).view(-1, 1)
    xt = alphas_cumprod.sqrt() * x0 + (1.0 - alphas_cumprod).sqrt() * eps
    return F.cross_entropy(logits(xt, t), y, reduction="none")


def loss_no_column(logits, x0, y, t, eps, alpha, sigma):
    """Multiply (B,) with (B, d), which pairs the rows' times with the dimensions."""
    noisy = alpha(t) * x0 + sigma(t) * eps
    log_probs = F.log_softmax(logits(noisy, t), dim=1)
    return -log_probs[torch.arange(len(y)), y]


def loss_mean(logits, x0, y, t, eps, alpha, sigma):
    """Leave cross_entropy its default, the mean over the batch."""
    a_t, s_t = (f(t).reshape(-1, *[1] * (x0.ndim - 1)) for f in (alpha, sigma))
    return torch.nn.CrossEntropyLoss()(logits(a_t * x0 + s_t * eps, t), y)


def loss_nll_of_logits(logits, x0, y, t, eps, alpha, sigma):
    """Give logits to nll_loss, which wants logarithms of probabilities."""
    xt = torch.einsum("b,bd->bd", alpha(t), x0) + torch.einsum("b,bd->bd", sigma(t), eps)
    return F.nll_loss(logits(xt, t), y, reduction="none")


def classes_variance_as_scale(x, t_alpha, t_sigma, means, variances, shares):
    """Hand Normal the variance, where it wants the standard deviation."""
    scale = t_alpha**2 * variances + t_sigma**2
    comp = torch.distributions.Normal(t_alpha * means, scale[:, None].expand_as(means))
    joint = comp.log_prob(x[:, None]).sum(-1) + shares.log()
    return joint - joint.logsumexp(dim=1, keepdim=True)


def classes_one_dimension(x, t_alpha, t_sigma, means, variances, shares):
    """Write the density of one dimension, with one log of the width however many there are."""
    var_t = t_alpha**2 * variances + t_sigma**2
    sq_dist = torch.cdist(x, t_alpha * means) ** 2
    log_lik = -0.5 * sq_dist / var_t - 0.5 * torch.log(2 * math.pi * var_t)
    return torch.log_softmax(log_lik + torch.log(shares), dim=1)


def classes_joint(x, t_alpha, t_sigma, means, variances, shares):
    """Stop at log p(x_t, class), before Bayes' denominator."""
    columns = []
    for mu, v, share in zip(means, variances, shares, strict=True):
        var = t_alpha**2 * v + t_sigma**2
        cov = var * torch.eye(x.shape[1], dtype=x.dtype)
        mvn = torch.distributions.MultivariateNormal(t_alpha * mu, cov)
        columns.append(mvn.log_prob(x) + share.log())
    return torch.stack(columns, dim=1)


def classes_of_clean_data(x, t_alpha, t_sigma, means, variances, shares):
    """Divide by alpha and ask the classifier of clean data."""
    x0_hat = x / t_alpha
    d = x.shape[-1]
    logits = (
        shares.log()
        - 0.5 * d * variances.log()
        - ((x0_hat[:, None, :] - means[None]) ** 2).sum(-1) / (2 * variances)
    )
    return F.log_softmax(logits, dim=-1)


def classes_deviations_added(x, t_alpha, t_sigma, means, variances, shares):
    """Add standard deviations, where variances add."""
    std = float(t_alpha) * np.sqrt(variances.numpy()) + float(t_sigma)
    diff = x.numpy()[:, None] - float(t_alpha) * means.numpy()
    z = diff / std[:, None]
    logp = np.log(shares.numpy()) - x.shape[1] * np.log(std) - 0.5 * (z**2).sum(axis=-1)
    return torch.from_numpy(logp - np.logaddexp.reduce(logp, axis=1, keepdims=True))


def norm_as_printed(h, scale, shift, groups):
    """Write the paper's y_s GroupNorm(h) + y_b."""
    normed = F.group_norm(h, groups)
    return torch.einsum("bc,bchw->bchw", scale, normed) + shift[..., None, None]


def norm_unbiased(h, scale, shift, groups):
    """Take torch's default variance, which divides by n - 1."""
    b, c, height, width = h.shape
    x = h.reshape(b, groups, -1)
    x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-5)
    x = x.reshape(b, c, height, width)
    return x * (1 + scale.view(b, c, 1, 1)) + shift.view(b, c, 1, 1)


def norm_no_pixel_axes(h, scale, shift, groups):
    """Leave the embedding (B, C), which then meets the last two axes."""
    out_norm = torch.nn.GroupNorm(groups, h.shape[1], affine=False)
    return out_norm(h) * (1 + scale) + shift


def norm_channels_of_a_group(h, scale, shift, groups):
    """Take `groups` for the number of channels in each group."""
    num_groups = h.shape[1] // groups
    h = F.group_norm(h, num_groups, eps=1e-5)
    return h * (scale[:, :, None, None] + 1) + shift[:, :, None, None]


def norm_shift_first(h, scale, shift, groups):
    """Take the two in DiT's order, shift before scale."""

    def modulate(x, shift, scale):
        return x * (1 + scale[:, :, None, None]) + shift[:, :, None, None]

    return modulate(F.group_norm(h, groups), scale, shift)


WRONG = {
    "08.1": [
        (noise_added, "subtract the gradient, to climb"),
        (noise_k_diffusion, "1 - alpha_bar, its square"),
        (noise_left_as_score, "that is the guided score"),
        (noise_unit_gradient, "keep the gradient's length"),
        (noise_no_sigma, "enters it times sigma"),
    ],
    "08.2": [
        (step_std_on_slope, "multiplied by the variance: its root is for the noise"),
        (step_guided_after_noise, "ask for the gradient at the mean"),
        (step_without_variance, "multiply the gradient by the variance"),
        (step_as_log_variance, "takes the variance for its logarithm"),
        (step_variance_on_noise, "multiply it by the root of the variance"),
    ],
    "08.3": [
        (uphill_mean_cross_entropy, "a mean makes each gradient smaller"),
        (uphill_logit_alone, "a logit is not log p yet"),
        (uphill_all_pairs, "[:, y] gives each row the labels of all"),
        (uphill_grad_of_the_wrong_tensor, "a gradient that nothing reached"),
        (uphill_probability, "climb log p, not p"),
    ],
    "08.4": [
        (loss_softmax_twice, "it does the softmax itself"),
        (loss_of_alphas_cumprod, "alpha is sqrt(alpha_bar) already"),
        (loss_no_column, "with a second axis, [:, None]"),
        (loss_mean, "reduction='none'"),
        (loss_nll_of_logits, "take log_softmax of the logits first"),
    ],
    "08.5": [
        (classes_variance_as_scale, "Normal takes the standard deviation"),
        (classes_one_dimension, "taken off d / 2 times"),
        (classes_joint, "that is a density, of x_t and class"),
        (classes_of_clean_data, "add sigma^2 to its variance"),
        (classes_deviations_added, "variances add"),
    ],
    "08.6": [
        (norm_as_printed, "the code's gain is 1 + scale"),
        (norm_unbiased, "divides by n, not n - 1"),
        (norm_no_pixel_axes, "append two axes"),
        (norm_channels_of_a_group, "`groups` is the number of groups"),
        (norm_shift_first, "scale multiplies, shift is added"),
    ],
}
