"""SAM+CLIP (paper 4, "Additional baseline"): CLIP names each of SAM's masks from a picture of that mask alone."""

import cv2
import numpy as np
import torch
from torch.nn.functional import normalize

from usam.baselines import Annotate, NameMasks
from usam.config import ClipConfig, InferenceConfig
from usam.data import huggingface
from usam.data.class_names import prompt
from usam.data.datasets import Example
from usam.method.inference import label_masks
from usam.method.masks import MaskEmbeddings, rle_to_masks, to_image_size

BLUR = 0.1  # deviation of the blurred background, as a share of the image's longer side


class ClipLabeller:
    """Zero-shot CLIP over the user's classes."""

    def __init__(self, config: ClipConfig, class_names: list[str], device: torch.device | str = "cpu"):
        """Load CLIP and read the prompts "a photo of a {c}".

        Raises:
            UserError: there is no such model, or it cannot be loaded.
        """
        from transformers import CLIPModel, CLIPProcessor  # seconds, that only the one who asks CLIP shall spend
        from transformers.utils import logging

        self.config, self.device = config, torch.device(device)
        logging.disable_progress_bar()
        with huggingface.loading("CLIP", config.model) as place:
            self.model = CLIPModel.from_pretrained(place, cache_dir=huggingface.cache()).eval().to(self.device)
            self.processor = CLIPProcessor.from_pretrained(place, cache_dir=huggingface.cache())
        tokens = self.processor(text=[prompt(name) for name in class_names], padding=True, return_tensors="pt")
        with torch.inference_mode():
            texts = self.model.get_text_features(**tokens.to(self.device)).pooler_output
        self.texts = normalize(texts, dim=-1)  # (C, D)
        colour = [0, 0, 0] if config.fill == "black" else self.processor.image_processor.image_mean
        self.empty = np.round(255 * np.array(colour)).astype(np.uint8)  # (3,), where there is no image

    def probabilities(self, image: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """softmax of CLIP's similarities at its own temperature, (d, C) float32; zeros for an empty mask.

        Args:
            image: (H, W, 3) uint8 RGB.
            masks: (d, H, W) bool.
        """
        found = np.zeros((len(masks), len(self.texts)), np.float32)
        seen = np.flatnonzero(masks.any((1, 2)))
        behind = self.background(image)
        for start in range(0, len(seen), self.config.batch):
            rows = seen[start : start + self.config.batch]
            found[rows] = self._probabilities([self.picture(image, masks[row], behind) for row in rows])
        return found

    @torch.inference_mode()
    def _probabilities(self, pictures: list[np.ndarray]) -> np.ndarray:
        pixels = self.processor(images=pictures, return_tensors="pt").to(self.device)
        precision = getattr(torch, self.config.precision)
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            seen = self.model.get_image_features(**pixels).pooler_output
        similarity = normalize(seen.float(), dim=-1) @ self.texts.T  # (n, C)
        return (self.model.logit_scale.exp() * similarity).softmax(1).cpu().numpy()

    def background(self, image: np.ndarray) -> np.ndarray:
        """What lies around the masks of an image (H, W, 3) uint8: the same size and type."""
        if self.config.fill == "none":
            return image
        if self.config.fill == "blur":
            return cv2.GaussianBlur(image, (0, 0), BLUR * max(image.shape[:2]))
        return np.full_like(image, self.empty)

    def picture(self, image: np.ndarray, mask: np.ndarray, background: np.ndarray) -> np.ndarray:
        """What CLIP sees of one mask: a square (s, s, 3) uint8, so that its centre crop cuts nothing off.

        Args:
            image, background: (H, W, 3) uint8 RGB.
            mask: (H, W) bool, not empty.
        """
        box = (slice(None), slice(None))
        if self.config.crop:
            ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = (slice(ys[0], ys[-1] + 1), slice(xs[0], xs[-1] + 1))
        shown = cv2.copyTo(image[box], mask[box].astype(np.uint8), background[box].copy())
        return squared(shown, self.empty)


def squared(image: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 in the middle of a square whose rest has a `colour` (3,): (s, s, 3), s = max(H, W)."""
    height, width = image.shape[:2]
    side = max(height, width)
    y, x = (side - height) // 2, (side - width) // 2
    ends = (y, side - height - y, x, side - width - x)
    return cv2.copyMakeBorder(image, *ends, cv2.BORDER_CONSTANT, value=colour.tolist())


def named_by_clip(labeller: ClipLabeller) -> NameMasks:
    """CLIP's class probabilities of our masks."""

    def name_masks(example: Example, embeddings: MaskEmbeddings) -> np.ndarray:
        masks = to_image_size(rle_to_masks(embeddings.masks), embeddings.extent, embeddings.image_size)
        return labeller.probabilities(example.image, masks)

    return name_masks


def by_clip(labeller: ClipLabeller, config: InferenceConfig) -> Annotate:
    """SAM+CLIP: our masks, CLIP's labels; threshold, NMS and painting are U-SAM's."""
    name_masks = named_by_clip(labeller)
    return lambda example, e: label_masks(name_masks(example, e), e, config)
