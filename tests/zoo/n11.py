"""Wrong answers to notebook 11, written as learners write them, not as our zoo does."""

import numpy as np
import torch
import torch.nn.functional as F


def attention_view_into_heads(z, h, there, heads):
    """View (B, P, C) as (B, heads, P, d) at once, which cuts positions and not channels."""
    B, P, C = z.shape
    d = C // heads
    q = z.view(B, heads, P, d)
    k = v = h.view(B, heads, -1, d)
    sim = torch.matmul(q, k.transpose(-2, -1)) * d**-0.5
    sim = sim.masked_fill(~there[:, None, None, :], torch.finfo(sim.dtype).min)
    return torch.matmul(sim.softmax(dim=-1), v).view(B, P, C)


def attention_scaled_by_width(z, h, there, heads):
    """Divide by the root of the whole width, as if there were one head."""
    B, P, C = z.shape
    scale = 1 / np.sqrt(C)
    q, k = (x.reshape(B, -1, heads, C // heads).permute(0, 2, 1, 3) for x in (z, h))
    bias = torch.zeros(there.shape, dtype=z.dtype).masked_fill(there.logical_not(), -1e9)
    attn = torch.softmax(torch.einsum("bhpd,bhld->bhpl", q, k) * scale + bias[:, None, None], -1)
    return torch.einsum("bhpl,bhld->bhpd", attn, k).permute(0, 2, 1, 3).reshape(B, P, C)


def attention_padding_convention(z, h, there, heads):
    """Pass the mask on as nn.MultiheadAttention has it, where True is to be ignored."""
    q, kv = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (z, h))
    key_padding_mask = there[:, None, None, :]
    out = F.scaled_dot_product_attention(q, kv, kv, attn_mask=~key_padding_mask)
    return out.transpose(1, 2).flatten(2)


def attention_float_mask(z, h, there, heads):
    """Make the mask a float, which scaled_dot_product_attention adds to the scores."""
    q, kv = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (z, h))
    mask = there.to(q.dtype)[:, None, None, :].expand(-1, heads, q.shape[2], -1)
    out = F.scaled_dot_product_attention(q, kv, kv, attn_mask=mask)
    return out.transpose(1, 2).reshape(z.shape)


