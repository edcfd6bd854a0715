"""Segment Anything on a grid of points: image in, mask embeddings out (paper 3.3 and 4).

The tokens are taken with a forward hook on the mask decoder's transformer; segment-anything itself stays untouched.
"""

import contextlib
import copy
import functools
import importlib
import math
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from pycocotools import mask as rle_codec
from safetensors.torch import load_file
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torchvision.transforms.functional import resize, to_pil_image

from usam import decoder, paths
from usam.errors import UserError
from usam.profiles import SamConfig

MASK_TOKENS = slice(1, 5)  # the transformer's output tokens: [IoU, single, multi-1, multi-2, multi-3, prompt ...]


@dataclass(frozen=True)
class MaskEmbeddings:
    """What SAM says about one image, one entry a grid point; d is their number.

    Attributes:
        tokens: (d, 4, 256) float16, the mask tokens [single, multi-1, multi-2, multi-3]; flattened they are the
            paper's m_i of d x 1024.
        masks: d binary masks as COCO RLE at the decoder's low resolution, padding removed.
        iou: (d,) float32, SAM's own prediction of each mask's IoU.
        image_size: (H, W) of the image in pixels.
        extent: (height, width) that the image covers on the low-resolution masks; need not be whole numbers.
        points: (d, 2) float32 of (x, y) in the image's pixels, where each mask was asked for.
    """

    tokens: np.ndarray
    masks: list[dict]
    iou: np.ndarray
    image_size: tuple[int, int]
    extent: tuple[float, float]
    points: np.ndarray


def point_grid(image_size: tuple[int, int], points_per_side: int) -> np.ndarray:
    """Centres of an even grid: (points_per_side², 2) float32 of (x, y) in pixels, row by row.

    Point (i, j) lies at ((i + 1/2) W / n, (j + 1/2) H / n).
    """
    height, width = image_size
    steps = (np.arange(points_per_side, dtype=np.float32) + 0.5) / points_per_side
    x, y = np.meshgrid(steps * width, steps * height)
    return np.stack([x.ravel(), y.ravel()], 1)


def coarser(points_per_side: int, wanted: int) -> np.ndarray:
    """Which points of a grid are nearest to those of a coarser one: (wanted²,) indices, each once.

    Raises:
        UserError: the other grid is the finer one.
    """
    if wanted > points_per_side:
        raise UserError(f"grid: {wanted} points a side are more than the {points_per_side} of sam.points_per_side")
    nearest = ((np.arange(wanted) + 0.5) * points_per_side / wanted).astype(int)  # cells of the fine grid
    return (nearest[:, None] * points_per_side + nearest).ravel()


def build_sam(model: str) -> Sam:
    """SAM with fresh weights: "vit_h", "vit_l", "vit_b" or "module:function".

    Raises:
        UserError: neither a known name nor an importable function.
    """
    if model in ("vit_h", "vit_l", "vit_b"):
        return sam_model_registry[model](checkpoint=None)
    module, _, function = model.partition(":")
    try:
        return getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(
            f"sam.model '{model}': not vit_h, vit_l, vit_b, nor a 'module:function' that can be imported ({error})"
        ) from error


def load_sam(config: SamConfig, device: torch.device | str = "cpu") -> Sam:
    """SAM with the profile's weights, in eval mode on `device`.

    Raises:
        UserError: the checkpoint is missing, unreadable, or of another model.
    """
    sam = build_sam(config.model)
    weights = read_checkpoint(find_checkpoint(config.checkpoint))
    try:
        sam.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:  # the last two: a .pth of something else
        reason = textwrap.shorten(str(error).split("\n", 1)[-1], 200)
        raise UserError(f"{config.checkpoint} does not hold the weights of '{config.model}': {reason}") from error
    return sam.eval().requires_grad_(False).to(device)


