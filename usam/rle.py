"""COCO's run lengths of many masks, where the masks are.

pycocotools takes mask by mask on the CPU: 10 ms for the 100 of an image of SAM ViT-H, too long beside a fast GPU. There
all pixels of all masks are looked at together, and no pixel leaves the GPU, only the finished text.
"""

from itertools import pairwise

import numpy as np
import torch
from pycocotools import mask as rle_codec
from torch import Tensor


def encode(masks: Tensor) -> list[dict]:
    """Bool masks (N, H, W) as N RLEs `{"size": [H, W], "counts": bytes}`."""
    if masks.device.type != "cpu":
        return encode_together(masks)
    return rle_codec.encode(np.asfortranarray(masks.permute(1, 2, 0), np.uint8)) if len(masks) else []


def encode_together(masks: Tensor) -> list[dict]:
    """As `encode`, byte for byte, by operations on all masks.

    The counts of a mask are the lengths of its runs, down the columns, first of zeros. From the fourth on each is
    written as its difference from the last but one, in characters of five bits, the lowest first; a sixth bit says that
    more follow.
    """
    count, height, width = masks.shape
    if not masks.numel():
        return [{"size": [height, width], "counts": b"0"} for _ in range(count)]
    flat = masks.transpose(1, 2).flatten(1)
    begins = torch.ones(count, flat.shape[1] + 1, dtype=torch.bool, device=masks.device)  # the last: the mask's end
    begins[:, 0] = flat[:, 0]
    torch.ne(flat[:, 1:], flat[:, :-1], out=begins[:, 1:-1])
    of, ends = begins.nonzero(as_tuple=True)
    last = torch.bincount(of, minlength=count).cumsum(0) - 1  # each mask's last run, among the runs of all
    place = torch.arange(len(of), device=of.device) - last[of - 1].add(1).where(of > 0, 0)  # of a run in its mask
    lengths = ends - ends.roll(1).where(place > 0, 0)
    rest = lengths - lengths.roll(2).where(place > 2, 0)
    letters, used = [], [torch.ones_like(rest, dtype=torch.bool)]
    for _ in range((flat.shape[1].bit_length() + 5) // 5):  # with a bit for the sign
        low, rest = rest & 31, rest >> 5
        more = rest != torch.where(low & 16 > 0, -1, 0)
        letters.append(low + 32 * more + 48)
        used.append(used[-1] & more)
    written = torch.stack(used[:-1], 1)
    text = torch.stack(letters, 1).to(torch.uint8)[written].cpu().numpy().tobytes()
    cuts = [0, *written.sum(1).cumsum(0)[last].tolist()]
    return [{"size": [height, width], "counts": text[a:b]} for a, b in pairwise(cuts)]
