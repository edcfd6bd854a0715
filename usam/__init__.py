"""U-SAM: class names in, labelled segmentation masks out (Kundu et al., user-defined semantics for SAM).

`annotate` does all of it on your own images; the notebooks tell how, module by module.
"""

from typing import Any

__all__ = ["annotate"]


def __getattr__(name: str) -> Any:
    """`annotate` is imported when it is asked for: torch and the others take seconds."""
    if name == "annotate":
        from usam.annotation.annotate import annotate

        return annotate
    raise AttributeError(f"module 'usam' has no attribute '{name}'")
