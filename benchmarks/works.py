"""What is timed, with the miniature's weights, or random ones of the real sizes: speed is the same."""

import copy
import tempfile
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from faster_coco_eval import COCO as FasterCOCO
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from segment_anything import SamAutomaticMaskGenerator
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.measure import Work
from usam import machine, paths, profiles
from usam.config import DistillationConfig, HeadConfig, SamConfig
from usam.data import generate, published
from usam.data.datasets import Example
from usam.data.sources import GenerateConfig
from usam.evaluation import metrics
from usam.evaluation.metrics import Detection, Truth
from usam.evaluation.scores import evaluate
from usam.method import fast, inference, sam
from usam.method.masks import MaskEmbeddings, masks_to_rle
from usam.method.training import Bags, train
from usam.pipeline import stages

SMALL = paths.ROOT / "miniature" / "weights" / "diffusion"


def extraction(model: str, images: int) -> list[Work]:
    """SAM on 10 x 10 points: tokens alone, tokens and masks, and segment-anything's own automatic masks in float32."""
    config = profiles.load("mini").sam if model == "mini" else SamConfig(model=model, precision="bfloat16")
    torch.manual_seed(0)
    weights = published.checkpoint(profiles.load("mini").sam)
    whole = (
        sam.load_sam(config.model, weights) if model == "mini" else sam.build_sam(model).eval().requires_grad_(False)
    )
    whole = whole.to(machine.device())
    ours = sam.Extractor(copy.deepcopy(whole), config, machine.device())
    automatic = SamAutomaticMaskGenerator(whole, points_per_side=10)
    patches = np.random.default_rng(0).integers(0, 256, (images, 5, 5, 3), np.uint8)
    pictures = [patch.repeat(75, 0).repeat(100, 1) for patch in patches]  # 375 x 500
    few = pictures[: max(1, images // 4)]

    def stream(masks: bool) -> None:
        for _ in ours.stream(pictures, lambda picture: picture, masks):
            pass

    def one(masks: bool) -> None:
        # relative positions as a mask: as further channels, they would count as useful operations
        with mock.patch.object(fast, "by_channels", fast.by_mask):
            ours.several([ours.prepare(pictures[0])], masks)

    def generator(some: list[np.ndarray]) -> None:
        for picture in some:
            automatic.generate(picture)

    works = [
        Work(
            f"{model}: {name}", partial(stream, masks), images, "images", config.precision, partial(one, masks), images
        )
        for name, masks in (("tokens", False), ("tokens and masks", True))
    ]
    count = len(few)
    theirs = partial(generator, few), count, "images", "float32", partial(generator, few[:1]), count
    return [*works, Work(f"{model}: SamAutomaticMaskGenerator", *theirs)]


def generation(model: str, images: int) -> list[Work]:
    """A text-to-image model: the miniature's, or one of the sizes of Stable Diffusion v1-4 at 512 pixels."""
    if model == "mini":
        config = profiles.load("mini").sources["synthetic"].settings
        draw = generate.pipeline(config)
    else:
        config = profiles.load("paper").sources["synthetic"].settings
        with tempfile.TemporaryDirectory() as folder:
            write_stable_diffusion(Path(folder))
            draw = generate.pipeline(GenerateConfig(**config.model_dump() | {"model": folder}))
    batch = min(images, config.batch)
    blocks = [list(range(k, k + batch)) for k in range(0, images // batch * batch, batch)]

    def all_blocks() -> None:
        for seeds in blocks:
            draw("a photo of a dog", seeds)

    name, count = f"{model}: {config.steps} steps, {batch} at once", batch * len(blocks)
    return [Work(name, all_blocks, count, "images", config.precision, partial(draw, "a photo of a dog", [0]), count)]


def write_stable_diffusion(folder: Path) -> None:
    """A pipeline of the sizes of Stable Diffusion v1-4 but for its safety checker, with random weights."""
    words = CLIPTokenizer.from_pretrained(SMALL / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=words.model_max_length, eos_token_id=words.eos_token_id,
        bos_token_id=words.bos_token_id,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    StableDiffusionPipeline(
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768).half(),
        vae=vae.half(),
        text_encoder=CLIPTextModel(text).half(),
        tokenizer=words,
        scheduler=StableDiffusionPipeline.from_pretrained(SMALL).scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def heads(images: int) -> list[Work]:
    """Teacher and student, 30 epochs each, on random tokens (100 x 1,024 an image) and 20 classes."""
    tokens = np.random.default_rng(0).standard_normal((images, 100, 1024), np.float32).astype(np.float16)
    bags = Bags(tokens.__getitem__, np.arange(images), torch.eye(20)[torch.arange(images) % 20])
    device = machine.device()

    def both(config: HeadConfig) -> None:
        teacher, _ = train(bags, config, 0, device=device)
        train(bags, config, 0, teacher, DistillationConfig(), device, "student")

    works = []
    for precision in ("float32", "bfloat16"):
        do = partial(both, HeadConfig(precision=precision))
        works.append(Work(f"teacher and student of {images} images", do, images, "images", precision, do, 1))
    return works


def scores(images: int) -> list[Work]:
    """The evaluation of masks with random labels: all of it; its matching alone, beside COCO's evaluators."""
    profile = profiles.load("mini")
    data, found = stages.dataset(profile, "voc"), stages.embeddings(profile, "voc")
    images, count = min(images, len(data)), len(data.class_names)
    probability = np.random.default_rng(0).dirichlet(np.full(count, 0.1), (len(data), 100)).astype(np.float32)
    place = {image_id: k for k, image_id in enumerate(data.image_ids)}

    def annotate(example: Example, embeddings: MaskEmbeddings) -> inference.LabelledMasks:
        return inference.label_masks(probability[place[example.image_id]], embeddings, profile.inference)

    truth, rows = [], []
    for k in range(images):
        example = data[k]
        one = annotate(example, found[k])
        truth.append((example.image_id, example.semantic.shape, example.instances))
        masks = zip(one.labels.tolist(), one.scores.tolist(), masks_to_rle(one.masks), strict=True)
        rows += [(example.image_id, *row) for row in masks]
    works = [
        (f"all of it, {len(data)} images", partial(evaluate, data, found, annotate), len(data)),
        ("matching at IoU 0.50, as we do", partial(metrics.match, truth, rows, count), images),
        ("COCOeval as it comes", partial(as_it_comes, COCO, COCOeval, truth, rows, count), images),
        ("faster-coco-eval as it comes", partial(as_it_comes, FasterCOCO, COCOeval_faster, truth, rows, count), images),
    ]
    return [Work(name, do, n, "images", "float32") for name, do, n in works]


def as_it_comes(index: type, evaluator: type, truth: list[Truth], found: list[Detection], classes: int) -> None:
    """COCO's ten IoUs and four areas."""
    number = {image_id: n for n, (image_id, *_) in enumerate(truth, 1)}
    images = [{"id": number[i], "height": int(h), "width": int(w)} for i, (h, w), _ in truth]
    rest = {"images": images, "categories": [{"id": c + 1} for c in range(classes)], "info": {}}
    objects = [(number[i], one.label, one.mask, {"iscrowd": int(one.crowd)}) for i, _, ones in truth for one in ones]
    answers = [(number[i], label, mask, {"score": score, "iscrowd": 0}) for i, label, score, mask in found]
    with redirect_stdout(None):
        both = []
        for masks in (objects, answers):
            one = index()
            one.dataset = rest | {
                "annotations": [
                    {"id": n, "image_id": i, "category_id": label + 1, "segmentation": mask, "area": 1.0, **more}
                    for n, (i, label, mask, more) in enumerate(masks, 1)
                ]
            }
            one.createIndex()
            both.append(one)
        evaluation_ = evaluator(*both, "segm")
        evaluation_.evaluate()
        evaluation_.accumulate()
