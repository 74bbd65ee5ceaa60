"""Wrong answers to notebook 10, written as learners write them, not as our zoo does."""

import math

import numpy as np
import torch
import torch.nn.functional as F


def loss_same_side_twice(image, text, scale):
    """Transpose twice: the second cross-entropy is the first one again."""
    image = F.normalize(image, dim=-1)
    text = F.normalize(text, dim=-1)
    logits_per_image = scale * image @ text.t()
    logits_per_text = (scale * text @ image.t()).t()
    labels = torch.arange(len(image))
    return (
        F.cross_entropy(logits_per_image, labels) + F.cross_entropy(logits_per_text, labels)
    ) / 2


def loss_captions_only(image, text, scale):
    """Let softmax run over the wrong axis, so that only captions choose."""
    I_e = image / torch.linalg.vector_norm(image, dim=1, keepdim=True)
    T_e = text / torch.linalg.vector_norm(text, dim=1, keepdim=True)
    p = torch.softmax(scale * I_e @ T_e.T, dim=0)
    return -torch.log(torch.diag(p)).mean()


def loss_of_the_readme(image, text, scale):
    """Normalise as the README of openai/CLIP does, in place."""
    image /= image.norm(dim=-1, keepdim=True)
    text /= text.norm(dim=-1, keepdim=True)
    logits, labels = scale * image @ text.T, torch.arange(image.shape[0])
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def loss_exp_of_scale(image, text, scale):
    """Copy np.exp(t) from the paper's figure 3, where t is a logarithm."""
    I_e, T_e = (
        v.numpy() / np.linalg.norm(v.numpy(), axis=1, keepdims=True) for v in (image, text)
    )
    logits = torch.from_numpy(np.dot(I_e, T_e.T) * np.exp(scale))
    labels = torch.arange(logits.shape[0])
    loss_i = F.cross_entropy(logits, labels)
    loss_t = F.cross_entropy(logits.mT, labels)
    return (loss_i + loss_t) / 2


def loss_divided_as_simclr(image, text, scale):
    """Divide, as SimCLR does by its temperature."""
    sim = F.cosine_similarity(image.unsqueeze(1), text.unsqueeze(0), dim=-1) / scale
    n = torch.arange(sim.size(0))
    return 0.5 * (F.cross_entropy(sim, n) + F.cross_entropy(sim.T, n))


def loss_raw_dot_products(image, text, scale):
    """Take the projections for unit vectors."""
    logits = torch.einsum("id,jd->ij", image, text).mul(scale)
    diag = logits.diag()
    return ((logits.logsumexp(1) - diag) + (logits.logsumexp(0) - diag)).mean() / 2


def loss_negatives_only(image, text, scale):
    """Put only the negatives below the line, as the word "negative" suggests."""
    u, v = F.normalize(image), F.normalize(text)
    B, total = len(u), 0.0
    for i in range(B):
        pos = scale * (u[i] @ v[i])
        neg_t = sum(torch.exp(scale * u[i] @ v[j]) for j in range(B) if j != i)
        neg_i = sum(torch.exp(scale * u[j] @ v[i]) for j in range(B) if j != i)
        total = total - 0.5 * (2 * pos - neg_t.log() - neg_i.log())
    return total / B


def loss_both_added(image, text, scale):
    """Add the two cross-entropies and stop there."""
    logits = scale * F.normalize(image, dim=1).matmul(F.normalize(text, dim=1).T)
    y = torch.arange(logits.shape[0])
    return F.cross_entropy(logits, y) + F.cross_entropy(logits.T, y)


def zero_shot_mean_of_cosines(image, prompts):
    """Average the cosines, which is the mean vector left as short as it is."""
    C = prompts.shape[0]
    return torch.stack([(image @ prompts[c].T).mean(dim=1) for c in range(C)], dim=1)


def zero_shot_notebook_of_openai(image, prompts):
    """Go on to the probabilities, as the README of openai/CLIP does."""
    weights = []
    for class_embeddings in prompts:
        class_embedding = class_embeddings.mean(dim=0)
        weights.append(class_embedding / class_embedding.norm())
    zeroshot_weights = torch.stack(weights, dim=1)
    return (100.0 * image @ zeroshot_weights).softmax(dim=-1)


