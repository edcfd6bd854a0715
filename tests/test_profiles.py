"""Profiles: those that ship load, and every kind of mistake names the file and the key."""

from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError

from usam import machine, paths, profiles
from usam.errors import UserError
from usam.profiles import Profile

ALL_KEYS = "usam/profiles.py, config.py and config_rivals.py explain all keys"
SMOKE = yaml.safe_load((paths.PROFILES / "smoke.yaml").read_text(encoding="utf-8"))


def write(folder: Path, text: str | bytes) -> None:
    (folder / "mine.yaml").write_bytes(text.encode() if isinstance(text, str) else text)


def changed(where: str, value: object) -> str:
    """The smoke profile with the key at a dotted path set, or removed with `...`."""
    content = yaml.safe_load(yaml.safe_dump(SMOKE))
    *parents, last = where.split(".")
    inner = content
    for key in parents:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return yaml.safe_dump(content)


def load(folder: Path, name: str = "mine") -> Profile:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "PROFILES", folder)
        return profiles.load(name)


def message(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["smoke", "mini"])
def test_shipped_profiles_load(name):
    profile = profiles.load(name)
    assert profile.name == name
    assert profile.sam.points_per_side == 10 and set(profile.datasets) == {"voc", "coco"}
    assert profile.head.widths == {"smoke": (512, 256, 128), "mini": (256, 128, 64)}[name]
    assert profile.head.a == 10 and profile.head.learning_rate == 1e-3
    assert profile.distillation.entropy_threshold > 0 and profile.distillation.lambda_uncertainty == 0.15
    assert paths.resolve(profile.sam.checkpoint).parent.is_dir()
    with pytest.raises(ValidationError, match="frozen"):
        profile.name = "other"


@pytest.mark.parametrize("name", ["paper", "vit_l", "vit_b"])
def test_the_papers_profiles(name):
    profile = profiles.load(name)
    assert profile.sam.model == ("vit_h" if name == "paper" else name) and profile.sam.checkpoint is None
    assert profile.world == f"SAM ViT-{profile.sam.model[-1].upper()}, Stable Diffusion v1-4"
    synthetic, web = profile.sources["synthetic"], profile.sources["web"]
    assert (synthetic.per_class, synthetic.settings.model) == (200, "CompVis/stable-diffusion-v1-4")
    assert web.per_class == 45 and web.settings.source == "openverse"
    assert profile.head.batch_size == 64 and profile.head.learning_rate == 1e-3 and profile.sam.points_per_side == 10
    assert (profile.distillation.lambda_mil, profile.distillation.lambda_uncertainty) == (1, 0.15)
    assert {dataset_name: (d.split, d.maker) for dataset_name, d in profile.datasets.items()} == {
        "voc": ("val", None), "coco": ("val2017", None),
    }  # fmt: skip


def test_a_profile_says_only_what_differs_from_its_base(tmp_path, monkeypatch):
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(SMOKE))
    (tmp_path / "second.yaml").write_text("base: first\nhead: {epochs: 7}\nseeds: [5]\n")
    write(tmp_path, "base: second\nhead: {a: 3}\nsam: {batch: 2}\n")
    found, first = load(tmp_path), load(tmp_path, "first")
    assert (found.name, found.seeds, found.head.epochs, found.head.a, found.sam.batch) == ("mine", (5,), 7, 3, 2)
    changed = {"name": "mine", "seeds": (5,), "head": found.head, "sam": found.sam}
    assert found == first.model_copy(update=changed)
    monkeypatch.setattr(paths, "PROFILES", tmp_path)
    assert [p.stem for p in profiles.files("mine")] == ["first", "second", "mine"]


def test_bases_that_cannot_be(tmp_path):
    write(tmp_path, "base: mine\n")
    assert "mine.yaml: its keys 'base' lead back to it" in message(tmp_path)
    write(tmp_path, "base: nowhere\n")
    assert "no profile 'nowhere'" in message(tmp_path)


