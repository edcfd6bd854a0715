"""How the small CLIP and the small Stable Diffusion are trained and judged; their folders in plain libraries."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline
from sklearn.neighbors import NearestNeighbors
from transformers import CLIPModel, CLIPProcessor

from miniature import world
from miniature.training import clip, diffusion, judge, loop, pictures
from usam import profiles
from usam.config import SourceConfig
from usam.data import generate, image_files
from usam.data.class_names import COCO, SUPERCLASSES, VOC, prompt
from usam.data.sources import GenerateConfig
from usam.errors import UserError


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory) -> Path:
    """The small CLIP's folder, untrained."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip") / "clip"
    words = clip.tokenizer()
    clip.save(clip.build(words).eval(), clip.processor(words), folder)
    return folder


def test_names_are_what_prompts_may_say():
    assert set(VOC) <= set(pictures.NAMES) and set(SUPERCLASSES) <= set(pictures.NAMES)
    assert {"airplane", "tv", "hot dog"} & set(pictures.NAMES) == {"airplane", "tv"}  # nobody has drawn a hot dog
    assert len(set(pictures.NAMES)) == len(pictures.NAMES)
    for name in pictures.NAMES:
        assert all(drawing in world.DRAWINGS for drawing in pictures.members(name))
    assert {one for name in pictures.NAMES for one in pictures.members(name)} == set(world.DRAWINGS)


def test_captions_name_what_is_there():
    rng = np.random.default_rng(0)
    captions = {pictures.caption(("tvmonitor", "dog"), rng) for _ in range(300)}
    first = ("tv", "tvmonitor", "household items")
    assert captions == {f"a photo of a {one} and a {two}" for one in first for two in ("dog", "animals")}
    assert pictures.caption(("person",), rng) == "a photo of a person"
    assert pictures.names_of("aeroplane") == (["aeroplane", "airplane"], ["transportation"])


def test_each_word_is_a_token_and_others_are_spelt():
    words = clip.tokenizer()
    for name in pictures.NAMES:
        assert words.tokenize(prompt(name)) == [f"{w}</w>" for w in prompt(name).split()]
    assert words.decode(words("A photo of a QUOKKA").input_ids[1:-1]) == "a photo of a quokka"
    odd = words("ö 犬 \x07", padding="max_length", max_length=clip.LENGTH).input_ids
    assert len(odd) == clip.LENGTH and max(odd) == words.eos_token_id == len(words) - 1


def test_training_and_held_out_pictures_differ():
    one, drawings = pictures.render(("studio", "web", "any"), "train", "clip", range(3), 32)
    again, _ = pictures.render(("studio", "web", "any"), "train", "clip", range(3), 32)
    assert torch.equal(one, again) and one.shape == (9, 3, 32, 32) and one.dtype == torch.uint8
    assert [d[0] for d in drawings[::3]] == list(world.DRAWINGS)[:3]
    held, numbers = pictures.held_out("studio", 2, "clip", 32)
    assert numbers.tolist() == [k for k in range(20) for _ in range(2)]
    assert not any(torch.equal(a, b) for a in held for b in one)


def test_contrastive_loss_is_clips_own_for_different_captions():
    a, b = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor(1.5)
    logits = scale.exp() * F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    own = (F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))) / 2
    assert clip.contrastive_loss(a, b, list("abcdef"), scale).item() == pytest.approx(own.item(), rel=1e-6)


def test_equal_captions_are_each_others_matches():
    z = torch.eye(2)[[0, 0, 1]]
    loss = clip.contrastive_loss(z, z, ["dog", "dog", "cat"], torch.tensor(math.log(50.0)))
    # two dogs share their row's probability: ln 2 for two rows of three, nothing for the cat
    assert loss.item() == pytest.approx(2 / 3 * math.log(2), abs=1e-6)


