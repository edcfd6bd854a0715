"""Tokens and masks against `transformers`' own SAM with the same weights; geometry and precision."""

import copy
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools import mask as rle_codec
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn
from transformers import SamConfig as TheirConfig
from transformers import SamModel

from usam import machine, paths
from usam.config import SamConfig
from usam.method import fast, sam
from usam.method.fast import FusedAttention, by_channels, by_mask, fuse_attention
from usam.method.masks import masks_to_rle, point_grid, rle_to_masks, to_image_size
from usam.method.sam import Extractor, load_sam

SMALL = "miniature.sam:build_sam"
WEIGHTS = "miniature/weights/sam.safetensors"


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="ViT-H in float32 wants a GPU")


def ALL(iou: Tensor) -> Tensor:
    """All four masks of each prompt."""
    return torch.arange(4).expand_as(iou)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Coarse random patches: something with edges."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    rows, columns = np.arange(height) * 6 // height, np.arange(width) * 6 // width
    return coarse[rows][:, columns]


def extractor(model: Sam, **settings: object) -> Extractor:
    """In float32 unless a test says otherwise: what is compared must not depend on the machine."""
    settings = {"precision": "float32"} | settings
    return Extractor(copy.deepcopy(model), SamConfig(model=SMALL, checkpoint=WEIGHTS, **settings))


@pytest.fixture(scope="module")
def trained() -> Sam:
    return load_sam(SMALL, paths.ROOT / WEIGHTS)


# -- parity with transformers -------------------------------------------------------------------------------------

# segment-anything's names -> transformers' names, applied in this order
RENAMES = (
    (r"^image_encoder\.neck\.0", "vision_encoder.neck.conv1"),
    (r"^image_encoder\.neck\.1", "vision_encoder.neck.layer_norm1"),
    (r"^image_encoder\.neck\.2", "vision_encoder.neck.conv2"),
    (r"^image_encoder\.neck\.3", "vision_encoder.neck.layer_norm2"),
    (r"^image_encoder\.blocks", "vision_encoder.layers"),
    (r"^image_encoder\.patch_embed\.proj", "vision_encoder.patch_embed.projection"),
    (r"^image_encoder", "vision_encoder"), (r"mask_downscaling\.0", "mask_embed.conv1"),
    (r"mask_downscaling\.1", "mask_embed.layer_norm1"), (r"mask_downscaling\.3", "mask_embed.conv2"),
    (r"mask_downscaling\.4", "mask_embed.layer_norm2"), (r"mask_downscaling\.6", "mask_embed.conv3"),
    (r"point_embeddings", "point_embed"),
    (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    (r"output_upscaling\.0", "upscale_conv1"), (r"output_upscaling\.1", "upscale_layer_norm"),
    (r"output_upscaling\.3", "upscale_conv2"), (r"(mlps\.\d|iou_prediction_head)\.layers\.0", r"\1.proj_in"),
    (r"(mlps\.\d|iou_prediction_head)\.layers\.2", r"\1.proj_out"),
    (r"(mlps\.\d|iou_prediction_head)\.layers\.1", r"\1.layers.0"), (r"norm_final_attn", "layer_norm_final_attn"),
    (r"\.norm(\d)", r".layer_norm\1"),
)  # fmt: skip


def converted(model: Sam) -> dict[str, Tensor]:
    """A segment-anything state under transformers' names, which holds the Gaussian matrix twice."""
    state = {}
    for name, value in model.state_dict().items():
        for old, new in RENAMES:
            name = re.sub(old, new, name)
        state[name] = value
    state["shared_image_embedding.positional_embedding"] = state["prompt_encoder.shared_embedding.positional_embedding"]
    return state


def decoder_of(mlp_dim: int) -> dict:
    # segment-anything leaves the decoder's layer norms at torch's own epsilon
    return dict(mlp_dim=mlp_dim, layer_norm_eps=1e-5)


def random_vit() -> tuple[Sam, SamModel]:
    """segment-anything's ViT at 128 px, with windows that do not divide the grid, and transformers' twin of it."""
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=128, embed_dim=64, depth=2, num_heads=2, out_chans=256, use_rel_pos=True, window_size=3,
        global_attn_indexes=(1,), norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
    )  # fmt: skip
    prompts = PromptEncoder(embed_dim=256, image_embedding_size=(8, 8), input_image_size=(128, 128), mask_in_chans=16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    ours = Sam(encoder, prompts, MaskDecoder(transformer_dim=256, transformer=transformer)).eval()
    for parameter in ours.parameters():
        if not parameter.any():  # relative and absolute positions start at 0, biases too: then a mix-up would not show
            nn.init.normal_(parameter, std=0.1)
    vision = dict(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=128,
        window_size=3,
        global_attn_indexes=[1],
    )
    theirs = SamModel(
        TheirConfig(
            vision_config=vision, prompt_encoder_config=dict(image_size=128), mask_decoder_config=decoder_of(2048)
        )
    )
    theirs.load_state_dict(converted(ours))
    return ours, theirs.eval()


def small_pair(ours: Sam) -> tuple[Sam, SamModel]:
    """The small SAM and transformers' prompt encoder and decoder with its weights; their image encoder stays unused."""
    vision = dict(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=128,
        patch_size=8,
        global_attn_indexes=[0],
    )
    prompts = dict(image_size=128, patch_size=8)
    mlp_dim = ours.mask_decoder.transformer.layers[0].mlp.lin1.out_features
    theirs = SamModel(
        TheirConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder_of(mlp_dim))
    )
    state = {k: v for k, v in converted(ours).items() if not k.startswith("vision_encoder")}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith("vision_encoder") for name in missing)
    return ours, theirs.eval()