def zero_shot_one_prompt(image, prompts):
    """Use "a photo of a {}" alone."""
    a_photo_of_a = prompts[:, 0, :]
    return F.cosine_similarity(image[:, None], a_photo_of_a[None], dim=-1)


def zero_shot_closest_wording(image, prompts):
    """Let each class be judged by the wording that suits the picture best."""
    C, T, D = prompts.shape
    sim = image @ prompts.reshape(C * T, D).T
    return sim.view(-1, C, T).max(dim=-1).values


def zero_shot_wrong_axis(image, prompts):
    """Mean over axis 0, as in the loop over classes, where axis 0 holds the wordings."""
    mean = prompts.numpy().mean(axis=0)
    mean = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    return image.numpy() @ mean.T


def zero_shot_predictions(image, prompts):
    """Return what is asked in the end: the class."""
    centroids = F.normalize(prompts.sum(dim=1), dim=-1)
    return (image @ centroids.T).max(dim=1).indices


def zero_shot_class_by_picture(image, prompts):
    """Multiply the other way round."""
    text = F.normalize(prompts.mean(dim=1), dim=-1)
    return torch.einsum("cd,bd->cb", text, image)


def bound_minus_loss(logits):
    """Give the mean log-probability of the pair, as if the prior weighed nothing."""
    lp = 0.5 * (F.log_softmax(logits, dim=0) + F.log_softmax(logits, dim=1))
    return torch.trace(lp) / lp.shape[0]


def bound_loss_minus_log(logits):
    """Subtract the wrong way round."""
    B, y = logits.shape[0], torch.arange(logits.shape[0])
    loss = (F.cross_entropy(logits, y) + F.cross_entropy(logits.T, y)) / 2
    return loss - np.log(B)


def bound_one_sided(logits):
    """Copy the paper of InfoNCE, which has one side."""
    labels = torch.arange(logits.size(0))
    return math.log(logits.size(0)) - F.cross_entropy(logits, labels)


def bound_in_bits(logits):
    """Count as information theorists do."""
    z = logits.numpy()
    p_row = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    p_col = np.exp(z) / np.exp(z).sum(axis=0, keepdims=True)
    loss = -0.5 * (np.log2(np.diag(p_row)) + np.log2(np.diag(p_col))).mean()
    return np.log2(len(z)) - loss


def bound_of_all_entries(logits):
    """Count the B * B entries of the matrix for the number of candidates."""
    y = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, y) + F.cross_entropy(logits.t(), y)) / 2
    return math.log(logits.numel()) - loss


def bound_never_negative(logits):
    """Recall that information is never negative."""
    y = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, y) + F.cross_entropy(logits.t(), y)) / 2
    return max(math.log(len(logits)) - loss.item(), 0.0)


def bound_shifted_in_place(logits):
    """Subtract the maximum for stability, in the caller's tensor."""
    logits -= logits.max()
    e = logits.exp()
    loss = -0.5 * (torch.log(e / e.sum(0)).diag() + torch.log(e / e.sum(1, keepdim=True)).diag())
    return math.log(len(e)) - loss.mean()


def _cells(features):
    """Centres by meshgrid, x and y of shape (h, w)."""
    _, h, w = features.shape
    xs = -1 + (2 * np.arange(w) + 1) / w
    ys = -1 + (2 * np.arange(h) + 1) / h
    return np.meshgrid(xs, ys)


def roi_top_left(features, boxes):
    """Unpack the box in the order of array indices."""
    gx, gy = _cells(features)
    rows = []
    for top, left, bottom, right in boxes.tolist():
        keep = (gx > left) & (gx < right) & (gy > top) & (gy < bottom)
        rows.append(features.numpy()[:, keep].mean(axis=1))
    return np.stack(rows)


def roi_y_points_up(features, boxes):
    """Draw y upwards, as in a plot."""
    gx, gy = _cells(features)
    gy = gy[::-1].copy()
    out = torch.zeros(len(boxes), len(features), dtype=features.dtype)
    for n, (left, top, right, bottom) in enumerate(boxes.numpy()):
        keep = torch.from_numpy((left <= gx) & (gx <= right) & (top <= gy) & (gy <= bottom))
        out[n] = features[:, keep].mean(dim=-1)
    return out


