"""Test sets on disk, in PASCAL VOC's and COCO's own formats: pictures, semantic maps and instances (paper 4)."""

import json
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO

from usam import classes
from usam.errors import UserError

VOID = 255  # neither background nor a class: no score counts these pixels
_COCO_KEYS = {
    "images": (("id", int), ("file_name", str), ("height", int), ("width", int)),
    "categories": (("id", int), ("name", str)),
    "annotations": (("id", int), ("image_id", int), ("category_id", int), ("segmentation", object)),
}


def voc_palette() -> list[int]:
    """VOC's colours: the bits of the label, spread over R, G, B from the highest bit down."""
    labels = np.arange(256)
    colors = np.zeros((256, 3), int)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((labels >> (3 * bit + channel)) & 1) << (7 - bit)
    return colors.ravel().tolist()


@dataclass(frozen=True)
class Instance:
    """One object of an image.

    Attributes:
        label: class index, 0 to C - 1.
        mask: COCO RLE of the image's own size, `{"size": [H, W], "counts": bytes}`.
        crowd: the mask covers a group; detections on it count neither for nor against.
    """

    label: int
    mask: dict[str, Any]
    crowd: bool = False


@dataclass(frozen=True, eq=False)  # == of arrays is an array
class Example:
    """One image with its ground truth.

    Attributes:
        image_id: VOC's name or COCO's number.
        image: (H, W, 3) uint8, RGB.
        semantic: (H, W) uint8; 0 background, label + 1 for the classes, 255 void.
        instances: the objects, crowds included.
    """

    image_id: str | int
    image: np.ndarray
    semantic: np.ndarray
    instances: list[Instance]


class Dataset(Protocol):
    """What the pipeline asks of a test set.

    Attributes:
        name: fit for a file name.
        class_names: C names; a class's place is its label.
        category_ids: C official ids, in the same order.
        image_ids: in the order of the examples.
        files: of the pictures, in the same order.
        truth_files: all others that the examples are read from.
    """

    name: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: list[Any]
    files: list[Path]
    truth_files: list[Path]

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example: ...

    def image(self, i: int) -> np.ndarray: ...


class _Pictures:
    """What both formats share: ids and picture files in the same order."""

    def __init__(self, image_ids: list[Any], files: list[Path]) -> None:
        self.image_ids, self.files = image_ids, files

    def __len__(self) -> int:
        return len(self.image_ids)

    def image(self, i: int) -> np.ndarray:
        """Picture `i` without its masks, (H, W, 3) uint8 RGB, as stored: annotations ignore EXIF orientation."""
        return np.array(_open(self.files[i]).convert("RGB"))


class VocDataset(_Pictures):
    """PASCAL VOC 2012 segmentation, read in place.

    Args:
        root: the folder that holds `JPEGImages`, `SegmentationClass`, `SegmentationObject` and `ImageSets`.
        split: a list of `ImageSets/Segmentation`, such as "val".
        class_names: the classes to keep, in the order of their labels; all 20 by default. Others are background.

    Raises:
        UserError: unknown class; a folder, the list or a listed file is missing; on access, a file that cannot be used.
    """

    def __init__(self, root: str | Path, split: str, class_names: Sequence[str] | None = None) -> None:
        root = Path(root)
        self.class_names = tuple(classes.VOC if class_names is None else class_names)
        _check_classes(self.class_names, classes.VOC, "PASCAL VOC")
        self.category_ids = tuple(classes.VOC.index(name) + 1 for name in self.class_names)
        self._labels = {category: label for label, category in enumerate(self.category_ids)}
        if not (root / "JPEGImages").is_dir():
            raise UserError(f"no PASCAL VOC data in {root}: name the folder that holds JPEGImages, or run 00_setup")
        names = _split_names(root, split)
        super().__init__(names, [root / "JPEGImages" / f"{name}.jpg" for name in names])
        self.name = f"voc_{split}"
        self._class_maps = [root / "SegmentationClass" / f"{name}.png" for name in names]
        self._object_maps = [root / "SegmentationObject" / f"{name}.png" for name in names]
        self.truth_files = self._class_maps + self._object_maps
        _require(self.files + self.truth_files, f"the VOC split '{split}'")

    def __getitem__(self, i: int) -> Example:
        """Read picture, class map and object map of example `i`."""
        image = self.image(i)
        official = _palette_indices(self._class_maps[i], image.shape[:2])
        wrong = official[(official > len(classes.VOC)) & (official != VOID)]
        if wrong.size:
            raise UserError(f"{self._class_maps[i]} holds the value {wrong[0]}: VOC knows 0 to 20 and 255 (void)")
        objects = _palette_indices(self._object_maps[i], image.shape[:2])
        numbers = [n for n in np.unique(objects) if n not in (0, VOID)]
        found = [self._instance(i, n, objects == n, official) for n in numbers]
        ours = np.zeros(256, np.uint8)
        ours[[*self._labels, VOID]] = [*(label + 1 for label in self._labels.values()), VOID]
        return Example(self.image_ids[i], image, ours[official], [one for one in found if one])

    def _instance(self, i: int, number: int, inside: np.ndarray, official: np.ndarray) -> Instance | None:
        """Object `number` under the class most of its pixels have; None for a class that is not asked for."""
        inside = inside & (official != VOID)
        votes = np.bincount(official[inside], minlength=len(classes.VOC) + 1)[1:]
        if not votes.any():
            raise UserError(f"object {number} of {self._object_maps[i]} has no class in {self._class_maps[i]}: mend it")
        label = self._labels.get(int(votes.argmax()) + 1)
        if label is None:
            return None
        return Instance(label, rle_tools.encode(np.asfortranarray(inside, dtype=np.uint8)))


