"""Compare a notebook's outputs with its stored ones: numbers to a tolerance, figures coarsely."""

import base64
import io
import math
import re
from collections import defaultdict
from itertools import zip_longest
from typing import Any

from nbformat.v4 import new_output
from PIL import Image, ImageChops, ImageStat

RTOL = 2e-4
# Measured on two-panel figures: data moved by 3e-5 of their range give 0.0007, by 1e-3 0.004
# (0.009 where 1000 markers are rounded to other pixels); a bar 1 % off 0.015, another legend
# 0.015, a curve moved by 0.01 0.029, another seed 0.035, a flipped curve 0.044. What it misses:
# one thin curve in another colour, 0.008.
FIGURE_RMS = 0.01
COARSE = (160, 120)

MEASURED = re.compile(r"≈ ?[-+−]?[\d.]+(?:e[-+]?\d+)?%?")
NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:\d+\.\d*|\.\d+|\d+)(?:e[-+]?\d+)?(?![\w])", re.IGNORECASE)
BAR = re.compile(r"(?:[<>]|\bbar) ?[-\d.e]+(?: to [-\d.e]+)?")
PNG = "image/png"

Output = dict[str, Any]


def same_text(stored: str, fresh: str) -> bool:
    """Say whether two texts agree but for spacing, ≈ figures and the last digits of numbers.

    A bar, such as `< 0.08`, is typed by hand, not measured: it agrees exactly or not at all.
    """
    left, right = (MEASURED.sub("≈", re.sub(r"[ \t]+", " ", text)) for text in (stored, fresh))
    if NUMBER.sub("#", left) != NUMBER.sub("#", right) or BAR.findall(left) != BAR.findall(right):
        return False
    pairs = zip(NUMBER.findall(left), NUMBER.findall(right), strict=True)
    return all(same_number(a, b) for a, b in pairs)


def same_number(stored: str, fresh: str) -> bool:
    """Compare printed numbers: to RTOL or one unit in the last place, exactly without a point."""
    a, b = (text.replace("−", "-") for text in (stored, fresh))
    if "." not in a + b:
        return float(a) == float(b)
    unit = max(_last_place(a), _last_place(b))
    return abs(float(a) - float(b)) <= max(RTOL * abs(float(a)), unit * (1 + 1e-9))


def _last_place(text: str) -> float:
    mantissa, _, exponent = text.lower().partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def figure_distance(stored: str, fresh: str) -> float:
    """Return the RMS difference of two PNGs in base64, in [0, 1]; inf if their sizes differ."""
    images = [
        Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB") for data in (stored, fresh)
    ]
    if images[0].size != images[1].size:
        return math.inf
    small = (image.resize(COARSE, Image.Resampling.BOX) for image in images)
    rms = ImageStat.Stat(ImageChops.difference(*small)).rms
    return math.sqrt(sum(channel**2 for channel in rms) / len(rms)) / 255


def reconcile(fresh: list[Output], stored: list[Output]) -> None:
    """Overwrite fresh outputs by the stored ones where they agree, for a strict comparison next.

    A figure that does not agree leaves a field of its own in the fresh outputs, whose name tells.
    """
    for output in fresh:
        if PNG in output.get("data", {}):
            output["data"].pop("text/plain", None)
    old, new = _slots(stored), _slots(fresh)
    for kind in old.keys() & new.keys():
        for (there, key), (here, _) in zip(old[kind], new[kind], strict=False):
            if isinstance(there[key], str) and same_text(there[key], here[key]):
                here[key] = there[key]
    for mine, theirs in zip_longest(new[PNG], old[PNG]):
        note = _figure_note(mine, theirs)
        if note:
            fresh.append(new_output("display_data", {note: ""}))


def _figure_note(fresh: Any, stored: Any) -> str | None:
    if fresh is None or stored is None:
        return "no figure, where one is stored" if fresh is None else "a figure that is not stored"
    distance = figure_distance(stored[0][PNG], fresh[0][PNG])
    if distance <= FIGURE_RMS:
        return None
    return f"a figure that differs from the stored one by {distance:.4f} RMS, allowed {FIGURE_RMS}"


def _slots(outputs: list[Output]) -> dict[str, list[tuple[Output, str]]]:
    """Group by kind the places of outputs that hold something to compare."""
    slots: dict[str, list[tuple[Output, str]]] = defaultdict(list)
    for output in outputs:
        if output["output_type"] == "stream":
            slots[output["name"]].append((output, "text"))
        for key in output.get("data", {}):
            slots[key].append((output["data"], key))
        if output["output_type"] == "error":
            slots["evalue"].append((output, "evalue"))
    return slots


def touches_the_edge(png: bytes) -> bool:
    """Say whether anything is drawn in the outermost pixels of a picture."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    inside = ImageChops.difference(picture, Image.new("RGB", picture.size, "white")).getbbox()
    return inside is not None and (
        min(inside[:2]) == 0 or inside[2] == picture.width or inside[3] == picture.height
    )