def test_cuts_stay_in_the_picture():
    torch.manual_seed(0)
    plain = torch.full((4, 3, clip.ROOM, clip.ROOM), 128, dtype=torch.uint8)
    found = clip.cut(plain, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    assert found.shape == (4, 3, clip.SIDE, clip.SIDE)
    assert (found.amax((2, 3)) - found.amin((2, 3))).max() < 1e-5  # no border was cut in
    assert found.min() >= 0.8 * 128 / 255 - 1e-3 and found.max() <= 1.2 * 128 / 255 + 1e-3


def test_clip_folder_in_plain_transformers(small_clip):
    assert sum(f.stat().st_size for f in small_clip.glob("*.safetensors")) <= 8e6
    model, both = CLIPModel.from_pretrained(small_clip), CLIPProcessor.from_pretrained(small_clip)
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    inputs = both(text=[prompt("dog"), prompt("car")], images=[image], padding=True, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, clip.SIDE, clip.SIDE)
    scores = model(**inputs).logits_per_image
    padded = both(text=[prompt("dog"), prompt("car")], images=[image], padding="max_length", return_tensors="pt")
    assert padded["input_ids"].shape[1] == clip.LENGTH
    torch.testing.assert_close(model(**padded).logits_per_image, scores, rtol=1e-4, atol=1e-5)  # pads are not read
    assert 0 <= clip.zero_shot(small_clip, ("studio",), 1)["studio"] <= 1


def test_autoencoder_loss_by_hand(monkeypatch):
    """Grey pictures with one bright column, drawn 0.1 too bright left of it; latents 0.5 off the mean colours."""
    monkeypatch.setattr(diffusion, "AUTOENCODER_BATCH", 2)
    pictures = torch.full((2, 3, 16, 16), 51, dtype=torch.uint8)  # -0.6 in [-1, 1]
    pictures[..., 8] = 204  # 0.6
    drawn = diffusion.in_range(pictures)

    class Fixed:
        device = torch.device("cpu")

        def encode(self, some):
            colours = torch.full((2, 4, 2, 2), -0.6)
            colours[..., 1] += 1.2 / 8  # the mean of the right 8 x 8 pixels
            mean = colours + 0.5
            latent = dict(mean=mean, std=torch.zeros_like(mean), kl=lambda: torch.tensor([3.0, 5.0]))
            return SimpleNamespace(latent_dist=SimpleNamespace(**latent))

        def decode(self, latent):
            again = drawn.clone()
            again[..., :8] += 0.1
            return SimpleNamespace(sample=again)

    loss = diffusion.autoencoder_loss(Fixed(), pictures, torch.Generator().manual_seed(0))
    # half of the pixels are 0.1 off; of 15 steps to the right one is 0.1 off, of those down none
    assert loss.item() == pytest.approx(0.05 + 0.1 / 15 + 0.25 + 4e-6, abs=1e-7)


def test_denoising_loss_by_hand():
    class Silent(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, noisy, times, prompts):
            self.seen = noisy, times, prompts
            return type("Out", (), {"sample": torch.zeros_like(noisy)})

    net, noise = Silent(), DDPMScheduler(**diffusion.NOISE)
    latents = torch.zeros(4, 2, 4, 16, 16)  # no deviation; each name's pictures are one point, 1 or 2
    latents[:2, 0], latents[2:, 0] = 1, 2
    prompts = torch.arange(3.0)[:, None, None].expand(3, clip.LENGTH, 8)
    pools = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    loss = diffusion.denoising_loss(net, latents, prompts, pools, noise, torch.Generator().manual_seed(0))
    noisy, times, read = net.seen
    share = noise.alphas_cumprod[times].view(-1, 1, 1, 1)
    named, near = read[:, 0, 0] + 1, noisy.mean((1, 2, 3)) / share.flatten().sqrt()
    clean = torch.where(named < 3, named, near.round().clamp(1, 2)).view(-1, 1, 1, 1)  # without a prompt either
    assert (near - clean.flatten())[share.flatten() > 0.5].abs().max() < 0.2
    chance = (noisy - share.sqrt() * clean) / (1 - share).sqrt()
    snr = (share / (1 - share)).flatten()
    squared = (share.sqrt() * chance - (1 - share).sqrt() * clean).square().mean((1, 2, 3))
    wanted = (torch.clamp(snr, max=diffusion.SNR_LIMIT) / (snr + 1) * squared).mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-3)
    assert set(read[:, 0, 0].tolist()) == {0.0, 1.0, 2.0}  # both names, and sometimes none


