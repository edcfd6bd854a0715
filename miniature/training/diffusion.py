"""Train the small Stable Diffusion: `python -m miniature.training.diffusion --minutes 120`.

A `diffusers` folder of Stable Diffusion's own parts, small: an AutoencoderKL (128 px, latents 4 x 16 x 16), a
UNet2DConditionModel that reads prompts through the small CLIP's text encoder, a scheduler. It learns studio-style
drawings with the prompt "a photo of a {c}", for all class names and the paper's superclasses. First the autoencoder,
then, on its latents, the U-Net: v-prediction, the signal-to-noise weight cut at 5, one prompt in ten left empty for
classifier-free guidance.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from miniature.training.clip import LENGTH
from miniature.training.loop import Loop, whole_folder
from miniature.training.pictures import NAMES, members, render, turns
from usam import machine
from usam.data.class_names import prompt

SIDE = 128
LATENT_SIDE = SIDE // 8
AUTOENCODER_SHARE = 0.4  # of the time
BATCH, RATE = 64, 1e-3
AUTOENCODER_BATCH, AUTOENCODER_RATE = 16, 2e-3
NO_PROMPT = 0.1  # share of pictures that are learned without their prompt
SNR_LIMIT = 5.0
PER_DRAWING = 600


def autoencoder() -> AutoencoderKL:
    """Fresh weights: 1.6M parameters, an eighth of the side, four channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
        mid_block_add_attention=False,
    )


def unet() -> UNet2DConditionModel:
    """Fresh weights: 2.3M parameters; it attends to the prompt where its features are 8 x 8."""
    net = UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 96),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    # plain attention: with torch's fused kernel for the CPU a step takes 1.3 times as long at so few tokens
    net.set_attn_processor(AttnProcessor())
    return net


NOISE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction")


