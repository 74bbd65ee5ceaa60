"""The look of the course: what colours mean, sizes, and the pictures that every notebook draws."""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from cycler import cycler
from IPython.core.getipython import get_ipython
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Ellipse
from matplotlib.quiver import Quiver
from PIL import Image, ImageChops, ImageStat
from torch import Tensor

# Okabe and Ito's colours, told apart under every common colour blindness. Each keeps one meaning.
INK = "#22272e"
EXACT = INK
DATA = "#0072b2"
MODEL = "#d55e00"
NOISE = "#8b929a"
GOOD = "#009e73"
ACCENT = "#aa4499"
PALE = "#d9dee4"
SEQUENCE = (DATA, MODEL, GOOD, ACCENT, "#e69f00", "#56b4e9", NOISE)

DENSITY = LinearSegmentedColormap.from_list(
    "density", ["#ffffff", "#d6e6f2", "#8fbbdb", "#4a8fc2"]
)
SHADE = LinearSegmentedColormap.from_list("shade", ["#ffffff", "#e9ebee", "#cfd4da", "#aab1ba"])
TIME = LinearSegmentedColormap.from_list("time", [DATA, "#7f6fb5", "#c58ab0", "#b9bcc4"])
DIVERGING = LinearSegmentedColormap.from_list("diverging", [DATA, "#f7f7f7", MODEL])

DPI = 120
LOSS = 2, 40  # of 255, of a figure in 256 colours: in the mean and at any pixel
WIDTH = 8.0  # inches: the text column of a notebook
SCREEN = 96  # CSS pixels per inch: figures are shown smaller than stored, hence sharp

_STYLE = {
    "figure.dpi": DPI,
    "figure.figsize": (WIDTH, 3.2),
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "mathtext.fontset": "dejavusans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.labelsize": 10,
    "axes.edgecolor": "#6b737c",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=SEQUENCE),
    "grid.color": "#e6e9ec",
    "grid.linewidth": 0.7,
    "xtick.color": "#6b737c",
    "ytick.color": "#6b737c",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "lines.markersize": 5,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.fancybox": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 1.6,
    "image.interpolation": "nearest",
}


def use_style() -> None:
    """Give every figure from here on the look of the course."""
    plt.rcParams.update(plt.rcParamsDefault | _STYLE | {"backend": plt.get_backend()})
    shell = get_ipython()
    if shell is not None:
        plt.close(plt.figure())  # loads the backend, which would otherwise replace the formatter
        shell.display_formatter.formatters["image/png"].for_type(Figure, _shown)


def png(figure: Figure) -> bytes:
    """Render a figure at its fixed size, with a palette of 256 colours where none is missed."""
    drawn, out = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, pil_kwargs={"compress_level": 0})
    full = Image.open(drawn).convert("RGB")
    small = full.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    lost = ImageStat.Stat(ImageChops.difference(full, small.convert("RGB")))
    worst = max(lost.mean), max(high for _, high in lost.extrema)
    faithful = worst[0] <= LOSS[0] and worst[1] <= LOSS[1]  # photographs lose more
    (small if faithful else full).save(out, format="png", optimize=True)
    return out.getvalue()


def _shown(figure: Figure) -> tuple[bytes, dict[str, int]]:
    width, height = (round(side * SCREEN) for side in figure.get_size_inches())
    return png(figure), {"width": width, "height": height}


def figure(
    ncols: int = 1, nrows: int = 1, *, width: float = WIDTH, height: float | None = None
) -> tuple[Figure, Any]:
    """Return a figure and its axes: one, or an array as of `plt.subplots`. Sizes are in inches."""
    tall = height if height is not None else nrows * min(3.2, 0.95 * width / ncols)
    fig, axes = plt.subplots(nrows, ncols, figsize=(width, tall), layout="compressed")
    return fig, axes


def panel_title(ax: Axes, text: str, detail: str = "") -> None:
    """Write what a panel shows at its top left, with an optional quieter detail after it."""
    ax.set_title(text, loc="left")
    if detail:
        ax.set_title(detail, loc="right", color="#6b737c", fontsize=9)


def equal_square(ax: Axes, extent: float = 3.0) -> None:
    """Turn axes into a framed piece of the plane, [-extent, extent] both ways, without a grid."""
    side = math.floor(extent)
    ax.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")
    ax.set(xticks=[-side, 0, side], yticks=[-side, 0, side])
    ax.grid(False)
    ax.spines[:].set(visible=True, color=PALE)


