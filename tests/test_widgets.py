"""A widget shows what its controls say, leaks no figure and tells errors. 2 seconds."""

import base64
import io
import re
import time

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image

from tutorial_lib import plotting
from tutorial_lib.widgets import explore


def bar(height, width=1, colour="tab:blue"):
    figure, ax = plotting.figure(width=3, height=2)
    ax.bar([0], [height], width, color=colour)
    ax.set_ylim(0, 1)
    return figure


def picture(widget):
    data = re.search(r'src="data:image/png;base64,([^"]+)"', widget.picture.value)[1]
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_moving_a_control_changes_the_picture_and_leaks_no_figure():
    before = plt.get_fignums()
    widget = explore(bar, alt="a bar", height=(0.0, 1.0, 0.1, 0.5), width=(1, 3, 1, 1))
    seen = {picture(widget).tobytes()}
    for name, value in (("height", 0.9), ("width", 3), ("height", 0.5), ("width", 1)):
        widget.controls[name].value = value
        seen.add(picture(widget).tobytes())
    assert len(seen) == 4  # the last two moves lead back to the first picture
    assert plt.get_fignums() == before


def test_the_picture_is_the_figure_that_show_draws():
    widget = explore(bar, alt="a bar", height=(0.0, 1.0, 0.1, 0.5))
    drawn = io.BytesIO()
    figure = bar(0.5)
    figure.savefig(drawn, format="png", dpi=plotting.DPI)
    plt.close(figure)
    assert picture(widget).tobytes() == Image.open(drawn).tobytes()
    assert f'width="{3 * plotting.SCREEN}"' in widget.picture.value


def test_alt_text_is_required_and_safe():
    with pytest.raises(TypeError, match="alt"):
        explore(bar, height=(0.0, 1.0, 0.1, 0.5))
    widget = explore(bar, alt='where "x" < 1', height=(0.0, 1.0, 0.1, 0.5))
    assert 'alt="where &quot;x&quot; &lt; 1"' in widget.picture.value


def test_controls_carry_labels_ranges_and_choices():
    widget = explore(
        bar,
        alt="a bar",
        height=(0.0, 1.0, 0.05, 0.5, "height (m)"),
        width=(1, 3, 1, 2),
        colour=({"sky": "tab:blue", "sun": "tab:orange"}, "paint"),
    )
    height, width, colour = widget.controls.values()
    assert (height.min, height.max, height.step, height.value) == (0.0, 1.0, 0.05, 0.5)
    assert [c.description for c in (height, width, colour)] == ["height (m)", "width", "paint"]
    assert (height.readout_format, width.readout_format) == (".2f", "d")
    before = picture(widget).tobytes()
    colour.value = "tab:orange"
    assert picture(widget).tobytes() != before
    assert repr(widget) == "Run this cell to explore: height (m) · width · paint"


@pytest.mark.parametrize("spec", [(0, 1), 3, (0.0, 1.0, 0.1), ("a", "b", "c", "d", "e", "f")])
def test_an_unknown_control_is_named(spec):
    with pytest.raises(ValueError, match="control height must be"):
        explore(bar, alt="a bar", height=spec)


def test_an_error_becomes_one_line_and_passes():
    def fragile(height):
        figure = bar(height)
        if height > 0.8:
            raise ValueError("too <high>\nfor me")
        return figure

    before = plt.get_fignums()
    widget = explore(fragile, alt="a bar", height=(0.0, 1.0, 0.1, 0.5))
    whole = widget.picture.value
    widget.controls["height"].value = 0.9
    assert widget.picture.value == '<p role="alert">ValueError: too &lt;high&gt; for me</p>'
    assert plt.get_fignums() == before
    widget.controls["height"].value = 0.5
    assert widget.picture.value == whole


def test_what_is_no_figure_is_said():
    widget = explore(lambda height: None, alt="a bar", height=(0.0, 1.0, 0.1, 0.5))
    assert "returned NoneType, not a Figure" in widget.picture.value


def test_a_move_is_answered_quickly():
    plotting.use_style()
    widget = explore(bar, alt="a bar", height=(0.0, 1.0, 0.1, 0.5))
    moves = [0.1, 0.2, 0.3, 0.4, 0.6]
    started = time.process_time()
    for value in moves:
        widget.controls["height"].value = value
    assert (time.process_time() - started) / len(moves) < 0.2


def test_figures_are_stored_small_and_true():
    with plt.rc_context():
        plotting.use_style()
        figure, axes = plotting.figure(2)
        points = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
        for ax, colour in zip(axes, (plotting.DATA, plotting.MODEL), strict=True):
            plotting.show_points(ax, points, colour)
            plotting.equal_square(ax)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=plotting.DPI)
        stored = plotting.png(figure)
        plt.close(figure)
    full, small = (Image.open(data).convert("RGB") for data in (drawn, io.BytesIO(stored)))
    worst = (torch.tensor(list(full.tobytes())) - torch.tensor(list(small.tobytes()))).abs().max()
    assert full.size == small.size
    assert worst <= 16
    assert len(stored) < 0.5 * len(drawn.getvalue())


def test_photographs_keep_their_colours():
    figure, ax = plotting.figure(width=3, height=3)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plotting.show_images(ax, images, 2)
    assert Image.open(io.BytesIO(plotting.png(figure))).mode == "RGB"
    plt.close(figure)


def test_images_are_tiled_in_reading_order():
    _, ax = plotting.figure(width=3)
    shades = torch.tensor([-1.0, 0.0, 1.0])
    sheet = plotting.show_images(ax, shades.reshape(3, 1, 1, 1).expand(3, 1, 2, 2), 2).get_array()
    plt.close("all")
    assert sheet.shape == (5, 5, 3)
    assert [sheet[0, 0, 0], sheet[0, 3, 0], sheet[3, 0, 0]] == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match=r"\(3, 2, 2\)"):
        plotting.show_images(ax, torch.zeros(3, 2, 2))


def test_an_ellipse_lies_along_the_long_axis_of_its_covariance():
    _, ax = plotting.figure(width=3)
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
    covariance = turn @ torch.diag(torch.tensor([4.0, 0.25], dtype=torch.float64)) @ turn.T
    (ellipse,) = plotting.show_ellipse(ax, torch.zeros(2), covariance, deviations=(2.0,))
    inside = ellipse.get_transform().transform(ellipse.get_path().vertices)
    points = torch.tensor(ax.transData.inverted().transform(inside))
    plt.close("all")
    radius = (points @ torch.linalg.inv(covariance) * points).sum(1).sqrt()
    ends = radius[[0, 6, 12, 18]]  # of the four axes; between them are Bezier control points too
    assert torch.allclose(ends, torch.full_like(ends, 2.0), atol=1e-6)


def test_a_line_of_text_is_a_control_and_what_it_cannot_mean_is_said():
    def show(colour, title):
        figure = bar(0.5, colour=colour)
        figure.axes[0].set_title(title)
        return figure

    widget = explore(show, alt="a bar", colour="red", title=("one", "its title"))
    assert widget.controls["title"].description == "its title"
    assert not widget.controls["colour"].continuous_update  # half a word is no colour
    before = picture(widget).tobytes()
    widget.controls["title"].value = "another"
    assert picture(widget).tobytes() != before
    widget.controls["colour"].value = "no colour at all"
    assert "ValueError" in widget.picture.value
