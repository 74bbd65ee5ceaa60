"""CLIP's loss against exact critics and closed forms, and its two encoders. Takes 15 seconds."""

import math

import pytest
import torch
from torch.nn import functional as F
from truths import generator

from tutorial_lib.clip import (
    CLIP,
    MOST_SCALE,
    CLIPConfig,
    box_features,
    contrastive_loss,
    information_bound,
    pair_logits,
)
from tutorial_lib.networks.unet import ResidualBlock, UNetConfig
from tutorial_lib.text import TextConfig

SMALL = CLIPConfig(
    UNetConfig(channels=8, multipliers=(1, 2), depth=1, attention=(), dropout=0.0, side=8),
    TextConfig(vocabulary=9, length=6, width=16, depth=1, heads=2),
    width=5,
)


def double(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# the loss


def one_side(logits):
    return -logits.log_softmax(1).diagonal()


def summed(logits):
    return -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal())


def over_all_pairs(logits):
    return -(logits.diagonal() - logits.flatten().logsumexp(0))


def without_the_pair(logits):
    off = logits.masked_fill(torch.eye(len(logits), dtype=torch.bool), -torch.inf)
    return -(logits.diagonal() - off.logsumexp(1) / 2 - off.logsumexp(0) / 2)


WRONG = (one_side, summed, over_all_pairs, without_the_pair)


def two_pairs():
    """Logits of two pairs, and their losses by hand: log(1 + e^(wrong - right)), of two sides."""
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]], dtype=torch.float64)
    first = (math.log1p(math.exp(-1 - 2)) + math.log1p(math.exp(0.5 - 2))) / 2
    second = (math.log1p(math.exp(0.5 - 3)) + math.log1p(math.exp(-1 - 3))) / 2
    return logits, torch.tensor([first, second], dtype=torch.float64)


