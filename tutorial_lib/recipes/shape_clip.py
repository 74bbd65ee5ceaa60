"""Train CLIP on the shape world, of clean or of noisy pictures, and test what it understands."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import torch
from torch import Generator, Tensor

from tutorial_lib.captions import (
    END,
    UNSAID,
    Claims,
    all_claims,
    caption_tokens,
    draw_claims,
    holds,
    write_tokens,
)
from tutorial_lib.cifar10 import to_floats
from tutorial_lib.clip import CLIP, CLIPConfig, contrastive_loss, information_bound, pair_logits
from tutorial_lib.denoiser import log_snr_clock
from tutorial_lib.pretrained import CLIP_CONFIG
from tutorial_lib.recipes.record import (
    Metrics,
    TrainingRun,
    origin,
    save_weights,
    write_metrics,
    written_by,
)
from tutorial_lib.recipes.shapes import WORLD, captioned_pictures, scene_pool
from tutorial_lib.schedule import CosineVP
from tutorial_lib.shape_world import COLOURS, HELD_OUT, SEEN, SHAPES, Scenes, draw_scenes, render
from tutorial_lib.train import train

SCHEDULE = CosineVP()
PROBED = (0.0, 0.2, 0.4, 0.6, 0.8)  # times at which a noise-aware one is tested
PAIRS = tuple(product(COLOURS, SHAPES))


@dataclass(frozen=True, kw_only=True)
class CLIPRun(TrainingRun):
    """Fix a CLIP, how long it trains on how many scenes, and on how many it is tested.

    A `noisy` one is given x_t, t uniform, and told t: GLIDE's (Nichol et al. 2021, section 2.4).
    A `careful` one must choose also among captions with their relation turned round: NegCLIP's
    hard negatives (Yuksekgonul et al. 2023, section 4).
    """

    network: CLIPConfig = field(default=CLIP_CONFIG)
    images: int = 1_000_000
    noisy: bool = False
    careful: bool = False
    tested: int = 5000
    ema_decay: float = 0.999
    graph: bool = False


def run_clip(name: str, config: CLIPRun, out: Path) -> Metrics:
    """Train both encoders, test them, and leave the record with the weights."""
    data = clip_data(config)
    net = CLIP(config.network, generator=Generator().manual_seed(config.seed))
    net = net.to(config.device, memory_format=torch.channels_last)
    if config.compiled:
        net.compile(dynamic=False, fullgraph=True)
    schedule = config.schedule(ema_decay=config.ema_decay, graph=config.graph)
    about = {"checkpoint": config.checkpoint_in(out), "about": written_by(name)}
    result = train(net, data, objective(config), schedule, **about, watch=config.journal(out))
    save_weights(result.ema, out / "weights.safetensors", origin(name, config.device))
    tests = {
        str(t): clip_tests(result.ema, config, t) for t in (PROBED if config.noisy else (0.0,))
    }
    found = {"data": WORLD, "at": tests, "scale": round(result.ema.scale.item(), 2)}
    found |= {"parameters": sum(p.numel() for p in net.parameters())}
    return write_metrics(out, name, config, found | {"seconds": round(result.seconds, 1)})


def headline(found: Metrics) -> str:
    """Say in a few words what the encoders have understood."""
    seen, unseen = (100 * found["at"]["0.0"]["zero_shot"][k] for k in ("seen", "unseen"))
    return f"zero-shot {seen:.0f} % of seen and {unseen:.0f} % of unseen pairs"


def clip_data(config: CLIPRun) -> tuple[Tensor, ...]:
    """Return pixels and tokens (n, L) to train on; of a careful run, of false captions too.

    They are those of the same scenes with their relation turned round, in words of their own, and
    empty where there is none or where it would be true.
    """
    if not config.careful:
        return captioned_pictures(config.images, seed=config.seed, device=config.device)
    parts = scene_pool(config.images, seed=config.seed, device=config.device, held_out=HELD_OUT)
    generator = Generator(config.device).manual_seed(config.seed + 1)
    pool = [(pixels, *_both(scenes, generator)) for scenes, pixels, _ in parts]
    return tuple(torch.cat(column) for column in zip(*pool, strict=True))


def _both(scenes: Scenes, generator: Generator) -> tuple[Tensor, Tensor]:
    with torch.device(generator.device):
        claims = draw_claims(scenes, generator=generator)
        turned = _turned(claims)
        false = (claims.relation != UNSAID) & ~holds(turned, scenes)
        tokens = [caption_tokens(said, generator=generator) for said in (claims, turned)]
        return tokens[0], torch.where(false[:, None], tokens[1], write_tokens([""]).to(tokens[1]))


def objective(config: CLIPRun) -> object:
    """Return the loss of a batch of pixels and tokens, true and false, (B,) nats."""

    def cost(net: CLIP, batch: tuple[Tensor, ...], generator: Generator) -> Tensor:
        pixels, *captions = batch
        tokens = torch.cat(captions)
        x, clock = to_floats(pixels), None
        if config.noisy:
            t = torch.rand(len(x), generator=generator, device=x.device).double()
            eps = torch.randn(x.shape, generator=generator, device=x.device)
            x, clock = SCHEDULE.add_noise(x, eps, t), log_snr_clock(SCHEDULE, t).float()
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
            logits = net(x, tokens, clock)
        logits = logits.masked_fill(tokens[:, 1] == END, -torch.inf)  # an empty caption is none
        return contrastive_loss(logits.float())

    return cost


def prompts(pairs: Iterable[tuple[str, str]]) -> Tensor:
    """Return the tokens of "a red circle" and so on, (pairs, LENGTH)."""
    return write_tokens(f"{_article(c)} {c} {s}" for c, s in pairs)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


@torch.no_grad()
def clip_tests(net: CLIP, config: CLIPRun, t: float = 0.0) -> Metrics:
    """Return what the encoders have understood, of pictures noised to time `t`.

    The colour and shape of one object, among all pairs ("a red circle"), of pairs seen in training
    and held out; which of two captions is true, the other having its relation turned round, the
    sizes, or the colours of two objects exchanged (a coin gets .5); and InfoNCE's bound.
    """
    device = config.device
    generator = Generator(device).manual_seed(config.seed + 1)

    def seen(scenes: Scenes) -> Tensor:
        x = render(scenes)
        eps = torch.randn(x.shape, generator=generator)
        x = SCHEDULE.add_noise(x, eps, t) if t else x
        clock = log_snr_clock(SCHEDULE, t).float().to(device) if config.noisy else torch.zeros(())
        rows = [net.image(part, clock.expand(len(part))) for part in x.split(1000)]
        return torch.cat(rows)

    with torch.device(device):
        found = {"zero_shot": {}, "chosen": {}}
        text = net.text(prompts(PAIRS))
        for kind, held_out in {"seen": HELD_OUT, "unseen": SEEN}.items():
            scenes = _draw(config.tested, generator, (1,), held_out)
            best = (seen(scenes) @ text.T).argmax(1)
            colour, shape = (getattr(scenes, name)[:, 0] for name in ("colour", "shape"))
            right = best == colour * len(SHAPES) + shape
            found["zero_shot"][kind] = _share(right)
            found["zero_shot"][f"{kind}_colour"] = _share(best // len(SHAPES) == colour)
            found["zero_shot"][f"{kind}_shape"] = _share(best % len(SHAPES) == shape)
        scenes = _draw(config.tested, generator, (2,), HELD_OUT)
        image, claims = seen(scenes), all_claims(scenes)
        true = net.text(caption_tokens(claims, generator=generator))
        for kind, false in _falsehoods(claims).items():
            wrong = net.text(caption_tokens(false, generator=generator))
            rows = ~holds(false, scenes)
            found["chosen"][kind] = _share(((image * true).sum(1) > (image * wrong).sum(1))[rows])
        scenes = _draw(512 * max(1, config.tested // 512), generator, (1, 2, 3), HELD_OUT)
        claims = draw_claims(scenes, generator=generator)
        text = net.text(caption_tokens(claims, generator=generator))
        pairs = zip(seen(scenes).split(512), text.split(512), strict=True)
        bound = torch.stack([information_bound(pair_logits(*pair, net.scale)) for pair in pairs])
        found["information_bound_nats"] = round(float(bound.mean()), 3)
        return found | {"of_at_most_nats": round(math.log(512), 3)}


def _draw(n: int, generator: Generator, objects: tuple[int, ...], held_out: tuple) -> Scenes:
    return draw_scenes(n, generator=generator, objects=objects, held_out=held_out)


def _falsehoods(claims: Claims) -> dict[str, Claims]:
    """Return captions of two objects in which one thing is not so."""

    def exchanged(name: str) -> Claims:
        both = getattr(claims, name)
        return replace(claims, **{name: both[:, [1, 0, 2]]})

    return {
        "relation": _turned(claims),
        "colours": exchanged("colour"),
        "sizes": exchanged("size"),
    }


def _turned(claims: Claims) -> Claims:
    related = claims.relation != UNSAID
    return replace(claims, relation=torch.where(related, claims.relation ^ 1, UNSAID))


def _share(right: Tensor) -> float:
    return round(float(right.double().mean()), 4)
