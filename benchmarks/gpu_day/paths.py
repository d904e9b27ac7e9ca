"""Networks over blur paths, trained side by side within the minutes, on clips drawn on the device.

The scenes, exposures and errors are those of jaxdeblur.training.path_clips; what takes hours there
takes a minute. The learning rate falls to zero with the time left, not with a number of steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from benchmarks.gpu_day.report import Report
from jaxdeblur import models, presets
from jaxdeblur.data.render import render_scene
from jaxdeblur.data.scenes import SCENES, SceneConfig, sample_scene
from jaxdeblur.data.textures import open_scenes
from jaxdeblur.errors import UserError
from jaxdeblur.models.parameters import split
from jaxdeblur.models.path_maps import CHANNELS, MADE, at_pixels, path_maps, restored_of
from jaxdeblur.paths.estimate import WINDOW, estimate
from jaxdeblur.paths.shutter import Shutter
from jaxdeblur.training import path_clips
from jaxdeblur.training.path_clips import PathClipsConfig, PathClipSource
from jaxdeblur.training.step import (
    TrainingConfig,
    TrainState,
    best_parameters,
    initial_train_state,
    loss_and_statistics,
    make_optimizer,
)
from jaxdeblur.weights.load import PATHS_ALONE, LoadedModel, load_model, starting_parameters
from jaxdeblur.weights.save import export_weights

PRESET = "strcnn_dtb_paths"
TOGETHER = 16
"""Clips drawn at once."""
SEEN, SCORED = 7, 5
"""Frames of a clip that are drawn, and that are kept."""
WARMUP = 200
DRAWN = 0.62
"""The share of the time that is left when drawing ends, done or not."""
RESERVED = 8.0
"""Seconds for the files, before the report stops it all."""
_MOST_NUMBERS = 2**31 - 1
"""Of an array, so that what indexes into it counts in 32 bits."""


_load = functools.cache(load_model)


class Variant(NamedTuple):
    """A network that is trained."""

    name: str
    changes: dict[str, Any]
    """Of the preset's network."""
    start: str = ""
    """Weights to begin with."""


VARIANTS = (
    Variant("over_choice", {}, PRESET),
    Variant("alone", {"over_paths": PATHS_ALONE, "width": 32, "blocks": 3}),
)


class Group(NamedTuple):
    """Clips drawn together, as ``path_clips`` draws them; the short ones repeat their last frame."""

    blurred: Array
    sharp: Array
    duty: Array
    linear: Array
    length: Array


def run(arguments: argparse.Namespace, report: Report) -> None:
    """Draws, trains and writes one file a variant."""
    rehearse = arguments.rehearse
    crop, side = (32, 64) if rehearse else (160, 368)
    config = PathClipsConfig(
        photos=arguments.photos, highspeed=arguments.highspeed, exclude=tuple(arguments.exclude)
    )
    training = TrainingConfig(
        batch_size=2 if rehearse else arguments.batch_size, frames=4, crop=crop, optimizer="muon",
        learning_rate=arguments.learning_rate, beta2=0.99, schedule="constant", warmup=1,
        loss="log_mse", average=0.999,
    )  # fmt: skip
    count = 2 if rehearse else arguments.clips
    pool = ThreadPoolExecutor(8)
    networks = []
    for variant in VARIANTS:
        network = dataclasses.replace(presets.find(PRESET).network, **variant.changes)
        networks.append((variant, network, models.build(network)))
    bases = {network.over_paths for _, network, _ in networks}
    for base in bases:
        _load(base)  # now, since nothing can be read while a program is traced
    per = 2 if rehearse else TOGETHER
    began = time.monotonic()
    warm = [
        pool.submit(_tell, *_nothing(per, width)) for width in ([side] if rehearse else [side, 256])
    ]
    groups = draw(config, side, count, pool, rehearse)
    print(f"{len(groups)} groups after {time.monotonic() - began:.0f} s", flush=True)
    for each in warm:
        jax.block_until_ready(each.result())
    print(f"compiled after {time.monotonic() - began:.0f} s", flush=True)
    held: dict[str, list[tuple[Array, Array]]] = {}
    told: dict[str, list[Array]] = {base: [] for base in bases}
    sizes: list[np.ndarray] = []
    rng = np.random.default_rng(1)
    groups = [groups[n] for n in rng.permutation(len(groups))]
    for number, group in enumerate(groups):
        if report.seconds_left < DRAWN * 60 * arguments.minutes:
            groups = groups[:number]
            break
        first, duty, linear = _errors(group, rng)
        last = np.asarray(group.length)[:, None] - 1
        kept = np.minimum(first[:, None] + np.arange(SCORED), last).astype(np.int32)
        for base in bases:
            below = _below(base, group.blurred)
            clips = _tell(below, group, jnp.asarray(kept), duty, linear)
            if number < 3 or not number % 20:
                _say(f"{number}: over {base}", clips, report)
            told[base].append(clips)
        scored = np.minimum(np.asarray(group.length) - first, SCORED)
        height = group.blurred.shape[2]
        sizes.append(np.stack([scored, np.full_like(scored, height), np.full_like(scored, height)], 1))
    sizes_of = np.concatenate(sizes)
    keep = _with_blur(groups, rng)
    groups.clear()
    warm.clear()
    for base in bases:
        held[base] = _chunks(told.pop(base), sizes_of, keep)
    report.found["clips"] = int(keep.sum())
    print(f"{int(keep.sum())} clips after {report.seconds_left:.0f} s left", flush=True)
    train(networks, held, training, arguments, report)


