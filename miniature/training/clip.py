"""Train the small CLIP: `python -m miniature.training.clip --minutes 30`.

A `transformers` folder: CLIPModel and CLIPProcessor with a small vocabulary of its own. Pictures are drawings with
captions: one or two things in all styles; single things cut out along their true outline, on black, white, grey,
another colour or a blurred ground; backgrounds and nameless shapes without things. Never a mask of SAM's, never a
picture of a test split. The loss is CLIP's, but images of equal captions count as each other's matches: a batch holds
many dogs.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from miniature.training.loop import Loop, whole_folder
from miniature.training.pictures import GROUNDS, NAMES, caption, held_out, render
from usam import machine
from usam.data.class_names import VOC, prompt

SIDE, ROOM = 64, 80  # pixels of CLIP's input, and of the pictures that it is cut out of
LENGTH = 24  # tokens of a caption; the longest of COCO's names, spelt, takes 18
SHARES = {"studio": 1, "web": 1, "any": 1, "scene": 1, "cutout": 3, "ground": 1}  # of the pictures, by style
BATCH, RATE = 256, 1e-3


def tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level tokenizer, with one token for each word of the captions; other words are spelt."""
    plain = CLIPTokenizer()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, min_frequency=1, show_progress=False, initial_alphabet=letters, end_of_word_suffix="</w>"
    )
    backend = plain.backend_tokenizer
    backend.train_from_iterator([prompt(f"{name} and a {name}") for name in (*NAMES, *GROUNDS)], trainer)
    learned = json.loads(backend.to_str())["model"]
    words = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters), *learned["vocab"]])
    words = [word for word in words if not word.startswith("<|")] + ["<|startoftext|>", "<|endoftext|>"]
    merges = [tuple(pair) for pair in learned["merges"]]
    return CLIPTokenizer(vocab={word: k for k, word in enumerate(words)}, merges=merges, model_max_length=LENGTH)


def build(words: CLIPTokenizer) -> CLIPModel:
    """The small CLIP with fresh weights: 1.8M parameters."""
    size = dict(hidden_size=128, intermediate_size=512, num_attention_heads=4, hidden_act="gelu", projection_dim=128)
    ends = dict(bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id)
    text = CLIPTextConfig(
        vocab_size=len(words),
        num_hidden_layers=3,
        max_position_embeddings=LENGTH,
        **size | {"intermediate_size": 256},
        **ends,
    )
    vision = CLIPVisionConfig(image_size=SIDE, patch_size=8, num_hidden_layers=6, **size)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128)
    # plain attention: torch's fused kernel for the CPU takes half of a step at so few tokens
    return CLIPModel._from_config(config, attn_implementation="eager")


def processor(words: CLIPTokenizer) -> CLIPProcessor:
    """Pictures are brought to SIDE pixels and CLIP's mean and deviation; captions to tokens."""
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return CLIPProcessor(image_processor=images, tokenizer=words)


def cut(pictures: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Squares of pictures (N, 3, ROOM, ROOM) uint8, mirrored or not, in other light: (N, 3, SIDE, SIDE) float32."""
    count = len(pictures)
    zoom = 1 - 0.35 * torch.rand(count)
    place = (1 - zoom)[:, None] * (2 * torch.rand(count, 2) - 1)
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, :, 2] = zoom * mirror, zoom, place
    grid = F.affine_grid(matrix, [count, 3, SIDE, SIDE], align_corners=False)
    found = F.grid_sample(pictures.float() / 255, grid, padding_mode="reflection", align_corners=False)
    light = 1 + 0.2 * (2 * torch.rand(count, 3, 1, 1) - 1)
    return ((found * light).clamp(0, 1) - mean) / std


def contrastive_loss(images: Tensor, texts: Tensor, captions: Sequence[str], scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy; the target is spread over all pairs of equal captions.

    Args:
        images, texts: (N, D) embeddings of the pairs.
        captions: of each pair.
        scale: CLIP's learned temperature, as its logarithm; at most ln 100 counts.
    """
    numbers = {c: k for k, c in enumerate(dict.fromkeys(captions))}
    who = torch.tensor([numbers[c] for c in captions], device=images.device)
    same = (who[:, None] == who[None]).float()
    target = same / same.sum(1, keepdim=True)
    logits = scale.clamp(max=math.log(100)).exp() * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train(minutes: float, out: Path, count: int) -> dict:
    """Train within `minutes` over all starts on `count` times `SHARES` pictures, save the folder, say what it took."""
    torch.manual_seed(0)
    device, words = machine.device(), tokenizer()
    both = processor(words)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (both.image_processor.image_mean, both.image_processor.image_std)
    )
    parts = [render((style,), "train", "clip", range(count * share), ROOM) for style, share in SHARES.items()]
    pictures, drawings = torch.cat([images for images, _ in parts]), [names for _, found in parts for names in found]

    def loss_of(model: CLIPModel, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(pictures), (BATCH,), generator=generator)
        rng = np.random.default_rng(chosen.tolist())
        captions = [caption(drawings[k], rng) for k in chosen]
        tokens = words(captions, padding=True, return_tensors="pt").to(device)
        with torch.autocast(device.type, torch.bfloat16):
            seen = model.get_image_features(cut(pictures[chosen], mean, std).to(device)).pooler_output
            read = model.get_text_features(**tokens).pooler_output
        return contrastive_loss(seen.float(), read.float(), captions, model.logit_scale)

    out.parent.mkdir(parents=True, exist_ok=True)
    loop = Loop(build(words).to(device).train(), RATE, minutes, out.with_name(f"{out.name}.pt"), [count])
    loop.run(loss_of)
    save(loop.model.eval(), both, out)  # not the average: there are too few steps to average over 500
    return dict(steps=loop.step, drawn=len(pictures), minutes=loop.seconds / 60, hardware=machine.hardware())


def save(model: CLIPModel, both: CLIPProcessor, out: Path) -> None:
    """The folder that `from_pretrained` reads."""
    with whole_folder(out) as folder:
        model.to("cpu").save_pretrained(folder)
        both.save_pretrained(folder)


@torch.no_grad()
def zero_shot(folder: Path, style_names: Sequence[str], per_class: int, key: str = "clip") -> dict[str, float]:
    """Top-1 accuracy over the 20 VOC names, on held-out drawings of one thing, by style."""
    model, both = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    texts = both(text=[prompt(name) for name in VOC], padding=True, return_tensors="pt")
    found = {}
    for style_name in style_names:
        pictures, truth = held_out(style_name, per_class, key)
        scores = []
        for some in pictures.split(200):
            seen = both(images=list(some), return_tensors="pt")
            scores.append(model(**texts, **seen).logits_per_image.argmax(1))
        found[style_name] = (torch.cat(scores) == truth).float().mean().item()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30, help="training time over all starts")
    parser.add_argument("--out", type=Path, default=Path("clip"), help="the folder to write")
    parser.add_argument("--count", type=int, default=7_000, help="pictures to draw for a share of 1")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    took = train(arguments.minutes, arguments.out, arguments.count)
    print(json.dumps(took | {"zero_shot": zero_shot(arguments.out, ("studio", "web"), 50)}))


if __name__ == "__main__":
    main()
