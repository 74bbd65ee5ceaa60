"""The diffusion transformer: the paper's counts, diffusers' network, and what begins at zero."""

from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from truths import generator

from tutorial_lib.networks import dit as module
from tutorial_lib.networks.dit import (
    CONDITIONINGS,
    DiT,
    DiTConfig,
    dit,
    grid_places,
    multiply_adds,
)

SMALL = DiTConfig(
    width=16, depth=2, heads=2, patch=2, side=6, in_channels=3, out_channels=6, n_classes=10
)
every_conditioning = pytest.mark.parametrize("conditioning", CONDITIONINGS)


def on_meta(config):
    with mock.patch.object(module, "initialise_dit"):
        return DiT(config, generator=None).to("meta")


# Peebles & Xie 2023, table 4 (parameters in millions, Gflops) and figure 5


@pytest.mark.parametrize(
    ("size", "weights", "cost"),
    [("S", 33, 6.06), ("B", 130, 23.01), ("L", 458, 80.71), ("XL", 675, 118.64)],
)
def test_papers_networks_have_their_published_sizes_and_costs(size, weights, cost):
    net = on_meta(dit(size, 2))
    numbers = [x.numel() for x in (*net.parameters(), net.places)]  # the paper counts the places
    assert abs(sum(numbers) / 1e6 - weights) < 0.6
    assert round(multiply_adds(net.config) / 1e9, 2) == cost


@pytest.mark.parametrize(
    ("conditioning", "cost"), [("cross-attention", 137.6), ("adaLN", 118.6), ("adaLN-Zero", 118.6)]
)
def test_conditionings_have_their_published_costs(conditioning, cost):
    assert round(multiply_adds(dit("XL", 2, conditioning=conditioning)) / 1e9, 1) == cost


@every_conditioning
@pytest.mark.parametrize("patch", [2, 4])
def test_the_cost_is_that_of_the_products_and_norms_that_are_done(conditioning, patch):
    config = dit("S", patch, conditioning=conditioning)
    net = on_meta(config)
    normalised = []
    for layer in net.modules():
        if isinstance(layer, torch.nn.LayerNorm) and not layer.elementwise_affine:
            layer.register_forward_hook(lambda _, given, out: normalised.append(out.numel()))
    counter, label = (
        FlopCounterMode(display=False),
        torch.zeros(1, dtype=torch.long, device="meta"),
    )
    with counter, torch.device("meta"):
        net(torch.zeros(1, 4, 32, 32), torch.zeros(1), SimpleNamespace(label=label))
    assert multiply_adds(config) == counter.get_total_flops() // 2 + sum(normalised)


# diffusers' network with the same weights


def randomised(config, seed=0):
    """A network in float64 whose zero-initialised layers are drawn too."""
    net = DiT(config, generator=generator(seed)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(1)))
    return net.eval()


def inputs(config, batch=3):
    draw = generator(5)
    shape = (batch, config.in_channels, config.side, config.side)
    xt = torch.randn(shape, generator=draw, dtype=torch.float64)
    clock = torch.tensor([3.0, 250.0, 999.0], dtype=torch.float64)
    return xt, clock, SimpleNamespace(label=torch.tensor([0, 7, -1]))


def in_diffusers(net):
    diffusers, config = pytest.importorskip("diffusers"), net.config
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=config.depth,
        sample_size=config.side,
        patch_size=config.patch,
        num_embeds_ada_norm=config.n_classes,
        norm_eps=1e-6,
    )
    theirs = theirs.double().eval()
    patch = theirs.pos_embed.proj
    patch.weight.data = net.patches.weight.data.reshape(patch.weight.shape)
    patch.bias.data = net.patches.bias.data
    theirs.pos_embed.pos_embed = net.places.double()[None]
    for mine, other in zip(net.blocks, theirs.transformer_blocks, strict=True):
        copy_block(net, mine, other)
    theirs.proj_out_1.load_state_dict(net.modulation.state_dict())
    p, d = config.patch, config.width
    for name in ("weight", "bias"):  # they keep a patch's channels together, we its pixels
        x = getattr(net.last, name).data.reshape(config.out_channels, p * p, -1).transpose(0, 1)
        getattr(theirs.proj_out_2, name).data = x.reshape((-1, d) if name == "weight" else (-1,))
    return theirs


def copy_block(net, mine, other):
    told = other.norm1.emb
    first, last = told.timestep_embedder.linear_1, told.timestep_embedder.linear_2
    sines, cosines = net.clock[0].weight.data.chunk(2, 1)
    first.weight.data = torch.cat([cosines, sines], 1)
    first.bias.data = net.clock[0].bias.data
    last.load_state_dict(net.clock[2].state_dict())
    told.class_embedder.embedding_table.load_state_dict(net.label.table.state_dict())
    for name in ("weight", "bias"):  # shift, scale, gate of one path, then of the other
        parts = getattr(mine.modulation, name).data.chunk(6)
        getattr(other.norm1.linear, name).data = torch.cat([parts[k] for k in (0, 1, 4, 2, 3, 5)])
    for ours, their in zip(("query", "key", "value"), ("to_q", "to_k", "to_v"), strict=True):
        getattr(other.attn1, their).load_state_dict(getattr(mine.itself, ours).state_dict())
    other.attn1.to_out[0].load_state_dict(mine.itself.out.state_dict())
    other.ff.net[0].proj.load_state_dict(mine.alone[0].state_dict())
    other.ff.net[2].load_state_dict(mine.alone[2].state_dict())