def find_checkpoint(name: str) -> Path:
    """Where the profile's checkpoint is.

    Raises:
        UserError: it is not there.
    """
    path = paths.resolve(name)
    if not path.is_file():
        raise UserError(f"SAM checkpoint {path} is missing: put the file there, or name another in the profile")
    return path


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` or `.pth` file; nothing else is ever unpickled.

    Raises:
        UserError: not such a file.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path} cannot be read as weights, it may be cut off: delete it and get it again") from error


@contextlib.contextmanager
def captured_tokens(sam: Sam) -> Iterator[list[Tensor]]:
    """While open, every decoder call adds its mask tokens (prompts, 4, 256) to the list that is given."""
    kept: list[Tensor] = []
    hook = sam.mask_decoder.transformer.register_forward_hook(lambda _m, _i, out: kept.append(out[0][:, MASK_TOKENS]))
    try:
        yield kept
    finally:
        hook.remove()


class Extractor:
    """Turns images into `MaskEmbeddings`, all d prompts of an image in one decoder call."""

    def __init__(self, config: SamConfig, device: torch.device | str = "cpu", sam: Sam | None = None):
        self.config = config
        self.device = torch.device(device)
        self.sam = sam if sam is not None else load_sam(config, device)
        self.precision = getattr(torch, config.precision)
        # A decoder whose weights have the precision: autocast would convert back and forth at every step.
        self.decoder = copy.deepcopy(self.sam.mask_decoder).to(self.precision)

    def __call__(self, image: np.ndarray) -> MaskEmbeddings:
        """Embeddings of one image, (H, W, 3) uint8 RGB."""
        size = image.shape[:2]
        points = point_grid(size, self.config.points_per_side)
        logits, iou, tokens, inner = self.decode(image, points)
        best = (
            1 + iou[:, 1:].argmax(1) if self.config.mask_choice == "best" else torch.zeros(len(iou), dtype=torch.long)
        )
        rows = torch.arange(len(best))
        side = self.sam.image_encoder.img_size
        extent = tuple(i * n / side for i, n in zip(inner, logits.shape[-2:], strict=True))
        chosen = logits[rows, best.to(logits.device)] > 0  # (d, h, w)
        cropped = chosen[:, : math.ceil(extent[0]), : math.ceil(extent[1])].cpu().numpy()
        return MaskEmbeddings(
            tokens.half().cpu().numpy(), encode(cropped), iou[rows, best].float().cpu().numpy(), size, extent, points
        )

    @torch.inference_mode()
    def decode(self, image: np.ndarray, points: np.ndarray) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """SAM's four masks for each of N point prompts.

        Args:
            image: (H, W, 3) uint8 RGB.
            points: (N, 2) of (x, y) in the image's pixels, all foreground.

        Returns:
            mask logits (N, 4, h, w) at low resolution with padding, predicted IoU (N, 4), tokens (N, 4, 256), all
            float32, and the (height, width) of the image inside SAM's square input.
        """
        pixels, inner = self._pixels(image)
        scale = np.float32([inner[1] / image.shape[1], inner[0] / image.shape[0]])
        coordinates = torch.as_tensor(points * scale, device=self.device)[:, None]  # (N, 1, 2), one prompt each
        labels = torch.ones(len(points), 1, device=self.device)
        sparse, dense = self.sam.prompt_encoder((coordinates, labels), None, None)  # float32, outside autocast
        positions = self.sam.prompt_encoder.get_dense_pe()
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            features = self.sam.image_encoder(pixels)
        inputs = (x.to(self.precision) for x in (features, positions, sparse, dense[:1]))
        logits, iou, tokens = decoder.decode(self.decoder, *inputs)
        return logits.float(), iou.float(), tokens.float(), inner

    def _pixels(self, image: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        """SAM's normalised, padded input (1, 3, S, S) and the (height, width) of the image in it."""
        side = self.sam.image_encoder.img_size
        height, width = ResizeLongestSide.get_preprocess_shape(*image.shape[:2], side)
        inner = (max(height, 1), max(width, 1))  # a strip of 20000 x 10 still has a row
        small = np.asarray(resize(to_pil_image(image), list(inner)))
        tensor = torch.as_tensor(small.copy(), device=self.device).permute(2, 0, 1)[None]
        return self.sam.preprocess(tensor), inner


class LazyExtractor:
    """An `Extractor` that loads SAM at the first image: a stage that finds all its shards loads nothing."""

    def __init__(self, config: SamConfig, device: torch.device | str = "cpu"):
        self._load = functools.cache(lambda: Extractor(config, device))
        self._loading = threading.Lock()

    def __call__(self, image: np.ndarray) -> MaskEmbeddings:
        """As `Extractor`."""
        with self._loading:
            extractor = self._load()
        return extractor(image)


def encode(masks: np.ndarray) -> list[dict]:
    """Bool masks (N, H, W) as COCO RLE."""
    return rle_codec.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8)) if len(masks) else []


def decode(rles: list[dict]) -> np.ndarray:
    """COCO RLE of one size as bool masks (N, H, W)."""
    return rle_codec.decode(rles).transpose(2, 0, 1).astype(bool) if rles else np.zeros((0, 0, 0), bool)


def to_image_size(masks: np.ndarray, extent: tuple[float, float], image_size: tuple[int, int]) -> np.ndarray:
    """Low-resolution masks at the image's own size: bilinear, cut at one half.

    Args:
        masks: (N, h, w) bool.
        extent: (height, width) of the image on them.
        image_size: (H, W) wanted.

    Returns:
        (N, H, W) bool.
    """
    (height, width), (ys, xs) = image_size, (extent[0] / image_size[0], extent[1] / image_size[1])
    back = np.float32([[xs, 0, xs / 2 - 0.5], [0, ys, ys / 2 - 0.5]])  # centre of pixel i lies at (i + 1/2) scale - 1/2
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    large = [
        cv2.warpAffine(m.astype(np.uint8) * 255, back, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        for m in masks
    ]
    return np.stack(large) > 127 if large else np.zeros((0, *image_size), bool)
