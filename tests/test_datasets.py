"""The readers, on hand-made VOC and COCO folders with the formats' traps in them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_tools

from usam.data.coco import CocoDataset
from usam.data.datasets import Instance
from usam.data.grouped import Grouped
from usam.data.voc import VocDataset
from usam.errors import UserError

H, W = 6, 8  # not square: swapped axes must show


def save_palette(path: Path, indices: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(indices.astype(np.uint8))
    picture.putpalette([(7 * i + 3) % 256 for i in range(768)])  # colours differ from the indices
    picture.save(path)


def refuses(message: str, action: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)


def decode(instance: Instance) -> np.ndarray:
    return rle_tools.decode(instance.mask).astype(bool)


def block(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[rows, columns] = True
    return mask


# Two dogs (12) that touch and a tvmonitor (20); a void border and a void blob without an object.
CLASS_MAP = np.array([
    [0, 0, 0, 0, 0, 0, 0, 0],
    [0, 12, 12, 12, 12, 0, 255, 255],
    [0, 12, 12, 12, 12, 0, 255, 20],
    [0, 12, 12, 12, 12, 0, 255, 20],
    [255, 255, 255, 255, 255, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 255],
])  # fmt: skip
OBJECT_MAP = np.where(CLASS_MAP == 20, 3, CLASS_MAP)
OBJECT_MAP[1:4, 1:3], OBJECT_MAP[1:4, 3:5] = 1, 2


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOC 2012"
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000033\n2007_000042\n\n")
    for name in "2007_000033", "2007_000042":
        Image.new("RGB", (W, H), (200, 40, 40)).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
        save_palette(root / "SegmentationClass" / f"{name}.png", CLASS_MAP)
        save_palette(root / "SegmentationObject" / f"{name}.png", OBJECT_MAP)
    return root


def test_voc_example(voc):
    dataset = VocDataset(voc, "val")
    assert (len(dataset), dataset.image_ids) == (2, ["2007_000033", "2007_000042"])
    assert dataset.category_ids == tuple(range(1, 21)) and dataset.class_names[11] == "dog"
    example = dataset[0]
    assert example.image_id == "2007_000033"
    assert example.image.shape == (H, W, 3) and example.image.dtype == np.uint8
    assert example.semantic.dtype == np.uint8
    np.testing.assert_array_equal(example.semantic, CLASS_MAP)
    assert [one.label for one in example.instances] == [11, 11, 19]
    assert not any(one.crowd for one in example.instances)
    for number, one in enumerate(example.instances, 1):
        assert one.mask["size"] == [H, W] and isinstance(one.mask["counts"], bytes)
        np.testing.assert_array_equal(decode(one), np.equal(OBJECT_MAP, number))


def test_voc_object_takes_its_commonest_class_and_no_void_pixel(voc):
    semantic = CLASS_MAP.copy()
    semantic[1, 1], semantic[2, 1], semantic[3, 1:3] = (
        8,
        0,
        255,
    )  # of object 1: 2 dog pixels, 1 cat, 1 background, 2 void
    save_palette(voc / "SegmentationClass" / "2007_000033.png", semantic)
    first = VocDataset(voc, "val")[0].instances[0]
    assert first.label == 11
    np.testing.assert_array_equal(decode(first), block(slice(1, 3), slice(1, 3)))


def test_voc_object_that_is_void_or_background_is_an_error(voc):
    save_palette(voc / "SegmentationClass" / "2007_000033.png", np.where(OBJECT_MAP == 3, 255, CLASS_MAP))
    refuses(r"object 3 .*2007_000033\.png has no class", lambda: VocDataset(voc, "val")[0])


def test_voc_restricted_to_some_classes(voc):
    dataset = VocDataset(voc, "val", ("tvmonitor", "cat"))
    assert dataset.class_names == ("tvmonitor", "cat") and dataset.category_ids == (20, 8)
    example = dataset[0]  # the dogs become background, the void stays
    np.testing.assert_array_equal(example.semantic, np.select([CLASS_MAP == 20, CLASS_MAP == 255], [1, 255], 0))
    assert [one.label for one in example.instances] == [0]
    np.testing.assert_array_equal(decode(example.instances[0]), np.equal(OBJECT_MAP, 3))
    refuses("PASCAL VOC has no class 'tv': choose from aeroplane", lambda: VocDataset(voc, "val", ("tv",)))


def test_image_alone_reads_no_mask(voc):
    dataset = VocDataset(voc, "val")
    (voc / "SegmentationClass" / "2007_000033.png").write_bytes(b"broken")
    np.testing.assert_allclose(dataset.image(0)[0, 0], [200, 40, 40], atol=4)
    refuses(r"SegmentationClass.*2007_000033\.png cannot be read", lambda: dataset[0])


@pytest.mark.parametrize(
    ("mode", "stored", "colour"), [("L", 90, (90, 90, 90)), ("CMYK", (0, 255, 255, 0), (255, 0, 0))]
)
def test_pictures_become_rgb(voc, mode, stored, colour):
    Image.new(mode, (W, H), stored).save(voc / "JPEGImages" / "2007_000042.jpg", quality=95)
    image = VocDataset(voc, "val").image(1)
    assert image.shape == (H, W, 3) and image.flags.writeable
    np.testing.assert_allclose(image, np.broadcast_to(colour, (H, W, 3)), atol=4)


def test_alpha_becomes_rgb_and_exif_orientation_is_left_alone(tmp_path, voc):
    (tmp_path / "val2017").mkdir()
    Image.new("RGBA", (W, H), (10, 200, 30, 128)).save(tmp_path / "val2017" / "1.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter; the masks are not
    Image.new("RGB", (W, H)).save(voc / "JPEGImages" / "2007_000033.jpg", exif=exif)
    assert VocDataset(voc, "val")[0].image.shape == (H, W, 3)
    images, categories = [dict(id=1, file_name="1.png", height=H, width=W)], [dict(id=1, name="person")]
    content = {"images": images, "categories": categories, "annotations": []}
    write(tmp_path, content)
    np.testing.assert_array_equal(read(tmp_path).image(0)[0, 0], [10, 200, 30])


def test_voc_what_is_missing_is_named(voc):
    refuses(r"no PASCAL VOC data in .*JPEGImages", lambda: VocDataset(voc / "nowhere", "val"))
    refuses(r"no split list .*train\.txt.*\(val\)", lambda: VocDataset(voc, "train"))
    (voc / "SegmentationObject" / "2007_000042.png").unlink()
    refuses(r"1 of 6 files .*SegmentationObject.*2007_000042\.png", lambda: VocDataset(voc, "val"))
    (voc / "JPEGImages" / "2007_000042.jpg").unlink()
    refuses(r"2 of 6 files .*first .*2007_000042\.jpg", lambda: VocDataset(voc, "val"))
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")
    refuses(r"val\.txt lists no image", lambda: VocDataset(voc, "val"))


def test_voc_unusable_files_are_named(voc):
    mask = voc / "SegmentationClass" / "2007_000033.png"
    save_palette(mask, np.where(CLASS_MAP == 20, 21, CLASS_MAP))
    refuses(r"2007_000033\.png holds the value 21", lambda: VocDataset(voc, "val")[0])
    Image.open(mask).convert("RGB").save(mask)
    refuses(r"2007_000033\.png is no palette PNG \(mode RGB\)", lambda: VocDataset(voc, "val")[0])
    save_palette(mask, CLASS_MAP.T)
    refuses("is 6 x 8 pixels but its picture is 8 x 6 pixels", lambda: VocDataset(voc, "val")[0])
    picture = voc / "JPEGImages" / "2007_000033.jpg"
    picture.write_bytes(picture.read_bytes()[:-100])
    refuses(r"2007_000033\.jpg cannot be read", lambda: VocDataset(voc, "val").image(0))


def uncompressed(mask: np.ndarray) -> dict:
    """Run lengths down the columns, starting with the zeros."""
    flat = np.concatenate([[0], mask.ravel(order="F").astype(int), [-1]])
    edges = np.flatnonzero(np.diff(flat))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def compressed(mask: np.ndarray) -> dict:
    rle = rle_tools.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


CROWD = block(slice(0, 6), slice(4, 8))
ANNOTATIONS = [
    # A zebra (24) of columns 1 to 3 and rows 1 to 3, with a second polygon and a line, which has no area.
    dict(id=0, image_id=139, category_id=24, iscrowd=0,
         segmentation=[[0, 0, 5, 5], [1, 1, 4, 1, 4, 4, 1, 4], [6, 4, 8, 4, 8, 6, 6, 6]]),
    dict(id=7, image_id=139, category_id=1, iscrowd=0, segmentation=compressed(block(slice(2, 3), slice(2, 3)))),
    dict(id=8, image_id=139, category_id=1, iscrowd=1, segmentation=uncompressed(CROWD)),
    dict(id=9, image_id=139, category_id=90, segmentation=uncompressed(block(slice(0, 5), slice(0, 5)))),
    dict(id=10, image_id=9, category_id=24, iscrowd=0, segmentation=[[0, 0, 2, 0, 2, 2, 0, 2]]),
]  # fmt: skip
ZEBRA = block(slice(1, 4), slice(1, 4)) | block(slice(4, 6), slice(6, 8))


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Images 139, 285 (no annotation) and 9; categories 90, 24, 1 in the file, in no order and with gaps."""
    (tmp_path / "val2017").mkdir()
    images = [dict(id=n, file_name=f"{n:012}.jpg", height=H, width=W) for n in (139, 285, 9)]
    for image in images:
        Image.new("RGB", (W, H), (30, 60, 90)).save(tmp_path / "val2017" / image["file_name"])
    categories = [dict(id=i, name=n) for i, n in ((90, "toothbrush"), (24, "zebra"), (1, "person"))]
    write(tmp_path, {"images": images, "categories": categories, "annotations": ANNOTATIONS})
    return tmp_path


