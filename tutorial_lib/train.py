"""Train any network on any loss: one loop, with moving averages and checkpoints.

A checkpoint is one safetensors file that holds everything a step changes. Calling `train` again
with the same arguments goes on from it; on a CPU the weights then equal those of an uninterrupted
run bit for bit.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import safetensors
import safetensors.torch
import torch
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

Data = Tensor | tuple[Tensor, ...]
Objective = Callable[[nn.Module, Data, Generator], Tensor]

_NOT_PART_OF_THE_RUN = ("log_every", "checkpoint_every")


class CheckpointError(RuntimeError):
    """Say that a checkpoint cannot be read, written or used for this run."""


class TrainingDiverged(RuntimeError):
    """Say that the loss or the weights are no longer finite."""


@dataclass(frozen=True)
class TrainConfig:
    """Fix everything about a run but its network, its data and its loss.

    Adam (Kingma and Ba 2015). The learning rate rises over `warmup` steps, then falls to
    `final_rate` times its peak by half a cosine (Loshchilov and Hutter 2017, eq. 5);
    `final_rate=1` keeps it constant. Gradients are clipped to the norm `grad_clip`, if given.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 0
    final_rate: float = 0.0
    ema_decay: float = 0.999
    grad_clip: float | None = None
    seed: int = 0
    log_every: int = 100
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "log_every", "checkpoint_every"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be positive")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}: it must lie in [0, 1)")

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, 0 to steps - 1."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / (self.steps - self.warmup)
        fall = (1 - self.final_rate) * (1 - math.cos(math.pi * done)) / 2
        return self.learning_rate * (1 - fall)


# The standard 2-D run of the course, for `PointMLP` and a pool of 200,000 points.
TOY = TrainConfig(steps=4000, batch_size=512, learning_rate=8e-3, warmup=100)


@dataclass(frozen=True)
class TrainResult:
    """Hold the trained network, its moving average, and the loss of every step, (steps,).

    `module` is the network that was passed in; `ema` is a frozen copy of it with averaged
    weights. Both are in eval mode. `seconds` counts all sessions of a resumed run.
    """

    module: nn.Module
    ema: nn.Module
    losses: Tensor
    seconds: float