class CocoDataset(_Pictures):
    """COCO instances, read in place; images without annotations are part of the set.

    Args:
        annotations_json: such as `annotations/instances_val2017.json`.
        image_dir: the folder of its pictures, such as `val2017`.
        class_names: the categories to keep, in the order of their labels; by default all of the file in the order
            of their ids. Objects of other categories are background.

    Raises:
        UserError: a missing or broken file, unknown class, image or category; on access, an unusable mask or picture.
    """

    def __init__(
        self, annotations_json: str | Path, image_dir: str | Path, class_names: Sequence[str] | None = None
    ) -> None:
        self.path = Path(annotations_json)
        self.truth_files = [self.path]
        content = _read_coco(self.path)
        _check_references(content, self.path)
        ids = {c["name"]: c["id"] for c in sorted(content["categories"], key=lambda c: c["id"])}
        self.class_names = tuple(ids if class_names is None else class_names)
        _check_classes(self.class_names, ids, str(self.path))
        self.category_ids = tuple(ids[name] for name in self.class_names)
        self.name = self.path.stem
        files = [Path(image_dir) / image["file_name"] for image in content["images"]]
        super().__init__([image["id"] for image in content["images"]], files)
        _require(files, str(self.path))
        self._labels = {category: label for label, category in enumerate(self.category_ids)}
        self._coco = coco_index(content)

    def __getitem__(self, i: int) -> Example:
        """Read picture `i` and draw its annotations: large objects first, crowds only where no object lies."""
        image, record = self.image(i), self._coco.imgs[self.image_ids[i]]
        if image.shape[:2] != (record["height"], record["width"]):
            said = _size((record["height"], record["width"]))
            raise UserError(f"{self.files[i]} is {_size(image.shape)} but {self.path} says {said}: fetch both again")
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
            raise UserError(f"{place} is no valid mask: {error}; mend it") from error
        return Instance(label, rle_tools.encode(np.asfortranarray(mask, dtype=np.uint8)), crowd), mask


def _check_classes(names: tuple[str, ...], known: Iterable[str], source: str) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"{source} has no class '{unknown[0]}': choose from {', '.join(known)}")
    if len(set(names)) < len(names) or not 0 < len(names) < VOID:
        raise UserError(f"{len(names)} classes of {source}: name 1 to {VOID - 1}, each once")


def coco_index(content: dict[str, Any]) -> COCO:
    """pycocotools' index of `content` (a COCO file's parts), without its printing."""
    coco = COCO()
    coco.dataset = content
    with redirect_stdout(None):
        coco.createIndex()
    return coco


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"cannot read {path}: {error}; fetch it again, or delete a data set that was made here"
        ) from error


def _palette_indices(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The palette's indices, (H, W) uint8: converting to RGB would turn them into colours."""
    picture = _open(path)
    if picture.mode != "P":
        raise UserError(f"{path} is no palette PNG (mode {picture.mode}): use VOC's original files, not re-saved ones")
    indices = np.array(picture)
    if indices.shape != shape:
        raise UserError(f"{path} is {_size(indices.shape)} but its picture is {_size(shape)}: fetch both again")
    return indices


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} pixels"


def _split_names(root: Path, split: str) -> list[str]:
    folder = root / "ImageSets" / "Segmentation"
    if not (folder / f"{split}.txt").is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.txt"))) or "none"
        raise UserError(f"no split list {folder / f'{split}.txt'}: choose a split that is there ({known})")
    names = (folder / f"{split}.txt").read_text(encoding="utf-8").split()
    if not names:
        raise UserError(f"{folder / f'{split}.txt'} lists no image: fetch the data again")
    return names


def _require(files: list[Path], source: str) -> None:
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(f"{len(missing)} of {len(files)} files of {source} are missing, first {missing[0]}: add them")


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
        broken = [
            e for e in entries if not isinstance(e, dict) or any(k not in e or not isinstance(e[k], t) for k, t in keys)
        ]
        if broken:
            needed = ", ".join(key for key, _ in keys)
            raise UserError(f"{path}: each of '{part}' needs {needed} of COCO's types, found {str(broken[0])[:80]}")
    return content


def _check_references(content: dict[str, list[dict[str, Any]]], path: Path) -> None:
    for part, key in ("images", "image_id"), ("categories", "category_id"):
        known = {entry["id"] for entry in content[part]}
        for annotation in content["annotations"]:
            if annotation[key] not in known:
                place = f"annotation {annotation['id']} of {path}"
                raise UserError(f"{place}: {key} {annotation[key]} is not in '{part}'; mend it")


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
