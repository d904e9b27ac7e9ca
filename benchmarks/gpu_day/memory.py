"""Memory and FLOPs from XLA's compiler, for a GPU that need not be present.

Compiling for it needs only JAX's CUDA plugin (``python tests/install_extras.py``). Memory is that
of the programs: arguments, results and intermediates, without the scratch space of cuDNN and
cuBLAS. FLOPs are those of the gradient for one clip, as XLA counts them before it optimises, with
every loop unrolled: it does not count what is left to cuDNN, and counts a loop once.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.experimental import topologies
from jax.sharding import Mesh

from benchmarks.gpu_day.report import Report
from jaxdeblur import devices, models, presets
from jaxdeblur.errors import UserError
from jaxdeblur.models.parameters import split
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.options import read_fields
from jaxdeblur.presets import Preset
from jaxdeblur.restoration.placement import Compiled, Due, program
from jaxdeblur.training.step import (
    TrainingConfig,
    compile_train_step,
    initial_train_state,
    loss_and_statistics,
)
from jaxdeblur.video.pixels import PixelLayout

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "tests" / "kernels" / "targets" / "sm_90.txtpb"
TARGET_HELP = "XLA's description of the GPU; sm_80.txtpb beside it describes an A100"
PEAK, SHARE = 989e12, 0.15
"""FLOP/s of an H200 in bfloat16 without sparsity, and the share assumed to be reached: as many
FLOP/s as docs/lab/scaling.md assumes in TF32."""


# Training on a GPU; presets not listed use strcnn_dtb's clips.
LIKE_ALL = {
    "frames": 5, "crop": 160, "batch_size": 16, "optimizer": "muon", "average": 0.999,
    "recompute": False,
}  # fmt: skip
FSTA = {"batch_size": 8, "crop": 256}
SMALL = {"frames": 2, "crop": 32, "batch_size": 1}


def chosen(name: str, rehearse: bool = False) -> Preset:
    """Returns a preset as trained on a GPU, in bfloat16.

    Raises:
      UserError: there is no preset of that name.
    """
    if name not in presets.PRESETS:
        there = ", ".join(sorted(presets.PRESETS))
        raise UserError(f"--preset={name}: no such preset; choose from {there}")
    preset = presets.PRESETS[name]
    half = {"dtype": "bfloat16"} if hasattr(preset.network, "dtype") else {}
    training = LIKE_ALL | (SMALL if rehearse else FSTA if name == "fsta_concat" else {})
    return dataclasses.replace(
        preset,
        network=dataclasses.replace(preset.network, **half),
        training=dataclasses.replace(preset.training, **training),
    )


def run(arguments: argparse.Namespace, report: Report) -> None:
    """Compiles the programs of a training and of a stream, and prints their memory and FLOPs."""
    preset = chosen(arguments.preset, arguments.rehearse)
    network, config = (
        read_fields(arguments, fields) for fields in (preset.network, preset.training)
    )
    mesh = devices.mesh_of(jax.devices()[:1]) if arguments.rehearse else one_gpu(arguments.target)
    model = models.build(network)
    gpu = report.found["for"] = mesh.devices.flat[0].device_kind
    print(f"{arguments.preset}, {network.dtype}, for {gpu}, jax {jax.__version__}")
    width, height = (48, 32) if arguments.rehearse else arguments.size
    clips = (config.batch_size, config.frames, config.crop, config.crop)
    of = f"{arguments.preset}, {network.dtype}"
    parts = f" by {config.micro_batch}" if config.micro_batch else ""
    named = {
        f"{of}: training step of {' x '.join(map(str, clips))}{parts}": lambda: memory_of(
            *training_step(model, config, mesh), mesh
        ),
        f"{of}: frame of {width}x{height}": lambda: memory_of(
            *restoring_step(model, height, width, mesh), mesh
        ),
        f"{of}: FLOPs of a clip of {' x '.join(map(str, clips[1:]))}": partial(
            work_of, model, config
        ),
    }
    report.rows.clear()  # the network of a name may have changed
    for row in report.each(named.items()):
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def find_compiler() -> None:
    """Lets JAX find the CUDA plugin; call this before JAX first looks for devices."""
    # The plugin compiles without looking for a driver if JAX requests the CPU alone.
    jax.config.update("jax_platforms", "cpu")
    sys.path.append(str(ROOT / ".cuda-plugin" / jax.__version__))


def one_gpu(target: Path) -> Mesh:
    """Returns a mesh of the one GPU that a file describes, for the compiler only."""
    try:
        text = target.read_text()
    except OSError as error:
        raise UserError(f"--target={target}: cannot be read: {error.strerror}") from error
    try:
        topology = topologies.get_topology_desc("gpu", "cuda", topology="1x1x1", target_config=text)
    except Exception as error:  # the plugin's own, of many types
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"cannot compile for {target} here: {why[0]} (python tests/install_extras.py "
            "installs JAX's CUDA plugin)"
        ) from error
    return devices.mesh_of(topology.devices[:1])


def training_step(
    model: VideoRestorer, config: TrainingConfig, mesh: Mesh
) -> tuple[Any, list[Any]]:
    """Returns the program that train.py runs for each batch, and its arguments."""
    rebuild, parameters = split(model)
    state = jax.eval_shape(lambda given: initial_train_state(config, given), parameters)
    batch = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=devices.clips_over(mesh)),
        batch_of(model, config, config.batch_size),
    )
    return compile_train_step(config, rebuild, mesh), [on(mesh, state), batch]


def batch_of(model: VideoRestorer, config: TrainingConfig, clips: int) -> dict[str, Any]:
    """Returns a batch's shapes: sharp frames, and blurred ones with those that the window needs."""
    lengths = {"blurred": config.frames + sum(model.context), "sharp": config.frames}
    size = (config.crop, config.crop, 3)
    return {
        name: jax.ShapeDtypeStruct((clips, frames, *size), jnp.uint8)
        for name, frames in lengths.items()
    }