def test_a_key_that_stands_twice_is_not_lost(tmp_path):
    write(tmp_path, "head: {epochs: 2}\nhead: {a: 5}\n")
    assert "mine.yaml is not valid YAML: key 'head' stands there twice" in message(tmp_path)
    write(tmp_path, "head: {a: 2, epochs: 2, a: 5}\n")
    assert "key 'a' stands there twice: join the two" in message(tmp_path)


def test_values_of_the_file_are_taken(tmp_path):
    write(tmp_path, changed("head.a", 2.5))
    assert load(tmp_path).head.a == 2.5
    write(tmp_path, changed("seeds", [4, 5, 6, 7]))
    profile = load(tmp_path)
    assert profile.seeds == (4, 5, 6, 7) and profile.name == "mine" and profile.head.epochs == SMOKE["head"]["epochs"]


@pytest.mark.parametrize(
    "where",
    ["sed", "sam.modell", "head.epoch", "distillation.tau", "inference.nms", "datasets.voc.path"],
)
def test_unknown_key_is_named(tmp_path, where):
    content = SMOKE | {part: SMOKE.get(part, {}) for part in ("distillation", "inference")}
    *parents, last = where.split(".")
    content = yaml.safe_load(yaml.safe_dump(content))
    inner = content
    for key in parents:
        inner = inner[key]
    inner[last] = 1
    write(tmp_path, yaml.safe_dump(content))
    assert message(tmp_path) == f"profiles/mine.yaml: {where}: unknown key (a typing error?): {ALL_KEYS}"


@pytest.mark.parametrize(
    "where, value",
    [
        ("head.epochs", "many"),
        ("head.epochs", 2.5),
        ("head.epochs", True),
        ("head.epochs", 0),
        ("head.a", 0.5),  # more masks than there are
        ("head.learning_rate", "1e-3"),  # what YAML makes of 1e-3 without a dot
        ("sam.points_per_side", None),
        ("sam.precision", "double"),
        ("sam.mask_choice", "first"),
        ("sam", "vit_h"),
        ("seeds", []),
        ("seeds", 0),
        ("sources", {}),
        ("datasets", {}),
        ("datasets.voc.classes", ["dog"]),  # a softmax over one class is always sure
        ("world", ["a"]),
        ("datasets.voc.classes", "dog"),
        ("sources.web.per_class", -1),
    ],
)
def test_wrong_value_is_named_with_its_key(tmp_path, where, value):
    write(tmp_path, changed(where, value))
    error = message(tmp_path)
    assert error.startswith(f"profiles/mine.yaml: {where}: ") and f"found {value!r}" in error


@pytest.mark.parametrize("where", ["world", "sam", "sam.model", "datasets.coco.root", "sources.web.per_class"])
def test_missing_key_is_named(tmp_path, where):
    write(tmp_path, changed(where, ...))
    assert message(tmp_path).startswith(f"profiles/mine.yaml: {where}: Field required")


def test_seeds_that_cannot_be_used(tmp_path):
    for value, error in (([0, 0], "name each once"), ([-1], "seeds.0"), ([2**32], "seeds.0")):
        write(tmp_path, changed("seeds", value))
        assert "profiles/mine.yaml: seeds" in message(tmp_path) and error in message(tmp_path)
    with pytest.raises(UserError, match="seed -1: choose a number from 0 to"):
        profiles.load("smoke", seed=-1)


def test_choices_are_not_made_on_the_test_split(tmp_path):
    write(tmp_path, changed("datasets.voc.validation", SMOKE["datasets"]["voc"]["split"]))
    assert "datasets.voc" in message(tmp_path) and "choices must not be made on test images" in message(tmp_path)


def test_nothing_is_trained_on_the_test_split(tmp_path):
    write(tmp_path, changed("datasets.voc.train", SMOKE["datasets"]["voc"]["split"]))
    assert "datasets.voc" in message(tmp_path) and "nothing must be trained on test images" in message(tmp_path)
    write(tmp_path, changed("datasets.voc.train", SMOKE["datasets"]["voc"]["validation"]))
    assert load(tmp_path).datasets["voc"].train == "val"