def test_two_pairs_by_hand():
    logits, by_hand = two_pairs()
    assert torch.allclose(contrastive_loss(logits), by_hand, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrong", WRONG)
def test_the_hand_would_notice(wrong):
    logits, by_hand = two_pairs()
    assert (wrong(logits) - by_hand).abs().max() > 0.01


def test_the_mean_is_that_of_two_cross_entropies():
    logits, n = double(7, 7), torch.arange(7)
    both = (F.cross_entropy(logits, n) + F.cross_entropy(logits.T, n)) / 2
    assert float(contrastive_loss(logits).mean() - both) == pytest.approx(0, abs=1e-12)


def test_its_gradient_is_what_was_given_less_what_is():
    logits = double(6, 6).requires_grad_()
    contrastive_loss(logits).sum().backward()
    given = (logits.softmax(1) + logits.softmax(0)) / 2
    assert torch.allclose(logits.grad, (given - torch.eye(6)).detach(), atol=1e-12)


# what it estimates: pairs (x, rho x + ...) of Gaussians, of which all is known


def gaussian_logits(rho, n, seed, spoil=lambda x: x):
    """The exact critic log p(y | x) / p(y) of n correlated pairs, (n, n)."""
    x, fresh = double(n, seed=seed), double(n, seed=seed + 1000)
    y = rho * x + (1 - rho**2) ** 0.5 * fresh
    gap = spoil(y[None] - rho * x[:, None])
    return y[None] ** 2 / 2 - gap**2 / (2 * (1 - rho**2))


def bounds(rho, n, repeats, **how):
    found = [information_bound(gaussian_logits(rho, n, k, **how)) for k in range(repeats)]
    mean = torch.stack(found).mean()
    return float(mean), float(torch.stack(found).std()) / repeats**0.5


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_the_exact_critic_of_many_pairs_gives_the_information(rho):
    exact = -math.log(1 - rho**2) / 2
    found, error = bounds(rho, 2000, 20)
    assert found == pytest.approx(exact, abs=6 * error + 0.01)
    worse, _ = bounds(rho, 2000, 20, spoil=lambda gap: 1.5 * gap)
    assert worse < found - 0.02


def test_few_pairs_bound_it_from_below_and_by_their_number():
    rho = 0.999
    exact, last = -math.log(1 - rho**2) / 2, 0.0
    for n in (2, 4, 16, 64):
        found, error = bounds(rho, n, 4000 // n)
        assert last < found < math.log(n) + 6 * error
        last = found
    assert math.log(4) < exact


# the temperature: pairs on a sphere, of which the best scale is known


def sphere_pairs(kappa, n, seed):
    """Unit vectors uniform on the sphere, and partners whose density is ~ exp(kappa cosine)."""
    x = F.normalize(double(n, 3, seed=seed), dim=1)
    u = torch.rand(n, generator=generator(seed + 1), dtype=torch.float64)
    cos = 1 + torch.log(u + (1 - u) * math.exp(-2 * kappa)) / kappa
    aside = double(n, 3, seed=seed + 2)
    aside = F.normalize(aside - (aside * x).sum(1, keepdim=True) * x, dim=1)
    return x, cos[:, None] * x + (1 - cos[:, None] ** 2).sqrt() * aside


@pytest.mark.parametrize("batch", [4, 64])
def test_the_best_scale_is_the_concentration_whatever_the_batch(batch):
    kappa = 8.0
    x, y = sphere_pairs(kappa, 64_000, seed=5)
    scales = torch.linspace(5, 11, 25, dtype=torch.float64)
    pairs = [part.unflatten(0, (-1, batch)) for part in (x, y)]
    cosines = pairs[0] @ pairs[1].mT
    losses = [torch.vmap(contrastive_loss)(scale * cosines).mean() for scale in scales]
    best = float(scales[torch.stack(losses).argmin()])
    assert best == pytest.approx(kappa, abs=0.6)


# the network


def drawn(seed=0, **others):
    net = CLIP(SMALL, generator=generator(seed)).double().eval()
    with torch.no_grad():  # what ends a residual path begins at zero
        for block in net.encoder.modules():
            if isinstance(block, ResidualBlock):
                block.conv2.weight.add_(0.1)
    x, tokens = double(4, 3, 8, 8, seed=7), torch.tensor([[1, 3, 2, 0]] * 4)
    tokens[:, 1] = torch.arange(4) + 3
    return net, x, tokens


def test_logits_are_scaled_cosines_of_unit_vectors():
    net, x, tokens = drawn()
    image, text = net.image(x), net.text(tokens)
    for vectors in (image, text):
        assert vectors.shape == (4, 5)
        assert torch.allclose(vectors.norm(dim=1), torch.ones(4).double(), atol=1e-12)
    cosines = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=2)
    assert torch.allclose(net(x, tokens), cosines / 0.07, atol=1e-6)
    assert torch.allclose(pair_logits(image, text, 3.0), 3 * cosines, atol=1e-12)


def test_the_scale_is_learned_and_limited():
    net, x, tokens = drawn()
    contrastive_loss(net(x, tokens)).mean().backward()
    assert abs(net.log_scale.grad.item()) > 1e-4
    with torch.no_grad():
        net.log_scale.fill_(20.0)
    assert net.scale.item() == pytest.approx(MOST_SCALE)


def test_filling_is_not_read_and_noise_is_told():
    net, x, tokens = drawn()
    longer = torch.cat([tokens, torch.zeros(4, 2, dtype=torch.long)], 1)
    assert torch.allclose(net.text(longer), net.text(tokens), atol=1e-12)
    assert (net.text(tokens)[0] - net.text(tokens)[1]).abs().max() > 0.01
    clock = torch.ones(4).double()
    assert (net.image(x, clock) - net.image(x)).abs().max() > 1e-3
    assert torch.equal(net.image(x, 0 * clock), net.image(x))
    pooled = torch.nn.functional.normalize(net.project(net.features(x).mean((2, 3))), dim=1)
    assert torch.allclose(pooled, net.image(x), atol=1e-12)


def test_boxes_are_pooled_as_a_loop_over_cells_would():
    features, h, w = double(2, 3, 4, 6), 4, 6
    low = torch.rand(2, 5, 2, generator=generator(1), dtype=torch.float64) * 1.2 - 1
    size = 0.4 + 0.5 * torch.rand(2, 5, 2, generator=generator(2), dtype=torch.float64)
    boxes = torch.cat([low, (low + size).clamp(max=1)], 2)
    found = box_features(features, boxes)
    for b in range(2):
        for n, (left, top, right, bottom) in enumerate(boxes[b].tolist()):
            cells = [
                features[b, :, row, column]
                for row in range(h)
                for column in range(w)
                if left < (column + 0.5) * 2 / w - 1 < right
                and top < (row + 0.5) * 2 / h - 1 < bottom
            ]
            if cells:
                by_hand = torch.stack(cells).mean(0)
                assert torch.allclose(found[b, n], by_hand, atol=1e-12)


def test_a_box_between_the_centres_has_the_nearest_cell():
    features = torch.arange(12.0, dtype=torch.float64).view(1, 1, 3, 4)
    box = torch.tensor([[[0.3, -0.05, 0.35, 0.05]]], dtype=torch.float64)
    assert box_features(features, box).item() == 6.0  # row 1, whose centre lies in it; column 2


def test_captions_of_no_picture_are_more_candidates_for_pictures_alone():
    logits = torch.randn(5, 8, generator=generator(41), dtype=torch.float64)
    of_pictures = F.cross_entropy(logits, torch.arange(5), reduction="none")
    of_captions = F.cross_entropy(logits[:, :5].T, torch.arange(5), reduction="none")
    assert (contrastive_loss(logits) - (of_pictures + of_captions) / 2).abs().max() < 1e-12
    absent = logits.clone()
    absent[:, 5:] = -torch.inf
    assert (contrastive_loss(absent) - contrastive_loss(logits[:, :5])).abs().max() < 1e-12
