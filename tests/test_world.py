"""The drawn world: drawings, pictures and their maps, splits, and the data sets written for the readers."""

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as rle_codec

from miniature import datasets, world
from miniature.datasets import drawing_of, voc_palette, write_coco, write_voc
from miniature.shapes import Part, bounds
from miniature.splits import SPLITS, rng_of
from miniature.world import DRAWINGS, SCENE_SIZES, Picture, draw, scene, studio, web
from usam.data.class_names import COCO, VOC
from usam.data.coco import CocoDataset
from usam.data.datasets import VOID
from usam.data.voc import VocDataset
from usam.errors import UserError

scene_of = datasets.test_scene  # under another name: pytest would take it for a test


def same(one: list[Part], other: list[Part]) -> bool:
    return len(one) == len(other) and all(
        (a.name, a.color, a.detail) == (b.name, b.color, b.detail)
        and all(np.array_equal(c, d) for c, d in zip(a.contours, b.contours, strict=True))
        for a, b in zip(one, other, strict=True)
    )


# -- drawings -----------------------------------------------------------------------------------------------------


def test_all_of_voc_and_at_least_twelve_more_of_coco_are_drawn():
    assert set(VOC) <= set(DRAWINGS)
    coco = [name for name in COCO.values() if drawing_of(name) in DRAWINGS]
    assert set(DRAWINGS) == set(VOC) | {drawing_of(name) for name in coco}  # no drawing without a class
    assert len(set(DRAWINGS) - set(VOC)) >= 12


@pytest.mark.parametrize("name", sorted(DRAWINGS))
def test_drawing(name):
    individuals = [DRAWINGS[name](np.random.default_rng(seed)) for seed in range(20)]
    for parts in individuals:
        assert not parts[0].detail  # a mark needs a part under it
        for part in parts:
            assert part.name and all(0 <= channel <= 1 for channel in part.color) and len(part.color) == 3
            for contour in part.contours:
                assert contour.dtype == np.float32 and contour.ndim == 2 and contour.shape[1] == 2 and len(contour) >= 3
                assert np.isfinite(contour).all()
        low, high = bounds(parts)
        assert (high - low).min() > 0.3 and max(np.abs(low).max(), np.abs(high).max()) < 2.5
        assert sum(not part.detail for part in parts) <= 25  # with 8 objects and 10 blobs, part numbers fit a byte
    assert same(individuals[3], DRAWINGS[name](np.random.default_rng(3)))
    assert not any(same(individuals[0], other) for other in individuals[1:])  # individuals differ


def test_drawing_fills_the_unit_square():
    for seed in range(5):
        low, high = bounds(draw("giraffe", np.random.default_rng(seed)))
        assert (high - low).max() == pytest.approx(2, rel=1e-5)
        np.testing.assert_allclose(low + high, 0, atol=1e-5)


def test_unknown_drawing():
    with pytest.raises(UserError, match=r"no 'unicorn': choose from aeroplane, .*zebra"):
        studio("unicorn", np.random.default_rng(0))


# -- pictures -----------------------------------------------------------------------------------------------------


def assert_consistent(picture: Picture, size: tuple[int, int]) -> None:
    assert picture.image.shape == (*size, 3) and picture.image.dtype == np.uint8
    for map_ in (picture.objects, picture.parts):
        assert map_.shape == size and map_.dtype == np.uint8
    np.testing.assert_array_equal(picture.parts > 0, picture.objects > 0)
    assert picture.objects.max() <= len(picture.names) and picture.parts.max() <= len(picture.part_of) < 256
    owners = np.array([0, *(number for number, _ in picture.part_of)])
    np.testing.assert_array_equal(owners[picture.parts], picture.objects)
    assert {number for number, _ in picture.part_of} == set(range(1, len(picture.names) + 1))


@pytest.mark.parametrize("seed", range(12))
def test_scene(seed):
    rng = np.random.default_rng(seed)
    names = [str(n) for n in rng.choice(sorted(DRAWINGS), 1 + seed % 5)]
    individuals = [(name, draw(name, rng)) for name in names]
    picture = scene(individuals, rng)
    assert picture.image.shape[:2] in SCENE_SIZES
    assert_consistent(picture, picture.image.shape[:2])
    assert sorted(n for n in picture.names if n) == sorted(names) and picture.names.count(None) <= 4


