"""Renders scenes on the training devices, among clips that the host has read.

The host sends nothing but a key for a rendered clip.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float, Key, PRNGKeyArray, UInt8

from jaxdeblur.data.batches import source_of_clips
from jaxdeblur.data.clips import ClipOptions
from jaxdeblur.data.config import MotionLimit
from jaxdeblur.data.render import render_scene
from jaxdeblur.data.scenes import SceneConfig, sample_scene
from jaxdeblur.data.textures import RenderedScenes
from jaxdeblur.data.videos import Dataset

_OWN_DRAW = 2**31  # fold_in gives the same keys as split, and no clip splits its key so often.


def render_on_device(
    feed: Iterator[Mapping[str, Array]] | None,
    sources: Sequence[tuple[Dataset | RenderedScenes, float]],
    options: ClipOptions,
    sharding: NamedSharding,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    motion_limit: MotionLimit,
) -> Iterator[dict[str, Array]]:
    """Yields the batches from ``start_step`` on, with scenes rendered on the training devices.

    Batch k is a function of the seed and k. It does not depend on where the run began nor, on a
    CPU, on the number of devices. Other devices render all of their clips at once, and how many
    these are can change the rounding of a few pixels. A batch holds ``blurred``, uint8
    ``B before+T+after H W 3``, and ``sharp``.

    Args:
      feed: the batches of ``batches(..., render=False)``, on the devices; None if all are scenes.
      sources: as in ``batches``.
      options: options of the clips.
      sharding: sharding of the batches; its first axis distributes the clips.
      batch_size: clips in a batch.
      seed: seed of all random choices.
      start_step: number of the first batch.
      motion_limit: limit for rendered scenes, pixels per frame.
    """
    shares = [share for _, share in sources]
    scenes = {
        number: _compiled(data, options, sharding)
        for number, (data, share) in enumerate(sources)
        if share and isinstance(data, RenderedScenes)
    }
    devices = sharding.mesh.shape[sharding.spec[0]]
    # On a CPU each device renders one clip at a time, which remains in its cache.
    at_a_time = devices if jax.default_backend() == "cpu" else batch_size
    place = jax.jit(
        lambda batch, places, clips: jax.tree.map(
            lambda of, new: of.at[places].set(new), batch, clips
        ),
        out_shardings=sharding,
    )
    frame = (options.crop, options.crop, 3)
    blank = {
        name: jnp.zeros((batch_size, length, *frame), jnp.uint8, device=sharding)
        for name, length in (("blurred", options.length), ("sharp", options.frames))
    }
    key = jax.random.key(seed)
    for step in itertools.count(start_step):
        limit = np.float32(motion_limit(step))
        keys = jax.random.split(jax.random.fold_in(key, step), batch_size)
        clips = np.arange(step * batch_size, (step + 1) * batch_size)
        source_of = source_of_clips(clips, shares)
        made = dict(next(feed)) if feed else blank
        for number, render in scenes.items():
            places = np.flatnonzero(source_of == number)
            for first in range(0, len(places), at_a_time):
                some = places[first : first + at_a_time]
                # All devices render equally many, so some are rendered twice.
                some = np.resize(some, -(-len(some) // devices) * devices)
                made = place(made, some, render(keys[some], limit))
        yield made


def _compiled(
    scenes: RenderedScenes, options: ClipOptions, sharding: NamedSharding
) -> Callable[[Key[Array, " clips"], np.float32], dict[str, Array]]:
    """Returns the program that renders clips, each device its own."""
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    textures = jax.make_array_from_callback(
        scenes.textures.shape, replicated, lambda part: np.asarray(scenes.textures[part])
    )

    def render_mine(
        textures: UInt8[Array, "n S S 3"], keys: Key[Array, " clips"], limit: Float[Array, ""]
    ) -> dict[str, Array]:
        return jax.vmap(lambda key: _render(key, textures, scenes.config, options, limit))(keys)

    everywhere, mine = PartitionSpec(), PartitionSpec(sharding.spec[0])
    # Unchecked: the renderer's loops start from constants, which do not vary over devices.
    by_device = jax.shard_map(
        render_mine,
        mesh=sharding.mesh,
        in_specs=(everywhere, mine, everywhere),
        out_specs=mine,
        check_vma=False,
    )
    return functools.partial(jax.jit(by_device, out_shardings=sharding), textures)


def _render(
    key: PRNGKeyArray,
    textures: UInt8[Array, "n S S 3"],
    config: SceneConfig,
    options: ClipOptions,
    limit: Float[Array, ""],
) -> dict[str, Array]:
    """Renders a scene; some have sharp input, a single frame, or the start or end of a video."""
    o = options
    scene_key, noise_key = jax.random.split(key)
    count, side = textures.shape[:2]
    scene = sample_scene(scene_key, (count, side), config, o.length, o.crop, limit)
    blurred, sharp = render_scene(noise_key, scene, textures, config, o.length, o.crop)
    first, last = o.before, o.before + o.frames - 1
    as_it_is, single, ends, which = jax.random.uniform(jax.random.fold_in(key, _OWN_DRAW), (4,))
    blurred = jnp.where(as_it_is < o.sharp_input, sharp, blurred)
    frame = jnp.arange(o.length)
    if o.before + o.after:
        at_start = which < o.before / (o.before + o.after)
        end = jnp.where(at_start, jnp.maximum(frame, first), jnp.minimum(frame, last))
        frame = jnp.where(ends < o.ends, end, frame)
    one = first + jnp.floor(which * o.frames).astype(int)
    frame = jnp.where(single < o.single, one, frame)
    return {"blurred": blurred[frame], "sharp": sharp[frame][first : last + 1]}
