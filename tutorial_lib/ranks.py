"""Share a run among processes: `torchrun --nproc_per_node=2 -m tutorial_lib.recipes NAME`.

torchrun starts one process a GPU, on one host or on several (its --nnodes and --rdzv_endpoint;
under Slurm one torchrun a node), and tells each its rank. Without it there is one process, rank 0
of 1.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

# Who frees a gloo group waits for its threads, and these for the GIL, which Python's own reference
# lets go of meanwhile and DistributedDataParallel's does not: Python's must be the last.
_parted: list[dist.ProcessGroup | None] = []


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started, if it did, and part from them in the end."""
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
        # gloo's threads let go of their tensors meanwhile: they need the GIL that parting holds
        dist.barrier()
    finally:
        _parted.append(dist.group.WORLD)
        dist.destroy_process_group()


def leave(status: int) -> NoReturn:
    """End this process; one of several ends at once, everything being written.

    Threads that FSDP2 leaves behind with gloo abort Python's own end, once in some thirty runs.
    """
    if "RANK" not in os.environ:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def leads() -> bool:
    """Say whether this process is the one that writes, before and after they are joined too."""
    return int(os.environ.get("RANK", "0")) == 0


def take_device(device: str) -> None:
    """Let "cuda" mean the GPU that torchrun meant for this process."""
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def rank() -> int:
    """Return this process's number, 0 to size() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def parallel(module: nn.Module) -> nn.Module:
    """Return a module whose gradients are the mean over processes.

    They are exchanged as they come; those of a compiled network (`Module.compile`) all at once.
    """
    if size() == 1 or isinstance(module, FSDPModule):  # which exchanges them by itself
        return module
    if module._compiled_call_impl is None:
        return DistributedDataParallel(module)
    # Compiled whole, a pass hands over its gradients all at once; cut, so that they come in turn,
    # it loses more: two GPUs then trained 1.78 times as fast as one
    torch._dynamo.config.optimize_ddp = False
    return DistributedDataParallel(module, bucket_cap_mb=4096, gradient_as_bucket_view=True)


def unshared(module: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
    """Return a context in which gradients are kept to the process, if that is wanted.

    Those of weights in pieces are exchanged all the same: kept, they would be whole.
    """
    kept = wanted and isinstance(module, DistributedDataParallel)
    return module.no_sync() if kept else nullcontext()


def in_pieces(module: nn.Module, wanted: bool) -> nn.Module:
    """Return a copy of which each process holds a piece (FSDP2), and empty `module`, if wanted.

    A block in a ModuleList or Sequential is put together when it is called, what stands in none
    when the module is. One process holds all: it gets `module` itself.
    """
    if not wanted or size() == 1:
        return module
    pieces = copy.deepcopy(module)
    for weight in pieces.parameters():
        weight.data = weight.data.contiguous()  # FSDP2 knows no channels_last
    mesh = init_device_mesh(next(module.parameters()).device.type, (size(),))
    for blocks in reversed(list(pieces.modules())):
        for block in blocks if isinstance(blocks, nn.ModuleList | nn.Sequential) else ():
            if not all(isinstance(weight, DTensor) for weight in block.parameters()):
                fully_shard(block, mesh=mesh)
    _empty(module)
    return fully_shard(pieces, mesh=mesh)


def fill(module: nn.Module, pieces: nn.Module) -> nn.Module:
    """Return the module that became `pieces`, whole again; all must ask."""
    if module is not pieces:
        for weight, piece in zip(module.parameters(), pieces.parameters(), strict=True):
            weight.data = _whole(piece.detach())
        for x, current in zip(module.buffers(), pieces.buffers(), strict=True):
            x.copy_(current)
    return module


@contextmanager
def filled(module: nn.Module, pieces: nn.Module) -> Iterator[nn.Module]:
    """Lend the module that became `pieces`, whole for a while; all must ask."""
    yield fill(module, pieces)
    if module is not pieces:
        _empty(module)


def _empty(module: nn.Module) -> None:
    for weight in module.parameters():
        weight.data = weight.data.new_empty(0)


def _whole(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def gathered(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of which some lie in pieces, whole, to rank 0; all must ask."""
    found = {}
    for name, x in named.items():
        entire = _whole(x)
        if rank() == 0:
            found[name] = entire.cpu()  # a GPU need not hold them all at once
    return found


def put(x: Tensor, into: Tensor) -> None:
    """Copy a whole tensor into one that may lie in pieces."""
    if isinstance(into, DTensor):
        x = x.to(into.device)
        x = distribute_tensor(x, into.device_mesh, into.placements, src_data_rank=None)
    into.copy_(x)


def mean(x: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes."""
    if size() == 1:
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total.div_(size())


def any_of(flag: bool) -> bool:
    """Say whether any process says so; all must ask."""
    if size() == 1:
        return flag
    told: list[bool | None] = [None for _ in range(size())]
    dist.all_gather_object(told, flag)
    return any(told)


def merged(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what all processes hold, together; all must ask."""
    if size() == 1:
        return own
    told: list[dict[str, Tensor]] = [{} for _ in range(size())]
    dist.all_gather_object(told, own)
    return {name: x for part in told for name, x in part.items()}


def wait() -> None:
    """Wait until every process has come here."""
    if size() > 1:
        dist.barrier()
