"""Images from class names with a text-to-image model: seeds, faulty images, resume, what a user may get wrong."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from pydantic import ValidationError
from transformers import CLIPConfig, CLIPImageProcessor

from usam.data import generate, image_files
from usam.data.generate import drawings, fault, image_seed
from usam.data.sources import GenerateConfig
from usam.errors import UserError


@pytest.fixture(scope="module")
def prudish(tmp_path_factory, tiny_parts):
    """A model whose safety checker flags everything."""
    size = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(
            text_config=size, vision_config=size | dict(image_size=16, patch_size=8, projection_dim=8), projection_dim=8
        )
    )
    checker.concept_embeds_weights.data.fill_(-2)
    folder = tmp_path_factory.mktemp("models") / "prudish"
    reader = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    pipe = StableDiffusionPipeline(**tiny_parts, safety_checker=checker, feature_extractor=reader)
    pipe.save_pretrained(folder)
    return folder


def settings(model: Path, **more) -> GenerateConfig:
    return GenerateConfig(model=str(model), steps=2, batch=2, **{"precision": "float32"} | more)


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_an_image_is_what_diffusers_draws_with_its_seed(model, tmp_path):
    table, _ = generate.generate(tmp_path / "out", ["hot dog"], settings(model, guidance=3.0, seed=5), 3)
    assert table["file"].tolist() == [f"hot_dog/000{k}.png" for k in range(3)]
    pipe = StableDiffusionPipeline.from_pretrained(model)
    for row in table.itertuples():
        facts = image_files.facts(tmp_path / "out" / row.file)
        assert int(facts["seed"]) == image_seed(5, "hot dog", row.index, 0)
        made = pipe(
            "a photo of a hot dog",
            num_inference_steps=2,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(int(facts["seed"])),
        )
        ours = image_files.read(tmp_path / "out" / row.file).astype(int)
        assert ours.shape == (16, 16, 3)
        assert np.abs(ours - np.asarray(made.images[0])).max() <= 1  # alone, not in a batch: rounding
        assert (facts["prompt"], facts["model"], facts["steps"]) == ("a photo of a hot dog", str(model), "2")


def test_an_image_is_the_same_in_any_batch(model):
    """But for rounding: a thousandth of the range in float32, for the small model and for the miniature's."""
    for place in (model, "miniature/weights/diffusion"):
        draw = generate.pipeline(GenerateConfig(model=str(place), steps=4, precision="float32"))
        batch, _ = draw("a photo of a dog", [3, 1, 4, 1])
        for k, seed in enumerate([3, 1, 4, 1]):
            alone, _ = draw("a photo of a dog", [seed])
            assert np.abs(alone[0] - batch[k]).max() < 1e-3
        assert np.abs(batch[0] - batch[1]).max() > 0.01


