"""The train step: the loss, the optimiser, and both combined in one pure function."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Num
from optax import contrib

from jaxdeblur import devices
from jaxdeblur.errors import UserError
from jaxdeblur.models.parameters import is_statistic, is_trained, split
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.options import Count, Range, check_ranges
from jaxdeblur.shapes import Batch, Clip, Parameters, SeenClip

Loss: TypeAlias = Literal["mse", "charbonnier", "log_mse"]


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained.

    Attributes:
      steps: total number of train steps.
      batch_size: clips per step, over all devices and processes.
      frames: frames per clip.
      crop: height and width of a clip, pixels.
      optimizer: adam, or muon on the convolution kernels with adam on everything else.
      learning_rate: peak learning rate.
      beta2: adam's decay of the second moment.
      rates: NAME=FACTOR multiplies the learning rate of all parameters whose name has NAME as a
        part, as in beta_logit=30 or f_s=30; 0 freezes them. Ours: beta and the kernels of the maps
        must move further than parameters that keep their scale.
      weight_decay: factor of half the sum of the squared convolution kernels, added to the loss;
        biases and the blending's beta are exempt.
      warmup: steps over which the learning rate rises from zero.
      schedule: after the warm-up: falling along a cosine to zero, halved every halve_every clips,
        or constant.
      halve_every: clips between halvings; in epochs, this does not depend on the batch size.
      clip_norm: largest norm of the gradient; larger ones are scaled down.
      loss: mse and charbonnier weigh every pixel alike; log_mse is the mean over clips of log(MSE),
        that is, PSNR, so that hopelessly blurred clips do not outweigh all others.
      average: decay of the moving average of the parameters that is validated and
        saved; 0 for none.
      micro_batch: clips whose gradients a device computes at once, then summed over its share of
        the batch: less memory, the same step. 0 is the whole share, or on a CPU, where several at
        once are no faster, one clip.
      recompute: the backward pass recomputes the inside of each step of a recurrence: a third more
        work, half the memory or less.
      seed: seed of the parameters and the order of the data.
      validate_every: steps between validations; 0 for none.
      save_every: steps between checkpoints; the last step is always saved.
      keep: number of checkpoints kept.
    """

    steps: Annotated[int, Range(1, 2**31 - 2)] = 400_000
    batch_size: Annotated[int, Range(1, 2**16)] = 8
    frames: Annotated[int, Range(1, 2**16)] = 13
    crop: Annotated[int, Range(16, 2048)] = 128
    optimizer: Literal["adam", "muon"] = "adam"
    learning_rate: Annotated[float, Range(above=0)] = 1e-4
    beta2: Annotated[float, Range(0, below=1)] = 0.999
    rates: tuple[str, ...] = ()
    weight_decay: Annotated[float, Range(0)] = 0.0
    warmup: Annotated[int, Range(0)] = 100
    schedule: Literal["cosine", "halve", "constant"] = "cosine"
    halve_every: Count = 800_000
    clip_norm: Annotated[float, Range(above=0)] = 1.0
    loss: Loss = "charbonnier"
    average: Annotated[float, Range(0, below=1)] = 0.0
    micro_batch: Annotated[int, Range(0)] = 0
    recompute: bool = False
    seed: Annotated[int, Range(0, 2**31 - 1)] = 0
    validate_every: Annotated[int, Range(0)] = 1000
    save_every: Count = 1000
    keep: Count = 3

    def __post_init__(self) -> None:
        check_ranges(self)
        rate_factors(self.rates)


def rate_factors(rates: tuple[str, ...]) -> dict[str, float]:
    """Returns the factors of ``rates`` by name.

    Raises:
      UserError: one is not NAME=FACTOR.
    """
    factors = {}
    for rate in rates:
        name, _, factor = rate.partition("=")
        if not name or not re.fullmatch(r"\d+(\.\d*)?", factor):
            raise UserError(f"--rates: {rate!r} is not NAME=FACTOR, such as beta_logit=30")
        factors[name] = float(factor)
    return factors


# The loss.


def clip_loss(restored: Clip, sharp: Clip, kind: Loss) -> Float[Array, ""]:
    """Returns the loss of restored clips against the sharp ones, both in [0, 1] units."""
    error = restored - sharp
    if kind == "mse":
        return jnp.mean(error**2)
    if kind == "charbonnier":  # Charbonnier et al. 1994, with epsilon = 1e-3
        return jnp.mean(jnp.sqrt(error**2 + 1e-6))
    # 1e-4 is 40 dB: nothing is gained by improving a clip beyond it. With 1e-5 the gradients of
    # clips that are nearly sharp are two to six times those of blurred ones.
    return jnp.mean(jnp.log(jnp.mean(error**2, axis=(1, 2, 3, 4)) + 1e-4))


