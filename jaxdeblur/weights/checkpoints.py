"""Orbax checkpoints: arrays by step, written in the background and read only if undamaged.

A checkpoint contains the SHA-256 of its values, by which damaged ones are detected and skipped.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import logging
import sys
import time
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


class Checkpoints:
    """The checkpoints of a run, one folder per step, written by Orbax in the background.

    Every process of a run takes part in saving and restoring its state. Reading changes nothing in
    the folder, so a run in progress can be read.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs each save
        self._place = folder / CHECKPOINTS_NAME
        self._keep = keep

    @functools.cached_property
    def _manager(self) -> Any:
        """The Orbax manager that saves; it removes half-written checkpoints of earlier starts."""
        return ocp.CheckpointManager(
            self._place.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self._keep, cleanup_tmp_directories=True
            ),
        )

    def steps(self) -> list[int]:
        """Returns the steps of the existing checkpoints, newest first."""
        names = [path.name for path in self._place.glob("*") if path.is_dir()]
        return sorted((int(n) for n in names if n.isascii() and n.isdigit()), reverse=True)

    def go_on_after(self, step: int) -> None:
        """Moves aside checkpoints newer than ``step``, to which a run has gone back.

        Damaged checkpoints are not removed but renamed to ``damaged-...``.
        """
        devices.wait_for_all("the state is restored")
        if jax.process_index() == 0:
            for newer in self.steps():
                if newer > step:
                    aside = f"damaged-{newer}-{time.strftime('%Y%m%dT%H%M%S')}"
                    (self._place / str(newer)).rename(self._place / aside)
        devices.wait_for_all("damaged checkpoints are out of the way")

    def save_items(self, step: int, items: Mapping[str, Any]) -> None:
        """Saves trees of arrays by name as the checkpoint of ``step``; an existing one is kept.

        The item ``weights`` is a network's parameters.

        Raises:
          UserError: it cannot be written, or the previous one could not, which is known only now.
        """
        manager = self._manager
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
            raise UserError(f"{self._place}: none of its {len(steps)} checkpoints can be read")
        return None

    def restore_weights(self, template: dict[str, Any]) -> tuple[int, Parameters] | None:
        """Returns the step and the newest undamaged weights, or None; each process reads alone."""
        here = SingleDeviceSharding(jax.local_devices()[0])
        abstract = {name: devices.abstract_array(array, here) for name, array in template.items()}
        return self.restore_item(_WEIGHTS, abstract, alone=True)

    def wait(self) -> None:
        """Waits until the last save is on disk."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and closes the manager."""
        if "_manager" in self.__dict__:
            with self._writing():
                self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what Orbax and TensorStore raise on a full disk into a UserError of one line."""
        with _one_error():
            try:
                yield
            except (OSError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200]
                whole = [f"; the last complete one is from step {step}" for step in self.steps()]
                raise UserError(
                    f"{self._place}: a checkpoint cannot be written: {reason}{''.join(whole[:1])}"
                ) from error


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """Suppresses Orbax's follow-up warnings when an array can't be read or written.

    Orbax handles arrays concurrently, raises the first error and abandons the others. When these
    are collected, asyncio and Python print warnings that add nothing to the reported error.
    TensorStore threads that end later may still print "Event loop is closed".
    """
    log, hook = logging.getLogger("asyncio"), sys.unraisablehook
    log.disabled, sys.unraisablehook = True, lambda event: None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            gc.collect()
            log.disabled, sys.unraisablehook = False, hook


def digest(tree: Any) -> str:
    """Returns the SHA-256 of a tree's paths, shapes and values: TensorStore checks no values."""
    sha = hashlib.sha256()
    for path, array in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        local = array.addressable_data(0) if isinstance(array, jax.Array) else array
        sha.update(f"{name} {array.shape} {array.dtype}".encode())
        sha.update(np.ascontiguousarray(local).tobytes())
    return sha.hexdigest()
