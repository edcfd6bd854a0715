"""How the small SAM is trained: what a click means, the losses by hand, a run that stops and goes on."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from miniature.sam import build_sam
from miniature.training import batches, measure, train
from usam.method.sam import captured_tokens


def test_click_targets_of_a_drawing_by_hand():
    whole, group, part = torch.zeros(3, 4, 4, dtype=torch.int16)
    whole[:, 1:] = 1  # three of four columns are one object
    part[:2, 1:], part[2:, 1:] = 1, 2
    part[3, 3] = 3
    group[:2, 1:], group[2:, 1:] = 1, 2  # parts 2 and 3 are one group
    maps = torch.stack([whole, group, part])[None]
    maps[..., 3:, :1] = -1  # padding
    given = batches.click_targets(maps, torch.tensor([[[2.0, 3.0], [0.0, 0.0]]]))
    assert given.shape == (2, 4, 2, 2)
    on_part, on_background = given
    assert on_part[0].tolist() == on_part[3].tolist() == [[0.5, 1.0], [0.5, 1.0]]
    assert on_part[1].tolist() == [[0.0, 0.0], [0.5, 0.75]]
    assert on_part[2].tolist() == [[0.0, 0.0], [0.5, 1.0]]
    assert all(mask.tolist() == [[0.5, 0.0], [0.25, 0.0]] for mask in on_background)  # without the padding


def test_batches_repeat_themselves_and_carry_no_name():
    one, same, other = (batches.make_batch(index) for index in (3, 3, 4))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["images"], other["images"])
    assert {t.dtype for t in one.values()} <= {torch.float32, torch.int16, torch.int64}
    x, y = one["points"].long().unbind(-1)
    clicked = torch.stack([owners[b, a] for owners, a, b in zip(one["maps"][:, 0], x, y, strict=True)])
    assert (clicked >= 0).all()  # never in the padding
    assert ((one["owners"] >= 0) <= (clicked > 0)).all()  # who was clicked is an object


def test_mask_loss_by_hand():
    target = torch.zeros(1, 1, 2, 2)
    target[..., 0] = 1  # half of the pixels
    loss, quality, measured = train.mask_loss(torch.zeros(1, 1, 2, 2), target, torch.tensor([[0.25]]), 1.0)
    dice = 1 - (2 * 2 * 0.5 + 1) / (4 * 0.5 + 2 + 1)
    assert loss.item() == pytest.approx(math.log(2) + 2 * dice, abs=1e-6)
    assert measured.item() == 0 and quality.item() == pytest.approx(0.25**2)  # logits of 0 are outside
    _, quality, measured = train.mask_loss(20 * target - 10, target, torch.tensor([[1.0]]), 0.0)
    assert measured.item() == 1 and quality.item() == 0


def test_balance_weighs_the_inside_of_small_masks():
    target = torch.zeros(1, 1, 10, 10)
    target[0, 0, 0, 0] = 1
    missed = torch.full((1, 1, 10, 10), -5.0)
    assert (
        train.mask_loss(missed, target, torch.zeros(1, 1), 1.0)[0]
        > train.mask_loss(missed, target, torch.zeros(1, 1), 0.0)[0]
    )


def test_same_individual_loss_is_small_where_individuals_lie_together():
    owners = torch.tensor([0, 0, 1, 1])
    apart = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert train.same_individual_loss(apart, owners) < 0.01
    mixed = apart[[0, 2, 1, 3]]
    assert train.same_individual_loss(mixed, owners) > 5
    everything_alike = torch.ones(4, 2)
    assert train.same_individual_loss(everything_alike, owners).item() == pytest.approx(math.log(3), abs=1e-4)


@torch.no_grad()
def test_clicks_on_a_batch_are_decoded_as_by_segment_anything():
    torch.manual_seed(0)
    sam = build_sam()
    features, points = torch.randn(2, 256, 16, 16), torch.randint(0, 128, (2, 3, 2)).float()
    logits, iou, tokens = train.decode(sam, features, points)
    for k in range(2):
        sparse, dense = sam.prompt_encoder((points[k][:, None], torch.ones(3, 1)), None, None)
        with captured_tokens(sam) as theirs:
            masks, quality = sam.mask_decoder.predict_masks(
                features[k : k + 1], sam.prompt_encoder.get_dense_pe(), sparse, dense
            )
        mine = slice(3 * k, 3 * k + 3)
        torch.testing.assert_close(logits[mine], masks, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(iou[mine], quality, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(tokens[mine], theirs[0].flatten(1), atol=1e-4, rtol=1e-4)


def test_part_loss_is_small_where_parts_lie_together():
    parts = torch.tensor([[1, 1, 2, 2]])
    apart = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [0, 1]]])
    assert train.part_loss(apart, parts, samples=4) < 0.02
    assert train.part_loss(apart[:, [0, 2, 1, 3]], parts, samples=4) > 2


def test_short_cut_knows_where_the_click_was():
    torch.manual_seed(0)
    short_cut = train.ShortCut()
    points = torch.tensor([[[32.0, 32.0], [96.0, 96.0]]])
    logits = short_cut(torch.zeros(1, 256, 16, 16), torch.zeros(1, 32, 64, 64), points)
    assert logits.shape == (2, 4, 64, 64)
    # without features only the offsets are left: the same picture, moved by half its side
    torch.testing.assert_close(logits[0, :, :32, :32], logits[1, :, 32:, 32:], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_untrained_tokens_attend_to_the_place_of_the_click():
    torch.manual_seed(0)
    sam = build_sam()
    train.attend_to_click(sam)
    attention = sam.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    positions = sam.prompt_encoder.get_dense_pe()  # (1, 256, 16, 16)
    clicks = torch.tensor([[[19.5, 35.5]], [[107.5, 91.5]]])  # in the cells (x, y) = (2, 4) and (13, 11)
    sparse, _ = sam.prompt_encoder((clicks, torch.ones(2, 1)), None, None)
    product = attention.q_proj(sparse[:, 0]) @ attention.k_proj(positions.flatten(2)[0].T).T  # (2, 256 places)
    assert product.argmax(1).tolist() == [4 * 16 + 2, 11 * 16 + 13]


def test_schedule_goes_through_both_phases():
    plans = [train.schedule(share, 1000) for share in np.linspace(0, 1, 101)]
    first = [p for p in plans if p.tokens == 0]
    assert 0 < len(first) < len(plans) and plans[: len(first)] == first
    assert plans[-1].tokens == 1 and plans[-1].balance == 0 and plans[-1].rate < 1e-5
    assert all(p.rate <= p.maps_rate <= max(train.RATES) for p in plans)
    alone = [train.schedule(share, 1000, decoder_alone=True) for share in np.linspace(0, 1, 101)]
    assert all(p.tokens > 0 for p in alone) and alone[-1] == plans[-1]


def test_a_third_of_the_scenes_is_crowded():
    counts = [len(batches.make_batch(index)["shapes"]) for index in range(12)]  # individuals on 8 scenes
    usual, crowded = (
        sum((1 + k) * p for k, p in enumerate(batches.datasets.SCENES[name].chances)) for name in ("voc", "coco")
    )
    wanted = batches.SCENES * (0.7 * usual + 0.3 * crowded)
    assert np.mean(counts) == pytest.approx(wanted, rel=0.15)


def test_training_stops_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "ENCODER_SHARE", 0.0)  # the decoder from the first step on
    out = tmp_path / "sam.safetensors"
    first = train.train(0.005, out)
    build_sam().load_state_dict(load_file(out))
    before = load_file(out)
    second = train.train(first["minutes"] + 0.01, out)
    assert second["steps"] > first["steps"] >= 1
    assert second["pictures"] == 16 * second["steps"]
    assert any(not torch.equal(before[k], v) for k, v in load_file(out).items())


def test_training_begins_with_given_weights(tmp_path):
    sam = build_sam()
    train.save_weights(sam, tmp_path / "start.safetensors")
    run = train.Run(tmp_path / "other.safetensors", torch.device("cpu"), start=tmp_path / "start.safetensors")
    assert all(
        torch.equal(v, run.model.sam.state_dict()[k]) for k, v in load_file(tmp_path / "start.safetensors").items()
    )


def test_weights_of_any_file_are_measured(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    train.save_weights(build_sam(), tmp_path / "fresh.safetensors")
    monkeypatch.setattr(measure, "probe", lambda extractor, per_class, scenes: {"probe": [per_class, scenes]})

    def measured(*options: str) -> dict:
        monkeypatch.setattr(
            "sys.argv", ["measure", "--scenes", "2", "--threads", str(torch.get_num_threads()), *options]
        )
        measure.main()
        return json.loads(capsys.readouterr().out)

    fresh, ours = measured("--weights", str(tmp_path / "fresh.safetensors"), "--per-class", "3"), measured()
    assert fresh["weights"] == "fresh.safetensors" and ours["weights"] == "sam.safetensors" and fresh["probe"] == [3, 1]
    assert fresh["whole_iou"] < ours["whole_iou"] and fresh["whole_count"] == ours["whole_count"] > 0
