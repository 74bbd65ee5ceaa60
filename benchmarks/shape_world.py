"""Text-to-image networks trained in several ways: a base sought, and what it gains by growing.

    python benchmarks/shape_world.py OUT NAME ...

Each NAME is a run below, whose record in OUT/NAME is kept as results/shapes_search/NAME.json or,
of growing texts' and pictures' parts, as results/shapes_growing/NAME.json. There are two more in
shapes_search, of an earlier commit, with even times and places' codes drawn at random.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from tutorial_lib.recipes.catalogue import RECIPES
from tutorial_lib.recipes.text_to_image import TextToImageRun, run_text_to_image

BASE: TextToImageRun = RECIPES["shapes_text_to_image"].full
VARIANTS = {f"power_{k}": replace(BASE, time_power=k / 100) for k in (15, 25)}
VARIANTS |= {
    f"text_{depth}_image_{channels}": replace(
        BASE,
        text=replace(BASE.text, depth=depth),
        network=replace(BASE.network, channels=channels, head_width=min(32, channels)),
        steps=10_000,
        scales=(0.0, 2.0),
        looks=0,
    )
    for depth in (0, 1, 2, 4)
    for channels in (16, 32, 48)
}

if __name__ == "__main__":
    torch.backends.cudnn.benchmark = True
    out, *names = sys.argv[1:]
    for name in names:
        folder = Path(out) / name
        folder.mkdir(parents=True, exist_ok=True)
        run_text_to_image(name, VARIANTS[name], folder)
