"""Annotated pictures as a data set that other tools read: COCO, PASCAL VOC, YOLO, and pages to look at.

    index.html                               pictures, the most doubtful first
    images/NAME.jpg                          upright; a JPEG that is so already, as it was
    overlays/NAME.jpg                        with their masks, at most 640 pixels wide or high
    annotations/instances.json               COCO, masks as RLE: exact
    annotations/instances_polygons.json      COCO, masks as polygons
    labels/NAME.txt, data.yaml               YOLO segmentation
    VOCdevkit/VOC2012/                       PASCAL VOC: SegmentationClass/NAME.png, a value a class
    pictures.csv, skipped.csv                one row a picture
    provenance.json                          how to make all of it again
    .records/                                a picture's answer, so that a run can go on

Outlines are exact for images below 1024 pixels; above, a pixel off, and half a pixel more for each 1024.
"""

import html
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from PIL import Image, ImageDraw
from pycocotools import mask as rle_codec

from usam.annotation.outlines import one_polygon, polygons
from usam.data import image_files
from usam.data.voc import voc_palette
from usam.files import sha256, write_atomically, writing
from usam.method import inference
from usam.method.inference import LabelledMasks
from usam.method.masks import masks_to_rle, to_image_size
from usam.report import figures

RECORDS = ".records"
VOC = "VOCdevkit/VOC2012"
FILES = (  # of a picture
    "images/{}.jpg",
    "overlays/{}.jpg",
    "labels/{}.txt",
    f"{VOC}/JPEGImages/{{}}.jpg",
    f"{VOC}/SegmentationClass/{{}}.png",
)
OVERLAY, PAGE = 640, 500  # pixels of the longer side; pictures on a page


class Answer(NamedTuple):
    """What was found on a picture.

    Attributes:
        name: of its files.
        original: its path, to be written down.
        file: where it lies.
        image: (H, W, 3) uint8 RGB.
        found: masks as small as SAM's decoder draws them.
        extent: of the image on those masks, as in `MaskEmbeddings`.
    """

    name: str
    original: str
    file: Path
    image: np.ndarray
    found: LabelledMasks
    extent: tuple[float, float]


