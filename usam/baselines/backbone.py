"""The DINO backbone of Leopart and TransFGU, from `transformers`."""

import torch
from torch import Tensor, nn

from usam.data import huggingface


class Backbone(nn.Module):
    """A ViT that takes pictures in [0, 1] of any size that its patches divide.

    Attributes:
        vit: `transformers.ViTModel`, whose attention can be read and differentiated.
        patch: side of a patch in pixels.
        width: D, of the features.
        heads: of the attention.
    """

    def __init__(self, model: str):
        """Load a folder, or a repository of the Hugging Face hub.

        Raises:
            UserError: there is no such model, or it cannot be loaded.
        """
        super().__init__()
        from transformers import ViTImageProcessor, ViTModel  # seconds, that only the one who asks for it shall spend
        from transformers.utils import logging

        logging.disable_progress_bar()
        with huggingface.loading("DINO", model) as place:
            options = dict(add_pooling_layer=False, attn_implementation="eager", dtype=torch.float32)
            self.vit = ViTModel.from_pretrained(place, cache_dir=huggingface.cache(), **options)
            processor = ViTImageProcessor.from_pretrained(place, cache_dir=huggingface.cache())
        for name, values in (("mean", processor.image_mean), ("std", processor.image_std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(3, 1, 1), persistent=False)
        config = self.vit.config
        self.patch, self.width, self.heads = config.patch_size, config.hidden_size, config.num_attention_heads

    def forward(self, pictures: Tensor, attention: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """Class token (B, D), patch features (B, h, w, D), and the last layer's attention if it is asked for.

        `pictures` are (B, 3, H, W) float in [0, 1]; the attention is (B, heads, 1 + h w, 1 + h w), class token first.
        """
        seen = self.vit(
            (pictures - self.mean) / self.std, interpolate_pos_encoding=True, output_attentions=attention or None
        )
        height, width = (side // self.patch for side in pictures.shape[-2:])
        tokens = seen.last_hidden_state
        patches = tokens[:, 1:].unflatten(1, (height, width))
        return tokens[:, 0], patches, seen.attentions[-1] if attention else None

    def looked_at(self, attention: Tensor, height: int, width: int) -> Tensor:
        """How much the class token looks at each patch, mean over heads: (B, h, w), a sum of about 1."""
        return attention[:, :, 0, 1:].mean(1).unflatten(1, (height, width))
