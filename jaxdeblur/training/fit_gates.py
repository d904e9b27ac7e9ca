"""Fits the gates of a network at several sizes.

``python -m jaxdeblur.training.fit_gates CKPT FILE`` writes them as a weights file.

What the levels restore does not depend on the gates, and the squared error of a cell is a quadratic
form in its shares. So every clip goes through the levels once; what is kept of it is what the gates
see and that form, some hundred numbers a cell, and thousands of steps on them take a minute where
training them would run the levels in each. The form takes the shares as constant in a cell, which
the network, which enlarges them, does not.

What is kept goes to a folder, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from einops import rearrange
from jaxtyping import Array, Float

from jaxdeblur import devices, presets
from jaxdeblur.data.batches import batches
from jaxdeblur.data.cache import keep_settings
from jaxdeblur.data.config import DataConfig
from jaxdeblur.data.training_data import open_data
from jaxdeblur.errors import ProgressLine, UserError, run_command
from jaxdeblur.files import ended_by_signals, replace_when_whole
from jaxdeblur.models.layers import enlarge
from jaxdeblur.models.parameters import split
from jaxdeblur.models.registry import build
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.models.scale_choice import ScaleChoice, gates
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.options import (
    ClusterConfig,
    Count,
    Parser,
    Range,
    add_fields,
    check_ranges,
    read_fields,
)
from jaxdeblur.shapes import Clip, Parameters
from jaxdeblur.training.step import from_bytes
from jaxdeblur.weights.load import LoadedModel, load_model, starting_parameters
from jaxdeblur.weights.save import export_weights

_CLIPS_AT_ONCE = 2
_FRAMES_AT_ONCE = 2  # At most: frames of one clip tell nearly the same.
_STEPS_A_PART = 50  # Of drawing, half a minute on two cores: what is lost where a run is stopped.
_LARGEST_LOGIT = 4.0  # Beyond it a share is shut or open, without a gradient, and is pulled back.


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How the gates are fitted.

    Attributes:
      clips: how many clips go through the levels.
      frames: of a clip.
      crop: side of the square crops, pixels; a multiple of twice the coarsest scale.
      steps: of Adam, on the numbers that are kept.
      batch_size: clips a step, of two frames each, or of the one that there is.
      learning_rate: the first one; it falls to 0 as a cosine.
      weight_decay: of AdamW.
      loss: charbonnier: of the root of each cell's mean squared error; log_mse: of each frame's,
        levelling off at 40 dB.
      seed: of clips, parameters and steps.
    """

    clips: Count = 2000
    frames: Count = 4
    crop: Count = 256
    steps: Count = 4000
    batch_size: Count = 12
    learning_rate: Annotated[float, Range(above=0, below=1)] = 2e-3
    weight_decay: Annotated[float, Range(0, below=1)] = 0.03
    loss: Literal["charbonnier", "log_mse"] = "charbonnier"
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0

    def __post_init__(self) -> None:
        check_ranges(self)


class Sample(NamedTuple):
    """What is kept of clips."""

    evidence: Float[Array | np.ndarray, "B T h w C"]
    """What the gates go by."""
    form: Float[Array | np.ndarray, "B T h w L+1 L+1"]
    """Mean products, in each cell, of what the levels add at full size and of what is missing."""


