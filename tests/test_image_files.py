"""Image files that are odd, and files that several write at once."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from usam.data import image_files
from usam.errors import UserError
from usam.files import write_atomically


@pytest.mark.parametrize(("largest", "bits"), [(4095, 12), (4096, 16), (65535, 16)])
@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_12_and_16_bits_become_8(tmp_path, largest, bits, ending):
    values = np.array([[0, largest // 2, largest]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{ending}")
    read = image_files.read(tmp_path / f"deep.{ending}")
    assert read[0, :, 0].tolist() == [0, (largest // 2) >> (bits - 8), largest >> (bits - 8)]
    assert (read == read[..., :1]).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bits_are_refused(tmp_path, kind):
    Image.fromarray(np.full((2, 2), 200, kind)).save(tmp_path / "counts.tiff")
    with pytest.raises(UserError, match=r"counts\.tiff cannot be read \(pixels of 32 bits"):
        image_files.read(tmp_path / "counts.tiff")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(tmp_path, mode):
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (2 * image_files.STRIP + 3, 5, 4), np.uint8), "RGBA")
    if mode == "P":
        image = image.convert("RGB").quantize(16)
        image.info["transparency"] = bytes(random.integers(0, 256, 16, np.uint8))
    image.convert(mode).save(tmp_path / "clear.png")
    with Image.open(tmp_path / "clear.png") as opened:
        seen = opened.convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    np.testing.assert_array_equal(image_files.read(tmp_path / "clear.png"), np.asarray(expected))


PEAK = """
import sys
from pathlib import Path
from usam.data import image_files

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024

before = peak()
assert image_files.read(sys.argv[1]).shape == (6000, 6000, 3)
print(peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux says there how much memory a process had")
def test_transparency_takes_little_more_memory_than_the_result(tmp_path):
    image = Image.new("P", (6000, 6000))
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(tmp_path / "large.png", transparency=0)
    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path / "large.png"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # MiB: the palette image twice 34, the result 137 in Pillow and 103 in NumPy, pieces; it was 481 with RGBA of it all
    assert 200 < float(done.stdout) < 430


def test_no_program_is_started_for_a_picture(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **_: started.append(arguments))
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (tmp_path / "holiday.jpg").write_bytes(page)
    with Image.open(tmp_path / "holiday.jpg") as image:
        assert image.format == "EPS"  # Pillow alone would read it
    with pytest.raises(UserError, match=r"holiday\.jpg cannot be read"):
        image_files.read(tmp_path / "holiday.jpg")
    assert not started and not {".eps", ".ps", ".wmf", ".mpg"} & image_files.endings()


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UserError, match="not a regular file but a pipe"):
        image_files.read(tmp_path / "pipe.jpg")


def test_writers_of_the_same_file_do_not_disturb_each_other(tmp_path):
    def write(k: int) -> None:
        write_atomically(tmp_path / "one", bytes([k]) * 20_000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(250)))
    content = (tmp_path / "one").read_bytes()
    assert len(content) == 20_000 and len(set(content)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["one"]
