"""Train any network on any loss: one loop, with moving averages and checkpoints.

A checkpoint is one safetensors file with everything a step changes. The same call of `train` goes
on from it; on a CPU the weights then equal those of an uninterrupted run bit for bit.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

from tutorial_lib import borrowed, ranks
from tutorial_lib.checkpoints import RunFile, bytes_of, described
from tutorial_lib.interrupts import held_interrupts
from tutorial_lib.recorded import WARM_UP, RecordedStep, own_stream

Data = Tensor | tuple[Tensor, ...]
Objective = Callable[[nn.Module, Data, Generator], Tensor]
Watcher = Callable[["Progress"], None]


class TrainingDiverged(RuntimeError):
    """Say that the loss or the weights are no longer finite."""


@dataclass(frozen=True)
class TrainConfig:
    """Fix everything about a run but its network, its data and its loss.

    Adam (Kingma & Ba 2015). The rate rises over `warmup` steps, then falls to `final_rate` (1
    for a constant) times its peak by half a cosine (Loshchilov & Hutter 2017, eq. 5). Gradients
    are clipped to the norm `grad_clip`, if given. On a GPU, `graph` records a step once, as a
    CUDA graph, and replays it; the objective must then not look at the values of its tensors.
    A batch is drawn in `shards`, which the processes of a run share out (`ranks`): it is the same
    batch on any number of them. If `sharded`, they also share out the weights, their gradients and
    averages and Adam's state, for what outgrows a GPU; a run that is stopped then leaves its
    module empty. On one process it does nothing.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 0
    final_rate: float = 0.0
    ema_decay: float = 0.999
    grad_clip: float | None = None
    seed: int = 0
    shards: int = 1
    log_every: int = 100
    checkpoint_every: int = 1000
    graph: bool = False
    sharded: bool = False

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "shards", "log_every", "checkpoint_every")
        for name in (*counts, "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be positive")
        if self.batch_size % self.shards:
            raise ValueError(f"{self.shards} shards cannot share {self.batch_size} rows evenly")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}: it must lie in [0, 1)")

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, 0 to steps - 1."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / (self.steps - self.warmup)
        fall = (1 - self.final_rate) * (1 - math.cos(math.pi * done)) / 2
        return self.learning_rate * (1 - fall)

    def decay_at(self, step: int) -> float:
        """Return the share of the average that a step keeps (Song et al. 2021, released code).

        A constant 0.999 would still keep 2 % of the random initial weights after 4000 steps.
        """
        return min(self.ema_decay, (1 + step) / (10 + step))


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


@dataclass(frozen=True)
class Progress:
    """Tell a watcher where a run stands: its mean loss since last told, its seconds in all."""

    step: int
    loss: float
    seconds: float
    ema: nn.Module


def train(
    module: nn.Module,
    data: Data,
    objective: Objective,
    config: TrainConfig = TOY,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    keep: int = 1,
    about: dict[str, str] | None = None,
    progress: bool | None = None,
    watch: Watcher | None = None,
) -> TrainResult:
    """Minimise the mean of objective(module, batch, generator), a scalar or (B,), in place.

    A batch's rows are drawn uniformly, with replacement, from `data`, a tensor (N, ...) or a tuple
    of such (a batch is then a tuple), which is moved to the module's device once. One generator
    draws them and what the objective draws.

    `watch`, which every process passes, is told on rank 0, every `log_every` steps, how things
    stand. The last `keep` checkpoints stay, older ones as checkpoint.1, .2, ... A finished
    checkpoint is returned as it is. It knows its config, its data and the shapes of its network,
    but not its objective: name the file after it. What it is `about` (a recipe, a commit) goes
    into its metadata, for people to read.
    Ctrl-C ends the step in hand, saves and raises KeyboardInterrupt; a second one stops at once.
    Raises TrainingDiverged within `log_every` steps, CheckpointError. By default (progress=None)
    the bar hides where no person watches: PYTEST_VERSION (pytest, nbval), CI or TQDM_DISABLE is
    in the environment.
    """
    device = next(module.parameters()).device
    borrowed_for_dropout = borrowed.default_generator(device, config.seed)
    stream = own_stream(device, config.graph)
    joined = ranks.joined(device)
    with joined, held_interrupts() as interrupts, stream, borrowed_for_dropout:
        run = _Run(module, data, config)
        store = RunFile(Path(checkpoint), keep, about or {}) if checkpoint is not None else None
        if store and store.path.exists():
            store.load(run)
        with _bar(run, progress) as bar:
            while run.step < config.steps:
                run.advance(objective)
                bar.update(config.batch_size)
                together = ranks.size() == 1 or run.step % config.log_every == 0
                stopping = together and ranks.any_of(bool(interrupts))
                _tend(run, store, bar, watch, stopping)
        return run.result()


