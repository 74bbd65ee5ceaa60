"""Give a recorded network's steps the variances that it knows itself: Analytic-DPM's tables."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from tutorial_lib.analytic import (
    Analytic,
    Diagonal,
    Estimate,
    Second,
    WithNoiseVariance,
    cheapest_times,
    noise_shares,
    residual_error,
    residual_network,
    stride_costs,
)
from tutorial_lib.cifar10 import Images, cifar10, to_floats
from tutorial_lib.denoiser import Condition, Denoiser, NetworkDenoiser, Prediction
from tutorial_lib.guidance import StaticThreshold
from tutorial_lib.likelihood import chain_bound, pixel_decoder
from tutorial_lib.networks.unet import UNet
from tutorial_lib.recipes.diffusion_run import (
    DiffusionRun,
    HalfPrecision,
    fresh_network,
    recorded_denoiser,
)
from tutorial_lib.recipes.evaluate import BATCH, judge_of, unlabelled
from tutorial_lib.recipes.record import (
    Metrics,
    OnCifar10,
    TrainingRun,
    origin_of,
    save_sheet,
    write_metrics,
    written_by,
)
from tutorial_lib.recipes.walks import Way, draw
from tutorial_lib.samplers import (
    Variance,
    ancestral,
    beta,
    beta_tilde,
    ddim,
    learned_range,
)
from tutorial_lib.schedule import Schedule, Time
from tutorial_lib.train import train

ALONG_CHEAPEST = ("beta", "error", "second network", "DDIM", "DDIM, error")
QUIET = (2 / 255) * math.sqrt(math.pi / 2)  # E|noise| of one grey level (Bao et al. 2022, F.2)


@dataclass(frozen=True, kw_only=True)
class AnalyticRun(TrainingRun, OnCifar10):
    """Fix whose weights are walked, by what curve, and how a second network is trained.

    `weights` is the file of the network that `model` describes; the second is `channels` wide, and
    with 0 there is none.
    The curve u(t) is estimated from `curve_images` training images at each step of the chain.
    """

    model: DiffusionRun
    weights: str = "results/cifar10_course/weights.safetensors.xz"
    channels: int = 32
    counts: tuple[int, ...] = (10, 25, 50, 100)
    drawn: tuple[int, ...] = (10, 25, 50)
    curve_images: int = 1000
    bound_images: int = 500
    samples: int = 2000
    pictured: int = 10

    @property
    def images_seen(self) -> int:
        """Return how many examples the second network is trained on, if there is one."""
        return super().images_seen if self.channels else 0


def run_analytic(name: str, config: AnalyticRun, out: Path) -> Metrics:
    """Estimate the curve, train the second network, and measure every width on two grids.

    All without labels. Raises FileNotFoundError without the weights.
    """
    images = cifar10("train", source=config.source, limit=config.images)
    unseen = cifar10("test", source=config.source, limit=config.test_images)
    started = time.perf_counter()
    network = replace(config.model, device=config.device)
    first = StaticThreshold(recorded_denoiser(network, Path(config.weights)))
    second = None if not config.channels else _second_network(name, config, first, images, out)
    curves = estimate_curves(first, config, images)
    grids = {
        "even": {n: even(config.model.n_steps, n) for n in config.counts},
        "cheapest": cheapest(first.schedule, curves["error"], config.counts),
    }
    widths = [Width(name, first, how) for name, how in choose_widths(curves, config.model).items()]
    if second is not None:
        both = WithNoiseVariance(first, second)
        widths.append(Width("second network", both, Diagonal(spread=1.0)))
    bits = [
        {"grid": grid, "steps": n, "width": width.name, **bound(width, unseen, config, times)}
        for grid, by_count in grids.items()
        for n, times in by_count.items()
        for width in widths
    ]
    widths += [Width(name, first, how) for name, how in drawn_widths(curves).items()]
    judged = _judge(config, images, grids, widths, out)
    found = {"data": images.form, "bits": bits, "judged": judged}
    if judged:
        found["samples"] = config.samples
    found["curves"] = {
        name: {"mean": _digits(c.mean), "standard_error": _digits(c.standard_error)}
        for name, c in curves.items()
    }
    found["grids"] = {
        str(n): [round(config.model.n_steps * t) for t in times.tolist()]
        for n, times in grids["cheapest"].items()
    }
    seconds = round(time.perf_counter() - started, 1)
    found |= {"seconds": seconds, "trained": origin_of(Path(config.weights))}
    return write_metrics(out, name, config, found)


@dataclass(frozen=True)
class Width:
    """Name a width, who is asked, and what variance is made of the answer (None: DDIM's, 0)."""

    name: str
    model: Denoiser
    variance: Variance | None


def headline(found: Metrics) -> str:
    """Say in a few words what a run found."""
    by = {(r["grid"], r["steps"], r["width"]): r["bits_per_dim"] for r in found["bits"]}
    n = found["bits"][0]["steps"]
    best, fixed = by["even", n, "error"], by["even", n, "beta"]
    return f"{best:.3f} bits/dim in {n} steps, {fixed:.3f} with beta"


def even(n_steps: int, n: int) -> Tensor:
    """Return n times for n looks: from 1 to 1 / n_steps in strides as even as whole steps are."""
    return torch.linspace(n_steps, 1, n, dtype=torch.float64).round() / n_steps


def cheapest(schedule: Schedule, curve: Estimate, counts: tuple[int, ...]) -> dict[int, Tensor]:
    """Return the times of the strides that cost least, n of them for each n of `counts`."""
    costs = stride_costs(schedule, curve.times, curve.mean)
    return {n: cheapest_times(curve.times, costs, n - 1) for n in counts if n < len(curve.times)}


def estimate_curves(model: Denoiser, config: AnalyticRun, images: Images) -> dict[str, Estimate]:
    """Return u(t) at every step by the size of the network's answers, and by their error."""
    times = even(config.model.n_steps, config.model.n_steps)
    x0 = to_floats(images.pixels[: config.curve_images].to(config.device))
    generator = Generator(config.device).manual_seed(config.seed)
    parts = [
        noise_shares(model, x, times, unlabelled(x, config.model), generator=generator)
        for x in x0.split(BATCH)
    ]
    explained, unexplained = (_pooled(kind) for kind in zip(*parts, strict=True))
    return {"size": replace(explained, mean=1 - explained.mean), "error": unexplained}


def _pooled(parts: tuple[Estimate, ...]) -> Estimate:
    """Return what equally many examples in each part say together."""
    mean = torch.stack([part.mean for part in parts]).mean(0)
    errors = torch.stack([part.standard_error for part in parts])
    return Estimate(parts[0].times, mean, errors.square().sum(0).sqrt() / len(parts))


def choose_widths(curves: dict[str, Estimate], model: DiffusionRun) -> dict[str, Variance]:
    """Return the variances whose bound is measured; 1 bounds x_0's own spread, |x_0| <= 1."""
    known = {name: Analytic(curve.times, curve.mean, spread=1.0) for name, curve in curves.items()}
    fixed = {"beta": beta, "beta_tilde": beta_tilde}
    if not model.learns_variance:
        return fixed | known
    heads = {"learned": learned_range, "learned, as doubt": doubt_of_head(model.n_steps)}
    return fixed | known | heads


def drawn_widths(curves: dict[str, Estimate]) -> dict[str, Variance | None]:
    """Return the further variances that samples are drawn with: one quieter, and DDIM's."""
    size, error = (curves[name] for name in ("size", "error"))
    known = Analytic(error.times, error.mean, spread=1.0)

    def quieter(prediction: Prediction, schedule: Schedule, s: Time, t: Time) -> Tensor:
        width = known(prediction, schedule, s, t)
        return width.clamp(max=QUIET**2) if s <= error.times[-1] else width

    still = {
        f"DDIM, {name}": Analytic(curve.times, curve.mean, eta=0.0, spread=1.0)
        for name, curve in {"size": size, "error": error}.items()
    }
    return {"error, quieter": quieter, "DDIM": None, **still}


def doubt_of_head(n_steps: int) -> Variance:
    """Return the width, for any stride, of the doubt that v implies in a single step.

    A single step's width is beta_tilde + phi (beta - beta_tilde), and so is any other's, by the
    same phi (notebook 05).
    """

    def variance(prediction: Prediction, schedule: Schedule, s: Time, t: Time) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float64)
        before = ((t * n_steps).round() - 1) / n_steps  # 0 itself at step 1
        width = learned_range(prediction, schedule, before, t)
        narrow, wide = (v(prediction, schedule, before, t) for v in (beta_tilde, beta))
        phi = ((width - narrow) / (wide - narrow)).clamp(min=1e-3)
        said = replace(prediction, noise_variance=phi * schedule.alpha(t).item() ** 2)
        return Diagonal(spread=1.0)(said, schedule, s, t)

    return variance


