"""What a training step and a look cost in pixels, in patches and in latents, on one idle GPU.

    python benchmarks/latents.py OUT

The networks are those of the recipes `shapes_large_...`; the table is kept as
results/benchmark_latents/metrics.json.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from tutorial_lib.denoiser import Condition
from tutorial_lib.recipes.catalogue import RECIPES
from tutorial_lib.recipes.latents import LatentRun
from tutorial_lib.recipes.record import Metrics, write_metrics
from tutorial_lib.recipes.text_to_image import denoiser, fresh_network, objective
from tutorial_lib.train import Progress, train

NAMES = [f"shapes_large_{kind}" for kind in ("pixels", "patches", "latent_4", "latent_8")]
STEPS, LOOKS, BATCH = 1000, 30, 2000


def cost(config: LatentRun) -> Metrics:
    """Return images a second in training, and looks a second without gradients."""
    net = fresh_network(config)
    net.compile(dynamic=False, fullgraph=True)
    shape = config.network
    size = (5000, shape.in_channels, shape.side, shape.side)
    x = torch.randn(size, device=config.device).half()
    tokens = torch.randint(1, 20, (5000, config.text.length), device=config.device)
    seen: list[Progress] = []
    schedule = config.schedule(ema_decay=config.ema_decay, graph=config.graph)
    train(net, (x, tokens), objective(config), schedule, watch=seen.append)
    half = [p for p in seen if 2 * p.step >= config.steps]
    steps, seconds = half[-1].step - half[0].step, half[-1].seconds - half[0].seconds
    model, rows = denoiser(net.eval()), slice(0, BATCH)
    told, t = Condition(text=tokens[rows]), torch.full((BATCH,), 0.5, device=config.device)
    took = [looked(model, x[rows].float(), t, told) for _ in range(2)][1]
    return {
        "trained_per_second": round(steps * config.batch_size / seconds),
        "looks_per_second": round(LOOKS * BATCH / took),
        "numbers": x[0].numel(),
    }


@torch.no_grad()
def looked(model: object, x: torch.Tensor, t: torch.Tensor, told: Condition) -> float:
    """Return the seconds that some looks at a batch take."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(LOOKS):
        model(x, t, told)
    torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    torch.backends.cudnn.benchmark = True
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    run: LatentRun = RECIPES[NAMES[0]].full
    table = {name: cost(replace(RECIPES[name].full, steps=STEPS)) for name in NAMES}
    write_metrics(out, "benchmark_latents", run, {"table": table})
