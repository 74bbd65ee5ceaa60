"""Wrong answers to notebook 14, written as learners write them, not as our zoo does."""

import math

import numpy as np
import torch
import torch.nn.functional as F


def told_no_half(lambdas, errors):
    """Integrate from SNR 0, and forget the half in front of the integral."""
    snr = np.concatenate([[0.0], np.exp(2 * lambdas.numpy())])
    mse = np.concatenate([errors[:1].numpy(), errors.numpy()])
    return np.cumsum(np.diff(snr) * (mse[1:] + mse[:-1]) / 2)


def told_from_the_first_level(lambdas, errors):
    """Put a 0 before cumulative_trapezoid, so that the lengths agree."""
    snr = torch.exp(2 * lambdas)
    return F.pad(torch.cumulative_trapezoid(errors, snr), (1, 0)) / 2


def told_substituted(lambdas, errors):
    """Substitute d SNR = 2 e^(2 lambda) d lambda, and lay the trapezoids in lambda."""
    integrand = errors * 2 * torch.exp(2 * lambdas)
    rest = torch.cumulative_trapezoid(integrand, lambdas)
    head = errors[0] * torch.exp(2 * lambdas[0])
    return 0.5 * torch.cat([head.view(1), head + rest])


def told_in_lambda(lambdas, errors):
    """Integrate the errors over lambda itself, as a loss is drawn over it."""
    told = [0.5 * errors[0] * math.exp(2 * lambdas[0])]
    for i in range(1, len(lambdas)):
        step = lambdas[i] - lambdas[i - 1]
        told.append(told[-1] + 0.5 * step * (errors[i] + errors[i - 1]) / 2)
    return torch.stack(told)


def told_snr_of_amplitudes(lambdas, errors):
    """Take alpha / sigma for the SNR, which is its square."""
    snr = lambdas.exp()
    x = torch.cat([torch.zeros(1, dtype=snr.dtype), snr])
    y = torch.cat([errors[:1], errors])
    return torch.cumulative_trapezoid(y, x) / 2


def told_left_sums(lambdas, errors):
    """Hold each error until the next level, and sum rectangles."""
    snr = torch.exp(2 * lambdas)
    widths = torch.diff(snr, prepend=snr.new_zeros(1))
    heights = torch.cat([errors[:1], errors[:-1]])
    return torch.cumsum(widths * heights, dim=0) / 2


def told_each_piece(lambdas, errors):
    """Return what each level adds to those before it."""
    snr = torch.exp(2 * lambdas)
    pieces = (errors[1:] + errors[:-1]) / 2 * snr.diff()
    return torch.cat([errors[:1] * snr[:1], pieces]) / 2


def pour_equal_parts(variances, total):
    """Give each number total / n, and no more than it has."""
    return torch.clamp(variances, max=total / len(variances))


def pour_in_proportion(variances, total):
    """Let each number err by the same share of its variance."""
    return variances / variances.sum() * total


def pour_sorted_order(variances, total):
    """Find the level in the sorted list, and return the sorted list."""
    v, _ = variances.sort(descending=True)
    tail = v.flip(0).cumsum(0).flip(0) - v
    for k in range(1, len(v) + 1):
        level = (total - tail[k - 1]) / k
        if level <= v[k - 1] and (k == len(v) or level >= v[k]):
            break
    return torch.minimum(v, level)


def pour_one_above_too_few(variances, total):
    """Count from 0 those that are above, and divide by the index."""
    v = np.sort(variances.numpy())
    n, under = len(v), 0.0
    for i in range(n):
        level = (total - under) / max(n - i - 1, 1)
        if level <= v[i]:
            break
        under += v[i]
    return np.minimum(variances.numpy(), level)


def pour_rates(variances, total):
    """Return the nats that each number costs, half the log of v / d."""
    lo, hi = 0.0, float(variances.max())
    for _ in range(80):
        mid = 0.5 * (lo + hi)
        if torch.minimum(variances, torch.tensor(mid)).sum() < total:
            lo = mid
        else:
            hi = mid
    return 0.5 * torch.log(variances / variances.clamp(max=hi))


def pour_power_of_a_channel(variances, total):
    """Fill up the space above the variances, as power is shared among noisy channels."""
    low, high = 0.0, variances.max().item() + total
    while high - low > 1e-12:
        level = (low + high) / 2
        if (level - variances).clamp(min=0).sum() > total:
            high = level
        else:
            low = level
    return F.relu(low - variances)


