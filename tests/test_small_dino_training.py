"""How the small DINO is trained: its loss by hand, crops, a run that stops and goes on, a folder that transformers
reads."""

import json
import math

import pytest
import torch
from transformers import ViTImageProcessor, ViTModel

from miniature.training import dino


def test_contrastive_loss_by_hand():
    one, other = torch.eye(2)
    vectors = torch.stack([one, other, one, other])  # two pictures, two crops of each
    # of the three other crops, one is the same picture's (cosine 1), two are another one's (cosine 0)
    same = math.exp(1 / dino.TEMPERATURE)
    assert dino.contrastive_loss(vectors, vectors).item() == pytest.approx(-math.log(same / (same + 2)), abs=1e-6)
    swapped = vectors[[1, 0, 2, 3]]  # the teacher takes the first crops for each other
    assert dino.contrastive_loss(vectors, swapped) > 2
    alike = one.expand(4, 2)
    assert dino.contrastive_loss(alike, alike).item() == pytest.approx(math.log(3), abs=1e-6)


def test_the_teacher_follows_slowly():
    pair = dino.Pair()
    first = next(pair.teacher.parameters()).clone()
    assert all(torch.equal(a, b) for a, b in zip(pair.teacher.parameters(), pair.student.parameters(), strict=True))
    with torch.no_grad():
        for p in pair.student.parameters():
            p.add_(1.0)
    pair.follow()
    torch.testing.assert_close(next(pair.teacher.parameters()), first + (1 - dino.MOMENTUM))


def test_crops_are_pieces_of_their_picture():
    pictures = torch.zeros(2, 3, 40, 40, dtype=torch.uint8)
    pictures[1] = 255
    black, white = dino.crop(pictures, 16, (0.1, 1.0), torch.Generator().manual_seed(0))
    assert black.shape == (3, 16, 16) and black.eq(-1).all() and white.min() > -0.2
    again = dino.crop(pictures, 16, (0.1, 1.0), torch.Generator().manual_seed(0))
    assert torch.equal(again[1], white)


def test_training_stops_goes_on_and_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dino, "BATCH", 2)
    monkeypatch.setattr(dino, "STYLES", ("any",))
    out = tmp_path / "dino"
    first = dino.train(0.005, out, 8)
    before = ViTModel.from_pretrained(out, add_pooling_layer=False).state_dict()
    second = dino.train(first["minutes"] + 0.005, out, 8)
    assert second["steps"] > first["steps"] >= 1 and second["drawn"] == 8
    found = ViTModel.from_pretrained(out, add_pooling_layer=False)
    assert any(not torch.equal(before[name], value) for name, value in found.state_dict().items())
    image = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    seen = found.float()(ViTImageProcessor.from_pretrained(out)(image, return_tensors="pt").pixel_values)
    assert seen.last_hidden_state.shape == (1, 1 + 256, 128)
    threads = str(torch.get_num_threads())
    monkeypatch.setattr(
        "sys.argv", ["dino", "--minutes", "0", "--out", str(out), "--scenes", "15", "--threads", threads]
    )
    capsys.readouterr()
    dino.main()
    numbers = json.loads(capsys.readouterr().out)
    assert set(numbers) == {"probe", "random_weights"} and all(0 <= value <= 1 for value in numbers.values())
