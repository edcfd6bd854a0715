"""The drawn world written as true data sets, a PASCAL VOC folder and a COCO json; and as images of single things."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as rle_codec
from tqdm import tqdm

from miniature import world
from miniature.splits import rng_of
from miniature.world import Layout, Picture
from usam.data.class_names import COCO, SUPERCLASSES, VOC
from usam.data.voc import voc_palette
from usam.errors import UserError

# names that the two data sets write differently; drawings go by VOC's
COCO_DRAWINGS = {
    "airplane": "aeroplane",
    "motorcycle": "motorbike",
    "couch": "sofa",
    "tv": "tvmonitor",
    "potted plant": "pottedplant",
    "dining table": "diningtable",
}
COCO_SPLITS = {"train": "train2017", "val": "minival2017", "test": "val2017"}  # as COCO's files call them


def drawing_of(class_name: str) -> str:
    """The drawing for a class name of either data set."""
    return COCO_DRAWINGS.get(class_name, class_name)


def web(name: str, index: int) -> np.ndarray:
    """Training image `index` of a class, web style: (H, W, 3) uint8 RGB; a superclass shows its members by turns.

    Each round begins one member later than the last one, so that faults in a list do not always hit the same.
    """
    members = SUPERCLASSES.get(name, (name,))
    member = members[(index + index // len(members)) % len(members)]
    return world.web(drawing_of(member), rng_of("train", "web", name, index, 0)).image


class Scenes(NamedTuple):
    """What the scenes of a data set are like."""

    chances: tuple[float, ...]  # of one object, of two, ...
    layout: Layout


SCENES = {  # as in the real sets, COCO's have more objects, smaller ones, and more clutter
    "voc": Scenes((0.35, 0.3, 0.2, 0.1, 0.05), Layout()),
    "coco": Scenes(
        (0.02, 0.03, 0.05, 0.2, 0.2, 0.2, 0.2, 0.1),
        Layout(rows=2, smallest=0.09, largest=(0.9, 0.7, 0.6, 0.5, 0.45), clutter=10, blobs=(0.08, 0.35)),
    ),
}


def test_scene(split: str, dataset: str, index: int, class_names: list[str]) -> Picture:
    """Scene `index` of a split; its classes take turns, so that every class occurs.

    `dataset` is a key of `SCENES`, or another word for other scenes like VOC's.
    """
    rng = rng_of(split, dataset, index)
    chances, layout = SCENES.get(dataset, SCENES["voc"])
    count = 1 + int(rng.choice(len(chances), p=chances))
    names = [class_names[index % len(class_names)], *rng.choice(class_names, count - 1)]
    individuals = [(str(n), world.draw(drawing_of(str(n)), rng)) for n in names]
    return world.scene(individuals, rng, layout=layout)


def _check(images: dict[str, int], names: list[str], known: Collection[str]) -> None:
    """Splits and classes before anything is written; `known` are the data set's own class names."""
    drawn = [n for n in known if drawing_of(n) in world.DRAWINGS]
    for what, wanted, there in (("split", images, list(COCO_SPLITS)), ("class", names, drawn)):
        if wrong := [w for w in wanted if w not in there]:
            raise UserError(f"this drawn data set has no {what} '{wrong[0]}': choose from {', '.join(there)}")


# -- PASCAL VOC ---------------------------------------------------------------------------------------------------


def write_voc(root: Path, images: dict[str, int], class_names: list[str] | None = None) -> None:
    """Write `images[split]` scenes of each split as a VOC folder; it appears under its name when it is whole."""
    names = list(class_names or VOC)
    _check(images, names, VOC)
    part = _fresh(root)
    for split, count in images.items():
        ids = [f"{split}_{k:06d}" for k in range(count)]
        for k, image_id in enumerate(tqdm(ids, desc=f"VOC {split}", unit="image")):
            _write_voc_image(part, image_id, test_scene(split, "voc", k, names))
        listing = part / "ImageSets" / "Segmentation" / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{i}\n" for i in ids))
    part.rename(root)


