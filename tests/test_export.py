"""Exported data sets, read by tools that are not ours: pycocotools, supervision, torchvision, OpenCV."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import supervision
from PIL import Image
from pycocotools import mask as rle_codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.datasets import VOCSegmentation

from usam.annotation import export, outlines
from usam.annotation.inputs import RECORDS, InputImage
from usam.method.inference import LabelledMasks

NAMES = ["cat", "dog", "potted plant"]


def blobs(rng: np.random.Generator, height: int, width: int, smooth: float) -> np.ndarray:
    """A mask of any form, holes and parts included; dots where it is not smooth."""
    noise = rng.random((height, width)).astype(np.float32)
    return (cv2.GaussianBlur(noise, (0, 0), smooth) if smooth else noise) > 0.5


def by_pycocotools(rings: list[np.ndarray], height: int, width: int) -> np.ndarray:
    rles = rle_codec.frPyObjects([ring.ravel().tolist() for ring in rings], height, width)
    return rle_codec.decode(rle_codec.merge(rles)).astype(bool)


def filled(ring: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    drawn = np.zeros(shape, np.uint8)
    cv2.fillPoly(drawn, [ring.astype(np.int32)], 1)
    return drawn.astype(bool)


@pytest.mark.parametrize("seed", range(60))
def test_polygons_are_the_mask_again(seed):
    rng = np.random.default_rng(seed)
    height, width = map(int, rng.integers(1, 60, 2))
    mask = blobs(rng, height, width, smooth=seed % 4)
    mask[rng.integers(height), rng.integers(width)] = True
    np.testing.assert_array_equal(by_pycocotools(outlines.polygons(mask), height, width), mask)
    shares = np.array(export._object(mask, 0, 1.0)["yolo"].split()[1:], float).reshape(-1, 2)
    for whole in (np.round, np.floor):  # both are in use
        again = filled(whole(shares * (width, height)), mask.shape)
        parts, _ = cv2.connectedComponents(mask.astype(np.uint8))
        assert not (mask & ~again).any()
        assert parts > 2 or not (again & ~mask).any()  # ways between parts are all that is added


def test_one_pixel_and_a_ring_by_hand():
    dot = np.zeros((4, 5), bool)
    dot[2, 3] = True
    (ring,) = outlines.polygons(dot)
    assert sorted(map(tuple, ring.tolist())) == [(3, 2), (3, 2.5), (3.5, 2), (3.5, 2.5)]
    assert outlines.one_polygon(dot).tolist() == [[3, 2]] * 3
    ring = np.ones((9, 9), bool)
    ring[3:6, 3:6] = False
    assert len(outlines.polygons(ring)) == 1
    assert not by_pycocotools(outlines.polygons(ring), 9, 9)[4, 4]


def test_large_outlines_are_coarser_by_half_a_pixel_for_each_1024():
    mask = cv2.circle(np.zeros((2100, 2100), np.uint8), (1000, 1000), 800, 1, -1).astype(bool)
    (ring,) = outlines.polygons(mask)
    again = by_pycocotools([ring], 2100, 2100)
    assert len(ring) < 400
    assert (again ^ mask).sum() < 2 * 0.5 * 2 * np.pi * 800


@pytest.mark.parametrize("place", [np.s_[:, 3000:9000], np.s_[9, :], np.s_[:, 77], np.s_[3, 5]])
def test_thin_masks_on_large_images_still_have_an_outline(place):
    mask = np.zeros((10, 20_000), bool)
    mask[place] = True
    rings = outlines.polygons(mask)
    assert all(len(ring) >= 3 for ring in rings)
    again = by_pycocotools(rings, *mask.shape)
    assert (again & mask).sum() >= 0.9 * mask.sum() and again.sum() <= 1.1 * mask.sum()
    assert filled(outlines.one_polygon(mask), mask.shape).sum() >= 0.9 * mask.sum()


@pytest.fixture
def written(tmp_path) -> tuple[Path, dict[str, np.ndarray], dict[str, LabelledMasks]]:
    """A data set of three images, with the semantic maps that belong to them and the masks at their own size."""
    rng, rows, maps, found = np.random.default_rng(0), [], {}, {}
    for name, (height, width), count in (("one", (40, 60), 3), ("two", (64, 48), 2), ("empty", (30, 30), 0)):
        (tmp_path / "in").mkdir(exist_ok=True)
        file = tmp_path / "in" / f"{name}.png"
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(file)
        masks = np.zeros((count, height, width), bool)
        for k, mask in enumerate(masks):
            cv2.circle(drawn := np.zeros((height, width), np.uint8), (12 + 9 * k, 14 + 5 * k), 9, 1, -1)
            mask[:] = drawn
        found[name] = LabelledMasks(np.arange(count), np.arange(count) % 3, np.float32([0.9, 0.8, 0.7])[:count], masks)
        image, pixels = InputImage(file, file.name, name, 1, name), np.array(Image.open(file))
        extent = float(height), float(width)
        rows.append(export.write(tmp_path / "out", image, pixels, found[name], extent, NAMES, "key"))
        maps[name] = found[name].semantic_map()
    out = tmp_path / "out"
    export.finish(out, NAMES, rows, pd.DataFrame(columns=["original", "reason"]), {})
    return out, maps, found


def test_pycocotools_loads_and_evaluates_both_files(written):
    out, _, found = written
    for file in ("instances", "instances_polygons"):
        with redirect_stdout(io.StringIO()):
            truth = COCO(out / "annotations" / f"{file}.json")
            detections = truth.loadRes([dict(one) for one in truth.anns.values()])
            scores = COCOeval(truth, detections, "segm")
            scores.evaluate(), scores.accumulate(), scores.summarize()
        assert scores.stats[0] == pytest.approx(1)
        assert [c["name"] for c in truth.loadCats(truth.getCatIds())] == NAMES
        for image in truth.loadImgs(truth.getImgIds()):
            name = image["file_name"].removesuffix(".jpg")
            annotations = truth.loadAnns(truth.getAnnIds(image["id"]))
            masks = [truth.annToMask(one).astype(bool) for one in annotations]
            assert [one["category_id"] - 1 for one in annotations] == found[name].labels.tolist()
            np.testing.assert_allclose([one["score"] for one in annotations], found[name].scores, atol=1e-5)
            assert all((a == b).all() for a, b in zip(masks, found[name].masks, strict=True))
            assert [one["area"] for one in annotations] == [mask.sum() for mask in masks]


def test_supervision_reads_the_same_masks_from_coco_and_yolo(written):
    out, _, found = written
    images = str(out / "images")
    coco = supervision.DetectionDataset.from_coco(images, str(out / "annotations/instances.json"), force_masks=True)
    yolo = supervision.DetectionDataset.from_yolo(images, str(out / "labels"), str(out / "data.yaml"), force_masks=True)
    assert coco.classes == yolo.classes == NAMES
    assert {Path(place).stem for place in coco.annotations} == set(found)
    for place, ours in coco.annotations.items():
        (theirs,) = [one for where, one in yolo.annotations.items() if Path(where).stem == Path(place).stem]
        masks = found[Path(place).stem].masks
        assert len(ours) == len(theirs) == len(masks)
        if len(masks):
            np.testing.assert_array_equal(ours.mask, masks)
            np.testing.assert_array_equal(theirs.mask, masks)
            assert ours.class_id.tolist() == theirs.class_id.tolist()


def test_torchvision_reads_the_voc_maps(written):
    out, maps, _ = written
    data = VOCSegmentation(out, year="2012", image_set="train", download=False)
    assert [Path(file).stem for file in data.images] == list(maps)
    for (image, target), semantic in zip(data, maps.values(), strict=True):
        assert target.mode == "P" and image.size == target.size
        np.testing.assert_array_equal(np.asarray(target), semantic)


def test_pages_show_the_least_certain_first_and_link_to_what_is_there(written):
    out, _, _ = written
    page = (out / "index.html").read_text()
    assert page.index("overlays/empty.jpg") < page.index("overlays/two.jpg")
    table = pd.read_csv(out / "images.csv")
    errors = table["expected_error"].tolist()
    assert errors == sorted(errors, reverse=True) and errors[0] == 1
    assert json.loads((out / "provenance.json").read_text())["images"] == 3
    assert set(pd.read_csv(out / "images.csv")["objects"]) == {0, 2, 3}


def test_more_pages_than_one(written, monkeypatch):
    out, _, _ = written
    monkeypatch.setattr(export, "PAGE", 2)
    records = [json.loads(p.read_text())["row"] for p in sorted((out / RECORDS).glob("*.json"))]
    export.finish(out, NAMES, records, pd.DataFrame(columns=["original", "reason"]), {})
    assert 'href="page_2.html"' in (out / "index.html").read_text()
    assert (out / "page_2.html").read_text().count("<figure>") == 1
    export.finish(out, NAMES, records[:1], pd.DataFrame(columns=["original", "reason"]), {})
    assert not (out / "page_2.html").exists() and len(list((out / "images").iterdir())) == 1
