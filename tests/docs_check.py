"""Checks that files, links and commands in README.md and the guides exist and work.

    python tests/docs_check.py            checks every option, file, module and link
    python tests/docs_check.py --run      also runs the commands, on tiny inputs, the examples and
                                           the notebook (make docs-check)

A command is a line that begins with one of ``STARTS``, in a fenced block marked ``sh``, ``bash`` or
nothing. ``SMALL`` makes it small. The commands of a page run one after another in a new folder with
the inputs that the guides name, so that each may use what earlier ones made. A page marks a block
that cannot run here with ``<!-- not run: reason -->``; its options are still parsed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TOUR = ROOT / "examples" / "tour.ipynb"
EXAMPLES = {
    "own_video": ("in.mp4",),
    "photographs": (),
    "live": (),
    "own_model": (),
    "blur_and_back": (),
    "two_shutters": (),
    "attention_maps": (),
    "many_videos": ("restored", "shots/a.mov", "shots/b.mov"),
}
"""The examples, with the arguments that they are run with. Each ends in a picture or a number."""
LIMIT_S = 900
"""Time limit for the tour: several times what it takes on one core."""
LAB = sorted((ROOT / "docs" / "lab").glob("*.md"))
STARTS = (
    "python ",
    "jaxdeblur ",
    "make ",
    "ffmpeg ",
    "git ",
    "pip ",
    "sbatch ",
    "mpirun ",
    "kubectl ",
    "cd ",
    ". ",
)

TRAIN = (
    "--steps=2 --batch-size=1 --frames=2 --crop=32 --validate-every=0 --save-every=1 "
    "--scenes=narrow --render=host"
)
SMALL = {
    "train.py": TRAIN,
    "evaluate.py": "--max-frames=5",
    "deblur.py": "--ckpt=tiny.safetensors",
    "benchmarks.speed film": "--size=64x48 --frames 3 4",
    "benchmarks.speed live": "--size=64x48 --seconds=2 --fps=5",
    "benchmarks.fusion": "--sizes=1 --windows=1",
}
"""Options that make a command small, by program. Other ``benchmarks`` are only parsed."""


class Command(NamedTuple):
    """One command of a page."""

    page: Path
    line: int
    text: str
    is_run: bool

    @property
    def where(self) -> str:
        """The command with its place, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}: {self.text}"

    @property
    def words(self) -> list[str]:
        """The words that a shell would pass, without comments and the placeholder ``...``."""
        return [word for word in shlex.split(self.text, comments=True) if word != "..."]

    @property
    def program(self) -> str:
        """What it runs: ``train.py``, ``jaxdeblur export``, ``benchmarks.speed live`` ..."""
        words = self.words
        if words[0] == "jaxdeblur":
            return f"{words[1]}.py" if f"{words[1]}.py" in SMALL else " ".join(words[:2])
        if words[0] != "python":
            return words[0]
        if words[1] != "-m":
            return words[1]
        with_part = " ".join(words[2:4])
        return with_part if with_part in SMALL else words[2]


def commands(page: Path) -> Iterator[Command]:
    """Yields the commands of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for block in re.finditer(
        r"(<!-- not run:[^\n]*-->\n+)?^```(\w*)\n(.*?)^```", text, re.M | re.S
    ):
        if block[2] not in ("", "sh", "bash"):
            continue
        number = text[: block.start(3)].count("\n") + 1
        joined = re.sub(r"\\\n\s*", " ", block[3])
        for line in joined.splitlines():
            for part in re.split(r" && | \| ", line):
                if part.strip().startswith(STARTS):
                    yield Command(page, number, part.strip(), block[1] is None)


class Parsed(Exception):
    """Raised when a program's options are right, to stop it."""


