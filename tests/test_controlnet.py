"""ControlNet: nothing at first, who learns when, maps that add up, weights of the features."""

from dataclasses import replace

import pytest
import torch
from truths import generator

from tutorial_lib.controlnet import (
    Controlled,
    ControlNet,
    depth_weights,
    feature_sides,
    map_encoder,
    resolution_weights,
)
from tutorial_lib.denoiser import Condition
from tutorial_lib.networks.unet import ADM, DDPM, UNet, UNetConfig
from tutorial_lib.pretrained import BASE_NETWORK

SMALL = UNetConfig(
    channels=16,
    multipliers=(1, 2),
    depth=1,
    attention=(4,),
    side=16,
    patch=2,
    dropout=0.0,
    text_width=12,
)


def network(seed=0):
    """A U-Net in float64 whose zero-initialised layers are drawn too."""
    net = UNet(SMALL, generator=generator(seed)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator(seed + 1)))
    return net


def control(net, channels=2, seed=3):
    return ControlNet(net, channels, generator=generator(seed)).double()


def changed(net, seed=5):
    """The control, as it might be after training."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator(seed)))
    return net


def inputs(channels=2, rows=3):
    draw = generator(7)
    xt = torch.randn(rows, 3, 16, 16, generator=draw, dtype=torch.float64)
    clock = torch.rand(rows, generator=draw, dtype=torch.float64)
    text = torch.randn(rows, 4, 12, generator=draw, dtype=torch.float64)
    hint = torch.rand(rows, channels, 16, 16, generator=draw, dtype=torch.float64)
    return xt, clock, Condition(text=text, hint=hint)


def test_at_first_it_is_the_network_exactly():
    net = network()
    both = Controlled(net, [control(net)])
    xt, clock, cond = inputs()
    assert torch.equal(both(xt, clock, cond), net(xt, clock, cond))
    assert torch.equal(both(xt, clock, cond.without("hint")), net(xt, clock, cond))


def test_a_copy_is_made_of_the_encoder_and_the_network_is_frozen():
    net = network()
    copied = control(net)
    both = Controlled(net, [copied])
    assert not any(p.requires_grad for p in net.parameters())
    assert all(p.requires_grad for p in copied.parameters())
    for (name, mine), (_, theirs) in zip(
        copied.encoder.named_parameters(), net.encoder.named_parameters(), strict=True
    ):
        assert torch.equal(mine, theirs) and mine is not theirs, name
    assert {p for p in both.parameters() if p.requires_grad} == set(copied.parameters())


def learning(both, xt, clock, cond):
    """Who gets a gradient that is not zero, by name."""
    both.zero_grad()
    (both(xt, clock, cond) - 1).square().mean().backward()
    return {name for name, p in both.named_parameters() if p.grad is not None and p.grad.any()}


def test_first_the_last_convolutions_learn_then_the_copy_then_the_map():
    """Zhang et al. 2023, section 3.1: zero weights learn, for their inputs are not zero."""
    net = network()
    both = Controlled(net, [control(net)])
    given = inputs()
    names = {name for name, p in both.named_parameters() if p.requires_grad}
    ends = {name for name in names if ".leave." in name}
    assert learning(both, *given) == ends
    for p in both.parameters():
        if p.grad is not None:
            p.data -= 0.1 * p.grad
    second = learning(both, *given)
    reads = {name for name in names if ".map." in name}
    assert second == names - reads  # the way in is zero still, so what lies before it waits
    for p in both.parameters():
        if p.grad is not None:
            p.data -= 0.1 * p.grad
    assert learning(both, *given) == names


def test_what_is_added_is_what_the_copy_found():
    net = network()
    copied = changed(control(net))
    both = Controlled(net, [copied])
    xt, clock, cond = inputs()
    emb = copied.encoder.embed(clock, cond)
    added = copied(xt, emb, cond, cond.hint)
    expected = net(xt, clock, cond, control=added)
    assert torch.equal(both(xt, clock, cond), expected)
    assert (expected - net(xt, clock, cond)).abs().max() > 1e-2
    features = net.encoder(xt, net.encoder.embed(clock, cond), cond)
    assert [x.shape for x in added] == [x.shape for x in features]


def test_a_row_without_a_map_is_as_the_network_draws_it():
    net = network()
    both = Controlled(net, [changed(control(net))])
    xt, clock, cond = inputs()
    cond.hint[1] = 0
    gap = (both(xt, clock, cond) - net(xt, clock, cond)).abs().flatten(1).amax(1)
    assert gap[1] == 0 and gap[[0, 2]].min() > 1e-3


def test_maps_add_up_by_their_scales():
    net = network()
    first, second = changed(control(net), 5), changed(control(net, 1, seed=4), 6)
    both = Controlled(net, [first, second], scales=[0.5, 2.0])
    xt, clock, cond = inputs(3)
    sums = []
    for one, scale, hint in ((first, 0.5, cond.hint[:, :2]), (second, 2.0, cond.hint[:, 2:])):
        sums.append([scale * x for x in one(xt, one.encoder.embed(clock, cond), cond, hint)])
    total = [a + b for a, b in zip(*sums, strict=True)]
    assert torch.equal(both(xt, clock, cond), net(xt, clock, cond, control=total))


def test_features_count_by_their_weights():
    net = network()
    copied = changed(control(net))
    xt, clock, cond = inputs()
    weights = [0.0] * len(SMALL.skips) + [1.0]
    both = Controlled(net, [copied], weights=weights)
    added = copied(xt, copied.encoder.embed(clock, cond), cond, cond.hint)
    middle = [0 * x for x in added[:-1]] + [added[-1]]
    assert torch.equal(both(xt, clock, cond), net(xt, clock, cond, control=middle))


@pytest.mark.parametrize("config", [SMALL, DDPM, ADM, BASE_NETWORK])
def test_sides_are_those_of_the_features(config):
    sides = feature_sides(config)
    narrow = replace(config, channels=8, head_width=None, n_classes=0, text_width=0)
    net = UNet(narrow, generator=generator(0))
    x = torch.zeros(1, 3, config.side, config.side)
    features = net.encoder(x, net.encoder.embed(torch.zeros(1)))
    assert sides == [feature.shape[2] for feature in features]


def test_weights_of_the_paper_amplify_and_those_of_its_code_damp():
    """Stable Diffusion's encoder: four levels of two blocks, sides 64 to 8, thirteen features."""
    diffusion = UNetConfig(multipliers=(1, 2, 4, 4), side=64)
    assert feature_sides(diffusion) == [64] * 3 + [32] * 3 + [16] * 3 + [8] * 4
    assert resolution_weights(diffusion) == [1.0] * 3 + [2.0] * 3 + [4.0] * 3 + [8.0] * 4
    damped = depth_weights(diffusion)
    assert damped[-1] == 1 and len(damped) == 13 and abs(damped[0] - 0.825**12) < 1e-12
    assert abs(depth_weights(diffusion, 7 / 8)[5] - (7 / 8) ** 7) < 1e-12


@pytest.mark.parametrize(("patch", "side"), [(1, 16), (2, 8), (4, 4), (8, 2)])
def test_a_map_is_strided_down_to_the_grid(patch, side):
    assert map_encoder(2, patch)(torch.zeros(1, 2, 16, 16)).shape == (1, 64, side, side)
