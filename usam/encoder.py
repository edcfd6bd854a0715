"""SAM's ViT image encoder with fused attention (paper 3.3): segment-anything's modules and weights, less memory.

`Attention.forward` writes down all its scores, of ViT-H 4096 x 4096 a head and image. torch's fused kernels never do.
They know no relative positions, which add h[y] + w[x] to the score of a query and a key in row y and column x. On the
CPU these sums are handed over as a mask. On a GPU even the mask would be too much memory: there they enter as further
channels, since scale q·k + h[y] + w[x] is the dot product of (scale q, h, w) and (k, one-hot y, one-hot x).
"""

import torch
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn
from torch.nn import functional as F


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
    asked = F.pad(torch.cat([q * channels**-0.5, h, w], -1), (0, rest))
    values = F.pad(v, (0, height + width + rest))
    return F.scaled_dot_product_attention(asked, torch.cat([k, places], -1), values, scale=1.0)[..., :channels]


def fuse(encoder: nn.Module) -> None:
    """Give the attentions of a segment-anything ViT the fused forward; an encoder that has none stays as it is."""
    for module in encoder.modules():
        if type(module) is Attention:
            module.__class__ = FusedAttention
            if module.use_rel_pos:
                for name, table in (("rows", module.rel_pos_h), ("columns", module.rel_pos_w)):
                    side = (len(table) + 1) // 2  # a table has the distances from -(side - 1) to side - 1
                    module.register_buffer(name, get_rel_pos(side, side, table.detach()), persistent=False)
