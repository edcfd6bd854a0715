"""Segment Anything on a grid of points: images in, mask embeddings out (paper 3.3 and 4).

segment-anything itself stays untouched: `encoder` and `decoder` use its modules and weights, with less work.
"""

import contextlib
import copy
import dataclasses
import functools
import importlib
import itertools
import math
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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

from usam import decoder, downloads, encoder, paths, rle, runs
from usam.errors import UserError
from usam.profiles import SamConfig

LARGEST, SHARE, IN_FLIGHT = 16, 0.8, 2  # images in a batch; of the GPU's free memory that is used; batches at a time
MASK_TOKENS = slice(1, 5)  # the transformer's output tokens: [IoU, single, multi-1, multi-2, multi-3, prompt ...]


@dataclass(frozen=True)
class MaskEmbeddings:
    """What SAM says about one image, one entry a grid point; d is their number.

    Attributes:
        tokens: (d, 4, 256) float16, the mask tokens [single, multi-1, multi-2, multi-3]; flattened they are the
            paper's m_i of d x 1024.
        masks: d binary masks as COCO RLE at the decoder's low resolution, padding removed; none where tokens are
            enough (training images).
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

    def at(self, points: np.ndarray) -> "MaskEmbeddings":
        """The same image with these grid points (n,) alone."""
        masks = [self.masks[j] for j in points] if self.masks else []
        some = dict(tokens=self.tokens[points], masks=masks, iou=self.iou[points], points=self.points[points])
        return dataclasses.replace(self, **some)

    def on_grid(self, side: int | None) -> "MaskEmbeddings":
        """With only the points that are nearest to those of a coarser grid; with all of them for None."""
        return self if side is None else self.at(coarser(math.isqrt(len(self.points)), side))


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
        UserError: the checkpoint is missing, unreadable, of another model, or has a published file's name and is not
            that file.
    """
    sam = build_sam(config.model)
    path = find_checkpoint(config)
    downloads.check(path)
    weights = read_checkpoint(path)
    try:
        sam.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:  # the last two: a .pth of something else
        reason = textwrap.shorten(str(error).split("\n", 1)[-1], 200)
        raise UserError(f"{path} does not hold the weights of '{config.model}': {reason}") from error
    return sam.eval().requires_grad_(False).to(device)


def find_checkpoint(config: SamConfig) -> Path:
    """Where the profile's checkpoint is: the file that it names, else the published one in the data folder.

    Raises:
        UserError: it is not there.
    """
    path = paths.resolve(config.checkpoint) if config.checkpoint else downloads.checkpoint(config.model)
    if not path.is_file():
        how = "put the file there, or name another in the profile"
        raise UserError(f"SAM checkpoint {path} is missing: {how if config.checkpoint else 'run notebook 00_setup'}")
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


class Prepared(NamedTuple):
    """An image at SAM's input size without padding, (h, w, 3) uint8 RGB, and its own (H, W)."""

    pixels: np.ndarray
    image_size: tuple[int, int]


