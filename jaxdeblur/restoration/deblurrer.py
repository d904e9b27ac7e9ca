"""Deblurrer: restoring videos from Python with trained weights."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from flax import nnx

from jaxdeblur import devices
from jaxdeblur.errors import UserError
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.paths.restorer import PathRestorer
from jaxdeblur.restoration.placement import choose_tiles, device_of, step_memory
from jaxdeblur.restoration.stream import Stream, described, restore_frames
from jaxdeblur.restoration.tiling import TileGrid, parse_tiles
from jaxdeblur.shapes import PixelClip, Pixels
from jaxdeblur.video.pixels import RGB8, PixelLayout
from jaxdeblur.weights import shipped
from jaxdeblur.weights.load import load_restorer


class Deblurrer:
    """Restores clips and streams of frames.

        from jaxdeblur import Deblurrer

        deblurrer = Deblurrer("runs/first")   # or no argument: the weights that ship
        sharp = deblurrer(blurred)            # T H W 3, uint8 or uint16, RGB
        for frame in deblurrer.stream(camera):
            show(frame)                       # H W 3, a few frames late
        photo = Deblurrer("strcnn_dtb_photo")(image[None])[0]

    Attributes:
      model: the network.
      source: where its weights come from, in words.
      of_photographs: whether its weights were trained on single images.
      strength: how much of the restoration is mixed with what went in, 0 to 1.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | VideoRestorer | None = None,
        *,
        strength: float = 1.0,
        tile: str = "auto",
        device: str | jax.Device | None = None,
        dtype: str | None = None,
        duty: float | None = None,
        light: str | None = None,
    ):
        """Loads the weights.

        Args:
          weights: a run folder, a ``.safetensors`` file, the name of weights that ship, or a model;
            None for the weights that ship.
          strength: 1 gives the restored frames, 0 what went in, between them a mixture.
          tile: "none" restores a frame at once; "HxW" in tiles of that size, for frames that need
            more memory than there is; "auto" decides by the free memory of the device.
          device: where to compute, as "cpu", "gpu" or "gpu:1"; None for JAX's first.
          dtype: of the computation, "float32" or "bfloat16"; None for the network's own.
          duty: for blur paths, the share of the time between frames that the shutter was open,
            above 0 and up to 1; None finds it.
          light: for blur paths, "stored" or "linear", what the camera averaged; None finds it.

        Raises:
          UserError: there are no such weights, or an argument is out of its range.
        """
        if not 0 <= strength <= 1:
            raise UserError(f"--strength is between 0 and 1, not {strength:g}")
        self.strength = strength
        self._chooses_tiles = tile == "auto"
        self._given_tiles = None if self._chooses_tiles else parse_tiles(tile)
        if isinstance(weights, VideoRestorer):
            if dtype is not None:
                raise UserError("dtype is for weights that are loaded; a model has its own")
            self.model, self.source = weights, type(weights).__name__
            self.of_photographs = False
        else:
            named = shipped.default_name() if weights is None else str(weights)
            loaded = load_restorer(named, dtype=dtype)
            self.model, self.source = loaded.model, loaded.source
            self.of_photographs = loaded.of_photographs
            if loaded.preset not in loaded.source:
                self.source += f" ({loaded.preset})"
        if duty is not None or light is not None:
            self.model = _with_shutter(self.model, duty, light)
        if device is not None:
            chosen = find_device(device) if isinstance(device, str) else device
            graph, state = nnx.split(self.model)
            self.model = nnx.merge(graph, jax.device_put(state, chosen))
        self._tiles: dict[tuple[int, int, PixelLayout], TileGrid | None] = {}

    @property
    def device(self) -> str:
        """What computes, in words."""
        return devices.described(device_of(nnx.state(self.model)))

    def __call__(self, clip: PixelClip) -> PixelClip:
        """Restores all frames of a clip, at the memory of a stream.

        Args:
          clip: ``T H W 3``, RGB, uint8 or uint16; any length and size.

        Returns:
          As many frames of the same size and dtype.

        Raises:
          UserError: ``clip`` is no such array.
        """
        if not isinstance(clip, np.ndarray | jax.Array) or clip.ndim != 4:
            given = described(clip)
            if getattr(clip, "ndim", 0) == 3:
                given += "; of one frame alone, clip[None] is a clip"
            raise UserError(f"a clip is an array T H W 3 in uint8 or uint16, not {given}")
        restored = np.empty_like(clip)
        for t, frame in enumerate(self.stream(clip)):
            restored[t] = frame
        return restored

    def stream(self, frames: Iterable[Pixels]) -> Iterator[Pixels]:
        """Restores frames as they come: each is given back ``model.lookahead`` frames later.

        The first waits for ``model.opening`` frames, which tell blur paths of the shutter.

        Args:
          frames: ``H W 3``, RGB, uint8 or uint16, all of one size; however many.

        Yields:
          As many frames of the same size and dtype, the caller's to write into. Memory does not
          grow with their number.

        Raises:
          UserError: ``frames`` are none, a frame is no such array, or not as the first one.
        """
        if not isinstance(frames, Iterable):
            raise UserError(f"frames are arrays H W 3 one after the other, not {described(frames)}")
        return restore_frames(self.open_stream, frames)

    def warm_up(self, height: int, width: int, dtype: type = np.uint8) -> None:
        """Compiles for a frame size, so that the first frame of a stream does not wait for it."""
        self(np.zeros((1, height, width, 3), dtype))

    def compile(self, height: int, width: int, layout: PixelLayout = RGB8) -> TileGrid | None:
        """Compiles for frames of a size and layout; gives their tiles, as ``tiles``."""
        tiles = self.tiles(height, width, layout)
        # To choose tiles is to compile: what is chosen is what the compiler says that fits.
        if not self._chooses_tiles:
            step_memory(self.model, height, width, layout=layout, tiles=tiles)
        return tiles

    def open_stream(self, height: int, width: int, layout: PixelLayout = RGB8) -> Stream:
        """The stream of one video, for callers that push frames themselves (``Stream.push``).

        What is live may leave out ``Stream.look``; blur paths then learn of the shutter as they go.
        """
        tiles = self.tiles(height, width, layout)
        return Stream(self.model, height, width, layout=layout, strength=self.strength, tiles=tiles)

    def tiles(self, height: int, width: int, layout: PixelLayout = RGB8) -> TileGrid | None:
        """The tiles in which frames of a size are restored; None for the whole frame at once."""
        if not self._chooses_tiles:
            return self._given_tiles
        key = (height, width, layout)
        if key not in self._tiles:
            self._tiles[key] = choose_tiles(self.model, height, width, layout=layout)
        return self._tiles[key]


def _with_shutter(model: VideoRestorer, duty: float | None, light: str | None) -> VideoRestorer:
    if not isinstance(model, PathRestorer):
        raise UserError("--duty and --light are of blur paths; --ckpt=paths has them")
    if duty is not None and not 0 < duty <= 1:
        raise UserError(f"--duty is a share of the period, above 0 and up to 1, not {duty:g}")
    given = {"duty": duty, "light": light}
    told = {name: value for name, value in given.items() if value is not None}
    config = dataclasses.replace(model.config, **told)
    return PathRestorer(config, model.base, model.fusion)


def find_device(name: str) -> jax.Device:
    """The device of a name like ``cpu``, ``gpu`` or ``gpu:1``.

    Raises:
      UserError: there is none of that name.
    """
    kind, _, index = name.partition(":")
    try:
        devices = jax.local_devices(backend=kind)
    except RuntimeError:
        devices = []
    position = int(index) if index.isdecimal() else 0 if not index else -1
    if not 0 <= position < len(devices):
        present = ", ".join(f"{d.platform}:{i}" for i, d in enumerate(jax.local_devices()))
        raise UserError(f"--device={name}: there is no such device; there are {present}")
    return devices[position]
