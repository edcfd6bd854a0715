"""What several tests need: a profile that is tiny, a text-to-image model that is small and knows nothing."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from miniature.training.clip import tokenizer
from usam import profiles
from usam.profiles import Profile


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch) -> Profile:
    """The smoke profile with two classes and one data set, and an empty data folder."""
    monkeypatch.setenv("USAM_DATA", str(tmp_path))
    smoke = profiles.load("smoke")
    voc = smoke.datasets["voc"].model_copy(update={"classes": ["car", "dog"], "images": {"test": 2, "val": 1}})
    head = smoke.head.model_copy(update={"epochs": 1})
    return smoke.model_copy(update={"datasets": {"voc": voc}, "head": head, "rivals": None})


@pytest.fixture(scope="session")
def tiny_parts() -> dict:
    """The parts of Stable Diffusion v1-4, its kinds of blocks and its scheduler, with few channels and no training."""
    torch.manual_seed(0)
    words = tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=words.model_max_length,
        eos_token_id=words.eos_token_id, bos_token_id=words.bos_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    return dict(tokenizer=words, text_encoder=CLIPTextModel(text), unet=unet, vae=vae, scheduler=scheduler)


@pytest.fixture(scope="session")
def model(tmp_path_factory, tiny_parts) -> Path:
    """The folder of such a model, 16 pixels wide."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    checks = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    StableDiffusionPipeline(**tiny_parts, **checks).save_pretrained(folder)
    return folder
