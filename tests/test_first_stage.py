"""The autoencoders of latent diffusion: codes, gradients, prices, scale. Takes 5 seconds."""

import math
from dataclasses import replace

import pytest
import torch
from truths import generator

from tutorial_lib.first_stage import (
    COMMITMENT,
    FirstStage,
    FirstStageConfig,
    Quantiser,
)
from tutorial_lib.gaussian import Gaussian
from tutorial_lib.latent import latent_space

SMALL = FirstStageConfig(widths=(8, 8), channels=3)
KINDS = {"KL": SMALL, "VQ": replace(SMALL, codes=5)}
every_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)


def fresh(config, seed=0):
    """An autoencoder in float64 whose zero-initialised layers are drawn too."""
    stage = FirstStage(config, generator=generator(seed)).double()
    with torch.no_grad():
        for p in stage.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator(seed + 1)))
    return stage


def pictures(n=4, side=16, seed=7):
    return torch.rand(n, 3, side, side, generator=generator(seed), dtype=torch.float64) * 2 - 1


# Codes


def quantiser(codes=6, channels=3):
    return Quantiser(codes, channels, generator=generator(2)).double()


def latents(n=4, channels=3):
    return torch.randn(n, channels, 2, 5, generator=generator(3), dtype=torch.float64)


def test_each_place_is_given_its_nearest_vector():
    quantise, z = quantiser(), latents()
    found = quantise(z)
    assert found.z.shape == z.shape and found.codes.shape == (4, 2, 5)
    for b, i, j in ((0, 0, 0), (1, 1, 4), (3, 0, 2)):
        distances = (quantise.book - z[b, :, i, j]).norm(dim=1)
        assert found.codes[b, i, j] == distances.argmin()
        assert (found.z[b, :, i, j] - quantise.book[distances.argmin()]).abs().max() < 1e-12
    assert (quantise.vectors(found.codes) - found.z).abs().max() < 1e-12
    assert torch.equal(quantise(found.z).codes, found.codes)  # a vector is its own nearest


def test_gradients_pass_through_as_if_nothing_had_been_replaced():
    quantise, z = quantiser(), latents().requires_grad_()
    weights = torch.randn(z.shape, generator=generator(4), dtype=torch.float64)
    gradient = torch.autograd.grad((weights * quantise(z).z.square()).sum(), z)[0]
    assert (gradient - 2 * weights * quantise(z).z).abs().max() < 1e-12


def test_the_error_is_the_distance_and_each_side_of_it_learns_its_part():
    """Van den Oord et al. 2017, eq. 3: codes go to latents, latents are held near codes."""
    quantise, z = quantiser(), latents().requires_grad_()
    found = quantise(z)
    distance = (z - found.z).square().flatten(1).sum(1)
    assert (found.error - (1 + COMMITMENT) * distance).abs().max() < 1e-12
    by_z, by_book = torch.autograd.grad(found.error.sum(), (z, quantise.book))
    assert (by_z - 2 * COMMITMENT * (z - found.z)).abs().max() < 1e-12
    for k in range(len(quantise.book)):
        mine = (found.codes == k)[:, None]
        by_hand = 2 * ((found.z - z) * mine).sum((0, 2, 3))
        assert (by_book[k] - by_hand).abs().max() < 1e-12


def test_the_gradient_of_the_error_is_right_where_it_is_defined():
    """By finite differences, one side held still at a time: no choice changes so near by."""
    quantise, z = quantiser(), latents()
    book, chosen = quantise.book.detach().clone(), quantise(z).codes
    toward = torch.randn(z.shape, generator=generator(5), dtype=torch.float64)
    step = 1e-6
    assert torch.equal(quantise(z + step * toward).codes, chosen)
    sizes = [quantise(z + s * step * toward).error.sum().item() for s in (1, -1)]
    slope = (sizes[0] - sizes[1]) / (2 * step)
    moved = z.clone().requires_grad_()
    by_z = torch.autograd.grad(quantise(moved).error.sum(), moved)[0]
    share = COMMITMENT / (1 + COMMITMENT)  # of the loss's slope, which moves both terms
    assert abs(float((by_z * toward).sum()) - share * slope) < 1e-5 * abs(slope)
    assert torch.equal(quantise.book.detach(), book)


def test_vectors_that_are_never_chosen_are_moved_to_where_latents_are():
    quantise, z = quantiser(), latents()
    quantise.book.data[[1, 4]] += 100.0
    before = quantise.book.detach().clone()
    used = quantise(z).codes.unique()
    assert not {1, 4} & set(used.tolist())
    assert quantise.renew(z, generator=generator(6)) == 6 - len(used)
    assert torch.equal(quantise.book[used], before[used])
    everywhere = z.movedim(1, 3).flatten(0, 2)
    assert torch.cdist(quantise.book[[1, 4]], everywhere).amin(1).max() < 1e-6


# Pictures


@every_kind
@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_latents_are_pictures_f_times_smaller(config, halvings):
    config = replace(config, widths=(8,) * halvings)
    stage, x = fresh(config), pictures()
    side = 16 // config.factor
    assert config.factor == 2**halvings
    assert stage.law(x).mean.shape == (4, 3, side, side)
    assert stage.decode(stage.law(x).mean).shape == x.shape


def test_places_stay_where_they_are():
    stage, x = fresh(replace(SMALL, depth=0)), pictures()
    other = x.clone()
    other[:, :, 12:, :4] += 0.5
    changed = (stage.law(other).mean != stage.law(x).mean).any(1).any(0)  # of 4 x 4 places
    near = torch.zeros(4, 4, dtype=torch.bool)
    near[2:, :2] = True  # the last convolution looks one place further
    assert changed[3, 0] and not (changed & ~near).any()


def test_the_price_of_gaussian_latents_is_their_divergence_and_they_are_drawn():
    stage, x = fresh(SMALL), pictures()
    restored = stage(x, generator=generator(1))
    law = stage.law(x)
    expected = 0.5 * (law.variance + law.mean**2 - 1 - law.variance.log()).flatten(1).sum(1)
    assert (restored.price - expected).abs().max() < 1e-9
    drawn = law.sample(generator=generator(1))
    assert torch.equal(restored.x, stage.decode(drawn))
    assert not torch.equal(restored.x, stage(x, generator=generator(2)).x)


def test_codes_are_chosen_by_the_decoder_and_priced_by_the_quantiser():
    stage, x = fresh(KINDS["VQ"]), pictures()
    restored, law = stage(x, generator=generator(1)), stage.law(x)
    assert isinstance(law, Gaussian) and law.variance == 0
    chosen = stage.quantiser(law.mean)
    assert torch.equal(restored.price, chosen.error)
    assert (restored.x - stage.decode(law.mean)).abs().max() < 1e-12
    nudged = stage.decode(law.mean + 1e-9)
    assert torch.allclose(nudged, restored.x, atol=1e-12)  # the same codes, the same picture


@every_kind
def test_all_of_it_learns(config):
    stage = fresh(config)
    restored = stage(pictures(), generator=generator(1))
    (restored.x.square().sum() + restored.price.sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in stage.parameters())


# Scale


@every_kind
def test_a_space_has_unit_spread_and_is_left_as_it_was_entered(config):
    stage, x = fresh(config), pictures(20)
    space = latent_space(stage, x)
    z = space.enter(x)
    assert abs(z.std() - 1) < 1e-6
    assert math.isclose(space.scale, 1 / stage.law(x).mean.std().item(), rel_tol=1e-6)
    assert (space.leave(z) - stage.decode(stage.law(x).mean)).abs().max() < 1e-9
