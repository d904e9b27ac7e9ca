"""Weights that ship with the package, as safetensors files beside this one."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The names that ``--ckpt`` takes."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def path(name: str) -> Path:
    """The file of shipped weights."""
    return _FOLDER / f"{name}.safetensors"