def draw(
    config: PathClipsConfig, side: int, count: int, pool: ThreadPoolExecutor, rehearse: bool
) -> list[Group]:
    """``count`` groups of clips."""
    shares = dict(path_clips._SHARES)
    if not config.highspeed:
        del shares[""]
    if rehearse:
        shares = {"narrow": 1}
    per = TOGETHER if not rehearse else 2
    total = sum(shares.values())
    many = {kind: max(1, round(count * share / total)) for kind, share in shares.items()}
    fast: list[Future[Any]] = []
    if n := many.pop("", 0):
        source = PathClipSource(config)
        fast = [
            pool.submit(source.averaged, np.random.default_rng((config.seed, 1, k)))
            for k in range(n * per)
        ]
    # One set of textures for all kinds: those of the largest.
    scenes = {kind: SCENES[kind].at_least(side) for kind in many}
    largest = max(scenes.values(), key=lambda scene: scene.texture_size)
    textures = jnp.asarray(np.asarray(open_scenes(largest, side, config.photos or None).textures))
    render = {kind: _renderer(scene, side) for kind, scene in scenes.items()}
    keys = jax.random.split(jax.random.key(config.seed), per)
    for each in [pool.submit(program, keys, textures) for program in render.values()]:
        each.result()  # compiled
    groups = []
    for number, kind in enumerate(k for k, n in many.items() for _ in range(n)):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), number), per)
        groups.append(Group(*render[kind](keys, textures)))
    for begin in range(0, len(fast), per):
        drawn = [each.result() for each in fast[begin : begin + per]]
        inside = [np.minimum(np.arange(SEEN), len(each.blurred) - 1) for each in drawn]
        groups.append(
            Group(
                jnp.asarray(np.stack([d.blurred[i] for d, i in zip(drawn, inside, strict=True)])),
                jnp.asarray(np.stack([d.sharp[i] for d, i in zip(drawn, inside, strict=True)])),
                jnp.asarray([d.duty for d in drawn], jnp.float32),
                jnp.asarray([d.linear for d in drawn]),
                jnp.asarray([len(d.blurred) for d in drawn], jnp.int32),
            )
        )
    return [_degraded(g, jax.random.key(n)) for n, g in enumerate(groups)]


def _renderer(config: SceneConfig, side: int) -> Any:
    def one(key: Array, textures: Array) -> tuple[Array, ...]:
        scene_key, noise_key = jax.random.split(key)
        limit = jnp.float32(jnp.inf)
        scene = sample_scene(scene_key, textures.shape[:2], config, SEEN, side, limit)
        clip = render_scene(noise_key, scene, textures, config, SEEN, side)
        return (*clip, scene.exposure, scene.gamma > 1, jnp.int32(SEEN))

    return jax.jit(jax.vmap(one, in_axes=(0, None)))


@jax.jit
def _degraded(group: Group, key: Array) -> Group:
    """Some sharp, some noisy."""
    which, how_much, noise = jax.random.split(key, 3)
    share = jax.random.uniform(which, (2, len(group.duty), 1, 1, 1, 1))
    blurred = jnp.where(share[0] < path_clips._SHARP, group.sharp, group.blurred)
    levels = jax.random.uniform(how_much, share.shape[1:], minval=0.5, maxval=4.0)
    noisy = blurred + levels * jax.random.normal(noise, blurred.shape)
    noisy = jnp.round(jnp.clip(noisy, 0, 255)).astype(jnp.uint8)
    return group._replace(blurred=jnp.where(share[1] < path_clips._NOISY, noisy, blurred))


