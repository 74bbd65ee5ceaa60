"""Let a reader move the parameters of a figure."""

import base64
import html
import io
from collections.abc import Callable
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from tutorial_lib.plotting import DPI, SCREEN

LABELS = {"alpha": "α", "beta": "β", "sigma": "σ", "eps": "ε", "eta": "η", "lambda_": "λ"}


class Explorer(ipywidgets.VBox):
    """Show a figure under the controls of its parameters."""

    def __init__(
        self, show: Callable[..., Figure], alt: str, controls: dict[str, ipywidgets.Widget]
    ) -> None:
        self.show, self.alt, self.controls = show, alt, controls
        self.picture = ipywidgets.HTML()
        panel = ipywidgets.VBox(list(controls.values()))
        super().__init__([panel, self.picture], layout=ipywidgets.Layout(max_width="60rem"))
        for control in controls.values():
            control.observe(lambda _: self.draw(), names="value")
        self.draw()

    def __repr__(self) -> str:
        return "Run this cell to explore: " + " · ".join(
            control.description for control in self.controls.values()
        )

    def draw(self) -> None:
        """Draw the figure for the values of the controls, or say in one line why it cannot be."""
        opened = set(plt.get_fignums())
        try:
            figure = self.show(**{name: c.value for name, c in self.controls.items()})
            self.picture.value = _image(figure, self.alt)
        except Exception as error:
            said = html.escape(f"{type(error).__name__}: {' '.join(str(error).split())}")
            self.picture.value = f'<p role="alert">{said}</p>'
        finally:
            for number in set(plt.get_fignums()) - opened:
                plt.close(number)


def explore(show: Callable[..., Figure], *, alt: str, **controls: Any) -> Explorer:
    """Draw `show(**values)` anew whenever one of its controls moves.

    A control is (low, high, step, start) or the same with a label and unit as fifth entry; or a
    list or dict of choices, or (choices, label); or a line of text, taken when it is sent off, or
    (text, label). `show` returns a matplotlib Figure; `alt` says
    in words what it shows.
    """
    return Explorer(show, alt, {name: _control(name, spec) for name, spec in controls.items()})


def _control(name: str, spec: Any) -> ipywidgets.Widget:
    label = LABELS.get(name, name.replace("_", " "))
    if isinstance(spec, (list, dict)):
        return _choice(spec, label)
    if isinstance(spec, tuple) and len(spec) == 2 and isinstance(spec[0], (list, dict)):
        return _choice(*spec)
    if isinstance(spec, str):
        return _line(spec, label)
    if isinstance(spec, tuple) and len(spec) == 2 and isinstance(spec[0], str):
        return _line(*spec)
    if isinstance(spec, tuple) and len(spec) in (4, 5):
        return _slider(*spec[:4], spec[4] if len(spec) == 5 else label)
    raise ValueError(
        f"The control {name} must be (low, high, step, start), the same with a label, "
        f"choices or a text; got {spec!r}."
    )


def _slider(low: float, high: float, step: float, start: float, label: str) -> ipywidgets.Widget:
    whole = all(isinstance(number, int) for number in (low, high, step, start))
    decimals = len(f"{step:.10f}".rstrip("0").partition(".")[2])
    kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
    return kind(
        value=start,
        min=low,
        max=high,
        step=step,
        readout_format="d" if whole else f".{decimals}f",
        **_look(label),
    )


def _choice(choices: list | dict, label: str) -> ipywidgets.Widget:
    options = list(choices.items()) if isinstance(choices, dict) else choices
    return ipywidgets.Dropdown(options=options, **_look(label))


def _line(text: str, label: str) -> ipywidgets.Widget:
    return ipywidgets.Text(value=text, continuous_update=False, **_look(label))


def _look(label: str) -> dict[str, Any]:
    return {
        "description": label,
        "style": {"description_width": "14rem"},
        "layout": ipywidgets.Layout(width="min(100%, 44rem)"),
    }


def _image(figure: Figure, alt: str) -> str:
    if not isinstance(figure, Figure):
        raise TypeError(f"The drawing function returned {type(figure).__name__}, not a Figure.")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, pil_kwargs={"compress_level": 1})
    data = base64.b64encode(drawn.getvalue()).decode()
    width, height = (round(side * SCREEN) for side in figure.get_size_inches())
    return (
        f'<img alt="{html.escape(alt)}" width="{width}" height="{height}" '
        f'style="max-width: 100%; height: auto" src="data:image/png;base64,{data}">'
    )
