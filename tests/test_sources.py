"""Training images of each kind of source, with the stages that notebooks call."""

import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from pydantic import BaseModel, ConfigDict

from usam import paths, profiles
from usam.config import SourceConfig
from usam.data import crawl, generate, huggingface, image_files, published
from usam.data.class_names import prompt
from usam.data.generate import image_seed
from usam.data.sources import CrawlConfig, GenerateConfig, ImageSource
from usam.errors import UserError
from usam.files import read_csv
from usam.pipeline import scoring, stages
from usam.pipeline.training_images import collect, source_key
from usam.profiles import Profile
from usam.registry import IMAGE_SOURCES


@pytest.fixture
def both(tmp_path: Path, monkeypatch, model) -> Profile:
    """The smoke profile with two classes; its images are drawn by a small model, and crawled on this machine."""
    monkeypatch.setenv("USAM_DATA", str(tmp_path))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    web = CrawlConfig(
        api=f"http://127.0.0.1:{port}/v1/", allow_hosts=["127.0.0.1"], server="miniature.web:serve",
        seconds_between_requests=0, seconds_between_api_requests=0,
    )  # fmt: skip
    smoke = profiles.load("smoke")
    sources = {
        "synthetic": SourceConfig(per_class=3, generate=GenerateConfig(model=str(model), steps=2, batch=2)),
        "web": SourceConfig(per_class=3, crawl=web),
    }
    voc = smoke.datasets["voc"].model_copy(update={"classes": ["car", "dog"], "images": {"test": 2, "val": 1}})
    return smoke.model_copy(update={"sources": sources, "datasets": {"voc": voc}})


def with_source(profile: Profile, dataset_name: str, **changes) -> Profile:
    changed = profile.sources[dataset_name].model_copy(update=changes)
    return profile.model_copy(update={"sources": profile.sources | {dataset_name: changed}})


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("source", ["synthetic", "web"])
def test_images_are_made_once_and_embedded_in_their_order(both, source, capsys):
    made = stages.training_images(both, source)
    assert made.table["class"].tolist() == ["car"] * 3 + ["dog"] * 3
    assert made.table["index"].tolist() == [0, 1, 2] * 2
    assert made.table["prompt"].unique().tolist() == ["a photo of a car", "a photo of a dog"]
    assert not made.hit and "6 " + source in capsys.readouterr().out
    before = files(made.folder)
    again = stages.training_images(both, source)
    assert again.cost == made.cost and made.cost["images"] == 6 and made.cost["seconds"] > 0
    assert again.hit and again.key == made.key and again.table.equals(made.table) and files(made.folder) == before
    found = stages.embeddings(both, source)
    first = image_files.read(made.folder / made.table["file"][0]).shape[:2]
    assert len(found) == 6 and tuple(found[0].image_size) == first


def test_rejected_candidates_are_listed_and_a_larger_crawl_continues(both):
    made = stages.training_images(both, "web")
    manifest = read_csv(made.folder / "manifest.csv")
    assert {"accepted", "rejected"} == set(manifest["status"])
    assert made.rejected["reason"].value_counts().to_dict() == {"HTTP 404": 2}  # the third place of each class
    more = stages.training_images(with_source(both, "web", per_class=9), "web")
    assert more.folder == made.folder and len(more.table) == 18 and more.key != made.key
    few = stages.training_images(both, "web")  # the first profile again, as if no more had been made
    assert few.key == made.key and few.table["file"].tolist() == made.table["file"].tolist()


def test_rejected_drawings_are_listed(both, monkeypatch):
    real = generate.pipeline

    def prudish(config):
        draw, bad = real(config), {image_seed(0, "dog", 1, 0), image_seed(0, "dog", 1, 1)}
        return lambda text, seeds: (draw(text, seeds)[0], [s in bad for s in seeds])

    monkeypatch.setattr(generate, "pipeline", prudish)
    made = stages.training_images(both, "synthetic")
    assert made.rejected.values.tolist() == [["dog", "flagged unsafe"]] * 2 and len(made.table) == 6


