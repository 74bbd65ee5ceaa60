"""Wrong answers to notebook 12, written as learners write them, not as our zoo does."""

import math
from collections import namedtuple

import numpy as np
import torch
import torch.nn.functional as F


def lost_what_is_kept(joint, point):
    """Stop at the second table, whose information is what the point has kept."""
    by_point = F.one_hot(point).T.to(joint.dtype) @ joint
    p_z, p_c = by_point.sum(1, keepdim=True), by_point.sum(0, keepdim=True)
    return torch.nansum(by_point * torch.log(by_point / (p_z * p_c)))


def lost_turned_round(joint, point):
    """Subtract as one does with a gain: after less before."""

    def mutual(p):
        r, c = p.sum(axis=1, keepdims=True), p.sum(axis=0, keepdims=True)
        there = p > 0
        return (p[there] * np.log(p[there] / (r * c)[there])).sum()

    p_xc = joint.numpy()
    p_zc = np.zeros((point.max() + 1, p_xc.shape[1]))
    np.add.at(p_zc, point.numpy(), p_xc)
    return mutual(p_zc) - mutual(p_xc)


def lost_in_bits(joint, point):
    """Measure entropies as information theorists do, with log2."""

    def entropy(p):
        p = p[p > 0]
        return -(p * np.log2(p)).sum()

    p, z = joint.numpy(), point.numpy()
    p_z = np.bincount(z, weights=p.sum(1))
    p_zc = np.stack([np.bincount(z, weights=column) for column in p.T])
    return entropy(p.sum(1)) - entropy(p) - entropy(p_z) + entropy(p_zc)


def lost_zero_times_log_zero(joint, point):
    """Write p log p as it stands, which is no number where p is 0."""

    def plogp(p):
        return (p * p.log()).sum()

    def mi(p):
        return plogp(p) - plogp(p.sum(dim=0)) - plogp(p.sum(dim=1))

    index = point[:, None].expand_as(joint)
    zeros = torch.zeros(int(point.max()) + 1, joint.shape[1], dtype=joint.dtype)
    return mi(joint) - mi(zeros.scatter_add(0, index, joint))


def lost_points_not_weighted(joint, point):
    """Average what is lost at each point as if all points were equally frequent."""
    losses = []
    for z in point.unique():
        p = joint[point == z]
        p = p / p.sum()
        outer = p.sum(1, keepdim=True) * p.sum(0, keepdim=True)
        losses.append(torch.nansum(p * (p / outer).log()))
    return torch.stack(losses).mean()


def lost_index_plus_equals(joint, point):
    """Add with t[point] += joint, which keeps only one of the pictures that share a point."""
    by_point = torch.zeros(int(point.max()) + 1, joint.size(1), dtype=joint.dtype)
    by_point[point] += joint

    def information(p):
        return (
            torch.special.entr(p.sum(0)).sum()
            + torch.special.entr(p.sum(1)).sum()
            - torch.special.entr(p).sum()
        )

    return information(joint) - information(by_point)


def lost_mean_of_rows(joint, point):
    """Average the rows of a point, as pandas' groupby("point").mean() does."""
    by_point = torch.stack([joint[point == z].mean(dim=0) for z in torch.unique(point)])
    total = 0.0
    for p, sign in ((joint, 1), (by_point, -1)):
        parts = [torch.xlogy(q, q).sum() for q in (p, p.sum(0), p.sum(1))]
        total = total + sign * (parts[0] - parts[1] - parts[2])
    return total


def lost_all_that_is_unsure(joint, point):
    """Take H(c | z), as if a picture left no doubt about its caption."""
    p_zc = joint.new_zeros(int(point.max()) + 1, joint.shape[1]).index_add_(0, point, joint)
    c_given_z = p_zc / p_zc.sum(dim=1, keepdim=True)
    return -torch.nansum(p_zc * c_given_z.log())


def lost_batchmean(joint, point):
    """Let F.kl_div reduce by "batchmean", as PyTorch advises, which divides by the rows."""

    def information(p):
        independent = p.sum(1, keepdim=True) * p.sum(0, keepdim=True)
        log_q = independent.clamp(min=1e-30).log()
        return F.kl_div(log_q, p, reduction="batchmean")

    by_point = joint.new_zeros(int(point.max()) + 1, joint.shape[1])
    by_point = by_point.index_add(0, point, joint)
    return information(joint) - information(by_point)


