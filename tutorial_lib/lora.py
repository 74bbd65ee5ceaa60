"""LoRA: what fine-tuning changes of a layer, as a product of two narrow matrices.

inject(net, rank=8, generator=...)   # only the adapters learn
kept = trained(net)                  # all that needs to be saved
layers = merge(net)                  # the plain network again, changed
unmerge(net, layers)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn


class LoRA(nn.Module):
    """Add to a frozen linear layer or convolution a change of low rank that learns.

    Hu et al. 2022, eq. 3: h = W x + (alpha / rank) B A x. A is drawn and B is zero, so that
    nothing changes at first. A convolution's A has its kernel and stride, its B is 1 x 1. `alpha`
    is `rank` by default.
    """

    def __init__(
        self,
        base: nn.Linear | nn.Conv2d,
        rank: int,
        *,
        alpha: float | None = None,
        generator: Generator,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank is {rank}: it must be at least 1")
        self.base, self.scale = base.requires_grad_(False), (alpha or rank) / rank
        like = {"bias": False, "device": base.weight.device, "dtype": base.weight.dtype}
        if isinstance(base, nn.Conv2d):
            if base.groups != 1:
                raise ValueError(f"this convolution has {base.groups} groups: LoRA needs one")
            shape = (base.kernel_size, base.stride, base.padding, base.dilation)
            self.down = nn.Conv2d(base.in_channels, rank, *shape, **like)
            self.up = nn.Conv2d(rank, base.out_channels, 1, **like)
        else:
            self.down = nn.Linear(base.in_features, rank, **like)
            self.up = nn.Linear(rank, base.out_features, **like)
        reach = base.weight[0].numel() ** -0.5  # the authors' code: kaiming_uniform_, a = sqrt 5
        nn.init.uniform_(self.down.weight, -reach, reach, generator=generator)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map as the layer does, changed."""
        return self.base(x) + self.scale * self.up(self.down(x))

    def change(self) -> Tensor:
        """Return what is added to the layer's weight, of its shape: (alpha / rank) B A."""
        product = self.up.weight.flatten(1) @ self.down.weight.flatten(1)
        return self.scale * product.reshape(self.base.weight.shape)


def inject(
    net: nn.Module,
    rank: int,
    *,
    generator: Generator,
    alpha: float | None = None,
    chosen: Callable[[str], bool] = lambda name: True,
) -> None:
    """Freeze a network and give linear layers and convolutions adapters, in place.

    Those whose names are `chosen`, by default all (Hu et al. 2022, section 4.2: some). What else
    is to learn is thawed after it. Raises ValueError where there is nothing to adapt.
    """
    net.requires_grad_(False)
    layers = {name: x for name, x in net.named_modules() if isinstance(x, nn.Linear | nn.Conv2d)}
    layers = {name: x for name, x in layers.items() if chosen(name)}
    if not layers:
        raise ValueError("none of the network's layers was chosen: there is nothing to adapt")
    for name, layer in layers.items():
        _put(net, name, LoRA(layer, rank, alpha=alpha, generator=generator))


def trained(net: nn.Module, ema: nn.Module | None = None) -> dict[str, Tensor]:
    """Return what of a network learns, by name: all that need be kept beside what it began as.

    With `ema`, a frozen average of it, return the same parts of that.
    """
    names = [name for name, x in net.named_parameters() if x.requires_grad]
    weights = (ema or net).state_dict()
    return {name: weights[name] for name in names}


def load(net: nn.Module, kept: dict[str, Tensor]) -> None:
    """Put back what `trained` returned; raise ValueError if the network has no such parts."""
    unknown = net.load_state_dict(kept, strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"the network has no {unknown[0]}: inject adapters of that rank first")


@torch.no_grad()
def merge(net: nn.Module) -> dict[str, LoRA]:
    """Add every change to its weight, in place, and return the adapters by name.

    The network is as fast as it was (Hu et al. 2022, section 4.1).
    """
    found = {name: x for name, x in net.named_modules() if isinstance(x, LoRA)}
    for name, adapter in found.items():
        adapter.base.weight += adapter.change()
        _put(net, name, adapter.base)
    return found


@torch.no_grad()
def unmerge(net: nn.Module, adapters: dict[str, LoRA]) -> None:
    """Take changes out of the weights again and put the adapters beside them, in place."""
    for name, adapter in adapters.items():
        adapter.base.weight -= adapter.change()
        _put(net, name, adapter)


def _put(net: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(net.get_submodule(parent), last, layer)
