"""Tune the base into DALL-E 2's decoder, and count what pictures keep: notebook 12."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import torch
from torch import Generator, Tensor

from tutorial_lib import pretrained
from tutorial_lib.captions import UNSAID, all_claims, caption_tokens, holds
from tutorial_lib.cifar10 import to_floats
from tutorial_lib.clip import CLIP
from tutorial_lib.denoiser import Condition, Denoiser
from tutorial_lib.dpm_solver import dpm_solver_pp_2m
from tutorial_lib.guidance import ClassifierFree, StaticThreshold
from tutorial_lib.losses import v_error
from tutorial_lib.networks.fast import accelerate
from tutorial_lib.networks.unet import UNetConfig
from tutorial_lib.oracle import Reading, read, shares_right
from tutorial_lib.pretrained import DECODER_NETWORK, SCHEDULE, empty_caption
from tutorial_lib.recipes.record import (
    Metrics,
    TrainingRun,
    load_weights,
    save_sheet,
    write_metrics,
)
from tutorial_lib.recipes.shapes import WORLD, captioned_pictures
from tutorial_lib.recipes.text_to_image import denoiser
from tutorial_lib.recipes.unclip_prior import LEAST, in_parts, picture_embeddings, share, trained
from tutorial_lib.samplers import final
from tutorial_lib.schedule import log_snr_times
from tutorial_lib.shape_world import HELD_OUT, Scenes, draw_scenes, render
from tutorial_lib.unclip import WithPicture, scaled

OBJECTS = ("size", "colour", "shape")


@dataclass(frozen=True, kw_only=True)
class DecoderRun(TrainingRun):
    """Fix how the base is tuned to draw what an embedding holds, on how many pictures, its tests.

    Captions are emptied with probability `unlabelled`, pictures with `unpictured` (Ramesh et al.
    2022, section 2.1). `network` must be the base's, but for `embedding_width`. Each of the
    `scales` of guidance, w, is tested on `tested` pictures, with `varied` others of some. The
    embeddings are those of the package's CLIP, or of one whose weights lie at `clip`.
    """

    network: UNetConfig = field(default=DECODER_NETWORK)
    rank: int = pretrained.RANK
    clip: str | None = None
    images: int = 1_000_000
    unlabelled: float = 0.5
    unpictured: float = 0.1
    time_power: float = 0.4
    ema_decay: float = 0.999
    scales: tuple[float, ...] = (0.0, 1.0, 2.0)
    tested: int = 2000
    varied: int = 8
    sampler_steps: int = 25
    graph: bool = False


def fresh_decoder(config: DecoderRun) -> WithPicture:
    """Return the base with its adapters and what reads a picture, as before training."""
    drawn = Generator().manual_seed(config.seed)
    base = pretrained.from_base(config.network, rank=config.rank)
    net = accelerate(WithPicture(base, generator=drawn))
    return net.to(config.device, memory_format=torch.channels_last)


def decoder_objective(config: DecoderRun) -> object:
    """Return the loss of a batch of pixels, tokens and pictures' embeddings, (B,)."""
    nothing = empty_caption(config.device).text

    def cost(net: WithPicture, batch: tuple[Tensor, ...], generator: Generator) -> Tensor:
        pixels, tokens, z = batch
        x0 = to_floats(pixels).contiguous(memory_format=torch.channels_last)
        t, u, v = torch.rand(3, len(x0), generator=generator, device=x0.device)
        tokens = torch.where((u < config.unlabelled)[:, None], nothing, tokens)
        z = z.masked_fill((v < config.unpictured)[:, None], 0)
        t, cond = t.double() ** config.time_power, Condition(text=tokens, image_embedding=z)
        return v_error(denoiser(net), x0, t, cond, generator=generator) / x0[0].numel()

    return cost


def run_decoder(name: str, config: DecoderRun, out: Path) -> Metrics:
    """Tune the base to draw what embeddings hold, count what is kept, and leave the record."""
    clip = pretrained.clip(config.device)
    if config.clip:
        clip.load_state_dict(load_weights(Path(config.clip))[0])
    pixels, tokens = captioned_pictures(config.images, seed=config.seed, device=config.device)
    data, net = (pixels, tokens, picture_embeddings(clip, pixels)), fresh_decoder(config)
    ema, seconds = trained(name, config, out, net, data, decoder_objective(config))
    found = {"data": WORLD, **decoder_tests(ema, config, clip, out / "samples.jpg")}
    learned = sum(p.numel() for p in net.parameters() if p.requires_grad)
    return write_metrics(out, name, config, found | {"learned": learned, "seconds": seconds})