def attention_heads_stay_in_front(z, h, there, heads):
    """Reshape the heads' results without moving the axis of heads back."""
    B, P, C = z.shape
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (z, h))
    w = q @ k.mT * (C // heads) ** -0.5
    w = w.masked_fill(there[:, None, None] == 0, float("-inf")).softmax(dim=-1)
    return (w @ k).reshape(B, P, C)


def attention_batch_of_heads(z, h, there, heads):
    """Fold heads into the batch as diffusers does, and repeat the mask in the other order."""

    def head_to_batch_dim(tensor):
        b, n, c = tensor.shape
        tensor = tensor.reshape(b, n, heads, c // heads).permute(0, 2, 1, 3)
        return tensor.reshape(b * heads, n, c // heads)

    query, key = head_to_batch_dim(z), head_to_batch_dim(h)
    mask = there.repeat(heads, 1)[:, None]
    scores = torch.bmm(query, key.transpose(1, 2)) / query.shape[-1] ** 0.5
    out = torch.bmm(scores.masked_fill(~mask, -torch.inf).softmax(dim=-1), key)
    return out.reshape(len(z), heads, -1, out.shape[-1]).permute(0, 2, 1, 3).flatten(2)


def attention_words_set_to_zero(z, h, there, heads):
    """Blank the filling's features, whose scores of 0 then have a share like any other."""
    B, P, C = z.shape
    words = (h * there.unsqueeze(-1)).numpy().reshape(B, -1, heads, C // heads)
    scores = np.einsum("bphd,blhd->bhpl", z.numpy().reshape(B, P, heads, -1), words)
    share = np.exp(scores / np.sqrt(C // heads))
    share /= share.sum(axis=-1, keepdims=True)
    return np.einsum("bhpl,blhd->bphd", share, words).reshape(B, P, C)


def attention_over_positions(z, h, there, heads):
    """Let the softmax run over positions, where each word shares itself out."""
    parts = []
    for q, k in zip(z.chunk(heads, dim=-1), h.chunk(heads, dim=-1), strict=True):
        score = torch.bmm(q, k.transpose(1, 2)) / q.size(-1) ** 0.5
        attn = F.softmax(score, dim=1) * there[:, None, :]
        parts.append(torch.bmm(attn, k))
    return torch.cat(parts, dim=-1)


def attention_query_scaled_in_place(z, h, there, heads):
    """Scale the queries with *=, as timm's q = q * scale is often shortened."""
    d = z.shape[-1] // heads
    q = z.view(len(z), -1, heads, d)
    q *= d**-0.5
    k = h.view(len(h), -1, heads, d)
    s = torch.einsum("bphd,blhd->bhpl", q, k).masked_fill(~there[:, None, None], -torch.inf)
    return torch.einsum("bhpl,blhd->bphd", s.softmax(-1), k).flatten(2)


def end_last_of_all(h, tokens):
    """Take the last place, as of captions of equal length."""
    return h[:, -1, :]


def end_highest_token(h, tokens):
    """Find the end as CLIP does, whose end token has the highest number."""
    return h[torch.arange(h.shape[0]), tokens.argmax(dim=-1)]


def end_length_as_place(h, tokens):
    """Take a length for a place, which is one too far."""
    lengths = tokens.count_nonzero(dim=1)
    index = lengths.clamp(max=h.shape[1] - 1).view(-1, 1, 1).expand(-1, 1, h.shape[2])
    return h.gather(1, index).squeeze(1)


def end_mean_pooled(h, tokens):
    """Average the words as sentence-transformers does."""
    attention_mask = tokens.ne(0).unsqueeze(-1).to(h.dtype)
    return (h * attention_mask).sum(1) / attention_mask.sum(1).clamp(min=1e-9)


def end_rows_by_rows(h, tokens):
    """Slice where rows should be counted, which takes every row's end of every row."""
    last = (tokens > 0).sum(dim=1) - 1
    return h[:, last]


def end_of_the_longest(h, tokens):
    """Cut the batch to its longest caption, and take what is then the last."""
    lengths = [int(np.count_nonzero(row)) for row in tokens.numpy()]
    trimmed = h[:, : max(lengths)]
    return trimmed[:, -1]


def end_bert_cls(h, tokens):
    """Take the first token, as BERT's pooler does."""
    return h.numpy()[:, 0]


def end_max_pooled_in_place(h, tokens):
    """Fill with minus infinity, in the caller's tensor, to pool by the maximum."""
    h[tokens == 0] = float("-inf")
    return h.max(dim=1).values


def end_before_the_end(h, tokens):
    """Step back over the end token, as if the last word were asked for."""
    out = []
    for features, caption in zip(h, tokens.tolist(), strict=True):
        n = len([token for token in caption if token])
        out.append(features[n - 2])
    return torch.stack(out)


def mean_of_mean_cosine(image, text, mu, variance, scale):
    """Reduce with .mean(), as one reduces a loss."""
    with torch.enable_grad():
        x = mu.detach().clone().requires_grad_(True)
        cos = F.cosine_similarity(image(x), text, dim=-1)
        grad = torch.autograd.grad(cos.mean(), x)[0]
    return mu + variance * grad * scale


def mean_of_raw_products(image, text, mu, variance, scale):
    """Copy GLIDE's cond_fn, whose encoders normalise for themselves."""
    with torch.enable_grad():
        x_var = mu.detach().requires_grad_(True)
        z_i = image(x_var)
        loss = (z_i * text).sum(dim=1).sum()
        grad = torch.autograd.grad(loss, x_var)[0].detach()
    return mu + variance * (grad * scale)


def mean_down_the_loss(image, text, mu, variance, scale):
    """Write the loss 1 - cos, and add its gradient."""
    with torch.enable_grad():
        x = mu.detach().requires_grad_()
        loss = (1 - torch.cosine_similarity(image(x), text)).sum()
        loss.backward()
    return mu + scale * variance * x.grad


def mean_of_all_pairs(image, text, mu, variance, scale):
    """Multiply all pictures with all captions, and sum the whole matrix."""
    with torch.enable_grad():
        x = mu.detach().requires_grad_()
        image_features = F.normalize(image(x), dim=-1)
        text_features = F.normalize(text, dim=-1)
        similarity = image_features @ text_features.T
        (push,) = torch.autograd.grad(similarity.sum(), x)
    return torch.addcmul(mu, variance.expand_as(mu), push, value=float(scale))


def mean_by_deviation(image, text, mu, variance, scale):
    """Multiply by the standard deviation, as noise is."""
    with torch.enable_grad():
        x_in = mu.detach().requires_grad_(True)
        selected = torch.einsum("bd,bd->b", F.normalize(image(x_in)), F.normalize(text))
        gradient = torch.autograd.grad(selected.sum(), x_in)[0]
    sigma = variance.sqrt()
    return mu + scale * sigma * gradient


def mean_of_score(image, text, mu, variance, scale):
    """Shift the mean as the score is shifted, without the variance."""
    with torch.enable_grad():
        x = mu.clone().detach().requires_grad_()
        push = torch.autograd.grad(torch.cosine_similarity(image(x), text, dim=1).sum(), x)
    return mu + scale * push[0]


def mean_backward_into_mu(image, text, mu, variance, scale):
    """Mark mu itself, as image optimisation does, and read mu.grad."""
    with torch.enable_grad():
        mu.requires_grad = True
        similarity = torch.cosine_similarity(image(mu), text, dim=-1)
        similarity.sum().backward()
    return (mu + scale * variance * mu.grad).detach()


def mean_spherical(image, text, mu, variance, scale):
    """Go down the spherical distance of Disco Diffusion and CLIP-guided notebooks."""
    with torch.enable_grad():
        x = mu.detach().requires_grad_()
        u, v = F.normalize(image(x), dim=-1), F.normalize(text, dim=-1)
        dists = (u - v).norm(dim=-1).div(2).arcsin().pow(2).mul(2)
        grad = -torch.autograd.grad(dists.sum(), x)[0]
    return mu + scale * variance * grad


def mean_marked(image, text, mu, variance, scale):
    """Mark the caller's mu, and add to it in place."""
    with torch.enable_grad():
        mu.requires_grad_()
        cos = torch.cosine_similarity(image(mu), text, dim=1).sum()
        grad = torch.autograd.grad(cos, mu)[0]
    mu.requires_grad_(False)
    mu += scale * variance * grad
    return mu


def back_mask_of_diffusers(x, x0, known, alpha, sigma, noise):
    """Blend as diffusers does, whose mask is 1 where to paint."""
    init_latents_proper = alpha * x0 + sigma * noise
    mask = known
    return (1 - mask) * init_latents_proper + mask * x


def back_alpha_bar(x, x0, known, alpha, sigma, noise):
    """Take alpha for alpha bar, as RePaint's code has it."""
    gt_weight = torch.sqrt(alpha)
    gt_part = gt_weight * x0
    noise_weight = torch.sqrt(1 - alpha)
    weighed_gt = gt_part + noise_weight * noise
    return known * weighed_gt + (1 - known) * x


def back_in_place(x, x0, known, alpha, sigma, noise):
    """Assign into x."""
    noisy = alpha * x0 + sigma * noise
    mask = known.bool().expand_as(x)
    x[mask] = noisy[mask]
    return x


def back_noise_outside_brackets(x, x0, known, alpha, sigma, noise):
    """Forget the brackets, so that the noise falls on the unknown part, too."""
    return known * alpha * x0 + sigma * noise + (1 - known) * x


def back_blend_then_noise(x, x0, known, alpha, sigma, noise):
    """Put the clean part in first, and add noise to the whole."""
    blended = torch.where(known > 0.5, x0, x)
    return torch.add(alpha * blended, sigma * noise)


def back_own_noise(x, x0, known, alpha, sigma, noise):
    """Draw the noise oneself, as scheduler.add_noise(..., randn_like) habitually does."""
    eps = torch.randn_like(x0)
    noised = x0 * alpha + eps * sigma
    return noised * known + x * (1.0 - known)


def back_known_part_alone(x, x0, known, alpha, sigma, noise):
    """Return the known part, with nothing where the rest was."""
    out = np.zeros_like(x.numpy())
    m = np.broadcast_to(known.numpy().astype(bool), out.shape)
    out[m] = (alpha * x0 + sigma * noise).numpy()[m]
    return out


def back_mask_without_channels(x, x0, known, alpha, sigma, noise):
    """Index with a mask whose channel axis is 1."""
    out = x.clone()
    m = known.bool()
    out[m] = (alpha * x0 + sigma * noise)[m]
    return out


def back_variance_exploding(x, x0, known, alpha, sigma, noise):
    """Add noise as k-diffusion does, where a picture is not shrunk."""
    return torch.lerp(x, x0 + sigma * noise, known.to(x.dtype))


def weight_mean_of_ratios(v, told, silent):
    """Fit each picture by itself, and average what comes out."""
    gap = (told - silent).flatten(1)
    err = (v - told).flatten(1)
    return ((err * gap).sum(dim=1) / (gap**2).sum(dim=1)).mean()


def weight_scale_of_paper(v, told, silent):
    """Start at silent, which gives the paper's s."""
    direction = told - silent
    return torch.sum((v - silent) * direction) / torch.sum(direction**2)


def weight_towards_silent(v, told, silent):
    """Take the gap from told to silent."""
    a, b = (silent - told).ravel(), (v - told).ravel()
    return torch.dot(a, b) / torch.dot(a, a)


def weight_lstsq_two_weights(v, told, silent):
    """Let lstsq choose both weights, which need not sum to 1, and take 1 off the first."""
    A = np.stack([told.numpy().ravel(), silent.numpy().ravel()], axis=1)
    coef, *_ = np.linalg.lstsq(A, v.numpy().ravel(), rcond=None)
    return coef[0] - 1


def weight_gap_in_place(v, told, silent):
    """Subtract with -=, in the caller's tensors."""
    v -= told
    told -= silent
    return (v * told).sum() / (told * told).sum()


def weight_norm_not_squared(v, told, silent):
    """Divide by the length once, as a projection on a unit vector would."""
    gap = told - silent
    return ((v - told) * gap).sum() / torch.linalg.vector_norm(gap)


def weight_for_each_picture(v, told, silent):
    """Sum over all axes but the batch's, as mean_flat does."""
    axes = tuple(range(1, v.ndim))
    gap = told - silent
    return ((v - told) * gap).sum(dim=axes) / gap.pow(2).sum(dim=axes)


def weight_grid_from_zero(v, told, silent):
    """Try the weights that one guides with, 0 to 10."""
    ws = torch.linspace(0, 10, 1001)
    mse = torch.stack([F.mse_loss((1 + w) * told - w * silent, v) for w in ws])
    return ws[mse.argmin()]


def weight_each_pixel(v, told, silent):
    """Solve for w in each entry, and average."""
    w = (v - told) / (told - silent)
    return w.nanmean()


WRONG = {
    "11.1": [
        (attention_view_into_heads, "expected ≈"),
        (attention_scaled_by_width, "not all C channels"),
        (attention_padding_convention, "you keep what fills"),
        (attention_float_mask, "expected ≈"),
        (attention_heads_stay_in_front, "move axes before you merge"),
        (attention_batch_of_heads, "expected ≈"),
        (attention_words_set_to_zero, "expected ≈"),
        (attention_over_positions, "yours do over positions"),
        (attention_query_scaled_in_place, "z and h are the caller's"),
    ],
    "11.2": [
        (end_last_of_all, "the last place only fills"),
        (end_highest_token, "the largest is another word's"),
        (end_length_as_place, "yours is one too far"),
        (end_mean_pooled, "that is the mean over the caption"),
        (end_rows_by_rows, "pair rows and places"),
        (end_of_the_longest, "yours all end where the longest does"),
        (end_bert_cls, "the first token has seen only itself"),
        (end_max_pooled_in_place, "blank out in a copy"),
        (end_before_the_end, "yours is the one before it"),
    ],
    "11.3": [
        (mean_of_mean_cosine, "a mean makes it smaller"),
        (mean_of_raw_products, "neither is normalised"),
        (mean_down_the_loss, "a cosine is climbed, a loss descended"),
        (mean_of_all_pairs, "that is the diagonal"),
        (mean_by_deviation, "its root is for the noise"),
        (mean_of_score, "the variance is lost"),
        (mean_backward_into_mu, "it drags its graph through every later step"),
        (mean_spherical, "expected ≈"),
        (mean_marked, "change them there, too"),
    ],
    "11.4": [
        (back_mask_of_diffusers, "known is 1 where x_0 is known"),
        (back_alpha_bar, "alpha is no square"),
        (back_in_place, "x and x0 are the caller's"),
        (back_noise_outside_brackets, "with the known part alone"),
        (back_blend_then_noise, "expected ≈"),
        (back_own_noise, "take the noise from the arguments"),
        (back_known_part_alone, "you leave nothing there"),
        (back_mask_without_channels, "The shape of the mask"),
        (back_variance_exploding, "x_0 keeps its full size"),
    ],
    "11.5": [
        (weight_mean_of_ratios, "before you divide"),
        (weight_scale_of_paper, "that starts from the empty caption"),
        (weight_towards_silent, "a sign is turned"),
        (weight_lstsq_two_weights, "expected ≈"),
        (weight_gap_in_place, "subtract in a copy"),
        (weight_norm_not_squared, "a length squared"),
        (weight_for_each_picture, "one w for all is asked for"),
        (weight_grid_from_zero, "expected ≈"),
        (weight_each_pixel, "sum, then divide"),
    ],
}