def roi_slices(features, boxes):
    """Turn the sides into indices with int(), and slice."""
    _, h, w = features.shape
    out = []
    for box in boxes:
        left, top, right, bottom = ((box + 1) / 2 * torch.tensor([w, h, w, h])).int().tolist()
        out.append(features[:, top:bottom, left:right].mean(dim=(1, 2)))
    return torch.stack(out)


def roi_align_corners(features, boxes):
    """Lay the grid with linspace, as with align_corners=True."""
    _, h, w = features.shape
    y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    result = []
    for b in boxes:
        inside = (x >= b[0]) & (x <= b[2]) & (y >= b[1]) & (y <= b[3])
        result.append(features.masked_select(inside).view(len(features), -1).mean(1))
    return torch.stack(result)


def roi_masked_mean(features, boxes):
    """Set the rest to zero, and average the whole map."""
    gx, gy = (torch.from_numpy(v) for v in _cells(features))
    left, top, right, bottom = boxes.T[..., None, None]
    mask = (gx > left) & (gx < right) & (gy > top) & (gy < bottom)
    return (features[None] * mask[:, None]).mean(dim=(2, 3))


def roi_max_pool(features, boxes):
    """Pool as RoI pooling does, by the maximum."""
    gx, gy = (torch.from_numpy(v) for v in _cells(features))
    pooled = []
    for left, top, right, bottom in boxes:
        mask = (left < gx) * (gx < right) * (top < gy) * (gy < bottom)
        pooled.append(features.masked_fill(~mask, float("-inf")).flatten(1).max(1)[0])
    return torch.stack(pooled)


def roi_xywh(features, boxes):
    """Read boxes as COCO's, with width and height."""
    gx, gy = _cells(features)
    f, means = features.numpy(), []
    for x, y, bw, bh in boxes.numpy():
        m = np.logical_and.reduce([gx >= x, gx <= x + bw, gy >= y, gy <= y + bh])
        means.append((f * m).sum((1, 2)) / m.sum())
    return torch.tensor(np.array(means))


def gradient_flipped(logits):
    """Subtract the softmax from the target, as one writes an update."""
    B = logits.shape[0]
    target = torch.eye(B, dtype=logits.dtype)
    return (target - 0.5 * F.softmax(logits, dim=1) - 0.5 * F.softmax(logits, dim=0)) / B


def gradient_of_sum(logits):
    """Differentiate each row's loss, and forget that they are averaged."""
    p = (torch.softmax(logits, 0) + torch.softmax(logits, 1)) / 2
    idx = torch.arange(len(p))
    p[idx, idx] -= 1
    return p


def gradient_one_side(logits):
    """Take the well-known gradient of one cross-entropy."""
    g = logits.softmax(dim=-1)
    g.diagonal().sub_(1.0)
    return g / len(g)


def gradient_of_both_added(logits):
    """Let autograd differentiate the sum of both losses."""
    z = logits.clone().requires_grad_()
    y = torch.arange(len(z))
    (F.cross_entropy(z, y) + F.cross_entropy(z.T, y)).backward()
    return z.grad


def gradient_without_target(logits):
    """Leave out the numerator's share."""
    e = np.exp(logits.numpy())
    return (e / e.sum(0) + e / e.sum(1, keepdims=True)) / (2 * len(e))


def gradient_target_per_side(logits):
    """Halve the softmaxes, and not the two identities."""
    eye, out = torch.eye(len(logits)), 0
    for dim in (0, 1):
        out = out + (logits.softmax(dim) / 2 - eye) / len(logits)
    return out


def gradient_lying_on_its_side(logits):
    """Add the gradient in logits.T to that in logits."""

    def of_rows(z):
        return (torch.softmax(z, dim=1) - torch.eye(len(z))) / len(z)

    return (of_rows(logits) + of_rows(logits.T)) / 2


def turned_one_after_another(tokens, pairs):
    """Replace a by b, then b by a, as with str.replace."""
    out = tokens.clone()
    for a, b in pairs:
        out[out == a] = b
        out[out == b] = a
    return out


def turned_one_way(tokens, pairs):
    """Look every word up in a dictionary that knows only one way."""
    opposite = dict(pairs)
    return torch.tensor([[opposite.get(w, w) for w in row] for row in tokens.tolist()])


