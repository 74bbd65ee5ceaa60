"""Borrow PyTorch's default generator, from which dropout draws, and give it back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def default_generator(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the default generator of `device` for what happens inside."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def state(device: torch.device) -> Tensor:
    """Return the state of the device's default generator."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_state(device: torch.device, saved: Tensor) -> None:
    """Put the device's default generator where it was."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(saved, device)
    else:
        torch.set_rng_state(saved)
