"""COCO instances: the reader, and pycocotools' index (paper 4)."""

import json
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO

from usam.data.datasets import VOID, Example, ImageFiles, Instance, in_pixels
from usam.errors import UserError

_COCO_KEYS = {
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "categories": {"id": int, "name": str},
    "annotations": {"id": int, "image_id": int, "category_id": int},
}


class CocoDataset(ImageFiles):
    """COCO instances, read in place; images without annotations are part of the set.

    Args:
        root: a folder as COCO is published: `annotations/instances_{split}.json`, and images in `{split}/`.
        split: such as "val2017".
        class_names: the categories, in the order of their labels; by default all of the file in the order
            of their ids. Objects of other categories are background.

    Raises:
        UserError: a missing or broken file, unknown class, image or category; on access, an unusable mask or picture.
    """

    def __init__(self, root: Path, split: str, class_names: Sequence[str] | None = None) -> None:
        self.path = root / "annotations" / f"instances_{split}.json"
        content = _read_coco(self.path)
        ids = [image["id"] for image in content["images"]]
        files = [root / split / image["file_name"] for image in content["images"]]
        known = {c["name"]: c["id"] for c in sorted(content["categories"], key=lambda c: c["id"])}
        super().__init__(self.path.stem, self.path, known, class_names, ids, files, [self.path])
        self._coco = coco_index(content)

    def __getitem__(self, i: int) -> Example:
        """Read picture `i` and draw its annotations: large objects first, crowds only where no object lies."""
        image, record = self.image(i), self._coco.imgs[self.image_ids[i]]
        if image.shape[:2] != (record["height"], record["width"]):
            noted = in_pixels((record["height"], record["width"]))
            raise UserError(
                f"{self.files[i]} is {in_pixels(image.shape)}, {self.path} notes {noted}: download both again"
            )
        semantic = np.zeros(image.shape[:2], np.uint8)  # (H, W)
        drawn = [self._draw(a) for a in self._coco.imgToAnns[self.image_ids[i]] if a["category_id"] in self._labels]
        for instance, mask in sorted(drawn, key=lambda pair: -pair[1].sum()):
            if instance.crowd:
                semantic[mask & (semantic == 0)] = VOID
            else:
                semantic[mask] = instance.label + 1
        return Example(self.image_ids[i], image, semantic, [instance for instance, _ in drawn])

    def _draw(self, annotation: dict[str, Any]) -> tuple[Instance, np.ndarray]:
        label, crowd = self._labels[annotation["category_id"]], bool(annotation.get("iscrowd", 0))
        try:
            mask = _draw_segmentation(self._coco, annotation)  # (H, W) bool
        except Exception as error:  # pycocotools raises bare exceptions for shapes it does not know
            place = f"annotation {annotation['id']} of {self.path}"
            raise UserError(f"{place} is no valid mask: {error}; correct it") from error
        return Instance(label, rle_tools.encode(np.asfortranarray(mask, dtype=np.uint8)), crowd), mask


def coco_index(content: dict[str, Any]) -> COCO:
    """pycocotools' index of `content` (a COCO file's parts), without its printing."""
    coco = COCO()
    coco.dataset = content
    with redirect_stdout(None):
        coco.createIndex()
    return coco


def _read_coco(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no annotations at {path}: name a COCO instances_*.json, or fetch the data") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no complete JSON ({error}): fetch the file again") from error
    for part, keys in _COCO_KEYS.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not (entries or part == "annotations"):
            raise UserError(f"{path} has no list '{part}', or it is empty: use a COCO instances_*.json")
        for one in entries:
            if not isinstance(one, dict) or not all(isinstance(one.get(key), kind) for key, kind in keys.items()):
                raise UserError(
                    f"{path}: each of '{part}' needs {', '.join(keys)} of COCO's types, found {str(one)[:80]}"
                )
    for part, key in ("images", "image_id"), ("categories", "category_id"):
        known = {entry["id"] for entry in content[part]}
        for annotation in content["annotations"]:
            if annotation[key] not in known:
                place = f"annotation {annotation['id']} of {path}"
                raise UserError(f"{place}: {key} {annotation[key]} is not in '{part}'; correct it")
    return content


def _draw_segmentation(coco: COCO, annotation: dict[str, Any]) -> np.ndarray:
    """Polygons, run lengths or compressed run lengths to an (H, W) bool mask; errors are pycocotools' or ValueError."""
    record, segmentation = coco.imgs[annotation["image_id"]], annotation["segmentation"]
    size = [record["height"], record["width"]]
    if isinstance(segmentation, list):
        # A line of two points has no area, and pycocotools would take its four numbers for a box.
        annotation = annotation | {"segmentation": [p for p in segmentation if len(p) >= 6]}
        if not annotation["segmentation"]:
            raise ValueError("no polygon of three points or more")
    elif segmentation["size"] != size:
        raise ValueError(f"its size is {segmentation['size']}, the image's {size} (height, width)")
    elif isinstance(segmentation["counts"], list) and sum(segmentation["counts"]) != size[0] * size[1]:
        raise ValueError("its run lengths do not add up to the image's pixels")  # decoding would leave pixels undefined
    return rle_tools.decode(coco.annToRLE(annotation)).astype(bool)  # (H, W)