def train(
    module: nn.Module,
    data: Data,
    objective: Objective,
    config: TrainConfig = TOY,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> TrainResult:
    """Minimise the mean of objective(module, batch, generator), a scalar or (B,), in place.

    The rows of each batch are drawn uniformly, with replacement, from `data`, a tensor (N, ...)
    or a tuple of such (a batch is then a tuple), which is moved to the module's device once.
    The generator that draws them is the one the objective receives.

    A finished checkpoint is returned as it is. It knows its config, its data and the shapes of
    its network, but not its objective: name the file after it. Ctrl-C ends the step in hand,
    saves and raises KeyboardInterrupt; a second one stops at once.
    The bar shows unless `progress` is False; by default (None) it also hides where no person
    watches: under pytest and nbval (PYTEST_VERSION), CI, or TQDM_DISABLE in the environment.
    Raises TrainingDiverged within `log_every` steps, and CheckpointError.
    """
    run = _Run(module, data, config)
    store = _Checkpoint(Path(checkpoint)) if checkpoint is not None else None
    if store is not None and store.path.exists():
        store.load(run)
    with _held_interrupts() as interrupts, _bar(run, progress) as bar:
        while run.step < config.steps:
            run.advance(objective)
            stopping = bool(interrupts)
            saving = stopping or run.step % config.checkpoint_every == 0
            saving = store is not None and (saving or run.step == config.steps)
            if saving or stopping or run.step % config.log_every == 0 or run.step == config.steps:
                _report(run, bar)
            if saving:
                store.save(run)
            if stopping:
                raise KeyboardInterrupt(_farewell(run, store))
    return run.result()


class _Run:
    """Hold everything that a step changes."""

    def __init__(self, module: nn.Module, data: Data, config: TrainConfig) -> None:
        self.module, self.config = module.train(), config
        self.weights = [p for p in module.parameters() if p.requires_grad]
        if not self.weights:
            raise ValueError("nothing to train: no parameter of the module requires a gradient")
        self.device = self.weights[0].device
        self.tupled = isinstance(data, tuple)
        self.pool = [x.to(self.device) for x in (data if self.tupled else (data,))]
        if len({len(x) for x in self.pool}) != 1 or not len(self.pool[0]):
            raise ValueError(f"data has {[len(x) for x in self.pool]} rows: equal and positive")
        self.ema = copy.deepcopy(module).eval().requires_grad_(False)
        pairs = zip(module.parameters(), self.ema.parameters(), strict=True)
        self.averages = [average for weight, average in pairs if weight.requires_grad]
        self.optimiser = torch.optim.Adam(self.weights, config.learning_rate, fused=True)
        self.generator = Generator(self.device).manual_seed(config.seed)
        self.losses = torch.zeros(config.steps, device=self.device)
        self.step, self.reported, self.seconds = 0, 0, 0.0
        self.started = time.perf_counter()

    def advance(self, objective: Objective) -> None:
        """Take one step, without waiting for the device."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.rate_at(self.step)
        loss = _mean(objective(self.module, self._batch(), self.generator), self.config)
        self.optimiser.zero_grad()
        loss.backward()
        if self.config.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.weights, self.config.grad_clip)
        self.optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.weights, 1 - self.config.ema_decay)
            self.losses[self.step] = loss
        self.step += 1

    def _batch(self) -> Data:
        rows, size = len(self.pool[0]), (self.config.batch_size,)
        index = torch.randint(rows, size, generator=self.generator, device=self.device)
        batch = tuple(x.index_select(0, index) for x in self.pool)
        return batch if self.tupled else batch[0]

    def tensors(self) -> dict[str, Tensor]:
        """Return the live tensors that a checkpoint must restore, by name."""
        named = {f"module.{name}": x for name, x in _contents(self.module)}
        named |= {f"ema.{i}": x for i, x in enumerate(self.averages)}
        for i, weight in enumerate(self.weights):
            named |= {f"adam.{i}.{key}": x for key, x in self.optimiser.state[weight].items()}
        return named | {"losses": self.losses}

    def restore(self, saved: dict[str, Tensor], step: int, seconds: float) -> None:
        """Become the run that wrote `saved`, after its `step` steps."""
        self.generator.set_state(saved["generator"])
        for name, x in saved.items():
            kind, _, rest = name.partition(".")
            if kind == "adam":
                i, key = rest.split(".")
                weight = self.weights[int(i)]
                like = weight if x.shape == weight.shape else x  # keeps the weight's strides
                self.optimiser.state[weight][key] = torch.empty_like(like, device=self.device)
        with torch.no_grad():
            for name, x in self.tensors().items():
                x.copy_(saved[name])
        self.step, self.reported, self.seconds = step, step, seconds

    def elapsed(self) -> float:
        """Return the seconds spent so far, in all sessions."""
        return self.seconds + time.perf_counter() - self.started

    def check(self) -> float:
        """Return the mean loss since the last call; raise if anything is not finite."""
        fresh = self.losses[self.reported : self.step].cpu()
        wrong = (~fresh.isfinite()).nonzero()
        if len(wrong):
            step = self.reported + int(wrong[0])
            raise TrainingDiverged(self._diverged(step, f"the loss is {float(fresh[wrong[0]])}"))
        norms = torch.stack(torch._foreach_norm([w.detach() for w in self.weights]))
        if not bool(norms.isfinite().all()):
            raise TrainingDiverged(self._diverged(self.step - 1, "the weights are not finite"))
        self.reported = self.step
        return float(fresh.mean())

    def _diverged(self, step: int, what: str) -> str:
        rate = self.config.rate_at(step)
        return (
            f"{what} at step {step + 1} of {self.config.steps}, where the learning rate is "
            f"{rate:.2g}: try a smaller learning_rate, a longer warmup or grad_clip=1.0, and look "
            "for nan in the data"
        )

    def result(self) -> TrainResult:
        """Return what was trained; buffers of the average are those of the network."""
        for average, current in zip(self.ema.buffers(), self.module.buffers(), strict=True):
            average.copy_(current)
        return TrainResult(self.module.eval(), self.ema, self.losses.cpu(), self.elapsed())

    def identity(self) -> dict[str, str]:
        """Return what a checkpoint must agree on before this run may go on from it."""
        config = {k: v for k, v in asdict(self.config).items() if k not in _NOT_PART_OF_THE_RUN}
        network = {f"module.{name}": _described(x) for name, x in _contents(self.module)}
        data = {}
        for i, x in enumerate(self.pool):
            rows = x[:: max(1, len(x) // 64)]
            data[f"data {i}"] = f"{_described(x)} {hashlib.sha256(_bytes(rows)).hexdigest()[:8]}"
        device = {"device": self.device.type}
        return {key: str(value) for key, value in (config | network | data | device).items()}


def _mean(loss: Tensor, config: TrainConfig) -> Tensor:
    if loss.shape not in ((), (config.batch_size,)):
        raise ValueError(
            f"the objective returned shape {tuple(loss.shape)}: it must return a scalar or one "
            f"loss an example, ({config.batch_size},)"
        )
    return loss.mean()


def _contents(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _described(x: Tensor) -> str:
    frozen = " frozen" if isinstance(x, nn.Parameter) and not x.requires_grad else ""
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}{frozen}"


def _bytes(x: Tensor) -> memoryview:
    return x.detach().cpu().reshape(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True)
class _Checkpoint:
    """Keep a run in one safetensors file, replaced as a whole or not at all."""

    path: Path

    def save(self, run: _Run) -> None:
        """Write beside the file, wait for the disk, then rename; raise CheckpointError."""
        tensors = {name: x.detach().cpu().contiguous() for name, x in run.tensors().items()}
        tensors["generator"] = run.generator.get_state()
        metadata = {
            "identity": json.dumps(run.identity()),
            "step": str(run.step),
            "seconds": repr(run.elapsed()),
            "crc32": str(_crc32(tensors)),
        }
        partial = self.path.with_name(f"{self.path.name}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(safetensors.torch.save(tensors, metadata))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            raise CheckpointError(
                f"cannot write {self.path} after step {run.step} ({error.strerror}): make room or "
                "choose another file, then call train again; an earlier checkpoint is intact"
            ) from error

    def load(self, run: _Run) -> None:
        """Put the run where the file left it; raise CheckpointError if it belongs to another."""
        metadata, tensors = self._read()
        ours, theirs = run.identity(), json.loads(metadata["identity"])
        for key in sorted(ours.keys() | theirs.keys()):
            mine, other = ours.get(key, "absent"), theirs.get(key, "absent")
            if mine != other:
                raise CheckpointError(
                    f"{self.path} belongs to another run: {key} is {other} there and {mine} here; "
                    "give this run another file, or delete that one"
                )
        run.restore(tensors, int(metadata["step"]), float(metadata["seconds"]))

    def _read(self) -> tuple[dict[str, str], dict[str, Tensor]]:
        advice = "delete it to start again, or put a good copy in its place"
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.path} is truncated or no checkpoint ({error}): {advice}"
            ) from error
        if metadata.get("crc32") != str(_crc32(tensors)):
            raise CheckpointError(f"{self.path} is damaged, its checksum is wrong: {advice}")
        return metadata, tensors


def _crc32(tensors: dict[str, Tensor]) -> int:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(_bytes(tensors[name]), zlib.crc32(name.encode(), value))
    return value


@contextmanager
def _held_interrupts() -> Iterator[list[int]]:
    """Collect Ctrl-C in a list, so that the step in hand ends whole; a second one is not held."""
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if held:
            raise KeyboardInterrupt
        held.append(number)

    before = None
    with suppress(ValueError):  # raised outside the main thread, which alone receives signals
        before = signal.signal(signal.SIGINT, hold)
    try:
        yield held
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _bar(run: _Run, progress: bool | None) -> tqdm:
    if progress is None:
        unwatched = ("CI", "PYTEST_VERSION", "TQDM_DISABLE")
        progress = not any(os.environ.get(name) for name in unwatched)
    return tqdm(total=run.config.steps, initial=run.step, unit="step", disable=not progress)


def _report(run: _Run, bar: tqdm) -> None:
    fresh = run.step - run.reported
    bar.set_postfix(loss=f"{run.check():.4f}", refresh=False)
    bar.update(fresh)


def _farewell(run: _Run, store: _Checkpoint | None) -> str:
    stopped = f"stopped after step {run.step} of {run.config.steps}"
    if store is None:
        return f"{stopped}; nothing is saved: give train a checkpoint to be able to go on"
    return f"{stopped}, saved in {store.path}: call train again with the same arguments to go on"