def _write_voc_image(root: Path, image_id: str, picture: Picture) -> None:
    objects = np.zeros_like(picture.objects)
    classes = np.zeros_like(picture.objects)
    things = [(k, n) for k, n in enumerate(picture.names, 1) if n is not None and (picture.objects == k).sum() >= 20]
    for number, (k, name) in enumerate(things, 1):
        where = picture.objects == k
        objects[where], classes[where] = number, VOC.index(name) + 1
    border = cv2.morphologyEx(objects, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    objects[border], classes[border] = 255, 255
    _folder(root, "JPEGImages")
    Image.fromarray(picture.image).save(_folder(root, "JPEGImages") / f"{image_id}.jpg", quality=92)
    for kind, values in (("SegmentationObject", objects), ("SegmentationClass", classes)):
        png = Image.fromarray(values, "P")
        png.putpalette(voc_palette())
        png.save(_folder(root, kind) / f"{image_id}.png")


# -- COCO ---------------------------------------------------------------------------------------------------------


def write_coco(root: Path, images: dict[str, int], class_names: list[str] | None = None) -> None:
    """Write scenes as COCO: annotations/instances_{split}2017.json and {split}2017/*.jpg, official category ids.

    One image in twenty has no annotations, one in ten a crowd region (uncompressed RLE); the rest are polygons, or
    compressed RLE where an object is cut into pieces by others.
    """
    known = {name: i for i, name in COCO.items()}
    names = list(class_names or [n for n in COCO.values() if drawing_of(n) in world.DRAWINGS])
    _check(images, names, known)
    part = _fresh(root)
    for split, count in images.items():
        official = COCO_SPLITS[split]
        content = _coco_split(part, split, official, count, names, known)
        (_folder(part, "annotations") / f"instances_{official}.json").write_text(json.dumps(content))
    part.rename(root)


def _coco_split(
    root: Path, split: str, folder: str, count: int, names: list[str], known: dict[str, int]
) -> dict[str, list]:
    images, annotations = [], []
    for k in tqdm(range(count), desc=f"COCO {split}", unit="image"):
        rng = rng_of(split, "coco-extra", k)
        empty = rng.random() < 0.05
        picture = world.scene([], rng) if empty else test_scene(split, "coco", k, names)
        image_id, (height, width) = 1000 + 7 * k, picture.objects.shape
        file = f"{image_id:012d}.jpg"
        Image.fromarray(picture.image).save(_folder(root, folder) / file, quality=92)
        images.append(dict(id=image_id, file_name=file, height=height, width=width))
        for thing, name in enumerate(picture.names, 1):
            mask = picture.objects == thing
            if name is not None and mask.sum() >= 20:
                crowd = rng.random() < 0.04
                annotations.append(_annotation(len(annotations) + 1, image_id, known[name], mask, crowd))
    categories = [dict(id=known[n], name=n) for n in sorted(names, key=known.get)]
    return dict(images=images, annotations=annotations, categories=categories)


def _annotation(number: int, image_id: int, category_id: int, mask: np.ndarray, crowd: bool) -> dict:
    rle = rle_codec.encode(np.asfortranarray(mask, np.uint8))
    twice = np.kron(mask, np.ones((2, 2))).astype(np.uint8)  # a contour runs through pixel centres: halve that loss
    contours, _ = cv2.findContours(twice, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    polygons = [((c.reshape(-1, 2) + 0.5) / 2).ravel().tolist() for c in contours if len(c) >= 3]
    if crowd:
        segmentation = _uncompressed(mask)
    elif len(contours) == 1 and polygons:
        segmentation = polygons
    else:  # holes or pieces: polygons cannot say it exactly
        segmentation = dict(size=list(mask.shape), counts=rle["counts"].decode())
    return dict(
        id=number,
        image_id=image_id,
        category_id=category_id,
        iscrowd=int(crowd),
        area=float(mask.sum()),
        bbox=[float(v) for v in rle_codec.toBbox(rle)],
        segmentation=segmentation,
    )


def _uncompressed(mask: np.ndarray) -> dict:
    """RLE as COCO writes crowds: run lengths down the columns, background first."""
    flat = np.concatenate([[0], mask.ravel(order="F").astype(np.int8), [1 - mask.ravel(order="F")[-1]]])
    edges = np.flatnonzero(np.diff(flat))
    return dict(size=list(mask.shape), counts=np.diff(np.concatenate([[0], edges])).astype(int).tolist())


# -- files --------------------------------------------------------------------------------------------------------


def _fresh(root: Path) -> Path:
    """An empty folder beside `root`, to be renamed to it when it is complete."""
    part = root.with_name(root.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def _folder(root: Path, name: str) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