def lost_against_all_captions(joint, point):
    """Compare p(x, c | z) with p(x | z) p(c), where c has forgotten the point, too."""
    p_c, loss = joint.sum(0), 0.0
    for z in set(point.tolist()):
        here = joint[point == z]
        p_z = here.sum()
        for p_xc in here / p_z:
            ratio = p_xc / (p_xc.sum() * p_c)
            loss += p_z * torch.nansum(p_xc * ratio.log())
    return loss


def sphere_noise_as_predicted(zt, eps, alpha, sigma):
    """Move z alone, as dalle2-pytorch does, whose DDIM step then goes on with pred."""
    pred_noise = eps
    x_start = (zt - sigma * pred_noise) / alpha
    image_embed_scale = zt.shape[-1] ** 0.5
    x_start = F.normalize(x_start, dim=-1) * image_embed_scale
    return x_start, pred_noise


def sphere_clip_denoised(zt, eps, alpha, sigma):
    """Clip to the box, as Karlo's prior does by clip_denoised."""
    pred_xstart = ((zt - sigma * eps) / alpha).clamp(-1, 1)
    return pred_xstart, (zt - alpha * pred_xstart) / sigma


def sphere_of_radius_one(zt, eps, alpha, sigma):
    """Set the length to 1, as CLIP has it."""
    z = torch.div(zt - sigma * eps, alpha)
    z = z / z.norm(p=2, dim=-1, keepdim=True)
    return z, (zt - alpha * z) / sigma


def sphere_by_layer_norm(zt, eps, alpha, sigma):
    """Recall that layer norm gives the length sqrt(D), and forget that it takes the mean off."""
    z = F.layer_norm((zt - sigma * eps) / alpha, zt.shape[1:])
    noise = (zt - alpha * z) / sigma
    return z, noise


def sphere_of_the_batch(zt, eps, alpha, sigma):
    """Call norm() without an axis, which gives the length of the batch as one vector."""
    z = (zt - sigma * eps) / alpha
    z = z / z.norm() * np.sqrt(z.shape[1])
    return z, (zt - alpha * z) / sigma


def sphere_alpha_bar(zt, eps, alpha, sigma):
    """Take alpha for alphas_cumprod, as in diffusers' step()."""
    alpha_prod_t, beta_prod_t = alpha, 1 - alpha
    z0 = (zt - beta_prod_t**0.5 * eps) / alpha_prod_t**0.5
    z0 = math.sqrt(zt.shape[1]) * F.normalize(z0, dim=1)
    return z0, (zt - alpha_prod_t**0.5 * z0) / beta_prod_t**0.5


def sphere_to_d(zt, eps, alpha, sigma):
    """Get the noise as k-diffusion's to_d does, where z is not shrunk."""
    denoised = (zt - eps * sigma) / alpha
    denoised = denoised * (zt.shape[1] / denoised.square().sum(1, keepdim=True)).sqrt()
    return denoised, (zt - denoised) / sigma


def sphere_only_too_long(zt, eps, alpha, sigma):
    """Clip the norm, as of gradients, which leaves what is too short."""
    max_norm = zt.shape[1] ** 0.5
    z = torch.renorm((zt - sigma * eps) / alpha, p=2, dim=0, maxnorm=max_norm)
    return z, (zt - alpha * z) / sigma


def sphere_model_prediction(zt, eps, alpha, sigma):
    """Return lucidrains' ModelPrediction, which has the noise first."""
    ModelPrediction = namedtuple("ModelPrediction", ["pred_noise", "pred_x_start"])
    x_start = (zt - sigma * eps) / alpha
    x_start = x_start.mul(zt.shape[1] ** 0.5).div(x_start.norm(dim=1, keepdim=True))
    return ModelPrediction((zt - alpha * x_start) / sigma, x_start)


def sphere_in_place(zt, eps, alpha, sigma):
    """Make z of zt with -= and /=, and need zt again for the noise."""
    z = zt
    z -= sigma * eps
    z /= alpha
    z = F.normalize(z) * z.size(1) ** 0.5
    return z, (zt - alpha * z) / sigma


def twice_as_brooks_prints_it(neither, point, both, w_z, w_c):
    """Copy InstructPix2Pix's formula, whose scales are 1 + w."""
    out_uncond, out_img_cond, out_cond = neither, point, both
    text_cfg_scale, image_cfg_scale = w_c, w_z
    return (
        out_uncond
        + text_cfg_scale * (out_cond - out_img_cond)
        + image_cfg_scale * (out_img_cond - out_uncond)
    )