def _errors(group: Group, rng: np.random.Generator) -> tuple[np.ndarray, Array, Array]:
    """The first frame that is kept of each clip, and the duty and light that are told."""
    length = np.asarray(group.length)
    spare = np.maximum(0, length - SCORED)
    first = np.where(rng.random(len(length)) < 0.3, rng.integers(spare + 1), spare // 2)
    wrong = rng.random(len(length)) > path_clips._DUTY_RIGHT
    duty = np.asarray(group.duty) + wrong * rng.normal(0, path_clips._DUTY_ERROR, len(length))
    light = np.asarray(group.linear) != (rng.random(len(length)) < path_clips._LIGHT_WRONG)
    return first, jnp.asarray(np.clip(duty, 0.25, 1), jnp.float32), jnp.asarray(light)


def _with_blur(groups: Sequence[Group], rng: np.random.Generator) -> np.ndarray:
    """Which clips are blurred; and some that are not."""

    @jax.jit
    def blur(group: Group) -> Array:
        difference = jnp.abs(group.blurred.astype(jnp.float32) - group.sharp)
        return difference.mean((1, 2, 3, 4))

    found = np.concatenate([np.asarray(blur(group)) for group in groups])
    return (found > path_clips._LEAST_BLUR) | (rng.random(len(found)) < path_clips._STILL)


def _nothing(per: int, side: int) -> tuple[Any, ...]:
    """What ``_tell`` takes, to compile it with."""
    clip = jnp.zeros((per, SEEN, side, side, 3), jnp.uint8)
    no, length = jnp.zeros(per, bool), jnp.full(per, SEEN, jnp.int32)
    group = Group(clip, clip, jnp.ones(per), no, length)
    return clip / 255, group, jnp.zeros((per, SCORED), jnp.int32), jnp.ones(per), no


@functools.partial(jax.jit, static_argnums=0)
def _below(base: str, blurred: Array) -> Array:
    seen = blurred.astype(jnp.float32) / 255
    return seen if base == PATHS_ALONE else _load(base).model.restore_clip(seen)


@jax.jit
def _tell(below: Array, group: Group, kept: Array, duty: Array, linear: Array) -> Array:
    """The maps and the sharp frames of clips, ``B 5 H W 17`` bytes."""
    seen = group.blurred.astype(jnp.float32) / 255

    def clip(each: tuple[Array, ...]) -> Array:
        seen, below, sharp, kept, length, duty, linear = each

        def one(n: Array) -> Array:
            around = n + jnp.arange(-(WINDOW // 2), WINDOW // 2 + 1)
            present = ((around >= 0) & (around < length)).astype(jnp.float32)
            window = seen[jnp.clip(around, 0, length - 1)]
            found = estimate(
                window, below[n], present, Shutter.unknown(), jnp.bool_(False), duty, linear
            )
            evidence = at_pixels(found.cells, *below.shape[1:3])
            maps = path_maps(seen[n], below[n], found.sharp, found.unexplained, evidence)
            return jnp.concatenate([jnp.round(255 * maps).astype(jnp.uint8), sharp[n]], -1)

        return jax.vmap(one)(kept)

    given = (seen, below, group.sharp, kept, group.length, duty, linear)
    return lax.map(clip, given, batch_size=min(8, len(kept)))


def _say(what: str, clips: Array, report: Report) -> None:
    @jax.jit
    def psnrs(clips: Array) -> Array:
        values = clips.astype(jnp.float32) / 255
        maps, sharp = values[..., :CHANNELS], values[..., CHANNELS:]
        gated = restored_of(maps, jnp.zeros((*maps.shape[:-1], MADE)))
        images = (maps[..., :3], maps[..., 3:6], maps[..., 6:9], gated)
        errors = jnp.stack([((image - sharp) ** 2).mean((1, 2, 3, 4)) for image in images])
        return jnp.median(-10 * jnp.log10(errors + 1e-5), 1)

    found = [round(float(x), 2) for x in psnrs(clips)]
    print(f"{what}: median PSNR of B, base, X and gate {found}; {report.seconds_left:.0f} s left", flush=True)


def _chunks(clips: list[Array], sizes: np.ndarray, keep: np.ndarray) -> list[tuple[Array, Array]]:
    """Arrays of clips of all kinds, so many that each counts its numbers in 32 bits."""
    side = max(each.shape[2] for each in clips)
    per = len(clips[0])
    at_once = max(1, int(_MOST_NUMBERS // (SCORED * side * side * clips[0].shape[-1]) // per))
    order = np.random.default_rng(0).permutation(len(clips))
    found = []
    for begin in range(0, len(order), at_once):
        some = order[begin : begin + at_once]
        there = np.concatenate([np.arange(per * n, per * (n + 1)) for n in some])
        grown = []
        for n in some:
            clip = clips[n]
            spare = side - clip.shape[2]
            grown.append(jnp.pad(clip, ((0, 0), (0, 0), (0, spare), (0, spare), (0, 0))))
            clips[n] = jnp.zeros(0)
        good = np.flatnonzero(keep[there])
        if len(good):
            found.append((jnp.concatenate(grown)[good], jnp.asarray(sizes[there][good])))
    return found


def batches(
    held: Sequence[tuple[Array, Array]], config: TrainingConfig
) -> Iterator[dict[str, Array]]:
    """Random crops, mirrored, turned and reversed; each batch of one of the arrays, by turns."""

    @jax.jit
    def cut(clips: Array, sizes: Array, key: Array) -> dict[str, Array]:
        def one(key: Array) -> Array:
            which, *places, turns = jax.random.split(key, 5)
            number = jax.random.randint(which, (), 0, len(clips))
            shape = config.frames, config.crop, config.crop
            start = [
                jax.random.randint(at, (), 0, size - side + 1)
                for at, size, side in zip(places, sizes[number], shape, strict=True)
            ]
            clip = lax.dynamic_slice(clips, (number, *start, 0), (1, *shape, clips.shape[-1]))[0]
            turned = jax.random.bernoulli(turns, shape=(4,))
            for axis in range(3):
                clip = jnp.where(turned[axis], jnp.flip(clip, axis), clip)
            return jnp.where(turned[3], clip.swapaxes(1, 2), clip)

        batch = jax.vmap(one)(jax.random.split(key, config.batch_size))
        return {"blurred": batch[..., :CHANNELS], "sharp": batch[..., CHANNELS:]}

    key = jax.random.key(config.seed)
    for step in itertools.count():
        yield cut(*held[step % len(held)], jax.random.fold_in(key, step))


def stepper(
    config: TrainingConfig, rebuild: Callable[[Any], Any]
) -> Callable[[TrainState, dict[str, Array], Array], tuple[TrainState, Array]]:
    """A train step whose learning rate is scaled from outside."""
    optimizer = make_optimizer(config)

    def loss_of(parameters: Any, batch: dict[str, Array]) -> Array:
        return loss_and_statistics(rebuild(parameters), batch, config.loss)[0]

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: dict[str, Array], rate: Array) -> tuple[TrainState, Array]:
        loss, gradients = jax.value_and_grad(loss_of)(state.parameters, batch)
        updates, after = optimizer.update(gradients, state.optimizer, state.parameters)
        updates = jax.tree.map(lambda u: rate * u, updates)
        parameters: Any = optax.apply_updates(state.parameters, updates)
        decay = jnp.minimum(config.average, (1 + state.step) / (10 + state.step))
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.average, parameters)
        return TrainState(state.step + 1, parameters, after, average, state.failed), loss

    return step


def train(
    networks: list[Any],
    held: dict[str, list[tuple[Array, Array]]],
    config: TrainingConfig,
    arguments: argparse.Namespace,
    report: Report,
) -> None:
    """All of them by turns, until the time is up; then their files."""
    runs = []
    for variant, network, model in networks:
        rebuild, parameters = split(model)
        if variant.start:
            parameters = starting_parameters(model, parameters, variant.start)
        state = initial_train_state(config, parameters)
        runs.append([variant, network, rebuild, stepper(config, rebuild), state,
                     batches(held[network.over_paths], config)])  # fmt: skip
    began, steps = time.monotonic(), 0
    losses: dict[str, list[Array]] = {variant.name: [] for variant, *_ in runs}
    until = time.monotonic() + report.seconds_left - 0.05 * 60 * arguments.minutes - RESERVED
    while (now := time.monotonic()) < until:
        share = (now - began) / (until - began)
        rate = np.float32(min(1.0, (steps + 1) / WARMUP) * 0.5 * (1 + np.cos(np.pi * share)))
        for each in runs:
            each[4], loss = each[3](each[4], next(each[5]), rate)
            losses[each[0].name].append(loss)
        steps += 1
        if steps % 10 == 0:
            jax.block_until_ready(loss)  # so that the clock is the device's
        if steps in (1, 20, 100) or steps % 200 == 0:
            means = {n: float(jnp.mean(jnp.stack(of))) for n, of in losses.items()}
            losses = {name: [] for name in losses}
            report.rows.append({"step": steps, "s": round(now - began, 1)} | means)
            if steps <= 100 or steps % 1000 == 0:
                print(report.rows[-1], flush=True)
            if not all(map(np.isfinite, means.values())):
                raise UserError(f"step {steps}: a loss is not finite: {means}")
    for variant, network, rebuild, _, state, _ in runs:
        about = {"data": "clips of blur paths, drawn on a GPU"}
        best = rebuild(best_parameters(state))
        weights = LoadedModel(best, PRESET, network, int(state.step), PRESET, about)
        export_weights(weights, arguments.out / f"{variant.name}.safetensors")
    print(f"{steps} steps of each in {time.monotonic() - began:.0f} s", flush=True)
    report.found["steps"] = steps
    report.keep()
