"""Wrong answers to notebook 13, written as learners write them, not as our zoo does."""

import math

import numpy as np
import torch
from scipy.optimize import minimize_scalar


def sign_odds_for_log_odds(xt, alpha, sigma, p, p_c, w):
    """Add the odds to what the noisy value says, without their logarithm."""
    push = 2 * alpha * xt / sigma**2
    uncond = torch.tanh(0.5 * (p / (1 - p) + push))
    cond = torch.tanh(0.5 * (p_c / (1 - p_c) + push))
    return uncond + (1 + w) * (cond - uncond)


def sign_log_of_the_prior(xt, alpha, sigma, p, p_c, w):
    """Add log p, as one adds a log prior to a log likelihood, without log(1 - p)."""

    def tell(prior):
        return torch.tanh((np.log(prior) + 2 * alpha * xt / sigma**2) / 2)

    return (1 + w) * tell(p_c) - w * tell(p)


def sign_half_of_a_half(xt, alpha, sigma, p, p_c, w):
    """Take a and b of (13.3), which are halves already, and halve again for the tanh."""
    a = alpha * xt / sigma**2
    b, b_c = 0.5 * math.log(p / (1 - p)), 0.5 * math.log(p_c / (1 - p_c))
    return (1 + w) * torch.tanh((a + b_c) / 2) - w * torch.tanh((a + b) / 2)


def sign_one_half_of_two(xt, alpha, sigma, p, p_c, w):
    """Take a of (13.3) and the whole of the log odds beside it."""
    a = alpha / sigma**2 * xt
    logit = torch.logit(torch.tensor([p, p_c], dtype=xt.dtype))
    without, with_caption = torch.tanh(a + logit[:, None])
    return with_caption + w * (with_caption - without)


def sign_variance_as_scale(xt, alpha, sigma, p, p_c, w):
    """Write N(alpha, sigma^2) as on paper, where Normal takes the deviation."""
    values = torch.tensor([-1.0, 1.0], dtype=xt.dtype)
    likelihood = torch.distributions.Normal(alpha * values, sigma**2).log_prob(xt[:, None])

    def x0_given(prior):
        posterior = torch.softmax(likelihood + torch.tensor([1 - prior, prior]).log(), dim=1)
        return posterior.to(xt.dtype) @ values

    return (1 + w) * x0_given(p_c) - w * x0_given(p)


def sign_grown_back(xt, alpha, sigma, p, p_c, w):
    """Divide x_t by alpha first, and leave the noise at sigma, where it has grown, too."""
    y = xt / alpha
    ell = [math.log(q / (1 - q)) + 2 * y / sigma**2 for q in (p, p_c)]
    uncond, cond = (torch.tanh(value / 2) for value in ell)
    return (1 + w) * cond - w * uncond


def sign_chance_for_mean(xt, alpha, sigma, p, p_c, w):
    """Return how likely +1 is, as a sigmoid gives it, and not the mean."""
    llr = 2 * alpha * xt / sigma**2
    chance = torch.sigmoid(llr + math.log(p) - math.log1p(-p))
    chance_c = torch.sigmoid(llr + math.log(p_c) - math.log1p(-p_c))
    return (1 + w) * chance_c - w * chance


def sign_log_odds_guided(xt, alpha, sigma, p, p_c, w):
    """Guide the log odds, as if a mean were linear in them, and take one tanh."""

    def logit(q):
        return math.log(q) - math.log(1 - q)

    guided = (1 + w) * logit(p_c) - w * logit(p) + 2 * alpha * xt / sigma**2
    return torch.tanh(guided / 2)


def sign_caption_on_top(xt, alpha, sigma, p, p_c, w):
    """Add the caption's log odds to those without it, as log R of (13.3) is added."""
    before = math.log(p / (1 - p)) + 2 * alpha * xt / sigma**2
    after = before + math.log(p_c / (1 - p_c))
    return (1 + w) * (after / 2).tanh() - w * (before / 2).tanh()


