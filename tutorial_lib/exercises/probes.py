"""What the probes of all notebooks' exercises are made of."""

from typing import Any

import torch
from torch import Tensor

Probes = list[tuple[Any, ...]]


def normals(seed: int, *shape: int) -> Tensor:
    """Return standard normal numbers in float64, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def exact(value: float | list[float] | list[list[float]]) -> Tensor:
    """Return a number, or a list of them, as a float64 tensor."""
    return torch.tensor(value, dtype=torch.float64)
