"""Weights that ship with the package, as safetensors files beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

_FOLDER = Path(__file__).parent

Use: TypeAlias = Literal["video", "fast video", "photograph", "fast photograph", "camera"]
"""What is restored: a photograph has no neighbouring frames, a camera does not wait."""

_BEST: dict[Use, str] = {
    "video": "strcnn_dtb_paths",
    "fast video": "strcnn_dtb_choice",
    "photograph": "strcnn_dtb_photo_paths",
    "fast photograph": "strcnn_dtb_photo",
    "camera": "strcnn_dtb_live",
}


_WITHIN = {
    "strcnn_dtb_choice": "strcnn_dtb_paths",
    "strcnn_dtb_photo": "strcnn_dtb_photo_paths",
}
"""Networks that ship within the file of a system, as its base."""


def names() -> list[str]:
    """Returns the names of shipped weights that ``--ckpt`` accepts."""
    return sorted({path.stem for path in _FOLDER.glob("*.safetensors")} | _WITHIN.keys())


def path(name: str) -> Path:
    """Returns the file of shipped weights."""
    return _FOLDER / f"{_WITHIN.get(name, name)}.safetensors"


def is_base(name: str) -> bool:
    """Returns whether the weights are the base of the system in their file."""
    return name in _WITHIN


def default_name(use: Use = "video") -> str:
    """Returns the name of the best shipped weights for this use, on any device."""
    return _BEST[use]