def sign_even_without_caption(xt, alpha, sigma, p, p_c, w):
    """Copy (13.3), where without a caption the odds are even."""
    R = p_c / (1 - p_c)
    a, b = alpha * xt / sigma**2, 0.5 * math.log(R)
    return (1 + w) * torch.tanh(a + b) - w * torch.tanh(a)


def sign_scale_of_imagen(xt, alpha, sigma, p, p_c, w):
    """Guide as Imagen prints it, w cond + (1 - w) uncond."""
    eps = xt / sigma**2 * alpha
    cond, uncond = (torch.tanh(eps + math.atanh(2 * prior - 1)) for prior in (p_c, p))
    return w * cond + (1 - w) * uncond


def sign_as_of_a_gaussian(xt, alpha, sigma, p, p_c, w):
    """Take the linear denoiser of a Gaussian with the same mean and variance."""

    def wiener(prior):
        mean, var = 2 * prior - 1, 4 * prior * (1 - prior)
        return mean + alpha * var / (alpha**2 * var + sigma**2) * (xt - alpha * mean)

    return (1 + w) * wiener(p_c) - w * wiener(p)


def sign_more_probable(xt, alpha, sigma, p, p_c, w):
    """Decide for the more probable of the two, and guide what was decided."""
    llr = 2 * alpha * xt / sigma**2
    told = torch.where(llr + np.log(p_c / (1 - p_c)) > 0, 1.0, -1.0).to(xt)
    silent = torch.where(llr + np.log(p / (1 - p)) > 0, 1.0, -1.0).to(xt)
    return torch.lerp(silent, told, 1 + w)


def sign_kept_in_the_box(xt, alpha, sigma, p, p_c, w):
    """Guide the chances, and clamp them, for no chance is above 1."""
    odds = torch.exp(2 * alpha * xt / sigma**2)
    chances = [odds * q / (odds * q + 1 - q) for q in (p_c, p)]
    guided = ((1 + w) * chances[0] - w * chances[1]).clamp(0, 1)
    return 2 * guided - 1


def sign_scaled_in_place(xt, alpha, sigma, p, p_c, w):
    """Scale x_t with *= in a function that is called twice."""

    def mean(x, prior):
        x *= 2 * alpha / sigma**2
        return torch.tanh((x + math.log(prior / (1 - prior))) / 2)

    return (1 + w) * mean(xt, p_c) - w * mean(xt, p)


def threshold_step_of_ddim(xt, x0, alpha, sigma, quantile):
    """Take the noise first, and threshold then, as a scheduler without use_clipped_output."""
    pred_epsilon = (xt - alpha * x0) / sigma
    B, C, H, W = x0.shape
    sample = x0.reshape(B, C * H * W)
    s = torch.quantile(sample.abs(), quantile, dim=1, keepdim=True).clamp(min=1)
    sample = torch.clamp(sample, -s, s) / s
    return sample.reshape(B, C, H, W), pred_epsilon


def threshold_sample_max_value(xt, x0, alpha, sigma, quantile):
    """Copy diffusers' _threshold_sample with its config, where sample_max_value is 1.0."""
    sample = x0.flatten(1)
    s = torch.quantile(sample.abs(), quantile, dim=1)
    s = torch.clamp(s, min=1, max=1.0).unsqueeze(1)
    sample = (torch.clamp(sample, -s, s) / s).reshape(x0.shape)
    return sample, (xt - alpha * sample) / sigma


def threshold_of_the_batch(xt, x0, alpha, sigma, quantile):
    """Call quantile without an axis, which flattens all pictures into one."""
    s = max(1.0, torch.quantile(x0.abs(), quantile).item())
    x = torch.clip(x0, -s, s) / s
    return x, (xt - alpha * x) / sigma


def threshold_of_each_channel(xt, x0, alpha, sigma, quantile):
    """Flatten from the axis of heights on, so that each channel has an s."""
    s = x0.abs().flatten(2).quantile(quantile, dim=-1).clamp(min=1)[..., None, None]
    x = torch.minimum(torch.maximum(x0, -s), s) / s
    return x, (xt - alpha * x) / sigma


