"""Draw captions by way of an embedding, DALL-E 2's chain, and without one: notebook 12."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Generator, Tensor

from tutorial_lib import pretrained
from tutorial_lib.captions import UNSAID, Claims, all_claims, caption_tokens, holds
from tutorial_lib.denoiser import Condition, Denoiser, Prediction
from tutorial_lib.networks.fast import accelerate
from tutorial_lib.networks.unet import UNetConfig
from tutorial_lib.pretrained import DECODER_NETWORK
from tutorial_lib.recipes.record import Metrics, save_sheet, write_metrics
from tutorial_lib.recipes.shapes import WORLD, read_all
from tutorial_lib.recipes.text_guidance import Comparison, TextGuidanceRun
from tutorial_lib.recipes.text_to_image import denoiser
from tutorial_lib.recipes.unclip_decoder import draw_pictures
from tutorial_lib.recipes.unclip_prior import draw_embeddings, in_parts, prior_denoiser, share
from tutorial_lib.schedule import Time
from tutorial_lib.shape_world import HELD_OUT, draw_scenes, render
from tutorial_lib.unclip import best_of, said, scaled

SOURCES = ("picture", "text", "mean", "prior", "best of 2", "best of 4")
KINDS = ("colour", "shape", "colour shape")


@dataclass(frozen=True, kw_only=True)
class ChainRun(TextGuidanceRun):
    """Fix on how many captions the chain is tested, as guidance is, and how it samples.

    `scales` are those at which diversity is measured; what is right and bound, at each of
    `guided`.
    """

    network: UNetConfig = field(default=DECODER_NETWORK)
    scales: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
    guided: tuple[float, ...] = (0.0, 2.0)
    candidates: int = 4
    sampler_steps: int = 25


class Unpictured:
    """Ask a denoiser that reads captions alone, whatever embedding is given."""

    def __init__(self, model: Denoiser) -> None:
        self.model, self.schedule = model, model.schedule

    def __call__(self, xt: Tensor, t: Time, cond: Condition | None = None) -> Prediction:
        """Predict as the denoiser does of the caption."""
        return self.model(xt, t, Condition(text=cond.text))


class Chain(Comparison):
    """Hold the prior, the decoder, the base that needs neither, and who judges them."""

    def __init__(self, config: ChainRun) -> None:
        super().__init__(config)
        device = config.device
        self.prior = prior_denoiser(pretrained.prior(device).net)
        self.decoder = denoiser(accelerate(pretrained.decoder(device).net))

    def embeddings(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return scaled embeddings (N, D) that are made of captions (N, L), by SOURCES' names.

        `text` is the caption's own. `mean` is what the prior predicts of nothing but noise: the
        mean of the embeddings of all pictures of the caption. `best of` are by `best_of`.
        """
        cond, null = said(self.clean, tokens), said(self.clean, self.nothing.text)
        noise = torch.randn(
            cond.hint.shape,
            generator=Generator(tokens.device).manual_seed(self.config.seed + 4),
            device=tokens.device,
        )
        many = draw_embeddings(self.prior, cond, self.config, w=0.0, null=null)
        found = {"text": cond.hint, "mean": self.prior(noise, 0.9946, cond).x0.float()}
        found |= {"prior": many[:, 0]}
        return found | {f"best of {k}": best_of(many[:, :k], cond.hint) for k in (2, 4)}

    def pictures(self, z: Tensor | None, tokens: Tensor, w: float) -> Tensor:
        """Return a picture of each caption: the base's, or of embeddings the decoder's."""
        model, z = (
            (Unpictured(self.base), tokens.new_zeros(len(tokens), 1))
            if z is None
            else (self.decoder, z)
        )
        return draw_pictures(model, z, tokens, w, self.config)

    def right(self) -> Iterator[Metrics]:
        """Yield how often captions are drawn right, from each source, by each weight of guidance.

        `told` are the base its caption, the decoder the embedding alone, or both.
        """
        asked = [self._captions(objects) for objects in (1, 2, 3)]
        made = [
            {"picture": self._embedded(scenes)} | self.embeddings(tokens)
            for scenes, _, tokens in asked
        ]
        yield from (self._row("none", "caption", w, asked) for w in self.config.guided)
        for source in SOURCES:
            z = [found[source] for found in made]
            for told in ("embedding", "both"):
                yield from (self._row(source, told, w, asked, z) for w in self.config.guided)

    def _embedded(self, scenes: object) -> Tensor:
        with torch.device(self.config.device):
            return in_parts(lambda part: scaled(self.clean.image(part)), render(scenes))

    def _row(
        self, source: str, told: str, w: float, asked: list, z: list[Tensor | None] = (None,) * 3
    ) -> Metrics:
        found = {}
        for objects, ((_, claims, tokens), known) in enumerate(zip(asked, z, strict=True), 1):
            x = self.pictures(known, self._told(tokens, told), w)
            found |= self._shares(str(objects), claims, read_all(self.oracle, x))
        for kind in ("right", "right_but_for_relations"):
            found[kind] = round(sum(found[f"{kind}_{k}"] for k in (1, 2, 3)) / 3, 4)
        return {"source": source, "told": told, "w": w, **found}

    def _told(self, tokens: Tensor, told: str) -> Tensor:
        return self.nothing.text.expand_as(tokens) if told == "embedding" else tokens

    def diverse(self) -> Iterator[Metrics]:
        """Yield how diverse pictures of "a red thing" are, each of an embedding of its own."""
        prior = self.embeddings(self.open)["prior"]
        for told, z in {"caption": None, "embedding": prior, "both": prior}.items():
            for w in self.config.scales:
                x = self.pictures(z, self._told(self.open, told), w)
                yield {"told": told, "w": w, **self._diversity(read_all(self.oracle, x))}

    def bound(self) -> Iterator[Metrics]:
        """Yield which colour goes with which shape, of pictures that have both of each right.

        Of two objects of different colours and shapes, all of which is said; a coin gets .5.
        """
        scenes, claims, tokens = self._distinct()
        prior = self.embeddings(tokens)["prior"]
        picture = self._embedded(scenes)
        ways = {("none", "caption"): None}
        for source, z in {"picture": picture, "prior": prior}.items():
            ways |= {(source, told): z for told in ("embedding", "both")}
        for (source, told), z in ways.items():
            for w in self.config.guided:
                reading = read_all(self.oracle, self.pictures(z, self._told(tokens, told), w))
                with torch.device(self.config.device):
                    parts = {kind: holds(_only(claims, kind), reading) for kind in KINDS}
                there = parts["colour"] & parts["shape"]
                paired = share(parts["colour shape"][there])
                of = int(there.sum())
                yield {"source": source, "told": told, "w": w, "bound": paired, "of": of}

    def _distinct(self) -> tuple:
        generator = Generator(self.config.device).manual_seed(self.config.seed + 5)
        with torch.device(self.config.device):
            scenes = draw_scenes(
                4 * self.config.captions, generator=generator, objects=(2,), held_out=HELD_OUT
            )
            first, second = (
                torch.stack([s[:, k] for s in (scenes.colour, scenes.shape)]) for k in (0, 1)
            )
            scenes = scenes[(first != second).all(0)]
            claims = all_claims(scenes)
            return scenes, claims, caption_tokens(claims, generator=generator)

    @torch.no_grad()
    def sheet(self, path: Path) -> None:
        """Leave a sheet of 16 scenes of two objects: the base's, then the decoder's by source."""
        scenes, _, tokens = self._captions(2)
        scenes, tokens = scenes[:16], tokens[:16]
        found = {"picture": self._embedded(scenes)} | self.embeddings(tokens)
        with torch.device(self.config.device):
            rows = [render(scenes)]
        rows.append(self.pictures(None, tokens, 2.0))
        for source in ("picture", "text", "mean", "prior"):
            for told in ("embedding", "both"):
                rows.append(self.pictures(found[source], self._told(tokens, told), 2.0))
        save_sheet(torch.cat(rows), len(tokens), path)


