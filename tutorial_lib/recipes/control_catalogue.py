"""The recipes of notebook 18 by name, whole and tiny."""

from __future__ import annotations

from typing import Any

from tutorial_lib.recipes import control
from tutorial_lib.recipes.control import ControlRun
from tutorial_lib.recipes.record import Recipe


def _control(about: str, expected: str, **how: Any) -> Recipe:
    """Return a recipe that trains a ControlNet of the course's text-to-image network."""
    tiny = {"steps": 2, "batch_size": 2, "images": 20, "tested": 4, "looks": 0, "scales": (2.0,)}
    return Recipe(
        f"A ControlNet of the text-to-image network, {about}",
        "Zhang, Rao & Agrawala 2023",
        "3 minutes on an H200",
        expected,
        control.run_control,
        control.headline,
        ControlRun(**{"steps": 5000, "batch_size": 256, "graph": True, **how}, learning_rate=1e-3),
        None,
        ControlRun(**how | tiny, learning_rate=1e-3, device="cpu"),
    )


SUDDEN = "the paper: control comes suddenly, within 10,000 steps"
CONTROL = {
    "shapes_control_outlines": _control("told the outlines of its objects", SUDDEN),
    "shapes_control_layout": _control(
        "told the boxes of its objects by shape", SUDDEN, map="layout"
    ),
    "shapes_control_random": _control(
        "whose copy of the encoder is none: drawn anew",
        "the paper keeps trained weights; a trial on a small base found no gain",
        copied=False,
    ),
    "shapes_control_ordinary": _control(
        "whose last convolutions do not begin at zero",
        "the paper: quality drops, the copy's trained weights are lost",
        zero=False,
    ),
    "shapes_control_thousand": _control(
        "taught on a thousand scenes",
        "the paper: control is learned from 1,000 pairs",
        images=1000,
    ),
}
