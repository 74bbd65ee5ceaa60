"""Train the base to fill in what is missing, and test how it edits pictures: notebook 11."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor

from tutorial_lib import lora, pretrained
from tutorial_lib.captions import (
    Claims,
    all_claims,
    as_claimed,
    caption_tokens,
    draw_claims,
    holds,
)
from tutorial_lib.denoiser import Condition, Denoiser
from tutorial_lib.dpm_solver import dpm_solver_pp_2m
from tutorial_lib.guidance import ClassifierFree, StaticThreshold
from tutorial_lib.inpainting import Beside, KeepKnown, draw_known, known_part, outside, replacement
from tutorial_lib.networks.fast import accelerate
from tutorial_lib.pretrained import INPAINTING_NETWORK, INPAINTING_RANK, SCHEDULE, empty_caption
from tutorial_lib.recipes import text_to_image
from tutorial_lib.recipes.record import (
    Metrics,
    TrainingRun,
    origin,
    save_sheet,
    save_weights,
    write_metrics,
    written_by,
)
from tutorial_lib.recipes.shapes import WORLD, captioned_pictures, read_all
from tutorial_lib.recipes.text_to_image import denoiser
from tutorial_lib.samplers import final
from tutorial_lib.schedule import log_snr_times
from tutorial_lib.shape_world import HELD_OUT, SIZES, Scenes, boxes, draw_scenes, render
from tutorial_lib.train import train

Drawn = Callable[..., Tensor]  # from noise, pictures, what is known and captions: pictures
MARGIN = 0.03  # around an object that is erased: half of what scenes keep apart


@dataclass(frozen=True, kw_only=True)
class InpaintingRun(TrainingRun):
    """Fix how long the base learns to fill in, on how many scenes, and on how many it is tested.

    `replacements` are numbers of steps, and of repeats of each, by the base alone. The rest is as
    in `TextToImageRun`. GLIDE (Nichol et al. 2021), section 4.3.
    """

    images: int = 1_000_000
    unlabelled: float = 0.25
    time_power: float = 0.7
    ema_decay: float = 0.999
    scales: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)
    tested: int = 1000
    replacements: tuple[tuple[int, int], ...] = ((50, 1), (200, 1), (50, 4))
    graph: bool = False


def run_inpainting(name: str, config: InpaintingRun, out: Path) -> Metrics:
    """Tune the base, let it edit, and leave the record with what has changed of its weights."""
    data = captioned_pictures(config.images, seed=config.seed, device=config.device)
    net = Beside(accelerate(pretrained.from_base(INPAINTING_NETWORK, rank=INPAINTING_RANK)))
    net = net.to(config.device, memory_format=torch.channels_last)
    if config.compiled:
        net.compile(dynamic=False, fullgraph=True)
    schedule = config.schedule(ema_decay=config.ema_decay, graph=config.graph)
    about = {"checkpoint": config.checkpoint_in(out), "about": written_by(name)}
    watch = config.journal(out)
    result = train(net, data, objective(config), schedule, **about, watch=watch)
    kept = lora.trained(net.net, result.ema.net)
    save_weights(kept, out / "weights.safetensors", origin(name, config.device))
    tests = Edits(config, denoiser(_plain(result.ema)))
    found = {"data": WORLD, "edits": tests.table(), "repairs": tests.repairs()}
    tests.picture(out / "samples.jpg")
    found |= {"parameters": sum(x.numel() for x in kept.values())}
    return write_metrics(out, name, config, found | {"seconds": round(result.seconds, 1)})


def _plain(net: Beside) -> Beside:
    """Return the network with its changes merged, and not compiled: batches vary in size."""
    lora.merge(net.net)
    return Beside(net.net)


def headline(found: Metrics) -> str:
    """Say in a few words how often an edit is what the caption says."""
    rows = [row for row in found["edits"] if row["way"] == "network"]
    best = max(rows, key=lambda row: row["edit"])
    return f"{100 * best['edit']:.0f} % of edits right, known pixels kept exactly"


def objective(config: InpaintingRun) -> object:
    """Return the base's loss with part of each picture known, as the hint says."""

    def beside(x0: Tensor, generator: Generator) -> dict[str, Tensor]:
        known = draw_known(len(x0), x0.shape[2], generator=generator)
        return {"hint": known_part(x0, known)}

    return text_to_image.objective(config, beside)


