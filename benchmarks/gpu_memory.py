"""What a training step and a frame of a stream take on a GPU, by XLA's compiler and without a GPU.

    python tests/install_extras.py    # JAX's CUDA plugin, bare, which the compiler is in
    python -m benchmarks.gpu_memory --model=strcnn_dtb --dtype=bfloat16
    python -m benchmarks.gpu_memory --model=fsta --scales 4 2 1 --dtype=bfloat16

Takes the options of train.py that say what is computed. Memory is that of the programs: arguments,
results and what lies between, without the scratch space that cuDNN and cuBLAS take beside.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh

from jaxdeblur import devices, models, presets
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.models.parameters import split
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.options import Parser, add_fields, frame_size, read_fields
from jaxdeblur.restoration.placement import Compiled, stream_step
from jaxdeblur.training.step import TrainingConfig, compile_train_step, initial_train_state
from jaxdeblur.video.pixels import PixelLayout

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ROOT / "tests" / "kernels" / "targets"


def main() -> None:
    look = Parser(add_help=False)
    look.add_argument("--model", metavar="PRESET", default="strcnn_dtb", help="the preset")
    preset = presets.find(look.parse_known_args()[0].model)
    parser = Parser(description=__doc__, parents=[look])
    parser.add_argument(
        "--target",
        type=Path,
        default=TARGETS / "sm_90.txtpb",
        help="what XLA must know of the GPU; tests/kernels/targets has an A100 (sm_80) and an H200",
    )
    parser.add_argument("--size", type=frame_size, default="1280x720", help="of the stream")
    add_fields(parser, preset.network, "network")
    add_fields(parser, preset.training, "training")
    arguments = parser.parse_args()
    network = read_fields(arguments, preset.network)
    config = read_fields(arguments, preset.training)
    mesh = one_gpu(arguments.target)
    model = models.build(network)
    gpu = mesh.devices.flat[0].device_kind
    print(f"{arguments.model} for {gpu}, jax {jax.__version__}")
    print("| | GiB | kernels of ours | compiled in |\n|---|---|---|---|")
    clips = (config.batch_size, config.frames, config.crop, config.crop, 3)
    what = f"training step of {' x '.join(map(str, clips[:-1]))}"
    show(what, *training_step(model, config, clips, mesh), mesh)
    width, height = arguments.size
    show(f"frame of {width}x{height}", *restoring_step(model, height, width, mesh), mesh)


def one_gpu(target: Path) -> Mesh:
    """A mesh of the one GPU that a file describes, for the compiler only."""
    try:
        text = target.read_text()
    except OSError as error:
        raise UserError(f"--target={target}: cannot be read: {error.strerror}") from error
    # The plugin compiles without looking for a driver where JAX asks for the CPU alone.
    jax.config.update("jax_platforms", "cpu")
    sys.path.append(str(ROOT / ".cuda-plugin"))
    jax.devices()  # registers the plugin
    try:
        topology = topologies.get_topology_desc("gpu", "cuda", topology="1x1x1", target_config=text)
    except Exception as error:  # the plugin's own, of many types
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"nothing compiles for {target} here: {why[0]} (python tests/install_extras.py "
            "installs JAX's CUDA plugin)"
        ) from error
    axes = devices.make_mesh(jax.device_count())
    return Mesh(
        np.array(topology.devices).reshape(1, 1), axes.axis_names, axis_types=axes.axis_types
    )


def training_step(
    model: VideoRestorer, config: TrainingConfig, clips: tuple[int, ...], mesh: Mesh
) -> tuple[Any, list[Any]]:
    """The program that train.py runs for each batch, and what it is given."""
    rebuild, parameters = split(model)
    state = jax.eval_shape(lambda given: initial_train_state(config, given), parameters)
    frames = jax.ShapeDtypeStruct(clips, jnp.uint8, sharding=devices.clips_over(mesh))
    step = compile_train_step(config, rebuild, mesh)
    return step, [on(mesh, state), {"blurred": frames, "sharp": frames}]


def restoring_step(
    model: VideoRestorer, height: int, width: int, mesh: Mesh
) -> tuple[Any, list[Any]]:
    """The program that deblur.py runs for each frame of a usual video, and what it is given."""
    graph, parameters = nnx.split(model)
    layout = PixelLayout("yuv", 8, (2, 2), (0.2126, 0.0722), full_range=False)
    state = jax.eval_shape(lambda: model.initial_state(1, height, width))
    shapes = layout.plane_shapes(height, width)
    planes = on(mesh, tuple(jax.ShapeDtypeStruct(shape, layout.dtype) for shape in shapes))
    strength = on(mesh, jax.ShapeDtypeStruct((), jnp.float32))
    what = Compiled(graph, layout, None, None)
    return stream_step, [
        what,
        on(mesh, parameters),
        on(mesh, state),
        planes,
        False,
        planes,
        strength,
    ]


def on(mesh: Mesh, arrays: Any) -> Any:
    """The shapes of arrays, all of them on each device."""
    there = devices.replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), arrays)


def show(what: str, program: Any, arguments: list[Any], mesh: Mesh) -> None:
    """Compiles a program and prints its row of the table."""
    began = time.perf_counter()
    try:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            lowered = program.trace(*arguments).lower(lowering_platforms=("cuda",))
        # XLA picks Triton's matrix products by timing them; without a GPU it takes one untried,
        # which for some sizes does not fit. So all of them are cuBLAS's here.
        compiled = lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": False})
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"the {what} does not compile: {str(error).splitlines()[0]}") from error
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    taken = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    ours = compiled.as_text().count("__gpu$xla.gpu.triton")
    print(f"| {what} | {taken / 2**30:.2f} | {ours} | {seconds:.0f} s |", flush=True)


if __name__ == "__main__":
    # From jax 0.11; it works through 0.12 (docs/kernels.md).
    warnings.filterwarnings("ignore", message="The Pallas Triton backend")
    run_command(main, "benchmarks.gpu_memory")
