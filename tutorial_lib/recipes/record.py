"""What every recipe shares: its settings, and the files that a run leaves."""

from __future__ import annotations

import json
import lzma
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from tutorial_lib.checkpoints import CheckpointError
from tutorial_lib.cifar10 import to_pixels
from tutorial_lib.train import Progress, TrainConfig

RESULTS = Path("results")
PATHS = ("source", "out", "inception", "weights")  # of one machine: no part of a record
Metrics = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Fix how many `images` a run looks at, and where it works."""

    images: int = 50_000
    seed: int = 0
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    out: str | None = None

    @property
    def compiled(self) -> bool:
        """Say whether the network is compiled: on a GPU."""
        return self.device.startswith("cuda")


@dataclass(frozen=True, kw_only=True)
class OnCifar10(RunConfig):
    """Limit the images of CIFAR-10's parts; `source` is where it lies, as for `cifar10`."""

    test_images: int = 10_000
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingRun(RunConfig):
    """Fix how long a run trains, and on how many processes.

    `shards` is a multiple of the number of processes, under torchrun (`ranks`); `sharded` shares
    out the network too (`TrainConfig`).
    """

    steps: int
    batch_size: int
    learning_rate: float
    checkpoint: bool = False
    shards: int = 1
    sharded: bool = False

    @property
    def compiled(self) -> bool:
        """Say whether the network is compiled: on a GPU, unless it lies in pieces."""
        return super().compiled and not self.sharded

    @property
    def images_seen(self) -> int:
        """Return how many examples the training looks at, repetitions included."""
        return self.steps * self.batch_size

    def schedule(self, **others: Any) -> TrainConfig:
        """Return how `train` is to run: a warm-up of at most 500 steps, clipped gradients."""
        warmup = min(500, self.steps // 10)
        shared: Metrics = {"warmup": warmup, "grad_clip": 1.0, "seed": self.seed}
        shared |= {"shards": self.shards, "sharded": self.sharded}
        shared |= {"log_every": max(1, self.steps // 100)}
        return TrainConfig(self.steps, self.batch_size, self.learning_rate, **shared | others)

    def checkpoint_in(self, out: Path) -> Path | None:
        """Return where the run keeps its state, if it is to keep it."""
        return out / "checkpoint.safetensors" if self.checkpoint else None

    def journal(self, out: Path) -> Journal:
        """Return the watcher that writes the run's log."""
        kept = self.checkpoint_in(out)
        return Journal(out, self.batch_size, resumed=kept is not None and kept.exists())


@dataclass(frozen=True)
class Recipe:
    """Describe a run to someone who must decide whether to start it.

    `cost` is time and memory, `expected` what the paper or a run found. `full` is the run on
    record, `small` shows the same on a CPU (None where that shows nothing), `tiny` only that the
    code runs. `headline` says in a few words what metrics.json found.
    """

    about: str
    paper: str
    cost: str
    expected: str
    run: Callable[[str, Any, Path], Metrics]
    headline: Callable[[Metrics], str]
    full: RunConfig
    small: RunConfig | None
    tiny: RunConfig

    def folder(self, name: str, config: RunConfig) -> Path:
        """Return where a run leaves its files: only the recorded run may replace its record."""
        if config.out is not None:
            return Path(config.out)
        free = {"device": self.full.device, "source": None, "checkpoint": False}
        named = {field.name for field in fields(config)}
        same = replace(config, **{k: v for k, v in free.items() if k in named})
        return (RESULTS if same == self.full else Path("runs")) / name


def write_metrics(out: Path, name: str, config: RunConfig, found: Metrics) -> Metrics:
    """Write and return metrics.json: what was found, with settings, machine and commit."""
    metrics = {
        "recipe": name,
        **found,
        **({"images_seen": config.images_seen} if isinstance(config, TrainingRun) else {}),
        "config": {k: None if k in PATHS else v for k, v in asdict(config).items()},
        **_where(config.device),
    }
    text = json.dumps(metrics, indent=2, default=lambda value: value.__qualname__)
    (out / "metrics.json").write_text(text + "\n")
    return json.loads(text)


def written_by(name: str) -> dict[str, str]:
    """Return what a checkpoint says of its origin: the recipe, and the commit that ran it."""
    return {"recipe": name, "commit": _commit()}


def origin(name: str, device: str) -> dict[str, str]:
    """Return what a file of weights says of its origin: recipe, commit, device and torch."""
    where = _where(device)
    return written_by(name) | {"device": where["device"], "torch": where["torch"]}


def origin_of(weights: Path) -> dict[str, str]:
    """Return what a file of weights says of its origin."""
    return load_weights(weights)[1]


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's weights by name, and what it says of their origin; raise CheckpointError.

    A name in `.xz` is that of packed weights (`tools/ship.py`), unless a later run has left its
    own beside them.
    """
    fresh = path.with_name(path.name.removesuffix(".xz"))
    path = fresh if fresh.exists() else path
    try:
        content = path.read_bytes()
        content = lzma.decompress(content) if path.suffix == ".xz" else content
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, lzma.LZMAError) as error:
        raise CheckpointError(
            f"{path} is damaged or holds no weights ({error}): put a good copy in its place, or "
            "run its recipe again"
        ) from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors, header.get("__metadata__", {})


def save_weights(
    net: torch.nn.Module | dict[str, Tensor], path: Path, about: dict[str, str] | None = None
) -> None:
    """Write a network's weights, or some by name, in bfloat16, 2 bytes each, with their origin."""
    kept = net if isinstance(net, dict) else net.state_dict()
    half = {name: x.detach().bfloat16().cpu().contiguous() for name, x in kept.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(half, path, about)


class Journal:
    """Write log.jsonl while a run goes on: loss, images per second and seconds, in JSON lines.

    A run that goes on from a checkpoint keeps the lines up to there.
    """

    def __init__(self, out: Path, batch_size: int, *, resumed: bool) -> None:
        self.path, self.batch_size = out / "log.jsonl", batch_size
        self.kept = self.path.read_text().splitlines() if resumed and self.path.exists() else []
        self.last: Progress | None = None

    def __call__(self, told: Progress, **measured: float) -> None:
        """Add a line, with what else was measured."""
        self.kept = [line for line in self.kept if json.loads(line)["step"] < told.step]
        line: Metrics = {"step": told.step, "loss": round(told.loss, 4)}
        line |= measured | {"seconds": round(told.seconds, 1)}
        if self.last is not None:
            passed = told.seconds - self.last.seconds
            line["images_per_second"] = round(
                (told.step - self.last.step) * self.batch_size / max(passed, 1e-9)
            )
        self.last = told
        self.kept.append(json.dumps(line))
        self.path.write_text("\n".join(self.kept) + "\n")


def save_sheet(x: Tensor, nrow: int, path: Path) -> None:
    """Write images (N, 3, H, W) in [-1, 1] as one JPEG, `nrow` in a row."""
    tiles = to_pixels(x).cpu().permute(0, 2, 3, 1)
    rows = [torch.cat(list(row), dim=1) for row in tiles.split(nrow)]
    tiled = Image.fromarray(torch.cat(rows, dim=0).numpy())
    tiled.save(path, quality=92, subsampling=0)  # kept in the repository: a quarter of a PNG


def require_device(device: str) -> None:
    """Raise ValueError unless tensors can be made on `device`."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter from a build without CUDA
        raise ValueError(f"there is no device {device!r} here: choose cpu") from error


def _where(device: str) -> Metrics:
    gpu = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(device)
        if gpu
        else f"{device.upper()} ({platform.machine()})",
        "memory_gb": round(torch.cuda.max_memory_allocated(device) / 1e9, 1) if gpu else None,
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _commit() -> str:
    if named := os.environ.get("COURSE_COMMIT"):
        return named
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not run from a checkout"
