"""A user's own images: which are found, which are skipped, what is kept, and what a stopped run leaves."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import usam
import usam.annotation.annotate as annotating
from usam import paths, profiles
from usam.annotation import export, inputs
from usam.annotation.annotate import NOTHING, annotate
from usam.annotation.inputs import RECORDS, find, gathered_names
from usam.errors import UserError
from usam.method import inference, sam
from usam.method.masks import rle_to_masks
from usam.pipeline import embedding_store, stages
from usam.profiles import Profile

CLASSES = ["car", "dog"]


def new_image(file: Path, size: tuple[int, int] = (40, 30), mode: str = "RGB", **options) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(len(file.name)).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(values).convert(mode).save(file, **options)
    return file


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three images, one of them in a folder of its own."""
    for name in ("a.png", "b.png", "holiday/a.png"):
        new_image(tmp_path / "in" / name)
    return tmp_path / "in"


def files_of(out: Path) -> dict[str, bytes]:
    """All files of a data set with their content."""
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_annotate_is_all_there_is_at_the_top():
    assert usam.annotate is annotate and usam.__all__ == ["annotate"]
    with pytest.raises(AttributeError, match="no attribute 'anotate'"):
        usam.anotate  # noqa: B018


def test_a_folder_becomes_a_data_set(tiny, folder, capsys):
    found = annotate(folder, CLASSES, profile=tiny)
    assert found.out == folder.with_name("in-labelled")
    assert sorted(found.images["original"]) == ["a.png", "b.png", "holiday/a.png"]
    assert sorted(found.images["name"]) == ["a", "b", "holiday_a"]
    coco = json.loads((found.out / "annotations" / "instances.json").read_text())
    assert [one["file_name"] for one in coco["images"]] == ["a.jpg", "b.jpg", "holiday_a.jpg"]
    assert len(coco["annotations"]) == found.images["objects"].sum()
    assert "3 images annotated" in capsys.readouterr().out
    about = json.loads((found.out / "provenance.json").read_text())
    assert about["classes"] == {"car": ["car"], "dog": ["dog"]} and about["settings"] == tiny.decisive()


def test_the_masks_are_those_of_the_protocol(tiny, folder):
    """What is written for an image is what threshold and suppression make of it, at the image's own size."""
    found = annotate(folder, CLASSES, profile=tiny, score_threshold=0.5)
    image = inputs.read(folder / "b.png")
    embeddings = stages.extractor(tiny)(image)
    probability = inference.probabilities(found.head, embeddings.tokens)
    config = tiny.inference.model_copy(update={"score_threshold": 0.5})
    wanted = inference.label_masks(probability, embeddings, config)
    assert len(wanted.labels)
    record = json.loads((found.out / RECORDS / "b.json").read_text())["objects"]
    ours = rle_to_masks([{**one["segmentation"], "counts": one["segmentation"]["counts"].encode()} for one in record])
    np.testing.assert_array_equal(ours, wanted.masks)
    assert [one["category_id"] - 1 for one in record] == wanted.labels.tolist()
    painted = np.asarray(Image.open(found.out / export.VOC / "SegmentationClass" / "b.png"))
    np.testing.assert_array_equal(painted, wanted.semantic_map())