def write(folder: Path, content: dict) -> None:
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))


def read(folder: Path, class_names=None) -> CocoDataset:
    return CocoDataset(folder, "val2017", class_names)


def annotate(folder: Path, annotation: dict) -> None:
    content = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    write(folder, content | {"annotations": [annotation]})


def test_coco_example(coco):
    dataset = read(coco)
    assert dataset.image_ids == [139, 285, 9] and len(dataset) == 3 and dataset.name == "instances_val2017"
    assert dataset.class_names == ("person", "zebra", "toothbrush") and dataset.category_ids == (1, 24, 90)
    example = dataset[0]
    assert example.image_id == 139 and example.image.shape == (H, W, 3)
    assert [(one.label, one.crowd) for one in example.instances] == [(1, False), (0, False), (0, True), (2, False)]
    masks = [ZEBRA, block(slice(2, 3), slice(2, 3)), CROWD, block(slice(0, 5), slice(0, 5))]
    for one, mask in zip(example.instances, masks, strict=True):
        assert one.mask["size"] == [H, W] and isinstance(one.mask["counts"], bytes)
        np.testing.assert_array_equal(decode(one), mask)


def test_coco_semantic_map_small_on_large_and_crowd_below_all(coco):
    semantic = read(coco)[0].semantic
    expected = [  # toothbrush 3 (25 pixels) under zebra 2 (13) under person 1 (1); void where only the crowd is
        [3, 3, 3, 3, 3, 255, 255, 255],
        [3, 2, 2, 2, 3, 255, 255, 255],
        [3, 2, 1, 2, 3, 255, 255, 255],
        [3, 2, 2, 2, 3, 255, 255, 255],
        [3, 3, 3, 3, 3, 255, 2, 2],
        [0, 0, 0, 0, 255, 255, 2, 2],
    ]
    assert semantic.dtype == np.uint8
    np.testing.assert_array_equal(semantic, expected)