def test_a_loop_goes_on_where_it_was_stopped(tmp_path):
    def start(minutes, inputs=(1.0,)):
        inputs = list(inputs)
        torch.manual_seed(0)
        return loop.Loop(torch.nn.Linear(2, 1), 1e-2, minutes, tmp_path / "state.pt", inputs)

    def loss_of(model, generator):
        x = torch.randn(8, 2, generator=generator)
        return (model(x)[:, 0] - x.sum(1)).square().mean()

    first = start(0.005)
    first.run(loss_of)
    second = start(0.02)
    assert second.step == first.step > 0 and second.seconds == first.seconds
    assert torch.equal(second.model.weight, first.model.weight)
    with pytest.raises(UserError, match="belongs to other pictures or prompts"):
        start(0.02, (2.0,))
    second.run(loss_of)
    assert second.step > first.step and second.seconds >= 1.2
    assert loss_of(second.model, torch.Generator().manual_seed(1)) < loss_of(
        torch.nn.Linear(2, 1), torch.Generator().manual_seed(1)
    )


def test_training_ends_in_a_folder_that_plain_diffusers_draws_from(small_clip, tmp_path, monkeypatch):
    monkeypatch.setattr(diffusion, "BATCH", 2)
    monkeypatch.setattr(diffusion, "AUTOENCODER_BATCH", 2)
    out = tmp_path / "small"
    took = diffusion.train(0.02, out, small_clip, 1)
    assert took["unet_steps"] > 0 and took["autoencoder_steps"] > 0 and took["drawn"] == len(world.DRAWINGS)
    assert sum(f.stat().st_size for f in out.rglob("*.safetensors")) <= 30e6
    pipe = StableDiffusionPipeline.from_pretrained(out)
    settings = GenerateConfig(model=str(out), steps=2, batch=2, precision="float32")
    table, _ = generate.generate(tmp_path / "made", ["dog"], settings, 1)
    seed = generate.image_seed(0, "dog", 0, 0)
    same = pipe(prompt("dog"), num_inference_steps=2, generator=torch.Generator().manual_seed(seed))
    ours = image_files.read(tmp_path / "made" / table["file"][0]).astype(int)
    assert ours.shape == (128, 128, 3) and np.abs(ours - np.asarray(same.images[0])).max() <= 1


def test_nearest_against_scikit_learn():
    some, others = torch.randint(256, (2, 9, 3, 5, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    flat = [t.flatten(1).numpy() / 255 for t in (some, others)]
    far, _ = NearestNeighbors(n_neighbors=1).fit(flat[1]).kneighbors(flat[0])
    np.testing.assert_allclose(judge.nearest(some, others), far[:, 0] / math.sqrt(75), rtol=1e-4)


def test_names_of_coco_are_all_spelt_within_the_length(small_clip):
    both, prompts = CLIPProcessor.from_pretrained(small_clip), [prompt(name) for name in COCO.values()]
    read = both(text=prompts, padding=True, return_tensors="pt")
    assert read["input_ids"].shape[1] <= clip.LENGTH
    CLIPModel.from_pretrained(small_clip).get_text_features(**read)


def test_judging_a_generator(tmp_path, model, monkeypatch, capsys):
    smoke = profiles.load("smoke")
    source = SourceConfig(per_class=9, generate=GenerateConfig(model=str(model), steps=1, batch=1))
    sources = {"crawling": smoke.sources["web"], "drawing": source}
    loaded = {name: smoke.model_copy(update={"sources": {"synthetic": one}}) for name, one in sources.items()}
    monkeypatch.setattr(judge.profiles, "load", loaded.get)
    with pytest.raises(UserError, match="does not generate its images"):
        judge.judge_generator("crawling", tmp_path, 1, 1, 1)
    monkeypatch.setattr(judge, "BATCH", 8)
    monkeypatch.setattr(judge, "EPOCHS", 1)
    result = judge.judge_generator("drawing", tmp_path, 2, 2, 1)
    table = pd.read_csv(tmp_path / "classes.csv")
    assert table["class"].tolist() == list(VOC) and result["images"] == 40
    assert result["recognised"] == pytest.approx(table["recognised"].mean(), abs=2e-3)
    assert (table["least distance"] <= table["distance"]).all() and (table["least distance"] > 0.05).all()
    assert (tmp_path / "sheet.png").exists() and "recognised" in capsys.readouterr().out
