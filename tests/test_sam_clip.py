"""SAM+CLIP: what CLIP sees of a mask, what it says of it, what becomes of that."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter
from transformers import CLIPModel, CLIPProcessor

from miniature.training.pictures import picture
from usam.baselines.sam_clip import ClipLabeller, by_clip
from usam.config import ClipConfig, InferenceConfig
from usam.errors import UserError
from usam.method.masks import MaskEmbeddings, masks_to_rle

FOLDER = "miniature/weights/clip"
NAMES = ["dog", "car", "traffic light"]
IMAGE = np.random.default_rng(0).integers(1, 256, (6, 10, 3), np.uint8)
MASK = np.zeros((6, 10), bool)
MASK[1:4, 2:8] = True
MASK[2, 3] = False


VIEWS = [{"fill": fill, "crop": crop} for fill in ("black", "mean", "blur", "none") for crop in (False, True)]
VIEWS.remove({"fill": "none", "crop": False})  # the same for every mask


def labeller(**settings) -> ClipLabeller:
    return ClipLabeller(ClipConfig(model=FOLDER, **{"precision": "float32"} | settings), NAMES)


def seen(**view) -> np.ndarray:
    """What CLIP sees of MASK."""
    one = labeller(**view)
    return one.picture(IMAGE, MASK, one.background(IMAGE))


# -- what CLIP sees -----------------------------------------------------------------------------------------------


def test_the_papers_picture_is_the_image_times_the_mask():
    square = seen()
    assert square.shape == (10, 10, 3) and square.dtype == np.uint8
    np.testing.assert_array_equal(square[2:8], IMAGE * MASK[..., None])  # two rows above and below make it square
    assert not square[:2].any() and not square[8:].any()


def test_other_fills():
    mean = [round(255 * m) for m in CLIPProcessor.from_pretrained(FOLDER).image_processor.image_mean]
    square = seen(fill="mean")
    assert (square[2:8][~MASK] == mean).all() and (square[0] == mean).all()
    np.testing.assert_array_equal(square[2:8][MASK], IMAGE[MASK])
    square = seen(fill="blur")
    np.testing.assert_array_equal(square[2:8][MASK], IMAGE[MASK])
    blurred = gaussian_filter(IMAGE.astype(float), (1, 1, 0), mode="mirror")  # a tenth of 10 pixels
    assert np.abs(square[2:8][~MASK] - blurred[~MASK]).max() < 4  # OpenCV's ends earlier, and rounds


def test_cut_to_the_box():
    square = seen(crop=True)  # the box is 3 x 6
    assert square.shape == (6, 6, 3)
    np.testing.assert_array_equal(square[1:4], (IMAGE * MASK[..., None])[1:4, 2:8])
    np.testing.assert_array_equal(seen(fill="none", crop=True)[1:4], IMAGE[1:4, 2:8])


def test_the_whole_image_as_it_is_would_be_the_same_for_every_mask():
    with pytest.raises(ValidationError, match="fill: none needs crop: true"):
        labeller(fill="none")


# -- what CLIP says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_probabilities_are_those_of_transformers(view):
    ours = labeller(**view)
    image, _ = picture("scene", "val", "clip baseline", 3)
    masks = np.random.default_rng(1).random((5, *image.shape[:2])) < 0.9
    masks[:, :20] = False
    model, processor = CLIPModel.from_pretrained(FOLDER).eval(), CLIPProcessor.from_pretrained(FOLDER)
    shown = [ours.picture(image, mask, ours.background(image)) for mask in masks]
    inputs = processor(text=[f"a photo of a {name}" for name in NAMES], images=shown, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**inputs).logits_per_image.softmax(1).numpy()
    np.testing.assert_allclose(ours.probabilities(image, masks), theirs, atol=1e-5)
    half = labeller(**view, precision="bfloat16").probabilities(image, masks)
    np.testing.assert_allclose(half, theirs, atol=0.05)


def test_batches_change_nothing_and_an_empty_mask_shows_nothing():
    image, _ = picture("scene", "val", "clip baseline", 4)
    masks = np.random.default_rng(2).random((7, *image.shape[:2])) < 0.5
    masks[2] = False
    at_once, by_three = (labeller(batch=n).probabilities(image, masks) for n in (100, 3))
    np.testing.assert_allclose(at_once, by_three, atol=1e-5)
    assert not at_once[2].any()
    np.testing.assert_allclose(np.delete(at_once, 2, 0).sum(1), 1, atol=1e-5)
    assert labeller().probabilities(image, masks[:0]).shape == (0, 3)


def test_the_small_clip_knows_a_masked_drawing():
    image, (name,) = picture("studio", "val", "clip baseline", 14)
    names = ["zebra", name, "banana"]
    everything = np.ones((1, *image.shape[:2]), bool)
    found = ClipLabeller(ClipConfig(model=FOLDER), names).probabilities(image, everything)
    assert found.argmax() == 1


# -- two masks, known logits, by hand ------------------------------------------------------------------------------


class Known(ClipLabeller):
    """A CLIP whose similarities to three prompts are given, mask by mask; its temperature is 10."""

    def __init__(self, similarities: list[list[float]]):
        self.config = ClipConfig(model=FOLDER)
        self.device, self.texts, self.empty = torch.device("cpu"), torch.eye(3, 4), np.zeros(3, np.uint8)
        # unit vectors with these cosines to the three prompts; the fourth number makes their length 1
        seen = torch.tensor([[*row, math.sqrt(1 - sum(c * c for c in row))] for row in similarities])
        features = SimpleNamespace(pooler_output=3 * seen)  # of any length
        self.model = SimpleNamespace(logit_scale=torch.tensor(math.log(10.0)), get_image_features=lambda **_: features)
        self.processor = _Pixels()


class _Pixels(dict):
    """A processor that prepares nothing."""

    def __call__(self, **_):
        return self

    def to(self, _device):
        return self


def test_two_masks_by_hand():
    masks = np.zeros((2, 6, 10), bool)
    masks[0, :, :4], masks[1, :, 4:] = True, True
    # 10 * cosines: (8, 2, 0) and (3, 4, 3): softmax e^8/(e^8+e^2+1) = 0.9972; e^4/(e^4+2e^3) = 0.5761
    known = Known([[0.8, 0.2, 0.0], [0.3, 0.4, 0.3]])
    found = known.probabilities(IMAGE, masks)
    first, second = math.e**8 / (math.e**8 + math.e**2 + 1), math.e**4 / (math.e**4 + 2 * math.e**3)
    assert found[0, 0] == pytest.approx(first, abs=1e-6) and found[1, 1] == pytest.approx(second, abs=1e-6)
    embeddings = MaskEmbeddings(
        np.zeros((2, 4, 256)), masks_to_rle(masks), np.ones(2), (6, 10), (6.0, 10.0), np.zeros((2, 2))
    )
    example = SimpleNamespace(image=IMAGE)
    sure = by_clip(known, InferenceConfig(score_threshold=0.7))(example, embeddings)
    assert sure.labels.tolist() == [0] and sure.scores.tolist() == pytest.approx([first])
    np.testing.assert_array_equal(sure.semantic_map(), np.where(masks[0], 1, 0))
    both = by_clip(known, InferenceConfig(score_threshold=0.5))(example, embeddings)
    assert both.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(both.semantic_map(), np.where(masks[0], 1, 2))


# -- bad input ----------------------------------------------------------------------------------------------------


def test_no_such_model(tmp_path):
    for model, message in (("miniature/weights/clop", "no model folder"), (str(tmp_path), "CLIP cannot be loaded")):
        with pytest.raises(UserError, match=message) as error:
            ClipLabeller(ClipConfig(model=model), NAMES)
        assert "\n" not in str(error.value)