def _only(claims: Claims, kind: str) -> Claims:
    """Return claims that say of objects no more than the attributes named."""
    silent = {
        name: torch.full_like(getattr(claims, name), UNSAID)
        for name in ("size", "colour", "shape", "relation")
        if name not in kind.split()
    }
    return replace(claims, **silent)


@torch.no_grad()
def run_chain(name: str, config: ChainRun, out: Path) -> Metrics:
    """Measure what the chain draws right, how diverse it is, what it binds; leave the record."""
    began, chain = time.perf_counter(), Chain(config)
    found = {
        "data": WORLD,
        "table": list(chain.right()),
        "diversity": list(chain.diverse()),
        "binding": list(chain.bound()),
        "truth": chain.truth(),
    }
    chain.sheet(out / "samples.jpg")
    seconds = round(time.perf_counter() - began, 1)
    return write_metrics(out, name, config, found | {"seconds": seconds})


def chain_headline(found: Metrics) -> str:
    """Say in a few words what the chain draws right, and what of the text's embedding."""
    best = {
        (source, told): max(
            row["right"]
            for row in found["table"]
            if (row["source"], row["told"]) == (source, told)
        )
        for source, told in (("prior", "embedding"), ("prior", "both"), ("text", "embedding"))
    }
    alone, both, raw = (100 * share for share in best.values())
    return (
        f"{alone:.0f} % of captions right from the prior's embedding, {both:.0f} % with the "
        f"caption beside it; {raw:.0f} % from the caption's embedding"
    )
