"""An oracle that reads attributes from pictures of the shape world, as exact labels read scenes.

A small detector: each cell of an 8x8 grid says whether an object's centre lies in it, what it is
and where exactly (after YOLO, Redmon et al. 2016). Centres of objects are .4 apart or more and a
cell is .25 wide: no cell has two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tutorial_lib.shape_world import COLOURS, MOST, SHAPES, SIZES, Scenes

GRID = 8
PARTS = (1, len(SIZES), len(COLOURS), len(SHAPES), 2)  # logits of a cell, and its centre's place
NEAR = 0.3  # of two centres that lie closer the less certain one goes
LEAST = -2.0  # the logit from which something is there
CANDIDATES = 8


@dataclass(frozen=True)
class Reading:
    """Hold what was read in B pictures, as in Scenes: (B, N), centres (B, N, 2).

    Nothing is present where more than MOST objects were seen.
    """

    present: Tensor
    size: Tensor
    colour: Tensor
    shape: Tensor
    centre: Tensor

    def __len__(self) -> int:
        """Return how many pictures were read."""
        return len(self.present)


class Oracle(nn.Module):
    """Map pictures (B, 3, 32, 32) in [-1, 1] to what each cell of a grid holds, (B, 19, 8, 8).

    The form of YOLO's answer (Redmon et al. 2016, section 2), of a much smaller network.
    """

    def __init__(self, width: int = 32, *, generator: Generator) -> None:
        super().__init__()
        wide = 2 * width
        with torch.device("meta"):
            self.net = nn.Sequential(
                *_layer(3, width),
                *_layer(width, wide, stride=2),
                *_layer(wide, wide),
                *_layer(wide, wide, stride=2),
                *_layer(wide, wide),
                *_layer(wide, wide),
                nn.Conv2d(wide, sum(PARTS), 1),
            )
        self.to_empty(device=generator.device)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the cells' logits, then their centres from the cell's middle in cells' widths."""
        if pictures.shape[1:] != (3, 4 * GRID, 4 * GRID):
            raise ValueError(f"pictures have shape {tuple(pictures.shape)}, not (B, 3, 32, 32)")
        return self.net(pictures)


def _layer(before: int, after: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.SiLU()


def reading_error(out: Tensor, scenes: Scenes | Reading) -> Tensor:
    """Return how wrong cells (B, 19, 8, 8) are about scenes, a scalar to train on.

    Cross-entropies of what is where, in nats, and the centres' squared error (Redmon et al. 2016,
    eq. 3, with cross-entropies for its squared errors).
    """
    where, offset = _cells(scenes.centre)
    there = torch.zeros(len(out), GRID * GRID, device=out.device)
    there = there.scatter_add(1, where, scenes.present.to(out.dtype)).clamp(max=1)
    parts = [part.transpose(1, 2) for part in out.flatten(2).split(PARTS, 1)]
    _, *kinds, place = (_at(part, where) for part in parts)
    here = scenes.present.to(out.dtype) / scenes.present.sum()
    total = 20 * F.binary_cross_entropy_with_logits(parts[0][..., 0], there)
    for logits, truth in zip(kinds, (scenes.size, scenes.colour, scenes.shape), strict=True):
        total = total + (here * F.cross_entropy(logits.mT, truth, reduction="none")).sum()
    return total + 2 * (here * (place - offset).square().sum(-1)).sum()


def shares_right(scenes: Scenes, found: Reading) -> dict[str, float]:
    """Return the share of pictures whose number of objects was read right, and of objects, what.

    Of each object in the scenes it is asked of what was read nearest to its centre, if that lies
    within NEAR: an object that was not seen has no attribute right.
    """
    apart = torch.cdist(scenes.centre, found.centre)
    near, nearest = apart.masked_fill(~found.present[:, None], torch.inf).min(2)
    shares = {"count": scenes.present.sum(1) == found.present.sum(1)}
    for name in ("size", "colour", "shape"):
        same = getattr(found, name).gather(1, nearest) == getattr(scenes, name)
        shares[name] = (same & (near < NEAR))[scenes.present]
    shares["place"] = (near < 1 / GRID)[scenes.present]  # half a cell
    return {name: float(right.double().mean()) for name, right in shares.items()}


def _cells(centre: Tensor) -> tuple[Tensor, Tensor]:
    """Return which cells centres (..., 2) lie in, and where from the middles, in their widths."""
    at = (centre + 1) * GRID / 2
    index = at.long().clamp(0, GRID - 1)
    return index[..., 1] * GRID + index[..., 0], at - index - 0.5


def _at(part: Tensor, where: Tensor) -> Tensor:
    """Return the rows (B, N, K) of (B, cells, K) that `where` (B, N) names."""
    return part.gather(1, where[..., None].expand(-1, -1, part.shape[2]))


@torch.no_grad()
def read(oracle: Oracle, pictures: Tensor) -> Reading:
    """Return what is in pictures (B, 3, 32, 32), the surest objects first."""
    parts = [part.transpose(1, 2) for part in oracle(pictures).flatten(2).split(PARTS, 1)]
    best = parts[0][..., 0].topk(CANDIDATES, 1)
    _, *kinds, place = (_at(part, best.indices) for part in parts)
    cell = torch.stack([best.indices % GRID, best.indices // GRID], -1)
    centre = (cell + 0.5 + place) * (2 / GRID) - 1
    close, alive = torch.cdist(centre, centre) < NEAR, best.values > LEAST
    for k in range(1, CANDIDATES):
        beaten = (close[:, k, :k] & alive[:, :k]).any(1)
        alive[:, k] &= ~beaten
    first = alive.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :MOST]
    present = alive.gather(1, first) & (alive.sum(1) <= MOST)[:, None]
    size, colour, shape = (kind.argmax(-1).gather(1, first) for kind in kinds)
    return Reading(present, size, colour, shape, _at(centre, first))
