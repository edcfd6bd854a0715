"""SAM's weights from disk: both formats load, anything else is refused in one line and never run."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from miniature.sam import build_sam as build_small
from usam import profiles
from usam.data import published
from usam.errors import UserError
from usam.method.sam import build_sam, load_sam

SMALL = "miniature.sam:build_sam"


def refused(path: Path, message: str, model: str = SMALL) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_sam(model, path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600 and path.name in str(error.value)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build_small().state_dict()


def test_both_kinds_of_checkpoint_load(tmp_path, weights):
    save_file(weights, tmp_path / "sam.safetensors")
    torch.save(weights, tmp_path / "sam.pth")
    for name in ("sam.safetensors", "sam.pth"):
        loaded = load_sam(SMALL, tmp_path / name)
        assert all(torch.equal(value, weights[key]) for key, value in loaded.state_dict().items())
        assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_missing_checkpoint(tmp_path):
    (tmp_path / "folder.pth").mkdir()
    for name in ("none.pth", "folder.pth"):
        profile = profiles.load("smoke").changed({"sam.checkpoint": str(tmp_path / name)})
        with pytest.raises(UserError, match=f"{name} is missing: put the file there"):
            published.checkpoint(profile.sam)


@pytest.mark.parametrize("keep", [0, 7, 1000, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["safetensors", "pth", "old pth"])
def test_truncated_checkpoint(tmp_path, weights, kind, keep):
    path = tmp_path / f"cut.{kind.split()[-1]}"
    some = {name: value for name, value in weights.items() if name.startswith("mask_decoder.iou")}
    if kind == "safetensors":
        save_file(some, path)
    else:
        torch.save(some, path, _use_new_zipfile_serialization=kind == "pth")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    refused(path, "cannot be read as weights, it may be cut off")


@pytest.mark.parametrize("content", [b"hello", b"\x80\x02.", b"PK\x03\x04 and then nothing", b"\xff" * 5000])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_something_else_under_that_name(tmp_path, content, suffix):
    (tmp_path / f"odd.{suffix}").write_bytes(content)
    refused(tmp_path / f"odd.{suffix}", "cannot be read as weights")


class Intruder:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple:
        return (Path.write_text, (self.trace, "here I was"))


def test_code_in_a_pickle_is_never_run(tmp_path):
    trace = tmp_path / "trace"
    torch.save({"weight": Intruder(trace)}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Intruder(trace), protocol=2))
    for name in ("zip.pth", "plain.pth"):
        refused(tmp_path / name, "cannot be read as weights")
    assert not trace.exists()
    pickle.loads((tmp_path / "plain.pth").read_bytes())
    assert trace.exists()  # it would have worked


def test_weights_of_another_model(tmp_path, weights):
    first = "mask_decoder.iou_token.weight"
    others = {
        "shape": weights | {first: torch.zeros(1, 128)},
        "lacking": {k: v for k, v in weights.items() if k != first},
        "more": weights | {"teacher.weight": torch.zeros(1)},
        "none": {"model": torch.zeros(1)},
    }
    for name, state in others.items():
        save_file(state, tmp_path / f"{name}.safetensors")
        wanted = "teacher.weight" if name == "more" else "iou_token|Missing"
        refused(tmp_path / f"{name}.safetensors", f"does not hold the weights of '{SMALL}': .*({wanted})")
    for i, odd in enumerate(([1, 2], torch.zeros(3), {1: 2}, {first: "text"})):
        torch.save(odd, tmp_path / f"{i}.pth")
        refused(tmp_path / f"{i}.pth", "does not hold the weights of")


@pytest.mark.parametrize("model", ["vit_x", "", "default"])
def test_unknown_model(model):
    with pytest.raises(UserError, match=f"sam.model '{model}': not vit_h, vit_l, vit_b, nor"):
        build_sam(model)


@pytest.mark.parametrize("model", ["usam.nowhere:sam", "miniature.sam:nothing", ".sam:build"])
def test_model_that_cannot_be_imported(model):
    with pytest.raises(UserError, match=f"'{re.escape(model)}' cannot be imported as module:name"):
        build_sam(model)