@dataclass(frozen=True)
class Task:
    """Hold pictures with a gap, what is said of them, and what must then be there."""

    x0: Tensor
    known: Tensor
    tokens: Tensor
    claims: Claims


def edits(n: int, *, seed: int, device: str) -> tuple[Task, Task]:
    """Return two tasks of `n` pictures of two objects, the first of which is erased, or its half.

    In its box there shall be another colour and shape: the caption says the new picture whole. Of
    the half nothing is said, and what is left of the object tells what is missing.
    """
    generator = Generator(device).manual_seed(seed)
    with torch.device(device):
        scenes = draw_scenes(n, generator=generator, objects=(2,), held_out=HELD_OUT)
        claims = all_claims(repainted(scenes, generator))
        tokens = caption_tokens(claims, generator=generator)
        around = boxes(scenes)[:, :1] + MARGIN * torch.tensor([-1, -1, 1, 1])
        half = torch.cat([scenes.centre[:, :1, :1], around[..., 1:]], -1)  # the right one
        said, silent = outside(around, 32), outside(half, 32)
        nothing = empty_caption(device).text.expand(n, -1)
        return (
            Task(render(scenes), said, tokens, claims),
            Task(render(scenes), silent, nothing, all_claims(scenes)),
        )


class Edits:
    """Ask for pictures with a gap filled in, and the oracle whether they are as they must be."""

    def __init__(self, config: InpaintingRun, model: Denoiser) -> None:
        self.config, self.model, device = config, model, config.device
        self.base = denoiser(accelerate(pretrained.text_to_image(device).net))
        self.oracle = pretrained.oracle(device)
        self.edit, self.half = edits(config.tested, seed=config.seed + 1, device=device)

    def fill(
        self,
        x0: Tensor,
        known: Tensor,
        tokens: Tensor,
        w: float,
        model: Denoiser | None = None,
        seed: int = 2,
    ) -> Tensor:
        """Return pictures with what is unknown drawn by the network, guided by w."""
        guided = StaticThreshold(
            ClassifierFree(model or self.model, w, null=empty_caption(x0.device))
        )
        times = log_snr_times(SCHEDULE, 25, 1e-3, 0.9946)

        def drawn(x: Tensor, x0: Tensor, known: Tensor, tokens: Tensor) -> Tensor:
            cond = Condition(text=tokens, hint=known_part(x0, known))
            return final(dpm_solver_pp_2m(KeepKnown(guided, x0, known), x, times, cond))

        return self._by_thousands(drawn, x0, known, tokens, seed)

    def replace(self, task: Task, w: float, steps: int, repeats: int) -> Tensor:
        """Return a task done by the base, with what is known put back at every step."""
        nothing = empty_caption(self.config.device)
        guided = StaticThreshold(ClassifierFree(self.base, w, null=nothing))
        times = log_snr_times(SCHEDULE, steps - 1, 1e-3, 0.9946)
        times = torch.cat([times, times.new_zeros(1)])  # the last step ends at clean pictures
        generator = Generator(self.config.device).manual_seed(self.config.seed + 3)

        def drawn(x: Tensor, x0: Tensor, known: Tensor, tokens: Tensor) -> Tensor:
            told = (times, x0, known, Condition(text=tokens))
            return final(replacement(guided, x, *told, generator=generator, repeats=repeats))

        return self._by_thousands(drawn, task.x0, task.known, task.tokens, 2)

    def _by_thousands(self, drawn: Drawn, *told: Tensor | int) -> Tensor:
        *parts, seed = told
        generator = Generator(self.config.device).manual_seed(self.config.seed + seed)
        made = []
        for rows in zip(*(x.split(1000) for x in parts), strict=True):
            x = torch.randn(rows[0].shape, generator=generator, device=rows[0].device)
            made.append(torch.where(rows[1].bool(), rows[0], drawn(x, *rows).clamp(-1, 1)))
        return torch.cat(made)

    @torch.no_grad()
    def table(self) -> list[Metrics]:
        """Return the shares of edits and of halves that are right, by the network and the base.

        The base alone draws as the network does, told nothing of what is known, or by replacement.
        """
        rows, tasks = [], (self.edit, self.half)
        for w in self.config.scales:
            for way, model in {"network": self.model, "base alone": self.base}.items():
                done = [self.fill(x.x0, x.known, x.tokens, w, model) for x in tasks]
                rows.append({"way": way, "w": w, **self._judged(*done)})
            for steps, repeats in self.config.replacements if w in (0.0, 2.0) else ():
                done = [self.replace(x, w, steps, repeats) for x in tasks]
                how = {"steps": steps, "repeats": repeats}
                rows.append({"way": "replacement", "w": w, **how, **self._judged(*done)})
        return rows

    def _judged(self, edit: Tensor, half: Tensor) -> Metrics:
        pairs = ((edit, self.edit), (half, self.half))
        off = [((x - task.x0) * task.known).abs().max() for x, task in pairs]
        with torch.device(self.config.device):
            right = [holds(task.claims, read_all(self.oracle, x)) for x, task in pairs]
        shares = [round(float(x.double().mean()), 4) for x in right]
        return {"edit": shares[0], "half": shares[1], "known_pixels_off_by": float(max(off))}

    @torch.no_grad()
    def repairs(self, rounds: int = 3) -> list[Metrics]:
        """Return the shares of captions of three objects that are right, drawn and then mended.

        The first picture is the network's own, told nothing but the caption, at w = 2. Of those
        that are wrong all is erased but the boxes of the objects that are as claimed, and filled
        in again; or they are drawn anew from nothing.
        """
        device = self.config.device
        generator = Generator(device).manual_seed(self.config.seed + 4)
        with torch.device(device):
            scenes = draw_scenes(
                self.config.tested, generator=generator, objects=(3,), held_out=HELD_OUT
            )
            claims = draw_claims(scenes, generator=generator)
            tokens = caption_tokens(claims, generator=generator)
        found, nothing = [], torch.zeros_like(self.edit.x0)
        for way in ("mended", "drawn anew"):
            x = self.fill(nothing, nothing[:, :1], tokens, 2.0)
            shares = []
            for _ in range(rounds + 1):
                right, known = self._right_parts(claims, x, way == "mended")
                shares.append(round(float(right.double().mean()), 4))
                again = self.fill(x, known, tokens, 2.0, seed=10 + len(shares))
                x = torch.where(right[:, None, None, None], x, again)
            found.append({"way": way, "w": 2.0, "right": shares})
        return found

    def _right_parts(self, claims: Claims, x: Tensor, kept: bool) -> tuple[Tensor, Tensor]:
        """Return which pictures are right, and where the good objects lie, if they are kept."""
        reading = read_all(self.oracle, x)
        with torch.device(self.config.device):
            right, good = holds(claims, reading), as_claimed(claims, reading)
            reach = torch.tensor([most + MARGIN for _, most in SIZES.values()])
            reach = reach[reading.size][..., None]
            around = torch.cat([reading.centre - reach, reading.centre + reach], -1)
            around = torch.where((good & kept)[..., None], around, 2.0)  # a box that has no pixel
            return right, 1 - outside(around, x.shape[2])

    @torch.no_grad()
    def picture(self, path: Path) -> None:
        """Leave a sheet, of edits and then of halves: what is known, and what was made of it.

        By the network, then by the base alone.
        """
        parts = []
        for task in (self.edit, self.half):
            made = self.fill(task.x0, task.known, task.tokens, 2.0)
            alone = self.replace(task, 2.0, *self.config.replacements[0])
            parts += [x[:16] for x in (task.x0 * task.known, made, alone)]
        save_sheet(torch.cat(parts), len(parts[0]), path)


def repainted(scenes: Scenes, generator: Generator) -> Scenes:
    """Return scenes whose first object has another colour, paint and shape, newly drawn."""
    other = draw_scenes(len(scenes), generator=generator, held_out=HELD_OUT)
    first = torch.arange(scenes.shape.shape[1]) == 0
    return replace(
        scenes,
        shape=torch.where(first, other.shape, scenes.shape),
        colour=torch.where(first, other.colour, scenes.colour),
        paint=torch.where(first[:, None], other.paint, scenes.paint),
    )
