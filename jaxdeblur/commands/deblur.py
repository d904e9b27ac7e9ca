"""``deblur.py`` and ``jaxdeblur deblur``: restores videos, folders of frames and images."""

from __future__ import annotations

from jaxdeblur.errors import UserError, tell
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
  deblur.py in.mp4 out.mp4 --compare=both.mp4    and a second video that shows both
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
    parser.add_argument(
        "--out-dir", metavar="FOLDER", help="the folder for the results of all inputs"
    )
    parser.add_argument(
        "--ckpt",
        metavar="RUN",
        help="a run folder, a .safetensors file, or the name of shipped weights",
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="where to compute, such as cpu, gpu or gpu:1; by default JAX's first",
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="precision of the computation"
    )
    add_fields(parser, DeblurConfig(), "restoration")
    add_fields(parser, ClusterConfig(), "devices and processes")
    add_extension_option(parser)
    arguments = parser.parse_args()
    config = read_fields(arguments, DeblurConfig())

    inputs, output = arguments.paths, None
    if arguments.out_dir is None:
        if len(inputs) < 2:
            raise UserError(f"give an OUTPUT for {inputs[0]}, or --out-dir=FOLDER")
        inputs, output = inputs[:-1], inputs[-1]
    jobs = plan(
        inputs,
        output,
        arguments.out_dir,
        single=config.single,
        skip_done=config.skip_done,
        overwrite=config.overwrite,
    )
    if config.fast and (arguments.ckpt is not None or config.duty or config.light):
        raise UserError(
            "--fast uses the shipped weights without blur paths; it cannot be combined with "
            "--ckpt, --duty or --light"
        )
    if config.compare is not None and len(jobs) > 1:
        raise UserError("--compare takes a single input")

    # JAX takes seconds to import; --help and errors in the options do not wait for it.
    import jax

    from jaxdeblur import devices
    from jaxdeblur.restoration.deblurrer import Deblurrer
    from jaxdeblur.restoration.restore import restore_all
    from jaxdeblur.weights import shipped

    if arguments.extension:
        load_extension(arguments.extension)
    devices.keep_freed_memory()
    devices.keep_compiled()
    if not config.fast and any(job.use == "video" for job in jobs):
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

    def weights_of(job: Job) -> str:
        if arguments.ckpt is not None:
            return arguments.ckpt
        return shipped.default_name("fast video" if config.fast and job.use == "video" else job.use)

    deblurrers = {}
    for weights in dict.fromkeys(map(weights_of, jobs)):
        deblurrers[weights] = deblurrer = Deblurrer(
            weights,
            strength=config.strength,
            tile=config.tile,
            device=arguments.device,
            dtype=arguments.dtype,
            duty=config.duty,
            light=config.light,
        )
        if arguments.ckpt is None and not config.quiet:
            tell(f"weights: {deblurrer.source}, on {deblurrer.device}")
    restore_all(lambda job: deblurrers[weights_of(job)], jobs, config)
