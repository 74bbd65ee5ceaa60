"""Look for a base that is neither perfect nor poor: text-to-image networks of several sizes.

    python benchmarks/shape_world.py OUT NAME ...

Each NAME is a network below; it leaves its record in OUT/NAME, as a recipe would.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from tutorial_lib.recipes.catalogue import RECIPES
from tutorial_lib.recipes.text_to_image import TextToImageRun, run_text_to_image
from tutorial_lib.text import TextConfig

BASE: TextToImageRun = RECIPES["shapes_text_to_image"].full


def variant(
    steps: int = 12_000, words: int = 96, layers: int = 2, **network: object
) -> TextToImageRun:
    """Return the base's run with another network, encoder of text, or length."""
    text = TextConfig(BASE.text.vocabulary, BASE.text.length, words, layers)
    network = replace(BASE.network, text_width=words, **network)
    return replace(BASE, network=network, text=text, steps=steps)


VARIANTS = {
    "32_deep": variant(channels=32),
    "48": variant(channels=48, depth=1),
    "64_deep": variant(channels=64, words=128, steps=8000),
    "32_slow": replace(variant(channels=32), learning_rate=1e-3),
    "32_long_text": variant(channels=32, words=128, layers=4),
    "32_whole_pixels": variant(
        channels=32, patch=1, multipliers=(1, 2, 2), attention=(8,), steps=8000
    ),
}

if __name__ == "__main__":
    torch.backends.cudnn.benchmark = True
    out, *names = sys.argv[1:]
    for name in names:
        folder = Path(out) / name
        folder.mkdir(parents=True, exist_ok=True)
        run_text_to_image(name, VARIANTS[name], folder)
