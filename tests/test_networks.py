"""Embeddings, initial weights and the 2-D network, against the same written out by hand (3 s)."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tutorial_lib.networks.embeddings import (
    NULL_LABEL,
    LabelEmbedding,
    log_snr_features,
    sinusoidal,
)
from tutorial_lib.networks.mlp import PointMLP, initialise


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def is_ddpm_embedding(embed):
    """Compare with DDPM's released code, one scalar at a time."""
    width, period = 6, 100.0
    for clock in (0.0, 1.0, 7.5, 999.0):
        frequencies = [period ** (-i / (width // 2 - 1)) for i in range(width // 2)]
        exact = [f(clock * w) for f in (math.sin, math.cos) for w in frequencies]
        got = embed(torch.tensor([[clock]], dtype=torch.float64), width, period)
        if got.shape != (1, 1, width) or not torch.allclose(
            got[0, 0], torch.tensor(exact).double()
        ):
            return False
    return True


def test_sinusoidal_is_ddpms():
    assert is_ddpm_embedding(sinusoidal)


def wrong_stops_one_frequency_short(clock, width, period):
    frequencies = period ** (-2 * torch.arange(width // 2, dtype=clock.dtype) / width)
    return torch.cat(
        [(clock[..., None] * frequencies).sin(), (clock[..., None] * frequencies).cos()], -1
    )


def wrong_cosines_first(clock, width, period):
    return sinusoidal(clock, width, period).roll(width // 2, -1)


def wrong_interleaved(clock, width, period):
    pairs = sinusoidal(clock, width, period).unflatten(-1, (2, width // 2))
    return pairs.transpose(-1, -2).flatten(-2)


@pytest.mark.parametrize(
    "wrong", [wrong_stops_one_frequency_short, wrong_cosines_first, wrong_interleaved]
)
def test_the_sinusoidal_oracle_rejects(wrong):
    assert not is_ddpm_embedding(wrong)


def test_sinusoidal_of_low_precision_clocks_is_computed_in_float32():
    clock = torch.tensor([999.0, 3.0])
    assert torch.equal(sinusoidal(clock.int(), 32), sinusoidal(clock, 32))
    assert sinusoidal(clock.bfloat16(), 32).dtype == torch.float32


@pytest.mark.parametrize("width", [2, 7])
def test_sinusoidal_refuses_a_width(width):
    with pytest.raises(ValueError, match="even width"):
        sinusoidal(torch.zeros(1), width)


def features_by_hand(c):
    angles = [k * math.pi / 2 * c for k in range(1, 7)]
    return [c, *map(math.sin, angles), *map(math.cos, angles)]


def test_log_snr_features():
    clock = normal(5)
    exact = torch.tensor([features_by_hand(c) for c in clock.tolist()], dtype=torch.float64)
    torch.testing.assert_close(log_snr_features(clock), exact, rtol=0, atol=1e-14)
    assert (log_snr_features(clock * 2) - exact).abs().max() > 0.1  # e.g. k pi for k pi / 2


def build_layers():
    return nn.Sequential(
        nn.Linear(5, 3),
        nn.Linear(4, 4, bias=False),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Embedding(4, 5),
        nn.GroupNorm(2, 4),
        nn.LayerNorm(4),
    )


def test_initialise_draws_what_pytorch_draws():
    with torch.random.fork_rng():
        torch.manual_seed(7)
        theirs = build_layers()
    with torch.device("meta"):
        ours = build_layers()
    initialise(ours, generator(7))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=0)


def test_initialise_repeats_itself_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (PointMLP(generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_initialise_refuses_a_layer_it_has_no_law_for():
    with pytest.raises(TypeError, match="no law for BatchNorm1d"):
        initialise(nn.BatchNorm1d(3), generator())


def forward_by_hand(net, xt, clock, label=None):
    """The 2-D network from its weights, in plain matrix products."""
    weights = [p.detach() for layer in [*net.hidden, net.out] for p in layer.parameters()]
    features = torch.tensor([features_by_hand(c) for c in clock.tolist()], dtype=torch.float64)
    h = torch.cat([xt, features], dim=1)
    for i in range(0, len(weights) - 2, 2):
        h = h @ weights[i].T + weights[i + 1]
        if i == 0 and label is not None:
            h = h + net.label.table.weight.detach()[label]
        h = h / (1 + torch.exp(-h))
    return h @ weights[-2].T + weights[-1]


def test_point_mlp_is_the_standard_network():
    net = PointMLP(generator=generator()).double()
    assert sum(p.numel() for p in net.parameters()) == 13_634
    xt, clock = normal(7, 2), normal(7, seed=1)
    torch.testing.assert_close(
        net(xt, clock), forward_by_hand(net, xt, clock), rtol=1e-12, atol=1e-12
    )
    assert (net(xt, clock) - forward_by_hand(net, xt, 2 * clock)).abs().max() > 1e-3
    torch.testing.assert_close(net(xt, clock[0]), net(xt, clock[0].expand(7)), rtol=0, atol=0)


def test_a_point_mlp_with_other_outputs_is_the_same_but_for_its_last_layer():
    net, plain = (PointMLP(outputs=n, generator=generator()).double() for n in (5, None))
    assert net.out.weight.shape == (5, 64) and plain.out.weight.shape == (2, 64)
    for layer, same in zip(net.hidden, plain.hidden, strict=True):
        assert torch.equal(layer.weight, same.weight)
    xt, clock = normal(7, 2), normal(7, seed=1)
    exact = forward_by_hand(net, xt, clock)
    torch.testing.assert_close(net(xt, clock), exact, rtol=1e-12, atol=1e-12)


def test_a_label_adds_its_row_and_null_or_none_the_last():
    net = PointMLP(n_classes=3, generator=generator()).double()
    xt, clock = normal(4, 2), normal(4, seed=1)
    label = torch.tensor([2, 0, NULL_LABEL, 1])
    got = net(xt, clock, SimpleNamespace(label=label))
    rows = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(got, forward_by_hand(net, xt, clock, rows), rtol=1e-12, atol=1e-12)
    for absent in (None, SimpleNamespace(label=None)):
        null = torch.full((4,), NULL_LABEL)
        torch.testing.assert_close(
            net(xt, clock, absent), net(xt, clock, SimpleNamespace(label=null)), rtol=0, atol=0
        )
    wrong = forward_by_hand(net, xt, clock, torch.tensor([2, 0, 0, 1]))  # null taken for class 0
    assert (got - wrong).abs().max() > 1e-3


def test_dropping_a_label_trains_the_null_row_alone():
    embedding = LabelEmbedding(3, 4)
    embedding(torch.tensor([1, NULL_LABEL])).sum().backward()
    touched = embedding.table.weight.grad.abs().sum(1) > 0
    assert touched.tolist() == [False, True, False, True]


def test_point_mlp_refuses_what_it_cannot_read():
    net = PointMLP(generator=generator())
    with pytest.raises(ValueError, match=r"shape \(5, 3\): this net takes \(B, 2\)"):
        net(torch.zeros(5, 3), torch.zeros(5))
    with pytest.raises(ValueError, match="build it with n_classes"):
        net(torch.zeros(5, 2), torch.zeros(5), SimpleNamespace(label=torch.zeros(5).long()))