def show_points(
    ax: Axes, x: Tensor, color: Any = DATA, *, size: float = 5.0, alpha: float = 0.55, **style: Any
) -> PathCollection:
    """Scatter points (N, 2); `color` may be one colour or N numbers for a colour map."""
    xs, ys = _numpy(x).T
    values = _numpy(color) if isinstance(color, Tensor) else color
    return ax.scatter(xs, ys, s=size, c=values, alpha=alpha, linewidths=0, **style)


def show_density(
    ax: Axes,
    density: Any,
    extent: float = 3.0,
    *,
    levels: int = 9,
    resolution: int = 161,
    cmap: Any = DENSITY,
) -> QuadContourSet:
    """Fill soft contours of a 2-D density: an object with `log_prob`, or that function itself."""
    log_prob: Callable[[Tensor], Tensor] = getattr(density, "log_prob", density)
    line = torch.linspace(-extent, extent, resolution, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)
    height = _numpy(log_prob(grid.reshape(-1, 2)).reshape(resolution, resolution).exp())
    # Equal steps of the square root keep weak modes in sight beside strong ones.
    steps = height.max() * np.linspace(0.12, 1.0, levels) ** 2
    return ax.contourf(
        _numpy(line), _numpy(line), height, steps, cmap=cmap, extend="max", zorder=0
    )


def show_ellipse(
    ax: Axes,
    mean: Tensor,
    covariance: Tensor,
    color: Any = EXACT,
    *,
    deviations: Sequence[float] = (1.0, 2.0),
    **style: Any,
) -> list[Ellipse]:
    """Draw the curves at so many standard deviations of a 2-D Gaussian."""
    variances, axes = np.linalg.eigh(_numpy(covariance))
    angle = np.degrees(np.arctan2(axes[1, 1], axes[0, 1]))
    look = {"edgecolor": color, "facecolor": "none", "linewidth": 1.6} | style
    ellipses = []
    for k in deviations:
        height, width = 2 * k * np.sqrt(variances)
        ellipses.append(ax.add_patch(Ellipse(_numpy(mean), width, height, angle=angle, **look)))
    return ellipses


def show_arrows(
    ax: Axes, points: Tensor, vectors: Tensor, color: Any = EXACT, *, scale: float = 1.0
) -> Quiver:
    """Draw vectors (N, 2) from points (N, 2), `scale` data units long for each unit."""
    (xs, ys), (us, vs) = _numpy(points).T, _numpy(vectors).T * scale
    return ax.quiver(
        xs, ys, us, vs, color=color, angles="xy", scale_units="xy", scale=1, width=0.005, zorder=3
    )


def show_field(
    ax: Axes,
    field: Callable[[Tensor], Tensor],
    extent: float = 3.0,
    color: Any = GOOD,
    *,
    resolution: int = 13,
) -> Quiver:
    """Draw a vector field of points (N, 2) on a grid, as arrows that never touch.

    Directions are true; a length l is drawn as l / (1 + l) of the grid's spacing.
    """
    edge = extent * (1 - 1 / resolution)
    ticks = torch.linspace(-edge, edge, resolution, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1).reshape(-1, 2)
    vectors = field(grid)
    vectors = vectors / (1 + vectors.norm(dim=1, keepdim=True))
    return show_arrows(ax, grid, vectors, color, scale=0.75 * float(ticks[1] - ticks[0]))


def show_images(ax: Axes, batch: Tensor, nrow: int = 8) -> AxesImage:
    """Tile images (N, C, H, W) in [-1, 1], C = 1 or 3, with `nrow` in a row."""
    if batch.ndim != 4 or batch.shape[1] not in (1, 3):
        raise ValueError(f"Images are (N, 1 or 3, H, W), not {tuple(batch.shape)}.")
    images = ((batch.detach().float().clamp(-1, 1) + 1) / 2).expand(-1, 3, -1, -1)
    count, channels, height, width = images.shape
    rows = -(-count // nrow)
    sheet = torch.ones(rows * (height + 1) - 1, nrow * (width + 1) - 1, channels)
    for k, image in enumerate(images):
        top, left = (k // nrow) * (height + 1), (k % nrow) * (width + 1)
        sheet[top : top + height, left : left + width] = image.permute(1, 2, 0)
    ax.set_axis_off()
    return ax.imshow(_numpy(sheet))


def _numpy(values: Any) -> np.ndarray:
    return torch.as_tensor(values).detach().cpu().numpy()
