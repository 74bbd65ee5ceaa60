"""The encoder of captions: PyTorch's transformer, order, filling. Takes 5 seconds."""

from dataclasses import replace

import pytest
import torch
from truths import copy_blocks, generator, normal

from tutorial_lib.denoiser import Condition, NetworkDenoiser
from tutorial_lib.guidance import ClassifierFree
from tutorial_lib.networks.unet import UNet, UNetConfig
from tutorial_lib.schedule import CosineVP
from tutorial_lib.text import Captioned, Projected, TextConfig, TextEncoder

SMALL = TextConfig(vocabulary=11, length=7, width=12, depth=2, heads=3)
TOKENS = torch.tensor([[1, 5, 6, 2, 0, 0], [1, 6, 5, 2, 0, 0], [1, 3, 4, 8, 9, 2]])
EMPTY = Condition(text=torch.tensor([[1, 2, 0, 0, 0, 0]]))


def encoder(**others):
    return TextEncoder(replace(SMALL, **others), generator=generator(0)).double().eval()


def torchs(ours):
    """PyTorch's encoder with the same weights."""
    layer = torch.nn.TransformerEncoderLayer(
        **{"d_model": 12, "nhead": 3, "dim_feedforward": 48, "dropout": 0.0},
        **{"activation": "gelu", "batch_first": True, "norm_first": True},
    )
    theirs = (
        torch.nn.TransformerEncoder(
            layer, 2, norm=torch.nn.LayerNorm(12), enable_nested_tensor=False
        )
        .double()
        .eval()
    )
    copy_blocks(ours, theirs)
    theirs.norm.load_state_dict(ours.norm.state_dict())
    return theirs


@pytest.mark.parametrize("causal", [True, False])
def test_it_is_pytorchs_transformer(causal):
    ours = encoder(causal=causal)
    x = ours.words(TOKENS) + ours.places[:6]
    later = torch.ones(6, 6, dtype=torch.bool).triu(1) if causal else None
    with torch.no_grad():
        theirs = torchs(ours)(x, mask=later, src_key_padding_mask=TOKENS == 0)
        gap = (ours(TOKENS) - theirs).abs()[TOKENS != 0].max()
    assert float(gap) < 1e-12


def test_filling_is_not_looked_at():
    ours, longer = encoder(), torch.cat([TOKENS, torch.zeros(3, 1, dtype=torch.long)], 1)
    seen = TOKENS != 0
    assert torch.allclose(ours(longer)[:, :6][seen], ours(TOKENS)[seen], atol=1e-12)


def test_without_places_it_is_a_bag_of_words():
    """The first two captions are of the same words in another order."""
    bag = encoder(position_scale=0.0, causal=False)
    assert torch.allclose(bag(TOKENS)[0, 3], bag(TOKENS)[1, 3], atol=1e-12)
    for how in ({"causal": False}, {"position_scale": 0.0}):
        ordered = encoder(**how)(TOKENS)
        assert (ordered[0, 3] - ordered[1, 3]).abs().max() > 0.01


def test_a_causal_one_does_not_look_ahead():
    other = TOKENS.clone()
    other[:, 2] = 7
    for causal in (True, False):
        net = encoder(causal=causal).requires_grad_(False)
        before = (net(TOKENS) - net(other)).abs()[:, :2]
        assert (float(before.max()) < 1e-12) == causal


def test_captions_that_are_too_long_are_refused():
    with pytest.raises(ValueError, match=r"takes \(B, L\), L at most 7"):
        encoder()(torch.ones(2, 8, dtype=torch.long))


def captioned():
    """A network that is not yet trained, its every weight drawn."""
    config = UNetConfig(channels=8, multipliers=(1, 2), depth=1, attention=(4,), side=8)
    net = UNet(replace(config, dropout=0.0, text_width=12), generator=generator(1)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator(2)))
    return Captioned(net, encoder()).eval().requires_grad_(False)


def test_a_captioned_network_reads_the_features_of_its_encoder():
    both, x, clock = captioned(), normal(3, 3, 8, 8), torch.ones(3).double()
    told = Condition(text=both.encoder(TOKENS), mask=TOKENS != 0)
    assert torch.equal(both(x, clock, Condition(text=TOKENS)), both.net(x, clock, told))
    other = both(x, clock, Condition(text=TOKENS.roll(1, 0)))
    assert (other - both(x, clock, Condition(text=TOKENS))).abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("w", [-1.0, 0.0, 2.5])
def test_guidance_goes_from_the_empty_caption_to_what_is_said(w):
    model = NetworkDenoiser(captioned(), CosineVP(), "v")
    x, told = normal(3, 3, 8, 8), Condition(text=TOKENS)
    guided = ClassifierFree(model, w, null=EMPTY)(x, 0.4, told)
    nothing = Condition(text=EMPTY.text.expand(3, -1))
    c, u = model(x, 0.4, told), model(x, 0.4, nothing)
    for name in ("x0", "eps"):
        right = (1 + w) * getattr(c, name) - w * getattr(u, name)
        assert torch.allclose(getattr(guided, name), right, atol=1e-10)
    assert (c.x0 - u.x0).abs().max() > 1e-3


def test_features_are_guided_with_their_masks():
    both = captioned()
    model = NetworkDenoiser(both.net, CosineVP(), "v")
    told, nothing = both.told(Condition(text=TOKENS)), both.told(EMPTY)
    x = normal(3, 3, 8, 8)
    guided = ClassifierFree(model, 1.5, null=nothing)(x, 0.4, told)
    by_tokens = ClassifierFree(NetworkDenoiser(both, CosineVP(), "v"), 1.5, null=EMPTY)
    again = by_tokens(x, 0.4, Condition(text=TOKENS))
    assert torch.allclose(guided.x0, again.x0, atol=1e-10)


def test_what_the_null_condition_does_not_replace_is_told_to_both():
    """Labels are dropped by default; of a caption nothing is then said that could be left out."""
    model = NetworkDenoiser(captioned(), CosineVP(), "v")
    x, told = normal(3, 3, 8, 8), Condition(text=TOKENS)
    assert torch.equal(ClassifierFree(model, 3.0)(x, 0.4, told).x0, model(x, 0.4, told).x0)


def test_a_network_reads_projected_features_and_noise_on_them():
    config = UNetConfig(
        **{"channels": 8, "multipliers": (1,), "depth": 1, "attention": (8,), "side": 8},
        **{"dropout": 0.0, "text_width": 12},
    )
    net = UNet(config, generator=generator(1)).double()
    torch.nn.init.normal_(net.last[-1].weight, generator=generator(2))
    for name, x in net.named_parameters():
        if name.endswith("text.out.weight"):
            torch.nn.init.normal_(x, generator=generator(3))
    ours = Projected(net, 5, 12, generator=generator(4)).double()
    xt, clock = normal(2, 3, 8, 8, seed=5), torch.tensor([0.1, 0.4], dtype=torch.float64)
    features, noise = normal(2, 4, 5, seed=6), normal(2, 4, 5, seed=7)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    with torch.no_grad():
        seen = features @ ours.project.weight.T + ours.project.bias
        plain = ours(xt, clock, Condition(text=features, mask=mask))
        assert torch.allclose(plain, net(xt, clock, Condition(text=seen, mask=mask)), atol=1e-12)
        spoilt = ours(xt, clock, Condition(text=features, mask=mask, hint=noise))
        again = ours(xt, clock, Condition(text=features + noise, mask=mask))
    assert torch.allclose(spoilt, again, atol=1e-12) and not torch.allclose(spoilt, plain)
