"""What U-SAM is compared with. Every method, U-SAM included, labels images by a function of the type `Annotate`.

Those that give each of SAM's masks class probabilities (d, C), before threshold and NMS, do so by a `NameMasks`.
"""

from collections.abc import Callable

import numpy as np

from usam.data.datasets import Example
from usam.method.inference import LabelledMasks
from usam.method.masks import MaskEmbeddings

Annotate = Callable[[Example, MaskEmbeddings], LabelledMasks]
NameMasks = Callable[[Example, MaskEmbeddings], np.ndarray]
