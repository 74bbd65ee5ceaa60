"""The U-Net: published counts, diffusers' network with the same weights, and the fast forms."""

from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import nn
from truths import generator

from tutorial_lib.networks import unet
from tutorial_lib.networks.attention import Attention
from tutorial_lib.networks.fast import ExpandingUpsample, SummedGroupNorm, accelerate
from tutorial_lib.networks.unet import ADM, DDPM, IDDPM, UNet, UNetConfig

# Small enough to run in double precision, with every kind of layer at least twice.
SMALL = UNetConfig(
    channels=32, multipliers=(1, 2), depth=1, attention=(4,), side=8, dropout=0.0, head_width=16
)
FORMS = {
    "ddpm": SMALL,
    "iddpm": replace(SMALL, adaptive_norm=True, out_channels=6),
    "adm": replace(SMALL, adaptive_norm=True, resample_in_blocks=True, n_classes=10),
    "text": replace(SMALL, text_width=12),
}
every_form = pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)


def parameters_of(config):
    # nothing is allocated, so that ADM's 300 million cost nothing
    with mock.patch.object(unet, "initialise_unet"):
        net = UNet(config, generator=None)
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("config", "published"),
    [(DDPM, 35.7), (IDDPM, 52.5), (ADM, 295.9)],
    ids=["DDPM", "IDDPM", "ADM"],
)
def test_papers_networks_have_their_published_sizes(config, published):
    """DDPM appendix B; IDDPM's CIFAR-10 model; ADM table 11 (296 M at 64x64), in millions."""
    assert abs(parameters_of(config) / 1e6 - published) < 0.06
    assert abs(parameters_of(replace(config, depth=config.depth + 1)) / 1e6 - published) > 1


def test_ddpm_has_the_exact_count():
    assert parameters_of(DDPM) == 35_746_307


def randomised(config, seed=0):
    """A network in float64 whose zero-initialised layers are drawn too."""
    net = UNet(config, generator=generator(seed)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(1)))
    return net.eval()


def inputs(config, batch=3, seed=5):
    draw = generator(seed)
    shape = (batch, config.in_channels, config.side, config.side)
    xt = torch.randn(shape, generator=draw, dtype=torch.float64)
    clock = torch.tensor([3.0, 250.0, 999.0], dtype=torch.float64)[:batch]
    cond = SimpleNamespace(
        label=torch.tensor([0, 7, -1]) if config.n_classes else None,
        text=torch.randn(batch, 4, config.text_width, generator=draw, dtype=torch.float64)
        if config.text_width
        else None,
        mask=torch.tensor([[True] * 4, [True, True, False, False], [True] * 3 + [False]]),
    )
    return xt, clock, cond


# diffusers' UNet2DModel is DDPM's network in other hands


def to_diffusers(net, config):
    diffusers = pytest.importorskip("diffusers")
    widths = [config.channels * m for m in config.multipliers]
    looks = [config.side // 2**i in config.attention for i in range(len(widths))]
    theirs = diffusers.UNet2DModel(
        sample_size=config.side,
        in_channels=3,
        out_channels=3,
        block_out_channels=widths,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in looks],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(looks)],
        layers_per_block=config.depth,
        attention_head_dim=config.head_width,
        norm_eps=1e-6,
        downsample_padding=1,
        flip_sin_to_cos=False,
        freq_shift=1,
    )
    return theirs.double().eval()


def copy_residual(ours, theirs):
    for mine, other in [
        *(("norm1", "norm1"), ("conv1", "conv1"), ("time", "time_emb_proj")),
        *(("norm2", "norm2"), ("conv2", "conv2")),
    ]:
        getattr(theirs, other).load_state_dict(getattr(ours, mine).state_dict())
    if isinstance(ours.skip, nn.Conv2d):
        theirs.conv_shortcut.load_state_dict(ours.skip.state_dict())


def copy_attention(ours, theirs):
    theirs.group_norm.load_state_dict(ours.norm.state_dict())
    theirs.to_q.load_state_dict(ours.itself.query.state_dict())
    theirs.to_out[0].load_state_dict(ours.itself.out.state_dict())
    theirs.to_k.load_state_dict(ours.itself.key.state_dict())
    theirs.to_v.load_state_dict(ours.itself.value.state_dict())


def copy_stages(stages, blocks, samplers):
    """Pour the stages of one half of the network into diffusers' blocks."""
    stages = iter(stages)
    for block in blocks:
        attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
        for resnet, attention in zip(block.resnets, attentions, strict=True):
            layers = list(next(stages))
            copy_residual(layers[0], resnet)
            if attention is not None:
                copy_attention(layers[1], attention)
        resampler = getattr(block, samplers)
        if resampler is not None:
            layer = next(stages)[0] if samplers == "downsamplers" else layers[-1]
            resampler[0].conv.load_state_dict(layer.conv.state_dict())