def test_coco_image_without_annotations(coco):
    examples = list(read(coco))
    assert [(e.image_id, len(e.instances)) for e in examples] == [(139, 4), (285, 0), (9, 1)]
    assert examples[1].semantic.shape == (H, W) and not examples[1].semantic.any()


def test_coco_restricted_to_some_classes(coco):
    dataset = read(coco, ("zebra", "person"))
    assert dataset.class_names == ("zebra", "person") and dataset.category_ids == (24, 1)
    example = dataset[0]
    assert [one.label for one in example.instances] == [0, 1, 1]
    assert example.semantic[0, 0] == 0 and example.semantic[1, 1] == 1 and example.semantic[2, 2] == 2
    assert example.semantic[0, 4] == 255
    refuses(r"instances_val2017\.json has no class 'Zebra': choose from person, zebra", lambda: read(coco, ("Zebra",)))
    refuses("each once", lambda: read(coco, ("zebra", "zebra")))


def test_coco_broken_json(coco):
    file = coco / "annotations" / "instances_val2017.json"
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    refuses(r"instances_val2017\.json is no complete JSON", lambda: read(coco))
    file.write_text("[]")
    refuses("has no list 'images'", lambda: read(coco))
    file.write_text(json.dumps({k: v for k, v in json.loads(whole).items() if k != "annotations"}))
    refuses("has no list 'annotations'", lambda: read(coco))
    file.unlink()
    refuses(r"no annotations at .*instances_val2017\.json", lambda: read(coco))


