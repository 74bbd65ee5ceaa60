"""DALL-E 2: what its prior and its decoder see, exactly, and their recipes. 30 seconds."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch.nn import functional as F
from truths import generator, normal, relative, variants

from tutorial_lib import lora, pretrained, unclip
from tutorial_lib.captions import LENGTH, all_claims, read_tokens
from tutorial_lib.clip import CLIP, CLIPConfig
from tutorial_lib.denoiser import Condition, MixtureDenoiser, NetworkDenoiser
from tutorial_lib.guidance import ClassifierFree
from tutorial_lib.losses import x0_error
from tutorial_lib.mixtures import GaussianMixture
from tutorial_lib.networks.unet import UNet, UNetConfig, last_seen
from tutorial_lib.pretrained import empty_caption
from tutorial_lib.recipes import unclip_decoder, unclip_prior
from tutorial_lib.recipes.unclip import UNCLIP
from tutorial_lib.recipes.unclip_decoder import decoder_objective, fresh_decoder, kept
from tutorial_lib.recipes.unclip_prior import Place, Probe, attributes, prior_objective
from tutorial_lib.samplers import slerp
from tutorial_lib.schedule import CosineVP
from tutorial_lib.shape_world import HELD_OUT, draw_scenes, render
from tutorial_lib.text import Captioned, TextConfig, TextEncoder
from tutorial_lib.train import TrainConfig, train
from tutorial_lib.unclip import (
    PICTURE_TOKENS,
    Prior,
    PriorConfig,
    PriorMLP,
    PriorMLPConfig,
    WithPicture,
    best_of,
    said,
    scaled,
    text_diff,
)

TEXT = TextConfig(vocabulary=9, length=8, width=16, depth=2, heads=2)
D = 5


def shaken(net, seed=9, size=0.2):
    """The network in float64 with all its weights moved: nothing is zero by design."""
    net = net.double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator(seed), dtype=p.dtype))
    return net


def units(*shape, seed=0):
    return F.normalize(normal(*shape, seed=seed), dim=-1)


# the prior


def prior():
    return shaken(Prior(PriorConfig(TEXT, D), generator=generator(1)))


def looks(net, tokens):
    """Which outputs (rows) of the transformer depend on which of its inputs (columns)."""
    leaves = [normal(1, D, seed=2), torch.tensor([0.3]).double(), normal(1, D, seed=3)]
    hint, clock, xt = (x.requires_grad_() for x in leaves)
    out = net.features(xt, clock, Condition(text=tokens, hint=hint))[0]
    rows = []
    for row in out:
        grads = torch.autograd.grad(
            (row * normal(len(row), seed=4)).sum(),
            [net.words.places, hint, clock, xt, net.query],
            retain_graph=True,
            allow_unused=True,
        )
        words = grads[0][: tokens.shape[1]].abs().amax(1)
        rest = [torch.zeros(1) if g is None else g.abs().max()[None] for g in grads[1:]]
        rows.append(torch.cat([words, *rest]) > 0)
    return torch.stack(rows)


def allowed(tokens):
    """Each looks back only, and at no filling but itself."""
    length = tokens.shape[1] + 4
    there = torch.cat([tokens[0] != 0, torch.ones(4, dtype=torch.bool)])
    return torch.ones(length, length, dtype=torch.bool).tril() & (there | torch.eye(length).bool())


CAPTION = torch.tensor([[1, 5, 3, 2, 0, 0]])


@pytest.mark.parametrize("tokens", [CAPTION, CAPTION[:, :4]], ids=["filled", "whole"])
def test_each_token_sees_those_before_it_and_no_filling(tokens):
    assert torch.equal(looks(prior(), tokens), allowed(tokens))


def test_one_that_sees_what_follows_or_the_filling_is_found(monkeypatch):
    truth = allowed(CAPTION)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "tril", lambda x: x)
        assert not torch.equal(looks(prior(), CAPTION), truth)
    monkeypatch.setattr(unclip, "FILLING", -1)
    assert not torch.equal(looks(prior(), CAPTION), truth)


def test_filling_changes_nothing_and_all_else_does(monkeypatch):
    net, xt, clock, hint = prior(), normal(1, D), normal(1, seed=5), normal(1, D, seed=6)
    asked = Condition(text=CAPTION, hint=hint)
    short = replace(asked, text=CAPTION[:, :4])
    answer = net(xt, clock, asked)
    assert (net(xt, clock, short) - answer).abs().max() < 1e-12
    others = [
        (xt + 1, clock, asked),
        (xt, clock + 1, asked),
        (xt, clock, replace(asked, hint=hint + 1)),
        (xt, clock, replace(asked, text=CAPTION[:, [0, 2, 1, 3, 4, 5]])),  # another order
    ]
    assert all((net(*other) - answer).abs().max() > 1e-3 for other in others)
    with torch.no_grad():
        net.query += normal(16, seed=7)  # its output is the answer
    assert (net(xt, clock, asked) - answer).abs().max() > 1e-3
    monkeypatch.setattr(unclip, "FILLING", -1)
    assert (net(xt, clock, short) - net(xt, clock, asked)).abs().max() > 1e-3


# a case whose answer is known: z_0 = A h + b_k + s noise, h CLIP's embedding, k said in a word

SCHEDULE, SPREAD, KINDS = CosineVP(), 0.5, 3
TURN = torch.linalg.qr(normal(D, D, seed=11)).Q
OFFSETS = 1.5 * normal(KINDS, D, seed=12)
LAW = GaussianMixture(
    torch.ones(KINDS) / KINDS, OFFSETS, SPREAD**2 * torch.eye(D).double().expand(KINDS, D, D)
)


def pairs(n, seed):
    h, k = normal(n, D, seed=seed), torch.randint(KINDS, (n,), generator=generator(seed + 1))
    z0 = h @ TURN + OFFSETS[k] + SPREAD * normal(n, D, seed=seed + 2)
    tokens = torch.stack([torch.full((n,), 1), 3 + k, torch.full((n,), 2)], 1)
    return z0.float(), h.float(), tokens


def exact(zt, t, h, tokens, *, told):
    """E[z_0 | z_t, h], and k too where it is told: A h is known, the rest is a mixture."""
    level, known = SCHEDULE.at(t, like=zt.double()), h.double() @ TURN
    best = MixtureDenoiser(LAW, SCHEDULE, torch.arange(KINDS))
    cond = Condition(label=tokens[:, 1] - 3) if told else None
    return known + best(zt.double() - level.alpha * known, t, cond).x0


def taught(net, hidden=lambda h: h):
    def objective(net, batch, draw):
        z0, h, tokens = batch
        t = 1 - 0.999 * torch.rand(len(z0), generator=draw)
        cond = Condition(text=tokens, hint=hidden(h))
        return x0_error(NetworkDenoiser(net, SCHEDULE, "x0"), z0, t, cond, generator=draw)

    config = TrainConfig(steps=600, batch_size=256, learning_rate=5e-3, ema_decay=0.99, warmup=50)
    model = NetworkDenoiser(train(net, pairs(50_000, 20), objective, config).ema, SCHEDULE, "x0")

    def error(*, told):
        """Its mean squared distance, a coordinate, from the exact answer."""
        z0, h, tokens = pairs(4000, 40)
        found = []
        for t in (0.2, 0.5, 0.8):
            zt = SCHEDULE.add_noise(z0, normal(len(z0), D, seed=50).float(), t)
            with torch.no_grad():
                got = model(zt, t, Condition(text=tokens, hint=hidden(h))).x0
            found.append(float((got - exact(zt, t, h, tokens, told=told)).square().mean()))
        return max(found)

    return error


def perceptron():
    return PriorMLP(PriorMLPConfig(64, 2, D), generator=generator(1))


def test_a_transformer_learns_what_the_words_say_and_the_embedding_does_not():
    small = replace(TEXT, length=3, width=32)
    error = taught(Prior(PriorConfig(small, D), generator=generator(1)))
    assert error(told=True) < 0.05  # of coordinates whose variance is above 1
    assert error(told=False) > 0.4  # it is another answer: the check can tell


def test_layers_learn_what_can_be_known_without_words():
    error = taught(perceptron())
    assert error(told=False) < 0.05
    assert error(told=True) > 0.4


def test_without_the_embedding_neither_is_reached():
    error = taught(perceptron(), hidden=torch.zeros_like)
    assert min(error(told=False), error(told=True)) > 0.2


# embeddings


def test_scaled_embeddings_have_the_noise_s_size():
    z = scaled(units(7, 64))
    assert (z.square().mean(1) - 1).abs().max() < 1e-12


def test_both_halves_of_what_a_prior_is_told_are_dropped_together():
    shape = UNetConfig(channels=8, multipliers=(1,), depth=1, attention=(), dropout=0.0, side=8)
    clip = CLIP(CLIPConfig(shape, replace(TEXT, depth=1), D), generator=generator(0)).eval()
    cond, null = said(clip, CAPTION.repeat(3, 1)), said(clip, torch.tensor([[1, 2, 0, 0, 0, 0]]))
    assert (cond.hint - scaled(clip.text(CAPTION))).abs().max() < 1e-6
    assert not cond.hint.requires_grad
    asked = []

    def listening(xt, t, cond):
        asked.append(cond)
        return NetworkDenoiser(torch.nn.Identity(), SCHEDULE, "x0")(xt, t, cond)

    listening.schedule = SCHEDULE
    with pytest.raises(TypeError):  # the identity takes no condition: it was asked, which will do
        ClassifierFree(listening, 1.0, null=null)(torch.zeros(3, D), 0.5, cond)
    for name in ("text", "hint"):
        told, dropped = getattr(asked[0], name).chunk(2)
        assert torch.equal(told, getattr(cond, name))
        assert torch.equal(dropped, getattr(null, name).expand_as(told))


def angle(a, b):
    return 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))


def chord(a, b, share):
    return F.normalize(torch.lerp(a, b, share), dim=1)


def backwards(a, b, share):
    return slerp(b, a, share)


def walks_evenly(walk):
    a, b = units(50, 64, seed=1), units(50, 64, seed=2)
    whole = angle(a, b)
    for share in (0.0, 0.25, 0.5, 0.9, 1.0):
        c = walk(a, b, share)
        if not (
            (c.norm(dim=1) - 1).abs().max() < 1e-12
            and (angle(a, c) - share * whole).abs().max() < 1e-7
            and (angle(c, b) - (1 - share) * whole).abs().max() < 1e-7
        ):
            return False
    return bool((walk(a, b, 0.5) - F.normalize(a + b, dim=1)).abs().max() < 1e-12)


def test_slerp_of_unit_vectors_turns_at_one_speed():
    assert walks_evenly(slerp)
    a = units(5, 64)
    assert relative(slerp(a, a, 0.3), a) < 1e-12
    near = F.normalize(a + 1e-9 * units(5, 64, seed=3), dim=1)
    assert (slerp(a, near, 0.3) - torch.lerp(a, near, 0.3)).abs().max() < 1e-15


@variants(chord=chord, straight=torch.lerp, backwards=backwards)
def test_another_walk_is_found(wrong):
    assert not walks_evenly(wrong)


def turns_towards_the_difference(diff):
    image, before, after = (units(9, 64, seed=k) for k in (1, 2, 3))
    aim = (after - before) / (after - before).norm(dim=1, keepdim=True)
    ends = (diff(image, before, after, 0.0) - image, diff(image, before, after, 1.0) - aim)
    third = diff(image, before, after, torch.tensor(1 / 3, dtype=torch.float64))
    return (
        max(float(end.abs().max()) for end in ends) < 1e-12
        and float((angle(image, third) - angle(image, aim) / 3).abs().max()) < 1e-7
    )


def test_a_text_diff_ends_at_the_difference_of_the_captions():
    assert turns_towards_the_difference(text_diff)


@variants(
    swapped=lambda z, a, b, share: text_diff(z, b, a, share),
    not_normalised=lambda z, a, b, share: slerp(z, b - a, share),
    towards_the_caption=lambda z, a, b, share: slerp(z, b, share),
    added=lambda z, a, b, share: z + share * (b - a),
)
def test_another_text_diff_is_found(wrong):
    assert not turns_towards_the_difference(wrong)


def keeps_the_closest(choose):
    candidates, text = 2 * normal(40, 4, 6), normal(40, 6, seed=1)
    by_hand = [
        max(row, key=lambda z, y=y: float(z @ y)) for row, y in zip(candidates, text, strict=True)
    ]
    return torch.equal(choose(candidates, text), torch.stack(by_hand))


def test_the_best_has_the_largest_product():
    assert keeps_the_closest(best_of)
    one = normal(3, 1, 6)
    assert torch.equal(best_of(one, normal(3, 6)), one[:, 0])


@variants(
    worst=lambda z, y: best_of(z, -y),
    first=lambda z, y: z[:, 0],
    of_others=lambda z, y: best_of(z, y.roll(1, 0)),
    by_angle=lambda z, y: z[
        torch.arange(len(z)), F.cosine_similarity(z, y[:, None], dim=2).argmax(1)
    ],
)
def test_another_choice_is_found(wrong):
    assert not keeps_the_closest(wrong)


# the decoder

NET = UNetConfig(
    channels=8, multipliers=(1, 2), depth=1, attention=(8, 4), dropout=0.0, side=8, text_width=16
)


def base_and_decoder():
    """A network that reads captions, its weights all moved, and a decoder made of it."""
    plain, own = (
        Captioned(UNet(shape, generator=generator(k)), TextEncoder(TEXT, generator=generator(k)))
        for k, shape in enumerate((NET, replace(NET, embedding_width=D)))
    )
    plain, own = shaken(plain), own.double()
    fresh = own.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert fresh == ["net.encoder.picture.weight", "net.encoder.picture.bias"]
    return plain, WithPicture(own, generator=generator(5)).double()


def question(n=3):
    tokens = torch.tensor([[1, 5, 3, 2, 0, 0], [1, 4, 2, 0, 0, 0], [1, 2, 0, 0, 0, 0]])[:n]
    return normal(n, 3, 8, 8), normal(n, seed=1), Condition(text=tokens)


@torch.no_grad()
def apart(net, plain, z=None):
    """How far a decoder's answers are from the base's, row by row, (B,)."""
    xt, clock, cond = question()
    told = replace(cond, image_embedding=z)
    return (net(xt, clock, told) - plain(xt, clock, cond)).abs().flatten(1).amax(1)


def test_without_a_picture_it_is_the_base_it_was_made_of():
    plain, net = base_and_decoder()
    assert apart(net, plain).max() < 1e-12
    assert apart(net, plain, torch.zeros(3, D).double()).max() < 1e-12
    assert apart(net, plain, scaled(units(3, D))).min() > 1e-3


def test_each_row_may_be_without():
    plain, net = base_and_decoder()
    z = scaled(units(3, D))
    z[1] = 0
    found = apart(net, plain, z)
    assert found[1] < 1e-12 and found[[0, 2]].min() > 1e-3


def test_what_was_zero_no_longer_is_once_it_has_learned():
    plain, net = base_and_decoder()
    net.captioned.net.encoder.picture.bias.data.fill_(0.3)
    assert apart(net, plain).min() > 1e-3
    assert torch.equal(apart(net, plain), apart(net, plain, torch.zeros(3, D).double()))


def test_the_tokens_alone_are_looked_at():
    plain, net = base_and_decoder()
    net.captioned.net.encoder.picture.weight.data.zero_()  # nothing joins the time's embedding
    z = scaled(units(3, D))
    first = apart(net, plain, z)
    assert first.min() > 1e-4
    net.picture.weight.data.mul_(2)
    assert (apart(net, plain, z) - first).abs().min() > 1e-5


def heard(net, z):
    """What a decoder's layers are given: the caption's end, and the tokens looked at."""
    xt, clock, cond = question()
    ends, looked, encoder = [], [], net.captioned.net.encoder
    hooks = [encoder.end.register_forward_pre_hook(lambda _, args: ends.append(args[0]))]
    block = next(m for m in encoder.modules() if getattr(m, "text", None) is not None)
    hooks.append(block.text.register_forward_pre_hook(lambda _, args: looked.append(args[1:])))
    with torch.no_grad():
        net(xt, clock, replace(cond, image_embedding=z))
        told = net.captioned.told(cond)
    for hook in hooks:
        hook.remove()
    return ends[0], *looked[0], told


def test_four_tokens_come_first_and_the_end_is_still_the_caption_s():
    _, net = base_and_decoder()
    z = scaled(units(3, D))
    z[1] = 0
    end, text, mask, told = heard(net, z)
    assert torch.equal(end, last_seen(told.text, told.mask))
    made = net.picture(z).view(3, PICTURE_TOKENS, 16)
    assert PICTURE_TOKENS == 4 and torch.equal(text[:, :4], made)
    assert torch.equal(text[:, 4:], told.text) and torch.equal(mask[:, 4:], told.mask)
    assert mask[:, :4].all(1).tolist() == [True, False, True] and not mask[1, :4].any()
    wrong = last_seen(text, mask)  # what the network alone would take for the end
    assert not torch.equal(end, wrong)


def test_guidance_drops_the_picture_and_the_caption():
    plain, net = base_and_decoder()
    xt, _, cond = question()
    cond = replace(cond, image_embedding=scaled(units(3, D)))
    empty = torch.tensor([[1, 2, 0, 0, 0, 0]])
    null = Condition(text=empty, image_embedding=torch.zeros(1, D).double())
    models = [NetworkDenoiser(n, SCHEDULE, "v") for n in (net, plain)]
    with torch.no_grad():
        guided = ClassifierFree(models[0], 1.5, null=null)(xt, 0.4, cond).x0
        without = models[1](xt, 0.4, Condition(text=empty.repeat(3, 1))).x0
        by_hand = 2.5 * models[0](xt, 0.4, cond).x0 - 1.5 * without
    assert (guided - by_hand).abs().max() < 1e-12
    caption_alone = 2.5 * models[0](xt, 0.4, cond).x0 - 1.5 * models[1](xt, 0.4, question()[2]).x0
    assert (guided - caption_alone).abs().max() > 1e-3


def test_the_course_s_base_is_unchanged_without_a_picture():
    net, base = fresh_decoder(UNCLIP["shapes_decoder"].tiny), pretrained.text_to_image().net
    xt, clock = normal(2, 3, 32, 32).float(), torch.tensor([0.5, -0.5])
    cond = Condition(text=empty_caption().text.repeat(2, 1))
    told = replace(cond, image_embedding=scaled(units(2, 64)).float())
    with torch.no_grad():
        answer = base(xt, clock, cond)
        assert (net(xt, clock, cond) - answer).abs().max() < 1e-5  # norms are summed otherwise
        assert (net(xt, clock, told) - answer).abs().max() > 1e-2


# the recipes


def tiny(name, tmp_path):
    recipe = UNCLIP[name]
    found = recipe.run(name, recipe.tiny, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == found
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").open()]
    assert len(losses) == recipe.tiny.steps
    kept = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    assert {x.dtype for x in kept.values()} == {torch.bfloat16}
    return found, losses, {key: x.float() for key, x in kept.items()}, recipe


@pytest.mark.parametrize("name", ["shapes_prior", "shapes_prior_mlp"])
def test_a_prior_trains_and_leaves_its_record(tmp_path, name):
    found, losses, kept, recipe = tiny(name, tmp_path)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert "cosine to the picture's" in recipe.headline(found)
    net = unclip_prior.fresh_prior(recipe.tiny).eval()
    net.load_state_dict(kept)
    again = unclip_prior.prior_tests(net, recipe.tiny, pretrained.clip())
    for kind in ("whole", "partial"):
        assert list(found[kind]) == ["picture", "text", "prior w=0", "prior w=1"]
        assert found[kind]["picture"]["cosine"] == pytest.approx(1, abs=1e-4)
        assert found[kind]["picture"]["gap"] == 0 and found[kind]["text"]["gap"] > 0.3
        for row in ("text", "prior w=0"):
            for value in ("cosine", "norm", "nearest", "gap"):
                assert again[kind][row][value] == pytest.approx(found[kind][row][value], abs=0.02)


def test_a_decoder_is_tuned_and_leaves_its_record(tmp_path):
    found, _, kept, recipe = tiny("shapes_decoder", tmp_path)
    config = recipe.tiny
    rows = [(row["told"], row["w"]) for row in found["table"]]
    assert rows == [(told, w) for told in ("picture", "both", "caption") for w in config.scales]
    assert "from its embedding" in recipe.headline(found)
    assert found["real"]["objects"] > 0.8 and found["real"]["others"] > 0.1
    net = fresh_decoder(config)
    lora.load(net, kept)
    assert kept.keys() == lora.trained(net).keys() and len(kept) < len(net.state_dict()) * 0.7
    assert found["learned"] == sum(x.numel() for x in kept.values())
    sheet = Image.open(tmp_path / "samples.jpg")
    assert sheet.size == (6 * 32, (1 + config.varied) * 32)
    first = torch.tensor(np.asarray(sheet)[:32]).view(32, 6, 32, 3)
    scenes = draw_scenes(6, generator=generator(1), held_out=HELD_OUT)
    real = render(scenes).permute(2, 0, 3, 1)
    assert (first / 127.5 - 1 - real).abs().mean() < 0.03  # JPEG


class Listening(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.asked = torch.nn.Parameter(torch.ones(())), []

    def forward(self, xt, clock, cond):
        self.asked.append(cond)
        return self.one * xt


def share_near(rows, share):
    return float(rows.double().mean()) == pytest.approx(
        share, abs=6 * math.sqrt(share * (1 - share) / len(rows))
    )


def test_captions_and_pictures_are_dropped_apart_and_as_often_as_is_said():
    config, n, net = UNCLIP["shapes_decoder"].tiny, 4000, Listening()
    batch = (
        torch.zeros(n, 3, 32, 32, dtype=torch.uint8),
        torch.full((n, LENGTH), 7),
        torch.ones(n, 64),
    )
    assert decoder_objective(config)(net, batch, generator(1)).shape == (n,)
    silent = (net.asked[0].text == empty_caption().text).all(1)
    unseen = (net.asked[0].image_embedding == 0).all(1)
    assert torch.equal(unseen, (net.asked[0].image_embedding == 0).any(1))
    assert (
        share_near(silent, 0.5) and share_near(unseen, 0.1) and share_near(silent & unseen, 0.05)
    )
    assert not share_near(silent & unseen, 0.1)  # dropped together, it would be this


def test_a_prior_s_caption_and_its_embedding_are_dropped_together():
    config, n, net = UNCLIP["shapes_prior"].tiny, 4000, Listening()
    null = replace(empty_caption(), hint=torch.full((1, 64), 5.0))
    batch = (torch.ones(n, 64), torch.ones(n, 64), torch.full((n, LENGTH), 7))
    for predicts in ("x0", "eps"):
        loss = prior_objective(replace(config, predicts=predicts), null)(net, batch, generator(1))
        silent = (net.asked[-1].text == null.text).all(1)
        assert loss.shape == (n,) and share_near(silent, 0.1)
        assert torch.equal(silent, (net.asked[-1].hint == 5).all(1))


def test_a_prior_is_trained_on_what_it_predicts():
    """Of a net that answers x_t itself, the errors of x_0 and of the noise are known."""
    config, n = UNCLIP["shapes_prior"].tiny, 200_000
    null = replace(empty_caption(), hint=torch.zeros(1, 8))
    x0 = 2 * normal(n, 8, seed=3).float()
    batch = (x0, torch.zeros(n, 8), empty_caption().text.expand(n, -1))
    t = torch.linspace(1e-3, 1, 20_001).double()
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    truth = {
        "x0": (4 * (1 - alpha) ** 2 + sigma**2).mean(),
        "eps": ((1 - sigma) ** 2 + 4 * alpha**2).mean(),
    }
    found = {}
    for predicts in truth:
        cost = prior_objective(replace(config, predicts=predicts), null)
        found[predicts] = float(cost(Listening(), batch, generator(1)).detach().mean())
    for predicts, value in truth.items():
        assert found[predicts] == pytest.approx(float(value), rel=0.02)
    assert found["x0"] != pytest.approx(found["eps"], rel=0.02)


# what the recipes measure


def some_scenes(n=400, seed=0, **how):
    return draw_scenes(n, generator=generator(seed), **how)


def test_what_is_kept_of_scenes_themselves_is_everything():
    scenes = some_scenes()
    assert set(kept(scenes, scenes).values()) == {1.0}


def one_less(scenes):
    gone = scenes.present.clone()
    gone[torch.arange(len(gone)), gone.sum(1) - 1] = False
    return replace(scenes, present=gone)


@pytest.mark.parametrize(
    ("spoil", "lost"),
    [
        (lambda s: replace(s, centre=-s.centre), {"relation", "place"}),
        (lambda s: replace(s, colour=(s.colour + 1) % 8), {"colour", "objects"}),
        (lambda s: replace(s, shape=(s.shape + 1) % 6), {"shape", "objects"}),
        (one_less, {"count", "colour", "shape", "size", "objects"}),
    ],
    ids=["turned round", "other colours", "other shapes", "one less"],
)
def test_what_is_lost_is_found(spoil, lost):
    scenes = some_scenes()
    shares = kept(scenes, spoil(scenes))
    for name, value in shares.items():
        if name in lost:
            assert value < 0.2
        elif value is not None and name != "place" and "objects" not in lost:
            assert value == 1.0


def test_exchanged_colours_keep_every_colour_but_not_the_objects():
    scenes = some_scenes(objects=(2,))
    swapped = replace(scenes, colour=scenes.colour[:, [1, 0, 2]])
    shares, differ = kept(scenes, swapped), scenes.colour[:, 0] != scenes.colour[:, 1]
    alike = all_claims(scenes)
    same = (alike.size[:, 0] == alike.size[:, 1]) & (alike.shape[:, 0] == alike.shape[:, 1])
    assert shares["colour"] == shares["shape"] == 1.0
    assert shares["objects"] == pytest.approx(float((~differ | same).double().mean()), abs=1e-4)
    assert 0.1 < shares["objects"] < 0.4


def test_a_probe_reads_what_lies_in_embeddings_and_only_that():
    scenes, others = some_scenes(3000), some_scenes(500, seed=1)
    spread = normal(19, 64)
    code = [attributes(s).double() @ spread for s in (scenes, others)]
    probe = Probe(code[0], scenes)
    assert min(probe.shares(code[1], others).values()) == 1.0
    assert max(probe.shares(code[1].roll(1, 0), others).values()) < 0.6
    without = code[1] - attributes(others)[:, 3:11].double() @ spread[3:11]
    blind = probe.shares(without, others)
    assert blind["colour"] < 0.05 and blind["shape"] == blind["size"] == 1.0


def test_places_are_measured_as_by_hand():
    scenes, bank = some_scenes(100), scaled(units(1000, 64, seed=1))
    image, text = bank[:100], units(100, 64, seed=2)
    place = Place(bank, Probe(bank, some_scenes(1000)), image, scenes)
    same = place.of(image)
    assert (same["cosine"], same["norm"], same["gap"]) == (1, 1, 0) and same["nearest"] < 1e-4
    shift = scaled(units(1, 64, seed=3))
    assert place.of(image + 0.3 * shift)["gap"] == pytest.approx(0.3, abs=1e-4)
    assert place.of(3 * image)["norm"] == pytest.approx(3, abs=1e-4)
    by_hand = (text[:, None] - bank / 8).norm(dim=2).amin(1).mean()
    assert place.of(scaled(text))["nearest"] == pytest.approx(float(by_hand), abs=1e-4)
    several = torch.stack([-image, image, 2 * image, 0 * image], 1)
    found = place.of_many(several, image)
    assert found["cosine"] == -1 and found["best of 2"]["cosine"] == 1
    assert found["best of 2"]["norm"] == 1 and found["best of 4"]["norm"] == 2
    assert found["spread"] == pytest.approx((2 + 3 + 1 + 1 + 1 + 2) / 6, abs=1e-4)


def test_the_empty_caption_is_what_priors_and_decoders_drop_to():
    clip = pretrained.clip()
    null = said(clip, empty_caption().text)
    assert read_tokens(null.text) == [""] and null.hint.shape == (1, 64)
    assert float(null.hint.square().mean()) == pytest.approx(1, abs=1e-5)
    assert unclip_decoder.LEAST == unclip_prior.LEAST > 0
