"""Orbax checkpoints: arrays by step, written in the background and read only if undamaged.

A checkpoint contains the SHA-256 of its values, by which damaged ones are detected and skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import hashlib
import itertools
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from jaxdeblur import devices
from jaxdeblur.errors import UserError
from jaxdeblur.shapes import Parameters

CHECKPOINTS_NAME = "checkpoints"
"""The name of the checkpoint folder in a run folder."""

_WEIGHTS, _ABOUT = "weights", "about"
_CLOSED = "Event loop is closed"


class Checkpoints:
    """The checkpoints of a run, one folder per step, written by Orbax in the background.

    Every process of a run takes part in saving and restoring its state. Reading changes nothing in
    the folder, so a run in progress can be read.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs each save
        self.folder = folder
        self.keep = keep

    @functools.cached_property
    def manager(self) -> Any:
        """The Orbax manager that saves; it removes half-written checkpoints of earlier starts."""
        return ocp.CheckpointManager(
            self._place.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self.keep, cleanup_tmp_directories=True
            ),
        )

    @property
    def _place(self) -> Path:
        return self.folder / CHECKPOINTS_NAME

    def steps(self) -> list[int]:
        """Returns the steps of the existing checkpoints, newest first."""
        names = [path.name for path in self._place.glob("*") if path.is_dir()]
        return sorted((int(n) for n in names if n.isascii() and n.isdigit()), reverse=True)

    def newest(self) -> Path | None:
        """Returns the folder of the newest checkpoint; None if there is none."""
        return next((self._place / str(step) for step in self.steps()), None)

    def go_on_after(self, step: int) -> None:
        """Moves aside checkpoints newer than ``step``, to which a run has gone back.

        Damaged checkpoints are not removed but renamed to ``damaged-...``.
        """
        devices.wait_for_all("the state is restored")
        if jax.process_index() == 0:
            for newer in self.steps():
                if newer > step:
                    self._set_aside(newer)
        devices.wait_for_all("damaged checkpoints are out of the way")
        try:
            self.manager  # noqa: B018  # opened now: a damaged older one shows here
        except (ValueError, TypeError, KeyError, OSError):
            devices.wait_for_all("older checkpoints are damaged")
            if jax.process_index() == 0:
                for older in self.steps():
                    if older != step:
                        self._set_aside(older)
            devices.wait_for_all("they are out of the way")

    def _set_aside(self, step: int) -> None:
        place = self._place / str(step)
        names = (self._place / f"damaged-{step}-{n}" for n in itertools.count())
        place.rename(next(name for name in names if not name.exists()))

    def save_items(self, step: int, items: Mapping[str, Any]) -> None:
        """Saves trees of arrays by name as the checkpoint of ``step``; an existing one is kept.

        The item ``weights`` is a network's parameters.

        Raises:
          UserError: it cannot be written, or the previous one could not, which is known only now.
        """
        manager = self.manager
        if not self._place.is_dir():  # Orbax would recreate it without the run's config
            raise UserError(f"{self._place} is gone; do not move or remove a run while it trains")
        if step in manager.all_steps():
            return
        saved = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        about = ocp.args.JsonSave({name: digest(item) for name, item in items.items()})
        with self._writing():
            manager.save(step, args=ocp.args.Composite(**saved, **{_ABOUT: about}))

    def restore_item(
        self, name: str, abstract: Any, *, alone: bool = False
    ) -> tuple[int, Any] | None:
        """Returns the step and the newest undamaged item of a name; None without checkpoints.

        Skips damaged checkpoints with a warning; raises UserError if all are damaged.

        Args:
          name: the name under which the item was saved.
          abstract: a tree like the item, of ``jax.ShapeDtypeStruct`` with a sharding.
          alone: whether each process reads on its own; else all take part.
        """
        processes = ocp.options.MultiprocessingOptions()
        if alone:
            me = jax.process_index()
            processes = ocp.options.MultiprocessingOptions(
                primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"reader-{me}"
            )
        handler = ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(multiprocessing_options=processes)
        )
        wanted = ocp.args.Composite(
            **{name: ocp.args.StandardRestore(abstract), _ABOUT: ocp.args.JsonRestore()}
        )
        steps = self.steps()
        for step in steps:
            place = (self._place / str(step)).absolute()
            with _one_error():
                try:
                    with ocp.Checkpointer(handler, multiprocessing_options=processes) as reader:
                        found = reader.restore(place, args=wanted)
                    if found[_ABOUT].get(name) != digest(found[name]):
                        raise ValueError("the values differ from those that were saved")
                    return step, found[name]
                except Exception as error:
                    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                        raise  # no sign of a damaged file
                    # Whatever a damaged file makes Orbax, TensorStore or JSON raise.
                    reason = " ".join(str(error).split())[:200]
            warnings.warn(f"{place} can't be read and is skipped: {reason}", stacklevel=2)
        if steps:
            raise UserError(f"{self.folder}: none of its {len(steps)} checkpoints can be read")
        return None

    def restore_weights(self, template: dict[str, Any]) -> tuple[int, Parameters] | None:
        """Returns the step and the newest undamaged weights, or None; each process reads alone."""
        here = SingleDeviceSharding(jax.local_devices()[0])
        abstract = {name: devices.abstract_array(array, here) for name, array in template.items()}
        return self.restore_item(_WEIGHTS, abstract, alone=True)

    def wait(self) -> None:
        """Waits until the last save is on disk."""
        with self._writing():
            self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and closes the manager."""
        if "manager" in self.__dict__:
            with self._writing():
                self.manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what Orbax and TensorStore raise on a full disk into a UserError of one line."""
        with _one_error():
            try:
                yield
            except (OSError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200]
                whole = next(
                    (f"; the last complete one is from step {s}" for s in self.steps()), ""
                )
                raise UserError(
                    f"{self._place}: a checkpoint cannot be written: {reason}{whole}"
                ) from error


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """Suppresses Orbax's follow-up warnings when an array can't be read or written.

    Orbax handles arrays concurrently, raises the first error and abandons the others. When these
    are collected, asyncio and Python print warnings that add nothing to the reported error.
    TensorStore threads that end later may still print "Event loop is closed".
    """
    log = logging.getLogger("asyncio")
    level, hook = log.level, sys.unraisablehook
    log.setLevel(logging.CRITICAL + 1)

    def tell_others(event: Any) -> None:
        if not asyncio.iscoroutine(event.object) and str(event.exc_value) != _CLOSED:
            hook(event)

    sys.unraisablehook = tell_others
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            warnings.simplefilter("ignore", ResourceWarning)
            try:
                yield
            finally:
                gc.collect()
    finally:
        sys.unraisablehook = hook
        log.setLevel(level)


def digest(tree: Any) -> str:
    """Returns the SHA-256 of a tree's paths, shapes and values: TensorStore checks no values."""
    sha = hashlib.sha256()
    for path, array in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        local = array.addressable_data(0) if isinstance(array, jax.Array) else array
        sha.update(f"{name} {array.shape} {array.dtype}".encode())
        sha.update(np.ascontiguousarray(local).tobytes())
    return sha.hexdigest()
