"""Damages the inputs of the three commands at random: a case ends well, or in one clear line.

    python -m tests.stress.fuzz --cases=2000     exit code 1 if a goal is missed
    python -m tests.stress.fuzz --case=1234      runs one case again and prints its output

A case copies small valid inputs (a run, weights, data sets, images, videos, an evaluation), damages
them or the options, and runs one command on them in process. It must end with exit code 0, or with
exit code 2 and one line ``COMMAND: error: ...``. With code 2 no existing file may have changed, and
no half-written file may be left; with code 0 no input may have changed. Worker processes run the
cases, so that a crash or an endless loop is counted too.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import importlib
import io
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxdeblur.console import run_command
from jaxdeblur.options import Parser

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("train", "evaluate", "deblur")
GOALS = ("traceback", "crash", "hang", "unclear end", "changed file", "debris")
TRAINING = [
    "--model=strcnn_dtb_small", "--width=4", "--blocks=1", "--m=1", "--crop=16", "--frames=2",
    "--batch-size=1", "--warmup=1", "--validate-every=0", "--validate-on=pairs", "--save-every=1",
    "--least-blur=0",
]  # fmt: skip

ODD_TEXTS = (
    "", " ", "-1", "0", "1", "2.5", "nan", "inf", "-inf", "1e999", "1e-300", "0x10", "9" * 25,
    "9" * 5000, "true", "none", "[]", "{}", "٣", "ünï😀", "--help", "--steps", "%s%n", "a\nb",
    "../../x", "/etc/passwd", "/dev/null", ".", "..", "~", "*", "x" * 300, "rendered:x", ":", "a,b",
    "float16", "auto", "16x16", "0x0", "cpu:9", "\\", "$(touch pwned)", "gopro:", "\udcff", "\t",
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 3, 10**9, 10**30, -(10**18), 0.5, 1e308, float("nan"), float("inf"), "",
    "\x00", "ünï😀", "--help", "../../x", "a\nb", [], {}, [[[]]], [1] * 1000, {"": None}, "float64",
    "__import__('os').system('touch pwned')", "9" * 5000, [-1], [10**9], 2**31, 2**63, 256,
)  # fmt: skip
ODD_NAMES = (
    "-rf", "--help", "ünï😀", "a b", "a\nb", "%s%n%d", "$(touch pwned)", "...", " ", "con",
    "x" * 200, "'\"", "*", "[a-", "~", "\udcff\udcfe", "0000000000000001", "٣", "#",
)  # fmt: skip


def main() -> None:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="runs this one alone and shows what it says")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--timeout", type=float, default=120, help="seconds, then a case hangs")
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)  # of a worker
    parser.add_argument("--share", type=int, nargs=3, help=argparse.SUPPRESS)  # of a worker
    arguments = parser.parse_args()
    if arguments.share:
        work(arguments)
        return
    with tempfile.TemporaryDirectory(prefix="jaxdeblur-fuzz-") as folder:
        os.environ["JAXDEBLUR_CACHE"] = f"{folder}/cache"
        os.environ["JAX_PLATFORMS"] = "cpu"  # each worker would take a whole GPU
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["HOME"] = folder  # no file of the user's is read or written
        inputs = Path(folder) / "inputs"
        prepare()
        make_inputs(inputs)
        if arguments.case is None:
            sys.exit(1 if run_all(arguments, inputs) else 0)
        print(json.dumps(dataclasses.asdict(run_case(arguments.seed, arguments.case, inputs))))


# Running and counting cases.


@dataclasses.dataclass
class Outcome:
    """How a case ended."""

    case: int
    command: str = ""
    arguments: list[str] = dataclasses.field(default_factory=list)
    damage: list[str] = dataclasses.field(default_factory=list)
    code: int | None = None
    problems: list[str] = dataclasses.field(default_factory=list)
    """Each begins with one of ``GOALS``."""
    said: str = ""
    seconds: float = 0.0


def run_all(arguments: argparse.Namespace, inputs: Path) -> bool:
    """Spreads the cases over workers and prints the results; returns whether a goal is missed."""
    began = time.monotonic()
    outcomes: list[Outcome] = []

    def drive(numbers: range) -> None:
        while numbers:
            done = run_worker(arguments, inputs, numbers, outcomes)
            numbers = numbers[done:]

    threads = []
    for i in range(arguments.workers):
        last = arguments.first + arguments.cases
        mine = range(arguments.first + i, last, arguments.workers)
        threads.append(threading.Thread(target=drive, args=(mine,)))
        threads[-1].start()
    for thread in threads:
        thread.join()

    counts = collections.Counter(p.split(":")[0] for o in outcomes for p in o.problems)
    codes = collections.Counter((o.command, o.code) for o in outcomes)
    seconds = time.monotonic() - began
    print(f"\n{len(outcomes)} cases of seed {arguments.seed} in {seconds:.0f} s")
    for command in (f"{name}.py" for name in COMMANDS):
        print(f"{command:12} {codes[command, 0]:5} ended well, {codes[command, 2]:5} refused")
    for goal in GOALS:
        print(f"{goal:14} {counts[goal]:5}   goal 0: {'missed' if counts[goal] else 'met'}")
    return bool(counts)


def run_worker(
    arguments: argparse.Namespace, inputs: Path, numbers: range, outcomes: list[Outcome]
) -> int:
    """Runs cases in one process until it dies or hangs; returns how many it began."""
    share = [str(number) for number in (numbers.start, numbers.stop, numbers.step)]
    command = [sys.executable, "-m", "tests.stress.fuzz", f"--inputs={inputs}"]
    command += [f"--seed={arguments.seed}", "--share", *share]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        assert process.stdout is not None
        for done, number in enumerate(numbers, 1):
            watch = threading.Timer(arguments.timeout, process.kill)
            watch.start()
            answer = process.stdout.readline()
            hung = not watch.is_alive()
            watch.cancel()
            if answer:
                outcome = Outcome(**json.loads(answer))
            else:
                code = process.wait()
                log.seek(0)
                last = log.read()[-300:].decode(errors="replace").strip()
                why = f"hang: no end after {arguments.timeout:g} s" if hung else ""
                outcome = Outcome(number, problems=[why or f"crash: code {code}: {last}"])
            outcomes.append(outcome)
            for problem in outcome.problems:
                print(f"case {number}: {problem}\n  {outcome.command} {outcome.arguments}")
                print(f"  after: {'; '.join(outcome.damage)}", flush=True)
            if not answer:
                return done
    return len(numbers)


def work(arguments: argparse.Namespace) -> None:
    """Runs a worker's share of the cases and writes their outcomes as JSON lines."""
    prepare()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    # Limits the memory of a case: exceeding it is then an error and does not end all processes.
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
    for number in range(*arguments.share):
        outcome = run_case(arguments.seed, number, arguments.inputs)
        print(json.dumps(dataclasses.asdict(outcome)), file=answers, flush=True)