def odd_images(folder: Path) -> dict[str, tuple[int, int] | str]:
    """Files of all kinds -> (width, height) that they have when upright, or what their line says."""
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera lay on its side
    new_image(folder / "turned.jpg", (40, 30), exif=turned)
    new_image(folder / "grey.jpg", mode="L")
    new_image(folder / "inks.jpg", mode="CMYK")
    new_image(folder / "few.png", mode="P")
    new_image(folder / "clear.png", mode="RGBA")
    new_image(folder / "one.png", (1, 1))
    new_image(folder / "strip.png", (20_000, 10))
    new_image(folder / "tall.png", (10, 20_000))
    new_image(folder / "still.gif", mode="P")
    deep = np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(np.zeros((3, 3), np.float32)).save(folder / "float.tiff")
    Image.fromarray(np.full((3, 3), 200, np.int32)).save(folder / "counts.tiff")
    (folder / "holiday.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    whole = new_image(folder / "truncated.jpg", (400, 300)).read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("not an image at all")
    (folder / "=1+1.jpg").write_text("not an image at all")
    (folder / "nowhere.jpg").symlink_to(folder / "gone.jpg")
    return {
        "turned.jpg": (30, 40), "grey.jpg": (40, 30), "inks.jpg": (40, 30), "few.png": (40, 30), "clear.png": (40, 30),
        "one.png": (1, 1), "strip.png": (20_000, 10), "tall.png": (10, 20_000), "still.gif": (40, 30),
        "deep.png": (40, 30), "float.tiff": "32 bits", "counts.tiff": "32 bits", "holiday.jpg": "not an image",
        "truncated.jpg": "truncated", "empty.jpg": "empty file",
        "text.jpg": "not an image", "=1+1.jpg": "not an image", "nowhere.jpg": "No such file",
    }  # fmt: skip


def test_every_kind_of_file_gets_its_result_or_its_line(tiny, tmp_path, capsys):
    wanted = odd_images(tmp_path / "in")
    (tmp_path / "in" / "notes.txt").write_text("ignored")
    (tmp_path / "in" / ".hidden.jpg").write_text("ignored")
    found = annotate(tmp_path / "in", CLASSES, tmp_path / "out", profile=tiny)
    sizes = {row.original: (row.width, row.height) for row in found.images.itertuples()}
    reasons = dict(found.skipped.itertuples(index=False))
    assert sizes == {name: size for name, size in wanted.items() if isinstance(size, tuple)}
    assert set(reasons) == {name for name, words in wanted.items() if isinstance(words, str)}
    for name, words in wanted.items():
        if isinstance(words, str):
            assert words in reasons[name] and "\n" not in reasons[name] and str(tmp_path) not in reasons[name]
    printed = capsys.readouterr().out
    assert "8 images skipped" in printed and ".txt: 1" in printed
    assert pd.read_csv(tmp_path / "out" / "skipped.csv")["original"].tolist() == [
        f"'{name}" if name == "=1+1.jpg" else name for name in sorted(reasons)
    ]
    for row in found.images.itertuples():
        for file in export.FILES:
            with_suffix = found.out / file.format(row.name)
            assert with_suffix.is_file()
            if file.startswith(("images", export.VOC)):
                assert Image.open(with_suffix).size == (row.width, row.height)


UNENDING = """
import sys
from usam import annotate, profiles
smoke = profiles.load("smoke")
head = smoke.head.model_copy(update={"epochs": 1})
annotate(sys.argv[1:-1], ["car", "dog"], sys.argv[-1], profile=smoke.model_copy(update={"head": head}))
"""


@pytest.mark.usefixtures("tiny")
def test_pipes_and_devices_are_skipped_however_they_are_named(folder):
    """Reading a pipe that nobody writes to never ends: the test would run into its timeout."""
    os.mkfifo(folder / "pipe.jpg")
    os.mkfifo(folder / "pipe.txt")
    os.mkfifo(folder / "holiday" / "unnamed")
    (folder / "link.jpg").symlink_to(folder / "pipe.jpg")
    (folder / "zero.png").symlink_to("/dev/zero")
    named = [str(folder), str(folder / "holiday" / "*"), str(folder / "pipe.jpg")]
    command = [sys.executable, "-c", UNENDING, *named, str(folder.with_name("out"))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=paths.ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    skipped = pd.read_csv(folder.with_name("out") / "skipped.csv")
    assert skipped["original"].tolist() == ["holiday/unnamed", "link.jpg", "pipe.jpg", "zero.png"]
    assert set(skipped["reason"]) == {"not a regular file but a pipe, a socket or a device"}
    assert "3 images annotated" in done.stdout and "4 images skipped" in done.stdout and ".txt: 1" in done.stdout


def test_a_notebook_that_others_read_does_not_name_the_folders_of_this_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("USAM_DATA", str(tmp_path / "far" / "data"))
    table = pd.DataFrame({"objects": [1], "labelled": [0.5]})
    for out, said in (
        (tmp_path / "far" / "data" / "mini" / "labelled", "data/mini/labelled/index.html"),
        (Path.cwd() / "labelled", "labelled/index.html"),
        (tmp_path / "mine", str(tmp_path / "mine" / "index.html")),  # else nobody would find it
    ):
        annotating._report(out, table, table[:0], strict=False)
        assert capsys.readouterr().out.endswith(f"1 objects; start with {said}\n")


def test_strict_fails_in_the_end(tiny, folder):
    (folder / "text.jpg").write_text("not an image at all")
    with pytest.raises(UserError, match=r"1 of 4 images were skipped, for example text\.jpg \(not an image"):
        annotate(folder, CLASSES, profile=tiny, strict=True)
    assert len(pd.read_csv(folder.with_name("in-labelled") / "images.csv")) == 3


def test_nothing_that_can_be_read_is_an_empty_data_set(tiny, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text.jpg").write_text("not an image at all")
    found = annotate(tmp_path / "in", CLASSES, profile=tiny)
    assert len(found.images) == 0 and len(found.skipped) == 1
    assert json.loads((found.out / "annotations" / "instances.json").read_text())["images"] == []


def test_transparent_pixels_are_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "half.png")
    assert np.unique(inputs.read(tmp_path / "clear.png")).tolist() == [255]
    assert inputs.read(tmp_path / "half.png")[0, 0].tolist() == [255, 127, 127]


def without_sam(monkeypatch) -> None:
    monkeypatch.setattr(sam, "load_sam", lambda *_: pytest.fail("SAM is not needed"))


def test_other_settings_and_names_need_no_sam(tiny, folder, monkeypatch):
    annotate(folder, CLASSES, profile=tiny)
    without_sam(monkeypatch)
    annotate(folder, CLASSES[::-1], folder.with_name("other"), profile=tiny)  # the same training images
    strict = annotate(folder, CLASSES, profile=tiny, score_threshold=1)
    assert strict.images["objects"].sum() == 0 and (strict.images["expected_error"] == 1).all()
    lenient = annotate(folder, CLASSES, profile=tiny, score_threshold=0.5)
    assert lenient.images["objects"].sum() > 0
    assert lenient.embeddings("b").image_size == (30, 40)


KILLED = """
import os, signal, sys
from usam import profiles
from usam.annotation import annotate, export
data, out, threshold, after = sys.argv[1:]
plain, calls = export.write_atomically, []
def writing(*arguments):
    calls.append(arguments)
    if len(calls) == int(after):
        os.kill(os.getpid(), signal.SIGKILL)
    plain(*arguments)
export.write_atomically = writing
smoke = profiles.load("smoke")
head = smoke.head.model_copy(update={"epochs": 1})
annotate.annotate(data, ["car", "dog"], out, profile=smoke.model_copy(update={"head": head}),
                    score_threshold=float(threshold))
"""


@pytest.mark.parametrize("after", [4, 7])
def test_killed_at_other_settings_the_first_ones_come_back(tiny, folder, after):
    """kill -9 in the middle of an image's files: what is there belongs to two settings, and is not taken as whole."""
    out = folder.with_name("out")
    smoke = profiles.load("smoke").model_copy(update={"head": tiny.head})
    annotate(folder, CLASSES, out, profile=smoke, score_threshold=0.9)
    before = files_of(out)
    command = [sys.executable, "-c", KILLED, str(folder), str(out), "0.5", str(after)]
    assert subprocess.run(command, capture_output=True, cwd=paths.ROOT).returncode == -signal.SIGKILL
    assert files_of(out) != before
    annotate(folder, CLASSES, out, profile=smoke, score_threshold=0.9)
    assert files_of(out) == before


def test_a_broken_file_alone_does_not_load_sam(tiny, folder, monkeypatch):
    (folder / "text.jpg").write_text("not an image at all")
    annotate(folder, CLASSES, profile=tiny)
    without_sam(monkeypatch)
    assert len(annotate(folder, CLASSES, profile=tiny, score_threshold=0.5).skipped) == 1


def test_a_broken_file_among_others_changes_nothing_of_theirs(tiny, folder):
    whole = annotate(folder, CLASSES, folder.with_name("one"), profile=tiny, score_threshold=0.5).images
    for name in ("0.jpg", "aa.jpg", "z.jpg"):
        (folder / name).write_text("not an image at all")
    shutil.rmtree(stages.single_image_folder(tiny))
    found = annotate(folder, CLASSES, folder.with_name("two"), profile=tiny, score_threshold=0.5)
    assert found.skipped["original"].tolist() == ["0.jpg", "aa.jpg", "z.jpg"]
    pd.testing.assert_frame_equal(found.images, whole)


def test_large_images_take_turns(tiny, folder, monkeypatch):
    monkeypatch.setattr(inputs, "LARGE", 100)
    held, plain = [], inputs.read

    def read(file):
        held.append(inputs._large.locked())
        return plain(file)

    monkeypatch.setattr(inputs, "read", read)
    annotate(folder, CLASSES, profile=tiny)
    assert len(held) > 5 and all(held)


@pytest.mark.parametrize("after", [1, 2])
def test_a_stopped_run_goes_on_to_the_same_bytes(tiny, folder, monkeypatch, after):
    undisturbed = annotate(folder, CLASSES, folder.with_name("one"), profile=tiny, score_threshold=0.5).out
    shutil.rmtree(stages.single_image_folder(tiny))
    for module, name in ((embedding_store, "save"), (export, "write")):
        with monkeypatch.context() as patch:
            calls, plain = [], getattr(module, name)

            def stopping(*arguments, calls=calls, plain=plain):
                calls.append(1)
                if len(calls) > after:
                    raise KeyboardInterrupt
                return plain(*arguments)

            patch.setattr(module, name, stopping)
            with pytest.raises(KeyboardInterrupt):
                annotate(folder, CLASSES, folder.with_name("two"), profile=tiny, score_threshold=0.5)
    for place in (".", "images", ".records"):
        (folder.with_name("two") / place / ".0123456789ab.part").write_bytes(b"half")
    again = annotate(folder, CLASSES, folder.with_name("two"), profile=tiny, score_threshold=0.5).out
    assert files_of(again) == files_of(undisturbed)


def test_what_was_deleted_or_changed_is_made_again_and_nothing_else(tiny, folder):
    out = annotate(folder, CLASSES, profile=tiny).out
    before = {name: (out / name).stat().st_mtime_ns for name in ("overlays/a.jpg", "overlays/b.jpg")}
    (out / "labels" / "a.txt").unlink()
    new_image(folder / "holiday" / "a.png", (50, 20))
    annotate(folder, CLASSES, profile=tiny)
    assert (out / "labels" / "a.txt").is_file()
    assert (out / "overlays/b.jpg").stat().st_mtime_ns == before["overlays/b.jpg"]
    assert (out / "overlays/a.jpg").stat().st_mtime_ns != before["overlays/a.jpg"]
    assert Image.open(out / "images" / "holiday_a.jpg").size == (50, 20)


def test_images_that_left_the_folder_leave_the_data_set(tiny, folder):
    out = annotate(folder, CLASSES, profile=tiny).out
    (folder / "b.png").unlink()
    new_image(folder / "c.png")
    found = annotate(folder, CLASSES, profile=tiny)
    assert sorted(found.images["name"]) == ["a", "c", "holiday_a"]
    assert not [name for name in files_of(out) if Path(name).stem == "b"]


def test_images_that_leave_are_counted_and_earlier_results_are_no_input(tiny, folder, capsys):
    annotate(folder, CLASSES, folder / "labelled", profile=tiny)
    again = annotate(folder, CLASSES, folder.with_name("other"), profile=tiny)
    assert len(again.images) == 3 and "files of earlier results" in capsys.readouterr().out
    annotate(folder / "a.png", CLASSES, folder.with_name("other"), profile=tiny)
    assert "2 images of an earlier run are not in this one" in capsys.readouterr().out


def test_an_image_full_of_labels_is_pointed_out(tiny, folder, capsys, monkeypatch):
    crowded = annotate(folder, CLASSES, profile=tiny, score_threshold=0).images["labelled"]
    assert ("have a label, which is rarely right" in capsys.readouterr().out) == (crowded.mean() > annotating.CROWDED)
    monkeypatch.setattr(annotating, "CROWDED", 0)
    assert crowded.mean() > 0
    annotate(folder, CLASSES, profile=tiny, score_threshold=0)
    assert "have a label, which is rarely right" in capsys.readouterr().out
    annotate(folder, CLASSES, profile=tiny, score_threshold=1)
    assert "rarely right" not in capsys.readouterr().out


def test_a_call_that_fails_early_leaves_no_folder(tiny, folder):
    with pytest.raises(UserError):
        annotate(folder, CLASSES, folder.with_name("new"), profile=tiny, source="dream")
    assert not (folder.with_name("new") / RECORDS).exists()


def test_a_folder_of_something_else_is_left_alone(tiny, folder):
    mine = folder.with_name("mine")
    mine.mkdir()
    (mine / "thesis.doc").write_text("irreplaceable")
    with pytest.raises(UserError, match="holds something else"):
        annotate(folder, CLASSES, mine, profile=tiny)
    assert (mine / "thesis.doc").read_text() == "irreplaceable"
    (folder.with_name("file")).write_text("")
    with pytest.raises(UserError, match="holds something else"):
        annotate(folder, CLASSES, folder.with_name("file"), profile=tiny)


def test_other_masks_of_sam_are_other_answers(tiny, folder):
    """The tokens are the same and so is the head; only the masks are others."""
    one = annotate(folder, CLASSES, profile=tiny, score_threshold=0.5)
    before = (one.out / "annotations" / "instances.json").read_text()
    other = tiny.model_copy(update={"sam": tiny.sam.model_copy(update={"mask_choice": "single"})})
    two = annotate(folder, CLASSES, profile=other, score_threshold=0.5)
    assert (two.out / "annotations" / "instances.json").read_text() != before


def test_a_image_that_vanishes_is_skipped(tiny, folder, monkeypatch):
    plain = annotating._embed

    def vanishing(*arguments):
        skipped = plain(*arguments)
        (folder / "b.png").unlink()
        return skipped

    monkeypatch.setattr(annotating, "_embed", vanishing)
    found = annotate(folder, CLASSES, profile=tiny)
    assert sorted(found.images["name"]) == ["a", "holiday_a"]
    assert found.skipped.to_dict("records") == [{"original": "b.png", "reason": "No such file or directory"}]


def test_the_folder_of_the_images_is_no_place_for_the_result(tiny, folder):
    with pytest.raises(UserError, match="holds something else"):
        annotate(folder, CLASSES, folder, profile=tiny)


def test_damaged_embeddings_are_named(tiny, folder):
    found = annotate(folder, CLASSES, profile=tiny)
    found.embedding_files["a"].write_bytes(b"damaged")
    (found.out / "labels" / "a.txt").unlink()
    with pytest.raises(UserError, match=r"\.npz is damaged .*delete it"):
        annotate(folder, CLASSES, profile=tiny)


def test_find_folder_pattern_list_and_file(folder, monkeypatch):
    def names(images) -> list[str]:
        return [p.name for p in find(images, folder / "labelled")]

    assert names(folder) == ["a", "b", "holiday_a"]
    assert names(str(folder / "*.png")) == ["a", "b"] and names(str(folder / "**/a.png")) == ["a", "holiday_a"]
    assert names([folder / "b.png", folder / "holiday", folder / "b.png"]) == ["b", "holiday_a"]
    assert names(folder / "a.png") == ["a"]
    monkeypatch.chdir(folder)
    assert names("holiday") == ["a"]
    new_image(folder / "labelled" / "images" / "a.png")  # a data set inside the folder of images
    assert names(folder) == ["a", "b", "holiday_a"]
    for nothing in (folder / "*.jpg", folder / "nowhere" / "*.png", folder / "nowhere"):
        with pytest.raises(UserError, match=f"no images found at {re.escape(str(nothing))}: name a folder"):
            find(nothing, folder / "labelled")
    with pytest.raises(UserError, match="is no pattern"):
        find(folder / "**.png", folder / "labelled")


def test_find_odd_entries(folder, capsys):
    """A link that leads to itself, one to a folder, an ending that is no text, a folder with the signs of a pattern."""
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "elsewhere").symlink_to(folder.parent)
    Path(os.fsdecode(os.fsencode(folder) + b"/n.t\xe9xt")).write_text("")
    new_image(folder / "trip [2020]" / "a.png")
    assert [p.original for p in find(folder, folder.with_name("out"))] == [
        "a.png", "b.png", "holiday/a.png", "loop.jpg", "trip [2020]/a.png",
    ]  # fmt: skip
    assert "links to folders: 1" in capsys.readouterr().out
    assert [p.original for p in find(folder / "trip [2020]" / "*.png", folder.with_name("out"))] == ["a.png"]


def test_where_the_data_set_goes_by_default(folder):
    for images in (folder, folder / "a.png", folder / "*.png", folder / "**" / "a.png", f"{folder}/../in"):
        assert inputs.default_out(images) == folder.with_name("in-labelled")
    odd = folder / "trip [2020]"
    odd.mkdir()
    assert inputs.default_out(odd) == folder / "trip [2020]-labelled"
    with pytest.raises(UserError, match="name the folder of the result as `out`"):
        inputs.default_out([folder])


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of what it finds
@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "tiff", "webp", "bmp", "ppm", "tga", "ico", "jp2"])
def test_damaged_files_of_all_kinds_have_a_line_or_a_image(tmp_path, ending):
    """Bytes are changed, left out and put in at random; nothing but a `UserError` ever comes out."""
    rng, file = np.random.default_rng(0), tmp_path / f"image.{ending}"
    whole = new_image(file, (24, 16)).read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 12)):
            damaged[place] = rng.integers(256)
        cut = int(rng.integers(1, len(whole) + 1))
        file.write_bytes(bytes(damaged[:cut] if rng.random() < 0.3 else damaged))
        try:
            image = inputs.read(file)
        except UserError as error:
            assert str(error) and "\n" not in str(error)
        else:
            assert image.ndim == 3 and image.dtype == np.uint8