@torch.no_grad()
def bound(width: Width, unseen: Images, config: AnalyticRun, times: Tensor) -> Metrics:
    """Return the bound on unseen images in bits/dim; beta_tilde's decoder, which is 0, is beta."""
    generator = Generator(config.device).manual_seed(config.seed + 2)
    pixels = unseen.pixels[: config.bound_images].to(config.device)
    decoder = pixel_decoder(beta if width.variance is beta_tilde else width.variance)
    how = {"variance": width.variance, "decoder": decoder, "generator": generator}
    nats = torch.cat(
        [
            chain_bound(width.model, x, times, unlabelled(x, config.model), **how).total
            for x in to_floats(pixels).split(BATCH)
        ]
    )
    bits = nats.double() / (pixels[0].numel() * math.log(2))
    return {
        "bits_per_dim": round(bits.mean().item(), 4),
        "standard_error": round(bits.std().item() / len(bits) ** 0.5, 4),
    }


def _judge(
    config: AnalyticRun,
    images: Images,
    grids: dict[str, dict[int, Tensor]],
    widths: list[Width],
    out: Path,
) -> list[Metrics]:
    """Return how samples of every width score, and leave a picture of the shortest walks'."""
    by, rows, shown = judge_of(config.device, images.pixels.to(config.device)), [], []
    for grid, by_count in grids.items():
        for n in config.drawn:
            for width in widths:
                if grid != "even" and width.name not in ALONG_CHEAPEST:
                    continue
                pixels = draw(walk_of(width, by_count[n]), config)[0]
                scores = by.scores(pixels, None) if by is not None else {}
                kept = {k: scores[k] for k in ("fd_classifier", "precision", "recall") if scores}
                rows.append({"grid": grid, "steps": n, "width": width.name, **kept})
                if (grid, n) == ("even", config.drawn[0]):
                    shown.append(pixels[: config.pictured])
    if shown:
        save_sheet(to_floats(torch.cat(shown)), config.pictured, out / "widths.jpg")
    return rows