def test_same_generator_same_picture_other_generator_other_picture():
    def one(seed: int) -> Picture:
        rng = np.random.default_rng(seed)
        return scene([("cow", draw("cow", rng)), ("bus", draw("bus", rng))], rng)

    first, again, other = one(0), one(0), one(1)
    for field in ("image", "objects", "parts"):
        np.testing.assert_array_equal(getattr(first, field), getattr(again, field))
    assert (first.names, first.part_of) == (again.names, again.part_of)
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_scene_sizes_have_both_orientations_and_all_occur():
    assert {np.sign(h - w) for h, w in SCENE_SIZES} == {-1, 0, 1}
    seen = {scene([], np.random.default_rng(seed)).image.shape[:2] for seed in range(40)}
    assert seen == set(SCENE_SIZES)
    assert scene([], np.random.default_rng(0), size=(64, 80)).image.shape == (64, 80, 3)


@pytest.mark.parametrize("name", ["dog", "bicycle", "pizza"])
def test_studio_shows_one_whole_object_in_the_middle(name):
    for seed in range(6):
        picture = studio(name, np.random.default_rng(seed))
        assert_consistent(picture, (192, 192))
        assert picture.names == (name,)
        y, x = np.nonzero(picture.objects)
        assert 0.5 * 192 < max(np.ptp(y), np.ptp(x)) < 192
        border = np.ones((192, 192), bool)
        border[1:-1, 1:-1] = False
        assert (picture.objects[border] > 0).sum() < 30  # now and then a tip is cut off, never more
        assert abs((y.min() + y.max()) / 2 - 96) < 20 and abs((x.min() + x.max()) / 2 - 96) < 20


def test_web_comes_in_three_sizes():
    pictures = [web("car", np.random.default_rng(seed)) for seed in range(20)]
    assert {p.image.shape[:2] for p in pictures} == {(192, 192), (160, 224), (224, 160)}
    for picture in pictures:
        assert_consistent(picture, picture.image.shape[:2])


def test_the_webs_images():
    image = datasets.web("airplane", 3)
    assert image.dtype == np.uint8 and image.ndim == 3
    np.testing.assert_array_equal(image, datasets.web("airplane", 3))
    for other in (datasets.web("airplane", 4), datasets.web("tv", 3)):
        assert other.shape != image.shape or (other != image).mean() > 0.1
    drawn = world.web("aeroplane", rng_of("train", "web", "airplane", 3, 0)).image
    np.testing.assert_array_equal(drawn, image)


# -- splits -------------------------------------------------------------------------------------------------------


def test_splits_share_no_random_numbers():
    keys = [(), (0,), ("voc", 0), ("voc", 1), ("coco", 0), ("studio", "dog", 0, 0), ("web", "dog", 0, 0)]
    draws = {(split, key): rng_of(split, *key).integers(0, 2**63) for split in SPLITS for key in keys[1:]}
    assert len(set(draws.values())) == len(draws) == 4 * 6
    assert len({rng_of(split).integers(0, 2**63) for split in SPLITS}) == 4
    assert draws["test", ("voc", 1)] == rng_of("test", "voc", 1).integers(0, 2**63)


def test_training_validation_and_test_scenes_differ():
    scenes = [scene_of(split, "voc", 0, list(VOC)) for split in ("train", "val", "test")]
    for one, other in itertools.combinations(scenes, 2):
        assert one.image.shape != other.image.shape or (one.image != other.image).mean() > 0.5
    assert all("aeroplane" in one.names for one in scenes)  # classes take turns


def test_vocs_scenes_are_drawn_as_they_always_were():
    digest, means = hashlib.sha256(), []
    for split, k in itertools.product(("test", "val"), range(4)):
        picture = scene_of(split, "voc", k, list(VOC))
        digest.update(picture.objects.tobytes() + picture.parts.tobytes() + repr(picture.names).encode())
        means.append(picture.image.mean())  # a mean: other processors may round a colour differently
    assert digest.hexdigest()[:16] == "b43214cc279546f4"
    np.testing.assert_allclose(means, [112.5, 129.5, 120.5, 160.2, 122.7, 92.9, 165.4, 109.4], atol=0.1)


def shares(dataset: str, names: list[str]) -> list[np.ndarray]:
    """Of 40 scenes, the share of the picture that each object covers."""
    scenes = [scene_of("test", dataset, k, names) for k in range(40)]
    return [np.array([mask.mean() for _, mask in visible(picture)]) for picture in scenes]