def restoring_step(
    model: VideoRestorer, height: int, width: int, mesh: Mesh
) -> tuple[Any, list[Any]]:
    """Returns the program that deblur.py runs for each frame of a usual video and its arguments."""
    graph, parameters = nnx.split(model)
    layout = PixelLayout("yuv", 8, (2, 2), (0.2126, 0.0722), full_range=False)
    state = jax.eval_shape(lambda: model.initial_state(1, height, width))
    shapes = layout.plane_shapes(height, width)
    planes = on(mesh, tuple(jax.ShapeDtypeStruct(shape, layout.dtype) for shape in shapes))
    due = Due(planes, on(mesh, jax.ShapeDtypeStruct((), jnp.float32)))
    what = Compiled(graph, layout, None)
    given = [what, on(mesh, parameters), on(mesh, state), (planes, False), due]
    return program("network", False), given


def on(mesh: Mesh, arrays: Any) -> Any:
    """Returns the shapes of arrays, replicated on each device."""
    there = devices.replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), arrays)


def memory_of(program: Any, given: list[Any], mesh: Mesh) -> dict[str, Any]:
    """Compiles a program; returns its GiB and the number of our kernels in it."""
    began = time.monotonic()
    platform = mesh.devices.flat[0].platform
    # XLA picks Triton's matrix products by timing them; without a GPU it takes one untested, which
    # does not fit for some sizes. So all of them use cuBLAS here.
    options = {"xla_gpu_enable_triton_gemm": False} if platform != "cpu" else {}
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = program.trace(*given).lower(
            lowering_platforms=("cpu" if platform == "cpu" else "cuda",)
        )
    compiled = lowered.compile(compiler_options=options)
    memory = compiled.memory_analysis()
    taken = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    text = compiled.as_text()
    ours = text.count('custom_call_target="mosaic_gpu')
    seconds = round(time.monotonic() - began)
    return {"GiB": float(f"{taken / 2**30:.3g}"), "our_kernels": ours, "compiled_in_s": seconds}


def work_of(model: VideoRestorer, config: TrainingConfig) -> dict[str, Any]:
    """Returns TFLOP of one clip's gradient, and steps per hour at the assumed share of the peak."""
    rebuild, parameters = split(model)

    def loss(parameters: Any, batch: Any) -> jax.Array:
        return loss_and_statistics(rebuild(parameters), batch, config.loss)[0]

    scan = lax.scan
    try:
        # Replaced only while this is traced.
        lax.scan = lambda f, start, xs=None, **given: scan(f, start, xs, **given | {"unroll": True})
        traced = jax.jit(jax.grad(loss)).trace(parameters, batch_of(model, config, 1))
    finally:
        lax.scan = scan
    flops = traced.lower(lowering_platforms=("cuda",)).cost_analysis()["flops"]
    steps = 3600 * SHARE * PEAK / (flops * config.batch_size)
    found = {"TFLOP": flops / 1e12, "steps_an_hour": steps, "of_peak": SHARE}
    return {name: float(f"{value:.3g}") for name, value in found.items()}
