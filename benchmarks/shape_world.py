"""Look for a base that is neither perfect nor poor: text-to-image networks of several sizes.

    python benchmarks/shape_world.py OUT NAME ...

Each NAME is a network below; it leaves its record in OUT/NAME, as a recipe would.
Those of two are kept in results/shapes_search.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from tutorial_lib.recipes.catalogue import RECIPES
from tutorial_lib.recipes.text_to_image import TextToImageRun, run_text_to_image

BASE: TextToImageRun = RECIPES["shapes_text_to_image"].full


VARIANTS = {
    "power_40": replace(BASE, time_power=0.4, steps=14_000),
    "power_25": replace(BASE, time_power=0.25, steps=14_000),
    "power_15": replace(BASE, time_power=0.15, steps=14_000),
    "power_25_long": replace(BASE, time_power=0.25, steps=28_000),
    "power_25_slow": replace(BASE, time_power=0.25, steps=14_000, learning_rate=1e-3),
}

if __name__ == "__main__":
    torch.backends.cudnn.benchmark = True
    out, *names = sys.argv[1:]
    for name in names:
        folder = Path(out) / name
        folder.mkdir(parents=True, exist_ok=True)
        run_text_to_image(name, VARIANTS[name], folder)