def threshold_of_signed_values(xt, x0, alpha, sigma, quantile):
    """Forget abs, so that what is far below is not seen."""
    s = np.quantile(x0.numpy(), quantile, axis=(1, 2, 3), keepdims=True)
    s = torch.from_numpy(np.maximum(s, 1))
    x = x0.clamp(-s, s).div(s)
    return x, (xt - alpha * x) / sigma


def threshold_percentile(xt, x0, alpha, sigma, quantile):
    """Call np.percentile, which wants 99.5 and is given 0.995."""
    s = np.percentile(np.abs(x0.numpy()), quantile, axis=(1, 2, 3), keepdims=True).clip(1)
    x = np.clip(x0.numpy(), -s, s) / s
    return x, (xt.numpy() - alpha * x) / sigma


def threshold_sorted(xt, x0, alpha, sigma, quantile):
    """Sort, and take the value at int(quantile n), where quantile goes between two."""
    sizes = x0.abs().flatten(1).sort(dim=1).values
    place = min(int(quantile * sizes.shape[1]), sizes.shape[1] - 1)
    s = sizes[:, place].clamp(min=1)[:, None, None, None]
    inside = x0.clamp(-s, s) / s
    return inside, (xt - alpha * inside) / sigma


def threshold_clamp_max(xt, x0, alpha, sigma, quantile):
    """Write max(1, s) as clamp(max=1), which is the smaller of the two."""
    s = x0.abs().flatten(1).quantile(quantile, dim=1).clamp(max=1).reshape(-1, 1, 1, 1)
    x0 = x0.clamp(-s, s) / s
    eps = (xt - alpha * x0) / sigma
    return x0, eps


def threshold_if_any_is_out(xt, x0, alpha, sigma, quantile):
    """Ask once for the batch whether something is out, and divide all if so."""
    s = torch.stack([x.abs().quantile(quantile) for x in x0]).view(-1, 1, 1, 1)
    if s.max() > 1:
        x0 = torch.maximum(torch.minimum(x0, s), -s) / s
    return x0, (xt - alpha * x0) / sigma


def threshold_not_divided(xt, x0, alpha, sigma, quantile):
    """Clip to [-s, s], and stay there."""
    s = x0.abs().flatten(1).quantile(quantile, dim=1)
    s = torch.maximum(s, torch.ones_like(s))
    x = torch.einsum("b,bchw->bchw", s, torch.einsum("b,bchw->bchw", 1 / s, x0).clamp(-1, 1))
    return x, (xt - alpha * x) / sigma


def threshold_divided_only(xt, x0, alpha, sigma, quantile):
    """Divide by s, and let what is above it stick out."""
    s = x0.abs().flatten(1).quantile(quantile, dim=1).clamp(min=1)
    scaled = x0 / s[:, None, None, None]
    return scaled, (xt - alpha * scaled) / sigma


def threshold_noise_before_division(xt, x0, alpha, sigma, quantile):
    """Make the noise agree with what is clipped, and divide after."""
    s = x0.abs().flatten(1).quantile(quantile, dim=1).clamp_min(1).view(len(x0), 1, 1, 1)
    clipped = x0.clamp(min=-s, max=s)
    noise = (xt - alpha * clipped) / sigma
    return clipped / s, noise


def threshold_to_d(xt, x0, alpha, sigma, quantile):
    """Get the noise as k-diffusion's to_d does, where a picture is not shrunk."""
    s = x0.abs().flatten(1).quantile(quantile, dim=1).clamp(1)[:, None, None, None]
    denoised = x0.clamp(-s, s) / s
    return denoised, (xt - denoised) / sigma


def threshold_in_place(xt, x0, alpha, sigma, quantile):
    """Clamp and divide with an underscore, which is quicker, in the caller's tensor."""
    s = x0.abs().flatten(1).quantile(quantile, dim=1).clamp_(min=1)[:, None, None, None]
    x0.clamp_(-s, s).div_(s)
    return x0, (xt - alpha * x0) / sigma