def test_a_run_again_draws_nothing(model, tmp_path, monkeypatch):
    first = generate.generate(tmp_path / "out", ["dog", "car"], settings(model), 2)
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*.png")}
    monkeypatch.setattr(generate, "pipeline", lambda config: pytest.fail("the model was loaded for nothing"))
    again = generate.generate(tmp_path / "out", ["dog", "car"], settings(model), 2)
    assert first[0].equals(again[0])
    assert before == {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*.png")}


def test_order_parts_and_lost_files_change_no_byte(model, tmp_path):
    config = settings(model)
    generate.generate(tmp_path / "whole", ["dog", "car", "cat"], config, 3)
    for name in ("cat", "dog", "car"):  # three machines, one class each
        generate.generate(tmp_path / "parts", [name], config, 3)
    assert content(tmp_path / "whole") == content(tmp_path / "parts")
    for file in ("dog/0000.png", "dog/0002.png", "cat/0001.png"):
        (tmp_path / "parts" / file).unlink()
    generate.generate(tmp_path / "parts", ["car", "cat", "dog"], config, 3)
    assert content(tmp_path / "whole") == content(tmp_path / "parts")
    generate.generate(tmp_path / "parts", ["dog"], config, 6)  # asked for more later
    generate.generate(tmp_path / "new", ["dog"], config, 6)
    assert content(tmp_path / "new").items() <= content(tmp_path / "parts").items()


KILLED = """
import sys
from pathlib import Path
from usam.data.sources import GenerateConfig
from usam.data import generate
config = GenerateConfig(model=sys.argv[1], steps=2, batch=2, precision="float32")
print("begin", flush=True)
generate.generate(Path(sys.argv[2]), ["dog", "car", "cat", "sheep"], config, 6)
"""


def test_killed_runs_go_on_to_the_same_bytes(model, tmp_path):
    generate.generate(tmp_path / "whole", ["dog", "car", "cat", "sheep"], settings(model), 6)
    out, rng = tmp_path / "killed", np.random.default_rng(0)
    for _ in range(2):
        count = len(list(out.rglob("*.png")))
        run = subprocess.Popen([sys.executable, "-c", KILLED, model, out], stdout=subprocess.PIPE)
        run.stdout.readline()
        while run.poll() is None and len(list(out.rglob("*.png"))) == count:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert 0 < len(list(out.rglob("*.png"))) < 24
    generate.generate(out, ["dog", "car", "cat", "sheep"], settings(model), 6)
    assert content(out) == content(tmp_path / "whole")


def test_seeds_come_from_nothing_but_run_class_index_and_attempt():
    assert image_seed(0, "dog", 3, 0) == 9169108431603105257  # files of years ago must still be what they were
    keys = [(s, c, k, a) for s in (0, 1) for c in ("dog", "cat", "dog/1") for k in (0, 1, 10) for a in (0, 1)]
    seeds = {image_seed(*key) for key in keys}
    assert len(seeds) == len(keys) and all(0 <= s < 2**63 for s in seeds)


GOOD = np.random.default_rng(0).random((4, 4, 3), np.float32)


@pytest.mark.parametrize(
    ("image", "unsafe", "why"),
    [
        (GOOD, False, None),
        (GOOD, True, "flagged unsafe"),
        (GOOD + np.float32([np.nan, 0, 0]), False, "not a number"),
        (np.zeros_like(GOOD), False, "black"),
        (np.zeros_like(GOOD) + np.float32([0.9, 0.1, 0.1]), False, "near-constant"),
    ],
)
def test_faults(image, unsafe, why):
    assert fault(image, unsafe) == why


def test_faulty_images_are_drawn_again_with_the_next_sub_seed():
    bad = {image_seed(0, "dog", 1, 0): np.zeros_like(GOOD), image_seed(0, "dog", 1, 1): GOOD * np.nan}
    drawn = []

    def draw(text, seeds):
        drawn.append(seeds)
        return np.stack([bad.get(s, GOOD) for s in seeds]), [s == image_seed(0, "dog", 2, 0) for s in seeds]

    found = {k: one for k, *one in drawings(draw, "dog", range(3), 0)}
    assert [found[k][2] for k in range(3)] == [[], ["black", "not a number"], ["flagged unsafe"]]
    assert [found[k][1] for k in range(3)] == [image_seed(0, "dog", k, a) for k, a in ((0, 0), (1, 2), (2, 1))]
    assert [len(seeds) for seeds in drawn] == [3, 2, 1]
    np.testing.assert_array_equal(found[0][0], np.round(GOOD * 255))


def test_rejected_images_are_counted_and_recorded_in_the_file(model, tmp_path, capsys, monkeypatch):
    real = generate.pipeline

    def flaky(config):
        draw = real(config)
        black = image_seed(0, "dog", 1, 0)
        return lambda text, seeds: (draw(text, seeds)[0], [s == black for s in seeds])

    monkeypatch.setattr(generate, "pipeline", flaky)
    table, rejected = generate.generate(tmp_path / "out", ["dog"], settings(model), 3)
    assert table["index"].tolist() == [0, 1, 2] and rejected.to_numpy().tolist() == [["dog", "flagged unsafe"]]
    assert "drawn again: 1 flagged unsafe (3 images accepted)" in capsys.readouterr().out
    assert image_files.facts(tmp_path / "out" / "dog" / "0001.png")["rejected"] == "flagged unsafe"


def test_a_model_that_blacks_out_everything_is_given_up_in_one_line(prudish, tmp_path):
    with pytest.raises(UserError, match=r"image 0 of 'dog' was unusable 10 times \(flagged unsafe, .*choose another"):
        generate.generate(tmp_path / "out", ["dog"], settings(prudish), 2)
    assert not list((tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ([], "no class names"),
        ([""], "no folder name"),
        (["dog", "dog"], "share its folder"),
        (["hot dog", "hot_dog"], "share its folder"),
        (["../x"], "no folder name"),
        (["/etc/passwd"], "no folder name"),
        ([".hidden"], "no folder name"),
        (["x" * 61], "61 letters"),
        (["犬"], "English letters"),
        (["café"], "English letters"),
        (["dog "], "no folder name"),
        (["dog\n"], "no folder name"),
        (["a\x1b[31m"], "no folder name"),
        (["../" * 3000], "9000 letters"),
    ],
)
def test_class_names_that_are_none(model, tmp_path, names, why):
    with pytest.raises(UserError, match=why) as error:
        generate.generate(tmp_path / "out", names, settings(model), 1)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["no/such/folder", "/nowhere/at/all", "usam/nothing", "owner/na me"])
