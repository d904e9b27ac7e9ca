"""Forward pass and training step of the systems of Table 1 beside PyTorch's, on the same cores.

    python -m benchmarks.peers
    python -m benchmarks.peers --only srn dbn rdn --batch-size=1 --frames=2 --crop=64

Each preset runs with the same weights as its twin in ``benchmarks/twins.py``; outputs are compared
before anything is timed, and the four programs take turns. torch comes with the extra
``benchmark``; EDVR needs torchvision, too, and is left out without it. STRCNN+DTB has a program of
its own, ``benchmarks/train_step.py``; the attention network has no twin.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import jax
import numpy as np

from benchmarks.options import natural
from benchmarks.train_step import side_by_side
from jaxdeblur import devices, models
from jaxdeblur.errors import UserError, run_command, tell
from jaxdeblur.models.parameters import count, split
from jaxdeblur.options import Parser
from jaxdeblur.presets import PRESETS
from jaxdeblur.training.step import compile_train_step, from_bytes, initial_train_state

NAMES = [
    name
    for name, preset in PRESETS.items()
    if type(preset.network).__module__.startswith("jaxdeblur.models.peers.")
]
"""The presets that have a twin."""


def main() -> None:
    parser = Parser(description=__doc__)
    small = [name for name in NAMES if name.endswith("_small")]
    parser.add_argument("--only", nargs="+", choices=NAMES, default=small, help="the presets")
    parser.add_argument("--repeats", type=natural, default=7, help="timings of each, their median")
    parser.add_argument("--batch-size", type=natural, default=2, help="clips of a step")
    parser.add_argument("--frames", type=natural, default=4, help="of a clip")
    parser.add_argument("--crop", type=natural, default=96, help="pixels")
    options = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is needed: pip install 'jaxdeblur[benchmark]'")
    devices.keep_freed_memory()
    devices.keep_compiled()
    devices.use_cores(options.batch_size)
    if jax.default_backend() != "cpu":
        raise UserError("CPUs are compared: set JAX_PLATFORMS=cpu")
    import torch

    torch.set_num_threads(devices.cores())
    shape = (options.batch_size, options.frames, options.crop, options.crop, 3)
    print(
        f"Clips {'x'.join(map(str, shape[:4]))}; {devices.described()}, {devices.cores()} cores, "
        f"JAX {jax.__version__}, torch {torch.__version__}; medians of {options.repeats}, ms.\n\n"
        "| preset | parameters | forward | torch | ratio | training step | torch | ratio |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        flush=True,
    )
    for name in options.only:
        if name.startswith("edvr") and importlib.util.find_spec("torchvision") is None:
            tell(f"{name}: left out, since torch has no deformable convolution without torchvision")
            continue
        parameters, times = compare(name, shape, options.repeats)
        cells = []
        for what in ("forward", "training step"):
            ours, theirs = times[what], times[f"{what}, torch"]
            cells += [f"{1e3 * ours:.0f}", f"{1e3 * theirs:.0f}", f"{ours / theirs:.2f}"]
        print(f"| `{name}` | {parameters:,} | {' | '.join(cells)} |", flush=True)


def compare(name: str, shape: tuple[int, ...], repeats: int) -> tuple[int, dict[str, float]]:
    """Counts a preset's parameters and times it and its twin; seconds by what was timed."""
    import torch

    from benchmarks import twins

    network = PRESETS[name].network
    config = dataclasses.replace(
        PRESETS[name].training, optimizer="adam", loss="mse", batch_size=shape[0], average=0.0
    )
    model = models.build(network)
    rebuild, parameters = split(model)
    mesh = devices.make_mesh(shape[0])
    everywhere, shared = devices.replicated(mesh), devices.clips_over(mesh)
    sharp = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    batch = jax.device_put({"blurred": sharp[::-1].copy(), "sharp": sharp}, shared)
    forward = jax.jit(
        lambda p, x: rebuild(p).restore_clip(from_bytes(x)), in_shardings=(everywhere, shared)
    )
    # A copy: the training step takes the memory of the parameters it is given.
    replicas = jax.device_put({k: np.array(a) for k, a in parameters.items()}, everywhere)
    step = compile_train_step(config, rebuild, mesh)
    held = [jax.device_put(initial_train_state(config, parameters), everywhere)]

    weights = twins.weights_of(network, parameters)
    clip, target = (torch.tensor(x, dtype=torch.float32) / 255 for x in (sharp[::-1].copy(), sharp))
    trained = [tensor for tensor in weights.values() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0)

    def forward_torch() -> Any:
        with torch.no_grad():
            return twins.outputs(network, weights, clip)[-1]

    def train() -> Any:
        held[0], metrics = step(held[0], batch)
        return metrics

    def train_torch() -> float:
        optimizer.zero_grad(set_to_none=True)
        made = twins.outputs(network, weights, clip, train=True)
        targets = twins.targets(network, target, len(made))
        loss = sum(((x - y) ** 2).mean() for x, y in zip(made, targets, strict=True))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
        optimizer.step()
        return float(loss)

    theirs = forward_torch().numpy()
    difference = np.abs(np.asarray(forward(replicas, batch["blurred"])) - theirs).max()
    if difference > 1e-2 * np.ptp(theirs):
        raise UserError(f"{name}: the twin is not a twin, it differs by {difference:.1e}")
    losses = float(train().loss), train_torch()
    if abs(losses[0] - losses[1]) > 1e-2 * losses[1]:
        raise UserError(f"{name}: the losses differ: {losses[0]:.5f}, in torch {losses[1]:.5f}")
    cases = {
        "forward": lambda: forward(replicas, batch["blurred"]),
        "forward, torch": forward_torch,
        "training step": train,
        "training step, torch": train_torch,
    }
    return count(parameters), side_by_side(cases, repeats)


if __name__ == "__main__":
    run_command(main, "benchmarks.peers")
