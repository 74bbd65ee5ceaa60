"""How fast DDPM's 35.7 M U-Net trains and samples here, beside diffusers' with the same tricks.

    python benchmarks/unet.py training sampling parts precision [--batch 512 128] [--only NAME ...]
    torchrun --nproc_per_node=2 benchmarks/unet.py scaling

Training is `tutorial_lib.train.train` with L_simple, on invented images; `precision` compares
bfloat16's loss with float32's on CIFAR-10, over three seeds. Prints as it goes, and writes what it
knows, with device and versions, to one JSON file a part in --out.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch._inductor.config
from torch import Generator, Tensor, nn

from tutorial_lib import losses, ranks
from tutorial_lib.cifar10 import cifar10, to_floats
from tutorial_lib.denoiser import NetworkDenoiser, step_clock
from tutorial_lib.networks.fast import accelerate
from tutorial_lib.networks.unet import DDPM, UNet
from tutorial_lib.recipes.diffusion_run import HalfPrecision
from tutorial_lib.samplers import ddim, final
from tutorial_lib.schedule import DiscreteVP, uniform_times
from tutorial_lib.train import Progress, TrainConfig, TrainResult, train

GFLOP_FORWARD = 12.44  # an image, multiply and add counted as two: measured in trials, FlopCounter
T = 1000
SCHEDULE = DiscreteVP.linear(T)
Row = dict[str, object]


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
    """What is trained, and with which of the tricks."""

    theirs: bool = False
    bf16: bool = True
    channels_last: bool = True
    compiled: bool = True
    fast_layers: bool = True
    graph: bool = True
    searched: bool = False

    def build(self, seed: int = 0) -> nn.Module:
        net = (
            Theirs() if self.theirs else UNet(DDPM, generator=Generator("cuda").manual_seed(seed))
        )
        if self.fast_layers and not self.theirs:
            accelerate(net)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        net = net.to("cuda", memory_format=layout)
        # block sizes by trial: 4 % more images of 128 a second in trials, for 410 s of compiling
        torch._inductor.config.coordinate_descent_tuning = self.searched
        if self.compiled:
            net.compile(dynamic=False, fullgraph=not self.theirs)
        return net


NONE = {"bf16": False, "channels_last": False, "compiled": False, "graph": False}
ENTRIES = {
    "ours, all tricks": Entry(),
    "ours, kernels searched too": Entry(searched=True),
    "diffusers, as it ships": Entry(theirs=True, **NONE),
    "diffusers, bf16 and compiled": Entry(theirs=True, graph=False),
    "diffusers, all that it can take": Entry(theirs=True),
    "ours, no trick": Entry(fast_layers=False, **NONE),
    "ours, without bf16": Entry(bf16=False),
    "ours, without channels_last": Entry(channels_last=False),
    "ours, without compiling": Entry(compiled=False),
    "ours, without fast layers": Entry(fast_layers=False),
    "ours, without the graph": Entry(graph=False),
}


def objective(entry: Entry) -> Callable[[nn.Module, Tensor, Generator], Tensor]:
    layout = torch.channels_last if entry.channels_last else torch.contiguous_format

    def loss(net: nn.Module, pixels: Tensor, generator: Generator) -> Tensor:
        x0 = to_floats(pixels).contiguous(memory_format=layout)
        n = torch.randint(1, T + 1, (len(x0),), generator=generator, device=x0.device)
        denoiser = NetworkDenoiser(net, SCHEDULE, "eps", step_clock)
        with torch.autocast("cuda", torch.bfloat16, enabled=entry.bf16):
            return losses.simple(denoiser, x0, n.double() / T, generator=generator)

    return loss


def invented(n: int = 10_000) -> Tensor:
    drawn = Generator("cuda").manual_seed(1)
    return torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, device="cuda", generator=drawn)


def throughput(entry: Entry, batch: int, steps: int, shards: int = 1) -> float:
    """Return images per second over the second half of a run, on all processes together."""
    told: list[Progress] = []
    config = TrainConfig(
        steps, batch * shards, 2e-4, grad_clip=1.0, ema_decay=0.9999, log_every=steps // 4,
        graph=entry.graph, shards=shards,
    )  # fmt: skip
    train(entry.build(), invented(), objective(entry), config, progress=False, watch=told.append)
    if not told:
        return 0.0  # not on rank 0
    middle, end = told[1], told[-1]
    return (end.step - middle.step) * batch * shards / (end.seconds - middle.seconds)


def training(given: argparse.Namespace) -> Iterator[Row]:
    """Time the training of each entry at each batch size."""
    for batch in given.batch:
        for name in given.only or ENTRIES:
            torch.compiler.reset()
            torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            speed = throughput(ENTRIES[name], batch, given.steps)
            yield {
                "name": name,
                "batch": batch,
                "images_per_second": round(speed),
                "tflops": round(3e-3 * GFLOP_FORWARD * speed),
                "memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
                "with_compiling_s": round(time.perf_counter() - started),
            }


def scaling(given: argparse.Namespace) -> Iterator[Row]:
    """Time the training on all processes, so many images each; graphs serve one process alone."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for batch in given.batch:
        speed = throughput(Entry(graph=False), batch, given.steps, shards=processes)
        yield {"processes": processes, "batch_each": batch, "images_per_second": round(speed)}


def timed(work: Callable[[], object], repeats: int = 1) -> float:
    """Return the seconds that one of `repeats` takes, after one to warm up."""
    work()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


