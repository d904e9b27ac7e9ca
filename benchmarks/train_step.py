"""Times the training step: inside ``lax.scan`` against unrolled, and against a torch twin.

Run ``python -m benchmarks.train_step`` on an idle machine. The twin has the same layers and
weights, in channels-last order; its output is compared with ours before anything is timed, and it
runs on a GPU if JAX does. torch comes with the extra ``benchmark``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.common import has_torch, machine, random_clips, side_by_side, training
from jaxdeblur import devices, models, presets
from jaxdeblur.console import run_command
from jaxdeblur.errors import UserError
from jaxdeblur.models import layers
from jaxdeblur.models.parameters import split
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.options import Parser
from jaxdeblur.shapes import Parameters
from jaxdeblur.training.step import from_bytes

GOAL_SCAN, GOAL_FORWARD, GOAL_TRAINING = 1.5, 0.77, 1.0


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="strcnn_dtb_small", help="an STRCNN preset")
    parser.add_argument("--repeats", type=int, default=7, help="timings for the median")
    parser.add_argument("--batch-size", type=int, default=2, help="clips per step")
    parser.add_argument("--frames", type=int, default=4, help="frames per clip")
    parser.add_argument("--crop", type=int, default=96, help="side of a clip in pixels, even")
    arguments = parser.parse_args()
    preset = presets.find(arguments.model)
    devices.keep_freed_memory()
    if not has_twin(preset.network):
        raise UserError(
            f"--model={arguments.model}: must be an STRCNN of one scale that blends in the middle "
            "or not at all, such as strcnn, strcnn_dtb or strcnn_dtb_small"
        )
    devices.use_cores(arguments.batch_size)
    shape = (arguments.batch_size, arguments.frames, arguments.crop, arguments.crop, 3)
    print(f"{arguments.model}, clips {shape}; {machine()}; medians of {arguments.repeats}")
    scan_against_unrolled(preset.network, shape, arguments.repeats)
    if has_torch():
        against_torch(arguments.model, preset.network, shape, arguments.repeats)
    else:
        print("  no comparison: torch is not installed (pip install 'jaxdeblur[benchmark]')")


def scan_against_unrolled(network: StrcnnConfig, shape: tuple[int, ...], repeats: int) -> None:
    """Times the gradient of the recurrence, looped and unrolled, with XLA's gradient and ours."""
    rebuild, parameters = split(models.build(network))
    blurred = jnp.asarray(np.random.default_rng(0).random(shape, np.float32))

    def gradient(unroll: bool, plain: bool) -> Callable[[], Any]:
        def loss(parameters: Parameters) -> jax.Array:
            scan, conv = lax.scan, layers.conv2d
            try:
                # Replaced only while this is traced.
                if unroll:
                    lax.scan = lambda f, start, xs: scan(f, start, xs, unroll=True)
                if plain:
                    layers.conv2d = layers._convolve
                return jnp.mean((rebuild(parameters).restore_clip(blurred) - 0.5) ** 2)
            finally:
                lax.scan, layers.conv2d = scan, conv

        compiled = jax.jit(jax.grad(loss))
        return lambda: compiled(parameters)

    cases = {
        "ours, in lax.scan": gradient(unroll=False, plain=False),
        "ours, unrolled": gradient(unroll=True, plain=False),
        "XLA's, unrolled": gradient(unroll=True, plain=True),
        "XLA's, in lax.scan": gradient(unroll=False, plain=True),
    }
    times = side_by_side(cases, repeats)
    best = min(times["ours, unrolled"], times["XLA's, unrolled"])
    for name, seconds in times.items():
        print(f"  gradient {name:19} {1e3 * seconds:9.1f} ms  {seconds / best:6.2f} x unrolled")
    verdict("gradient in lax.scan / unrolled", times["ours, in lax.scan"] / best, GOAL_SCAN)


def has_twin(network: Any) -> bool:
    """Returns whether ``TorchTwin`` can build this network."""
    plain = isinstance(network, StrcnnConfig) and network.scales == (1,)
    return plain and network.blending in ("middle", "none")


