"""Weights that ship with the package, as safetensors files beside this one."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent

# Best first. What runs at all runs on a CPU too, so there is one list for every device until
# weights ship that need a GPU to restore in reasonable time.
_BEST_FIRST = ("strcnn_dtb_choice",)

_PHOTOGRAPHS = "strcnn_dtb_photo"
"""Of the same network, trained on single images: neighbours that repeat a frame tell nothing."""


def names() -> list[str]:
    """The names that ``--ckpt`` takes."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def path(name: str) -> Path:
    """The file of shipped weights."""
    return _FOLDER / f"{name}.safetensors"


def default_name(*, photograph: bool = False) -> str:
    """The best weights that ship, for video or for one image by itself."""
    if photograph:
        return _PHOTOGRAPHS
    return next(name for name in (*_BEST_FIRST, *names()) if name in names())