def test_names_are_unique_and_can_be_written_everywhere(tmp_path):
    for name in ("a.png", "a.jpg", "A.gif", "x/y:z?.png", "x_y_z_.png", "Größe 1.png", " b .png", f"{'ä' * 120}.png"):
        new_image(tmp_path / name)
    (tmp_path / "v1.2").mkdir()
    for k in range(3):
        shutil.copy(tmp_path / "a.png", tmp_path / "v1.2" / str(k))
    broken = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")  # Latin-1 on a disk of UTF-8
    shutil.copy(tmp_path / "a.png", broken)
    found = find([tmp_path, tmp_path / "v1.2" / "*"], tmp_path / "out")
    names = [p.name for p in found]
    assert len({name.lower() for name in names}) == len(names) == 12
    assert names == [name.strip() for name in names] and {"v1.2_0", "v1.2_1", "v1.2_2"} <= set(names)
    assert all(len(name.encode()) <= 150 and not set(name) & set('/\\:*?"<>|') for name in names)
    assert "Größe 1" in names and len({p.state for p in found}) == 12
    assert all(p.original.encode() for p in found)


@pytest.mark.parametrize(
    "given, meant",
    [
        ("dog, bicycle", {"dog": ("dog",), "bicycle": ("bicycle",)}),
        ("[dog, potted plant]", {"dog": ("dog",), "potted plant": ("potted plant",)}),
        (["dog", "cat"], {"dog": ("dog",), "cat": ("cat",)}),
        ("{animal: [cat, dog], person: [person]}", {"animal": ("cat", "dog"), "person": ("person",)}),
        ("animal: [cat, dog]\nthing: car, bus", {"animal": ("cat", "dog"), "thing": ("car", "bus")}),
        ({"animal": ["cat", "dog"], "car": "car"}, {"animal": ("cat", "dog"), "car": ("car",)}),
    ],
)
def test_classes_in_every_form(given, meant):
    assert gathered_names(given, ()) == meant
    assert gathered_names(given, "horse, sheep") == meant | {NOTHING: ("horse", "sheep")}