class Extractor:
    """Turns images into `MaskEmbeddings`: several images in a call of the encoder, many prompts in one of the decoder.

    `sam` is the model in the profile's precision but for the prompt encoder: coordinates and positions stay in float32.
    """

    def __init__(self, config: SamConfig, device: torch.device | str = "cpu", sam: Sam | None = None):
        self.config = config
        self.device = torch.device(device)
        self.sam = load_sam(config, device) if sam is None else copy.deepcopy(sam)
        self.precision = getattr(torch, config.precision)
        self.sam.image_encoder.to(self.precision)
        self.sam.mask_decoder.to(self.precision)
        encoder.fuse(self.sam.image_encoder)
        self._compiled = torch.compile(self.sam.image_encoder) if config.compile else None
        self._compiling = threading.Lock()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # other streams do not wait for the weights

    def __call__(self, image: np.ndarray) -> MaskEmbeddings:
        """Embeddings of one image, (H, W, 3) uint8 RGB."""
        return self.several([self.prepare(image)])[0]

    def stream(
        self, ids: Iterable[Any], load: Callable[[Any], np.ndarray], masks: bool = True
    ) -> Iterator[MaskEmbeddings]:
        """Embeddings of many images in their order, in constant memory.

        Without a GPU `image_per_core` decides what the cores do. With one, as many images are in a batch as its free
        memory takes; two batches are on their way at the same time, so that the GPU does not wait for the CPU, and all
        cores read and shrink the images of the next ones.

        Args:
            ids: what `load` makes an image (H, W, 3) uint8 RGB of.
            load: called from several threads.
            masks: draw them; without, tokens and predicted IoU are all there is.
        """
        gpu = self.device.type == "cuda"
        readers = runs.processors() if gpu else 1
        at_once = 2 if gpu else runs.cores() if self.config.image_per_core else 1
        with runs.workers(readers, 4 * self.batch) as read, runs.workers(at_once) as each:
            images = read(lambda one: self.prepare(load(one)), ids)
            for found in each(lambda some: self.several(some, masks), _batches(images, self.batch)):
                yield from found

    @functools.cached_property
    def batch(self) -> int:
        """Images at once: the profile's number, else one; with a GPU what fits its free memory, up to `LARGEST`."""
        if self.config.batch or self.device.type != "cuda":
            return self.config.batch or 1
        try:
            two, four = self._memory(2), self._memory(4)
        except UserError:  # not even so many fit
            return 1
        each = (four - two) / 2
        return int(np.clip((SHARE * runs.free_memory(self.device) / IN_FLIGHT - two) / each + 2, 1, LARGEST))

    def _memory(self, count: int) -> int:
        """Bytes of the GPU that `count` images at once take beside the weights."""
        blank = Prepared(np.zeros((self.side, self.side, 3), np.uint8), (self.side, self.side))
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        self.several([blank] * count)
        return torch.cuda.max_memory_allocated(self.device) - before

    @property
    def side(self) -> int:
        """Of SAM's square input, in pixels."""
        return self.sam.image_encoder.img_size

    def prepare(self, image: np.ndarray) -> Prepared:
        """An image (H, W, 3) uint8 RGB at the size at which SAM sees it."""
        height, width = ResizeLongestSide.get_preprocess_shape(*image.shape[:2], self.side)
        inner = [max(height, 1), max(width, 1)]  # a strip of 20000 x 10 still has a row
        return Prepared(np.array(resize(to_pil_image(image), inner)), image.shape[:2])

    def several(self, images: Sequence[Prepared], masks: bool = True) -> list[MaskEmbeddings]:
        """Embeddings of some images in one call of the encoder; see `stream`."""
        points = [point_grid(one.image_size, self.config.points_per_side) for one in images]
        with _own_stream(self.device), _enough_memory(self.device):
            logits, iou, tokens = self._answers(images, points, self._choose if masks else None)
            chosen = iou.take_along_dim(self._choose(iou), -1)[..., 0].float().cpu().numpy()
            tokens = tokens.half().cpu().numpy()
            found = []
            for k, (image, size) in enumerate(images):
                low = self.sam.prompt_encoder.mask_input_size  # that of masks, too
                extent = tuple(n * whole / self.side for n, whole in zip(image.shape[:2], low, strict=True))
                rows, columns = map(math.ceil, extent)
                drawn = rle.encode(logits[k, :, 0, :rows, :columns] > 0) if masks else []
                found.append(MaskEmbeddings(tokens[k], drawn, chosen[k], size, extent, points[k]))
        return found

    def decode(self, image: np.ndarray, points: np.ndarray) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """SAM's four masks for each of N point prompts.

        Args:
            image: (H, W, 3) uint8 RGB.
            points: (N, 2) of (x, y) in the image's pixels, all foreground.

        Returns:
            mask logits (N, 4, h, w) at low resolution with padding, predicted IoU (N, 4), tokens (N, 4, 256), all
            float32, and the (height, width) of the image inside SAM's square input.
        """
        prepared = self.prepare(image)
        answers = self._answers([prepared], [points], lambda iou: torch.arange(4, device=iou.device).expand_as(iou))
        return *(answer[0].float() for answer in answers), prepared.pixels.shape[:2]

    @torch.inference_mode()
    def _answers(
        self, images: Sequence[Prepared], points: Sequence[np.ndarray], choose: Callable[[Tensor], Tensor] | None
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """As `decoder.decode`, of each image's points (N, 2) in its own pixels."""
        scales = [np.float32(one.pixels.shape[1::-1]) / np.float32(one.image_size[::-1]) for one in images]
        coordinates = torch.from_numpy(np.concatenate([p * s for p, s in zip(points, scales, strict=True)]))
        labels = torch.ones(len(coordinates), 1, device=self.device)
        sparse, dense = self.sam.prompt_encoder((coordinates[:, None].to(self.device), labels), None, None)
        positions = self.sam.prompt_encoder.get_dense_pe()
        features = self._features(torch.stack([self._pixels(one.pixels) for one in images]).to(self.precision))
        prompts = sparse.unflatten(0, (len(images), -1))
        inputs = (x.to(self.precision) for x in (features, positions, prompts, dense[:1]))
        return decoder.decode(self.sam.mask_decoder, *inputs, choose)

    def _features(self, pixels: Tensor) -> Tensor:
        """Of the image encoder. A compiled one gets whole batches, from one thread at a time: it compiles once."""
        if self._compiled is None or "batch" not in vars(self):  # it is being found out how large a batch is
            return self.sam.image_encoder(pixels)
        with self._compiling:
            rest = pixels.new_zeros(self.batch - len(pixels), *pixels.shape[1:])
            return self._compiled(torch.cat([pixels, rest]))[: len(pixels)]

    def _pixels(self, pixels: np.ndarray) -> Tensor:
        """SAM's normalised, padded input (3, S, S) float32."""
        return self.sam.preprocess(torch.from_numpy(pixels).to(self.device).permute(2, 0, 1))

    def _choose(self, iou: Tensor) -> Tensor:
        """Which mask of each prompt is kept, (..., 1), by the predicted IoU (..., 4)."""
        if self.config.mask_choice == "single":
            return torch.zeros_like(iou[..., :1], dtype=torch.long)
        return 1 + iou[..., 1:].argmax(-1, keepdim=True)


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    items = iter(items)
    while some := list(itertools.islice(items, size)):
        yield some


_mine = threading.local()  # `stream`: of this thread, on the GPU


@contextlib.contextmanager
def _own_stream(device: torch.device) -> Iterator[None]:
    """What two threads want of the GPU runs side by side: each waits for its own results only."""
    if device.type != "cuda":
        yield
        return
    if not hasattr(_mine, "stream"):
        _mine.stream = torch.cuda.Stream(device)
    with torch.cuda.stream(_mine.stream):
        yield


@contextlib.contextmanager
def _enough_memory(device: torch.device) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        free, total = (n / 2**30 for n in torch.cuda.mem_get_info(device))
        raise UserError(
            f"SAM does not fit the GPU's memory ({free:.1f} of {total:.1f} GiB are free): write a smaller `batch` into "
            "the profile's `sam`, choose a smaller model, or stop what else runs there"
        ) from error


def encode(masks: np.ndarray) -> list[dict]:
    """Bool masks (N, H, W) as COCO RLE."""
    return rle.encode(torch.from_numpy(masks))


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
