"""What U-SAM is compared with. Every method, U-SAM included, labels images by a function of the type `Annotate`."""

from collections.abc import Callable

from usam.data.datasets import Example
from usam.method.inference import LabelledMasks
from usam.method.masks import MaskEmbeddings

Annotate = Callable[[Example, MaskEmbeddings], LabelledMasks]
