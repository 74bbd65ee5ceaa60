"""LoRA: nothing at first, merged as unmerged, and only the adapter learns. Takes 2 seconds."""

import copy

import pytest
import torch
from torch import nn
from truths import generator

from tutorial_lib.lora import LoRA, inject, load, merge, trained, unmerge

LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (4, 7)),
    "convolution": (lambda: nn.Conv2d(6, 4, 3, padding=1), (2, 6, 8, 8)),
    "strided": (lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=False), (2, 6, 8, 8)),
    "1 x 1": (lambda: nn.Conv2d(6, 4, 1), (2, 6, 8, 8)),
}


def made(kind, dtype=torch.float64):
    make, shape = LAYERS[kind]
    layer, draw = make().to(dtype), generator(3)
    for p in layer.parameters():
        nn.init.normal_(p, generator=draw)
    return layer, torch.randn(shape, generator=draw, dtype=dtype)


def changed(adapter):
    nn.init.normal_(adapter.up.weight, generator=generator(4))
    return adapter


@pytest.mark.parametrize("kind", LAYERS)
def test_nothing_changes_at_first_and_then_a_product_of_the_given_rank(kind):
    layer, x = made(kind)
    adapter = LoRA(copy.deepcopy(layer), 2, generator=generator(1))
    assert torch.equal(adapter(x), layer(x))
    change = changed(adapter).change()
    assert change.shape == layer.weight.shape
    assert torch.linalg.matrix_rank(change.flatten(1)) == 2
    by_hand = copy.deepcopy(layer)
    by_hand.weight.data += change
    assert (adapter(x) - by_hand(x)).abs().max() < 1e-12


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_merged_is_unmerged(kind, dtype, tolerance):
    layer, x = made(kind, dtype)
    net = nn.Sequential(LoRA(layer, 3, alpha=1.5, generator=generator(1)))
    changed(net[0])
    before = net(x)
    adapters = merge(net)
    assert type(net[0]) is type(layer) and list(adapters) == ["0"]
    assert (net(x) - before).abs().max() < tolerance * before.abs().max()
    unmerge(net, adapters)
    assert isinstance(net[0], LoRA)
    assert (net(x) - before).abs().max() < tolerance * before.abs().max()


def test_alpha_is_divided_by_the_rank():
    layer, _ = made("linear")
    small, large = (LoRA(layer, 4, alpha=a, generator=generator(1)) for a in (1.0, 8.0))
    assert LoRA(layer, 4, generator=generator(1)).scale == 1.0
    assert (8 * changed(small).change() - changed(large).change()).abs().max() < 1e-12


def network():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Sequential(nn.Linear(16, 5), nn.Tanh())
    )
    return net.double()


def test_only_adapters_learn_and_only_they_are_kept():
    net, x = network(), torch.randn(2, 3, 4, 4, generator=generator(5), dtype=torch.float64)
    plain = copy.deepcopy(net)
    inject(net, 2, generator=generator(6))
    assert torch.equal(net(x), plain(x))
    net(x).square().sum().backward()
    kept = trained(net)
    assert set(kept) == {
        f"{name}.{part}.weight" for name in ("0", "2.0") for part in ("down", "up")
    }
    given = {name for name, p in net.named_parameters() if p.grad is not None}
    assert given == set(kept)
    assert net[0].up.weight.grad.any() and not net[0].down.weight.grad.any()  # B is zero
    net[0].up.weight.data.fill_(0.3)
    inject(plain, 2, generator=generator(7))
    load(plain, trained(net))
    assert torch.equal(plain(x), net(x))


def test_a_frozen_average_is_kept_likewise():
    net = network()
    inject(net, 2, generator=generator(6))
    average = copy.deepcopy(net).requires_grad_(False)
    average[0].up.weight.fill_(2.0)
    kept = trained(net, average)
    assert kept.keys() == trained(net).keys() and bool((kept["0.up.weight"] == 2).all())


def test_chosen_layers_only():
    net = network()
    inject(net, 2, generator=generator(6), chosen=lambda name: name == "2.0")
    assert type(net[0]) is nn.Conv2d and isinstance(net[2][0], LoRA)
    assert not net[0].weight.requires_grad


def test_what_cannot_be_is_refused():
    layer, _ = made("linear")
    with pytest.raises(ValueError, match="rank is 0: it must be at least 1"):
        LoRA(layer, 0, generator=generator(1))
    with pytest.raises(ValueError, match="has 2 groups: LoRA needs one"):
        LoRA(nn.Conv2d(4, 4, 3, groups=2), 1, generator=generator(1))
    with pytest.raises(ValueError, match="nothing to adapt"):
        inject(nn.Sequential(nn.ReLU()), 1, generator=generator(1))
    kept = {"0.up.weight": torch.zeros(4, 2, 1, 1)}
    with pytest.raises(ValueError, match=r"no 0.up.weight: inject adapters"):
        load(network(), kept)
