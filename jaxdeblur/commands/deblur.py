"""``deblur.py`` and ``jaxdeblur deblur``: restores videos, folders of frames and images."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxdeblur.console import tell
from jaxdeblur.options import (
    ClusterConfig,
    Parser,
    add_extension_option,
    add_fields,
    load_extension,
    read_fields,
)

_EXAMPLES = """
examples:
  deblur.py in.mp4 out.mp4                       a video, with its sound
  deblur.py frames/ restored/                    a folder of images
  deblur.py photo.jpg sharp.png                  one image
  deblur.py photos/ --single --out-dir=sharp     many, each by itself
  deblur.py *.mp4 --out-dir=restored             many videos
  deblur.py still.mp4 out.mp4 --single           frames by themselves, as after a stabiliser
  deblur.py in.mp4 out.mp4 --compare=both.mp4    and a second video that shows both
  deblur.py in.mp4 out.mp4 --part=3/16           a share of a long video; then --join
  deblur.py camera:0 out.mp4                     a camera, until ctrl-C
  ... | deblur.py - - --size=1280x720 | ...      raw rgb24 frames in a pipe
"""


def main(name: str = "deblur.py") -> None:
    """Reads the options and restores."""
    from jaxdeblur.restoration.plan import DeblurConfig, Job, plan

    parser = Parser(
        prog=name,
        description="Restores blurred videos, folders of frames and images.\n"
        + _EXAMPLES.replace("deblur.py", name),
    )
    parser.add_argument(
        "paths", nargs="+", metavar="INPUT", help="inputs, then OUTPUT unless --out-dir is given"
    )
    add_fields(parser, DeblurConfig(), "restoration")
    add_fields(parser, ClusterConfig(), "devices and processes")
    add_extension_option(parser)
    arguments = parser.parse_args()
    config = read_fields(arguments, DeblurConfig())
    jobs = plan(arguments.paths, config)

    # JAX takes seconds to import; --help and errors in the options do not wait for it.
    import jax

    from jaxdeblur import devices
    from jaxdeblur.restoration import parts
    from jaxdeblur.restoration.deblurrer import Deblurrer
    from jaxdeblur.restoration.restore import restore_all
    from jaxdeblur.weights import shipped
    from jaxdeblur.weights.load import runs_paths

    def weights_of(job: Job) -> str:
        if config.ckpt is not None:
            return config.ckpt
        fast: dict[shipped.Use, shipped.Use]
        fast = {"video": "fast video", "photograph": "fast photograph"} if config.fast else {}
        return shipped.default_name(fast.get(job.use, job.use))

    if arguments.extension:
        load_extension(arguments.extension)
    devices.keep_freed_memory()
    devices.keep_compiled()
    if any(map(runs_paths, set(map(weights_of, jobs)))):
        devices.add_threads()  # this would slow down a network alone
    processes = read_fields(arguments, ClusterConfig())
    devices.use_cores(1, processes)
    devices.join(processes)
    jobs = jobs[jax.process_index() :: jax.process_count()]
    if config.skip_done:
        jobs = [job for job in jobs if not job.is_done]
    if not jobs:
        if not config.quiet:
            tell(f"{name}: nothing left to do")
        return

    if config.join:
        parts.join_parts(jobs[0], config)
        return

    def deblurrer_of(weights: str, found: Mapping[str, Any] = MappingProxyType({})) -> Deblurrer:
        steady = None if config.stabilised is None else config.stabilised == "yes"
        given = {"duty": config.duty, "light": config.light, "stabilised": steady, **found}
        return Deblurrer(
            weights, strength=config.strength, tile=config.tile, dtype=config.dtype, **given
        )

    if config.part is not None:
        weights = weights_of(jobs[0])
        parts.restore_part(functools.partial(deblurrer_of, weights), jobs[0], config, weights)
        return
    deblurrers = {}
    for weights in dict.fromkeys(map(weights_of, jobs)):
        deblurrers[weights] = deblurrer = deblurrer_of(weights)
        if config.ckpt is None and not config.quiet:
            tell(f"weights: {deblurrer.source}, on {devices.described()}")
    restore_all(lambda job: deblurrers[weights_of(job)], jobs, config)
