"""The steps of TransFGU (see `transfgu`) one by one: windows, maps, pseudo labels, decoder, losses, crops."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from usam.baselines.fitting import fast

MASS, BACKGROUND = 0.8, 0.1  # steps 3 and 4
DROPOUT = 0.1  # of the decoder
UNCERTAINTY, EMBEDDING, SHUFFLED = 0.3, 1.0, (0.03, 0.1)  # weights of losses, the last at the first restart and the end
AREA = (0.4, 0.9)  # of crops, shares of the image's


def windows(grid: int, shares: tuple[float, ...]) -> Iterator[tuple[int, int, int]]:
    """Step 1: row, column and side in patches of sliding windows on `grid` x `grid` patches, half a window apart."""
    for share in shares:
        side = max(1, round(share * grid))
        step = max(1, side // 2)
        places = [min(place, grid - side) for place in range(0, grid - side + step, step)]  # the last at the edge
        yield from ((row, column, side) for row in places for column in places)


def top_mass(values: Tensor, share: float = MASS) -> Tensor:
    """Of `values` (..., n) >= 0 the largest, until they add up to a `share` of the sum; zeros for the others."""
    ordered, order = values.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = ordered.where(before < share * values.sum(-1, keepdim=True), 0)
    return torch.zeros_like(values).scatter(-1, order, kept)


def relevance_maps(attended: Tensor, gradient: Tensor) -> Tensor:
    """Step 3: M_k = A / max A + the top 80% of the mass of relu(-g_k), 0 where g_k > 0.

    Args:
        attended: (B, h, w), A, the class token's attention, mean over heads.
        gradient: (B, C, h, w), g_k, the gradient of 1 - cos(class token, prototype k) with respect to A.

    Returns:
        (B, C, h, w), at least 0.
    """
    top = top_mass((-gradient).relu().flatten(2)).view_as(gradient)
    scaled = attended / attended.amax((1, 2), keepdim=True)
    return (scaled[:, None] + top).where(gradient <= 0, 0)


def pseudo_labels(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Step 4: maps (B, C, h, w) -> labels (B, h, w) int64, 0 for background; where any map is above 0.1 (B, h, w) bool.

    Maps are first brought to [0, 1] over all classes and pixels of an image. Flat ones, 0/0, are all background.
    """
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    scaled = (maps - low) / (high - low).where(high > low, 1)
    best = scaled.amax(1, keepdim=True)
    return torch.cat([(BACKGROUND - best).relu(), scaled], 1).argmax(1), best[:, 0] > BACKGROUND


class Decoder(nn.Module):
    """Step 5: patches and C + 1 class tokens in transformer blocks; a pixel's cosines with the tokens, normalised."""

    def __init__(self, width: int, heads: int, blocks: int, classes: int):
        super().__init__()
        self.enter = nn.Linear(width, width)
        self.tokens = nn.Parameter(nn.init.orthogonal_(torch.empty(classes + 1, width)))
        options = dict(dropout=DROPOUT, activation="gelu", batch_first=True, norm_first=True)
        layers = [nn.TransformerEncoderLayer(width, heads, 4 * width, **options) for _ in range(blocks)]
        self.blocks = nn.Sequential(*layers, nn.LayerNorm(width))
        self.norm = nn.LayerNorm(classes + 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, h, w, D) -> logits (B, C + 1, h, w), and the class tokens as they come out (B, C + 1, D)."""
        with fast(features.device):
            patches = self.enter(features.flatten(1, 2))
            seen = self.blocks(torch.cat([self.tokens.expand(len(features), -1, -1), patches], 1)).float()
        tokens, patches = seen.tensor_split([len(self.tokens)], 1)
        cosines = F.normalize(patches, dim=-1) @ F.normalize(tokens, dim=-1).mT  # (B, h w, C + 1)
        return self.norm(cosines).mT.unflatten(2, features.shape[1:3]), tokens


def label_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Step 6: mean over pixels of -Σ_k t_k log softmax(s)_k; s and t are (B, C + 1, h, w).

    Step 7 subtracts α times the same with the classes of t shuffled: being sure of wrong labels must not pay.
    """
    return -(target * logits.log_softmax(1)).sum(1).mean()


