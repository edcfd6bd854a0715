"""SAM's mask decoder, for many prompts on one image (paper 3.3): segment-anything's weights, less work.

`MaskDecoder.predict_masks` repeats the image for every prompt and projects each of its pixels to queries, keys and
values, every time anew. A prompt has but seven tokens, so all of that can be moved to their side:
q·(W k) = (Wᵀ q)·k, and Σ a (W v) = W Σ a v. The image itself is repeated only after the first block, where prompts
begin to differ. Up-scaling does not mix pixels, so it needs no convolution. What comes out is the same, up to rounding.
"""

import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor
from torch.nn import functional as F

PROMPTS = 25  # at once: what they need together stays in the processor's cache


def decode(
    decoder: MaskDecoder, features: Tensor, positions: Tensor, prompts: Tensor, no_mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """All four masks of N prompts on one image.

    Args:
        decoder: of a SAM.
        features: (1, D, h, w) of the image encoder; D = 256.
        positions: (1, D, h, w), the positional encoding of the same places.
        prompts: (N, k, D), the prompt encoder's sparse embeddings.
        no_mask: (1, D, h, w), its dense embedding without a mask prompt.

    Returns:
        Logits (N, 4, 4h, 4w), predicted IoU (N, 4), mask tokens (N, 4, D).
    """
    height, width = features.shape[-2:]
    image = (features + no_mask)[0].flatten(1).T  # (p, D), p = h w
    places = positions[0].flatten(1).T
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])  # (5, D)
    found = []
    for some in prompts.split(PROMPTS):
        tokens = torch.cat([own.expand(len(some), -1, -1), some], 1)  # (n, t, D)
        tokens, pixels = _transform(decoder, tokens, image, places)
        masks = tokens[:, 1 : len(own)]
        found.append(
            (_upscaled(decoder, masks, pixels, height, width), decoder.iou_prediction_head(tokens[:, 0]), masks)
        )
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def _transform(decoder: MaskDecoder, tokens: Tensor, image: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """`TwoWayTransformer`: tokens (n, t, D) and the image (p, D), which is another one for each prompt at the end."""
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
        image = block.norm4(image + _of_tokens(block.cross_attn_image_to_token, there, tokens + prompt, tokens))
    attention = transformer.final_attn_token_to_image
    tokens = tokens + _of_image(attention, tokens + prompt, image + places, image)
    return transformer.norm_final_attn(tokens), image


def _of_image(attention: torch.nn.Module, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of tokens (n, t, D) to an image's keys and values (p, D), or (n, p, D): (n, t, D).

    The keys' bias adds the same to all scores of a token: the softmax does not see it.
    """
    heads, t = attention.num_heads, tokens.shape[1]
    asked = attention.q_proj(tokens).unflatten(-1, (heads, -1))  # (n, t, heads, c)
    channels = asked.shape[-1]
    asked = torch.einsum("nthc,hcd->nhtd", asked, attention.k_proj.weight.unflatten(0, (heads, -1)))
    scores = asked.flatten(1, 2) @ keys.mT / channels**0.5  # (n, heads t, p)
    seen = (scores.softmax(-1) @ values).unflatten(1, (heads, t))  # (n, heads, t, D)
    seen = torch.einsum("nhtd,hcd->nthc", seen, attention.v_proj.weight.unflatten(0, (heads, -1)))
    return attention.out_proj(seen.flatten(2) + attention.v_proj.bias)


def _of_tokens(attention: torch.nn.Module, pixels: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of an image's pixels (p, D), or (n, p, D), to keys and values of tokens (n, t, D): (n, p, D)."""
    heads, t = attention.num_heads, keys.shape[1]
    keys, values = (
        project(x).unflatten(-1, (heads, -1)) for project, x in ((attention.k_proj, keys), (attention.v_proj, values))
    )  # (n, t, heads, c)
    weight, bias = (x.unflatten(0, (heads, -1)) for x in (attention.q_proj.weight, attention.q_proj.bias))
    asked = torch.einsum("nthc,hcd->nhtd", keys, weight).flatten(1, 2)  # (n, heads t, D)
    always = torch.einsum("nthc,hc->nht", keys, bias).flatten(1)[:, None]  # (n, 1, heads t)
    scores = (pixels @ asked.mT + always) / keys.shape[-1] ** 0.5  # (n, p, heads t)
    share = scores.unflatten(-1, (heads, t)).softmax(-1).flatten(2)
    said = torch.einsum("nthc,dhc->nhtd", values, attention.out_proj.weight.unflatten(1, (heads, -1)))
    return share @ said.flatten(1, 2) + attention.out_proj.bias


def _upscaled(decoder: MaskDecoder, masks: Tensor, pixels: Tensor, height: int, width: int) -> Tensor:
    """Logits (n, 4, 4h, 4w) of mask tokens (n, 4, D) on pixels (n, p, D), each of which becomes 4 x 4."""
    first, norm, act, second, _ = decoder.output_upscaling
    fine = F.layer_norm(_spread(first, pixels), norm.weight.shape, norm.weight, norm.bias, norm.eps)
    fine = act(_spread(second, act(fine)))  # (n, p, 4, 4, c): within a pixel its quarters, within these theirs
    nets = decoder.output_hypernetworks_mlps
    weights = torch.stack([net(masks[:, k]) for k, net in enumerate(nets)], 1)  # (n, 4, c)
    logits = weights @ fine.flatten(1, 3).mT  # (n, 4, p 16)
    logits = logits.unflatten(-1, (height, width, 2, 2, 2, 2))
    return logits.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(*weights.shape[:2], 4 * height, 4 * width)


def _spread(up: torch.nn.ConvTranspose2d, pixels: Tensor) -> Tensor:
    """A transposed convolution of size and stride 2 on pixels (..., D): their quarters (..., 4, c), row by row."""
    inputs, outputs = up.weight.shape[:2]
    weight = up.weight.permute(0, 2, 3, 1).reshape(inputs, 4 * outputs)
    return (pixels @ weight).unflatten(-1, (4, outputs)) + up.bias