def twice_both_from_neither(neither, point, both, w_z, w_c):
    """Let both steps start at neither, as of conditions that are composed."""
    return both + w_z * (point - neither) + w_c * (both - neither)


def twice_order_of_diffusers(neither, point, both, w_z, w_c):
    """Unpack in the order of diffusers' pipeline: text, image, uncond."""
    noise_pred = torch.cat([neither, point, both])
    noise_pred_text, noise_pred_image, noise_pred_uncond = noise_pred.chunk(3)
    return (
        noise_pred_uncond
        + (1 + w_c) * (noise_pred_text - noise_pred_image)
        + (1 + w_z) * (noise_pred_image - noise_pred_uncond)
    )


def twice_weights_crossed(neither, point, both, w_z, w_c):
    """Pair the weights with the predictions' names, where point is told in both."""
    steps = torch.stack([both - point, point - neither])
    scales = torch.tensor([1 + w_z, 1 + w_c], dtype=steps.dtype)
    return neither + torch.einsum("s,s...->...", scales, steps)


def twice_one_guidance(neither, point, both, w_z, w_c):
    """Guide once, from neither to both, by both weights."""
    return (1 + w_z + w_c) * both - (w_z + w_c) * neither


def twice_one_after_the_other(neither, point, both, w_z, w_c):
    """Guide by the point, and guide the result, so that the second step starts beyond it."""
    guided = torch.lerp(neither, point, 1 + w_z)
    return torch.lerp(guided, both, 1 + w_c)


def twice_results_added(neither, point, both, w_z, w_c):
    """Add the results of two guidances, each with a start of its own."""

    def cfg(cond, uncond, w):
        return (1 + w) * cond - w * uncond

    return cfg(point, neither, w_z) + cfg(both, point, w_c)


def twice_from_both(neither, point, both, w_z, w_c):
    """Start at both, and take the steps 1 + w times from there."""
    eps = both.clone()
    eps += (1 + w_z) * (point - neither)
    eps += (1 + w_c) * (both - point)
    return eps


def twice_steps_in_place(neither, point, both, w_z, w_c):
    """Make steps of the predictions in an order that spoils the second."""
    point -= neither
    both -= point
    return neither + (1 + w_z) * point + (1 + w_c) * both


def twice_rescaled(neither, point, both, w_z, w_c):
    """Set the deviation back, as diffusers' rescale_noise_cfg does by guidance_rescale."""
    noise_cfg = both + w_z * (point - neither) + w_c * (both - point)
    axes = tuple(range(1, both.ndim))
    std_text = both.std(dim=axes, keepdim=True)
    std_cfg = noise_cfg.std(dim=axes, keepdim=True)
    return noise_cfg * (std_text / std_cfg)


def out_one_draw(z, tokens, empty, p_z, p_c, u, v):
    """Cut one draw into parts, as train_instruct_pix2pix.py does with random_p."""
    random_p = u
    prompt_mask = (random_p < p_c).reshape(-1, 1)
    image_mask = 1 - ((random_p >= p_c / 2) & (random_p < p_c / 2 + p_z)).to(z.dtype)
    return image_mask.reshape(-1, 1) * z, torch.where(prompt_mask, empty, tokens)


def out_prob_mask_like(z, tokens, empty, p_z, p_c, u, v):
    """Draw what is kept, u < 1 - p, as dalle2-pytorch's prob_mask_like does."""
    image_keep_mask = (u < 1 - p_z).unsqueeze(1)
    text_keep_mask = (v < 1 - p_c).unsqueeze(1)
    z = torch.where(image_keep_mask, z, torch.zeros_like(z))
    return z, torch.where(text_keep_mask, tokens, empty)


def out_where_turned(z, tokens, empty, p_z, p_c, u, v):
    """Put what is left out last, as in "keep, else"."""
    z = np.where((u < p_z).numpy()[:, None], z.numpy(), 0.0)
    return z, np.where((v < p_c).numpy()[:, None], tokens.numpy(), empty.numpy())


def out_dropout(z, tokens, empty, p_z, p_c, u, v):
    """Call F.dropout, which draws for itself and for each entry, and scales up the rest."""
    dropped = torch.bernoulli(torch.full((len(tokens), 1), float(p_c))).bool()
    return F.dropout(z, p=float(p_z)), torch.where(dropped, empty, tokens)