def uncertainty_loss(logits: Tensor, seen: Tensor) -> Tensor:
    """Step 6: mean of 1 - (p1 - p2) over the pixels where `seen` (B, h, w) is true or 1; 0 if there are none.

    p1 and p2 are the largest two of the foreground classes' probabilities; logits (B, C + 1, h, w), C > 1.
    """
    first, second = logits.softmax(1)[:, 1:].topk(2, dim=1).values.unbind(1)
    return ((1 - (first - second)) * seen).sum() / seen.sum().clamp(min=1)


def embedding_loss(tokens: Tensor) -> Tensor:
    """Step 6: mean of 1 + cos over pairs of different class tokens (B, C + 1, D)."""
    unit, count = F.normalize(tokens, dim=-1), tokens.shape[1]
    others = ~torch.eye(count, dtype=torch.bool, device=tokens.device)
    return (1 + unit @ unit.mT)[:, others].mean()


def bootstrapped(teacher_logits: Tensor, target: Tensor) -> Tensor:
    """Step 7: what the student learns, half of it from the teacher, half from the maps; all are (B, C + 1, h, w)."""
    return (teacher_logits.softmax(1) + target) / 2


def total_loss(losses: Mapping[str, Tensor], done: float) -> Tensor:
    """Steps 6 and 7: what is minimised, made of the losses label, shuffled, uncertainty and embedding.

    `done` is negative before the first restart, 0 there, 1 at the end: it decides α.
    """
    alpha = SHUFFLED[0] + (SHUFFLED[1] - SHUFFLED[0]) * done if done >= 0 else 0
    rest = UNCERTAINTY * losses["uncertainty"] + EMBEDDING * losses["embedding"]
    return losses["label"] - alpha * losses["shuffled"] + rest


@contextmanager
def drawn_by(chance: torch.Generator, device: torch.device) -> Iterator[None]:
    """For layers and transforms that know torch's global generator alone; afterwards it is as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**62, (), generator=chance)))
        yield


def crop(pictures: Tensor, cells: Tensor, side: int, patch: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Step 8: a square of each picture, mirrored or not, and of maps with one number a patch.

    Args:
        pictures: (B, 3, S, S) uint8.
        cells: (B, L, S / patch, S / patch) integers.
        side: of the crops in pixels.

    Returns:
        (B, 3, side, side) float in [0, 1]; (B, L, side / patch, side / patch) int64, the nearest numbers.
    """
    count = len(pictures)
    area, mirror = torch.rand(2, count, generator=chance)
    zoom = (AREA[0] + (AREA[1] - AREA[0]) * area).sqrt()
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1] = zoom * torch.where(mirror < 0.5, -1.0, 1.0), zoom
    matrix[:, :, 2] = (1 - zoom)[:, None] * (2 * torch.rand(count, 2, generator=chance) - 1)
    matrix = matrix.to(pictures.device)

    def taken(values: Tensor, size: int, mode: str) -> Tensor:
        grid = F.affine_grid(matrix, [count, 1, size, size], align_corners=False)
        return F.grid_sample(values.float(), grid, mode, "border", align_corners=False)

    fine = taken(
        pictures, 2 * side, "bilinear"
    )  # then the mean of four, or crops smaller than their square would alias
    return F.avg_pool2d(fine, 2) / 255, taken(cells, side // patch, "nearest").round().long()


def recoloured(pictures: Tensor, chance: torch.Generator) -> Tensor:
    """Step 8: each picture in other colours, grey or blurred by chance: (B, 3, s, s) in [0, 1] -> the same."""
    reach = max(1, pictures.shape[-1] // 20)
    jitter, blur = v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.GaussianBlur(2 * reach + 1, (0.1, reach / 4))
    change = v2.Compose([v2.RandomApply([jitter], 0.8), v2.RandomGrayscale(0.2), v2.RandomApply([blur], 0.5)])
    with drawn_by(chance, pictures.device):
        return torch.stack([change(picture) for picture in pictures]).clamp(0, 1)