def loss_and_statistics(
    model: VideoRestorer, batch: Batch, kind: Loss
) -> tuple[Float[Array, ""], Parameters]:
    """Returns the loss, summed over the model's outputs, and the new running statistics."""
    outputs = model.training_outputs(from_bytes(batch["blurred"]), from_bytes(batch["sharp"]))
    pairs = zip(outputs.restored, outputs.targets, strict=True)
    losses = (clip_loss(restored, target, kind) for restored, target in pairs)
    return sum(losses, jnp.float32(0)), outputs.statistics


def from_bytes(clip: Num[Array, "B T H W S"]) -> SeenClip:
    """Converts 0..255 to [0, 1]."""
    return clip.astype(jnp.float32) / 255


# The optimiser.


def learning_rate(config: TrainingConfig) -> optax.Schedule:
    """Returns the learning rate as a function of the step."""

    def rate(step: Int[Array, ""] | int) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        rising = jnp.minimum(1.0, (step + 1) / max(config.warmup, 1))
        if config.schedule == "cosine":
            falling = 0.5 + 0.5 * jnp.cos(jnp.pi * jnp.minimum(step / config.steps, 1.0))
        elif config.schedule == "halve":
            falling = 0.5 ** jnp.floor(step * config.batch_size / config.halve_every)
        else:
            falling = jnp.float32(1)
        return config.learning_rate * rising * falling

    return rate


_MUON_RMS = 0.4  # Root mean square of its update, in units of the learning rate.


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Returns Adam (Kingma & Ba 2015), or Muon (Jordan 2024) on the convolution kernels."""
    rate = learning_rate(config)
    clip = optax.clip_by_global_norm(config.clip_norm)
    if config.optimizer == "adam":
        update = optax.adam(rate, b2=config.beta2)
    else:
        update = contrib.muon(
            rate,
            adam_b2=config.beta2,
            consistent_rms=_MUON_RMS,
            muon_weight_dimension_numbers=_kernels_as_matrices,
        )
    factors = rate_factors(config.rates)
    if not factors:
        return optax.chain(clip, update)

    def factor_of(name: str) -> float:
        own = (factor for part, factor in factors.items() if part in name.split("/"))
        return math.prod(own, start=1.0)

    def with_own_rates(updates: Any, parameters: Any = None) -> Any:
        return {name: factor_of(name) * array for name, array in updates.items()}

    return optax.chain(clip, update, optax.stateless(with_own_rates))


def _kernels_as_matrices(parameters: dict[str, Any]) -> dict[str, Any]:
    """Selects the kernels that output features, as matrices for Muon; those to RGB use Adam."""
    as_matrix = contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=(3,))
    # Optax calls this again with Adam's parameters masked out, which have no ndim.
    return {
        name: as_matrix if getattr(array, "ndim", 0) == 4 and "head" not in name else None
        for name, array in parameters.items()
    }


# The train step.


class TrainState(NamedTuple):
    """Everything that a run needs to resume, as stored in a checkpoint."""

    step: Int[Array, ""]
    parameters: Parameters
    optimizer: Any
    average: Parameters
    """The moving average of the parameters; empty without one."""
    failed: Bool[Array, ""]
    """Whether a loss or gradient was not finite; nothing changes from then on."""


class Metrics(NamedTuple):
    """The metrics of one step."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    failed: Bool[Array, ""]


def initial_train_state(config: TrainingConfig, parameters: Parameters) -> TrainState:
    """Returns the state before the first step.

    Raises:
      UserError: a rate names no parameter.
    """
    trained = trained_parameters(parameters)
    parts = {part for name in trained for part in name.split("/")}
    for name in rate_factors(config.rates):
        if name not in parts:
            raise UserError(f"--rates: no parameter has {name!r} as a part of its name")
    return TrainState(
        step=jnp.int32(0),
        parameters=parameters,
        optimizer=make_optimizer(config).init(trained),
        average={name: jnp.copy(a) for name, a in parameters.items()} if config.average else {},
        failed=jnp.bool_(False),
    )


