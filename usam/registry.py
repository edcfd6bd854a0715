"""What a profile names: functions as "module:function", and three registries, by which the project is extended.

CONTRIBUTING.md says how to add a data set, a source of images or a method.
"""

import importlib
from pathlib import Path
from typing import Any

from usam.errors import UserError


class Registry(dict[str, str]):
    """Parts of one `kind` by name, each as "module:name", which is imported when it is asked for."""

    def __init__(self, kind: str, parts: dict[str, str]):
        super().__init__(parts)
        self.kind = kind

    def find(self, name: str) -> Any:
        """The part called `name`, or the object that `name` imports as "module:name".

        Raises:
            UserError: neither a known name nor an importable object.
        """
        if name not in self and ":" not in name:
            raise UserError(f"no {self.kind} '{name}': choose from {', '.join(self)}, or name your own as module:name")
        return imported(self.get(name, name))

    def own_code(self) -> list[Path]:
        """The folders of the parts that are not the project's."""
        return sorted(source_folder(part) for part in self.values() if not part.startswith("usam."))


# (root, split, class names or None for all) -> a `usam.data.datasets.Dataset`
DATASET_READERS = Registry("data set reader", {"voc": "usam.data.voc:VocDataset", "coco": "usam.data.coco:CocoDataset"})
# `usam.data.sources.ImageSource` objects
IMAGE_SOURCES = Registry(
    "source of training images", {"generate": "usam.data.generate:SOURCE", "crawl": "usam.data.web_images:SOURCE"}
)
# (profile, data set, source, seed) -> a `usam.pipeline.methods.Ready`
METHODS = Registry(
    "method",
    {
        "U-SAM": "usam.pipeline.methods:u_sam",
        "MIL only": "usam.pipeline.methods:mil_only",
        "in-domain": "usam.pipeline.methods:in_domain",
        "shuffled labels": "usam.pipeline.methods:shuffled_labels",
        "shuffled labels, teacher at threshold 0": "usam.pipeline.methods:shuffled_teacher",
        "all background": "usam.pipeline.methods:all_background",
        "SAM+CLIP": "usam.pipeline.methods:sam_clip",
        "Leopart": "usam.pipeline.rivals:leopart",
        "Leopart, deployable names": "usam.pipeline.rivals:leopart_deployable",
        "k-means on DINO": "usam.pipeline.rivals:kmeans",
        "k-means on DINO, deployable names": "usam.pipeline.rivals:kmeans_deployable",
        "TransFGU": "usam.pipeline.rivals:decoded",
        "TransFGU, deployable names": "usam.pipeline.rivals:decoded_deployable",
        "ACR": "usam.pipeline.rivals:acr",
        "ACR, deployable names": "usam.pipeline.rivals:acr_deployable",
        "plain CAM": "usam.pipeline.rivals:plain_cam",
        "plain CAM, deployable names": "usam.pipeline.rivals:plain_cam_deployable",
        "our masks + true labels": "usam.pipeline.methods:true_labels",
        "true masks + our labels": "usam.pipeline.methods:true_masks",
    },
)


def imported(name: str) -> Any:
    """The object that is named "module:name".

    Raises:
        UserError: it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"'{name}' cannot be imported as module:name ({error}): correct it in the profile") from error


def source_folder(name: str) -> Path:
    """The folder of the package in which "module:name" lies: any of its files may change what it makes."""
    imported(name)
    return Path(importlib.import_module(name.partition(":")[0]).__file__).parent
