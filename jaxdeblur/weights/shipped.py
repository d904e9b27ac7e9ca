"""Weights that ship with the package, as safetensors files beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

_FOLDER = Path(__file__).parent

Use: TypeAlias = Literal["video", "fast video", "photograph", "camera"]
"""What is restored: a photograph has no neighbouring frames, a camera does not wait."""

_BEST: dict[Use, str] = {
    "video": "strcnn_dtb_paths",
    "fast video": "strcnn_dtb_choice",
    "photograph": "strcnn_dtb_photo",
    "camera": "strcnn_dtb_live",
}


def names() -> list[str]:
    """Returns the names of shipped weights that ``--ckpt`` accepts."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def path(name: str) -> Path:
    """Returns the file of shipped weights."""
    return _FOLDER / f"{name}.safetensors"


def default_name(use: Use = "video") -> str:
    """Returns the name of the best shipped weights for this use, on any device."""
    return _BEST[use]
