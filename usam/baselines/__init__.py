"""What U-SAM is compared with. Every method, U-SAM included, labels images by a function of the type `Annotate`: it
returns labelled masks, or, if it labels pixels and has no masks, a semantic map (H, W) uint8 (0 background, j + 1 class
j).

Those that give each of SAM's masks class probabilities (d, C), before threshold and NMS, do so by a `NameMasks`.
"""

from collections.abc import Callable

import numpy as np

from usam.data.datasets import Example
from usam.method.inference import LabelledMasks
from usam.method.masks import MaskEmbeddings

Annotate = Callable[[Example, MaskEmbeddings], LabelledMasks | np.ndarray]
NameMasks = Callable[[Example, MaskEmbeddings], np.ndarray]
