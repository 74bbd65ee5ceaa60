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


def variant(words: int = 96, causal: bool = True, **network: object) -> TextToImageRun:
    """Return the base's run with another network or encoder of text."""
    text = replace(BASE.text, width=words, causal=causal)
    return replace(BASE, network=replace(BASE.network, text_width=words, **network), text=text)


VARIANTS = {
    "32_all_ways": replace(variant(channels=32, causal=False), steps=12_000),
    "48_shallow_all_ways": replace(variant(channels=48, depth=1, causal=False), steps=12_000),
    "64_all_ways": replace(variant(channels=64, words=128, causal=False), steps=8000),
    "32_all_ways_slow": replace(
        variant(channels=32, causal=False), steps=12_000, learning_rate=1e-3
    ),
    "32": replace(variant(channels=32), steps=14_000),
    "32_whole_pixels": replace(
        variant(channels=32, patch=1, multipliers=(1, 2, 2), attention=(16, 8)), steps=7000
    ),
    "32_wider_words": replace(variant(channels=32, words=128), steps=14_000),
}

if __name__ == "__main__":
    torch.backends.cudnn.benchmark = True
    out, *names = sys.argv[1:]
    for name in names:
        folder = Path(out) / name
        folder.mkdir(parents=True, exist_ok=True)
        run_text_to_image(name, VARIANTS[name], folder)