def poured(ours, config):
    theirs = to_diffusers(ours, config)
    theirs.conv_in.load_state_dict(ours.encoder.first.state_dict())
    theirs.time_embedding.linear_1.load_state_dict(ours.encoder.clock[0].state_dict())
    theirs.time_embedding.linear_2.load_state_dict(ours.encoder.clock[2].state_dict())
    copy_stages(ours.encoder.stages, theirs.down_blocks, "downsamplers")
    copy_stages(ours.decoder, theirs.up_blocks, "upsamplers")
    for mine, other in zip(
        (ours.encoder.middle[0], ours.encoder.middle[2]), theirs.mid_block.resnets, strict=True
    ):
        copy_residual(mine, other)
    copy_attention(ours.encoder.middle[1], theirs.mid_block.attentions[0])
    theirs.conv_norm_out.load_state_dict(ours.last[0].state_dict())
    theirs.conv_out.load_state_dict(ours.last[2].state_dict())
    return theirs


WIDE = replace(SMALL, channels=128, head_width=64)  # diffusers has 32 groups at every width


@pytest.mark.parametrize(("clock", "tolerance"), [(0.0, 1e-11), (250.0, 1e-5)])
def test_it_is_diffusers_network(clock, tolerance):
    """To 11 digits, but for the sines of the clock, which diffusers takes in float32."""
    net = randomised(WIDE)
    xt, _, _ = inputs(WIDE)
    clock = torch.full((3,), clock, dtype=torch.float64)
    with torch.no_grad():
        mine, other = net(xt, clock), poured(net, WIDE)(xt, clock).sample
    assert (mine - other).abs().max() < tolerance * mine.abs().max()


def test_diffusers_network_would_notice_a_missing_skip_order():
    net = randomised(WIDE)
    xt, clock, _ = inputs(WIDE)
    other = poured(net, WIDE)
    emb = net.encoder.embed(clock)
    with torch.no_grad():
        first, second, *rest = net.encoder(xt, emb)
        swapped = net.decode([second, first, *rest], emb)
        assert (swapped - other(xt, clock).sample).abs().max() > 1e-3


# diffusers' ResnetBlock2D is ADM's in other hands