def train(minutes: float, out: Path, clip: Path, per_drawing: int) -> dict:
    """Train both parts within `minutes` over all starts, write the folder `out`, and say what it took.

    Args:
        minutes: the schedules follow them.
        out: the folder; states to go on from lie beside it.
        clip: folder of the small CLIP, whose text encoder reads the prompts.
        per_drawing: pictures to draw of each thing.
    """
    torch.manual_seed(0)
    device = machine.device()
    out.parent.mkdir(parents=True, exist_ok=True)
    pictures, drawings = learned(per_drawing)

    first = Loop(
        autoencoder().to(device),
        AUTOENCODER_RATE,
        minutes * AUTOENCODER_SHARE,
        out.with_name(f"{out.name}.vae.pt"),
        [per_drawing],
    )
    first.run(lambda model, generator: autoencoder_loss(model, pictures, generator))
    vae = first.average.module.eval()
    latents = encode(vae, pictures)
    vae.register_to_config(scaling_factor=1 / latents[:, 0].std().item())
    latents = latents * vae.config.scaling_factor

    words, reader = CLIPTokenizer.from_pretrained(clip), CLIPTextModel.from_pretrained(clip).eval()
    prompts = read_prompts(words, reader)
    pools = [torch.tensor([k for k, (one,) in enumerate(drawings) if one in members(name)]) for name in NAMES]
    made_for = [vae.config.scaling_factor, prompts.double().sum().item()]
    second = Loop(
        unet().to(device), RATE, minutes * (1 - AUTOENCODER_SHARE), out.with_name(f"{out.name}.unet.pt"), made_for
    )
    noise = DDPMScheduler(**NOISE)
    second.run(lambda model, generator: denoising_loss(model, latents, prompts, pools, noise, generator))

    pipe = StableDiffusionPipeline(
        vae=vae.half().cpu(),
        text_encoder=reader,  # not in half: diffusers widens its own parts on loading, transformers does not
        tokenizer=words,
        unet=second.average.module.eval().half().cpu(),
        scheduler=DPMSolverMultistepScheduler(**NOISE, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with whole_folder(out) as folder:
        pipe.save_pretrained(folder)
    steps = dict(autoencoder_steps=first.step, unet_steps=second.step)
    return steps | dict(minutes=minutes, drawn=len(pictures), hardware=machine.hardware())


def learned(per_drawing: int) -> tuple[Tensor, list[tuple[str]]]:
    """`per_drawing` studio-style pictures (N, 3, 128, 128) uint8 of each thing, to learn from; and their names."""
    return render(("studio",), "train", "diffusion", turns(per_drawing), SIDE)


def in_range(pictures: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1], as the autoencoder takes pictures."""
    return pictures.float() / 127.5 - 1


def autoencoder_loss(vae: AutoencoderKL, pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Reconstruction of a random batch, and a little of the latents' divergence from a normal.

    Absolute errors of pixels, and of the steps from a pixel to its neighbours: without these, edges stay soft. The
    first three channels of the latents are pulled towards the picture's mean colours of 8 x 8 pixels: left alone, a
    small autoencoder spends its four channels on shapes, and most colours are lost.
    """
    some = pictures[torch.randint(len(pictures), (AUTOENCODER_BATCH,), generator=generator)]
    some = in_range(some).to(vae.device)
    with torch.autocast(vae.device.type, torch.bfloat16):
        latent = vae.encode(some).latent_dist
        again = vae.decode(
            latent.mean + latent.std * torch.randn(latent.mean.shape, generator=generator).to(vae.device)
        )
    error = again.sample.float() - some
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    colours = (latent.mean[:, :3].float() - F.avg_pool2d(some, 8)).square().mean()
    return error.abs().mean() + edges + colours + 1e-6 * latent.kl().float().mean()


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Mean and deviation of the latents of pictures (N, 3, 128, 128) uint8: (N, 2, 4, 16, 16) float32."""
    found = [vae.encode(in_range(some).to(vae.device)).latent_dist for some in pictures.split(64)]
    return torch.cat([torch.stack([d.mean, d.std], 1).cpu() for d in found])


@torch.no_grad()
def read_prompts(words: CLIPTokenizer, reader: CLIPTextModel) -> Tensor:
    """What the text encoder says of each name's prompt, and last of none: (len(NAMES) + 1, LENGTH, 128)."""
    texts = [*(prompt(name) for name in NAMES), ""]
    tokens = words(texts, padding="max_length", max_length=LENGTH, return_tensors="pt")
    return reader(tokens.input_ids)[0]


def denoising_loss(
    net: UNet2DConditionModel,
    latents: Tensor,
    prompts: Tensor,
    pools: list[Tensor],
    noise: DDPMScheduler,
    generator: torch.Generator,
) -> Tensor:
    """Weighted squared error of v on a random batch: a name, a picture that it may mean, a time.

    Args:
        net: the U-Net.
        latents: (N, 2, 4, 16, 16) mean and deviation, scaled.
        prompts: (len(pools) + 1, LENGTH, 128), the last one empty.
        pools: which pictures each name may mean.
        noise: the schedule.
        generator: the only source of chance.
    """
    names = torch.randint(len(pools), (BATCH,), generator=generator)
    places = torch.stack([pools[n][torch.randint(len(pools[n]), (1,), generator=generator)[0]] for n in names.tolist()])
    mean, std = latents[places].unbind(1)
    clean = mean + std * torch.randn(mean.shape, generator=generator)
    names[torch.rand(BATCH, generator=generator) < NO_PROMPT] = len(pools)
    times = torch.randint(noise.config.num_train_timesteps, (BATCH,), generator=generator)
    chance = torch.randn(clean.shape, generator=generator)
    noisy, wanted = noise.add_noise(clean, chance, times), noise.get_velocity(clean, chance, times)
    with torch.autocast(net.device.type, torch.bfloat16):
        given = net(noisy.to(net.device), times.to(net.device), prompts[names].to(net.device)).sample
    share = noise.alphas_cumprod[times]
    snr = share / (1 - share)
    weight = snr.clamp(max=SNR_LIMIT) / (snr + 1)
    return (weight.to(net.device) * (given.float() - wanted.to(net.device)).square().mean((1, 2, 3))).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=120, help="training time over all starts")
    parser.add_argument("--clip", type=Path, default=Path("clip"), help="folder of the small CLIP")
    parser.add_argument("--out", type=Path, default=Path("diffusion"), help="the folder to write")
    parser.add_argument(
        "--per-drawing", type=int, default=PER_DRAWING, help="pictures to draw of each thing, to learn from"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(train(arguments.minutes, arguments.out, arguments.clip, arguments.per_drawing)))


if __name__ == "__main__":
    main()