def pour_once_more(variances, total):
    """Share equally, share what is left among those that have room, and stop there."""
    d = variances.clamp(max=total / variances.numel())
    room = d < variances
    d[room] += (total - d.sum()) / room.sum()
    return d.minimum(variances)


def heard_not_straight_through(z, book, loss, commitment):
    """Look the codes up and call loss, where argmin lets no gradient through."""
    z = z.clone().requires_grad_()
    k = torch.cdist(z, book).argmin(dim=1)
    e = F.embedding(k, book)
    total = loss(e) + commitment * ((z - e.detach()) ** 2).sum()
    total.backward()
    return z.grad


def heard_loss_of_z(z, book, loss, commitment):
    """Decode z itself, since the gradient goes to z."""
    z = z.detach().clone().requires_grad_(True)
    nearest = ((z.unsqueeze(1) - book.unsqueeze(0)) ** 2).sum(-1).argmin(-1)
    (g,) = torch.autograd.grad(loss(z), z)
    return g + 2 * commitment * (z.detach() - book[nearest])


def heard_mse_loss(z, book, loss, commitment):
    """Call F.mse_loss, as VQ-VAE code does, which takes the mean."""
    inputs = z.detach().clone().requires_grad_()
    distances = inputs.pow(2).sum(1, keepdim=True) + book.pow(2).sum(1) - 2 * inputs @ book.t()
    encodings = F.one_hot(distances.argmin(1), len(book)).to(z.dtype)
    quantized = encodings @ book
    e_latent_loss = F.mse_loss(quantized.detach(), inputs)
    quantized = inputs + (quantized - inputs).detach()
    return torch.autograd.grad(loss(quantized) + commitment * e_latent_loss, inputs)[0]


def heard_no_two(z, book, loss, commitment):
    """Differentiate by hand, and drop the 2 of the square."""
    e = torch.stack([book[(book - row).norm(dim=1).argmin()] for row in z])
    e.requires_grad_()
    loss(e).backward()
    return e.grad + commitment * (z - e.detach())


def heard_largest_dot_product(z, book, loss, commitment):
    """Take the code with the largest dot product for the nearest, as in attention."""
    z = z.detach().clone().requires_grad_()
    e = book[torch.einsum("nd,kd->nk", z, book).argmax(dim=1)]
    out = loss(z + (e - z).detach()) + commitment * F.mse_loss(z, e, reduction="sum")
    return torch.autograd.grad(out, z)[0]


def heard_beta_on_the_other(z, book, loss, commitment):
    """Add both losses, with beta at the codebook's, as taming-transformers' legacy does."""
    beta = commitment
    z = z.detach().clone().requires_grad_()
    z_q = book[torch.cdist(z, book).argmin(1)]
    vq = ((z_q.detach() - z) ** 2).sum() + beta * ((z_q - z.detach()) ** 2).sum()
    z_q = z + (z_q - z).detach()
    return torch.autograd.grad(loss(z_q) + vq, z)[0]


def heard_snapped(z, book, loss, commitment):
    """Put the codes into z, which is then as near to them as can be."""
    e = book[torch.cdist(z, book).argmin(1)]
    z[:] = e
    z.requires_grad_()
    (loss(z) + commitment * (z - e).square().sum()).backward()
    return z.grad


def bits_mean(mean, log_var):
    """Average over the latents, as losses are averaged."""
    kl = 0.5 * (mean**2 + torch.exp(log_var) - 1 - log_var)
    return kl.mean(dim=(1, 2, 3)) / math.log(2)


def bits_nats(mean, log_var):
    """Copy kl() of diffusers' DiagonalGaussianDistribution, which counts nats."""
    var = torch.exp(log_var)
    return 0.5 * torch.sum(torch.pow(mean, 2) + var - 1.0 - log_var, dim=[1, 2, 3])


def bits_deviation(mean, log_var):
    """Give Normal exp(log_var), where it takes a deviation."""
    q = torch.distributions.Normal(mean, log_var.exp())
    p = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    return torch.distributions.kl_divergence(q, p).flatten(1).sum(1) / math.log(2)


def bits_minus_forgotten(mean, log_var):
    """Copy 1 + log_var - mu^2 - var from the VAE paper, without the minus in front."""
    m, lv = mean.numpy(), log_var.numpy()
    return 0.5 * np.sum(1 + lv - m**2 - np.exp(lv), axis=(1, 2, 3)) / np.log(2)


def bits_of_the_batch(mean, log_var):
    """Sum over everything, as PyTorch's VAE example does."""
    KLD = -0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp())
    return KLD / math.log(2)