def test_the_papers_generator_and_crawler_go_through_the_same_lines(both, model, tmp_path):
    paper, small = profiles.load("paper").sources, both.sources
    changes = {"model": str(model), "size": 16, "steps": 3, "precision": "float32"}
    drawn = paper["synthetic"].model_copy(update={"settings": paper["synthetic"].settings.model_copy(update=changes)})
    assert drawn.per_class == 200 and drawn.settings.guidance == 7.5
    web = small["web"].settings
    changes = {
        key: getattr(web, key)
        for key in ("api", "allow_hosts", "server", "seconds_between_requests", "seconds_between_api_requests")
    }
    found = paper["web"].model_copy(update={"settings": paper["web"].settings.model_copy(update=changes)})
    for name, source in (("synthetic", drawn), ("web", found)):
        made = collect(tmp_path, name, source.model_copy(update={"per_class": 4}), ["hot dog", "dog"][name == "web" :])
        assert len(made.table) == 4 * (1 + (name == "synthetic")) and made.cost["images"] == len(made.table)
        assert all((made.folder / file).is_file() for file in made.table["file"])


def test_other_settings_are_other_images(both):
    folders = {
        stages.training_images(profile, "synthetic").folder
        for profile in (both, with_source(both, "synthetic", settings=both.sources["synthetic"].settings.model_copy(
            update={"guidance": 1.0})))
    }  # fmt: skip
    assert len(folders) == 2
    one, other = (image_files.read(folder / "car" / "0000.png") for folder in folders)
    assert one.shape == other.shape and not np.array_equal(one, other)


def test_another_model_in_the_same_folder_is_another_state(both, model, tmp_path):
    copy = tmp_path / "copy"
    for file in huggingface.model_files(str(model)):
        (copy / file.relative_to(model)).parent.mkdir(parents=True, exist_ok=True)
        (copy / file.relative_to(model)).write_bytes(file.read_bytes())
    config = both.sources["synthetic"].settings.model_copy(update={"model": str(copy)})
    other = with_source(both, "synthetic", settings=config)
    first = scoring.state(other), source_key(other.sources["synthetic"])
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    now = scoring.state(other), source_key(other.sources["synthetic"])
    assert now[0] != first[0] and now[1] != first[1]


def test_a_finished_crawl_is_not_repeated(both, monkeypatch):
    short = with_source(
        both, "web", settings=both.sources["web"].settings.model_copy(update={"candidates_per_image": 1})
    )
    made = stages.training_images(short, "web")
    assert len(made.table) == 4  # the third candidate of each class is missing
    with monkeypatch.context() as offline:
        offline.setattr(crawl, "crawl", lambda *_: pytest.fail("crawled again"))
        assert stages.training_images(short, "web").key == made.key
    state = scoring.state(short)
    more = stages.training_images(both, "web")  # with more candidates it goes on, in the same folder
    assert more.folder == made.folder and len(more.table) == 6 and scoring.state(both) != state
    (more.folder / more.table["file"][0]).unlink()
    assert stages.training_images(both, "web").key == more.key  # an image that went lost is found again


def test_a_folder_of_one_s_own_that_changed_is_read_again(both, tmp_path):
    for name in ("car", "dog"):
        for k in range(2):
            noise = np.random.default_rng([k, ord(name[0])]).integers(0, 256, (80, 80, 3), np.uint8)
            image_files.save(tmp_path / "mine" / name / f"{k}.png", noise, {})
    mine = with_source(both, "web", settings=CrawlConfig(source=str(tmp_path / "mine")), per_class=2)
    before = stages.training_images(mine, "web")
    assert len(before.table) == 4
    (tmp_path / "mine" / "dog" / "1.png").unlink()
    after = stages.training_images(mine, "web")
    assert len(after.table) == 3 and after.folder != before.folder


def test_a_cost_is_noted_even_when_the_run_fails(both, monkeypatch):
    real = generate.pipeline

    def breaks(config):
        draw, left = real(config), [2]

        def some(text, seeds):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return draw(text, seeds)

        return some

    with monkeypatch.context() as broken:
        broken.setattr(generate, "pipeline", breaks)
        with pytest.raises(KeyboardInterrupt):
            stages.training_images(both, "synthetic")
    assert stages.training_images(both, "synthetic").cost["images"] == 6


