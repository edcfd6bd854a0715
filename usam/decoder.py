"""SAM's mask decoder, for many prompts on several images (paper 3.3): segment-anything's weights, less work.

`MaskDecoder.predict_masks` repeats an image for every prompt and projects each of its pixels to queries, keys and
values, every time anew. A prompt has but seven tokens, so all of that can be moved to their side:
q·(W k) = (Wᵀ q)·k, and Σ a (W v) = W Σ a v. The image itself is repeated only after the first block, where prompts
begin to differ. Up-scaling does not mix pixels, so it needs no convolution, and only masks that are wanted are drawn.
What comes out is the same, up to rounding.
"""

from collections.abc import Callable

import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor
from torch.nn import functional as F

PROMPTS = {"cpu": 25, "cuda": 200}  # at once: what they need together fits the processor's cache; the GPU's memory


def decode(
    decoder: MaskDecoder,
    features: Tensor,
    positions: Tensor,
    prompts: Tensor,
    no_mask: Tensor,
    choose: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Masks, predicted IoU and tokens of N prompts on each of B images.

    Args:
        decoder: of a SAM.
        features: (B, D, h, w) of the image encoder; D = 256.
        positions: (1, D, h, w), the positional encoding of the same places.
        prompts: (B, N, k, D), the prompt encoder's sparse embeddings.
        no_mask: (1, D, h, w), its dense embedding without a mask prompt.
        choose: predicted IoU (n, 4) of n prompts -> (n, m), which of their four masks are drawn; None draws none.

    Returns:
        Logits (B, N, m, 4h, 4w) or None, predicted IoU (B, N, 4), mask tokens (B, N, 4, D).
    """
    (count, number), (height, width) = prompts.shape[:2], features.shape[-2:]
    images = (features + no_mask).flatten(2).mT  # (B, p, D), p = h w
    places = positions[0].flatten(1).T
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])  # (5, D)
    most = PROMPTS.get(features.device.type, 200)
    together = max(1, most // number)  # images
    found = []
    for image, asked in zip(images.split(together), prompts.split(together), strict=True):
        for some in asked.split(most, 1):
            tokens = torch.cat([own.expand(*some.shape[:2], -1, -1), some], 2).flatten(0, 1)  # (n, t, D)
            tokens, pixels = _transform(decoder, tokens, image, places)
            masks, iou = tokens[:, 1 : len(own)], decoder.iou_prediction_head(tokens[:, 0])
            drawn = _upscaled(decoder, masks, choose(iou), pixels, height, width) if choose else None
            found.append((drawn, iou, masks))
    logits, *others = zip(*found, strict=True)
    iou, tokens = (torch.cat(parts).unflatten(0, (count, number)) for parts in others)
    return torch.cat(logits).unflatten(0, (count, number)) if choose else None, iou, tokens


def _transform(decoder: MaskDecoder, tokens: Tensor, image: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """`TwoWayTransformer`: tokens (n, t, D) of prompts on images (g, p, D), n / g on each.

    Returns both, the image now another one for each prompt: (n, p, D).
    """
    transformer, prompt = decoder.transformer, tokens
    for block in transformer.layers:
        if block.skip_first_layer_pe:
            tokens = block.self_attn(q=tokens, k=tokens, v=tokens)
        else:
            placed = tokens + prompt
            tokens = tokens + block.self_attn(q=placed, k=placed, v=tokens)
        tokens, there = block.norm1(tokens), image + places
        tokens = block.norm2(tokens + _of_image(block.cross_attn_token_to_image, tokens + prompt, there, image))
        tokens = block.norm3(tokens + block.mlp(tokens))
        said = _of_tokens(block.cross_attn_image_to_token, there, tokens + prompt, tokens)
        image = block.norm4((image[:, None] + said.unflatten(0, (len(image), -1))).flatten(0, 1))
    attention = transformer.final_attn_token_to_image
    tokens = tokens + _of_image(attention, tokens + prompt, image + places, image)
    return transformer.norm_final_attn(tokens), image


def _of_image(attention: torch.nn.Module, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of tokens (n, t, D) to keys and values of images (g, p, D), n / g on each: (n, t, D).

    The keys' bias adds the same to all scores of a token: the softmax does not see it.
    """
    heads, (n, t, _) = attention.num_heads, tokens.shape
    asked = attention.q_proj(tokens).unflatten(-1, (heads, -1))  # (n, t, heads, c)
    channels = asked.shape[-1]
    asked = torch.einsum("nthc,hcd->nhtd", asked, attention.k_proj.weight.unflatten(0, (heads, -1)))
    scores = asked.reshape(len(keys), -1, asked.shape[-1]) @ keys.mT / channels**0.5  # (g, n/g heads t, p)
    seen = (scores.softmax(-1) @ values).reshape(n, heads, t, -1)
    seen = torch.einsum("nhtd,hcd->nthc", seen, attention.v_proj.weight.unflatten(0, (heads, -1)))
    return attention.out_proj(seen.flatten(2) + attention.v_proj.bias)


def _of_tokens(attention: torch.nn.Module, pixels: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of images' pixels (g, p, D) to keys and values of tokens (n, t, D), n / g on each: (n, p, D)."""
    heads, (n, t, _) = attention.num_heads, keys.shape
    keys, values = (
        project(x).unflatten(-1, (heads, -1)) for project, x in ((attention.k_proj, keys), (attention.v_proj, values))
    )  # (n, t, heads, c)
    weight, bias = (x.unflatten(0, (heads, -1)) for x in (attention.q_proj.weight, attention.q_proj.bias))
    asked = torch.einsum("nthc,hcd->nhtd", keys, weight)
    always = torch.einsum("nthc,hc->nht", keys, bias)[..., None]
    scores = asked.reshape(len(pixels), -1, asked.shape[-1]) @ pixels.mT  # (g, n/g heads t, p)
    share = ((scores.reshape(n, heads, t, -1) + always) / keys.shape[-1] ** 0.5).softmax(2).flatten(1, 2)
    said = torch.einsum("nthc,dhc->nhtd", values, attention.out_proj.weight.unflatten(1, (heads, -1)))
    return share.mT @ said.flatten(1, 2) + attention.out_proj.bias


def _upscaled(decoder: MaskDecoder, masks: Tensor, chosen: Tensor, pixels: Tensor, height: int, width: int) -> Tensor:
    """Logits (n, m, 4h, 4w) of the `chosen` (n, m) among mask tokens (n, 4, D), on pixels (n, p, D): 4 x 4 of each."""
    first, norm, act, second, _ = decoder.output_upscaling
    fine = F.layer_norm(_spread(first, pixels), norm.weight.shape, norm.weight, norm.bias, norm.eps)
    fine = act(_spread(second, act(fine)))  # (n, p, 4, 4, c): within a pixel its quarters, within these theirs
    nets = decoder.output_hypernetworks_mlps
    weights = torch.stack([net(masks[:, k]) for k, net in enumerate(nets)], 1)  # (n, 4, c)
    weights = weights.take_along_dim(chosen[..., None], 1)
    logits = weights @ fine.flatten(1, 3).mT  # (n, m, p 16)
    logits = logits.unflatten(-1, (height, width, 2, 2, 2, 2))
    return logits.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(*weights.shape[:2], 4 * height, 4 * width)


def _spread(up: torch.nn.ConvTranspose2d, pixels: Tensor) -> Tensor:
    """A transposed convolution of size and stride 2 on pixels (..., D): their quarters (..., 4, c), row by row."""
    inputs, outputs = up.weight.shape[:2]
    weight = up.weight.permute(0, 2, 3, 1).reshape(inputs, 4 * outputs)
    return (pixels @ weight).unflatten(-1, (4, outputs)) + up.bias
