"""Traces of programs, kept from start to start beside JAX's compilation cache.

JAX keeps compiled programs, but finds one only after it was traced again, which for blur paths
takes longer than loading it. So their traces are kept too, as StableHLO written by ``jax.export``:
a file for all parts of a model at a frame size. Its name is a hash of all that a trace depends on,
this package's sources included. Nothing is unpickled: a file is a zip archive, whose checksums
reveal damage, of flatbuffers. One that cannot be read is traced and written again.

A program from a trace gives the result of a part as a list of its arrays.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jaxlib
from flax import nnx

from jaxdeblur import VERSION, devices
from jaxdeblur.files import replace_when_whole
from jaxdeblur.models.restorer import State, VideoRestorer

_MOST = 40  # Files, of a few megabytes each; the oldest go.
_PACKAGE = Path(__file__).parents[1]


class Traces:
    """The traces of a model's parts, for one frame size; equal if they are for the same."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._programs: dict[str, Any] = {}

    def __hash__(self) -> int:
        return hash(self.file)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Traces) and self.file == other.file

    def read(self, names: Iterable[str]) -> bool:
        """Reads the traces of parts; returns whether all of them are there and undamaged."""
        from jax import export

        with contextlib.suppress(Exception):  # whatever a damaged or foreign file raises
            with zipfile.ZipFile(self.file) as file:
                read = {name: export.deserialize(bytearray(file.read(name))) for name in names}
            self._programs = read
        return bool(self._programs)

    def add(self, name: str, step: Callable[..., tuple[State, Any]], given: Any) -> Any:
        """Traces the step of a part, which maps what is given to its state and result.

        Returns the shapes of both. ``given`` begins with the parameters and the state.
        """
        from jax import export

        leaves, tree = jax.tree.flatten(given)
        made: list[Any] = []

        def flat(*leaves: Any) -> list[Any]:
            results, its_tree = jax.tree.flatten(step(*jax.tree.unflatten(tree, leaves)))
            made.append(its_tree)
            return results

        flat.__name__ = flat.__qualname__ = name
        self._programs[name] = program = export.export(jax.jit(flat))(*leaves)
        shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in program.out_avals]
        return jax.tree.unflatten(made[0], shapes)

    def write(self) -> None:
        """Writes the traces; where that fails, the next start traces again."""
        with contextlib.suppress(Exception):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with replace_when_whole(self.file) as part, zipfile.ZipFile(part, "w") as file:
                for name, program in self._programs.items():
                    file.writestr(name, bytes(program.serialize()))
            kept = sorted(self.file.parent.glob("*.zip"), key=lambda path: path.stat().st_mtime)
            for oldest in kept[:-_MOST]:
                oldest.unlink(missing_ok=True)

    def call(self, name: str, parameters: Any, state: State, *given: Any) -> tuple[State, Any]:
        """Runs a part: its new state, and its result as a list of arrays."""
        leaves, tree = jax.tree.flatten(state)
        made = self._programs[name].call(*jax.tree.leaves((parameters, state, *given)))
        return jax.tree.unflatten(tree, made[: len(leaves)]), made[len(leaves) :]


def traces_of(model: VideoRestorer, device: jax.Device, *compiled_for: Any) -> Traces | None:
    """Returns the traces for a model on a device, and what else its programs are compiled for.

    None if none are kept: of a network, which is traced quickly; of classes outside the package,
    whose sources are unknown; and unless ``devices.keep_compiled`` keeps programs.
    """
    folder = devices.kept_folder()
    inner = [module for _, module in nnx.iter_modules(model)]
    if any(not type(module).__module__.startswith(("jaxdeblur.", "flax.")) for module in inner):
        return None
    if folder is None or len(model.parts()) == 1:
        return None
    about = [
        VERSION,
        _digest_of_sources(),
        jax.__version__,
        jaxlib.__version__,
        device.platform,
        device.device_kind,
        getattr(jax.config, "jax_default_matmul_precision", None),
        [(type(each).__name__, getattr(each, "config", None)) for each in inner],
        [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(nnx.state(model))],
        compiled_for,
    ]
    key = hashlib.sha256(repr(about).encode()).hexdigest()[:40]
    return _traces_in(folder / "traces" / f"{key}.zip")


@functools.cache
def _traces_in(file: Path) -> Traces:
    return Traces(file)


@functools.cache
def _digest_of_sources() -> str:
    sha = hashlib.sha256()
    for path in sorted([*_PACKAGE.rglob("*.py"), *(_PACKAGE.parent / "kernels").glob("*.py")]):
        sha.update(path.read_bytes())
    return sha.hexdigest()