def out_rows_removed(z, tokens, empty, p_z, p_c, u, v):
    """Leave the rows out of the batch."""
    return z[u >= p_z], tokens[v >= p_c]


def out_in_place(z, tokens, empty, p_z, p_c, u, v):
    """Assign to the rows, which are the caller's."""
    z[u < p_z] = 0
    tokens[v < p_c] = empty
    return z, tokens


def out_captions_of_padding(z, tokens, empty, p_z, p_c, u, v):
    """Multiply by a mask both times, which makes a caption of nothing but filling."""
    keep_z = u.ge(p_z).to(z.dtype).view(-1, 1)
    keep_c = v.ge(p_c).to(tokens.dtype).view(-1, 1)
    return z * keep_z, tokens * keep_c


def out_one_coin_a_batch(z, tokens, empty, p_z, p_c, u, v):
    """Toss once for the whole batch, as in "if random.random() < p"."""
    if u[0] < p_z:
        z = torch.zeros_like(z)
    if v[0] < p_c:
        tokens = empty.repeat(len(tokens), 1)
    return z, tokens


def out_mask_of_one_axis(z, tokens, empty, p_z, p_c, u, v):
    """Leave the mask (B,), which does not broadcast to rows."""
    z = torch.where(u < p_z, torch.zeros_like(z), z)
    return z, torch.where(v < p_c, empty, tokens)


def out_together(z, tokens, empty, p_z, p_c, u, v):
    """Leave out all or nothing, as if "unconditional" were the only other case."""
    drop = (u < p_z) & (v < p_c)
    points, captions = z.clone(), tokens.clone()
    for row in drop.nonzero().flatten().tolist():
        points[row], captions[row] = 0, empty
    return points, captions


def diff_slerp_of_the_forum(image, before, after, share):
    """Copy slerp from PyTorch's forum, which normalises for the angle alone."""
    val, low, high = share, image, after - before
    low_norm = low / torch.norm(low, dim=1, keepdim=True)
    high_norm = high / torch.norm(high, dim=1, keepdim=True)
    omega = torch.acos((low_norm * high_norm).sum(1))
    so = torch.sin(omega)
    res = (torch.sin((1.0 - val) * omega) / so).unsqueeze(1) * low
    return res + (torch.sin(val * omega) / so).unsqueeze(1) * high


def diff_one_angle_for_all(image, before, after, share):
    """Copy slerp for latents, where the batch is one long vector."""
    v0 = image.numpy()
    v1 = F.normalize(after - before, dim=-1).numpy()
    dot = np.sum(v0 * v1 / (np.linalg.norm(v0) * np.linalg.norm(v1)))
    theta_0 = np.arccos(dot)
    theta_t = theta_0 * float(share)
    s0 = np.sin(theta_0 - theta_t) / np.sin(theta_0)
    s1 = np.sin(theta_t) / np.sin(theta_0)
    return s0 * v0 + s1 * v1


def diff_chord(image, before, after, share):
    """Go along the chord, and set the length to 1, which is not share of the angle."""
    direction = F.normalize(after - before, dim=-1)
    return F.normalize(torch.lerp(image, direction, share), dim=-1)


def diff_king_minus_man(image, before, after, share):
    """Add share times the difference, as with word vectors."""
    z = image + share * (after - before)
    return z / z.norm(dim=-1, keepdim=True)


def diff_to_the_new_caption(image, before, after, share):
    """Turn towards the new caption itself, as between two pictures."""
    theta = torch.acos(F.cosine_similarity(image, after, dim=1)).unsqueeze(1)
    a, b = torch.sin((1 - share) * theta), torch.sin(share * theta)
    return (a * image + b * after) / torch.sin(theta)


def diff_the_shorter_way(image, before, after, share):
    """Turn the end round where the cosine is negative, as slerp for quaternions does."""
    q1 = F.normalize(after - before, dim=1)
    dot = torch.einsum("bd,bd->b", image, q1)
    q1 = torch.where((dot < 0)[:, None], -q1, q1)
    theta = dot.abs().acos()[:, None]
    return (((1 - share) * theta).sin() * image + (share * theta).sin() * q1) / theta.sin()


def diff_quarter_circle(image, before, after, share):
    """Make the direction orthogonal, and turn by share of 90 degrees."""
    towards = F.normalize(after - before, dim=1)
    across = F.normalize(towards - (towards * image).sum(1, keepdim=True) * image, dim=1)
    angle = share * math.pi / 2
    return math.cos(angle) * image + math.sin(angle) * across


