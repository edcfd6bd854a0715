"""What `usam.method.sam` computes, with less work: the same weights and the same numbers, up to rounding (paper 3.3).

The mask decoder shares its work on an image among all prompts; the ViT's attention goes through torch's fused kernels.
"""

from collections.abc import Callable

import torch
from segment_anything.modeling import MaskDecoder, Sam
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn
from torch.nn import functional as F

PROMPTS_AT_ONCE = {"cpu": 25, "cuda": 200}  # so that they fit a processor's cache, or a GPU's memory


def decode_prompts(
    sam: Sam,
    features: Tensor,
    positions: Tensor,
    prompts: Tensor,
    no_mask: Tensor,
    choose: Callable[[Tensor], Tensor] | None,
    at_once: int | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """As `usam.method.sam.decode_prompts`, up to rounding; it can be differentiated, too.

    `MaskDecoder.predict_masks` copies an image for every prompt and projects all of its pixels to queries, keys and
    values each time. A prompt has only seven tokens (five of the decoder, two of a point), so the projection can be
    applied to these instead: q·(W k) = (Wᵀ q)·k, and Σ a (W v) = W Σ a v. The image is copied only after the first
    block, where prompts begin to differ. Up-scaling does not mix pixels, so it needs no convolution; only the chosen
    masks are drawn.

    `at_once` is the largest number of prompts in one step, by default `PROMPTS_AT_ONCE`.
    """
    decoder, (count, number), (height, width) = sam.mask_decoder, prompts.shape[:2], features.shape[-2:]
    images = (features + no_mask).flatten(2).mT  # (B, p, D), p = h w
    places = positions[0].flatten(1).T
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])  # (5, D)
    at_once = at_once or PROMPTS_AT_ONCE.get(features.device.type, 200)
    images_at_once = max(1, at_once // number)
    found = []
    for image, block in zip(images.split(images_at_once), prompts.split(images_at_once), strict=True):
        for some in block.split(at_once, 1):
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

    Returns the tokens, and the image's features, which now differ between prompts: (n, p, D).
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
        update = _of_tokens(block.cross_attn_image_to_token, there, tokens + prompt, tokens)
        image = block.norm4((image[:, None] + update.unflatten(0, (len(image), -1))).flatten(0, 1))
    attention = transformer.final_attn_token_to_image
    tokens = tokens + _of_image(attention, tokens + prompt, image + places, image)
    return transformer.norm_final_attn(tokens), image


def _of_image(attention: torch.nn.Module, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of tokens (n, t, D) to keys and values of images (g, p, D), n / g on each: (n, t, D).

    The keys' bias adds the same to all scores of a token: the softmax does not see it.
    """
    heads, (n, t, _) = attention.num_heads, tokens.shape
    query = attention.q_proj(tokens).unflatten(-1, (heads, -1))  # (n, t, heads, c)
    channels = query.shape[-1]
    query = torch.einsum("nthc,hcd->nhtd", query, attention.k_proj.weight.unflatten(0, (heads, -1)))
    scores = query.reshape(len(keys), -1, query.shape[-1]) @ keys.mT / channels**0.5  # (g, n/g heads t, p)
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
    query = torch.einsum("nthc,hcd->nhtd", keys, weight)
    always = torch.einsum("nthc,hc->nht", keys, bias)[..., None]
    scores = query.reshape(len(pixels), -1, query.shape[-1]) @ pixels.mT  # (g, n/g heads t, p)
    share = ((scores.reshape(n, heads, t, -1) + always) / keys.shape[-1] ** 0.5).softmax(2).flatten(1, 2)
    update = torch.einsum("nthc,dhc->nhtd", values, attention.out_proj.weight.unflatten(1, (heads, -1)))
    return share.mT @ update.flatten(1, 2) + attention.out_proj.bias


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


# -- the image encoder --------------------------------------------------------------------------------------------


class FusedAttention(Attention):
    """segment-anything's attention, through `scaled_dot_product_attention`.

    `rows` and `columns` are the relative positions' tables for its grid, (H, H, c) and (W, W, c).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, H, W, D)."""
        _, height, width, _ = x.shape
        qkv = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.num_heads, -1))  # (B, H W, 3, heads, c)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, H W, c) each
        if not self.use_rel_pos:
            seen = F.scaled_dot_product_attention(q, k, v)
        else:
            attend = by_channels if q.is_cuda else by_mask
            seen = attend(q, k, v, *self._relative(q.unflatten(2, (height, width))))
        return self.proj(seen.transpose(1, 2).flatten(2).unflatten(1, (height, width)))

    def _relative(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """What the row and the column of a key add to the score of a query (B, heads, H, W, c): (B, heads, H W, H) and
        (B, heads, H W, W)."""
        h, w = torch.einsum("bnhwc,hkc->bnhwk", q, self.rows), torch.einsum("bnhwc,wkc->bnhwk", q, self.columns)
        return h.flatten(2, 3), w.flatten(2, 3)


def by_mask(q: Tensor, k: Tensor, v: Tensor, h: Tensor, w: Tensor) -> Tensor:
    """Attention (B, heads, H W, c) with relative positions as a mask."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(h[..., None] + w[..., None, :]).flatten(-2))


def by_channels(q: Tensor, k: Tensor, v: Tensor, h: Tensor, w: Tensor) -> Tensor:
    """Attention (B, heads, H W, c) with relative positions as further channels.

    Flash attention wants as many channels in values, too, and a multiple of 8: the rest is zeros.
    """
    height, width, channels = h.shape[-1], w.shape[-1], v.shape[-1]
    rest = -(channels + height + width) % 8
    rows, columns = (torch.eye(n, dtype=k.dtype, device=k.device) for n in (height, width))
    places = torch.cat([rows.repeat_interleave(width, 0), columns.repeat(height, 1)], 1)  # (H W, H + W)
    places = F.pad(places, (0, rest)).expand(*k.shape[:3], -1)
    queries = F.pad(torch.cat([q * channels**-0.5, h, w], -1), (0, rest))
    values = F.pad(v, (0, height + width + rest))
    return F.scaled_dot_product_attention(queries, torch.cat([k, places], -1), values, scale=1.0)[..., :channels]


def fuse_attention(encoder: nn.Module) -> None:
    """Give the attentions of a segment-anything ViT the fused forward; an encoder that has none stays as it is."""
    for module in encoder.modules():
        if type(module) is Attention:
            module.__class__ = FusedAttention
            if module.use_rel_pos:
                for name, table in (("rows", module.rel_pos_h), ("columns", module.rel_pos_w)):
                    side = (len(table) + 1) // 2  # a table has the distances from -(side - 1) to side - 1
                    module.register_buffer(name, get_rel_pos(side, side, table.detach()), persistent=False)
