"""Annotated images as a data set in the formats of COCO, YOLO and PASCAL VOC, with pages to look through.

    index.html                               all images, highest expected error first
    images/NAME.jpg                          upright; a JPEG that is upright already is copied as it is
    overlays/NAME.jpg                        the image with its masks, at most 640 pixels wide and high
    annotations/instances.json               COCO, masks as run lengths (RLE): exact
    annotations/instances_polygons.json      COCO, masks as polygons
    labels/NAME.txt, data.yaml               YOLO segmentation
    VOCdevkit/VOC2012/                       PASCAL VOC: SegmentationClass/NAME.png, one value per class
    images.csv, skipped.csv                  one row per image
    provenance.json                          all that is needed to make the data set again
    .records/                                what was found in each image, so that a run can be resumed

Outlines are exact for images below 1024 pixels; above, they are a pixel off, and half a pixel more for each 1024.
"""

import html
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image, ImageDraw
from pycocotools import mask as rle_codec

from usam.annotation.inputs import RECORDS, InputImage
from usam.annotation.outlines import one_polygon, polygons
from usam.data import image_files
from usam.data.voc import voc_palette
from usam.files import PART_DIGITS, no_formula, sha256, write_atomically, writing
from usam.method.inference import LabelledMasks
from usam.method.masks import masks_to_rle, to_image_size
from usam.report import figures

VOC = "VOCdevkit/VOC2012"
FILES = (  # of an image
    "images/{}.jpg",
    f"{VOC}/JPEGImages/{{}}.jpg",
    f"{VOC}/SegmentationClass/{{}}.png",
    "labels/{}.txt",
    "overlays/{}.jpg",
)
COCO_FILES = {"instances.json": "segmentation", "instances_polygons.json": "polygons"}  # and the key of their masks
OVERLAY_SIDE = 640  # pixels of the longer side
PAGE = 500  # images on a page
COLUMNS = ["name", "original", "width", "height", "objects", "labelled", "expected_error", "sha256", "classes"]