def threshold_along_the_width(xt, x0, alpha, sigma, quantile):
    """Leave s (B,), which broadcasts along the last axis, if at all."""
    s = x0.abs().flatten(1).quantile(quantile, dim=1).clamp(min=1)
    inside = x0.clamp(-s, s) / s
    return inside, (xt - alpha * inside) / sigma


def threshold_noise_first(xt, x0, alpha, sigma, quantile):
    """Return the noise first, as it comes from a network."""
    s = x0.abs().flatten(1).quantile(quantile, dim=1).clamp(min=1)[:, None, None, None]
    inside = x0.clamp(-s, s) / s
    eps = (xt - alpha * inside) / sigma
    return eps, inside


def words_collated_in_place(tokens, u, share, mask, special):
    """Copy torch_mask_tokens of transformers, which clones the labels and spoils the inputs."""
    inputs, labels = tokens, tokens.clone()
    special_tokens_mask = torch.isin(inputs, torch.tensor(special))
    masked_indices = (u < share).masked_fill(special_tokens_mask, value=0.0).bool()
    labels[~masked_indices] = -100
    inputs[masked_indices] = mask
    return inputs, labels


def words_second_name(tokens, u, share, mask, special):
    """Give the tokens a second name for a copy, and so hide words before they are asked for."""
    shown = tokens
    hidden = (u < share) & ~torch.isin(tokens, torch.tensor(special))
    shown[hidden] = mask
    return shown, torch.where(hidden, tokens, -100)


def words_bert(tokens, u, share, mask, special):
    """Replace eight in ten of the chosen, exchange one, and leave one, as BERT does."""
    word = ~torch.isin(tokens, torch.tensor(special))
    chosen = word & (u < share)
    shown = tokens.masked_fill(word & (u < 0.8 * share), mask)
    exchanged = word & (u >= 0.8 * share) & (u < 0.9 * share)
    shown = torch.where(exchanged, tokens.roll(1, dims=0), shown)
    return shown, tokens.masked_fill(~chosen, -100)


def words_de_morgan(tokens, u, share, mask, special):
    """Ask for what differs from one special number or another, as all numbers do."""
    word = torch.stack([tokens != number for number in special]).any(dim=0)
    hidden = word & (u < share)
    return tokens.masked_fill(hidden, mask), tokens.masked_fill(~hidden, -100)


def words_last_of_a_loop(tokens, u, share, mask, special):
    """Begin anew in each turn of a loop, so that the last special number alone is spared."""
    for number in special:
        hidden = (u < share) & (tokens != number)
    return torch.where(hidden, mask, tokens), torch.where(hidden, tokens, -100)


def words_above_the_special(tokens, u, share, mask, special):
    """Take all numbers above the special ones for words."""
    hidden = (u < share) & (tokens > max(special))
    return torch.where(hidden, mask, tokens), torch.where(hidden, tokens, -100)


def words_between_the_ends(tokens, u, share, mask, special):
    """Spare the first and the last place, and with them not where a text ends and is filled."""
    hidden = u < share
    hidden[:, 0] = hidden[:, -1] = False
    return torch.where(hidden, mask, tokens), torch.where(hidden, tokens, -100)


def words_attention_mask(tokens, u, share, mask, special):
    """Spare the filling, of number 0, and hide beginnings and ends."""
    attention_mask = tokens != 0
    hidden = u.lt(share) & attention_mask
    return torch.where(hidden, mask, tokens), torch.where(hidden, tokens, -100)


def words_keep_prob(tokens, u, share, mask, special):
    """Take share for the chance to be kept, as a draw below it usually decides."""
    keep = torch.isin(tokens, torch.tensor(special)) | (u < share)
    return torch.where(keep, tokens, mask), torch.where(keep, -100, tokens)


