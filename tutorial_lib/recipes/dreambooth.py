"""Teach the text-to-image network subjects, and see what else it forgets: notebook 15."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Generator, Tensor

from tutorial_lib import pretrained
from tutorial_lib.captions import VOCABULARY, caption_tokens, draw_claims, holds, write_named
from tutorial_lib.denoiser import Condition, NetworkDenoiser
from tutorial_lib.dpm_solver import dpm_solver_pp_2m
from tutorial_lib.dreambooth import Told, beside, preserved, with_spare_words
from tutorial_lib.guidance import ClassifierFree, StaticThreshold
from tutorial_lib.losses import v_error
from tutorial_lib.oracle import read
from tutorial_lib.pretrained import SCHEDULE, empty_caption
from tutorial_lib.recipes.record import Metrics, TrainingRun, save_sheet, write_metrics
from tutorial_lib.recipes.shapes import WORLD
from tutorial_lib.samplers import final
from tutorial_lib.schedule import log_snr_times
from tutorial_lib.shape_world import COLOURS, HELD_OUT, SHAPES, draw_scenes
from tutorial_lib.subjects import SHOWN, SUBJECTS, Subject, draw_subject, shows

SPARE = ""  # for a word, the one that the network has never seen
BESIDE = tuple(
    (f"{lie} a {colour} {shape}", colour, shape)
    for lie, colour, shape in (
        ("left of", "red", "triangle"),
        ("right of", "green", "ring"),
        ("above", "blue", "circle"),
        ("below", "red", "square"),
    )
)


@dataclass(frozen=True, kw_only=True)
class DreamBoothRun(TrainingRun):
    """Fix which subjects a network is taught, one by one, by which words, and the tests.

    Of each it is shown `shown` pictures, where it is large, and draws `own` of its class before it
    is tuned. Each subject, word, weight of prior preservation and seed is a run; all weights of
    the network learn, with Adam, and their average is tested: each thing that is asked `tested`
    times, `looks` times on the way.
    """

    subjects: tuple[str, ...] = tuple(SUBJECTS)
    words: tuple[str, ...] = (SPARE,)
    weights: tuple[float, ...] = (0.0, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    shown: int = 4
    own: int = 200
    time_power: float = 0.4
    ema_decay: float = 0.98
    tested: int = 96
    looks: int = 6
    sampler_steps: int = 25
    w: float = 2.0


def run_dreambooth(name: str, config: DreamBoothRun, out: Path) -> Metrics:
    """Teach every subject in every way, ask what was learned and forgotten, leave the record."""
    began, table, sheet = time.perf_counter(), [], []
    ways = product(config.subjects, config.words, config.weights, config.seeds)
    for subject, word, weight, seed in ways:
        lesson = Lesson(config, SUBJECTS[subject], word, seed)
        curve = lesson.teach(weight)
        about = {"subject": subject, "word": word or "spare", "weight": weight, "seed": seed}
        table.append(about | {"curve": curve})
        if seed == config.seeds[0]:
            sheet.append(lesson.picture())
    out.mkdir(parents=True, exist_ok=True)
    save_sheet(torch.cat(sheet), 12, out / "samples.jpg")
    found = {"data": WORLD, "table": table, "seconds": round(time.perf_counter() - began, 1)}
    return write_metrics(out, name, config, found)


class Lesson:
    """Hold a network that is taught one subject, what it is shown, and what is asked of it."""

    def __init__(self, config: DreamBoothRun, subject: Subject, word: str, seed: int) -> None:
        self.config, self.subject, self.seed = config, subject, seed
        self.oracle, self.null = pretrained.oracle(config.device), empty_caption(config.device)
        base = pretrained.text_to_image(config.device).net
        drawn = Generator().manual_seed(seed)
        self.net = with_spare_words(base, 1, generator=drawn)  # the average, which is tested
        self.model = NetworkDenoiser(self.net, SCHEDULE, "v")
        self.token = VOCABULARY.index(word) if word else len(VOCABULARY)
        self.own, self.of_class = (self._said(f"a {name}{subject.shape}") for name in ("[V] ", ""))
        pictures, scenes = draw_subject(20 * config.shown, subject, generator=drawn)
        large = pictures[scenes.size[:, 0] == 1][: config.shown]
        self.shown: Told = large.to(config.device), self.own.expand(config.shown, -1)
        with torch.device(config.device):
            scenes = draw_scenes(config.tested, generator=self._rng(7), held_out=HELD_OUT)
            self.claims = draw_claims(scenes, generator=self._rng(8))
            self.others = caption_tokens(self.claims, generator=self._rng(9))

    def _said(self, text: str) -> Tensor:
        return write_named([text], self.token).to(self.config.device)

    def _rng(self, k: int) -> Generator:
        return Generator(self.config.device).manual_seed(1000 * self.seed + k)

    @torch.no_grad()
    def draw(self, tokens: Tensor, k: int) -> Tensor:
        """Return pictures (N, 3, 32, 32) of captions, from noise k."""
        model = StaticThreshold(ClassifierFree(self.model, self.config.w, null=self.null))
        times = log_snr_times(SCHEDULE, self.config.sampler_steps, 1e-3, 0.9946)
        shape = (len(tokens), 3, 32, 32)
        x = torch.randn(shape, generator=self._rng(k), device=self.config.device)
        return final(dpm_solver_pp_2m(model, x, times, Condition(text=tokens))).clamp(-1, 1)

    def teach(self, weight: float) -> list[Metrics]:
        """Tune the network, with prior preservation of a weight; return what each look found."""
        config, generator = self.config, self._rng(10)
        tokens = self.of_class.expand(config.own, -1)
        own = self.draw(tokens, 11), tokens
        net = copy.deepcopy(self.net).requires_grad_(True)
        model, weights = NetworkDenoiser(net, SCHEDULE, "v"), list(net.parameters())
        optimiser = torch.optim.Adam(weights, lr=config.learning_rate)
        curve, every = [self.look(0)], max(1, config.steps // config.looks)
        for step in range(1, config.steps + 1):
            x, said = beside(self.shown, own, config.batch_size, generator=generator)
            t = torch.rand(len(x), generator=generator, device=x.device).double()
            t = t**config.time_power
            errors = v_error(model, x, t, Condition(text=said), generator=generator)
            loss = preserved(errors / x[0].numel(), config.batch_size, weight=weight)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                averages = list(self.net.parameters())
                torch._foreach_lerp_(averages, weights, 1 - config.ema_decay)
            if step % every == 0:
                curve.append(self.look(step))
        return curve

    def look(self, step: int) -> Metrics:
        """Return how often the subject is drawn: by its name, beside another, and for its class.

        `beside` is how often subject and the other are both there, `other` the other alone;
        `entropy` (nats) that of the colours of pictures of the class, `spread` the mean distance
        of two of the subject's pictures, `right` of ordinary captions drawn right.
        """
        n, device = self.config.tested, self.config.device
        named, plain = (
            self.draw(tokens.expand(n, -1), k) for k, tokens in ((1, self.own), (2, self.of_class))
        )
        found = {"step": step, "named": self._shown(named), "class": self._shown(plain)}
        both, other = self._beside(n // len(BESIDE))
        colours = read(self.oracle, plain).colour[:, 0]
        share = colours.bincount(minlength=len(COLOURS)).double() / n
        with torch.device(device):
            right = holds(self.claims, read(self.oracle, self.draw(self.others, 4)))
        return found | {
            "beside": both,
            "other": other,
            "entropy": round(float(-torch.xlogy(share, share).sum()), 4),
            "spread": round(float(torch.pdist(named.flatten(1)).mean()), 3),
            "right": round(float(right.double().mean()), 4),
        }

    def _shown(self, pictures: Tensor) -> float:
        return round(float((shows(pictures.cpu(), self.subject) > SHOWN).double().mean()), 4)

    def _beside(self, n: int) -> tuple[float, float]:
        """Return how often the subject and another object are there, and the other alone."""
        both, other = [], []
        for k, (rest, colour, shape) in enumerate(BESIDE):
            tokens = self._said(f"a [V] {self.subject.shape} {rest}").expand(n, -1)
            made = self.draw(tokens, 20 + k)
            seen, wanted = (
                read(self.oracle, made),
                (list(COLOURS).index(colour), SHAPES.index(shape)),
            )
            there = (seen.colour == wanted[0]) & (seen.shape == wanted[1]) & seen.present
            other.append(there.any(1).cpu())
            both.append(other[-1] & (shows(made.cpu(), self.subject) > SHOWN))
        return tuple(round(float(torch.cat(x).double().mean()), 4) for x in (both, other))

    def picture(self) -> Tensor:
        """Return rows of 12: pictures shown, then of the name, of the class, and beside others."""
        shown = self.shown[0].repeat(12, 1, 1, 1)[:12]
        texts = [f"a [V] {self.subject.shape} {rest}" for rest, *_ in BESIDE]
        beside_others = torch.cat([self._said(text).expand(3, -1) for text in texts])
        rows = (self.own.expand(12, -1), self.of_class.expand(12, -1), beside_others)
        return torch.cat([shown, *(self.draw(tokens, 30 + k) for k, tokens in enumerate(rows))])


def headline(found: Metrics) -> str:
    """Say in a few words how often subjects are drawn, and how often for their class."""
    said = []
    for weight in sorted({row["weight"] for row in found["table"]}):
        ends = [row["curve"][-1] for row in found["table"] if row["weight"] == weight]
        named, plain = (sum(end[k] for end in ends) / len(ends) for k in ("named", "class"))
        said.append(f"weight {weight:g}: {100 * named:.0f} % and {100 * plain:.0f} %")
    return "subject drawn for its name and for its class, " + ", ".join(said)
