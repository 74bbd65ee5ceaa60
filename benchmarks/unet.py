"""How fast DDPM's 35.7 M U-Net trains and samples here, beside diffusers' with the same tricks.

    python benchmarks/unet.py [--batch 512 128] [--only NAME ...] [--out results/benchmark_unet]

Every entry is trained by `tutorial_lib.train.train`, on invented images, with L_simple. Prints a
table of images per second and of ratios; writes it, with the device and versions, as JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from tutorial_lib import losses
from tutorial_lib.cifar10 import to_floats
from tutorial_lib.denoiser import NetworkDenoiser, step_clock
from tutorial_lib.networks.fast import accelerate
from tutorial_lib.networks.unet import DDPM, UNet
from tutorial_lib.schedule import DiscreteVP
from tutorial_lib.train import Progress, TrainConfig, train

GFLOP_FORWARD = 12.44  # an image, multiply and add counted as two: measured in trials, FlopCounter
T = 1000
SCHEDULE = DiscreteVP.linear(T)


class Theirs(nn.Module):
    """diffusers' UNet2DModel of google/ddpm-cifar10-32, called as ours is."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.net = UNet2DModel(
            sample_size=32,
            block_out_channels=(128, 256, 256, 256),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=None,
            norm_eps=1e-6,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            dropout=0.1,
        )

    def forward(self, xt: Tensor, clock: Tensor, cond: object = None) -> Tensor:
        return self.net(xt, clock).sample


@dataclass(frozen=True)
class Entry:
    """What is trained, and how."""

    build: Callable[[], nn.Module]
    bf16: bool = True
    compiled: bool = True
    graph: bool = False


def ours() -> nn.Module:
    return UNet(DDPM, generator=Generator("cuda").manual_seed(0))


def ours_fast() -> nn.Module:
    return accelerate(ours())


ENTRIES = {
    "diffusers, as it ships": Entry(Theirs, bf16=False, compiled=False),
    "diffusers, bf16 compiled": Entry(Theirs),
    "diffusers, all our tricks": Entry(Theirs, graph=True),
    "ours, plain": Entry(ours, bf16=False, compiled=False),
    "ours, bf16 eager": Entry(ours, compiled=False),
    "ours, bf16 compiled": Entry(ours),
    "ours, fast layers": Entry(ours_fast),
    "ours, all tricks": Entry(ours_fast, graph=True),
}


def objective(bf16: bool) -> Callable[[nn.Module, Tensor, Generator], Tensor]:
    def loss(net: nn.Module, pixels: Tensor, generator: Generator) -> Tensor:
        x0 = to_floats(pixels).contiguous(memory_format=torch.channels_last)
        n = torch.randint(1, T + 1, (len(x0),), generator=generator, device=x0.device)
        denoiser = NetworkDenoiser(net, SCHEDULE, "eps", step_clock)
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            return losses.simple(denoiser, x0, n.double() / T, generator=generator)

    return loss


def throughput(entry: Entry, batch: int, steps: int) -> tuple[float, float]:
    """Return images per second over the second half of a run, and its last mean loss."""
    pixels = torch.randint(
        256, (10_000, 3, 32, 32), dtype=torch.uint8, device="cuda",
        generator=Generator("cuda").manual_seed(1),
    )  # fmt: skip
    net = entry.build().to("cuda", memory_format=torch.channels_last)
    if entry.compiled:
        net.compile(dynamic=False, fullgraph=isinstance(net, UNet))
    told: list[Progress] = []
    config = TrainConfig(
        steps, batch, 2e-4, grad_clip=1.0, ema_decay=0.9999, log_every=steps // 4,
        graph=entry.graph,
    )  # fmt: skip
    train(net, pixels, objective(entry.bf16), config, progress=False, watch=told.append)
    middle, end = told[1], told[-1]
    return (end.step - middle.step) * batch / (end.seconds - middle.seconds), end.loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[512, 128])
    parser.add_argument("--only", nargs="+", choices=ENTRIES, default=list(ENTRIES))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path("results/benchmark_unet"))
    given = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    given.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for batch in given.batch:
        for name in given.only:
            started = time.perf_counter()
            torch.compiler.reset()
            try:
                speed, loss = throughput(ENTRIES[name], batch, given.steps)
            except torch.OutOfMemoryError:
                print(f"{batch:5}  {name:28} out of memory", flush=True)
                continue
            rows.append({"batch": batch, "name": name, "images_per_second": round(speed)})
            tflops = 3e-3 * GFLOP_FORWARD * speed
            took = time.perf_counter() - started
            print(f"{batch:5}  {name:28}{speed:8.0f} images/s  {tflops:5.0f} TFLOP/s  "
                  f"loss {loss:.1f}  ({took:.0f} s)", flush=True)  # fmt: skip
            write(rows, given.out)


def write(rows: list[dict], out: Path) -> None:
    """Write what is known so far: a lease may end before the table does."""
    record = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "training": rows,
    }
    (out / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
