"""The classifier head θ (paper 3.5): tokens m_i (d x 1024) -> logits o_i = θ(m_i) (d x C)."""

from itertools import pairwise

from torch import Tensor, nn


class MaskClassifier(nn.Module):
    """θ: four linear layers with ReLU between, 1024 -> 512 -> 256 -> 128 -> C.

    Args:
        classes: C, number of object classes (no background class: the paper's head has none).
        mean, std: (1024,) float32 statistics of the training tokens, or zeros and ones; kept in the checkpoint.
        widths: of the three hidden layers.
    """

    def __init__(self, classes: int, mean: Tensor, std: Tensor, widths: tuple[int, int, int] = (512, 256, 128)):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        sizes = (len(mean), *widths)
        hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(widths[-1], classes))

    def standardised(self, tokens: Tensor) -> Tensor:
        """Tokens (..., 1024) of any float type, minus the training mean, over the training deviation: float32."""
        return (tokens.float() - self.mean) / self.std

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (..., C) float32 of tokens (..., 1024) of any float type."""
        return self.layers(self.standardised(tokens))