def test_cocos_scenes_have_more_and_smaller_objects_than_vocs():
    drawn = [name for name in COCO.values() if drawing_of(name) in DRAWINGS]
    voc, coco = shares("voc", list(VOC)), shares("coco", drawn)
    assert np.mean([len(one) for one in coco]) >= 1.5 * np.mean([len(one) for one in voc])
    (small, large), median = np.quantile(np.concatenate(coco), [0.1, 0.9]), np.median(np.concatenate(coco))
    assert 0.01 < median < 0.5 * np.median(np.concatenate(voc))
    assert small < 0.01 and large > 0.05  # a tail to both sides


def test_objects_of_a_crowded_scene_seldom_hide_each_other():
    drawn = [name for name in COCO.values() if drawing_of(name) in DRAWINGS]
    asked = found = 0
    for k in range(40):
        picture = scene_of("test", "coco", k, drawn)
        asked, found = asked + sum(name is not None for name in picture.names), found + len(visible(picture))
    assert found >= 0.98 * asked


# -- data sets ----------------------------------------------------------------------------------------------------


def test_palette_is_vocs():
    colors = np.array(voc_palette()).reshape(256, 3).tolist()
    official = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128],
                [128, 128, 128], [64, 0, 0], [192, 0, 0], [64, 128, 0], [192, 128, 0]]  # fmt: skip
    assert colors[:12] == official and colors[20] == [0, 64, 128] and colors[255] == [224, 224, 192]


def visible(picture: Picture) -> list[tuple[str, np.ndarray]]:
    """Name and mask of each object of which at least 20 pixels show."""
    masks = [(name, picture.objects == k) for k, name in enumerate(picture.names, 1) if name is not None]
    return [(name, mask) for name, mask in masks if mask.sum() >= 20]


