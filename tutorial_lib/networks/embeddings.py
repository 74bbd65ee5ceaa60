"""Turn a time, a log-SNR or a label into the numbers that a network reads."""

import math

import torch
from torch import Tensor, nn

NULL_LABEL = -1  # "no label", for single examples of a labelled batch


def sinusoidal(clock: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Embed a clock by sines, then cosines, whose frequencies fall from 1 to 1 / max_period.

    Attention Is All You Need (Vaswani et al. 2017), section 3.5, as in DDPM's code (Ho et al.
    2020, appendix B): the last frequency is 1 / max_period itself, not one short of it. They fit
    a clock of hundreds of units (DDPM's step number), not one in [0, 1]. Shapes: (...) to
    (..., width); `width` is even and at least 4.
    """
    if width < 4 or width % 2:
        raise ValueError(
            f"width is {width}: a sinusoidal embedding needs an even width, 4 or more"
        )
    half = width // 2
    clock = clock.to(torch.promote_types(clock.dtype, torch.float32))
    exponent = torch.arange(half, dtype=clock.dtype, device=clock.device) / (half - 1)
    angle = clock[..., None] * torch.exp(-math.log(max_period) * exponent)  # (..., half)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def log_snr_features(clock: Tensor, harmonics: int = 6) -> Tensor:
    """Return the clock itself, then sin and cos of k pi/2 times it for k = 1..harmonics.

    Fourier features (Tancik et al. 2020), section 4, with regular frequencies. They fit a clock
    of a few units: the log-SNR / 10 of the 2-D net. Shapes: (...) to (..., 1 + 2 harmonics).
    """
    k = torch.arange(1, harmonics + 1, dtype=clock.dtype, device=clock.device)
    angle = clock[..., None] * k * (math.pi / 2)  # (..., harmonics)
    return torch.cat([clock[..., None], angle.sin(), angle.cos()], dim=-1)


class LabelEmbedding(nn.Module):
    """Look up a vector per class, and one more for "no label".

    Classifier-free guidance (Ho & Salimans 2022), section 3.2, trains one network both ways:
    `NULL_LABEL` drops the label of one example, None that of the whole batch.
    """

    def __init__(self, n_classes: int, width: int) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.table = nn.Embedding(n_classes + 1, width)

    def forward(self, label: Tensor | None) -> Tensor:
        """Map labels (...) in 0..n_classes-1 or NULL_LABEL to (..., width); None to (width,)."""
        if label is None:
            return self.table.weight[self.n_classes]
        return self.table(torch.where(label == NULL_LABEL, self.n_classes, label))