def finished_row(out: Path, name: str, key: str) -> dict[str, Any] | None:
    """The row that `write` returned for an image, if its key was the same and all its files are still there."""
    try:
        record = json.loads((out / RECORDS / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None
    complete = record.get("key") == key and all((out / file.format(name)).is_file() for file in FILES)
    return record["row"] if complete else None


def write(
    out: Path,
    image: InputImage,
    pixels: np.ndarray,
    found: LabelledMasks,
    extent: tuple[float, float],
    names: Sequence[str],
    key: str,
) -> dict[str, Any]:
    """Write all files of an image, its record last; returns its row of images.csv.

    `found` are masks at the size at which they are stored, `extent` is that of the image on them.
    """
    record = out / RECORDS / f"{image.name}.json"
    record.unlink(missing_ok=True)  # its files are about to be replaced
    semantic, objects = _drawn(found, extent, pixels.shape[:2])
    row = dict(
        name=image.name,
        original=image.original,
        width=pixels.shape[1],
        height=pixels.shape[0],
        objects=len(objects),
        labelled=round(float((semantic > 0).mean()), 4),
        expected_error=round(expected_error(found), 4) if objects else 1.0,
        sha256=sha256(image.file),
        classes=sorted({one["category_id"] - 1 for one in objects}),
    )
    jpeg, voc_jpeg, voc_png, labels, overlay = (out / file.format(image.name) for file in FILES)
    write_atomically(jpeg, _jpeg(image.file, pixels))
    _link(jpeg, voc_jpeg)
    palette = Image.fromarray(semantic, "P")
    palette.putpalette(voc_palette())
    write_atomically(voc_png, _encoded(palette, "PNG"))
    write_atomically(labels, "".join(f"{one['yolo']}\n" for one in objects))
    write_atomically(overlay, _encoded(_overlay(pixels, found, extent, names), "JPEG", quality=85))
    write_atomically(record, json.dumps({"key": key, "row": row, "objects": objects}))
    return row


def expected_error(found: LabelledMasks) -> float:
    """The share of an image whose label must be expected to be wrong: the mean of 1 - score over all pixels, 0 where no
    mask is painted; 1 for an image in which nothing was found.

    Images sorted by it show a person more of the wrong pixels sooner than the masks' mean or lowest score does, on the
    miniature's validation split.
    """
    if not found.masks.any():
        return 1.0
    wrong = np.zeros(found.masks.shape[1:], np.float32)
    for mask, score in zip(found.masks[::-1], found.scores[::-1], strict=True):
        wrong[mask] = 1 - score
    return float(wrong.mean())


def _drawn(found: LabelledMasks, extent: tuple[float, float], size: tuple[int, int]) -> tuple[np.ndarray, list[dict]]:
    """The semantic map, and the objects, highest score first."""
    semantic, objects = np.zeros(size, np.uint8), []
    for k in range(len(found.labels))[::-1]:  # one mask in memory; the highest score is painted last
        (mask,) = to_image_size(found.masks[k : k + 1], extent, size)
        if mask.any():
            semantic[mask] = found.labels[k] + 1
            objects.append(_object(mask, int(found.labels[k]), float(found.scores[k])))
    return semantic, objects[::-1]


def _object(mask: np.ndarray, label: int, score: float) -> dict[str, Any]:
    """COCO's annotation without its ids, `segmentation` as RLE; beside it `polygons`, and a line for `yolo`.

    YOLO's coordinates lie a quarter into the pixel, so that both rounding and cutting off find it.
    """
    (rle,) = masks_to_rle(mask[None])
    shares = ((one_polygon(mask) + 0.25) / mask.shape[::-1]).ravel()
    return {
        "category_id": label + 1,
        "bbox": rle_codec.toBbox(rle).tolist(),
        "area": int(rle_codec.area(rle)),
        "iscrowd": 0,
        "score": round(score, 5),
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        "polygons": [ring.ravel().tolist() for ring in polygons(mask)],
        "yolo": " ".join([str(label), *(f"{value:.7f}" for value in shares)]),
    }


def _jpeg(file: Path, pixels: np.ndarray) -> bytes:
    """The file itself if it is an upright RGB or grey JPEG; otherwise the image is encoded."""
    with Image.open(file) as image:
        if image.format == "JPEG" and image.mode in ("RGB", "L") and image.getexif().get(0x0112, 1) == 1:
            return file.read_bytes()
    return _encoded(Image.fromarray(pixels), "JPEG", quality=95, subsampling=0)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    image.save(content := io.BytesIO(), kind, **options)
    return content.getvalue()


def _link(file: Path, other: Path) -> None:
    """Give the file a second name; copy it where the file system has no hard links."""
    with writing(other):
        other.parent.mkdir(parents=True, exist_ok=True)
        other.unlink(missing_ok=True)
        try:
            os.link(file, other)
        except OSError:
            shutil.copyfile(file, other)


def _overlay(
    pixels: np.ndarray, found: LabelledMasks, extent: tuple[float, float], names: Sequence[str]
) -> Image.Image:
    """The image with its masks and their class names."""
    small = image_files.contained(Image.fromarray(pixels), OVERLAY_SIDE, OVERLAY_SIDE)
    labels = found.labels[::-1]
    masks = to_image_size(found.masks, extent, small.size[::-1])[::-1]  # the highest score on top
    image = Image.fromarray(figures.overlay(np.asarray(small), masks, figures.class_colors(len(names))[labels]))
    draw, style = ImageDraw.Draw(image), dict(font_size=20, anchor="mm", stroke_width=2, stroke_fill="black")
    for mask, label in zip(masks, labels, strict=True):
        if mask.any():
            draw.text(figures.middle(mask), names[label], "white", **style)
    return image


def finish(
    out: Path, names: Sequence[str], rows: Sequence[dict[str, Any]], skipped: pd.DataFrame, provenance: dict[str, Any]
) -> pd.DataFrame:
    """Write the files of the whole data set, and remove those of images that no longer belong to it.

    `rows` are what `write` returned for each image; they come back as a table, highest expected error first.
    """
    if removed := _clean(out, {row["name"] for row in rows}):
        print(f"{removed} images of an earlier run are not in this one: removed from {out.name}")
    _write_coco(out, names, rows)
    for split in ("train", "trainval"):
        listing = "".join(f"{row['name']}\n" for row in rows)
        write_atomically(out / VOC / "ImageSets" / "Segmentation" / f"{split}.txt", listing)
    yolo = {"train": "images", "val": "images", "names": list(names)}
    write_atomically(out / "data.yaml", yaml.safe_dump(yolo, sort_keys=False))
    table = pd.DataFrame(rows, columns=COLUMNS)
    table = table.sort_values(["expected_error", "name"], ascending=[False, True], ignore_index=True)
    _write_pages(out, names, table)
    for name, content in {"images": table.drop(columns="classes"), "skipped": skipped}.items():
        safe = content.assign(original=content["original"].map(no_formula))
        write_atomically(out / f"{name}.csv", safe.to_csv(index=False))
    counts = {"images": len(table), "skipped": len(skipped), "made with": "usam.annotate"}
    write_atomically(out / "provenance.json", json.dumps(provenance | counts, indent=1))
    return table.drop(columns=["sha256", "classes"])


def _clean(out: Path, names: set[str]) -> int:
    """Remove files of other images, and half-written ones of a killed run; returns the number of images removed."""
    patterns = (*FILES, f"{RECORDS}/{{}}.json")
    others = [file for some in patterns for file in out.glob(some.format("*")) if file.stem not in names]
    folders = {(out / some).parent for some in (*patterns, "index.html", f"{VOC}/ImageSets/Segmentation/train.txt")}
    halves = [file for folder in folders for file in folder.glob(f".{'[0-9a-f]' * PART_DIGITS}.part")]
    for file in (*others, *halves, *out.glob("page_*.html")):
        file.unlink()
    return sum(file.parent.name == RECORDS for file in others)


def _write_coco(out: Path, names: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Both json files, image by image: memory does not grow with the number of masks."""
    folder = out / "annotations"
    categories = json.dumps([{"id": k, "name": name} for k, name in enumerate(names, 1)])
    copied = ("width", "height", "original", "expected_error")
    images = [
        json.dumps({"id": k, "file_name": f"{row['name']}.jpg"} | {key: row[key] for key in copied})
        for k, row in enumerate(rows, 1)
    ]
    for name, kind in COCO_FILES.items():
        part = folder / f".{name}.part"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with open(part, "w", encoding="utf-8") as file:
                file.write('{"info": {"description": "made by U-SAM from class names"}, "licenses": [],\n')
                file.write(f'"categories": {categories},\n"images": [\n')
                file.write(",\n".join(images) + '\n],\n"annotations": [\n')
                for number, one in enumerate(_annotations(out, rows, kind), 1):
                    file.write((",\n" if number > 1 else "") + json.dumps({"id": number} | one))
                file.write("\n]}\n")
            os.replace(part, folder / name)


def _annotations(out: Path, rows: Sequence[dict[str, Any]], kind: str) -> Iterator[dict[str, Any]]:
    """COCO's annotations from the records, without ids of their own."""
    for image_id, row in enumerate(rows, 1):
        for one in json.loads((out / RECORDS / f"{row['name']}.json").read_text())["objects"]:
            rest = {key: value for key, value in one.items() if key not in ("segmentation", "polygons", "yolo")}
            yield {"image_id": image_id} | rest | {"segmentation": one[kind]}


HEAD = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 1.5rem; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
figure { margin: 0; } img { width: 100%; height: 13rem; object-fit: contain; background: #8882; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; } nav a { margin-right: 1rem; }
</style>
"""


def _write_pages(out: Path, names: Sequence[str], table: pd.DataFrame) -> None:
    parts = [table.iloc[k : k + PAGE] for k in range(0, max(len(table), 1), PAGE)]
    files = ["index.html", *(f"page_{k}.html" for k in range(2, len(parts) + 1))]
    links = "".join(f'<a href="{file}">{k}</a>' for k, file in enumerate(files, 1)) if len(files) > 1 else ""
    title = f"{len(table)} annotated images"
    about = f"""{table["objects"].sum()} objects of {html.escape(", ".join(names))}. Images with the highest expected
pixel error come first: those without any object, then those of which a large share is probably labelled wrongly (large
masks with low scores). Click an image to see it without masks."""
    for file, part in zip(files, parts, strict=True):
        shown = "\n".join(_figure(row, names) for row in part.to_dict("records"))
        write_atomically(
            out / file,
            f"{HEAD}<title>{title}</title>\n<h1>{title}</h1>\n<p>{about}</p>\n<nav>{links}</nav>\n"
            f"<main>\n{shown}\n</main>\n<nav>{links}</nav>\n</html>\n",
        )


def _figure(row: dict[str, Any], names: Sequence[str]) -> str:
    original, file = html.escape(row["original"]), html.escape(f"{row['name']}.jpg")
    found = html.escape(", ".join(names[k] for k in row["classes"]) or "nothing found")
    return (
        f'<figure><a href="images/{file}"><img src="overlays/{file}" loading="lazy" alt="{original}: {found}"></a>'
        f"<figcaption>{original}<br>{found}; expected error {row['expected_error']:.2f}</figcaption></figure>"
    )