def test_voc_folder_reads_back_as_drawn(tmp_path):
    root = tmp_path / "VOC 2012"
    write_voc(root, {"test": 3, "val": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["VOC 2012"]
    assert len(VocDataset(root, "val")) == 1
    found = VocDataset(root, "test")
    assert found.image_ids == ["test_000000", "test_000001", "test_000002"]
    for k in range(3):
        picture, example = scene_of("test", "voc", k, list(VOC)), found[k]
        assert np.abs(example.image.astype(int) - picture.image).mean() < 6  # JPEG
        counted = example.semantic != VOID
        assert 0.5 < counted.mean() < 1 and set(np.unique(picture.objects[~counted])) != {0}
        drawn = np.zeros(picture.objects.shape, np.uint8)
        for name, mask in visible(picture):
            drawn[mask] = VOC.index(name) + 1
        np.testing.assert_array_equal(example.semantic[counted], drawn[counted])
        left = [(VOC.index(name), mask & counted) for name, mask in visible(picture) if (mask & counted).any()]
        assert [i.label for i in example.instances] == [label for label, _ in left]
        for instance, (_, mask) in zip(example.instances, left, strict=True):
            np.testing.assert_array_equal(rle_codec.decode(instance.mask).astype(bool), mask)


def test_void_border_runs_around_objects(tmp_path):
    write_voc(tmp_path / "voc", {"test": 1}, ["cow"])
    semantic = VocDataset(tmp_path / "voc", "test")[0].semantic
    cow, nothing = semantic == VOC.index("cow") + 1, semantic == 0
    assert cow.any() and nothing.any()
    assert not (cow[:, 1:] & nothing[:, :-1]).any() and not (cow[1:] & nothing[:-1]).any()  # they never touch


def test_no_split_shares_an_image_with_another(tmp_path):
    images = {"train": 5, "val": 5, "test": 5}
    write_voc(tmp_path / "voc", images, ["car", "dog"])
    write_coco(tmp_path / "coco", images, ["car", "dog"])
    for folder in ("voc", "coco"):
        files = [file.read_bytes() for file in (tmp_path / folder).rglob("*.jpg")]
        assert len(files) == len(set(files)) == 15
    assert len(VocDataset(tmp_path / "voc", "train")) == len(CocoDataset(tmp_path / "coco", "train2017")) == 5


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world") / "coco"
    write_coco(root, {"test": 40})
    return root


def test_coco_has_every_form_of_mask(coco):
    content = json.loads((coco / "annotations" / "instances_val2017.json").read_text())
    ids = [c["id"] for c in content["categories"]]
    assert ids == sorted(ids) and all(COCO[c["id"]] == c["name"] for c in content["categories"]) and max(ids) > 80
    annotations = content["annotations"]
    assert [a["id"] for a in annotations] == list(range(1, len(annotations) + 1))
    polygons = [a for a in annotations if isinstance(a["segmentation"], list)]
    plain = [
        a for a in annotations if isinstance(a["segmentation"], dict) and isinstance(a["segmentation"]["counts"], list)
    ]
    compressed = [a for a in annotations if isinstance(a["segmentation"], dict) and a not in plain]
    assert polygons and compressed and plain
    assert all(a["iscrowd"] for a in plain) and not any(a["iscrowd"] for a in polygons + compressed)
    annotated = {a["image_id"] for a in annotations}
    assert annotated < {i["id"] for i in content["images"]}  # some images have no annotation


def test_coco_reads_back_as_drawn(coco):
    found = CocoDataset(coco, "val2017")
    assert len(found) == 40 and all(COCO[i] == n for i, n in zip(found.category_ids, found.class_names, strict=True))
    names = [n for n in COCO.values() if drawing_of(n) in DRAWINGS]
    exact = total = 0
    for k in range(40):
        example = found[k]
        if not example.instances:
            assert not example.semantic.any()
            continue
        picture = scene_of("test", "coco", k, names)
        assert np.abs(example.image.astype(int) - picture.image).mean() < 6
        drawn = visible(picture)
        assert [found.class_names[i.label] for i in example.instances] == [name for name, _ in drawn]
        for instance, (_, mask) in zip(example.instances, drawn, strict=True):
            read = rle_codec.decode(instance.mask).astype(bool)
            if instance.crowd:
                np.testing.assert_array_equal(read, mask)  # run lengths are exact
            assert (read & mask).sum() / (read | mask).sum() > 0.95
            exact, total = exact + np.array_equal(read, mask), total + 1
    assert total > 40 and exact > 0.2 * total


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_uncompressed_run_lengths_equal_the_mask(first, last):
    mask = np.random.default_rng(0).random((5, 7)) < 0.5
    mask[0, 0], mask[-1, -1] = first, last
    rle = datasets._uncompressed(mask)
    assert sum(rle["counts"]) == 35 and (rle["counts"][0] == 0) == first and all(rle["counts"][1:])
    decoded = rle_codec.decode(rle_codec.frPyObjects(rle, 5, 7)).astype(bool)
    np.testing.assert_array_equal(decoded, mask)


def test_polygon_of_a_known_shape():
    y, x = np.mgrid[:40, :50]
    disc = (y - 20) ** 2 + (x - 25) ** 2 < 150
    annotation = datasets._annotation(1, 2, 3, disc, crowd=False)
    assert isinstance(annotation["segmentation"], list) and len(annotation["segmentation"]) == 1
    drawn = rle_codec.decode(rle_codec.merge(rle_codec.frPyObjects(annotation["segmentation"], 40, 50))).astype(bool)
    assert (drawn & disc).sum() / (drawn | disc).sum() > 0.97
    assert annotation["bbox"] == [13, 8, 25, 25] and annotation["area"] == disc.sum()  # |x - 25|, |y - 20| <= 12
    disc[18:22, 23:27] = False
    assert isinstance(datasets._annotation(1, 2, 3, disc, crowd=False)["segmentation"], dict)  # a hole


@pytest.mark.parametrize(
    "write, images, names, message",
    [
        (write_voc, {"trainval": 1}, None, "split 'trainval': choose from train, val, test"),
        (write_coco, {"minival": 1}, None, "split 'minival': choose from train, val, test"),
        (write_voc, {"test": 1}, ["dog", "unicorn"], "class 'unicorn': choose from aeroplane,"),
        (write_voc, {"test": 1}, ["pizza"], "class 'pizza'"),  # drawn, but not one of VOC's
        (write_coco, {"test": 1}, ["aeroplane"], "class 'aeroplane'.* airplane"),  # COCO writes it otherwise
        (write_coco, {"test": 1}, ["toothbrush"], "class 'toothbrush'"),  # COCO's, but not drawn
    ],
)
def test_bad_request_is_refused_before_anything_is_written(tmp_path, write, images, names, message):
    with pytest.raises(UserError, match=message):
        write(tmp_path / "set", images, names)
    assert not list(tmp_path.iterdir())


def test_writing_again_replaces_a_leftover_half(tmp_path):
    half = tmp_path / "set.part"
    half.mkdir()
    (half / "junk").touch()
    write_voc(tmp_path / "set", {"test": 1}, ["cat"])
    assert not half.exists() and not (tmp_path / "set" / "junk").exists()
