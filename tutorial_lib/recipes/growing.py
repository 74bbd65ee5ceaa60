"""Grow a frozen reader of texts, grow the painter that it tells: notebook 13, on a CPU."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tutorial_lib.denoiser import Condition, Denoiser, NetworkDenoiser
from tutorial_lib.dpm_solver import dpm_solver_pp_2m
from tutorial_lib.language_model import FILLING, LanguageModel, minilm
from tutorial_lib.losses import v_error
from tutorial_lib.networks.attention import Attention
from tutorial_lib.networks.embeddings import log_snr_features
from tutorial_lib.networks.mlp import PointMLP, initialise
from tutorial_lib.pretrained import SCHEDULE
from tutorial_lib.recipes.record import Metrics, TrainingRun, write_metrics
from tutorial_lib.recipes.shapes import WORLD
from tutorial_lib.recipes.two_objects import (
    WAYS,
    of_words,
    pictures,
    read_pictures,
    scenes,
    texts,
)
from tutorial_lib.samplers import final
from tutorial_lib.schedule import log_snr_times
from tutorial_lib.train import train

WORDS_ALONE = -1  # of the language model's layers: not even the words' places are told
SPREAD = 0.1  # of a picture's numbers around what they stand for
HARMONICS = 6
SILENT = 1e-5  # of the largest spread: a direction with less has none but rounding's
RIDGE = 1e-3  # of a linear probe, beside sums over texts of numbers of size 1


@dataclass(frozen=True, kw_only=True)
class GrowingRun(TrainingRun):
    """Fix which readers tell painters of which widths, and how each pair is trained and tested.

    Texts speak of `images` scenes; those about a share `unseen` of them are kept from training and
    are the test. A reader is so many of the language model's `layers`, frozen. A painter that
    `attends` looks at every word's features; else it is told their mean, `evened` out if so.
    """

    images: int = 1680  # all that there are
    layers: tuple[int, ...] = (WORDS_ALONE, 0, 1, 2, 3, 6)
    widths: tuple[int, ...] = (32, 64, 128)
    seeds: tuple[int, ...] = (0, 1, 2)
    attends: bool = False
    evened: bool = False
    unseen: float = 0.2
    sampler_steps: int = 20
    ema_decay: float = 0.995

    @property
    def images_seen(self) -> int:
        """Return how many examples all trainings look at together."""
        return super().images_seen * len(self.layers) * len(self.widths) * len(self.seeds)


def parted(config: GrowingRun) -> tuple[Tensor, Tensor]:
    """Return the scenes (N, 4) that a run's texts speak of, and which of them are its test, (N,).

    Scenes of the same colours and shapes, which are four, stay together: whoever hears no more
    than the words has not been taught which of them is asked for.
    """
    rows = scenes()
    order = torch.randperm(420, generator=Generator().manual_seed(config.seed))
    place = order[of_words(rows)]
    kept = place < config.images // 4
    return rows[kept], place[kept] < round(config.unseen * config.images / 4)


@torch.no_grad()
def features(model: LanguageModel, tokens: Tensor, layers: int) -> Tensor:
    """Return what the first layers of a language model make of tokens (N, L), (N, L, D)."""
    rows = []
    for part in tokens.split(512):
        x = model.words(part) if layers == WORDS_ALONE else model.embed(part)
        seen = part != FILLING
        for block in model.blocks[: max(0, layers)]:
            x = block(x, seen)
        rows.append(x.half())
    return torch.cat(rows)


def told(read: Tensor, seen: Tensor, attends: bool) -> tuple[Tensor, Tensor]:
    """Return what a painter is told, (N, L or 1, D), of mean 0 and mean square 1, and its mask.

    Every word's features, or the mean of all.
    """
    read = read * seen[..., None]
    if not attends:
        total = read.sum(1, keepdim=True, dtype=torch.float64)  # exact: any order sums alike
        read = (total / seen.sum(1)[:, None, None]).float()
        seen = seen[:, :1]
    words = read[seen].float()
    mean, size = words.mean(0), words.std(0).square().mean().sqrt()
    return ((read - mean) / size).to(read.dtype) * seen[..., None], seen


def evened(text: Tensor, taught: Tensor) -> Tensor:
    """Turn and scale vectors (N, 1, D) so that no direction is louder than another: whitening.

    By the principal components of those that are `taught` (N,), (N, 1, rank): Bishop 2006,
    section 12.1.3.
    """
    x = text[:, 0].double()
    mean = x[taught].mean(0)
    _, sizes, turn = torch.linalg.svd(x[taught] - mean, full_matrices=False)
    kept = sizes > SILENT * sizes[0]
    spread = sizes[kept] / taught.sum().sqrt()
    return ((x - mean) @ turn[kept].T / spread).float()[:, None]


class PoolingPainter(nn.Module):
    """Map 8 noisy numbers, told one vector of a text, by the course's standard network."""

    def __init__(self, told: int, width: int, *, generator: Generator) -> None:
        super().__init__()
        self.net = PointMLP(8 + told, width, outputs=8, generator=generator)

    def forward(self, xt: Tensor, clock: Tensor, cond: Condition) -> Tensor:
        """Map xt (B, 8), clock (B,) and cond.text (B, 1, D) to (B, 8)."""
        return self.net(torch.cat([xt, cond.text[:, 0].to(xt.dtype)], 1), clock)


