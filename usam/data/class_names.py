"""Class names: PASCAL VOC's 20, COCO's 80 with their ids, the paper's five superclasses, and the prompt."""

import re
from collections.abc import Sequence

from usam.errors import UserError

VOC = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

COCO = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe",
    27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard",
    42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife",
    50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot",
    58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard",
    77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book",
    85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}  # fmt: skip

# Paper section 4, "Changed Granularity".
SUPERCLASSES = {
    "animals": ("bird", "cat", "cow", "dog", "horse", "sheep"),
    "furniture": ("chair", "diningtable", "sofa"),
    "household items": ("bottle", "pottedplant", "tvmonitor"),
    "person": ("person",),
    "transportation": ("aeroplane", "bicycle", "boat", "bus", "car", "motorbike", "train"),
}

# The class of things that the user did not ask for: masks with this label are dropped.
NOTHING = "nothing of these"

LONGEST_NAME = 60  # letters; CLIP reads 77 tokens, and a folder bears the name


def prompt(name: str) -> str:
    """The text that stands for the class `name`, for the generator and for CLIP (paper 3.4 and 4)."""
    return f"a photo of a {name}"


def check_names(names: Sequence[str]) -> None:
    """Class names become prompts, search words and folder names: all must bear them.

    Raises:
        UserError: none at all; one that is empty, too long, not ASCII or no folder name; two that share a folder.
    """
    if not names:
        raise UserError("no class names: name at least one")
    for name in names:
        shown = repr(name if len(name) <= LONGEST_NAME else name[:20] + "...")  # on one line
        if len(name) > LONGEST_NAME:
            raise UserError(f"class name {shown} has {len(name)} letters: at most {LONGEST_NAME} are allowed")
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9 _-]*[A-Za-z0-9_-])?", name):
            raise UserError(
                f"class name {shown} is no folder name: use English letters, digits, blanks, '-' and '_' alone"
            )
        if sum(folder_name(name).lower() == folder_name(other).lower() for other in names) > 1:
            raise UserError(f"class name {shown} would share its folder with another: name each class once")


def folder_name(name: str) -> str:
    """The folder of a class's images."""
    return name.replace(" ", "_")