def words_lowest_of_each_row(tokens, u, share, mask, special):
    """Hide so many words of each row, those with the smallest draws."""
    special_tokens = torch.isin(tokens, torch.tensor(special))
    rank = u.masked_fill(special_tokens, 2.0).argsort(dim=1).argsort(dim=1)
    number = (share * (~special_tokens).sum(dim=1, keepdim=True)).round()
    hidden = (rank < number) & ~special_tokens
    return torch.where(hidden, mask, tokens), torch.where(hidden, tokens, -100)


def words_all_asked_for(tokens, u, share, mask, special):
    """Ask for every word, and leave out what is special, as causal models are trained."""
    spared = torch.isin(tokens, torch.tensor(special))
    labels = tokens.clone()
    labels[spared] = -100
    return torch.where((u < share) & ~spared, mask, tokens), labels


def words_asked_for_what_is_seen(tokens, u, share, mask, special):
    """Put -100 where the words are hidden, as the mask was put there."""
    hidden = (u < share) & ~torch.isin(tokens, torch.tensor(special))
    shown, said = tokens.clone(), tokens.clone()
    shown[hidden], said[hidden] = mask, -100
    return shown, said


def words_multiplied(tokens, u, share, mask, special):
    """Multiply by what is hidden, which makes a 0 of the rest, and 0 is a token."""
    hidden = ((u < share) & ~torch.isin(tokens, torch.tensor(special))).long()
    return tokens * (1 - hidden) + mask * hidden, tokens * hidden


def words_picked_out(tokens, u, share, mask, special):
    """Say the hidden words alone, in one row."""
    hidden = (u < share) & ~torch.isin(tokens, torch.tensor(special))
    return torch.where(hidden, mask, tokens), tokens[hidden]


def words_where_turned(tokens, u, share, mask, special):
    """Put into np.where first what is kept, in both places."""
    hidden = (u < share).numpy() & ~np.isin(tokens.numpy(), special)
    return np.where(hidden, tokens, mask), np.where(hidden, -100, tokens)


def words_draw_of_share(tokens, u, share, mask, special):
    """Hide where the draw is just the share, too, so that a share of 0 may hide a word."""
    hidden = (u <= share) & ~torch.isin(tokens, torch.tensor(special))
    return torch.where(hidden, mask, tokens), torch.where(hidden, tokens, -100)


def errors_of(lam, d2, r):
    return lam * r / (lam + r) + lam**2 * d2 / (lam + r) ** 2


def noise_place_in_the_list(lam, d2, candidates):
    """Return where in the list the best is."""
    return errors_of(lam, d2, candidates.unsqueeze(1)).sum(dim=1).argmin()


def noise_min_of_errors(lam, d2, candidates):
    """Return the smallest error, not what it takes."""
    g = lam / (lam + candidates[:, None])
    errors = (1 - g) ** 2 * lam + g**2 * (candidates[:, None] + d2)
    return errors.sum(dim=-1).min()


def noise_for_each_direction(lam, d2, candidates):
    """Choose for each direction, and not for all."""
    return candidates[errors_of(lam, d2, candidates[:, None]).argmin(dim=0)]


def noise_mean_of_the_best(lam, d2, candidates):
    """Average r* of (13.9) over the directions, and take the candidate that is closest."""
    r_star = (2 * d2 - lam).clamp(min=0).mean()
    return candidates[(candidates - r_star).abs().argmin()]


def noise_of_the_mean_direction(lam, d2, candidates):
    """Average lam and d2 first, as if the error were linear in both."""
    return candidates[errors_of(lam.mean(), d2.mean(), candidates).argmin()]


def noise_by_vote(lam, d2, candidates):
    """Let each direction vote for its best, and count the votes."""
    votes = errors_of(lam, d2, candidates[:, None]).argmin(dim=0)
    return candidates[torch.bincount(votes, minlength=len(candidates)).argmax()]


def noise_for_the_worst_direction(lam, d2, candidates):
    """Take the candidate whose largest error is smallest."""
    return candidates[errors_of(lam, d2, candidates[:, None]).max(dim=1).values.argmin()]