def test_no_such_model(tmp_path, name):
    with pytest.raises(UserError, match=r"no model folder .*correct `model`"):
        generate.generate(tmp_path / "out", ["dog"], GenerateConfig(model=name), 1)


def test_a_model_folder_that_is_not_whole(model, tmp_path):
    (tmp_path / "empty").mkdir()
    half = tmp_path / "half"
    half.mkdir()
    for file in model.rglob("*"):
        if file.is_file():
            (half / file.relative_to(model)).parent.mkdir(parents=True, exist_ok=True)
            (half / file.relative_to(model)).write_bytes(file.read_bytes())
    weights = next((half / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    for folder in (tmp_path / "empty", half):
        with pytest.raises(UserError, match="Stable Diffusion cannot be loaded from") as error:
            generate.generate(tmp_path / "out", ["dog"], settings(folder), 1)
        assert "\n" not in str(error.value)


LOAD = """
from usam.data.sources import GenerateConfig
from usam.data import generate
generate.pipeline(GenerateConfig(model='nobody/nothing'))
"""


def test_a_model_on_the_hub_without_a_network():
    run = subprocess.run(
        [sys.executable, "-c", LOAD], capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert "UserError: Stable Diffusion cannot be loaded from 'nobody/nothing'" in run.stderr


def test_a_hub_that_hangs_up_is_one_line():
    def hang_up(listener):
        while True:
            try:
                listener.accept()[0].close()
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=hang_up, args=(listener,), daemon=True).start()
        place = {"HF_ENDPOINT": f"http://127.0.0.1:{listener.getsockname()[1]}", "HF_HUB_OFFLINE": "0"}
        run = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, env=os.environ | place)
    assert "UserError: Stable Diffusion cannot be loaded from 'nobody/nothing'" in run.stderr, run.stderr[-2000:]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"size": 20}, {"guidance": -1.0}, {"batch": 0}, {"precision": "int8"}])
def test_wrong_settings_are_errors(wrong):
    with pytest.raises(ValidationError):
        GenerateConfig(model="x", **wrong)


def test_images_are_upright_and_eight_bit(tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to be upright
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert image_files.read(tmp_path / "turned.png").shape == (6, 4, 3)
    assert image_files.read(tmp_path / "turned.png")[0, 3].tolist() == [255, 255, 255]
    Image.fromarray(np.full((2, 2), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    assert np.unique(image_files.read(tmp_path / "deep.png")).tolist() == [0x80]