@torch.inference_mode()
def their_answer(theirs: SamModel, points: Tensor, **image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mask logits (N, 4, h, w), predicted IoU (N, 4), mask tokens (N, 4, 256) for N points (N, 2) of SAM's input."""
    seen = []
    hook = theirs.mask_decoder.transformer.register_forward_hook(lambda _m, _i, out: seen.append(out[0]))
    answers = [theirs(input_points=points[None, :, None], multimask_output=m, **image) for m in (False, True)]
    hook.remove()
    logits = torch.cat([a.pred_masks[0] for a in answers], 1)  # single-mask output first
    iou = torch.cat([a.iou_scores[0] for a in answers], 1)
    return logits, iou, seen[0][0, :, 1:5]  # after the IoU token, before the prompt's


@pytest.mark.parametrize("dataset_name", ["vit", "small, trained"])
def test_parity_with_transformers(dataset_name, trained):
    image, size = picture(150, 260), (74, 128)  # 150 x 260 into a square of 128: 73.8 rows
    ours, theirs = random_vit() if dataset_name == "vit" else small_pair(trained)
    points = point_grid((150, 260), 10)
    extract = extractor(ours)
    logits, iou, tokens, inner = extract.four_masks(image, points)
    assert inner == size and logits.shape[:2] == (100, 4) and tokens.shape == (100, 4, 256)
    scaled = torch.tensor(points * np.float32([128 / 260, 74 / 150]))
    pixels = extract._pixels(extract.prepare(image).pixels)[None]
    given = dict(pixel_values=pixels) if dataset_name == "vit" else dict(image_embeddings=ours.image_encoder(pixels))
    for name, a, b in zip(
        ("logits", "iou", "tokens"), (logits, iou, tokens), their_answer(theirs, scaled, **given), strict=True
    ):
        assert a.shape == b.shape and b.std() > 1e-3
        difference, scale = (a - b).abs().max().item(), b.abs().max().item()
        print(f"{dataset_name}: {name} differ by at most {difference:.1e} of {scale:.3g} ({difference / scale:.1e})")
        assert difference <= 1e-3 * scale
    assert (tokens[0] - tokens[99]).abs().max() > 1e-2  # the points matter


SIZES_OF = {
    "vit_b": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, global_attn_indexes=[2, 5, 8, 11]),
    "vit_h": dict(hidden_size=1280, num_hidden_layers=32, num_attention_heads=16, global_attn_indexes=[7, 15, 23, 31]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b", pytest.param("vit_h", marks=NEEDS_GPU)])
def test_parity_with_transformers_at_full_size(name):
    device = machine.device()
    torch.manual_seed(0)
    ours = sam.build_sam(name).eval()
    for parameter in ours.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    vision = SIZES_OF[name]
    theirs = SamModel(TheirConfig(vision_config=vision, mask_decoder_config=decoder_of(2048)))
    theirs.load_state_dict(converted(ours))
    theirs.eval().to(device)
    image, points = picture(375, 500), point_grid((375, 500), 10)  # 768 x 1024 in SAM's square
    exact = Extractor(copy.deepcopy(ours), SamConfig(model=name, precision="float32"), device)
    found = exact.four_masks(image, points)
    pixels = exact._pixels(exact.prepare(image).pixels)[None]
    scaled = torch.tensor(points * np.float32(1024 / 500), device=device)
    for word, a, b in zip(
        ("logits", "iou", "tokens"), found[:3], their_answer(theirs, scaled, pixel_values=pixels), strict=True
    ):
        difference, scale = (a - b).abs().max().item(), b.abs().max().item()
        print(f"{name}: {word} differ by at most {difference:.1e} of {scale:.3g} ({difference / scale:.1e})")
        assert a.shape == b.shape and b.std() > 1e-3 and difference <= 1e-3 * scale
    rough = Extractor(copy.deepcopy(ours), SamConfig(model=name, precision="bfloat16"), device).four_masks(
        image, points
    )
    cosine = torch.cosine_similarity(found[2].flatten(1), rough[2].flatten(1))
    print(f"{name}: bfloat16 against float32, smallest cosine of tokens {cosine.min():.6f}")
    assert cosine.min() >= 0.999
    several = [exact.prepare(picture(375, 500, seed)) for seed in range(3)]
    together, alone = exact.several(several), [exact.several([one])[0] for one in several]
    for one, other in zip(together, alone, strict=True):
        a, b = one.tokens.astype(np.float32), other.tokens.astype(np.float32)
        assert np.abs(a - b).max() <= 2e-3 * np.abs(b).max()  # stored in half precision
        assert (rle_to_masks(one.masks) == rle_to_masks(other.masks)).mean() > 0.999


def test_input_is_what_segment_anything_makes_of_an_image(trained):
    from segment_anything import SamPredictor

    image = picture(150, 260)
    predictor = SamPredictor(trained)
    predictor.set_image(image)
    extract = extractor(trained)
    small = extract.prepare(image).pixels
    pixels, inner = extract._pixels(small)[None], small.shape[:2]
    assert inner == predictor.input_size and pixels.shape == (1, 3, 128, 128)
    with torch.inference_mode():
        torch.testing.assert_close(trained.image_encoder(pixels), predictor.features)
    assert not pixels[:, :, inner[0] :].any()
    points = point_grid((150, 260), 2)
    scale = np.float32([inner[1] / 260, inner[0] / 150])
    np.testing.assert_allclose(points * scale, predictor.transform.apply_coords(points, (150, 260)), rtol=1e-6)


@pytest.mark.parametrize("prompts", [3, 30])
def test_decoder_takes_several_images_at_once(trained, prompts, monkeypatch):
    """With more prompts than fit at once, with several images that do, and with a chosen mask."""
    monkeypatch.setitem(fast.PROMPTS_AT_ONCE, "cpu", 8)
    torch.manual_seed(0)
    features, (positions, none) = torch.randn(5, 256, 7, 5), torch.randn(2, 1, 256, 7, 5)
    sparse = torch.randn(5, prompts, 2, 256)

    def choose(iou: Tensor) -> Tensor:
        return iou.argmin(-1, keepdim=True)

    with torch.inference_mode():
        logits, *others = fast.decode_prompts(trained, features, positions, sparse, none, choose)
        assert logits.shape == (5, prompts, 1, 28, 20)
        nothing, *same = fast.decode_prompts(trained, features, positions, sparse, none, None)
        assert nothing is None and all(torch.equal(a, b) for a, b in zip(others, same, strict=True))
        for k in range(5):
            whole, iou, tokens = fast.decode_prompts(
                trained, features[k : k + 1], positions, sparse[k : k + 1], none, ALL
            )
            torch.testing.assert_close(others[0][k], iou[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(others[1][k], tokens[0], rtol=1e-4, atol=1e-4)
            worst = iou[0].argmin(-1)
            torch.testing.assert_close(logits[k, :, 0], whole[0][torch.arange(prompts), worst], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("attend", [by_mask, by_channels])
def test_fused_attention_is_segment_anythings_own(attend, monkeypatch):
    monkeypatch.setattr(fast, "by_mask", attend)
    ours, _ = random_vit()
    pixels = torch.randn(2, 3, 128, 128)
    with torch.inference_mode():
        before = ours.image_encoder(pixels)
        fuse_attention(ours.image_encoder)
        assert any(isinstance(m, FusedAttention) for m in ours.image_encoder.modules())
        after = ours.image_encoder(pixels)
    assert (before - after).abs().max() < 1e-5 * before.abs().max()


# -- one image ----------------------------------------------------------------------------------------------------


def test_point_grid_by_hand():
    # 2 x 2 on an image 10 high and 40 wide: x at 10 and 30, y at 2.5 and 7.5, row by row
    grid = point_grid((10, 40), 2)
    assert grid.dtype == np.float32
    assert grid.tolist() == [[10, 2.5], [30, 2.5], [10, 7.5], [30, 7.5]]
    ten = point_grid((200, 100), 10)
    assert ten.shape == (100, 2)
    np.testing.assert_allclose(ten[[0, 1, 10, 99]], [[5, 10], [15, 10], [5, 30], [95, 190]], rtol=1e-6)  # x runs first


def test_many_prompts_in_one_call_equal_one_by_one(trained):
    image, points = picture(90, 128), point_grid((90, 128), 3)
    extract = extractor(trained)
    together = extract.four_masks(image, points)[:3]
    alone = [extract.four_masks(image, point[None])[:3] for point in points]
    for many, ones in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(many, torch.cat(ones), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("choice", ["best", "single"])
def test_embeddings_are_what_the_decoder_says(trained, choice):
    image = picture(192, 256)  # 96 x 128 of the input, 48 x 64 of the masks
    extract = extractor(trained, points_per_side=4, mask_choice=choice, mask_size="decoder")
    found = extract(image)
    logits, iou, tokens, _ = extract.four_masks(image, point_grid((192, 256), 4))
    assert found.image_size == (192, 256) and found.extent == (48.0, 64.0)
    assert found.tokens.shape == (16, 4, 256) and found.tokens.dtype == np.float16
    np.testing.assert_array_equal(found.tokens, tokens.half().numpy())
    masks = rle_to_masks(found.masks)
    assert masks.shape == (16, 48, 64) and 0.01 < masks.mean() < 0.99 and found.iou.dtype == np.float32
    for i in range(16):
        dataset_name = 0 if choice == "single" else 1 + int(np.argmax(iou[i, 1:].numpy()))
        assert found.iou[i] == iou[i, dataset_name]
        np.testing.assert_array_equal(masks[i], logits[i, dataset_name, :48].numpy() > 0)


@pytest.mark.parametrize("prompts", [1, 26])
def test_decoder_says_what_segment_anythings_own_says(trained, prompts):
    """The one rearranged, the other as it is, with a forward hook for the tokens; more prompts than fit at once."""
    torch.manual_seed(0)
    deep = MaskDecoder(
        num_multimask_outputs=3, transformer_dim=64, iou_head_hidden_dim=32,
        transformer=TwoWayTransformer(depth=3, embedding_dim=64, num_heads=4, mlp_dim=48),
    ).eval()  # fmt: skip
    for parameter in deep.parameters():  # biases are 0 when new
        nn.init.normal_(parameter, std=0.2)
    for decoder in (deep, trained.mask_decoder):
        model, width = SimpleNamespace(mask_decoder=decoder), decoder.transformer_dim
        features, positions, none = torch.randn(2, width, 7, 5), *torch.randn(2, 1, width, 7, 5)
        sparse = torch.randn(2, prompts, 2, width)
        for choose in (ALL, lambda iou: iou.argmin(-1, keepdim=True)):
            with torch.inference_mode():
                theirs = sam.decode_prompts(model, features, positions, sparse, none, choose)
                ours = fast.decode_prompts(model, features, positions, sparse, none, choose)
            for one, other in zip(ours, theirs, strict=True):
                assert one.shape == other.shape
                assert (one - other).abs().max() < 2e-5 * other.abs().max()


def test_the_switch_changes_rounding_alone(trained):
    image = picture(90, 120)
    fast_way, stock = (extractor(trained, precision="float32", fast=fast)(image) for fast in (True, False))
    np.testing.assert_allclose(fast_way.tokens, stock.tokens, atol=4e-3)  # half precision
    np.testing.assert_allclose(fast_way.iou, stock.iou, atol=1e-5)
    differing = rle_to_masks(fast_way.masks) != rle_to_masks(stock.masks)
    assert differing.mean() < 1e-4


def test_hook_is_removed_even_after_an_error(trained):
    transformer = trained.mask_decoder.transformer
    with pytest.raises(ZeroDivisionError), sam.captured_tokens(trained):
        assert len(transformer._forward_hooks) == 1
        1 / 0  # noqa: B018
    assert not transformer._forward_hooks


def test_bfloat16_stays_close_to_float32(trained):
    image, points = picture(192, 256), point_grid((192, 256), 10)
    exact, rough = (extractor(trained, precision=p).four_masks(image, points) for p in ("float32", "bfloat16"))
    assert all(value.dtype == torch.float32 for value in rough[:3])
    assert not torch.equal(exact[2], rough[2])  # the setting does something
    cosine = torch.cosine_similarity(exact[2].flatten(1), rough[2].flatten(1))
    print(f"bfloat16 against float32: smallest cosine of tokens {cosine.min():.5f}")
    assert cosine.min() >= 0.999
    assert ((exact[0] > 0) == (rough[0] > 0)).float().mean() > 0.98


@pytest.mark.parametrize("size", [(2000, 3), (3, 2000), (1, 1), (40, 30)])
def test_strips_and_tiny_images(trained, size):
    for mask_size, longest in (("decoder", 64), ("image", min(max(size), 1024))):
        found = extractor(trained, points_per_side=3, mask_size=mask_size)(picture(*size))
        assert found.image_size == size and np.isfinite(found.tokens).all()
        height, width = rle_to_masks(found.masks).shape[1:]
        assert (height, width) == tuple(np.ceil(found.extent)) and max(height, width) == longest
        assert to_image_size(rle_to_masks(found.masks), found.extent, size).shape == (9, *size)


@pytest.mark.parametrize("size", [(96, 128), (120, 77), (150, 260), (700, 1500)])
def test_masks_are_cut_where_segment_anything_cuts_them(trained, size):
    """Against SamPredictor, which knows one image; one of more than 1024 pixels is cut before the last enlargement."""
    from segment_anything import SamPredictor

    image, points = picture(*size), point_grid(size, 3)
    found = extractor(trained, points_per_side=3, mask_choice="single")(image)
    ours = to_image_size(rle_to_masks(found.masks), found.extent, size)
    predictor = SamPredictor(trained)
    predictor.set_image(image)
    theirs = [predictor.predict(p[None], np.ones(1), multimask_output=False)[0][0] for p in points]
    if max(size) <= sam.LARGEST:
        np.testing.assert_array_equal(ours, theirs)
    else:
        agreement = [(a & b).sum() / (a | b).sum() for a, b in zip(ours, theirs, strict=True)]
        assert np.mean(agreement) > 0.99


# -- many images --------------------------------------------------------------------------------------------------

SIZES = [(96, 128), (64, 64), (128, 40), (1, 1), (150, 260), (128, 96), (30, 30)]


@pytest.mark.parametrize("batch", [1, 3, None])
@pytest.mark.parametrize("per_core", [False, True])
def test_a_stream_is_image_by_image_whatever_the_batch(trained, batch, per_core):
    extract = extractor(trained, points_per_side=3, batch=batch, image_per_core=per_core)
    images = {k: picture(*size, seed=k) for k, size in enumerate(SIZES)}
    found = list(extract.stream(images, images.__getitem__))
    assert len(found) == len(SIZES)
    for k, one in enumerate(found):
        alone = extractor(trained, points_per_side=3)(images[k])
        assert (one.image_size, one.extent) == (SIZES[k], alone.extent)
        np.testing.assert_allclose(one.tokens.astype(float), alone.tokens.astype(float), atol=0.02, rtol=0.01)
        np.testing.assert_allclose(one.iou, alone.iou, atol=1e-4)
        ours, theirs = rle_to_masks(one.masks), rle_to_masks(alone.masks)
        assert ours.shape == theirs.shape and (ours == theirs).mean() > 0.999


@pytest.mark.slow
def test_a_compiled_encoder_says_the_same(trained):
    """In batches that are not full, and from several threads."""
    images = {k: picture(*size, seed=k) for k, size in enumerate(SIZES)}
    plain = list(extractor(trained, points_per_side=3).stream(images, images.__getitem__))
    compiled = extractor(trained, points_per_side=3, batch=3, image_per_core=True, compile=True)
    for one, other in zip(compiled.stream(images, images.__getitem__), plain, strict=True):
        np.testing.assert_allclose(one.tokens.astype(float), other.tokens.astype(float), atol=0.02, rtol=0.01)


def test_tokens_alone_are_the_same_tokens(trained):
    extract = extractor(trained, points_per_side=3)
    image = picture(96, 128)
    (short,) = extract.stream([0], lambda _: image, masks=False)
    whole = extract(image)
    assert short.masks == [] and len(whole.masks) == 9
    np.testing.assert_array_equal(short.tokens, whole.tokens)
    np.testing.assert_array_equal(short.iou, whole.iou)


def test_a_stream_asks_for_few_images_ahead(trained):
    extract, loaded = extractor(trained, points_per_side=1, image_per_core=True), []

    def load(k: int) -> np.ndarray:
        loaded.append(k)
        return picture(20, 20)

    stream = extract.stream(range(1000), load)
    next(stream)
    assert len(loaded) <= 3 * torch.get_num_threads() + 1
    stream.close()


def test_an_extractor_leaves_the_model_that_it_is_given_alone(trained):
    extractor(trained, precision="bfloat16")(picture(20, 20))
    assert {p.dtype for p in trained.parameters()} == {torch.float32}


# -- masks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 7, 11), (1, 64, 64), (3, 1, 64), (0, 4, 4)])
def test_encode_and_decode_are_inverse(shape):
    masks = np.random.default_rng(0).random(shape) < 0.5
    rles = masks_to_rle(masks)
    assert len(rles) == len(masks) and rle_to_masks(rles).dtype == bool
    assert all(tuple(rle["size"]) == shape[1:] for rle in rles)
    np.testing.assert_array_equal(rle_codec.area(rles) if rles else [], masks.sum((1, 2)))
    if rles:
        np.testing.assert_array_equal(rle_to_masks(rles), masks)
    assert len(rle_to_masks(rles)) == len(masks)


def test_to_image_size_by_hand():
    # An image of 150 x 256 covers 37.5 x 64 cells of a mask, 4 pixels a cell: cell edges lie on pixel edges.
    masks = np.zeros((2, 38, 64), bool)
    masks[0, :, 32:], masks[1, 20:] = True, True
    large = to_image_size(masks, (37.5, 64.0), (150, 256))
    assert large.shape == (2, 150, 256) and large.dtype == bool
    columns, rows = np.zeros((150, 256), bool), np.zeros((150, 256), bool)
    columns[:, 128:], rows[80:] = True, True
    np.testing.assert_array_equal(large[0], columns)
    np.testing.assert_array_equal(large[1], rows)


def test_to_image_size_of_one_size_changes_nothing_and_of_none_is_none():
    masks = np.random.default_rng(0).random((4, 9, 13)) < 0.5
    np.testing.assert_array_equal(to_image_size(masks, (9.0, 13.0), (9, 13)), masks)
    assert to_image_size(masks[:0], (9.0, 13.0), (20, 30)).shape == (0, 20, 30)


@pytest.mark.parametrize("size", [(150, 256), (375, 500), (500, 333), (97, 61)])
def test_to_image_size_agrees_with_segment_anythings_own_way(trained, size):
    extract = extractor(trained)
    inner = extract.prepare(picture(*size)).pixels.shape[:2]
    extent = tuple(n * 64 / 128 for n in inner)
    coarse = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    logits = nn.functional.interpolate(coarse, (64, 64), mode="bicubic")  # blobs with smooth outlines
    theirs = (trained.postprocess_masks(logits, inner, size) > 0)[:, 0].numpy()
    rows, columns = (int(np.ceil(n)) for n in extent)
    ours = to_image_size((logits[:, 0, :rows, :columns] > 0).numpy(), extent, size)

    def agreement(down: int, right: int) -> float:
        moved = np.roll(ours, (down, right), (1, 2))
        return (moved & theirs).sum() / (moved | theirs).sum()

    assert agreement(0, 0) > 0.98  # they resize logits, ours are binary: outlines differ by less than a cell
    assert max(agreement(*step) for step in ((-1, 0), (1, 0), (0, -1), (0, 1))) < agreement(0, 0)  # no drift
