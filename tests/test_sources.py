"""Training images of each kind of source, through the stages as notebooks call them."""

import socket
from pathlib import Path

import numpy as np
import pytest

from usam import paths, profiles
from usam.config import CrawlConfig, GenerateConfig, Profile, SourceConfig
from usam.data import crawl, generate, huggingface, image_files
from usam.data.generate import image_seed
from usam.errors import UserError
from usam.files import read_csv
from usam.pipeline import scoring, stages
from usam.pipeline.training_images import collect, source_key


@pytest.fixture
def both(tmp_path: Path, monkeypatch, model) -> Profile:
    """The smoke profile with two classes; its images are drawn by a small model, and crawled on this machine."""
    monkeypatch.setenv("USAM_DATA", str(tmp_path))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    crawl = CrawlConfig(
        api=f"http://127.0.0.1:{port}/v1/", allow_hosts=["127.0.0.1"], server="miniature.web:serve",
        seconds_between_requests=0, seconds_between_api_requests=0,
    )  # fmt: skip
    smoke = profiles.load("smoke")
    sources = {
        "synthetic": SourceConfig(per_class=3, generate=GenerateConfig(model=str(model), steps=2, batch=2)),
        "web": SourceConfig(per_class=3, crawl=crawl),
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


def test_the_crawl_tells_what_it_threw_away_and_more_images_go_on(both):
    made = stages.training_images(both, "web")
    manifest = read_csv(made.folder / "manifest.csv")
    assert {"kept", "rejected"} == set(manifest["status"])
    assert made.rejected["reason"].value_counts().to_dict() == {"HTTP 404": 2}  # the third place of each class
    more = stages.training_images(with_source(both, "web", per_class=9), "web")
    assert more.folder == made.folder and len(more.table) == 18 and more.key != made.key
    few = stages.training_images(both, "web")  # the first profile again: as if nobody had asked for more
    assert few.key == made.key and few.table["file"].tolist() == made.table["file"].tolist()


def test_what_the_generator_threw_away_is_listed(both, monkeypatch):
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


def test_a_finished_crawl_rests(both, monkeypatch):
    short = with_source(
        both, "web", settings=both.sources["web"].settings.model_copy(update={"candidates_per_image": 1})
    )
    made = stages.training_images(short, "web")
    assert len(made.table) == 4  # the third candidate of each class is missing
    with monkeypatch.context() as offline:
        offline.setattr(crawl, "crawl", lambda *_: pytest.fail("asked again"))
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
        with pytest.raises(UserError, match=rf"port {port} .*in use.*mend `api`"):
            stages.training_images(both, "web")
    assert paths.data().exists()