def turned_in_place(tokens, pairs):
    """Take both masks first, and write into the argument."""
    for a, b in pairs:
        is_a, is_b = tokens == a, tokens == b
        tokens[is_a], tokens[is_b] = b, a
    return tokens


def turned_first_found(tokens, pairs):
    """Find a word with list.index, which stops at the first."""
    rows = tokens.tolist()
    for row in rows:
        for a, b in pairs:
            at_a = row.index(a) if a in row else None
            at_b = row.index(b) if b in row else None
            if at_a is not None:
                row[at_a] = b
            if at_b is not None:
                row[at_b] = a
    return np.array(rows)


def turned_only_last_pair(tokens, pairs):
    """Start each pair from the tokens, so that the last one wins."""
    for a, b in pairs:
        hard = torch.where(tokens == a, b, tokens)
        hard = torch.where(tokens == b, a, hard)
    return hard


def turned_columns(tokens, pairs):
    """Swap the columns a and b, as one swaps entries of a list."""
    x = tokens.numpy().copy()
    for a, b in pairs:
        x[:, [a, b]] = x[:, [b, a]]
    return x


def turned_return_inside_loop(tokens, pairs):
    """Indent the return once too often."""
    for a, b in pairs:
        table = torch.arange(int(tokens.max()) + 1 + max(a, b))
        table[a], table[b] = b, a
        return table[tokens]


WRONG = {
    "10.1": [
        (loss_same_side_twice, "only the pictures choose"),
        (loss_captions_only, "only the captions choose"),
        (loss_of_the_readme, "/= writes into the caller's features"),
        (loss_exp_of_scale, "scale is no logarithm"),
        (loss_divided_as_simclr, "scale is one over the temperature"),
        (loss_raw_dot_products, "a cosine is of unit vectors"),
        (loss_negatives_only, "its logit belongs in the denominator"),
        (loss_both_added, "take half of their sum"),
    ],
    "10.2": [
        (zero_shot_mean_of_cosines, "normalise it again"),
        (zero_shot_notebook_of_openai, "softmax of 100 times the cosines"),
        (zero_shot_one_prompt, "the first wording alone"),
        (zero_shot_closest_wording, "the best wording's cosine"),
        (zero_shot_wrong_axis, "not over the classes"),
        (zero_shot_predictions, "that is the class chosen"),
        (zero_shot_class_by_picture, "(B, C), not (C, B)"),
    ],
    "10.3": [
        (bound_minus_loss, "the loss of a blind guess is log B"),
        (bound_loss_minus_log, "not the other way round"),
        (bound_one_sided, "only the pictures choose"),
        (bound_in_bits, "log2 counts bits"),
        (bound_of_all_entries, "log B once"),
        (bound_never_negative, "a lower bound may be below 0"),
        (bound_shifted_in_place, "logits are the caller's"),
    ],
    "10.4": [
        (roi_top_left, "left and right bound x"),
        (roi_y_points_up, "y points down"),
        (roi_slices, "int() cuts off"),
        (roi_align_corners, "linspace(-1, 1, n) puts centres on the edge"),
        (roi_masked_mean, "zeros outside count, too"),
        (roi_max_pool, "RoI pooling's maximum"),
        (roi_xywh, "not width and height"),
    ],
    "10.5": [
        (gradient_flipped, "the gradient is chances less identity"),
        (gradient_of_sum, "a mean over B pairs: divide by B"),
        (gradient_one_side, "only the pictures choose"),
        (gradient_of_both_added, "halve the sum of their gradients"),
        (gradient_without_target, "take 1 off on the diagonal"),
        (gradient_target_per_side, "each side has half an identity"),
        (gradient_lying_on_its_side, "turn it back before it is added"),
    ],
    "10.6": [
        (turned_one_after_another, "all end as a"),
        (turned_one_way, "all end as b"),
        (turned_in_place, "write into a clone of them"),
        (turned_first_found, "replace it wherever it stands"),
        (turned_only_last_pair, "go on from what the pair before has left"),
        (turned_columns, "not places in the caption"),
        (turned_return_inside_loop, "return after the loop"),
    ],
}