def trained_parameters(parameters: Parameters) -> Parameters:
    """Returns the parameters that are optimised (``is_trained``)."""
    return {name: array for name, array in parameters.items() if is_trained(name)}


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    config: TrainingConfig,
    rebuild: Callable[[Parameters], VideoRestorer],
    parts: int = 1,
    shares: int = 1,
) -> tuple[TrainState, Metrics]:
    """Performs one pure step: gradient of the loss, update, moving average.

    Args:
      state: before the step.
      batch: ``blurred`` and ``sharp`` clips, 0 to 255.
      config: of the training.
      rebuild: builds the network from its parameters.
      parts: the number of micro-batches (:func:`micro_batch_count`).
      shares: the number of devices that share the batch; each takes part of every micro-batch.
    """

    trained = trained_parameters(state.parameters)

    def loss_of(trained: Parameters, clips: Batch) -> tuple[Float[Array, ""], Parameters]:
        model = rebuild(state.parameters | trained)
        if config.recompute:
            model.save_memory()
        loss, statistics = loss_and_statistics(model, clips, config.loss)
        if config.weight_decay:
            loss += config.weight_decay * half_squares(trained)
        return loss, statistics

    value_and_grad = jax.value_and_grad(loss_of, has_aux=True)
    if parts == 1:
        (loss, statistics), gradients = value_and_grad(trained, batch)
    else:

        def add(total: Any, part: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, value_and_grad(trained, part)), None

        # From each device's clips, which remain on it.
        groups = jax.tree.map(
            lambda a: rearrange(a, "(d k m) ... -> k (d m) ...", d=shares, k=parts), batch
        )
        first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), groups)
        shapes = jax.eval_shape(value_and_grad, trained, first)
        nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        # Every loss is a mean over clips, so the mean over equal parts is that of the batch.
        total, _ = lax.scan(add, nothing, groups)
        (loss, statistics), gradients = jax.tree.map(lambda a: a / parts, total)
    gradient_norm = optax.tree.norm(gradients)
    failed = state.failed | ~(jnp.isfinite(loss) & jnp.isfinite(gradient_norm))
    updates, optimizer = make_optimizer(config).update(gradients, state.optimizer, trained)
    updated: Any = optax.apply_updates(trained, updates)
    parameters = state.parameters | updated | statistics
    average = state.average
    if config.average:
        # Short at first, so that the initial random parameters are soon forgotten.
        decay = jnp.minimum(config.average, (1 + state.step) / (10 + state.step))
        # Parameters that are not trained remain bit-identical.
        average = average | {
            name: decay * average[name] + (1 - decay) * array for name, array in updated.items()
        }
        average |= statistics  # themselves averages
    new = TrainState(state.step + 1, parameters, optimizer, average, failed)
    # After a failure the state remains as it was before the batch that caused it.
    kept = jax.tree.map(lambda before, after: jnp.where(failed, before, after), state, new)
    return kept._replace(failed=failed), Metrics(loss, gradient_norm, failed)


def half_squares(parameters: Parameters) -> Float[Array, ""]:
    """Returns half the sum of squared convolution kernels, which weight decay adds to the loss."""
    kernels = [a for name, a in parameters.items() if name.endswith("kernel")]
    return 0.5 * sum((jnp.sum(a**2) for a in kernels), jnp.float32(0))


def micro_batch_count(config: TrainingConfig, model: VideoRestorer, mesh: Mesh) -> int:
    """Returns the number of micro-batches in a step of ``config``.

    Raises:
      UserError: their sizes would differ, or the network normalises by its whole batch.
    """
    share = config.batch_size // mesh.size
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    whole = not model.clips_are_independent or any(map(is_statistic, split(model)[1]))
    at_once = config.micro_batch or (1 if on_cpu and not whole else share)
    if share % at_once:
        raise UserError(
            f"--micro-batch={at_once} must divide the {share} clips per batch on each of "
            f"{mesh.size} devices"
        )
    if whole and at_once < share:
        raise UserError(f"--micro-batch={at_once}: this network normalises over the whole batch")
    return share // at_once


def compile_train_step(
    config: TrainingConfig, rebuild: Callable[[Parameters], VideoRestorer], mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compiles the train step: parameters on every device, the batch sharded over ``mesh``."""
    everywhere, shared = devices.replicated(mesh), devices.clips_over(mesh)

    def rebuild_here(parameters: Parameters) -> VideoRestorer:
        model = rebuild(parameters)
        model.spread_over(mesh)
        return model

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        parts = micro_batch_count(config, rebuild(state.parameters), mesh)
        return train_step(
            state, batch, config=config, rebuild=rebuild_here, parts=parts, shares=mesh.size
        )

    return jax.jit(
        step,
        in_shardings=(everywhere, shared),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )


def best_parameters(state: TrainState) -> Parameters:
    """Returns the moving average if there is one, else the parameters."""
    return state.average or state.parameters