def _tend(
    run: _Run, store: RunFile | None, bar: tqdm, watch: Watcher | None, stopping: bool
) -> None:
    due = stopping or run.step == run.config.steps
    saving = store and (due or run.step % run.config.checkpoint_every == 0)
    reporting = run.step % run.config.log_every == 0
    if due or saving or reporting:
        loss = run.check()
        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if watch and (due or reporting):
            with ranks.filled(run.ema, run.averaged) as ema:
                if ranks.rank() == 0:
                    watch(Progress(run.step, loss, time.perf_counter() - run.started, ema))
    if saving:
        store.save(run)
    if stopping:
        how = "saved: the same call goes on" if store else "not saved: pass checkpoint="
        raise KeyboardInterrupt(f"stopped after step {run.step}, {how}")


def _own_shards(shards: int) -> range:
    """Return the numbers of the shards that this process draws."""
    processes = ranks.size()
    if shards % processes:
        raise ValueError(f"{processes} processes cannot share {shards} shards: set shards")
    each = shards // processes
    return range(ranks.rank() * each, (ranks.rank() + 1) * each)


class _Run:
    """Hold everything that a step changes."""

    def __init__(self, module: nn.Module, data: Data, config: TrainConfig) -> None:
        self.module, self.config = module.train(), config
        if not any(p.requires_grad for p in module.parameters()):
            raise ValueError("nothing to train: no parameter of the module requires a gradient")
        self.device = next(module.parameters()).device
        self.tupled = isinstance(data, tuple)
        self.pool = [x.to(self.device) for x in (data if self.tupled else (data,))]
        rows = [len(x) for x in self.pool]
        if len(set(rows)) != 1 or rows[0] == 0:
            raise ValueError(f"data has {rows} rows: every tensor needs the same, at least one")
        self.ema = copy.deepcopy(module).eval().requires_grad_(False)
        self.net = ranks.in_pieces(module, config.sharded)
        self.averaged = ranks.in_pieces(self.ema, config.sharded)
        self.contents = dict(self.net.named_parameters()) | dict(self.net.named_buffers())
        self.weights = [p for p in self.net.parameters() if p.requires_grad]
        pairs = zip(self.net.parameters(), self.averaged.parameters(), strict=True)
        self.averages = [average for weight, average in pairs if weight.requires_grad]
        # a rate that a recorded step reads anew must be a tensor
        self.rate = torch.tensor(config.learning_rate, device=self.device)
        rate = self.rate if config.graph else config.learning_rate
        # fused: .9 ms for 36 M weights on an H200; foreach takes 2.9, one after another 19.7
        self.optimiser = torch.optim.Adam(self.weights, rate, fused=True, capturable=config.graph)
        self.recorded: RecordedStep | None = None
        if config.graph and ranks.size() > 1:
            raise ValueError("graph records one process alone: turn it off, or run one process")
        self.parallel, self.own = ranks.parallel(self.net), _own_shards(config.shards)
        seeds = [config.seed if config.shards == 1 else 1000 * config.seed + k for k in self.own]
        self.generators = [Generator(self.device).manual_seed(seed) for seed in seeds]
        self.losses = torch.zeros(config.steps, device=self.device)
        self.step, self.checked, self.started = 0, 0, time.perf_counter()
        self.taken = 0  # steps of this session

    def advance(self, objective: Objective) -> None:
        """Take one step, without waiting for the device."""
        rate = self.config.rate_at(self.step)
        if self.config.graph:
            self.rate.fill_(rate)
        else:
            self.optimiser.param_groups[0]["lr"] = rate
        if self.config.graph and self.recorded is None and self.taken > WARM_UP:
            self.recorded = RecordedStep(lambda: self.descend(objective), self.generators)
        loss = self.recorded.replay() if self.recorded else self.descend(objective)
        self.taken += 1
        self.losses[self.step] = loss
        share = 1 - self.config.decay_at(self.step)
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.weights, share)  # .2 ms, singly 2.1
        self.step += 1

    def descend(self, objective: Objective) -> Tensor:
        """Draw a batch, move the weights against the gradient of its loss, and return the loss."""
        for weight in self.weights:
            weight.grad = None
        total = torch.zeros((), device=self.device)
        for k, generator in enumerate(self.generators, start=1):
            with ranks.unshared(self.parallel, k < len(self.own)):
                loss = objective(self.parallel, self._batch(generator), generator)
                self._require(loss.shape)
                loss = loss.mean() / len(self.own)
                loss.backward()
            total = total + loss.detach()
        if self.config.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.weights, self.config.grad_clip)
        self.optimiser.step()
        return total

    @property
    def _rows(self) -> tuple[int]:
        return (self.config.batch_size // self.config.shards,)

    def _require(self, shape: torch.Size) -> None:
        if shape not in ((), self._rows):
            raise ValueError(
                f"the objective returned shape {tuple(shape)}: it must return a scalar or "
                f"one loss an example, {self._rows}"
            )

    def _batch(self, generator: Generator) -> Data:
        rows = len(self.pool[0])
        index = torch.randint(rows, self._rows, generator=generator, device=self.device)
        batch = tuple(x.index_select(0, index) for x in self.pool)
        return batch if self.tupled else batch[0]

    def check(self) -> float:
        """Return the mean loss since the last call; raise if anything is not finite."""
        fresh = ranks.mean(self.losses[self.checked : self.step])
        self.losses[self.checked : self.step] = fresh
        fresh = fresh.cpu()
        bad = (~fresh.isfinite()).nonzero().flatten().tolist()
        norms = torch.stack(torch._foreach_norm([w.detach() for w in self.weights]))
        if bad or not bool(norms.isfinite().all()):
            step = self.checked + bad[0] if bad else self.step - 1
            what = f"the loss is {fresh[bad[0]].item()}" if bad else "the weights are not finite"
            raise TrainingDiverged(
                f"{what} at step {step + 1} of {self.config.steps}, learning rate "
                f"{self.config.rate_at(step):.2g}: try a smaller learning_rate, a longer warmup "
                "or grad_clip=1.0, and look for nan in the data"
            )
        self.checked = self.step
        return float(fresh.mean())

    def result(self) -> TrainResult:
        """Return what was trained; buffers of the average are those of the network."""
        module, ema = ranks.fill(self.module, self.net), ranks.fill(self.ema, self.averaged)
        for average, current in zip(ema.buffers(), module.buffers(), strict=True):
            average.copy_(current)
        seconds = time.perf_counter() - self.started
        return TrainResult(module.eval(), ema, self.losses.cpu(), seconds)

    def tensors(self) -> dict[str, Tensor]:
        """Return the live tensors that a checkpoint must restore, by name."""
        named = {f"module.{name}": x for name, x in self.contents.items()}
        named |= {f"ema.{i}": x for i, x in enumerate(self.averages)}
        for i, weight in enumerate(self.weights):
            named |= {f"adam.{i}.{key}": x for key, x in self.optimiser.state[weight].items()}
        return named | {"losses": self.losses}

    def restore(self, saved: dict[str, Tensor], step: int, seconds: float) -> None:
        """Become the run that wrote `saved`, after its `step` steps."""
        for k, generator in zip(self.own, self.generators, strict=True):
            generator.set_state(saved[f"generator {k}"])
        if ranks.rank() == 0:  # masks of other processes begin anew
            borrowed.set_state(self.device, saved["dropout"])
        for name, x in saved.items():
            if name.startswith("adam."):
                _, i, key = name.split(".")
                weight = self.weights[int(i)]
                like = weight if x.shape == weight.shape else x  # keeps the weight's strides
                self.optimiser.state[weight][key] = torch.empty_like(like, device=self.device)
        with torch.no_grad():
            for name, x in self.tensors().items():
                ranks.put(saved[name], into=x)
        self.step, self.checked, self.started = step, step, time.perf_counter() - seconds

    def identity(self) -> dict[str, str]:
        """Return what a checkpoint must agree on before this run may go on from it."""
        same = asdict(self.config) | {"device": self.device.type, "trained": len(self.weights)}
        # they do not change the run
        for how in ("log_every", "checkpoint_every", "graph", "sharded"):
            del same[how]
        same |= {f"module.{name}": described(x) for name, x in self.contents.items()}
        for i, x in enumerate(self.pool):
            rows = bytes_of(x[:: max(1, len(x) // 64)])
            same[f"data {i}"] = f"{described(x)} {hashlib.sha256(rows).hexdigest()[:8]}"
        return {key: str(value) for key, value in same.items()}


def _bar(run: _Run, progress: bool | None) -> tqdm:
    if progress is None:
        unwatched = ("CI", "PYTEST_VERSION", "TQDM_DISABLE")
        progress = not any(os.environ.get(name) for name in unwatched) and ranks.rank() == 0
    total, done = (steps * run.config.batch_size for steps in (run.config.steps, run.step))
    shown = {"unit": " examples", "unit_scale": True, "disable": not progress}
    return tqdm(total=total, initial=done, **shown)