def parse(command: Command) -> None:
    """Lets a program parse its options and stops it; raises SystemExit if they are wrong."""
    from jaxdeblur.commands import COMMANDS
    from jaxdeblur.errors import UserError
    from jaxdeblur.options import Parser

    words = command.words
    if words[0] not in ("python", "jaxdeblur") or words[1:3] == ["-m", "pytest"]:
        return
    # --resume would need an existing run.
    given = [word for word in words if word != "--resume"]
    if given[0] == "jaxdeblur":
        name, rest = " ".join(given[:2]), given[2:]
        main = importlib.import_module(COMMANDS[given[1]][0]).main
    elif given[1] == "-m":
        name, rest = given[2], given[3:]
        main = importlib.import_module(name).main
    else:
        path = next(p for p in (ROOT / given[1], Path(given[1])) if p.is_file())
        name, rest = given[1], given[2:]
        if name.endswith("demo.py") or Path(name).stem in EXAMPLES:
            return
        main = runpy.run_path(str(path), run_name="docs")["main"]
    original = argparse.ArgumentParser.parse_args

    def stop(self: Any, *arguments: Any, **keywords: Any) -> Any:
        original(self, *arguments, **keywords)
        raise Parsed

    with (
        mock.patch.object(Parser, "parse_args", stop),
        mock.patch.object(sys, "argv", [name, *rest]),
    ):
        try:
            main()
        except Parsed:
            return
        except UserError as error:
            raise SystemExit(f"{command.where}\n    {error}") from error
    raise SystemExit(f"{command.where}\n    reads no options")


def missing(page: Path) -> Iterator[str]:
    """Yields links, files and modules that a page names but that do not exist."""
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
        if not link.startswith("http") and not (page.parent / link).exists():
            yield f"{page.relative_to(ROOT)}: no {link}"
    # docs/lab describes the past: only its links and the files of docs must exist.
    for name in re.findall(r"(docs/[\w/]+\.(?:md|slurm|yaml))", text):
        if not (ROOT / name).exists():
            yield f"{page.relative_to(ROOT)}: no {name}"
    if page in LAB:
        return
    places = [ROOT, ROOT / "jaxdeblur", ROOT / "tests", ROOT / "benchmarks"]
    for name in re.findall(r"`((?:[\w]+/)+\w+\.py|(?:\w+/)+)`", prose):
        if name.split("/")[0] in FOLDERS and not any((place / name).exists() for place in places):
            yield f"{page.relative_to(ROOT)}: no {name}"
    for name in re.findall(r"python -m ((?:jaxdeblur|benchmarks|tests)[\w.]*)", text):
        path = ROOT / name.replace(".", "/")
        if not path.with_suffix(".py").exists() and not path.is_dir():
            yield f"{page.relative_to(ROOT)}: no module {name}"


FOLDERS = {
    path.name
    for top in (ROOT, ROOT / "jaxdeblur", ROOT / "tests")
    for path in top.iterdir()
    if path.is_dir() and path.name not in ("runs", "evaluations")  # what commands leave behind
}