def answered(out: Path, name: str, key: str) -> dict[str, Any] | None:
    """The summary that `write` returned for a picture, if it was with this key and all files are there."""
    try:
        record = json.loads((out / RECORDS / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None
    whole = record.get("key") == key and all((out / file.format(name)).is_file() for file in FILES)
    return record["summary"] if whole else None


def write(out: Path, answer: Answer, names: Sequence[str], key: str) -> dict[str, Any]:
    """Write all files of a picture, its record last; returns its row of pictures.csv."""
    (out / RECORDS / f"{answer.name}.json").unlink(missing_ok=True)  # of other settings: its files go now
    size = height, width = answer.image.shape[:2]
    semantic = np.zeros(size, np.uint8)
    objects, lines = [], []
    for k in range(len(answer.found.labels))[::-1]:  # one full-size mask at a time; the highest score is painted last
        (mask,) = to_image_size(answer.found.masks[k : k + 1], answer.extent, size)
        if mask.any():
            label = int(answer.found.labels[k])
            semantic[mask] = label + 1
            objects.append(_coco(mask, label, float(answer.found.scores[k])))
            lines.append(" ".join([str(label), *_numbers(one_polygon(mask), width, height)]))
    summary = dict(
        name=answer.name,
        original=answer.original,
        width=width,
        height=height,
        objects=len(objects),
        labelled=round(float((semantic > 0).mean()), 4),
        doubt=round(inference.expected_error(answer.found), 4) if objects else 1.0,
        sha256=sha256(answer.file),
        classes=sorted({one["category_id"] - 1 for one in objects}),
    )
    jpeg = _jpeg(answer)
    overlay = io.BytesIO()
    _overlay(answer, names).save(overlay, "JPEG", quality=85)
    contents = (jpeg, overlay.getvalue(), "".join(f"{line}\n" for line in lines[::-1]), None, _voc_png(semantic))
    for file, content in zip(FILES, contents, strict=True):
        if content is not None:
            write_atomically(out / file.format(answer.name), content)
    _link(out / FILES[0].format(answer.name), out / FILES[3].format(answer.name))
    record = {"key": key, "summary": summary, "objects": objects[::-1]}
    write_atomically(out / RECORDS / f"{answer.name}.json", json.dumps(record))
    return summary


def _coco(mask: np.ndarray, label: int, score: float) -> dict[str, Any]:
    """An annotation without its ids, `segmentation` as RLE, and `polygons`."""
    (rle,) = masks_to_rle(mask[None])
    return {
        "category_id": label + 1,
        "bbox": rle_codec.toBbox(rle).tolist(),
        "area": int(rle_codec.area(rle)),
        "iscrowd": 0,
        "score": round(score, 5),
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        "polygons": [ring.ravel().tolist() for ring in polygons(mask)],
    }


def _numbers(ring: np.ndarray, width: int, height: int) -> list[str]:
    """YOLO's coordinates, shares of width and height; a quarter into the pixel, so that both rounding and cutting off
    find it again."""
    return [f"{value:.7f}" for value in ((ring + 0.25) / (width, height)).ravel()]


def _jpeg(answer: Answer) -> bytes:
    """The file itself where it is an upright RGB or grey JPEG, else its picture as one."""
    with Image.open(answer.file) as image:
        upright = image.getexif().get(0x0112, 1) == 1
        if image.format == "JPEG" and image.mode in ("RGB", "L") and upright:
            return answer.file.read_bytes()
    content = io.BytesIO()
    Image.fromarray(answer.image).save(content, "JPEG", quality=95, subsampling=0)
    return content.getvalue()


def _voc_png(semantic: np.ndarray) -> bytes:
    content = io.BytesIO()
    png = Image.fromarray(semantic, "P")
    png.putpalette(voc_palette())
    png.save(content, "PNG")
    return content.getvalue()


def _link(file: Path, other: Path) -> None:
    """The same file under another name; a copy where the disk knows no such thing."""
    with writing(other):
        other.parent.mkdir(parents=True, exist_ok=True)
        other.unlink(missing_ok=True)
        try:
            os.link(file, other)
        except OSError:
            shutil.copyfile(file, other)


def _overlay(answer: Answer, names: Sequence[str]) -> Image.Image:
    """The picture with its masks and their names."""
    small = image_files.contained(Image.fromarray(answer.image), OVERLAY, OVERLAY)
    found = answer.found
    masks = to_image_size(found.masks, answer.extent, small.size[::-1])[::-1]  # the highest score on top
    colors = figures.class_colors(len(names))[found.labels[::-1]]
    picture = Image.fromarray(figures.overlay(np.asarray(small), masks, colors))
    draw = ImageDraw.Draw(picture)
    for mask, label in zip(masks, found.labels[::-1], strict=True):
        if mask.any():
            place = figures.middle(mask)
            draw.text(place, names[label], "white", font_size=20, anchor="mm", stroke_width=2, stroke_fill="black")
    return picture


def finish(
    out: Path, names: Sequence[str], summaries: Sequence[dict[str, Any]], skipped: pd.DataFrame, about: dict[str, Any]
) -> pd.DataFrame:
    """Put the data set together from what `write` left; files of pictures that are not in it any more go.

    Args:
        out: its folder.
        names: the classes.
        summaries: one a picture, in the order of the data set.
        skipped: to be written down.
        about: to be written into provenance.json.

    Returns:
        One row a picture, the most doubtful first.
    """
    if gone := _clean(out, {one["name"] for one in summaries}):
        print(f"{gone} pictures of an earlier run are not asked for any more, and have left {out.name}")
    _write_coco(out, names, summaries)
    listing = "".join(f"{one['name']}\n" for one in summaries)
    for split in ("train", "trainval"):
        write_atomically(out / VOC / "ImageSets" / "Segmentation" / f"{split}.txt", listing)
    data = {"train": "images", "val": "images", "names": list(names)}
    write_atomically(out / "data.yaml", yaml.safe_dump(data, sort_keys=False))
    columns = ["name", "original", "width", "height", "objects", "labelled", "doubt", "sha256", "classes"]
    table = pd.DataFrame(summaries, columns=columns)
    table = table.sort_values(["doubt", "name"], ascending=[False, True]).reset_index(drop=True)
    _write_pages(out, names, table)
    write_atomically(out / "pictures.csv", table.drop(columns="classes").to_csv(index=False))
    write_atomically(out / "skipped.csv", skipped.to_csv(index=False))
    about |= {"pictures": len(table), "skipped": len(skipped), "made with": "usam.annotate"}
    write_atomically(out / "provenance.json", json.dumps(about, indent=1))
    return table.drop(columns=["sha256", "classes"])


def _clean(out: Path, names: set[str]) -> int:
    """Remove what belongs to no picture, and what a killed run left half-written; returns how many pictures went."""
    gone = sum(file.stem not in names for file in (out / RECORDS).glob("*.json"))
    for pattern in (*FILES, f"{RECORDS}/{{}}.json"):
        before, after = pattern.split("{}")
        folder = out / before
        for file in folder.iterdir() if folder.is_dir() else ():
            if file.name.endswith(".part") or (file.suffix == after and file.name.removesuffix(after) not in names):
                file.unlink()
    for page in out.glob("page_*.html"):
        page.unlink()
    return gone


def _write_coco(out: Path, names: Sequence[str], summaries: Sequence[dict[str, Any]]) -> None:
    """Both json files, picture by picture: memory does not grow with the masks."""
    folder = out / "annotations"
    kinds = {"instances.json": "segmentation", "instances_polygons.json": "polygons"}
    parts = {folder / f".{name}.part": folder / name for name in kinds}
    with writing(folder), ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        files = [stack.enter_context(open(part, "w", encoding="utf-8")) for part in parts]
        for file, kind in zip(files, kinds.values(), strict=True):
            file.write('{"info": {"description": "made by U-SAM from class names"}, "licenses": [],\n"categories": ')
            file.write(json.dumps([{"id": k, "name": name} for k, name in enumerate(names, 1)]))
            file.write(',\n"images": [\n')
            listed = (
                {"id": k, "file_name": f"{one['name']}.jpg", "width": one["width"], "height": one["height"],
                 "original": one["original"], "doubt": one["doubt"]}
                for k, one in enumerate(summaries, 1)
            )  # fmt: skip
            file.writelines(_lines(listed))
            file.write('],\n"annotations": [\n')
            file.writelines(_lines(_annotations(out, summaries, kind)))
            file.write("]}\n")
    for part, file in parts.items():
        os.replace(part, file)


def _annotations(out: Path, summaries: Sequence[dict[str, Any]], kind: str) -> Iterator[dict[str, Any]]:
    number = 0
    for image_id, one in enumerate(summaries, 1):
        for found in json.loads((out / RECORDS / f"{one['name']}.json").read_text())["objects"]:
            number += 1
            drawn = {"segmentation": found[kind]}
            rest = {key: value for key, value in found.items() if key not in ("segmentation", "polygons")}
            yield {"id": number, "image_id": image_id, **rest, **drawn}


def _lines(items: Iterable[dict[str, Any]]) -> Iterator[str]:
    """One a line, commas between them."""
    before = ""
    for item in items:
        yield before + json.dumps(item)
        before = ",\n"
    yield "\n"


STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 1.5rem; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
figure { margin: 0; } img { width: 100%; height: 13rem; object-fit: contain; background: #8882; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; } nav a { margin-right: 1rem; }
"""


def _write_pages(out: Path, names: Sequence[str], table: pd.DataFrame) -> None:
    pages = max(1, -(-len(table) // PAGE))
    files = ["index.html", *(f"page_{k}.html" for k in range(2, pages + 1))]
    links = "".join(f'<a href="{file}">{k}</a>' for k, file in enumerate(files, 1)) if pages > 1 else ""
    for k, file in enumerate(files):
        rows = table.iloc[k * PAGE : (k + 1) * PAGE]
        body = "\n".join(_shown(row, names) for row in rows.to_dict("records"))
        write_atomically(
            out / file,
            f"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{len(table)} annotated pictures</title><style>{STYLE}</style>
<h1>{len(table)} annotated pictures</h1>
<p>{table["objects"].sum()} objects of {html.escape(", ".join(names))}. The most doubtful pictures come first: those
without an object, then those of which a large share is probably labelled wrongly (large masks, low scores). A click
opens the picture itself.</p>
<nav>{links}</nav>
<main>
{body}
</main>
<nav>{links}</nav>
</html>
""",
        )


def _shown(row: dict[str, Any], names: Sequence[str]) -> str:
    name, said = (
        html.escape(row["original"]),
        html.escape(", ".join(names[k] for k in row["classes"]) or "nothing found"),
    )
    place = html.escape(f"{row['name']}.jpg")
    return (
        f'<figure><a href="images/{place}"><img src="overlays/{place}" loading="lazy" alt="{name}: {said}"></a>'
        f"<figcaption>{name}<br>doubt {row['doubt']:.2f}, {said}</figcaption></figure>"
    )