def prepare() -> None:
    """Imports the commands and sets up one CPU device, so that each step is compiled once."""
    import jax

    sys.path.insert(0, str(ROOT))
    for command in COMMANDS:  # now, so that their imports keep the real stderr for logs
        importlib.import_module(command)
    importlib.import_module("jaxdeblur.training.run")
    jax.config.update("jax_num_cpu_devices", 1)


def run_case(seed: int, number: int, inputs: Path) -> Outcome:
    """Damages a copy of the inputs and runs a command on it, in this process."""
    rng = np.random.default_rng([seed, number])
    outcome = Outcome(number)
    with tempfile.TemporaryDirectory(prefix="jaxdeblur-case-") as name:
        folder = Path(name) / "deep" / "down"  # so that ../../x lies within it
        folder.mkdir(parents=True)
        case = CASES[rng.integers(len(CASES))](Bench(rng, inputs, folder))
        outcome.command, outcome.damage = f"{case.command}.py", case.damage
        outcome.arguments = [a.encode("utf-8", "backslashreplace").decode() for a in case.arguments]
        before = snapshot(Path(name))
        began = time.monotonic()
        outcome.code, outcome.said = run_command_here(case.command, case.arguments, folder)
        outcome.seconds = time.monotonic() - began
        outcome.problems = judge(outcome, case, before, snapshot(Path(name)))
    return outcome