class AttendingPainter(nn.Module):
    """Map 8 noisy numbers as four places that look at one another and at a text's words.

    As a U-Net's attention does (Rombach et al. 2022, section 3.3), without convolutions.
    """

    def __init__(self, told: int, width: int, depth: int = 2, *, generator: Generator) -> None:
        super().__init__()
        with torch.device("meta"):
            self.enter, self.clock = nn.Linear(2, width), nn.Linear(1 + 2 * HARMONICS, width)
            self.place, self.words = nn.Embedding(4, width), nn.Linear(told, width)
            self.blocks = nn.ModuleList(AttendingBlock(width) for _ in range(depth))
            self.leave = nn.Linear(width, 2)
        initialise(self, generator)

    def forward(self, xt: Tensor, clock: Tensor, cond: Condition) -> Tensor:
        """Map xt (B, 8), clock (B,), cond.text (B, L, D) and cond.mask (B, L) to (B, 8)."""
        clock = clock.to(xt.dtype).expand(len(xt))
        h = self.enter(xt.unflatten(1, (4, 2))) + self.place.weight
        h = h + self.clock(log_snr_features(clock, HARMONICS))[:, None]
        words = self.words(cond.text.to(xt.dtype))
        for block in self.blocks:
            h = block(h, words, cond.mask)
        return self.leave(h).flatten(1)


class AttendingBlock(nn.Module):
    """Let places look at one another, then at the words, then think alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = max(1, width // 16)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.itself, self.text = Attention(width, heads), Attention(width, heads)
        self.alone = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(self, h: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """Map (B, 4, width), with words (B, L, width), to (B, 4, width)."""
        first, second, third = self.norms
        h = h + self.itself(first(h))
        h = h + self.text(second(h), words, mask)
        return h + self.alone(third(h))


def painter(config: GrowingRun, wide: int, width: int, seed: int) -> nn.Module:
    """Return a painter that is told features `wide` wide, as it is before training."""
    kind = AttendingPainter if config.attends else PoolingPainter
    return kind(wide, width, generator=Generator().manual_seed(seed))


def denoiser(net: nn.Module) -> NetworkDenoiser:
    """Return a painter as a denoiser of the continuous cosine schedule, which predicts v."""
    return NetworkDenoiser(net, SCHEDULE, "v")


def cost(net: nn.Module, batch: tuple[Tensor, ...], generator: Generator) -> Tensor:
    """Return the loss of a batch of pictures, features and masks, (B,): v's error, a mean."""
    x0, text, mask = batch
    x0 = x0 + SPREAD * torch.randn(x0.shape, generator=generator)
    t = torch.rand(len(x0), generator=generator, dtype=torch.float64)
    cond = Condition(text=text, mask=mask)
    return v_error(denoiser(net), x0, t, cond, generator=generator) / x0.shape[1]


@torch.no_grad()
def draw(model: Denoiser, text: Tensor, mask: Tensor, config: GrowingRun, seed: int) -> Tensor:
    """Return the scenes (N, 4) of what a painter draws after texts' features (N, L, D)."""
    x = torch.randn(len(text), 8, generator=Generator().manual_seed(seed))
    times = log_snr_times(SCHEDULE, config.sampler_steps, 1e-3, 0.9946)
    cond = Condition(text=text, mask=mask)
    return read_pictures(final(dpm_solver_pp_2m(model, x, times, cond)))


def run_growing(name: str, config: GrowingRun, out: Path) -> Metrics:
    """Train a painter of every width after every reader, and leave the record."""
    began, trial = time.perf_counter(), Trial(config)
    table, heard = [], {}
    for layers in config.layers:
        text, mask = trial.told(layers)
        if not config.attends:
            found = probe(text, trial.meant, trial.hidden)
            heard[str(layers)] = {"probe": found, "order": order(text, trial.meant)}
        for width in config.widths:
            table += [trial.painted(text, mask, layers, width, seed) for seed in config.seeds]
    blocks = trial.model.blocks
    found = {
        "data": WORLD,
        "texts": len(trial.meant),
        "unseen": int(trial.hidden.sum()),
        "table": table,
    }
    found |= {"reader": {str(k): _size(blocks[: max(0, k)]) for k in config.layers}}
    found |= {"told": heard, "seconds": round(time.perf_counter() - began, 1)}
    return write_metrics(out, name, config, found)