def test_it_is_diffusers_network():
    net = randomised(SMALL)
    theirs = in_diffusers(net)
    xt, clock, cond = inputs(SMALL)
    label = torch.where(cond.label < 0, SMALL.n_classes, cond.label)
    wanted = theirs(xt, timestep=clock, class_labels=label).sample
    assert (net(xt, clock, cond) - wanted).abs().max() < 1e-5 * wanted.abs().max()


# What begins at zero


def test_each_block_is_the_identity_at_first_and_only_with_adaln_zero():
    x, told = (torch.randn(2, n, 16, generator=generator(n)) for n in (9, 2))
    for conditioning in CONDITIONINGS:
        net = DiT(replace(SMALL, conditioning=conditioning), generator=generator(0))
        same = [torch.equal(block(x, told), x) for block in net.blocks]
        assert all(same) if conditioning == "adaLN-Zero" else not any(same), conditioning


@every_conditioning
def test_it_says_nothing_at_first(conditioning):
    net = DiT(replace(SMALL, conditioning=conditioning), generator=generator(0))
    xt, clock, cond = inputs(SMALL)
    assert not net(xt.float(), clock.float(), cond).any()


def test_what_learns_in_the_first_steps_of_adaln_zero():
    net = DiT(SMALL, generator=generator(0))
    xt, clock, cond = inputs(SMALL)

    def learns():
        net.zero_grad()
        (net(xt.float(), clock.float(), cond) - 1).square().mean().backward()
        return {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}

    def step():
        with torch.no_grad():
            for p in net.parameters():
                if p.grad is not None:
                    p -= 0.1 * p.grad

    assert learns() == {"last.weight", "last.bias"}  # nothing before a last layer of zeros
    step()
    second = learns()  # now the gates do, and what they gate does not yet
    d = SMALL.width
    for k, block in enumerate(net.blocks):
        assert f"blocks.{k}.modulation.weight" in second
        shifts_and_scales, gates = block.modulation.weight.grad.split([4 * d, 2 * d])
        assert gates.any() and not shifts_and_scales.any()
        assert not {f"blocks.{k}.itself.out.weight", f"blocks.{k}.alone.2.weight"} & second
    assert {"modulation.weight", "patches.weight"} <= second
    step()
    assert learns() == {name for name, _ in net.named_parameters()}


# How time and label are told


@every_conditioning
def test_time_and_label_are_heard_and_no_label_is_one_of_its_own(conditioning):
    net = randomised(replace(SMALL, conditioning=conditioning))
    xt, clock, cond = inputs(SMALL)
    out = net(xt, clock, cond)
    assert out.shape == (3, 6, 6, 6)
    later = net(xt, clock + 50, cond)
    other = net(xt, clock, SimpleNamespace(label=torch.tensor([1, 7, -1])))
    assert (later - out).flatten(1).abs().amax(1).min() > 1e-3
    gap = (other - out).flatten(1).abs().amax(1)
    assert gap[0] > 1e-3 and not gap[1:].any()
    assert torch.equal(net(xt, clock)[2], out[2])  # without a label as with the null label
    assert (net(xt, clock)[0] - out[0]).abs().max() > 1e-3


def test_a_network_without_classes_takes_no_label():
    net = randomised(replace(SMALL, n_classes=0))
    xt, clock, cond = inputs(SMALL)
    assert net(xt, clock).isfinite().all()
    with pytest.raises(ValueError, match="knows no labels"):
        net(xt, clock, cond)


def test_patches_are_tiles_and_come_back_to_their_places():
    net = randomised(replace(SMALL, depth=0))  # then a patch's prediction is its own alone
    xt, clock, cond = inputs(SMALL)
    out, other = net(xt, clock, cond), xt.clone()
    other[:, :, 2:4, 4:6] += 1.0
    changed = (net(other, clock, cond) != out).any(1)
    where = torch.zeros(3, 6, 6, dtype=torch.bool)
    where[:, 2:4, 4:6] = True
    assert torch.equal(changed, where)


def test_every_place_has_a_code_of_its_own_rows_and_columns_apart():
    codes = grid_places(4, 16)
    assert codes.shape == (16, 16)
    assert torch.cdist(codes, codes).add(10 * torch.eye(16)).min() > 0.1
    columns, rows = codes.view(4, 4, 16).chunk(2, 2)
    assert torch.equal(columns[0], columns[3]) and torch.equal(rows[:, 0], rows[:, 3])
    assert torch.equal(columns[0], rows[:, 0])  # the same code for the same count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditioning": "FiLM"}, "there is no conditioning 'FiLM': choose of in-context, cross"),
        ({"patch": 4}, "patches of 4 do not tile a side of 6"),
        ({"heads": 3}, "3 heads cannot share a width of 16"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DiT(replace(SMALL, **changes), generator=generator(0))


def test_a_picture_of_another_size_is_refused():
    net = DiT(SMALL, generator=generator(0))
    with pytest.raises(ValueError, match=r"shape \(1, 3, 8, 8\): this net takes \(B, 3, 6, 6\)"):
        net(torch.zeros(1, 3, 8, 8), torch.zeros(1))