def run_command_here(command: str, arguments: list[str], folder: Path) -> tuple[int, str]:
    """Runs a command; returns its exit code (1 after a traceback) and all its output."""
    module = importlib.import_module(command)
    with (
        tempfile.TemporaryFile() as raw_out,
        tempfile.TemporaryFile() as raw_err,
        open(__file__) as standard_in,
        warnings.catch_warnings(),
        contextlib.chdir(folder),
    ):
        out = io.TextIOWrapper(raw_out, encoding="utf-8")
        err = io.TextIOWrapper(raw_err, encoding="utf-8", errors="backslashreplace")
        sys.argv = [f"{command}.py", *arguments]
        standard = sys.stdin, sys.stdout, sys.stderr
        sys.stdin, sys.stdout, sys.stderr = standard_in, out, err
        code = 0
        try:
            run_command(module.main, f"{command}.py")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            sys.stdin, sys.stdout, sys.stderr = standard
        text = ""
        for stream, raw in ((out, raw_out), (err, raw_err)):
            stream.flush()
            raw.seek(0)
            text += raw.read().decode("utf-8", "replace")
            stream.detach()
        return code, text


def snapshot(folder: Path) -> dict[str, str]:
    """Maps each path below ``folder`` to the hash of its contents, or to a link's target."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = os.path.join(place, name)
            if os.path.islink(path):
                found[path] = "link to " + os.readlink(path)
            elif os.path.isdir(path):
                found[path] = "folder"
            else:
                with open(path, "rb") as file:
                    found[path] = hashlib.sha256(file.read()).hexdigest()
    return found


def judge(outcome: Outcome, case: Case, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Returns what is wrong with how a case ended."""
    problems = []
    lines = outcome.said.splitlines()
    errors = [line for line in lines if line.startswith(f"{outcome.command}: error: ")]
    # Threads that Orbax abandons at a damaged checkpoint print these, with mixed lines.
    tracebacks = outcome.said.count("Traceback (most recent call last)")
    abandoned = outcome.said.count(", in call_soon_threadsafe\n")
    if tracebacks > abandoned or outcome.code == 1:
        problems.append("traceback: " + " | ".join(lines[-3:])[-600:])
    elif outcome.code not in (0, 2):
        problems.append(f"unclear end: code {outcome.code}")
    elif outcome.code == 2 and (len(errors) != 1 or len(errors[0]) > 4000):
        problems.append(f"unclear end: {len(errors)} error lines: {lines[-3:]}")
    elif outcome.code == 0 and errors:
        problems.append(f"unclear end: code 0, but {errors[0]}")
    own = [str(path) for path in case.may_change] if outcome.code == 0 else []
    for path, was in before.items():
        if any(path == mine or path.startswith(f"{mine}/") for mine in own):
            continue
        if after.get(path) != was:
            problems.append(f"changed file: {path} was {was}, is {after.get(path, 'gone')}")
    for path in set(after) - set(before):
        name = os.path.basename(path)
        if ".part" in name or name == "pwned":
            problems.append(f"debris: {path}")
    return problems


# The inputs, before they are damaged.


