"""Weights that a network of torchvision begins with: its own for ImageNet, in the data folder, or a file's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from usam import paths
from usam.errors import UserError


def place(network: str, weights: str) -> tuple[Path, str | None]:
    """Where the weights lie, and torchvision's address of them; None for a file of one's own.

    `weights` are a name of torchvision ("IMAGENET1K_V2"), or a file `.safetensors`, relative to the repository.

    Raises:
        UserError: torchvision has no such weights, or there is no such file.
    """
    if weights.endswith(".safetensors"):
        if not (file := paths.resolve(weights)).is_file():
            raise UserError(f"acr.weights: there is no {file}: correct the profile")
        return file, None
    known = _of_torchvision(network)
    if weights not in known:
        raise UserError(f"acr.weights: {network} has no '{weights}': choose from {', '.join(known)}, or name a file")
    url = known[weights].url
    return paths.data() / "checkpoints" / Path(url).name, url


def _of_torchvision(network: str) -> Mapping[str, Any]:
    from torchvision import models  # a second and a half, that only a profile with ACR shall spend

    return models.get_model_weights(network).__members__


def load(network: str, weights: str) -> dict[str, Tensor]:
    """The weights by their names in the network; torchvision's are downloaded if they are not here.

    A download is compared with the beginning of its SHA-256, which torchvision has in the file's name.

    Raises:
        UserError: there are no such weights, they cannot be downloaded, or the file is damaged.
    """
    file, url = place(network, weights)
    try:
        if url is None:
            return load_file(file)
        return torch.hub.load_state_dict_from_url(
            url, str(file.parent), map_location="cpu", check_hash=True, weights_only=True
        )
    except Exception as error:  # downloads and readers raise many types, which nobody lists
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        how = f"connect to the internet, or put {url} there" if url else "correct acr.weights in the profile"
        raise UserError(f"weights of {network} cannot be loaded from {file} ({reason}): {how}") from error


def table_row(network: str, weights: str) -> tuple[str, str, str, str, str]:
    """File, MiB, the beginning of its SHA-256, address, and whether it is here, as `published.table` shows them."""
    file, url = place(network, weights)
    size = _of_torchvision(network)[weights].meta["_file_size"]
    return file.name, f"{size:,.0f}", f"{file.stem.rpartition('-')[2]}…", url, "yes" if file.exists() else "no"