def test_coco_references_to_nothing(coco):
    annotate(coco, ANNOTATIONS[0] | {"image_id": 140})
    refuses(r"annotation 0 of .*image_id 140 is not in 'images'", lambda: read(coco))
    annotate(coco, ANNOTATIONS[0] | {"category_id": 26})
    refuses(r"annotation 0 of .*category_id 26 is not in 'categories'", lambda: read(coco))
    annotate(coco, {"id": 5, "image_id": 139, "caption": "a zebra"})
    refuses(r"each of 'annotations' needs .*category_id", lambda: read(coco))


UNUSABLE = {
    "empty": [],
    "line": [[1, 1, 3, 3]],
    "turned": {"size": [W, H], "counts": [H * W]},
    "short": {"size": [H, W], "counts": [5, 3]},
    "nonsense": {"size": [H, W], "counts": "~~~~"},
    "null": None,
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_coco_unusable_mask_is_named(coco, kind):
    annotate(coco, ANNOTATIONS[0] | {"id": 77, "segmentation": UNUSABLE[kind]})
    refuses(r"annotation 77 of .*instances_val2017\.json is no valid mask", lambda: read(coco)[0])


def test_coco_pictures_missing_or_of_another_size(coco):
    picture = coco / "val2017" / "000000000009.jpg"
    Image.new("RGB", (H, W)).save(picture)
    refuses(r"000000000009\.jpg is 6 x 8 pixels, .* notes 8 x 6 pixels: download both again", lambda: read(coco)[2])
    picture.unlink()
    refuses(r"1 of 4 files .*000000000009\.jpg", lambda: read(coco))


# -- changed granularity ------------------------------------------------------------------------------------------


def test_groups_gather_classes_and_the_rest_is_background(voc):
    plain = VocDataset(voc, "val")
    dogs_first = Grouped(plain, {"animals": ["dog", "cat"], "household items": ["bottle", "tvmonitor"]})
    assert dogs_first.class_names == ("animals", "household items") and dogs_first.image_ids == plain.image_ids
    example = dogs_first[0]
    np.testing.assert_array_equal(example.semantic, np.select([CLASS_MAP == 12, CLASS_MAP == 20, CLASS_MAP == 255],
                                                              [1, 2, 255]))  # fmt: skip
    assert [one.label for one in example.instances] == [0, 0, 1]
    assert [one.mask for one in example.instances] == [one.mask for one in plain[0].instances]
    np.testing.assert_array_equal(example.image, plain[0].image)
    only = Grouped(plain, {"vehicles": ["car"], "screens": ["tvmonitor"]})[0]
    np.testing.assert_array_equal(only.semantic, np.select([CLASS_MAP == 20, CLASS_MAP == 255], [2, 255]))
    assert [one.label for one in only.instances] == [1]


def test_groups_that_cannot_be(voc):
    plain = VocDataset(voc, "val")
    refuses("groups: voc_val has no class 'wolf'", lambda: Grouped(plain, {"animals": ["dog", "wolf"]}))
    refuses("'dog' is claimed twice", lambda: Grouped(plain, {"animals": ["dog"], "pets": ["cat", "dog"]}))