def make_inputs(folder: Path) -> None:
    """Makes tiny inputs: a run of two checkpoints, weights, data, images, videos, an evaluation."""
    import av
    from PIL import Image

    from jaxdeblur.weights.load import load_model
    from jaxdeblur.weights.save import export_weights

    part = folder.with_name("part")
    part.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6, 32, 32, 3), np.uint8)
    for video in ("v0", "v1"):
        for half in ("blur", "sharp"):
            (part / "pairs" / half / video).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(pictures[i]).save(part / "pairs" / half / video / f"{i}.png")
    (part / "frames").mkdir()
    for i, suffix in enumerate(["png", "jpg", "webp"]):
        Image.fromarray(pictures[i]).save(part / "frames" / f"{i}.{suffix}")
    (part / "images").mkdir()
    for suffix in ("png", "jpg", "webp", "bmp", "tif", "ppm"):
        Image.fromarray(pictures[0]).save(part / "images" / f"a.{suffix}")
    Image.fromarray(pictures[0][..., 0]).save(part / "images" / "grey.png")
    Image.fromarray(pictures[0][..., 0].astype(np.uint16) * 257).save(part / "images" / "deep.png")
    (part / "videos").mkdir()
    for name, codec in (("a.mp4", "libx264"), ("a.mkv", "ffv1"), ("a.avi", "mjpeg")):
        with av.open(str(part / "videos" / name), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for picture in pictures:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
            container.mux(stream.encode())
    data = ["--data=pairs", "--steps=2", "--out=run"]
    must(*run_command_here("train", [*TRAINING, *data], part))
    shutil.rmtree(part / "run" / "tensorboard")
    export_weights(load_model(part / "run"), part / "w.safetensors")
    must(*run_command_here("evaluate", ["--ckpt=run", "--data=pairs", "--out=scores"], part))
    run_command_here("train", [*TRAINING, *data[:1], "--out=broken", "--learning-rate=1e30"], part)
    part.rename(folder)


def must(code: int, said: str) -> None:
    if code:
        raise RuntimeError(said)


# Damage.


Rng = np.random.Generator


def any_of(rng: Rng, values: Any) -> Any:
    return values[rng.integers(len(values))]


def damaged_bytes(rng: Rng, data: bytes, kind: str) -> bytes:
    """Returns the bytes flipped (anywhere, or in the header), cut, extended or replaced."""
    if kind in ("flip", "flip early"):
        most = len(data) if kind == "flip" else min(len(data), 64)
        changed = bytearray(data)
        for _ in range(rng.integers(1, 17) if data else 0):
            changed[rng.integers(most)] = rng.integers(256)
        return bytes(changed)
    noise = rng.bytes(int(rng.integers(1, 3000)))
    text = any_of(rng, ["null", "[]", "{}", "1", '"x"', "[" * 50000, "\ufeff{}"])
    return {
        "cut": data[: rng.integers(len(data) + 1)],
        "grow": data + noise,
        "empty": b"",
        "noise": noise,
        "text": text.encode(),
    }[kind]


def replace(rng: Rng, path: Path, kind: str) -> None:
    """Removes or renames a file, or puts a broken link or a folder in its place."""
    if kind == "odd name":
        path.rename(path.with_name(any_of(rng, ODD_NAMES) + path.suffix))
        return
    path.unlink()
    if kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangle":
        path.symlink_to("nowhere/at all")
    elif kind == "folder":
        path.mkdir()


def bomb(rng: Rng, path: Path) -> None:
    """Writes a PNG or BMP whose header claims gigapixels."""
    side = int(rng.choice([20000, 65535, 2**31 - 1]))
    if rng.random() < 0.5:
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunk = b"IHDR" + header
        data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
        data += struct.pack(">I", zlib.crc32(chunk))
        pixels = b"IDAT" + zlib.compress(bytes(100000))
        data += struct.pack(">I", len(pixels) - 4) + pixels + struct.pack(">I", zlib.crc32(pixels))
    else:
        fields = (54, 0, 0, 54, 40, min(side, 2**31 - 1), side, 1, 24, *[0] * 6)
        data = b"BM" + struct.pack("<IHHIIiiHHIIiiII", *fields)
    path.write_bytes(data)


def other_size(rng: Rng, path: Path) -> None:
    from PIL import Image

    size = int(rng.choice([1, 2, 16, 48])), int(rng.choice([1, 3, 32]))
    mode = str(rng.choice(["RGB", "L", "1", "P", "RGBA", "CMYK", "I;16", "F"]))
    with contextlib.suppress(OSError, KeyError, ValueError):
        Image.new(mode, size).save(path, format="PNG" if mode in ("I;16", "1", "P") else "TIFF")


def mutate_json(rng: Rng, path: Path) -> None:
    """Changes a value, or removes or adds a key, in a JSON file or a safetensors header."""
    data = path.read_bytes()
    with contextlib.suppress(ValueError, struct.error, UnicodeDecodeError, RecursionError):
        if path.suffix == ".safetensors":
            (size,) = struct.unpack("<Q", data[:8])
            header = json.loads(data[8 : 8 + size])
            about = header.get("__metadata__", {})
            if "jaxdeblur" in about and rng.random() < 0.7:
                about["jaxdeblur"] = json.dumps(mutated(rng, json.loads(about["jaxdeblur"])))
            else:
                header = mutated(rng, header)
            text = json.dumps(header).encode()
            path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
        else:
            path.write_text(json.dumps(mutated(rng, json.loads(data))))
        return
    path.write_bytes(damaged_bytes(rng, data, "text"))


def mutated(rng: Rng, value: Any) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = list(value)[rng.integers(len(value))]
        kind = rng.random()
        if kind < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.2:
            return {**value, str(rng.choice(ODD_NAMES)): odd_value(rng)}
        return {**value, key: mutated(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        i = rng.integers(len(value))
        return [*value[:i], mutated(rng, value[i]), *value[i + 1 :]]
    return odd_value(rng)


def odd_value(rng: Rng) -> Any:
    return any_of(rng, ODD_VALUES)


BYTES = ("flip", "flip", "flip early", "cut", "cut", "grow", "empty", "noise", "text")
PLACES = ("vanish", "loop", "dangle", "folder", "odd name")


def damage_file(rng: Rng, path: Path) -> str:
    """Damages one file as fits its kind; returns a description."""
    kinds: list[str | Callable[[Rng, Path], None]] = [*BYTES, *PLACES]
    if path.suffix in (".png", ".jpg", ".webp", ".bmp", ".tif", ".ppm"):
        kinds += [bomb, other_size, "flip early"]
    elif path.suffix in (".json", ".safetensors") or path.name.startswith(("_", ".z", "manifest")):
        kinds += 12 * [mutate_json]
    kind = any_of(rng, kinds)
    if callable(kind):
        kind(rng, path)
        return f"{kind.__name__} {path.name!r}"
    if kind in PLACES:
        replace(rng, path, kind)
    else:
        path.write_bytes(damaged_bytes(rng, path.read_bytes(), kind))
    return f"{kind} {path.name!r}"


def damage_folder(rng: Rng, folder: Path) -> str:
    """Damages the tree below ``folder`` in one place; returns a description."""
    inside = sorted(p for p in folder.rglob("*") if not p.is_symlink())
    files = [p for p in inside if p.is_file()]
    folders = [folder, *(p for p in inside if p.is_dir())]
    if files and rng.random() < 0.75:
        return damage_file(rng, files[rng.integers(len(files))])
    place = folders[rng.integers(len(folders))]
    name = str(rng.choice(ODD_NAMES)) + str(rng.choice(["", ".png", ".json"]))
    kind = rng.integers(6)
    if kind == 0:
        (place / name).symlink_to("..")
        return f"a link to its parent in {place.name!r}"
    if kind == 1:
        (place / name).write_bytes(rng.bytes(100))
        return f"noise as {name!r} in {place.name!r}"
    if kind == 2:
        (place / name).mkdir()
        return f"a folder {name!r} in {place.name!r}"
    if place == folder:
        (place / name).write_text("")
        return f"an empty file {name!r} in {place.name!r}"
    if kind == 3:
        shutil.rmtree(place)
        return f"no {place.name!r}"
    if kind == 4:
        shutil.rmtree(place)
        place.write_text("a file")
        return f"a file as {place.name!r}"
    place.rename(place.with_name(name))
    return f"{place.name!r} named {name!r}"


# The cases. Each puts inputs into a folder and returns the command to run there.


@dataclasses.dataclass
class Case:
    """One run of a command."""

    command: str
    arguments: list[str]
    may_change: list[Path] = dataclasses.field(default_factory=list)
    """The paths that a run that ends well may change."""
    damage: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Bench:
    """Builds a case in a folder, from valid inputs and random numbers."""

    rng: Rng
    inputs: Path
    folder: Path

    def choose(self, *values: str) -> str:
        """Returns one of the values."""
        return any_of(self.rng, values)

    def some(self) -> int:
        """Returns one, or a few."""
        return any_of(self.rng, (1, 1, 1, 2, 3))

    def take(self, *names: str) -> None:
        """Copies inputs as they are."""
        for name in names:
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (self.inputs / name).is_dir() else shutil.copy2)(
                self.inputs / name, target
            )

    def damage(self, name: str) -> list[str]:
        """Copies an input and damages it, a folder in up to three places; returns descriptions."""
        self.take(name)
        target = self.folder / name
        if target.is_dir():
            return [
                damage_folder(self.rng, target) for _ in range(any_of(self.rng, [1, 1, 1, 2, 3]))
            ]
        return [damage_file(self.rng, target)]

    def odd_options(self, configs: list[Any], more: list[str]) -> list[str]:
        """Returns one to three options with unsuitable values."""
        fields = [field.name for config in configs for field in dataclasses.fields(config)]
        names = [f"--{name.replace('_', '-')}" for name in fields] + more
        chosen = [any_of(self.rng, names) for _ in range(self.some())]
        return [
            f"{name}={any_of(self.rng, ODD_TEXTS)}" if self.rng.random() < 0.8 else name
            for name in chosen
        ]


DEBLUR = ["--ckpt=w.safetensors", "--tile=none"]
EVALUATE = ["--data=pairs", "--out=out"]


def deblur_media(bench: Bench) -> Case:
    images = sorted(path.name for path in (bench.inputs / "images").iterdir())
    name, outs = any_of(
        bench.rng,
        [
            (f"images/{bench.choose(*images)}", ("png", "jpg", "tif", "webp", "mp4")),
            ("frames", ("", "mp4")),
            (f"videos/{bench.choose('a.mp4', 'a.mp4', 'a.mkv', 'a.avi')}", ("mp4", "mkv", "")),
        ],
    )
    damage = bench.damage(name)
    bench.take("w.safetensors")
    out = f"out.{bench.choose(*outs)}".rstrip(".")
    target = bench.folder / out
    if bench.rng.random() < 0.3 and target.suffix:  # an output may exist already
        target.write_bytes(b"an older result")
    return Case("deblur", [name, out, *DEBLUR], [target], damage)


def deblur_weights(bench: Bench) -> Case:
    name = bench.choose("run", "w.safetensors")
    damage = bench.damage(name)
    bench.take("images/a.png")
    return Case("deblur", ["images/a.png", "out.png", f"--ckpt={name}", DEBLUR[1]], [], damage)


def deblur_options(bench: Bench) -> Case:
    from jaxdeblur.restoration.plan import DeblurConfig

    name = bench.choose("videos/a.mp4", "images/a.png", "frames", "-")
    bench.take("w.safetensors", *(() if name == "-" else (name,)))
    options = bench.odd_options([DeblurConfig()], [])
    words = [name, bench.choose("out.mp4", "out.png", "out", *ODD_NAMES)]
    if bench.rng.random() < 0.2:
        words[bench.rng.integers(2)] = bench.choose(*ODD_TEXTS, *ODD_NAMES)
    targets = [bench.folder / "out.mp4", bench.folder / "out.png"]
    return Case("deblur", [*words, *DEBLUR, *options], targets)


def evaluate_data(bench: Bench) -> Case:
    bench.take("w.safetensors")
    if bench.rng.random() < 0.5:
        damage = bench.damage("videos")
        data = ["--data=highspeed:videos", "--out=out", "--tau=3", "--period=3"]
    else:
        damage = bench.damage("pairs")
        spec = bench.choose("pairs", "pairs", "pairs", "gopro:pairs", "highspeed:pairs", "pairs/")
        data = [f"--data={spec}", "--out=out"]
    return Case("evaluate", ["--ckpt=w.safetensors", *data], [], damage)


def evaluate_weights(bench: Bench) -> Case:
    name = bench.choose("run", "w.safetensors")
    damage = bench.damage(name)
    bench.take("pairs")
    return Case("evaluate", [f"--ckpt={name}", *EVALUATE], [], damage)


def evaluate_again(bench: Bench) -> Case:
    damage = bench.damage("scores")
    bench.take("pairs", "run")
    overwrite = ["--overwrite"] if bench.rng.random() < 0.3 else []
    arguments = ["--ckpt=run", "--data=pairs", "--out=scores", *overwrite]
    return Case("evaluate", arguments, [bench.folder / "scores"], damage)


def evaluate_options(bench: Bench) -> Case:
    from jaxdeblur.evaluation.config import EvaluationConfig

    bench.take("pairs", "w.safetensors")
    more = ["--ckpt", "--dtype", "--out", "--overwrite"]
    options = bench.odd_options([EvaluationConfig()], more)
    options = [option for option in options if not option.startswith("--data=rendered")]
    return Case("evaluate", ["--ckpt=w.safetensors", *EVALUATE, *options])


def train_data(bench: Bench) -> Case:
    damage = bench.damage("pairs")
    bad = f"--max-bad-samples={bench.choose('0', '3')}"
    return Case("train", [*TRAINING, *EVALUATE, "--steps=1", bad], [], damage)


def train_resume(bench: Bench) -> Case:
    damage = bench.damage("run")
    bench.take("pairs")
    # --steps is given again: if the damage had raised it, the run would train on.
    arguments = ["--model=strcnn_dtb_small", "--out=run", "--resume", "--steps=2"]
    return Case("train", arguments, [bench.folder / "run"], damage)


def train_from(bench: Bench) -> Case:
    name = bench.choose("run", "w.safetensors")
    damage = bench.damage(name)
    bench.take("pairs")
    start = [f"--start-from={name}", *EVALUATE, "--steps=1"]
    return Case("train", [*TRAINING, *start], [], damage)


def train_options(bench: Bench) -> Case:
    from jaxdeblur import presets
    from jaxdeblur.data.config import DataConfig

    bench.take("pairs")
    preset = presets.find("strcnn_dtb_small")
    more = ["--model", "--out", "--start-from", "--resume", "--overwrite"]
    options = bench.odd_options([preset.network, preset.training, DataConfig()], more)
    return Case("train", [*TRAINING, *EVALUATE, "--steps=1", *options])


# A case of train.py that ends well compiles anew and takes five times as long as the others.
CASES: tuple[Callable[[Bench], Case], ...] = (
    *9 * (deblur_media,), *3 * (deblur_weights, deblur_options),
    *2 * (evaluate_data, evaluate_data, evaluate_weights, evaluate_again, evaluate_options),
    train_data, train_resume, train_from, train_options,
)  # fmt: skip

if __name__ == "__main__":
    run_command(main, "tests.stress.fuzz")