def make_inputs(folder: Path) -> None:
    """Makes tiny versions of the inputs that the guides' commands take."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (12, 16, 3), np.uint8).repeat(4, 0).repeat(4, 1)

    def frames(name: str, count: int = 6, suffix: str = "png") -> None:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = Image.fromarray(np.roll(picture, 3 * i, 1))
            image.save(folder / name / f"{i:03}.{suffix}")

    for name in ("frames", "blurred", "sharp", "photos"):
        frames(name)
    frames("runs/demo-clip/blurred")  # as the demo leaves it
    Image.fromarray(picture).save(folder / "photo.jpg")
    for split in ("train", "test"):
        for kind in ("blur", "blur_gamma", "sharp"):
            frames(f"data/GOPRO_Large/{split}/one/{kind}", 16)
    for kind in ("input", "GT"):
        for name in ("IMG_0003", "IMG_0001"):
            frames(f"data/DeepVideoDeblurring/quantitative_datasets/{name}/{kind}", 16)
    for split in ("train", "test"):
        for kind in ("Blur", "Sharp"):
            frames(f"data/BSD_3ms24ms/{split}/one/{kind}/RGB", 16)
    for name in ("one", "TEST03", "TEST12", "TEST14"):
        frames(f"data/x4k/{name}", 40)
    (folder / "shots").mkdir()
    write_weights(folder / "tiny.safetensors")
    for name in ("in.mp4", "shaky.mp4", "shots/a.mov", "shots/b.mov"):
        write_video(folder / name, picture)


def write_weights(path: Path) -> None:
    """Writes weights of a network so small that it compiles in seconds."""
    from jaxdeblur import models
    from jaxdeblur.models.strcnn import StrcnnConfig
    from jaxdeblur.weights.load import LoadedModel
    from jaxdeblur.weights.save import export_weights

    network = StrcnnConfig(m=1, width=4, blocks=2, head_width=0, residual=True)
    export_weights(LoadedModel(models.build(network), "tiny", network, 0, "docs", {}), path)


def write_video(path: Path, picture: Any) -> None:
    """Writes six moving frames of 64x48."""
    import av
    import numpy as np

    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=2)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuv420p"
        for i in range(6):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 3 * i, 1), "rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def run(command: Command, folder: Path) -> str | None:
    """Runs a command, made small; returns what went wrong, or None."""
    program = command.program
    if program not in SMALL and program.partition(".")[0] == "benchmarks":
        return None
    words = command.words
    if words[0] not in ("python", "jaxdeblur") or words[1:3] == ["-m", "pytest"]:
        return None
    if words[1].endswith("demo.py"):
        return None
    if Path(words[1]).stem in EXAMPLES:  # run_examples does
        return None
    text = command.text.replace("/data/", "data/")
    if program == "jaxdeblur export":
        text = text.replace("strcnn_dtb_choice", "tiny.safetensors")
    small = SMALL.get(program, "").split()
    if program == "deblur.py" and "--ckpt" in text:
        small = []
    if "--model=strcnn" in text and program == "train.py":
        small += ["--width=4", "--blocks=2", "--head-width=0"]
    rest = [*shlex.split(text, comments=True)[1:], *small]
    line = [sys.executable, *(["-m", "jaxdeblur"] if words[0] == "jaxdeblur" else []), *rest]
    line = [word for word in line if word != "..."]
    if not line[1].startswith("-"):
        line[1] = str(ROOT / line[1])
    line = [word.replace("=examples/", f"={ROOT}/examples/") for word in line]
    done = subprocess.run(
        line,
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    return f"{' '.join(line)}\n{done.stderr[-2000:]}" if done.returncode else None


def lacks(command: Command) -> bool:
    """Returns whether a command needs an optional package that is not installed."""
    needs = {".onnx": "jax2onnx", ".stablehlo": "flatbuffers"}
    return any(
        suffix in command.text and importlib.util.find_spec(package) is None
        for suffix, package in needs.items()
    )


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run_example(name: str, folder: Path) -> str:
    """Runs an example; returns what went wrong, or an empty string."""
    before = set(folder.rglob("*"))
    line = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *EXAMPLES[name]]
    done = subprocess.run(line, cwd=folder, env=_environment(), capture_output=True, text=True)
    if done.returncode:
        return done.stderr[-2000:]
    pictures = [path for path in set(folder.rglob("*")) - before if path.suffix in PICTURES]
    last = done.stdout.strip().rpartition("\n")[2]
    return "" if pictures or re.search(r"\d", last) else "ends in neither a picture nor a number"


PICTURES = {".png", ".webp"}


def run_notebook(folder: Path) -> str:
    """Runs the tour as Jupyter would; returns what went wrong, or an empty string."""
    line = [sys.executable, str(ROOT / "tests" / "notebook.py"), str(TOUR)]
    try:
        done = subprocess.run(
            line, cwd=folder, env=_environment(), stderr=subprocess.PIPE, text=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return f"still runs after {LIMIT_S} s"
    return done.stderr[-2000:] if done.returncode else ""


def main() -> None:
    """Runs the checks and exits with the problems found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true", help="runs the commands and the notebook")
    parser.add_argument("--only", help="of pages, examples and the notebook, that of this name")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    wrong = [problem for page in [*PAGES, *LAB, TOUR] for problem in missing(page)]
    pages = [page for page in PAGES if arguments.only in (None, page.name)]
    for page in pages:
        for command in commands(page):
            try:
                parse(command)
            except SystemExit as error:
                wrong.append(str(error))
    for page in pages if arguments.run else ():
        with tempfile.TemporaryDirectory() as folder:
            make_inputs(Path(folder))
            for command in commands(page):
                if not command.is_run or lacks(command):
                    print(f"parsed  {command.where}", flush=True)
                    continue
                began = time.monotonic()
                problem = run(command, Path(folder))
                print(f"{time.monotonic() - began:5.0f} s {command.where}", flush=True)
                if problem:
                    wrong.append(f"{command.where}\n    {problem}")
    for name in EXAMPLES if arguments.run else ():
        if arguments.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                make_inputs(Path(folder))
                began = time.monotonic()
                problem = run_example(name, Path(folder))
                print(f"{time.monotonic() - began:5.0f} s examples/{name}.py", flush=True)
                if problem:
                    wrong.append(f"examples/{name}.py\n    {problem}")
    if arguments.run and arguments.only in (None, TOUR.name):
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            problem = run_notebook(Path(folder))
            print(f"{time.monotonic() - began:5.0f} s {TOUR.relative_to(ROOT)}", flush=True)
            if problem:
                wrong.append(f"{TOUR.relative_to(ROOT)}\n    {problem}")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