def walk_of(width: Width, times: Tensor) -> Way:
    """Return the walk along `times` and on to 0 whose fresh noise has a width."""
    step = ddim if width.name.startswith("DDIM") else ancestral
    to_data = torch.cat([times, times.new_zeros(1)])
    return Way({}, width.model, partial(step, variance=width.variance), to_data)


def _second_network(
    name: str, config: AnalyticRun, first: Denoiser, images: Images, out: Path
) -> Second:
    """Train a network on the squares of the first one's errors, and return what it says."""
    thin = replace(config.model.network, channels=config.channels, out_channels=3)
    shape = replace(config.model, network=thin, device=config.device, seed=config.seed + 1)

    def fresh() -> UNet:
        net = fresh_network(shape)
        if config.compiled:
            net.compile(dynamic=False, fullgraph=True)
        return net

    def asked(module: nn.Module) -> Denoiser:
        whole = NetworkDenoiser(HalfPrecision(module), first.schedule, "eps", config.model.clock)
        return WithNoiseVariance(first, residual_network(whole))

    def cost(module: UNet, pixels: Tensor, generator: Generator) -> Tensor:
        flip = torch.rand(len(pixels), generator=generator, device=pixels.device) < 0.5
        x0 = to_floats(torch.where(flip[:, None, None, None], pixels.flip(3), pixels))
        x0 = x0.contiguous(memory_format=torch.channels_last)
        steps = (1, config.model.n_steps + 1, flip.shape)
        n = torch.randint(*steps, generator=generator, device=pixels.device)
        cond: Condition | None = unlabelled(x0, config.model)
        t = n.double() / config.model.n_steps
        return residual_error(asked(module), x0, t, cond, generator=generator) / x0[0].numel()

    how = config.schedule(ema_decay=0.999)
    kept = {"checkpoint": config.checkpoint_in(out), "about": written_by(name)}
    result = train(fresh(), images.pixels, cost, how, **kept, watch=config.journal(out))
    net = fresh().eval().requires_grad_(False)
    net.load_state_dict(result.ema.state_dict())
    return asked(net).second


def _digits(values: Tensor) -> list[float]:
    return [float(f"{x:.4g}") for x in values.tolist()]