def decoder_headline(found: Metrics) -> str:
    """Say in a few words how much of a picture its embedding keeps."""
    alone, both = (
        max(row["objects"] for row in found["table"] if row["told"] == told)
        for told in ("picture", "both")
    )
    return (
        f"all objects of a picture as they were in {100 * alone:.0f} % from its embedding, "
        f"{100 * both:.0f} % with its caption"
    )


def draw_pictures(
    model: Denoiser, z: Tensor, tokens: Tensor, w: float, config: DecoderRun
) -> Tensor:
    """Return a picture (N, 3, 32, 32) of each scaled embedding (N, D) and caption (N, L)."""
    generator = Generator(z.device).manual_seed(config.seed + 2)
    null = replace(empty_caption(config.device), image_embedding=torch.zeros_like(z[:1]))
    guided = StaticThreshold(ClassifierFree(model, w, null=null))
    times = log_snr_times(SCHEDULE, config.sampler_steps, LEAST, 0.9946)
    made = []
    for rows in zip(z.split(1000), tokens.split(1000), strict=True):
        shape = (len(rows[0]), 3, config.network.side, config.network.side)
        x = torch.randn(shape, generator=generator, device=z.device)
        cond = Condition(image_embedding=rows[0], text=rows[1])
        made.append(final(dpm_solver_pp_2m(guided, x, times, cond)))
    return torch.cat(made).clamp(-1, 1)


def kept(scenes: Scenes, found: Reading) -> Metrics:
    """Return the shares of scenes of which this is in a picture too, whatever its objects' order.

    `relation` is that of scenes that have one and whose objects are right; a coin gets .5.
    """
    claims = all_claims(scenes)
    unsaid = {kind: torch.full_like(getattr(claims, kind), UNSAID) for kind in OBJECTS}
    silent = replace(claims, **unsaid, relation=torch.full_like(claims.relation, UNSAID))
    objects, everything = (
        holds(said, found) for said in (replace(claims, relation=silent.relation), claims)
    )
    only = {kind: replace(silent, **{kind: getattr(claims, kind)}) for kind in OBJECTS}
    return {
        "count": share(holds(silent, found)),
        **{kind: share(holds(said, found)) for kind, said in only.items()},
        "objects": share(objects),
        "relation": share(everything[objects & (claims.relation != UNSAID)]),
        "place": round(shares_right(scenes, found)["place"], 4),
    }


@torch.no_grad()
def decoder_tests(net: WithPicture, config: DecoderRun, clip: CLIP, sheet: Path) -> Metrics:
    """Return what is kept of pictures, told their embeddings, whole captions or both.

    `varies` is the root mean square of what two pictures of one embedding differ by at a pixel;
    of `others`, of two scenes. The sheet has originals, and pictures of their embeddings below.
    """
    device, model, few = config.device, denoiser(net), min(100, config.tested)
    oracle, rows = pretrained.oracle(device), []
    generator = Generator(device).manual_seed(config.seed + 1)
    with torch.device(device):
        scenes = draw_scenes(config.tested, generator=generator, held_out=HELD_OUT)
        x, claims = render(scenes), all_claims(scenes)
        whole = caption_tokens(claims, generator=generator)
        real = {**kept(scenes, read(oracle, x)), "others": float((2 * x.var(0).mean()) ** 0.5)}
    z, empty = in_parts(lambda part: scaled(clip.image(part)), x), empty_caption(device).text
    empty = empty.expand_as(whole)
    told = {"picture": (z, empty), "both": (z, whole), "caption": (0 * z, whole)}
    for kind, w in product(told, config.scales):
        drawn = draw_pictures(model, *told[kind], w, config)
        again = (part[:few].repeat_interleave(config.varied, 0) for part in told[kind])
        many = draw_pictures(model, *again, w, config).unflatten(0, (few, -1))
        with torch.device(device):
            row = {"told": kind, "w": w, **kept(scenes, read(oracle, drawn))}
        rows.append(row | {"varies": round(float(2 * many.var(1).mean()) ** 0.5, 4)})
        if kind == "picture":
            shown = many[:12].transpose(0, 1)[:4].flatten(0, 1)  # at the last w
    save_sheet(torch.cat([x[:12], shown]), len(x[:12]), sheet)
    return {"table": rows, "real": real, "tested": config.tested}