def diff_before_less_after(image, before, after, share):
    """Take the difference in the order in which the arguments come."""
    d = F.normalize(before - after, dim=-1)
    omega = torch.arccos((image * d).sum(-1, keepdim=True))
    return (image * torch.sin((1 - share) * omega) + d * torch.sin(share * omega)) / omega.sin()


def diff_angle_of_captions(image, before, after, share):
    """Take the angle between the captions for the whole."""
    d = (after - before) / torch.linalg.vector_norm(after - before, dim=1, keepdim=True)
    whole = torch.acos(torch.linalg.vecdot(before, after, dim=1)).view(-1, 1)
    return (torch.sin(whole - share * whole) * image + torch.sin(share * whole) * d) / whole.sin()


def diff_sine_forgotten(image, before, after, share):
    """Take both sines for the weights, and leave them as they are."""
    rows = []
    for x, a, b in zip(image, before, after, strict=True):
        d = (b - a) / (b - a).norm()
        angle = math.acos(x @ d)
        rows.append(math.sin((1 - share) * angle) * x + math.sin(share * angle) * d)
    return torch.stack(rows)


WRONG = {
    "12.1": [
        (lost_what_is_kept, "that is what points still tell of captions, and so is not lost"),
        (lost_turned_round, "less than nothing is lost"),
        (lost_in_bits, "log2 counts bits"),
        (lost_zero_times_log_zero, "a probability may be 0, and adds nothing"),
        (lost_points_not_weighted, "points are not equally likely"),
        (lost_index_plus_equals, "pictures share points"),
        (lost_mean_of_rows, "expected ≈"),
        (lost_all_that_is_unsure, "that is how open the caption is, given the point"),
        (lost_batchmean, "expected ≈"),
        (lost_against_all_captions, "that is all that pictures tell of captions"),
    ],
    "12.2": [
        (sphere_noise_as_predicted, "z has moved, and eps has not"),
        (sphere_clip_denoised, "to clip is for pictures, which have a box"),
        (sphere_of_radius_one, "that has length 1"),
        (sphere_by_layer_norm, "expected ≈"),
        (sphere_of_the_batch, "each row has a length of its own"),
        (sphere_alpha_bar, "expected ≈"),
        (sphere_to_d, "z_t holds alpha times z"),
        (sphere_only_too_long, "what is too short is moved as well"),
        (sphere_model_prediction, "z comes first, and then its noise"),
        (sphere_in_place, "zt and eps are the caller's"),
    ],
    "12.3": [
        (twice_as_brooks_prints_it, "that has weights that start from 1"),
        (twice_both_from_neither, "w_c takes the point's step again"),
        (twice_order_of_diffusers, "expected ≈"),
        (twice_weights_crossed, "the weights are exchanged"),
        (twice_one_guidance, "expected ≈"),
        (twice_one_after_the_other, "both steps are between predictions"),
        (twice_results_added, "expected ≈"),
        (twice_from_both, "that starts from both"),
        (twice_steps_in_place, "neither, point and both are the caller's"),
        (twice_rescaled, "expected ≈"),
    ],
    "12.4": [
        (out_one_draw, "expected ≈"),
        (out_prob_mask_like, "expected ≈"),
        (out_where_turned, "p_z and p_c are the chances to be left out"),
        (out_dropout, "expected ≈"),
        (out_rows_removed, "rows are missing"),
        (out_in_place, "z and tokens are the caller's, who keeps them for later"),
        (out_captions_of_padding, "a row of zeros is no caption"),
        (out_one_coin_a_batch, "each row is drawn for by itself"),
        (out_mask_of_one_axis, "u < p_z is (B,), and lies along the last axis of z"),
        (out_together, "expected ≈"),
    ],
    "12.5": [
        (diff_slerp_of_the_forum, "the angle is right, but the end is too long or short"),
        (diff_one_angle_for_all, "expected ≈"),
        (diff_chord, "that divides the chord, not the angle"),
        (diff_king_minus_man, "to add and normalise is not to turn"),
        (diff_to_the_new_caption, "that turns towards after itself"),
        (diff_the_shorter_way, "expected ≈"),
        (diff_quarter_circle, "expected ≈"),
        (diff_before_less_after, "that turns towards what was said before"),
        (diff_angle_of_captions, "that is the angle between the captions"),
        (diff_sine_forgotten, "expected ≈"),
    ],
}
