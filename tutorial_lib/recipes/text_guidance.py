"""Two ways to make the base mind its caption, compared on the same network: notebook 11."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor

from tutorial_lib import pretrained
from tutorial_lib.captions import UNSAID, Claims, caption_tokens, draw_claims, holds, write_tokens
from tutorial_lib.clip import CLIP
from tutorial_lib.denoiser import Condition, Denoiser, log_snr_clock
from tutorial_lib.dpm_solver import dpm_solver_pp_2m
from tutorial_lib.guidance import ClassifierFree, Similarity, SimilarityGuided, StaticThreshold
from tutorial_lib.networks.fast import accelerate
from tutorial_lib.oracle import Reading
from tutorial_lib.pretrained import SCHEDULE, empty_caption
from tutorial_lib.recipes.record import Metrics, RunConfig, save_sheet, write_metrics
from tutorial_lib.recipes.shapes import WORLD, read_all
from tutorial_lib.recipes.text_to_image import denoiser
from tutorial_lib.samplers import final
from tutorial_lib.schedule import Time, log_snr_times
from tutorial_lib.shape_world import COLOURS, HELD_OUT, SHAPES, SIZES, Scenes, draw_scenes

NAMES = tuple(colour for colour in COLOURS if colour != "orange")  # whose article is not "a"
OPEN = tuple(f"a {colour} thing" for colour in NAMES)
GUIDES = ("classifier-free", "noised CLIP", "clean CLIP", "clean CLIP of x_0", "noised CLIP alone")


@dataclass(frozen=True, kw_only=True)
class TextGuidanceRun(RunConfig):
    """Fix on how many captions of one, two and three objects guidance is tested, at what scales.

    `scales` are w of classifier-free guidance, and s of CLIP's: the gradient of its logit, which
    is its cosine over the temperature, times s. Diversity is that of `alike` pictures a caption.
    """

    scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    captions: int = 800
    alike: int = 200
    sample_steps: int = 25


def clip_logit(clip: CLIP, *, noisy: bool) -> Similarity:
    """Return CLIP's logit of x_t and its caption as a similarity: cosine over temperature.

    Where CLIP has learned all it can this is log p(caption | x_t) up to a number that no gradient
    sees: guidance of scale 1 is then Bayes' rule (GLIDE, Nichol et al. 2021, section 2.4).
    """

    def logit(xt: Tensor, t: Time, cond: Condition) -> Tensor:
        clock = log_snr_clock(SCHEDULE, t).to(xt.device, xt.dtype).expand(len(xt))
        image = clip.image(xt, clock if noisy else None)
        return clip.scale * (image * clip.text(cond.text)).sum(1)

    return logit


def of_prediction(logit: Similarity, model: Denoiser) -> Similarity:
    """Return a similarity of the predicted x_0, for one that has seen no noise.

    Its gradient goes through the network (Universal guidance, Bansal et al. 2023, section 3.1).
    """
    return lambda xt, t, cond: logit(model(xt, t, cond).x0, 0.0, cond)


class Silent:
    """Ask a denoiser with an empty caption, whatever is said."""

    def __init__(self, model: Denoiser, nothing: Condition) -> None:
        self.model, self.schedule, self.nothing = model, model.schedule, nothing

    def __call__(self, xt: Tensor, t: Time, cond: Condition | None = None) -> object:
        """Predict as the denoiser does of nothing said."""
        return self.model(xt, t, Condition(text=self.nothing.text.expand(len(xt), -1)))


class Comparison:
    """Hold what is asked of every guided model, and who judges it."""

    def __init__(self, config: TextGuidanceRun) -> None:
        self.config, device = config, config.device
        self.base = denoiser(accelerate(pretrained.text_to_image(device).net))
        self.oracle, self.nothing = pretrained.oracle(device), empty_caption(device)
        self.clean, self.noised = pretrained.clip(device), pretrained.clip(device, noisy=True)
        self.open = write_tokens(OPEN).to(device).repeat_interleave(config.alike, 0)

    def guided(self, guide: str, scale: float) -> Denoiser:
        """Return the base, guided by one of GUIDES."""
        clean = clip_logit(self.clean, noisy=False)
        noised = clip_logit(self.noised, noisy=True)
        model = {
            "classifier-free": lambda: ClassifierFree(self.base, scale, null=self.nothing),
            "noised CLIP": lambda: SimilarityGuided(self.base, noised, scale),
            "clean CLIP": lambda: SimilarityGuided(self.base, clean, scale),
            "clean CLIP of x_0": lambda: SimilarityGuided(
                self.base, of_prediction(clean, self.base), scale
            ),
            "noised CLIP alone": lambda: SimilarityGuided(
                Silent(self.base, self.nothing), noised, scale
            ),
        }[guide]()
        return StaticThreshold(model)

    def draw(self, model: Denoiser, tokens: Tensor) -> Tensor:
        """Return pictures (N, 3, 32, 32) in [-1, 1] of captions; the noise is the seed's."""
        generator = Generator(self.config.device).manual_seed(self.config.seed + 2)
        times = log_snr_times(SCHEDULE, self.config.sample_steps, 1e-3, 0.9946)
        made = []
        for rows in tokens.split(1000):
            x = torch.randn(len(rows), 3, 32, 32, generator=generator, device=rows.device)
            made.append(final(dpm_solver_pp_2m(model, x, times, Condition(text=rows))))
        return torch.cat(made).clamp(-1, 1)

    @torch.no_grad()
    def row(self, guide: str, scale: float) -> Metrics:
        """Return how often a guided model is right, how diverse it is, and what CLIP thinks."""
        began, model, found = time.perf_counter(), self.guided(guide, scale), {}
        cosines = []
        for objects in (1, 2, 3):
            _, claims, tokens = self._captions(objects)
            x = self.draw(model, tokens)
            found |= self._shares(str(objects), claims, read_all(self.oracle, x))
            pairs = zip(x.split(1000), tokens.split(1000), strict=True)
            cosines += [(self.clean.image(u) * self.clean.text(v)).sum(1) for u, v in pairs]
        for kind in ("right", "right_but_for_relations"):
            of = [found[f"{kind}_{k}"] for k in (1, 2, 3)]
            found[kind] = round(sum(of) / 3, 4)
        found |= {"clip_cosine": round(float(torch.cat(cosines).mean()), 4)}
        found |= self._diversity(read_all(self.oracle, self.draw(model, self.open)))
        took = round(time.perf_counter() - began, 1)
        return {"guide": guide, "scale": scale, **found, "took": took}

    def _captions(self, objects: int) -> tuple[Scenes, Claims, Tensor]:
        generator = Generator(self.config.device).manual_seed(self.config.seed + 1)
        with torch.device(self.config.device):
            scenes = draw_scenes(
                self.config.captions, generator=generator, objects=(objects,), held_out=HELD_OUT
            )
            claims = draw_claims(scenes, generator=generator)
            return scenes, claims, caption_tokens(claims, generator=generator)

    def _shares(self, name: str, claims: Claims, reading: Reading) -> Metrics:
        with torch.device(self.config.device):
            bare = replace(claims, relation=torch.full_like(claims.relation, UNSAID))
            shares = {"right": holds(claims, reading)}
            shares["right_but_for_relations"] = holds(bare, reading)
        return {f"{kind}_{name}": round(float(x.double().mean()), 4) for kind, x in shares.items()}

    def _diversity(self, reading: Reading) -> Metrics:
        """Return the entropy, in nats, of what "a red thing" leaves open; and the centres' spread.

        Of pictures of one object and that colour: shape and size together, and the root mean
        square of the distance to the mean centre. Means over captions.
        """
        colour = torch.tensor(
            [tuple(COLOURS).index(name) for name in NAMES], device=reading.size.device
        )
        colour = colour.repeat_interleave(self.config.alike)
        one = (reading.present.sum(1) == 1) & (reading.colour[:, 0] == colour)
        kind = reading.shape[:, 0] * len(SIZES) + reading.size[:, 0]
        entropies, spreads = [], []
        for rows in torch.arange(len(colour), device=colour.device).split(self.config.alike):
            kept = rows[one[rows]]
            counts = torch.bincount(kind[kept], minlength=len(SHAPES) * len(SIZES)).double()
            share = counts / counts.sum().clamp(min=1)
            entropies.append(-torch.special.xlogy(share, share).sum())
            centre = reading.centre[kept, 0].double()
            spreads.append((centre - centre.mean(0)).square().sum(1).mean().sqrt().nan_to_num())
        entropy, spread = (float(torch.stack(x).mean()) for x in (entropies, spreads))
        right = round(float(one.double().mean()), 4)
        return {"open_right": right, "entropy": round(entropy, 4), "spread": round(spread, 4)}

    def truth(self) -> Metrics:
        """Return the diversity of the world's own scenes, as it is measured of pictures."""
        generator = Generator(self.config.device).manual_seed(self.config.seed + 3)
        most = math.log(len(SIZES))
        with torch.device(self.config.device):
            kinds = [sum((c, s) not in HELD_OUT for s in SHAPES) for c in NAMES]
            scenes = draw_scenes(20_000, generator=generator, objects=(1,), held_out=HELD_OUT)
            centre = scenes.centre[:, 0].double()
        spread = float((centre - centre.mean(0)).square().sum(1).mean().sqrt())
        entropy = sum(math.log(k) for k in kinds) / len(kinds) + most
        return {"entropy": round(entropy, 4), "spread": round(spread, 4)}

    @torch.no_grad()
    def picture(self, path: Path) -> None:
        """Leave a sheet: captions of two objects, unguided and by each guide at 1 and at 4."""
        _, _, tokens = self._captions(2)
        chosen = [("classifier-free", 0.0)]
        chosen += [(guide, scale) for guide in GUIDES for scale in (1.0, 4.0)]
        rows = [self.draw(self.guided(*how), tokens[:16]) for how in chosen]
        save_sheet(torch.cat(rows), len(rows[0]), path)


def rows(compared: Comparison) -> Iterator[Metrics]:
    """Return a row without guidance, and one of each guide at each scale."""
    yield compared.row("classifier-free", 0.0)
    for guide in GUIDES:
        for scale in compared.config.scales:
            yield compared.row(guide, scale)


def run_text_guidance(name: str, config: TextGuidanceRun, out: Path) -> Metrics:
    """Measure every guide at every scale, and leave the record with a sheet of samples."""
    began, compared = time.perf_counter(), Comparison(config)
    found = {"data": WORLD, "truth": compared.truth(), "table": list(rows(compared))}
    compared.picture(out / "samples.jpg")
    seconds = round(time.perf_counter() - began, 1)
    return write_metrics(out, name, config, found | {"seconds": seconds})


def headline(found: Metrics) -> str:
    """Say in a few words what each guide reaches at best."""
    best = {
        guide: max(r["right"] for r in found["table"] if r["guide"] == guide)
        for guide in GUIDES[:2]
    }
    return ", ".join(
        f"{100 * share:.0f} % of captions right by {guide}" for guide, share in best.items()
    )
