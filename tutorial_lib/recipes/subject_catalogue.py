"""The recipes of notebook 15 by name, whole and tiny."""

from __future__ import annotations

from typing import Any

from tutorial_lib.recipes import dreambooth
from tutorial_lib.recipes.dreambooth import SPARE, DreamBoothRun
from tutorial_lib.recipes.record import Recipe


def _lessons(about: str, expected: str, **how: Any) -> Recipe:
    """Return a recipe that teaches the text-to-image network subjects, one by one."""
    few = {"steps": 2, "batch_size": 2, "own": 4, "tested": 4, "looks": 1, "sampler_steps": 3}
    few |= {"subjects": ("kite",), "seeds": (0,)}
    return Recipe(
        f"DreamBooth: subjects taught to the text-to-image network, {about}",
        "Ruiz et al. 2023, sections 3.2 and 3.3",
        "6 minutes on an H200",
        expected,
        dreambooth.run_dreambooth,
        dreambooth.headline,
        DreamBoothRun(**{"steps": 300, "batch_size": 8, **how}, learning_rate=1e-4),
        None,
        DreamBoothRun(**how | few, learning_rate=1e-4, device="cpu"),
    )


SUBJECT_LESSONS = {
    "shapes_dreambooth": _lessons(
        "with and without prior preservation",
        "the paper: without it the class becomes the subject",
    ),
    "shapes_dreambooth_words": _lessons(
        "by a word that is new and by words that are known",
        "the paper: known words bring their meaning along, and lose it",
        words=(SPARE, "red", "large", "above", "thing"),
        subjects=("ball", "die"),
        weights=(1.0,),
    ),
}