def blocks_gap(resampled, spoil=lambda block: None):
    """Distance of one residual block from diffusers', with the same weights."""
    resnet = pytest.importorskip("diffusers.models.resnet")
    config = replace(FORMS["adm"], channels=128)
    ways = {
        "down": {"down": unet._down(128, 512, config)},
        "up": {"up": unet._up(128, 512, config)},
        "wider": {"wider": unet.ResidualBlock(128, 256, 512, config)},
    }
    ((way, ours),) = ways[resampled].items()
    with torch.no_grad():
        for parameter in ours.double().parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator(1)))
    theirs = resnet.ResnetBlock2D(
        in_channels=128,
        out_channels=256 if way == "wider" else 128,
        temb_channels=512,
        time_embedding_norm="scale_shift",
        **{} if way == "wider" else {way: True},
    ).double()
    copy_residual(ours, theirs)
    spoil(ours)
    x = torch.randn(2, 128, 8, 8, generator=generator(2), dtype=torch.float64)
    emb = torch.randn(2, 512, generator=generator(3), dtype=torch.float64)
    with torch.no_grad():
        exact = theirs(x, emb)  # which takes silu(emb) itself
        return float((ours(x, nn.functional.silu(emb)) - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("resampled", ["down", "up", "wider"])
def test_residual_blocks_are_diffusers(resampled):
    assert blocks_gap(resampled) < 1e-12


@pytest.mark.parametrize(
    "spoil",
    [
        lambda block: setattr(block, "resample", nn.MaxPool2d(2)),
        lambda block: block.time.weight.data.copy_(block.time.weight.data.roll(128, 0)),
        lambda block: block.norm2.weight.data.add_(1),
    ],
    ids=["pooling", "shift for scale", "norm"],
)
def test_a_spoilt_residual_block_is_seen(spoil):
    assert blocks_gap("down", spoil) > 0.01


# The fast forms


@every_form
def test_the_fast_network_is_the_plain_one(config):
    plain, fast = randomised(config), accelerate(randomised(config))
    assert any(isinstance(m, SummedGroupNorm) for m in fast.modules())
    xt, clock, cond = inputs(config)
    outputs, slopes = [], []
    for net in (plain, fast):
        out = net(xt, clock, cond)
        slopes.append(torch.autograd.grad(out.square().sum(), list(net.parameters())))
        outputs.append(out.detach())
    assert (outputs[0] - outputs[1]).abs().max() < 1e-11 * outputs[0].abs().max()
    largest = max(slope.abs().max() for slope in slopes[0])
    for one, other in zip(*slopes, strict=True):
        assert (one - other).abs().max() < 1e-11 * largest


def test_fast_norm_and_upsampling_alone():
    x = 3 + torch.randn(2, 64, 6, 6, generator=generator(2))
    norm = nn.GroupNorm(8, 64, eps=1e-6)
    with torch.no_grad():
        norm.weight.normal_(generator=generator(3))
        norm.bias.normal_(generator=generator(4))
        expected = norm(x)
        norm.__class__ = SummedGroupNorm
        assert (norm(x) - expected).abs().max() < 1e-5
        norm.num_groups = 16  # a wrong grouping is seen
        assert (norm(x) - expected).abs().max() > 1e-2
    up = unet.Upsample(64)
    expected = up(x, None)
    up.__class__ = ExpandingUpsample
    assert (up(x, None) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("config", [DDPM, IDDPM, ADM, SMALL, WIDE])
def test_time_survives_the_norms(config):
    """A shift of each channel is lost where a channel is normalised alone."""
    with mock.patch.object(unet, "initialise_unet"):
        net = UNet(config, generator=None)
    norms = [m for m in net.modules() if isinstance(m, nn.GroupNorm)]
    assert all(n.num_channels // n.num_groups >= 4 for n in norms)
    assert {n.num_groups for n in norms} == {32} or config is SMALL


# What each input does


@every_form
def test_starts_at_zero_and_every_weight_learns(config):
    net = UNet(config, generator=generator()).double()
    xt, clock, cond = inputs(config)
    assert torch.equal(net(xt, clock, cond), torch.zeros(3, config.out_channels, 8, 8).double())
    net = randomised(config)
    net(xt, clock, cond).square().sum().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def test_label_text_mask_and_time_matter():
    for name, change in [
        ("adm", lambda c: setattr(c, "label", torch.tensor([1, 7, -1]))),
        ("text", lambda c: c.text.__setitem__((0, 3), 1.0)),
    ]:
        net, (xt, clock, cond) = randomised(FORMS[name]), inputs(FORMS[name])
        before = net(xt, clock, cond)
        change(cond)
        changed = (net(xt, clock, cond) - before).abs().amax((1, 2, 3)) > 1e-9
        assert changed.tolist() == [True, False, False]
    net, (xt, clock, cond) = randomised(FORMS["text"]), inputs(FORMS["text"])
    before = net(xt, clock, cond)
    cond.text[1, 2:] = 9.0  # hidden by the mask
    assert torch.allclose(net(xt, clock, cond), before, atol=1e-12)
    assert not torch.allclose(net(xt, clock + 1, cond), before, atol=1e-6)


def test_the_last_token_that_may_be_seen_joins_the_time():
    net, (_, clock, cond) = randomised(FORMS["text"]), inputs(FORMS["text"])
    before, last = net.encoder.embed(clock, cond), cond.mask.sum(1) - 1
    for row in range(3):
        for place in range(cond.text.shape[1]):
            cond.text[row, place] += 1.0
            changed = (net.encoder.embed(clock, cond) - before).abs().amax(1) > 1e-9
            cond.text[row, place] -= 1.0
            assert changed.tolist() == [r == row and place == last[r] for r in range(3)]


def test_a_patch_is_read_and_written_as_one_pixel():
    patched = replace(SMALL, side=16, patch=2, attention=(4,))
    net = randomised(patched)
    plain = UNet(replace(SMALL, in_channels=12, out_channels=12), generator=generator(0)).double()
    plain.load_state_dict(net.state_dict())
    x, clock = torch.randn(2, 3, 16, 16, generator=generator(3)).double(), torch.ones(2).double()
    rows = x.reshape(2, 3, 8, 2, 8, 2)  # channel, row, its half, column, its half
    small = rows.permute(0, 1, 3, 5, 2, 4).reshape(2, 12, 8, 8)
    made = plain.eval()(small, clock).reshape(2, 3, 2, 2, 8, 8)
    wide = made.permute(0, 1, 4, 2, 5, 3).reshape(2, 3, 16, 16)
    assert torch.allclose(net(x, clock), wide, atol=1e-10)


@every_form
@pytest.mark.parametrize("training", [True, False])
def test_compiles_as_one_graph(config, training):
    """PyTorch 2.11 once broke the decoder in pieces, silently; fullgraph=True raises."""
    net, (xt, clock, cond) = accelerate(randomised(config)).train(training), inputs(config)
    compiled = torch.compile(net, backend="eager", fullgraph=True, dynamic=False)
    assert torch.allclose(compiled(xt, clock, cond), net(xt, clock, cond), atol=1e-10)


def test_control_is_added_to_the_features():
    net, (xt, clock, _) = randomised(SMALL), inputs(SMALL)
    emb = net.encoder.embed(clock)
    features = net.encoder(xt, emb)
    zeros = [torch.zeros_like(x) for x in features]
    assert torch.equal(net(xt, clock, control=zeros), net(xt, clock))
    ones = [torch.ones_like(x) for x in features]
    expected = net.decode([x + 1 for x in features], emb)
    assert torch.equal(net(xt, clock, control=ones), expected)


def test_wrong_inputs_are_told():
    net, (xt, clock, _) = randomised(SMALL), inputs(SMALL)
    with pytest.raises(ValueError, match=r"takes \(B, 3, 8, 8\)"):
        net(xt[:, :, :4], clock)
    with pytest.raises(ValueError, match="knows no labels"):
        net(xt, clock, SimpleNamespace(label=torch.zeros(3).long(), text=None))
    with pytest.raises(ValueError, match="3 heads cannot share a width of 8"):
        Attention(8, 3)
