"""Segment Anything on a grid of points: images in, mask embeddings out (paper 3.3 and 4).

SAM itself is segment-anything's, untouched. Its mask decoder returns masks and predicted IoUs; the tokens that U-SAM
learns from are read on the way, by a hook on the decoder's transformer (`captured_tokens`, `decode_prompts`). `fast`
computes the same numbers with less work, and takes their place unless the profile says `fast: false`.
"""

import contextlib
import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torchvision.transforms.functional import resize, to_pil_image

from usam import machine
from usam.config import SamConfig
from usam.errors import UserError
from usam.method import fast
from usam.method.masks import MaskEmbeddings, masks_to_rle, point_grid
from usam.registry import imported

MASK_TOKENS = slice(1, 5)  # the transformer's output tokens: [IoU, single, multi-1, multi-2, multi-3, prompt ...]
GPU_BATCH = 8  # images at once where the profile names no number
LARGEST = 1024  # pixels of a mask's longer side, SAM's input size; masks of larger images are enlarged when needed


@contextlib.contextmanager
def captured_tokens(sam: Sam) -> Iterator[list[Tensor]]:
    """While open, every decoder call adds its mask tokens (prompts, 4, 256) to the list that is given."""
    captured: list[Tensor] = []
    transformer = sam.mask_decoder.transformer
    hook = transformer.register_forward_hook(lambda _m, _i, out: captured.append(out[0][:, MASK_TOKENS]))
    try:
        yield captured
    finally:
        hook.remove()