class Trial:
    """Hold a run's texts, what they mean, (N, 4), and which are the test, `hidden` (N,)."""

    def __init__(self, config: GrowingRun) -> None:
        self.config, (self.model, split) = config, minilm()
        rows, hidden = parted(config)
        self.tokens = split(texts(rows))
        self.meant, self.hidden = (x.repeat_interleave(len(WAYS), 0) for x in (rows, hidden))

    def told(self, layers: int) -> tuple[Tensor, Tensor]:
        """Return what painters are told of all texts by a reader of so many layers, and masks."""
        read = features(self.model, self.tokens, layers)
        text, mask = told(read, self.tokens != FILLING, self.config.attends)
        return (evened(text, ~self.hidden) if self.config.evened else text), mask

    def painted(
        self, text: Tensor, mask: Tensor, layers: int, width: int, seed: int
    ) -> dict[str, float | list[float]]:
        """Train a painter, and return its share right of new scenes and of as many old ones."""
        config, taught = self.config, ~self.hidden
        net = painter(config, text.shape[2], width, seed)
        data = (pictures(self.meant)[taught], text[taught], mask[taught])
        schedule = config.schedule(ema_decay=config.ema_decay, seed=seed)
        model = denoiser(train(net, data, cost, schedule).ema)
        row = {"layers": layers, "width": width, "seed": seed, "painter": _size(net)}
        step = max(1, int(taught.sum() // self.hidden.sum()))  # scenes, not texts, are left out
        old = taught.nonzero()[:, 0].view(-1, len(WAYS))[::step].flatten()
        for kind, rows in (("right", self.hidden.nonzero()[:, 0]), ("seen", old)):
            drawn = draw(model, text[rows], mask[rows], config, seed)
            right = (drawn == self.meant[rows]).all(1).double()
            row |= {kind: _share(right)}
            if kind == "right":
                row["ways"] = [_share(right[k :: len(WAYS)]) for k in range(len(WAYS))]
        return row


def probe(text: Tensor, meant: Tensor, hidden: Tensor) -> float:
    """Return the share of hidden scenes that linear maps read right from the words' mean.

    One map for each way of saying, by ridge regression on the others' texts (Alain and Bengio
    2016). `text` is (N, 1, D), `meant` (N, 4).
    """
    one_hots = [F.one_hot(meant[:, k], 1 + int(meant[:, k].max())) for k in range(4)]
    right = []
    for way in range(len(WAYS)):
        rows = torch.arange(len(text)) % len(WAYS) == way
        x = F.pad(text[rows, 0].double(), (0, 1), value=1.0)
        known, new, want = x[~hidden[rows]], x[hidden[rows]], meant[rows][hidden[rows]]
        gram = known.T @ known + RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
        found = []
        for wanted in one_hots:
            y = wanted[rows][~hidden[rows]].double()
            found.append((new @ torch.linalg.solve(gram, known.T @ y)).argmax(1))
        right.append((torch.stack(found, 1) == want).all(1).double())
    return _share(torch.cat(right))


def order(text: Tensor, meant: Tensor) -> float:
    """Return how much of the spread of texts' means (N, 1, D) is due to who is which, (0 to 1).

    The root of a share of the variance: that among texts of the same words, of all.
    """
    within, whole = 0.0, 0.0
    for way in range(len(WAYS)):
        x, group = text[way :: len(WAYS), 0].double(), of_words(meant[way :: len(WAYS)])
        means = torch.zeros(int(group.max()) + 1, x.shape[1], dtype=x.dtype)
        means.index_add_(0, group, x).div_(group.bincount()[:, None])
        within += float((x - means[group]).square().sum())
        whole += float((x - x.mean(0)).square().sum())
    return round(math.sqrt(within / whole), 4)


def _share(right: Tensor) -> float:
    return round(float(right.mean()), 4)


def _size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def headline(found: Metrics) -> str:
    """Say in a few words how much more is right after the first and after the deepest reader."""
    table = found["table"]
    most = max(row["width"] for row in table)
    shares = []
    for layers in (0, max(row["layers"] for row in table)):
        rows = [r["right"] for r in table if r["width"] == most and r["layers"] == layers]
        shares.append(f"{100 * sum(rows) / len(rows):.0f} % after {layers} layers")
    return f"drawn right by a painter {most} wide: {', '.join(shares)}"