@pytest.mark.parametrize(
    "classes, others, problem",
    [
        ("dog", "", "one class alone"),
        ("", "", "no class name"),
        (["dog", "dog"], "", "'dog' is named twice"),
        ({"animal": ["dog"], "pet": ["dog"]}, "", "is named twice"),
        ("dog, cat", "cat", "is named twice"),
        ({"animal": [], "car": ["car"]}, "", "gathers no names"),
        ("dog, ../../etc", "", "etc"),
        ("{animal: [cat", "", "cannot be read: write"),
        ([f"thing {k}" for k in range(300)], "", "at most 254"),
        ({NOTHING: ["cat"], "dog": ["dog"]}, "", "is reserved for `others`"),
    ],
)
def test_class_names_that_do_not_do(tiny, folder, classes, others, problem):
    with pytest.raises(UserError, match=problem):
        annotate(folder, classes, profile=tiny, others=others)
    assert not folder.with_name("in-labelled").exists()


def test_one_class_is_enough_beside_others(tiny, folder):
    found = annotate(folder, ["car"], profile=tiny, others=["dog"], score_threshold=0)
    assert found.names == ["car"] and found.head.layers[-1].out_features == 2
    coco = json.loads((found.out / "annotations" / "instances.json").read_text())
    assert {one["category_id"] for one in coco["annotations"]} <= {1}
    assert [one["name"] for one in coco["categories"]] == ["car"]