def sampling(given: argparse.Namespace) -> Iterator[Row]:
    """Time DDIM with 50 steps: diffusers' pipeline, and our sampler around either network."""
    from diffusers import DDIMPipeline, DDIMScheduler

    # weights in bfloat16 once and for all: 4 % more images a second of 512, 19 % more of 16
    torch._inductor.config.freezing = True

    def sampled(denoiser: NetworkDenoiser, x: Tensor) -> Tensor:
        return final(ddim(denoiser, x, uniform_times(50)))

    for batch in given.batch:
        theirs, scheduler = Theirs().cuda().eval(), DDIMScheduler(1000)
        pipeline = DDIMPipeline(theirs.net, scheduler)
        pipeline.set_progress_bar_config(disable=True)
        whole = partial(pipeline, batch, num_inference_steps=50, output_type="np")
        seconds = timed(whole)
        yield {"name": "diffusers' pipeline, as it ships", **rates(batch, seconds)}
        for name, entry in {
            "our sampler, diffusers' network": Entry(theirs=True, compiled=False),
            "ours": Entry(compiled=False),
        }.items():
            torch.compiler.reset()
            net = entry.build().eval().requires_grad_(False)
            fast = torch.compile(net, mode="reduce-overhead", dynamic=False)
            denoiser = NetworkDenoiser(HalfPrecision(fast), SCHEDULE, "eps", step_clock)
            x = torch.randn(batch, 3, 32, 32, device="cuda")
            timed(partial(sampled, denoiser, x))  # records its graphs
            seconds = timed(partial(sampled, denoiser, x), 3)
            yield {"name": name, **rates(batch, seconds)}


def rates(batch: int, seconds: float) -> Row:
    images = batch / seconds
    return {
        "batch": batch,
        "images_per_second": round(images, 1),
        "evaluations": round(50 * images),
    }


def parts(given: argparse.Namespace) -> Iterator[Row]:
    """Time what stands around the network, in milliseconds, and what the card can do at most."""
    net = Entry(compiled=False).build()
    weights = list(net.parameters())
    averages = [w.detach().clone() for w in weights]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    for how in ({"fused": True}, {"foreach": True}, {"foreach": False, "fused": False}):
        adam = torch.optim.Adam(weights, 1e-6, **how)
        name = next((k for k, v in how.items() if v), "one weight after another")
        yield {"name": f"Adam, {name}", "ms": round(1e3 * timed(adam.step, 20), 3)}

    @torch.no_grad()
    def singly() -> None:
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight, 1e-4)

    with torch.no_grad():
        together = timed(lambda: torch._foreach_lerp_(averages, weights, 1e-4), 20)
    yield {"name": "averages, foreach", "ms": round(1e3 * together, 3)}
    yield {"name": "averages, one after another", "ms": round(1e3 * timed(singly, 20), 3)}
    pixels, flips = invented(), torch.rand(512, device="cuda") < 0.5

    def on_device() -> Tensor:
        batch = pixels[:512]
        return to_floats(torch.where(flips[:, None, None, None], batch.flip(3), batch))

    host = to_floats(pixels[:512].cpu())
    yield {"name": "batch of 512 on the device", "ms": round(1e3 * timed(on_device, 20), 3)}
    copied = timed(lambda: host.to("cuda"), 20)
    yield {"name": "batch of 512 as floats from the host", "ms": round(1e3 * copied, 3)}
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    tflops = 2e-12 * 8192**3 / timed(lambda: a @ a, 1000)
    yield {"name": "8192^3 bfloat16 product, sustained", "tflops": round(tflops)}
    big = torch.empty(2**30, device="cuda", dtype=torch.uint8)
    speed = 2e-12 * 2**30 / timed(lambda: big.clone(), 50)
    yield {"name": "copy, bytes read and written", "tb_per_second": round(speed, 2)}


def precision(given: argparse.Namespace) -> Iterator[Row]:
    """Compare the loss of short trainings, in bfloat16 and float32, from the same seeds."""
    pixels = cifar10("train").pixels
    for name, entry in {"bfloat16": Entry(), "float32": Entry(bf16=False)}.items():
        for seed in range(3):
            config = TrainConfig(
                given.steps, 128, 2e-4, warmup=100, grad_clip=1.0, seed=seed, graph=True,
                log_every=given.steps,
            )  # fmt: skip
            net = entry.build(seed)
            found: TrainResult = train(net, pixels, objective(entry), config, progress=False)
            last = found.losses[-given.steps // 4 :].double().mean() / 3072
            yield {"name": name, "seed": seed, "steps": given.steps, "loss": round(float(last), 5)}


PARTS = {f.__name__: f for f in (training, sampling, parts, precision, scaling)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", choices=PARTS)
    parser.add_argument("--batch", type=int, nargs="+", default=[512, 128])
    parser.add_argument("--only", nargs="+", choices=ENTRIES)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path("results/benchmark_unet"))
    given = parser.parse_args()
    ranks.take_device("cuda")
    torch.backends.cudnn.benchmark = True
    of_several = f"_{os.environ['WORLD_SIZE']}" if "WORLD_SIZE" in os.environ else ""
    for part in given.what:
        rows = []
        for row in PARTS[part](given):
            if ranks.leads():
                rows.append(row)
                print(part, "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                write(rows, given.out / f"{part}{of_several}.json")


def write(rows: list[Row], path: Path) -> None:
    """Write what is known so far: a lease may end before the table does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    where = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    path.write_text(json.dumps(where | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
