"""Fits the gates of a network at several sizes.

``jaxdeblur fit-gates CKPT FILE`` writes them as a weights file.

The levels' results do not depend on the gates, and the squared error of a cell is a quadratic form
in its shares. So every clip goes through the levels once, and only the gates' input and that form
are kept, some hundred numbers per cell. Thousands of steps on them take a minute, where training
would run the levels in each step. The form assumes constant shares within a cell, whereas the
network enlarges them bilinearly.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from jaxtyping import Array, Float

from jaxdeblur import devices
from jaxdeblur.console import ProgressLine
from jaxdeblur.data.batches import batches
from jaxdeblur.data.config import DataConfig
from jaxdeblur.data.training_data import TrainingData
from jaxdeblur.errors import UserError
from jaxdeblur.images import enlarge
from jaxdeblur.models.parameters import split
from jaxdeblur.models.registry import build
from jaxdeblur.models.scale_choice import ScaleChoice, gates
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.options import Count, Range, check_ranges
from jaxdeblur.shapes import Clip, Parameters
from jaxdeblur.training.step import from_bytes
from jaxdeblur.weights.load import LoadedModel, load_model, starting_parameters
from jaxdeblur.weights.save import export_weights

PRESET = "strcnn_dtb_choice"
"""The preset that the fitted network counts as."""

CLIPS_AT_ONCE = 2
"""Clips that go through the levels together, for each device."""

_FRAMES_AT_ONCE = 2  # At most: frames of one clip carry nearly the same information.
_LARGEST_LOGIT = 4.0  # Beyond it a share is shut or open with little gradient, and is pulled back.


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How the gates are fitted.

    Attributes:
      clips: number of clips that go through the levels.
      frames: frames per clip.
      crop: side of the square crops, pixels; a multiple of twice the coarsest scale.
      steps: steps of AdamW on the kept numbers; its rate falls to 0 along a cosine.
      batch_size: clips per step, with two frames of each, or one if clips have only one.
      seed: seed of clips, parameters and steps.
    """

    clips: Count = 2000
    frames: Count = 4
    crop: Annotated[int, Range(1, 2048)] = 256
    steps: Count = 4000
    batch_size: Count = 12
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0

    def __post_init__(self) -> None:
        check_ranges(self)


class Sample(NamedTuple):
    """The data kept of clips."""

    evidence: Float[Array | np.ndarray, "B T h w C"]
    """The gates' input."""
    form: Float[Array | np.ndarray, "B T h w L+1 L+1"]
    """Mean products, in each cell, of the levels' residuals at full size and of sharp - blurred."""


def fit_gates(
    start: str, file: Path, scales: tuple[int, ...], config: FitConfig, data: DataConfig
) -> None:
    """Fits gates to the levels of a network and writes both as a weights file.

    Args:
      start: a run, a file or shipped weights: a network of one scale, or one with gates, which are
        replaced.
      file: the .safetensors file to write, in an existing folder.
      scales: the sizes at which the network is to run.
      config: how the gates are fitted.
      data: the clips that they are fitted to.

    Raises:
      UserError: ``file`` is not such a file, the network cannot have gates, or weights or data
        cannot be read. What is wrong with file and network is found before any clip is drawn.
    """
    if file.suffix != ".safetensors" or not file.absolute().parent.is_dir():
        raise UserError(f"{file}: must be a .safetensors file in an existing folder")
    loaded = load_model(start)
    if not isinstance(loaded.network, StrcnnConfig) or loaded.network.of_maps:
        raise UserError(f"{start}: only an STRCNN over frames can have gates")
    network = dataclasses.replace(loaded.network, scales=scales)
    model = cast(ScaleChoice, build(network, seed=config.seed))
    rebuild, drawn = split(model)
    if config.crop % model.multiple:
        raise UserError(f"--crop={config.crop} must be a multiple of {model.multiple}")
    # Fitted from new gates: existing ones are for raw evidence, the fit is on normalised.
    parameters = starting_parameters(model, drawn, start, "CKPT")
    parameters |= gates(drawn)
    model = rebuild(parameters)
    parameters |= fit(model, draw_samples(model, data, config), config)
    about = {"training": dataclasses.asdict(config), "data": dataclasses.asdict(data)}
    fitted = LoadedModel(rebuild(parameters), PRESET, network, config.steps, str(file), about)
    export_weights(fitted, file)