def noise_relative_errors(lam, d2, candidates):
    """Divide each error by the variance that is there, so that all directions count alike."""
    errors = errors_of(lam, d2, candidates[:, None]) / lam
    return candidates[errors.mean(dim=1).argmin()]


def noise_in_training_alone(lam, d2, candidates):
    """Add no noise in use, as one augments, so that its price is only the smaller gain."""
    gain = lam / (lam + candidates[:, None])
    errors = (1 - gain) ** 2 * lam + gain**2 * d2
    return candidates[errors.sum(dim=1).argmin()]


def noise_of_deviations(lam, d2, candidates):
    """Take the candidates for deviations, and square them."""
    errors = torch.stack([errors_of(lam, d2, sigma**2).sum() for sigma in candidates])
    return candidates[errors.argmin()]


def noise_fault_not_shrunk(lam, d2, candidates):
    """Take the fault's part as g d^2, as if the gain came in once."""
    lam, r = torch.meshgrid(lam, candidates, indexing="ij")
    errors = lam * r / (lam + r) + lam / (lam + r) * d2[:, None]
    return candidates[errors.sum(dim=0).argmin()]


def noise_brackets_forgotten(lam, d2, candidates):
    """Divide by lam + r ** 2, where the brackets are missing."""
    r = candidates.numpy()[:, None]
    error = lam.numpy() * r / (lam.numpy() + r) + (lam**2 * d2).numpy() / (lam.numpy() + r**2)
    return candidates[int(np.argmin(error.sum(axis=1)))]


def noise_summed_over_candidates(lam, d2, candidates):
    """Sum the table along the wrong axis, and look a direction's place up in the list."""
    r = candidates.reshape(-1, 1)
    price = lam * r / (lam + r)
    fault = d2 * (lam / (lam + r)).square()
    return candidates[(price + fault).sum(0).argmin()]


def noise_fault_alone(lam, d2, candidates):
    """Ask only what is left of the fault, which more noise always makes smaller."""
    left = torch.stack([(d2 * (lam / (lam + r)) ** 2).sum() for r in candidates])
    return candidates[left.argmin()]


def noise_until_it_rises(lam, d2, candidates):
    """Go through the list until the error rises, as if it had one valley and were sorted."""
    best = candidates[0]
    for r in candidates[1:]:
        if errors_of(lam, d2, r).sum() > errors_of(lam, d2, best).sum():
            break
        best = r
    return best


def noise_between_the_candidates(lam, d2, candidates):
    """Search between the smallest and the largest, where what is found is no candidate."""
    found = minimize_scalar(
        lambda r: errors_of(lam, d2, r).sum().item(),
        bounds=(candidates.min().item(), candidates.max().item()),
        method="bounded",
    )
    return torch.tensor(found.x, dtype=candidates.dtype)


def noise_sorted_elsewhere(lam, d2, candidates):
    """Sort for the table, and look the place up in the list that is not sorted."""
    r = torch.sort(candidates).values
    error = errors_of(lam[:, None], d2[:, None], r[None])
    return candidates[error.sum(dim=0).argmin()]


def noise_list_of_one(lam, d2, candidates):
    """Take the first of the sorted as a slice, which has an axis still."""
    error = errors_of(lam, d2, candidates.view(-1, 1)).sum(dim=1)
    return candidates[error.argsort()[:1]]


