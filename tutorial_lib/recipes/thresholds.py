"""Guide hard, with and without thresholds, and measure what leaves the pictures: notebook 13."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from tutorial_lib import pretrained
from tutorial_lib.captions import Claims, caption_tokens, draw_claims, holds
from tutorial_lib.denoiser import Condition, Denoiser, Prediction
from tutorial_lib.dpm_solver import dpm_solver_pp_2m
from tutorial_lib.guidance import ClassifierFree, DynamicThreshold, StaticThreshold
from tutorial_lib.metrics import frechet_distance_of_samples
from tutorial_lib.networks.fast import accelerate
from tutorial_lib.oracle import read
from tutorial_lib.pretrained import SCHEDULE, empty_caption
from tutorial_lib.recipes.record import Metrics, RunConfig, save_sheet, write_metrics
from tutorial_lib.recipes.shapes import WORLD
from tutorial_lib.recipes.text_to_image import denoiser
from tutorial_lib.samplers import final
from tutorial_lib.schedule import Time, log_snr_times
from tutorial_lib.shape_world import GROUNDS, HELD_OUT, draw_scenes, render

Wrap = Callable[[Denoiser], Denoiser]
THRESHOLDS: dict[str, Wrap] = {
    "none": lambda model: model,
    "static": StaticThreshold,
    "dynamic 0.995": DynamicThreshold,
    "dynamic 0.95": lambda model: DynamicThreshold(model, 0.95),
    "dynamic 0.9": lambda model: DynamicThreshold(model, 0.9),
}
BOUND = 0.99  # of a value that lies on the bounds of the range: true pictures have none


@dataclass(frozen=True, kw_only=True)
class ThresholdRun(RunConfig):
    """Fix how hard the package's text-to-image network is guided, on how many captions.

    As many of one, of two and of three objects, at each of the `scales` of guidance, w.
    """

    captions: int = 3000
    scales: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
    sampler_steps: int = 25


class Watched:
    """Pass on what a denoiser predicts, and keep which share of each x_0 leaves [-1, 1]."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.outside: list[Tensor] = []

    def __call__(self, xt: Tensor, t: Time, cond: Condition | None = None) -> Prediction:
        """Predict as the denoiser does."""
        prediction = self.denoiser(xt, t, cond)
        self.outside.append((prediction.x0.abs() > 1).double().mean())
        return prediction


def run_thresholds(name: str, config: ThresholdRun, out: Path) -> Metrics:
    """Draw captions at every weight under every threshold, and leave the record."""
    began, trial = time.perf_counter(), Trial(config)
    model = denoiser(accelerate(pretrained.text_to_image(config.device).net))
    table, rows = [], []
    for w in config.scales:
        for kind, wrap in THRESHOLDS.items():
            found, drawn = trial.measured(model, w, wrap)
            table.append({"w": w, "threshold": kind, **found})
            rows.append(drawn[:: max(1, len(drawn) // 16)][:16])
    save_sheet(torch.cat(rows), 16, out / "samples.jpg")
    found = {"data": WORLD, "table": table, "true": trial.looks(trial.others)}
    return write_metrics(
        out, name, config, found | {"seconds": round(time.perf_counter() - began, 1)}
    )


class Trial:
    """Hold captions, true pictures of them, and who judges what is drawn instead."""

    def __init__(self, config: ThresholdRun) -> None:
        self.config, self.oracle = config, pretrained.oracle(config.device)
        self.clip, self.null = pretrained.clip(config.device), empty_caption(config.device)
        generator = Generator(config.device).manual_seed(config.seed)
        with torch.device(config.device):
            scenes = draw_scenes(config.captions, generator=generator, held_out=HELD_OUT)
            self.claims: Claims = draw_claims(scenes, generator=generator)
            self.tokens = caption_tokens(self.claims, generator=generator)
            self.truth = render(scenes)
            others = draw_scenes(config.captions, generator=generator, held_out=HELD_OUT)
            self.others = render(others)

    @torch.no_grad()
    def measured(self, model: Denoiser, w: float, wrap: Wrap) -> tuple[Metrics, Tensor]:
        """Return what becomes of the captions' pictures, and these, clamped to [-1, 1]."""
        config = self.config
        generator = Generator(config.device).manual_seed(config.seed + 1)
        watched = Watched(ClassifierFree(model, w, null=self.null))
        times = log_snr_times(SCHEDULE, config.sampler_steps, 1e-3, 0.9946)
        parts = []
        for rows in self.tokens.split(1000):
            x = torch.randn((len(rows), 3, 32, 32), generator=generator, device=config.device)
            walk = dpm_solver_pp_2m(wrap(watched), x, times, Condition(text=rows))
            parts.append(final(walk))
        drawn = torch.cat(parts).clamp(-1, 1)
        reading = read(self.oracle, drawn)
        with torch.device(config.device):
            right = holds(self.claims, reading).double().mean()
        shares = torch.stack(watched.outside).view(len(parts), -1).mean(0)
        found = {"right": round(float(right), 4), **self.looks(drawn)}
        return found | {"outside": [round(x, 5) for x in shares.tolist()]}, drawn

    @torch.no_grad()
    def looks(self, x: Tensor) -> Metrics:
        """Return how pictures (N, 3, 32, 32) look, whatever they show.

        The share of values on the bounds; the standard deviation of a picture's values; how far
        its ground, the median of its pixels, is from the nearer of the world's; and the Frechet
        distance to true pictures in CLIP's embeddings.
        """
        median = x.flatten(2).median(2).values  # (N, 3)
        grounds = 2 * torch.tensor(GROUNDS, device=x.device) - 1
        gaps = (median[:, None] - grounds).abs().mean(2).amin(1)
        z, true = (self.clip.image(rows).double() for rows in (x, self.truth))
        return {
            "on_bounds": round(float((x.abs() > BOUND).double().mean()), 5),
            "contrast": round(float(x.flatten(1).std(1).mean()), 4),
            "ground_error": round(float(gaps.mean()), 4),
            "fd_clip": round(frechet_distance_of_samples(z, true), 5),
        }


def headline(found: Metrics) -> str:
    """Say in a few words what hard guidance does under three thresholds."""
    most = max(row["w"] for row in found["table"])
    rows = (row for row in found["table"] if row["w"] == most)
    shares = (f"{row['threshold']} {100 * row['on_bounds']:.1f} %" for row in rows)
    return f"values on the bounds at w = {most:g}: " + ", ".join(shares)
