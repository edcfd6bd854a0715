"""Class names, checked against the lists that torchvision ships with its weights."""

from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights
from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights

from usam.data.class_names import COCO, SUPERCLASSES, VOC, prompt


def test_voc_names_and_order():
    assert ("__background__", *VOC) == tuple(DeepLabV3_ResNet50_Weights.DEFAULT.meta["categories"])


def test_coco_ids_and_their_gaps():
    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # by id, "N/A" in the gaps
    expected = {i: name for i, name in enumerate(names) if name not in ("__background__", "N/A")}
    assert expected == COCO
    assert len(COCO) == 80 and max(COCO) == 90


def test_superclasses_hold_every_voc_class_once():
    members = [name for group in SUPERCLASSES.values() for name in group]
    assert sorted(members) == sorted(VOC) and len(SUPERCLASSES) == 5


def test_prompt():
    assert prompt("dining table") == "a photo of a dining table"