WRONG = {
    "13.1": [
        (sign_odds_for_log_odds, "expected ≈"),
        (sign_log_of_the_prior, "those are logarithms of probabilities: Bayes adds"),
        (sign_half_of_a_half, "expected ≈"),
        (sign_one_half_of_two, "expected ≈"),
        (sign_variance_as_scale, "expected ≈"),
        (sign_grown_back, "expected ≈"),
        (sign_chance_for_mean, "a sigmoid is the probability of +1: the mean of a"),
        (sign_log_odds_guided, "you guide the log odds, and never leave the box:"),
        (sign_caption_on_top, "expected ≈"),
        (sign_even_without_caption, "(13.3) is for even odds without a caption: here p"),
        (sign_scale_of_imagen, "that is Imagen's w, which starts from 1: here w = 0"),
        (sign_as_of_a_gaussian, "expected ≈"),
        (sign_more_probable, "expected ≈"),
        (sign_kept_in_the_box, "clipped to the box: what guidance says may lie"),
        (sign_scaled_in_place, "xt is the caller's"),
    ],
    "13.2": [
        (threshold_step_of_ddim, "x_0 has moved, and the noise has not: yours belongs"),
        (threshold_sample_max_value, "that is the static threshold, which clips to 1:"),
        (threshold_of_the_batch, "each picture has an s of its own: yours is one for"),
        (threshold_of_each_channel, "a picture has one s: yours has one for each"),
        (threshold_of_signed_values, "the quantile is of the sizes, |x_0|: what lies far"),
        (threshold_percentile, "that is the static threshold, which clips to 1:"),
        (threshold_sorted, "expected ≈"),
        (threshold_clamp_max, "expected ≈"),
        (threshold_if_any_is_out, "expected ≈"),
        (threshold_not_divided, "clipped to [-s, s] and not divided by s: it is"),
        (threshold_divided_only, "divided and not clipped: what lies beyond the"),
        (threshold_noise_before_division, "expected ≈"),
        (threshold_to_d, "expected ≈"),
        (threshold_in_place, "xt and x0 are the caller's: clamp_ and /= change"),
        (threshold_along_the_width, "s is (B,), and lies along the last axis of x0: it"),
        (threshold_noise_first, "the two are in the wrong order: x_0 comes first,"),
    ],
    "13.3": [
        (words_collated_in_place, "tokens is the caller's: tokens[hidden] = mask"),
        (words_second_name, "tokens is the caller's: tokens[hidden] = mask"),
        (words_bert, "expected ≈"),
        (words_de_morgan, "you hide filling, beginnings and ends, too: what is"),
        (words_last_of_a_loop, "expected ≈"),
        (words_above_the_special, "expected ≈"),
        (words_between_the_ends, "expected ≈"),
        (words_attention_mask, "expected ≈"),
        (words_keep_prob, "share is what is hidden: you keep so much, and hide"),
        (words_lowest_of_each_row, "expected ≈"),
        (words_all_asked_for, "expected ≈"),
        (words_asked_for_what_is_seen, "what is to be said is what is not hidden: the two"),
        (words_multiplied, "0 may be a token: what cross_entropy leaves out is"),
        (words_picked_out, "tokens[hidden] is a list without places: (B, L),"),
        (words_where_turned, "expected ≈"),
        (words_draw_of_share, "a u equal to share hides nothing: u may be 0, and"),
    ],
    "13.4": [
        (noise_place_in_the_list, "that is where the candidate stands: return the"),
        (noise_min_of_errors, "that is the smallest error: return the candidate"),
        (noise_for_each_direction, "the noise is the same in all: sum over the"),
        (noise_mean_of_the_best, "you average what is best for each: sum the errors,"),
        (noise_of_the_mean_direction, "that is best for the mean variances: each direction"),
        (noise_by_vote, "expected ≈"),
        (noise_for_the_worst_direction, "expected ≈"),
        (noise_relative_errors, "expected ≈"),
        (noise_in_training_alone, "expected ≈"),
        (noise_of_deviations, "expected ≈"),
        (noise_fault_not_shrunk, "the gain is not squared: what is left of the fault"),
        (noise_brackets_forgotten, "expected ≈"),
        (noise_summed_over_candidates, "expected ≈"),
        (noise_fault_alone, "that is always the largest: noise has a price, too,"),
        (noise_until_it_rises, "expected ≈"),
        (noise_between_the_candidates, "expected ≈"),
        (noise_sorted_elsewhere, "expected ≈"),
        (noise_list_of_one, "The answer has shape (1,), expected ()"),
    ],
}