class KeptClips:
    """A folder of samples, in parts of some steps each, all drawn with the same ``settings``.

    Raises:
      UserError: the folder holds something else, or cannot be read or written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        keep_settings(folder, settings, "fit_gates", "name another with --clips-in")

    def steps(self) -> int:
        """How many steps have been drawn."""
        return max((int(path.stem) for path in self._parts()), default=0)

    def add(self, end: int, samples: list[Sample]) -> None:
        """Writes the part that ends at step ``end``."""
        with replace_when_whole(self.folder / f"{end:07d}.safetensors") as part:
            safetensors.numpy.save_file(_joined(samples)._asdict(), part)

    def read(self, clips: int) -> Sample:
        """The first ``clips`` of them.

        Raises:
          UserError: some are missing or damaged.
        """
        parts: list[Sample] = []
        for path in self._parts():
            if sum(len(part.evidence) for part in parts) >= clips:
                break
            try:
                parts.append(Sample(**safetensors.numpy.load_file(path)))
            except (safetensors.SafetensorError, OSError, TypeError) as error:
                raise UserError(f"{path}: not readable ({error}); remove {self.folder}") from error
        if sum(len(part.evidence) for part in parts) < clips:
            raise UserError(f"{self.folder}: some of its clips are missing; remove it")
        return Sample(*(kept[:clips] for kept in _joined(parts)))

    def _parts(self) -> list[Path]:
        # Not what a kill left half written, whose name begins with a dot.
        return sorted(self.folder.glob("[0-9]" * 7 + ".safetensors"))


def _joined(parts: list[Sample]) -> Sample:
    return Sample(*(np.concatenate(kept) for kept in zip(*parts, strict=True)))


def main() -> None:
    """Reads the options, fits and writes the file.

    Raises:
      UserError: options, weights or data that cannot be used.
    """
    preset = presets.PRESETS["strcnn_dtb_choice"]
    parser = Parser(
        prog="python -m jaxdeblur.training.fit_gates", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument(
        "start", metavar="CKPT", help="the network of one scale, or with gates, which it gets anew"
    )
    parser.add_argument("file", type=Path, help="the .safetensors file that is written")
    parser.add_argument(
        "--scales", type=int, nargs="+", default=list(preset.network.scales), help="the sizes"
    )
    parser.add_argument(
        "--clips-in",
        type=Path,
        metavar="FOLDER",
        help="where drawn clips stay, for fits with other steps, loss or weight decay to start "
        "from; without it they lie beside FILE until that is written",
    )
    add_fields(parser, FitConfig(), "fitting")
    add_fields(parser, preset.data, "data")
    arguments = parser.parse_args()
    if arguments.file.suffix != ".safetensors":
        raise UserError(f"{arguments.file}: the name of a weights file ends in .safetensors")
    if not arguments.file.absolute().parent.is_dir():  # known now, so not to be found after minutes
        raise UserError(f"{arguments.file}: there is no folder {arguments.file.parent}")
    if len(arguments.scales) < 2:
        raise UserError(f"--scales: two or more are needed, not {arguments.scales}")
    config, data = read_fields(arguments, FitConfig()), read_fields(arguments, preset.data)
    for option in ("render", "curriculum", "validate_on", "validate_only"):
        if getattr(data, option) != getattr(preset.data, option):
            raise UserError(f"--{option.replace('_', '-')} is of train.py; here it does nothing")
    devices.keep_freed_memory()
    devices.keep_compiled()
    devices.use_cores(_CLIPS_AT_ONCE, ClusterConfig())

    loaded = load_model(arguments.start)
    if not isinstance(loaded.network, StrcnnConfig):
        kind = type(loaded.network).__name__
        raise UserError(f"{arguments.start}: gates choose between the sizes of STRCNNs, not {kind}")
    network = dataclasses.replace(loaded.network, scales=tuple(arguments.scales))
    model = build(network, seed=config.seed)
    rebuild, drawn = split(model)
    if config.crop % model.multiple:
        raise UserError(f"--crop={config.crop}: a multiple of {model.multiple} is needed")
    # Gates run on evidence as it is and are fitted on what is made alike of it, so not from others.
    parameters = starting_parameters(model, drawn, arguments.start, "CKPT")
    parameters |= gates(drawn)
    model = rebuild(parameters)
    folder: Path = arguments.clips_in or arguments.file.with_suffix(".clips")
    samples = draw_samples(model, data, config, folder)
    parameters = parameters | fit(model, samples, config)
    about = {"training": dataclasses.asdict(config), "data": dataclasses.asdict(data)}
    fitted = LoadedModel(
        rebuild(parameters), "strcnn_dtb_choice", network, config.steps, str(arguments.file), about
    )
    export_weights(fitted, arguments.file)
    if arguments.clips_in is None:
        shutil.rmtree(folder)
    print(f"{arguments.file}: {arguments.file.stat().st_size:,} bytes")


def draw_samples(model: VideoRestorer, data: DataConfig, config: FitConfig, folder: Path) -> Sample:
    """Runs the levels on ``config.clips`` clips of the training data, but for those in ``folder``.

    Args:
      model: the network, with gates.
      data: what clips are drawn from.
      config: of the fit.
      folder: where drawn clips are kept.

    Raises:
      UserError: the folder's clips are of another network, data or seed.
    """
    at_once = max(_CLIPS_AT_ONCE, jax.device_count())
    rebuild, parameters = split(model)
    levels = {name: part for name, part in parameters.items() if not name.startswith("gates/")}
    drawn = {"frames": config.frames, "crop": config.crop, "seed": config.seed, "at once": at_once}
    kept = KeptClips(folder, {"network": _fingerprint(levels), **drawn, **dataclasses.asdict(data)})
    start, steps = kept.steps(), -(-config.clips // at_once)
    if start < steps:
        mesh = devices.make_mesh(at_once)
        parameters = jax.device_put(parameters, devices.replicated(mesh))
        look = jax.jit(lambda p, blurred, sharp: sample(rebuild(p), blurred, sharp))
        part: list[Sample] = []
        line = ProgressLine("drawing clips", steps, unit="steps", eager=True, stays=True)
        with batches(
            open_data(data, config.crop).train,
            data.clip_options(config.frames, config.crop),
            batch_size=at_once,
            seed=config.seed,
            start_step=start,
            workers=data.workers,
            max_bad_samples=data.max_bad_samples,
        ) as feed:
            clips = devices.global_batches(feed, mesh)
            for step, batch in zip(range(start + 1, steps + 1), clips, strict=False):
                found = look(parameters, from_bytes(batch["blurred"]), from_bytes(batch["sharp"]))
                missing = jnp.sqrt(found.form[..., -1, -1].mean())
                # Halves are enough for what the gates see, and half the memory.
                part.append(Sample(np.asarray(found.evidence, np.float16), np.asarray(found.form)))
                if step % _STEPS_A_PART == 0 or step == steps:
                    kept.add(step, part)
                    part = []
                line.update(step, note=f"blur (RMS) {float(missing):.4f}")
        line.close()
    return kept.read(config.clips)


def _fingerprint(parameters: Parameters) -> str:
    """Tells networks apart, by their parameters."""
    digest = hashlib.sha256()
    for name, array in sorted(parameters.items()):
        digest.update(name.encode() + np.asarray(array).tobytes())
    return digest.hexdigest()


def sample(model: VideoRestorer, blurred: Clip, sharp: Clip) -> Sample:
    """What the gates see of clips, and what comes of their shares."""
    assert isinstance(model, ScaleChoice)
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
    """Mean squared error of each cell at full size, from what was kept of it."""
    # Each level is added times its share; what is missing is taken away.
    factors = jnp.concatenate([shares, -jnp.ones_like(shares[..., :1])], axis=-1)
    return jnp.maximum(jnp.einsum("...k,...kl,...l->...", factors, form, factors), 0.0)


def error_loss(
    error: Float[Array, "B T h w"], kind: Literal["charbonnier", "log_mse"]
) -> Float[Array, ""]:
    """What is made as small as can be; both epsilons are those of ``step.clip_loss``."""
    if kind == "charbonnier":
        return jnp.mean(jnp.sqrt(error + 1e-6))
    return jnp.mean(jnp.log(error.mean(axis=(2, 3)) + 1e-4))


def fit(model: VideoRestorer, samples: Sample, config: FitConfig) -> Parameters:
    """The parameters of the gates that take the right shares, named as those of ``model``."""
    rebuild, parameters = split(model)
    start = gates(parameters)
    every = samples.evidence[:: max(1, len(samples.evidence) // 200)].astype(np.float32)
    center, spread = every.mean((0, 1, 2, 3)), every.std((0, 1, 2, 3)) + 1e-3

    def as_they_run(trained: Parameters) -> Parameters:
        # Trained on evidence of mean 0 and deviation 1, run on evidence as it is.
        kernel = trained["gates/join/kernel"] / spread[:, None]
        bias = trained["gates/join/bias"] - jnp.einsum("i,hwio->o", center, kernel)
        return trained | {"gates/join/kernel": kernel, "gates/join/bias": bias}

    def loss_of(trained: Parameters, evidence: jax.Array, form: jax.Array) -> jax.Array:
        choice = rebuild(parameters | as_they_run(trained))
        assert isinstance(choice, ScaleChoice)
        fitted = choice.gates
        logits = fitted.logits(evidence.astype(jnp.float32))
        loss = error_loss(squared_error(fitted.shares(logits), form), config.loss)
        return loss + 1e-5 * jnp.mean(jnp.maximum(jnp.abs(logits) - _LARGEST_LOGIT, 0.0) ** 2)

    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            optax.cosine_decay_schedule(config.learning_rate, config.steps),
            weight_decay=config.weight_decay,
        ),
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


if __name__ == "__main__":
    with ended_by_signals("jaxdeblur.training.fit_gates"):
        run_command(main, "jaxdeblur.training.fit_gates")