@pytest.mark.parametrize("wrong", [{"score_threshold": 2}, {"nms_iou": 0.0}, {"smallest": -1}, {"join_parts": "much"}])
def test_settings_that_do_not_do(tiny, folder, wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))}="):
        annotate(folder, CLASSES, profile=tiny, **wrong)


def test_unknown_source_and_profile(tiny, folder):
    with pytest.raises(UserError, match="no source 'dream'"):
        annotate(folder, CLASSES, profile=tiny, source="dream")
    with pytest.raises(UserError, match="no profile 'mine'"):
        annotate(folder, CLASSES, profile="mine")


def test_a_full_disk_is_found_out_before_any_work(tiny, folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(UserError, match=r"GiB free"):
        annotate(folder, CLASSES, profile=tiny)


def test_a_gathering_class_learns_from_all_its_names(tiny: Profile):
    gathered = {"animal": ["dog", "horse"], "vehicle": ["car"]}
    head = tiny.head.model_copy(update={"images_per_class": 2})
    both = stages.heads_of(tiny.model_copy(update={"head": head}), gathered, "synthetic", 0)
    assert both.student.layers[-1].out_features == 2
    other = stages.heads_of(tiny, {"animal": ["dog"], "vehicle": ["car"]}, "synthetic", 0)
    assert not (both.student.layers[-1].weight == other.student.layers[-1].weight).all()
