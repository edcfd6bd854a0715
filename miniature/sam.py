"""The small SAM: segment-anything's own prompt encoder and mask decoder over a small image encoder of ours.

The paper's SAM is a ViT-H of 636M parameters at 1024 px. This one has about 6M at 128 px, so that two cores
are enough, and keeps what the method touches: 256-dimensional tokens, four a prompt, and low-resolution masks.
"""

from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

IMAGE_SIZE = 128
STRIDE = 8
TOKEN_DIM = 256


class _Residual(nn.Module):
    """Two 3x3 convolutions beside the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.GroupNorm(8, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _down(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)


class SmallEncoder(nn.Module):
    """Image encoder: (B, 3, 128, 128) normalised RGB -> (B, 256, 16, 16), the place of SAM's ViT (paper 3.3).

    Convolutions down to stride 16 see the whole object; a top-down path brings that back to stride 8, and a short
    path from stride 4 tells where within its 8 x 8 pixels a border runs.
    """

    img_size = IMAGE_SIZE

    def __init__(self, widths: tuple[int, int, int] = (64, 128, 224)):
        super().__init__()
        a, b, c = widths
        self.stride4 = nn.Sequential(_down(3, a // 2), nn.ReLU(), _down(a // 2, a), _Residual(a), _Residual(a))
        self.stride8 = nn.Sequential(_down(a, b), _Residual(b), _Residual(b), _Residual(b))
        self.stride16 = nn.Sequential(_down(b, c), _Residual(c), _Residual(c))
        self.lateral = nn.Conv2d(b, TOKEN_DIM, 1)
        self.detail = nn.Conv2d(a, TOKEN_DIM, 2, stride=2)
        self.top_down = nn.ConvTranspose2d(c, TOKEN_DIM, 2, stride=2)
        self.neck = nn.Sequential(
            nn.GroupNorm(8, TOKEN_DIM), nn.Conv2d(TOKEN_DIM, TOKEN_DIM, 1), nn.GroupNorm(1, TOKEN_DIM)
        )

    def forward(self, x: Tensor) -> Tensor:
        finest = self.stride4(x)  # (B, 64, 32, 32)
        fine = self.stride8(finest)  # (B, 128, 16, 16)
        return self.neck(self.detail(finest) + self.lateral(fine) + self.top_down(self.stride16(fine)))


def build_sam() -> Sam:
    """The small SAM with fresh weights."""
    grid = IMAGE_SIZE // STRIDE
    return Sam(
        image_encoder=SmallEncoder(),
        prompt_encoder=PromptEncoder(
            embed_dim=TOKEN_DIM,
            image_embedding_size=(grid, grid),
            input_image_size=(IMAGE_SIZE, IMAGE_SIZE),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=TOKEN_DIM, mlp_dim=416, num_heads=8),
            transformer_dim=TOKEN_DIM,
        ),
    ).eval()