@pytest.mark.parametrize("api", ["http://127.0.0.1/v1/", "http://127.0.0.1:99999/v1/"])
def test_a_server_needs_a_port(both, api):
    config = both.sources["web"].settings.model_copy(update={"api": api})
    with pytest.raises(UserError, match="name its port"):
        stages.training_images(with_source(both, "web", settings=config), "web")


def test_a_port_that_is_taken_is_one_line(both):
    port = int(both.sources["web"].settings.api.split(":")[2].split("/")[0])
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(UserError, match=rf"port {port} .*in use.*correct `api`"):
            stages.training_images(both, "web")
    assert paths.data().exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{per_class: 2, telepathy: {}}", "no source of training images 'telepathy': choose from generate, crawl, or"),
        ("{per_class: 2}", r"name one kind of source \(generate, crawl\), found none"),
        ("{per_class: 2, generate: {model: x}, crawl: {}}", "name one kind of source .*, found crawl, generate"),
        ("{per_class: 2, crawl: {sauce: openverse}}", r"crawl\.sauce: unknown key"),
        ("{crawl: {}}", "per_class: Field required"),
    ],
)
def test_a_wrong_source_in_a_profile_is_one_clear_line(tmp_path, monkeypatch, content, message):
    smoke = yaml.safe_load((paths.PROFILES / "smoke.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(smoke | {"sources": {"web": yaml.safe_load(content)}}))
    monkeypatch.setattr(paths, "PROFILES", tmp_path)
    with pytest.raises(UserError, match=rf"profiles/mine\.yaml: sources\.web.*{message}") as error:
        profiles.load("mine")
    assert "\n" not in str(error.value)


class SquaresConfig(BaseModel):
    """Settings of the toy: the side of an image in pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    side: int = 64


def make_squares(
    folder: Path, class_names: list[str], config: SquaresConfig, per_class: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw a square in the middle, of another colour in each image, as CONTRIBUTING's noise is made."""
    rows = [(name, k, prompt(name), image_files.image_file(name, k)) for name in class_names for k in range(per_class)]
    for name, k, text, file in rows:
        if not (folder / file).exists():
            image, quarter = np.full((config.side, config.side, 3), 255, np.uint8), config.side // 4
            colour = np.random.default_rng(image_seed(0, name, k, 0)).integers(0, 200, 3)
            image[quarter:-quarter, quarter:-quarter] = colour
            image_files.save(folder / file, image, {"prompt": text})
    made = pd.DataFrame(rows, columns=["class", "index", "prompt", "file"])
    return made, pd.DataFrame(columns=["class", "reason"])


SQUARES = ImageSource(
    SquaresConfig, "squares", make_squares, lambda config: dict(parameters=config, code=[Path(__file__)])
)


@pytest.mark.parametrize("kind", ["squares", f"{__name__}:SQUARES"])
def test_an_added_source_goes_through_the_stages(both, monkeypatch, kind):
    monkeypatch.setitem(IMAGE_SOURCES, "squares", f"{__name__}:SQUARES")
    squares = SourceConfig.model_validate({"per_class": 2, kind: {"side": 48}})
    assert squares.model_dump(mode="json") == {"per_class": 2, kind: {"side": 48}}
    profile = both.model_copy(update={"sources": {"toy": squares}})
    made = stages.training_images(profile, "toy")
    assert made.table["class"].tolist() == ["car"] * 2 + ["dog"] * 2 and made.rejected.empty and not made.hit
    assert made.cost["images"] == 4
    image = image_files.read(made.folder / made.table["file"][3])
    assert image.shape == (48, 48, 3) and (image[0, 0] == 255).all() and (image[24, 24] < 200).all()
    again = stages.training_images(profile, "toy")
    assert again.hit and again.key == made.key
    larger = with_source(profile, "toy", settings=SquaresConfig(side=64))
    assert stages.training_images(larger, "toy").folder != made.folder
    assert len(stages.embeddings(profile, "toy")) == 4
    without_rivals = profile.model_copy(update={"rivals": None})
    assert published.models(without_rivals) == {profile.clip.model}  # it loads no text-to-image model