@pytest.mark.parametrize(
    "source, error",
    [
        ({"per_class": 1}, "name one kind of source (generate, crawl), found none"),
        ({"per_class": 1, "generate": {"model": "a"}, "crawl": {}}, "name one kind of source"),
        (
            {"per_class": 1, "draw": {}},
            "no source of training images 'draw': choose from generate, crawl, or name your",
        ),
        ({"per_class": 1, "nowhere:SOURCE": {}}, "'nowhere:SOURCE' cannot be imported as module:name"),
        ({"per_class": 1, "crawl": {}, "count": 3}, "name one kind of source (generate, crawl), found c"),
        ({"per_class": 1, "crawl": {"tempo": 3}}, f"crawl.tempo: unknown key (a typing error?): {ALL_KEYS}"),
        ({"per_class": 1, "generate": {"model": "a", "steps": 0}}, "generate.steps: Input should be greater"),
    ],
)
def test_a_source_is_of_one_known_kind(tmp_path, source, error):
    write(tmp_path, changed("sources.web", source))
    assert message(tmp_path).startswith("profiles/mine.yaml: sources.web: ") and error in message(tmp_path)


def test_all_mistakes_are_said_at_once(tmp_path):
    content = SMOKE | {"head": {"epochs": "many", "size": 3}, "seeds": "none"}
    write(tmp_path, yaml.safe_dump(content))
    assert all(key in message(tmp_path) for key in ("head.epochs", "head.size", "seeds"))


def test_data_sets_and_sources_may_have_any_name(tmp_path):
    write(tmp_path, changed("datasets.drawings", SMOKE["datasets"]["voc"]))
    assert set(load(tmp_path).datasets) == {"voc", "coco", "drawings"}


@pytest.mark.parametrize("name", ["pascal", "nowhere:Reader"])
def test_a_format_that_nobody_reads(tmp_path, name):
    write(tmp_path, changed("datasets.voc.format", name))
    error = "no data set reader 'pascal': choose from voc, coco, or name your own" if name == "pascal" else "cannot be"
    assert message(tmp_path).startswith("profiles/mine.yaml: datasets.voc.format: ") and error in message(tmp_path)


def test_a_precision_that_the_machine_cannot_do(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "device", lambda: torch.device("cpu"))
    write(tmp_path, changed("sam.precision", "float16"))
    assert message(tmp_path) == (
        "profiles/mine.yaml: sam.precision: float16 needs a GPU, and there is none: write auto, float32 or bfloat16"
    )


@pytest.mark.parametrize("text", ["a: [1, 2", "a: b: c", "\t- x", b"\xff\xfe\x00w"])
def test_not_yaml(tmp_path, text):
    write(tmp_path, text)
    assert message(tmp_path).startswith("profiles/mine.yaml is not valid YAML: ")


@pytest.mark.parametrize(
    "text, kind", [("", "NoneType"), ("# only a comment\n", "NoneType"), ("- a\n- b\n", "list"), ("mini", "str")]
)
def test_not_a_table(tmp_path, text, kind):
    write(tmp_path, text)
    assert message(tmp_path) == f"profiles/mine.yaml: expected 'key: value' lines, found {kind}"


def test_date_is_no_number(tmp_path):
    write(tmp_path, changed("head.epochs", "2024-01-01").replace("'2024-01-01'", "2024-01-01"))
    assert "head.epochs" in message(tmp_path)


def test_unknown_profile_names_those_there_are():
    with pytest.raises(UserError, match=r"no profile 'nope': choose one of .*mini.*smoke"):
        profiles.load("nope")


def test_a_search_with_an_unknown_key_or_unequal_budgets_says_so(tmp_path):
    search = {"heads": [{"head.a": 5, "hed.epochs": 6}], "clip": [{"clip.crop": True}], "score_thresholds": [0.5]}
    write(tmp_path, changed("search", search))
    assert "search: there is no setting 'hed.epochs'" in message(tmp_path)
    write(tmp_path, changed("search", search | {"heads": [{"head.a": 5}, {"head.a": 6}]}))
    assert "heads has 2 variants and clip 1: list as many" in message(tmp_path)