def against_torch(
    name: str, network: StrcnnConfig, shape: tuple[int, ...], repeats: int
) -> dict[str, float]:
    """Returns milliseconds of a forward pass and of a whole training step, ours and torch's.

    Args:
      name: the preset whose training recipe is used.
      network: its network, possibly in bfloat16.
      shape: ``B T H W 3`` of the clips.
      repeats: timings of each.

    Raises:
      UserError: the outputs differ, so that times would be meaningless.
    """
    import torch

    on_gpu = jax.default_backend() == "gpu"
    device = torch.device("cuda" if on_gpu else "cpu")
    if on_gpu:  # as XLA does by default for float32, so that both do the same work
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True

    def done() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    half = network.dtype == "bfloat16"
    in_dtype = partial(torch.autocast, device.type, torch.bfloat16, enabled=half)
    batch_size, frames, crop, *_ = shape
    config = dataclasses.replace(
        presets.find(name).training,
        optimizer="adam",
        loss="mse",
        batch_size=batch_size,
        frames=frames,
        crop=crop,
        average=0.0,
    )
    batch = random_clips(config, (0, 0))
    theirs_in, target = (
        torch.from_numpy(batch[part].astype(np.float32) / 255).to(device)
        for part in ("blurred", "sharp")
    )
    rebuild, parameters = split(models.build(network))
    mesh = devices.make_mesh(batch_size)
    twin = TorchTwin(network, parameters).to(device)
    everywhere, shared = devices.replicated(mesh), devices.clips_over(mesh)
    ours = jax.jit(
        lambda p, x: rebuild(p).restore_clip(from_bytes(x)), in_shardings=(everywhere, shared)
    )
    blurred, replicas = (
        jax.device_put(batch["blurred"], shared),
        jax.device_put(parameters, everywhere),
    )
    with torch.no_grad(), in_dtype():
        theirs = twin(theirs_in).float().cpu().numpy()
    difference = np.abs(np.asarray(ours(replicas, blurred)) - theirs).max()
    print(f"  largest difference between our output and torch's: {difference:.1e}")
    # TF32 keeps 11 significant bits, bfloat16 8, and a clip's error grows from frame to frame.
    if difference > (1e-1 if half else 2e-2 if on_gpu else 1e-3):
        raise UserError("the torch twin computes something else; its time would mean nothing")
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-4, weight_decay=0.0)

    def train_torch() -> None:
        optimizer.zero_grad(set_to_none=True)
        with in_dtype():
            restored = twin(theirs_in)
        loss = torch.mean((restored - target) ** 2)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), config.clip_norm)
        optimizer.step()
        done()

    def forward_torch() -> None:
        with torch.no_grad(), in_dtype():
            twin(theirs_in)
        done()

    cases = {
        "forward": lambda: ours(replicas, blurred),
        "forward, torch": forward_torch,
        "training step": partial(training(network, config), jax.device_put(batch, shared)),
        "training step, torch": train_torch,
    }
    times = side_by_side(cases, repeats)
    where = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads"
    print(f"  torch {torch.__version__}, {where}, channels last")
    for case, seconds in times.items():
        print(f"  {case:21} {1e3 * seconds:9.1f} ms")
    for case, goal in (("forward", GOAL_FORWARD), ("training step", GOAL_TRAINING)):
        verdict(f"{case} / torch", times[case] / times[f"{case}, torch"], goal)
    return {case: 1e3 * seconds for case, seconds in times.items()}


def TorchTwin(network: StrcnnConfig, parameters: Parameters) -> Any:
    """Builds STRCNN+DTB in torch with our weights: NHWC in and out, channels-last inside."""
    import torch
    from torch.nn import functional as F

    class Twin(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.names = list(parameters)
            for name, array in parameters.items():
                value = torch.from_numpy(np.array(array))
                if value.ndim == 4:  # HWIO to OIHW
                    value = value.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
                self.register_parameter(name.replace("/", "__"), torch.nn.Parameter(value))

        def conv(self, name: str, x: Any, stride: int = 1) -> Any:
            weight = getattr(self, f"{name}__kernel".replace("/", "__"))
            bias = getattr(self, f"{name}__bias".replace("/", "__"), None)
            return F.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2)

        def relu(self, x: Any) -> Any:
            return F.leaky_relu(x, network.leak)

        def block(self, name: str, x: Any) -> Any:
            return x + self.conv(f"{name}/second", self.relu(self.conv(f"{name}/first", x)))

        def shuffle(self, x: Any) -> Any:
            # Our depth-to-space has the colour last: channel = (p, q, c).
            b, c, h, w = x.shape
            x = x.view(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2)
            return x.reshape(b, c // 4, 2 * h, 2 * w)

        def enter(self, windows: Any) -> Any:
            """Computes what does not depend on the past: B N 2m+1 H W 3 to B N C H/2 W/2."""
            b, n, k, h, w, _ = windows.shape
            x = windows.permute(0, 1, 2, 5, 3, 4).reshape(b * n, 3 * k, h, w) - 0.5
            x = x.contiguous(memory_format=torch.channels_last)
            x = self.relu(self.conv("down", self.relu(self.conv("stem", x)), 2))
            return x.view(b, n, *x.shape[1:])

        def recur(self, x: Any, past: Any, blended: Any) -> tuple[Any, Any, Any]:
            """Runs one step of the recurrence; the first receives None."""
            past = torch.zeros_like(x) if past is None else past
            y = torch.cat([x, past], 1).contiguous(memory_format=torch.channels_last)
            for i in range(network.blocks):
                y = self.block(f"encoder/{i}", y)
            if network.blending == "middle":
                if blended is not None:
                    z = self.conv("blending/compare", torch.cat([blended, y], 1))
                    beta = torch.sigmoid(self.blending__beta_logit)
                    weight = torch.clamp(z.tanh().abs() + beta, max=1.0)
                    y = weight * y + (1 - weight) * blended
                blended = y
            for i in range(network.blocks):
                y = self.block(f"decoder/{i}", y)
            return y, self.relu(self.conv("feedback", y)), blended

        def leave(self, features: Any) -> Any:
            """Returns the image, or the residual: B N C H/2 W/2 to B N H W 3."""
            b, n = features.shape[:2]
            y = features.flatten(0, 1)
            if network.head_width:
                image = self.conv("head", self.relu(self.shuffle(self.conv("up", y))))
            else:
                image = self.shuffle(self.conv("head", y))
            return image.view(b, n, *image.shape[1:]).permute(0, 1, 3, 4, 2)

        def forward(self, clip: Any) -> Any:
            t, m = clip.shape[1], network.m
            index = [[min(max(n + i, 0), t - 1) for i in range(-m, m + 1)] for n in range(t)]
            x = self.enter(clip[:, index])
            past = blended = None
            outputs = []
            for n in range(t):
                y, past, blended = self.recur(x[:, n], past, blended)
                outputs.append(y)
            image = self.leave(torch.stack(outputs, 1))
            return clip + image if network.residual else image

    return Twin()


def verdict(what: str, ratio: float, goal: float) -> None:
    print(f"  {what}: {ratio:.2f} (goal <= {goal}: {'met' if ratio <= goal else 'missed'})")


if __name__ == "__main__":
    run_command(main, "benchmarks.train_step")