def bits_times_log_two(mean, log_var):
    """Multiply by log 2, which makes nats of bits."""
    each = (mean.square() + log_var.exp() - 1 - log_var) / 2
    return torch.einsum("bchw->b", each) * math.log(2)


def bits_turned_round(mean, log_var):
    """Take the divergence of N(0, I) from q."""
    precision = torch.exp(-log_var)
    nats = 0.5 * ((1 + mean.square()) * precision - 1 + log_var)
    return nats.sum(dim=(-3, -2, -1)) / np.log(2)


def point_divided_by_s(xt, alpha, sigma, s):
    """Divide by s, for then the latents are of size 1, and stay at the time."""
    return xt / s, alpha, sigma


def point_s_not_squared(xt, alpha, sigma, s):
    """Put s beside alpha^2 as it is."""
    total = torch.sqrt(s * alpha**2 + sigma**2)
    return xt / total.unsqueeze(1), s * alpha / total, sigma / total


def point_factors_as_they_are(xt, alpha, sigma, s):
    """Rescale the point, and tell the factors of x_t, whose squares do not add up to 1."""
    size = torch.linalg.vector_norm(torch.stack([s * alpha, sigma]), dim=0)
    return xt / size[:, None], s * alpha, sigma


def point_left_alone(xt, alpha, sigma, s):
    """Find the time with the same SNR, and show the point as it is."""
    snr = (s * alpha / sigma) ** 2
    return xt, torch.sqrt(snr / (1 + snr)), torch.sqrt(1 / (1 + snr))


def point_noise_divided_too(xt, alpha, sigma, s):
    """Divide point and noise by s, and leave the schedule with that."""
    return xt / s, alpha, sigma / s


def point_s_on_sigma(xt, alpha, sigma, s):
    """Let s stand at the noise."""
    size = torch.hypot(alpha, s * sigma)
    return xt / size.view(-1, 1), alpha / size, s * sigma / size


def point_shift_of_log_snr(xt, alpha, sigma, s):
    """Add 2 ln s to lambda, which is half the log SNR."""
    lam = torch.log(alpha / sigma) + 2 * math.log(s)
    new_alpha, new_sigma = torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt()
    return xt * (new_sigma / sigma)[:, None], new_alpha, new_sigma


WRONG = {
    "14.1": [
        (told_no_half, "that is twice what is told"),
        (told_from_the_first_level, "the first level has told something already"),
        (told_substituted, "your trapezoids are in lambda"),
        (told_in_lambda, "that is an integral over lambda"),
        (told_snr_of_amplitudes, "exp(lambda) is alpha / sigma"),
        (told_left_sums, "each interval has its left end's error"),
        (told_each_piece, "that is what each interval adds"),
    ],
    "14.2": [
        (pour_equal_parts, "the errors do not add up to total"),
        (pour_in_proportion, "shares in proportion cost the same nats each"),
        (pour_sorted_order, "your errors are sorted, and add up to total"),
        (pour_one_above_too_few, "expected ≈"),
        (pour_rates, "expected ≈"),
        (pour_power_of_a_channel, "expected ≈"),
        (pour_once_more, "expected ≈"),
    ],
    "14.3": [
        (heard_not_straight_through, "nothing of loss arrives"),
        (heard_loss_of_z, "the slope of loss is taken at z"),
        (heard_mse_loss, "the commitment is summed over all"),
        (heard_no_two, "the commitment's part is half of what it is"),
        (heard_largest_dot_product, "the largest product is not the least distance"),
        (heard_beta_on_the_other, "commitment changes nothing in yours"),
        (heard_snapped, "z and book are the caller's"),
    ],
    "14.4": [
        (bits_mean, "that is what a latent costs in the mean"),
        (bits_nats, "those are nats"),
        (bits_deviation, "log_var is taken for the logarithm of the deviation"),
        (bits_minus_forgotten, "a divergence is not below 0"),
        (bits_of_the_batch, "that is the whole batch's price"),
        (bits_times_log_two, "a bit is ln 2 nats"),
        (bits_turned_round, "that is the divergence of N(0, I) from q"),
    ],
    "14.5": [
        (point_divided_by_s, "s alone takes the noise along"),
        (point_s_not_squared, "you add up s alpha^2 and sigma^2"),
        (
            point_factors_as_they_are,
            "the point is right, but the levels' squares do not add up to 1",
        ),
        (point_left_alone, "the levels are right, but the point is as large as it was"),
        (point_noise_divided_too, "that is the right SNR, and no point of the schedule"),
        (point_s_on_sigma, "s is the latents', not the noise's"),
        (point_shift_of_log_snr, "expected ≈"),
    ],
}