def decode_prompts(
    sam: Sam,
    features: Tensor,
    positions: Tensor,
    prompts: Tensor,
    no_mask: Tensor,
    choose: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Masks, predicted IoU and tokens of N prompts on each of B images, by segment-anything's own mask decoder.

    Args:
        sam: its mask decoder answers.
        features: (B, D, h, w) of the image encoder; D = 256.
        positions: (1, D, h, w), the positional encoding of the same places.
        prompts: (B, N, k, D), the prompt encoder's sparse embeddings.
        no_mask: (1, D, h, w), its dense embedding without a mask prompt.
        choose: predicted IoU (N, 4) -> (N, m), which of the four masks of a prompt are returned; None: none.

    Returns:
        Logits (B, N, m, 4h, 4w) or None, predicted IoU (B, N, 4), mask tokens (B, N, 4, D).
    """
    answers = []
    for image, own_prompts in zip(features, prompts, strict=True):
        with captured_tokens(sam) as tokens:
            logits, iou = sam.mask_decoder.predict_masks(
                image[None], positions, own_prompts, no_mask.expand(len(own_prompts), -1, -1, -1)
            )
        chosen = logits.take_along_dim(choose(iou)[..., None, None], 1) if choose else None
        answers.append((chosen, iou, tokens[0]))
    logits, iou, tokens = zip(*answers, strict=True)
    return torch.stack(logits) if choose else None, torch.stack(iou), torch.stack(tokens)


# -- weights ------------------------------------------------------------------------------------------------------


def build_sam(model: str) -> Sam:
    """SAM with fresh weights: "vit_h", "vit_l", "vit_b" or "module:function".

    Raises:
        UserError: neither a known name nor an importable function.
    """
    if model in sam_model_registry and model != "default":
        return sam_model_registry[model](checkpoint=None)
    if ":" not in model:
        raise UserError(f"sam.model '{model}': not vit_h, vit_l, vit_b, nor a 'module:function' that can be imported")
    return imported(model)()


def load_sam(model: str, checkpoint: Path, device: torch.device | str = "cpu") -> Sam:
    """SAM with the weights of a `.pth` or `.safetensors` file, in eval mode on `device`.

    Raises:
        UserError: the file is unreadable, or of another model.
    """
    sam, weights = build_sam(model), read_checkpoint(checkpoint)
    try:
        sam.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:  # the last two: a .pth of something else
        reason = textwrap.shorten(str(error).split("\n", 1)[-1], 200)
        raise UserError(f"{checkpoint} does not hold the weights of '{model}': {reason}") from error
    return sam.eval().requires_grad_(False).to(device)


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


# -- extraction ---------------------------------------------------------------------------------------------------


class Prepared(NamedTuple):
    """An image at SAM's input size without padding, (h, w, 3) uint8 RGB, and its own (H, W)."""

    pixels: np.ndarray
    image_size: tuple[int, int]


class Extractor:
    """Turns images into `MaskEmbeddings`: several images in a call of the encoder, many prompts in one of the decoder.

    Encoder and decoder compute in the profile's precision. Prompts and positional encodings are computed in float32,
    where coordinates need it, and rounded to that precision before they enter the decoder. `sam`, with its weights,
    is moved to `device` and changed to that precision.
    """

    def __init__(self, sam: Sam, config: SamConfig, device: torch.device | str = "cpu"):
        self.config, self.device = config, torch.device(device)
        self.sam = sam.to(self.device)
        self.precision = getattr(torch, config.precision)
        self.sam.image_encoder.to(self.precision)
        self.sam.mask_decoder.to(self.precision)
        if config.fast:
            fast.fuse_attention(self.sam.image_encoder)
        self._decode = fast.decode_prompts if config.fast else decode_prompts
        self._encoder = torch.compile(self.sam.image_encoder) if config.compile else self.sam.image_encoder

    def __call__(self, image: np.ndarray) -> MaskEmbeddings:
        """Embeddings of one image, (H, W, 3) uint8 RGB."""
        return self.several([self.prepare(image)])[0]

    def stream(
        self, ids: Iterable[Any], load: Callable[[Any], np.ndarray], masks: bool = True
    ) -> Iterator[MaskEmbeddings]:
        """Embeddings of many images in their order, in constant memory.

        With a GPU, all cores read and resize the images of the next batches meanwhile. Without one, `image_per_core`
        decides what the cores do.

        Args:
            ids: arguments for `load`.
            load: returns an image (H, W, 3) uint8 RGB; called from several threads.
            masks: False leaves the masks out, and computes tokens and predicted IoU alone.
        """
        gpu = self.device.type == "cuda"
        readers = machine.processors() if gpu else 1
        at_once = machine.cores() if self.config.image_per_core and not gpu else 1
        size = self.config.batch or (GPU_BATCH if gpu else 1)
        with machine.workers(readers, 4 * size) as read, machine.workers(at_once) as each:
            images = iter(read(lambda one: self.prepare(load(one)), ids))
            batches = iter(lambda: list(itertools.islice(images, size)), [])
            for found in each(lambda some: self.several(some, masks), batches):
                yield from found

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
        logits, iou, tokens = self._answers(images, points, self._choose if masks else None)
        chosen = iou.take_along_dim(self._choose(iou), -1)[..., 0].float().cpu().numpy()
        tokens = tokens.half().cpu().numpy()
        found = []
        for k, (image, size) in enumerate(images):
            drawn, extent = self._draw(logits[k], image.shape[:2], size) if masks else ([], size)
            found.append(MaskEmbeddings(tokens[k], drawn, chosen[k], size, extent, points[k]))
        return found

    def _draw(
        self, logits: Tensor, inner: tuple[int, int], image_size: tuple[int, int]
    ) -> tuple[list[dict], tuple[float, float]]:
        """Masks of logits (N, 1, h, w), as `mask_size` wants them, and the part of them that the image covers."""
        if self.config.mask_size == "decoder":
            extent = tuple(n * whole / self.side for n, whole in zip(inner, logits.shape[-2:], strict=True))
            rows, columns = map(math.ceil, extent)
            drawn = logits[:, 0, :rows, :columns]
        else:
            scale = min(1, LARGEST / max(image_size))
            target = tuple(max(round(n * scale), 1) for n in image_size)
            drawn = self.sam.postprocess_masks(logits.float(), inner, target)[:, 0]
            extent = tuple(map(float, target))
        return masks_to_rle((drawn > self.sam.mask_threshold).cpu().numpy()), extent

    def four_masks(self, image: np.ndarray, points: np.ndarray) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
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
        """As `decode_prompts`, of each image's points (N, 2) in its own pixels."""
        scales = [np.float32(one.pixels.shape[1::-1]) / np.float32(one.image_size[::-1]) for one in images]
        coordinates = torch.from_numpy(np.concatenate([p * s for p, s in zip(points, scales, strict=True)]))
        labels = torch.ones(len(coordinates), 1, device=self.device)
        with _enough_memory(self.device):
            sparse, dense = self.sam.prompt_encoder((coordinates[:, None].to(self.device), labels), None, None)
            positions = self.sam.prompt_encoder.get_dense_pe()
            pixels = torch.stack([self._pixels(one.pixels) for one in images])
            features = self._encoder(pixels.to(self.precision))
            prompts = sparse.unflatten(0, (len(images), -1))
            inputs = (x.to(self.precision) for x in (features, positions, prompts, dense[:1]))
            return self._decode(self.sam, *inputs, choose)

    def _pixels(self, pixels: np.ndarray) -> Tensor:
        """SAM's normalised, padded input (3, S, S) float32."""
        return self.sam.preprocess(torch.from_numpy(pixels).to(self.device).permute(2, 0, 1))

    def _choose(self, iou: Tensor) -> Tensor:
        """Which mask of each prompt is used, (..., 1), by the predicted IoU (..., 4)."""
        if self.config.mask_choice == "single":
            return torch.zeros_like(iou[..., :1], dtype=torch.long)
        return 1 + iou[..., 1:].argmax(-1, keepdim=True)


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
