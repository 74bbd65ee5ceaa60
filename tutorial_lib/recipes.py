"""Recorded runs: `python -m tutorial_lib.recipes NAME [--small] [--steps 100 ...]`, or `--list`.

A run leaves `metrics.json`, `samples.png`, `reconstructions.png` and `log.jsonl` in its folder:
`results/NAME` for the run that is recorded there, `runs/NAME` for any other, or `--out`. `--small`
is the same code in a minute on a CPU, `--tiny` in seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor

from tutorial_lib.autoencoder import Bound, HierarchicalVAE, Stage, image_vae
from tutorial_lib.cifar10 import DataError, Images, cifar10, to_floats, to_pixels
from tutorial_lib.train import (
    CheckpointError,
    TrainConfig,
    TrainingDiverged,
    TrainResult,
    train,
)

NATS_PER_BIT = math.log(2)
RESULTS = Path("results")
FAULTS = (
    *(ValueError, OSError, torch.OutOfMemoryError),
    *(DataError, CheckpointError, TrainingDiverged),
)


@dataclass(frozen=True)
class ImageVAERun:
    """Fix an image VAE: its levels, from the pixels up, and how long it trains on what.

    `images` and `test_images` limit the data; `source` is where CIFAR-10 lies, as for `cifar10`.
    """

    stages: tuple[Stage, ...]
    steps: int = 5_000
    batch_size: int = 256
    learning_rate: float = 6e-4
    images: int = 50_000
    test_images: int = 10_000
    seed: int = 0
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    source: str | None = None
    out: str | None = None
    checkpoint: bool = False


@dataclass(frozen=True)
class Recipe:
    """Describe a run to someone who must decide whether to start it.

    `full` is the run on record, `small` shows the same on a CPU, `tiny` only that the code runs.
    """

    about: str
    paper: str
    cost: str
    full: ImageVAERun
    small: ImageVAERun
    tiny: ImageVAERun


FLAT = (Stage((128, 256), 32, 3),)
LADDER = (Stage((128,), 16, 3), Stage((256,), 32, 3), Stage((256,), 64, 3))
SMALL = {
    "steps": 1500,
    "batch_size": 8,
    "learning_rate": 8e-3,
    "images": 2000,
    "test_images": 500,
    "device": "cpu",
}
TINY = {"steps": 20, "batch_size": 16, "images": 64, "test_images": 32, "device": "cpu"}

RECIPES = {
    "cifar10_vae": Recipe(
        "VAE with one level of 8x8x32 latents on CIFAR-10, discretised-logistic pixels",
        "Kingma & Welling 2014",
        "2 minutes on an H200",
        ImageVAERun(FLAT),
        ImageVAERun((Stage((16, 32), 32, 1),), **SMALL),
        ImageVAERun((Stage((8, 16), 8, 1),), **TINY),
    ),
    "cifar10_hvae": Recipe(
        "Markovian hierarchical VAE with three levels, 16x16x16, 8x8x32 and 4x4x64",
        "Luo 2022, section 'Hierarchical VAE'",
        "3 minutes on an H200",
        ImageVAERun(LADDER),
        ImageVAERun((Stage((16,), 8, 1), Stage((32,), 16, 1), Stage((32,), 32, 1)), **SMALL),
        ImageVAERun((Stage((8,), 4, 1), Stage((8,), 8, 1), Stage((8,), 8, 1)), **TINY),
    ),
}


def run(name: str, *, small: bool = False, tiny: bool = False, **overrides: Any) -> dict[str, Any]:
    """Run a recipe, with some of its settings changed, and return what it wrote as metrics.

    Raises ValueError for an unknown recipe or a setting that cannot be, DataError,
    CheckpointError and TrainingDiverged.
    """
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}: choose from {', '.join(RECIPES)}")
    if small and tiny:
        raise ValueError("a run is small or tiny: choose one")
    recipe = RECIPES[name]
    base = recipe.small if small else recipe.tiny if tiny else recipe.full
    unknown = set(overrides) - {field.name for field in fields(base)}
    if unknown:
        raise ValueError(f"{name} has no setting {', '.join(sorted(unknown))}")
    return _run_image_vae(name, replace(base, **overrides))


def _run_image_vae(name: str, config: ImageVAERun) -> dict[str, Any]:
    _require_device(config.device)
    out = _folder(name, config)
    out.mkdir(parents=True, exist_ok=True)
    images = cifar10("train", source=config.source, limit=config.images)
    unseen = cifar10("test", source=config.source, limit=config.test_images)
    generator = torch.Generator(config.device).manual_seed(config.seed)
    result = _fit(config, images, out)
    vae = result.ema
    test = unseen.pixels.to(config.device)
    metrics = {
        "recipe": name,
        "data": images.form,
        **_measure(vae, test, generator),
        "parameters": sum(p.numel() for p in vae.parameters()),
        "seconds": round(result.seconds, 1),
        "images_seen": config.steps * config.batch_size,
        "config": asdict(config) | {"source": None, "out": None},
        **_where(config.device),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    _draw(vae, test[:16], generator, out)
    _log(result.losses, config, out)
    return metrics


def _require_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter from a build without CUDA
        raise ValueError(f"there is no device {device!r} here: choose cpu") from error


def _folder(name: str, config: ImageVAERun) -> Path:
    """Return where a run leaves its files: only the recorded run may replace its record."""
    if config.out is not None:
        return Path(config.out)
    recorded = RECIPES[name].full
    same = replace(config, device=recorded.device, source=None, checkpoint=False)
    return (RESULTS if same == recorded else Path("runs")) / name


def _fit(config: ImageVAERun, images: Images, out: Path) -> TrainResult:
    drawn = torch.Generator().manual_seed(config.seed)
    vae = image_vae(config.stages, generator=drawn)
    vae = vae.to(config.device, memory_format=torch.channels_last)

    def objective(vae: HierarchicalVAE, pixels: Tensor, generator: Generator) -> Tensor:
        flip = torch.rand(len(pixels), generator=generator, device=pixels.device) < 0.5
        pixels = torch.where(flip[:, None, None, None], pixels.flip(3), pixels)
        return -_bound(vae, pixels, generator).elbo / (pixels[0].numel() * NATS_PER_BIT)

    schedule = TrainConfig(
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup=min(500, config.steps // 10),
        grad_clip=1.0,
        seed=config.seed,
    )
    checkpoint = out / "checkpoint.safetensors" if config.checkpoint else None
    return train(vae, images.pixels, objective, schedule, checkpoint=checkpoint)


def _bound(vae: HierarchicalVAE, pixels: Tensor, generator: Generator) -> Bound:
    """Run the networks in bfloat16 on a GPU (2.5 times as fast); likelihoods stay float32."""
    x = to_floats(pixels).contiguous(memory_format=torch.channels_last)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
        return vae.bound(x, generator=generator)


@torch.no_grad()
def _measure(vae: HierarchicalVAE, pixels: Tensor, generator: Generator) -> dict[str, Any]:
    """Return the bound on unseen images in bits/dim, its standard error and its parts."""
    bounds = [_bound(vae, batch, generator) for batch in pixels.split(500)]
    bits = pixels[0].numel() * NATS_PER_BIT
    reconstruction = -torch.cat([b.reconstruction for b in bounds]).double() / bits
    kl = torch.cat([b.kl for b in bounds]).double() / bits
    total = reconstruction + kl.sum(1)
    return {
        "bits_per_dim": round(total.mean().item(), 4),
        "standard_error": round(total.std().item() / len(total) ** 0.5, 4),
        "reconstruction": round(reconstruction.mean().item(), 4),
        "kl_of_levels": [round(level, 4) for level in kl.mean(0).tolist()],
    }


@torch.no_grad()
def _draw(vae: HierarchicalVAE, pixels: Tensor, generator: Generator, out: Path) -> None:
    """Store unseen images above their reconstructions from every level, and 64 samples."""
    x = to_floats(pixels)
    levels = range(1, len(vae.encoders) + 1)
    rows = [x, *(vae.reconstruct(x, level) for level in levels)]
    _sheet(torch.cat(rows), len(x)).save(out / "reconstructions.png")
    made = vae.generate(64, generator=generator).mean
    _sheet(made, 16).save(out / "samples.png")


def _sheet(x: Tensor, nrow: int) -> Image.Image:
    tiles = to_pixels(x).cpu().permute(0, 2, 3, 1)
    rows = [torch.cat(list(row), dim=1) for row in tiles.split(nrow)]
    return Image.fromarray(torch.cat(rows, dim=0).numpy())


def _log(losses: Tensor, config: ImageVAERun, out: Path) -> None:
    """Store the mean training loss (bits/dim) of every hundredth of the run."""
    every = max(1, config.steps // 100)
    means = [chunk.mean().item() for chunk in losses.split(every)]
    lines = [
        json.dumps({"step": min((k + 1) * every, config.steps), "loss": round(mean, 4)})
        for k, mean in enumerate(means)
    ]
    (out / "log.jsonl").write_text("\n".join(lines) + "\n")


def _where(device: str) -> dict[str, str]:
    gpu = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(device)
        if gpu
        else f"{device.upper()} ({platform.machine()})",
        "torch": torch.__version__,
        "commit": os.environ.get("COURSE_COMMIT") or _commit(),
    }


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not run from a checkout"


def _listing() -> str:
    return "\n".join(_described(name, recipe) for name, recipe in RECIPES.items())


def _described(name: str, recipe: Recipe) -> str:
    lines = [name, recipe.about, f"{recipe.paper}; {recipe.cost}"]
    record = RESULTS / name / "metrics.json"
    if record.exists():
        found = json.loads(record.read_text())
        figure = f"{found['bits_per_dim']:.3f} ± {found['standard_error']:.3f} bits/dim"
        lines.append(f"recorded: {figure} on {found['data']}; {found['device']}")
    return "\n  ".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tutorial_lib.recipes", description=__doc__)
    parser.add_argument("name", nargs="?", choices=RECIPES)
    parser.add_argument("--list", action="store_true", help="say what there is, and what it costs")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--small", action="store_true", help="the same in a minute, on a CPU")
    forms.add_argument("--tiny", action="store_true", help="the same in seconds, on a CPU")
    for field in fields(ImageVAERun):
        option = "--" + field.name.replace("_", "-")
        if field.type == "bool":
            parser.add_argument(option, action=argparse.BooleanOptionalAction)
        elif field.name != "stages":
            kind = {"int": int, "float": float}.get(str(field.type), str)
            parser.add_argument(option, type=kind)
    return parser


def _sentence(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory is full: choose a smaller --batch-size"
    if isinstance(error, OSError):
        reason = error.strerror or error
        return f"cannot write the run's files ({reason}): make room, or name a folder with --out"
    return str(error)


def main(arguments: list[str]) -> int:
    """Read the command line, run, print the metrics; return the exit status."""
    given = {k: v for k, v in vars(_parser().parse_args(arguments)).items() if v is not None}
    name, listing = given.pop("name", None), given.pop("list")
    if listing or name is None:
        print(_listing())
        return 0
    try:
        print(json.dumps(run(name, **given), indent=2))
    except KeyboardInterrupt as stop:
        print(stop.args[0] if stop.args else "stopped, not saved", file=sys.stderr)
        return 130
    except FAULTS as error:
        print(_sentence(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