def draw_samples(model: ScaleChoice, data: DataConfig, config: FitConfig) -> Sample:
    """Runs the levels on ``config.clips`` clips of the training data.

    Raises:
      UserError: the data cannot be read.
    """
    at_once = max(CLIPS_AT_ONCE, jax.device_count())
    steps = -(-config.clips // at_once)
    rebuild, parameters = split(model)
    mesh = devices.make_mesh(at_once)
    parameters = jax.device_put(parameters, devices.replicated(mesh))
    look = jax.jit(lambda p, blurred, sharp: sample(rebuild(p), blurred, sharp))
    kept: list[Sample] = []
    line = ProgressLine("drawing clips", steps, unit="steps", eager=True, stays=True)
    with batches(
        TrainingData(data, config.crop).train,
        data.clip_options(config.frames, config.crop),
        batch_size=at_once,
        seed=config.seed,
        workers=data.workers,
        max_bad_samples=data.max_bad_samples,
    ) as feed:
        for step, batch in zip(range(steps), devices.global_batches(feed, mesh), strict=False):
            found = look(parameters, from_bytes(batch["blurred"]), from_bytes(batch["sharp"]))
            # float16 is precise enough for the gates' input, at half the memory.
            kept.append(Sample(np.asarray(found.evidence, np.float16), np.asarray(found.form)))
            line.update(step + 1)
    line.close()
    return Sample(*(np.concatenate(parts)[: config.clips] for parts in zip(*kept, strict=True)))


def sample(model: ScaleChoice, blurred: Clip, sharp: Clip) -> Sample:
    """Returns the gates' input for clips, and the quadratic form of the error."""
    residuals, evidence = model.evidence(*model.reduce_and_restore(blurred))
    columns = []
    for scale, residual in zip(model.scales, residuals, strict=True):
        for _ in range(scale.bit_length() - 1):
            residual = enlarge(residual, 2)
        columns.append(residual)
    columns.append(sharp - blurred)
    cells = rearrange(
        jnp.stack(columns, axis=-1),
        "b t (h p) (w q) c l -> b t h w (p q c) l",
        p=model.gates.cell,
        q=model.gates.cell,
    )
    products = jnp.einsum("bthwnk,bthwnl->bthwkl", cells, cells)
    return Sample(evidence, products / cells.shape[-2])


def squared_error(
    shares: Float[Array, "*leading L"], form: Float[Array, "*leading L+1 L+1"]
) -> Float[Array, "*leading"]:
    """Returns the mean squared error of each cell at full size, from its quadratic form."""
    # The error is the levels' residuals times their shares, minus (sharp - blurred).
    factors = jnp.concatenate([shares, -jnp.ones_like(shares[..., :1])], axis=-1)
    return jnp.maximum(jnp.einsum("...k,...kl,...l->...", factors, form, factors), 0.0)


def fit(model: ScaleChoice, samples: Sample, config: FitConfig) -> Parameters:
    """Returns the parameters of the fitted gates, named as in ``model``."""
    rebuild, parameters = split(model)
    start = gates(parameters)
    every = samples.evidence[:: max(1, len(samples.evidence) // 200)].astype(np.float32)
    center, spread = every.mean((0, 1, 2, 3)), every.std((0, 1, 2, 3)) + 1e-3

    def as_they_run(trained: Parameters) -> Parameters:
        # Trained for evidence of mean 0 and standard deviation 1, run on raw evidence.
        kernel = trained["gates/join/kernel"] / spread[:, None]
        bias = trained["gates/join/bias"] - jnp.einsum("i,hwio->o", center, kernel)
        return trained | {"gates/join/kernel": kernel, "gates/join/bias": bias}

    def loss_of(trained: Parameters, evidence: jax.Array, form: jax.Array) -> jax.Array:
        choice = rebuild(parameters | as_they_run(trained))
        fitted = choice.gates
        logits = fitted.logits(evidence.astype(jnp.float32))
        # Charbonnier loss of the root of each cell's mean squared error, as in step.clip_loss.
        loss = jnp.mean(jnp.sqrt(squared_error(fitted.shares(logits), form) + 1e-6))
        return loss + 1e-5 * jnp.mean(jnp.maximum(jnp.abs(logits) - _LARGEST_LOGIT, 0.0) ** 2)

    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.cosine_decay_schedule(2e-3, config.steps), weight_decay=0.03),
    )

    @jax.jit
    def step_on(
        trained: Parameters, state: optax.OptState, evidence: jax.Array, form: jax.Array
    ) -> tuple[Parameters, optax.OptState, jax.Array]:
        loss, gradient = jax.value_and_grad(loss_of)(trained, evidence, form)
        updates, state = optimizer.update(gradient, state, trained)
        return optax.apply_updates(trained, updates), state, loss

    trained, state = start, optimizer.init(start)
    draw, at_once = np.random.default_rng(config.seed), min(_FRAMES_AT_ONCE, config.frames)
    line = ProgressLine("fitting", config.steps, unit="steps", stays=True)
    for step in range(config.steps):
        clips = draw.integers(0, len(samples.evidence), config.batch_size)
        first = draw.integers(0, samples.evidence.shape[1] - at_once + 1)
        frames = slice(first, first + at_once)
        chosen = (kept[clips][:, frames] for kept in samples)
        trained, state, loss = step_on(trained, state, *chosen)
        line.update(step + 1, note=f"loss {float(loss):.4f}")
    line.close()
    return as_they_run(trained)
