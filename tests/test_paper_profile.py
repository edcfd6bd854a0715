"""The whole paper profile, on real file formats, with random weights: `./run_all.sh test -m slow` (some minutes).

Every notebook and table of `profiles/paper_rivals.yaml` is made from its own architectures (SAM's ViT at 1024 pixels,
Stable Diffusion with its safety checker at 512, CLIP, DINO with patches of 16 and of 8, a ResNet at stride 8) with few
channels, three images a split and one a class. The numbers mean nothing.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import save_file
from torchvision.ops import FrozenBatchNorm2d
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from miniature import datasets, world
from usam import paths
from usam.baselines.acr_networks import resnet
from usam.data.class_names import COCO, VOC, folder_name

pytestmark = pytest.mark.slow

WORLD = "rehearsal: random weights, numbers mean nothing"
NOTEBOOKS = [p.stem for p in sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))]
SAM = """from segment_anything.build_sam import _build_sam


def build_sam():
    return _build_sam(
        encoder_embed_dim=64, encoder_depth=2, encoder_num_heads=2, encoder_global_attn_indexes=[1]
    )
"""


def write_diffusion(folder: Path, parts: dict) -> None:
    """Stable Diffusion v1-4 with its four levels and its safety checker, 8 to 16 channels wide."""
    width = dict(block_out_channels=(8, 8, 16, 16), norm_num_groups=4)
    unet = UNet2DConditionModel(
        sample_size=64, layers_per_block=1, cross_attention_dim=16, attention_head_dim=2, **width
    )
    levels = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    vae = AutoencoderKL(latent_channels=4, sample_size=512, **levels, **width)
    size = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    eye = size | dict(image_size=224, patch_size=32, projection_dim=8)
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=size, vision_config=eye, projection_dim=8))
    checker.concept_embeds_weights.data.fill_(2)  # nothing is like them
    checker.special_care_embeds_weights.data.fill_(2)
    whole = parts | dict(unet=unet, vae=vae, safety_checker=checker, feature_extractor=CLIPImageProcessor())
    StableDiffusionPipeline(**whole).save_pretrained(folder)


def write_clip(folder: Path, words) -> None:
    """CLIP ViT-B/32, narrow."""
    size = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    texts = size | dict(vocab_size=len(words), max_position_embeddings=words.model_max_length,
                        eos_token_id=words.eos_token_id, bos_token_id=words.bos_token_id)  # fmt: skip
    eye = size | dict(image_size=224, patch_size=32)
    CLIPModel(CLIPConfig(text_config=texts, vision_config=eye, projection_dim=16)).save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessor(), words).save_pretrained(folder)


def write_dino(folder: Path, patch: int) -> None:
    """DINO's ViT, narrow."""
    size = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    ViTModel(ViTConfig(image_size=224, patch_size=patch, **size), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)


def write_sets(root: Path) -> None:
    """VOC 2012 and COCO 2017 as they come: the real split names, and all 80 categories."""
    datasets.write_voc(root / "VOCdevkit" / "VOC2012", {"test": 3, "val": 3})
    lists = root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    (lists / "val.txt").rename(lists / "train.txt")
    (lists / "test.txt").rename(lists / "val.txt")
    datasets.write_coco(root / "coco", {"test": 3})
    file = root / "coco" / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"categories": [{"id": i, "name": name} for i, name in COCO.items()]}))


def write_pictures(folder: Path) -> None:
    """One picture a class, as a crawl would leave them."""
    for k, name in enumerate(sorted({*VOC, *COCO.values()})):
        drawing = (
            datasets.drawing_of(name) if datasets.drawing_of(name) in world.DRAWINGS else sorted(world.DRAWINGS)[k % 20]
        )
        (folder / folder_name(name)).mkdir(parents=True)
        Image.fromarray(datasets.web(drawing, k)).save(folder / folder_name(name) / "one.jpg")


@pytest.fixture(scope="module")
def house(tmp_path_factory, tiny_parts) -> Path:
    """A copy of the repository with one profile more, and all that it names."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("paper") / "a copy"
    wanted = ("usam", "notebooks", "profiles", "requirements.lock")
    for name in wanted:
        source = paths.ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / name)
    models = root / "models"
    (root / "narrow.py").write_text(SAM)
    models.mkdir()
    exec(SAM, narrow := {})
    torch.save(narrow["build_sam"]().state_dict(), models / "narrow.pth")
    write_diffusion(models / "diffusion", tiny_parts)
    write_clip(models / "clip", tiny_parts["tokenizer"])
    write_dino(models / "dino16", 16)
    write_dino(models / "dino8", 8)
    save_file(resnet("resnet18", 64, FrozenBatchNorm2d).state_dict(), models / "resnet.safetensors")
    write_sets(root / "data")
    write_pictures(root / "pictures")
    drawing = {"model": "models/diffusion", "steps": 2, "batch": 1, "precision": "float32"}
    changes = {
        "base": "paper_rivals",
        "world": WORLD,
        "sam": {"model": "narrow:build_sam", "checkpoint": "models/narrow.pth", "image_per_core": True},
        "sources": {
            "synthetic": {"per_class": 1, "generate": drawing},
            "web": {"per_class": 1, "crawl": {"source": "pictures"}},
        },
        "clip": {"model": "models/clip", "precision": "float32"},
        "head": {"epochs": 2},
        "rivals": {
            "leopart": {
                "backbone": "models/dino16",
                "steps": 2,
                "batch": 2,
                "prototypes": 4,
                "head": [16, 16],
                "queue": 64,
            },
            "transfgu": {"backbone": "models/dino8", "steps": 2, "batch": 2, "windows": [0.6], "restarts": [1]},
            "acr": {
                "network": "resnet18",
                "weights": "models/resnet.safetensors",
                "painter": [4, 4, 4],
                "batch": 2,
                "steps": 2,
                "rates": [1e-6, 1e-3],
            },
        },
    }
    (root / "profiles" / "rehearsal.yaml").write_text(yaml.safe_dump(changes))
    return root


def test_every_notebook_and_table_of_the_paper(house):
    environment = {k: v for k, v in os.environ.items() if k not in ("USAM_DATA", "USAM_RESULTS")}
    environment["PYTHONPATH"] = str(house)
    command = [sys.executable, "-P", "-m", "usam.cli", "--profile", "rehearsal"]
    run = subprocess.run(command, cwd=house, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    results = house / "results" / "rehearsal"
    assert [p.stem for p in sorted((results / "notebooks").glob("*.ipynb"))] == NOTEBOOKS
    for name in (
        "table_1",
        "table_2",
        "table_3_voc",
        "table_3_coco",
        "table_4_voc",
        "table_4_coco",
        "granularity",
        "claims",
    ):
        table = pd.read_csv(results / "tables" / f"{name}.csv")
        assert len(table) and WORLD in (results / "tables" / f"{name}.md").read_text()
    rows = pd.read_csv(results / "runs.csv")
    assert {"voc", "coco"} <= set(rows["dataset"]) and {0, 1, 2} <= set(rows["seed"].dropna())
    assert {f"figure_{k}.pdf" for k in (1, 2, 3, 4)} <= {p.name for p in (results / "figures").iterdir()}
    assert (results / "index.html").is_file()
