"""Kills and resumes a run again and again, or watches a run for memory leaks.

    python -m tests.stress.soak --kills=20       kill -9 at random moments, each time resumed
    python -m tests.stress.soak --memory         the resident memory of 2,000 small steps

The same run is trained once undisturbed and once with kills. Half of the kills come at a uniformly
drawn moment between the start of a process and its first step (it loads, restores, compiles), half
after that (it trains and saves). Both runs must end with the same parameters, bit for bit. Steps
lost are those that a killed process had done and its successor repeats: at most ``--save-every``
per kill, plus those of a save in progress.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from jaxdeblur.console import run_command
from jaxdeblur.errors import UserError
from jaxdeblur.options import Parser

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "--model=strcnn_dtb_small", "--width=4", "--blocks=1", "--m=1", "--crop=16", "--frames=2",
    "--batch-size=2", "--validate-every=0", "--warmup=1", "--learning-rate=1e-4",
]  # fmt: skip
FLAT = 0.03
"""The largest relative rise of resident memory from the first fifth of the steps to the last."""


def main() -> None:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how often")
    parser.add_argument("--steps", type=int, default=2000, help="of the run")
    parser.add_argument("--save-every", type=int, default=20, help="steps")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--memory", action="store_true", help="watches the memory of one run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jaxdeblur-soak-") as folder:
        os.environ.setdefault("JAXDEBLUR_CACHE", f"{folder}/cache")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        good = (watch_memory if arguments.memory else kill_and_resume)(arguments, Path(folder))
    sys.exit(0 if good else 1)


def kill_and_resume(arguments: argparse.Namespace, folder: Path) -> bool:
    """Kills a run again and again; returns whether it ends as the undisturbed one does."""
    options = [*TINY, f"--steps={arguments.steps}", f"--save-every={arguments.save_every}"]
    train(*options, "--steps=1", f"--out={folder / 'first'}").wait()  # renders, compiles
    whole, killed = folder / "whole", folder / "killed"
    began = time.monotonic()
    process = train(*options, f"--out={whole}")
    wait_for(whole / "checkpoints" / str(arguments.save_every), process)
    to_first = time.monotonic() - began
    if process.wait():
        raise RuntimeError("the undisturbed run failed")
    # Processes that are killed while training do three quarters of the steps in total. With few
    # kills, none may come so late that the run has ended.
    longest = min(3 / max(arguments.kills, 1), 0.25) * (time.monotonic() - began - to_first)

    moments = random.Random(arguments.seed)
    lost, redone, during_start = 0, 0, 0
    resume: list[str] = []
    for number in range(arguments.kills):
        process = train(*options, f"--out={killed}", *resume)
        began, late = time.monotonic(), moments.random() < 0.5
        delay = moments.uniform(0, longest if late else to_first)
        while process.poll() is None and not last_step(killed):
            if not late and time.monotonic() - began > delay:
                break
            time.sleep(0.02)
        if late:
            time.sleep(delay)
        if process.poll() is not None:
            print(f"the run ended before kill {number + 1}: give it more --steps")
            return False
        process.kill()
        process.wait()
        delay = time.monotonic() - began
        reached, saved = last_step(killed), newest(killed)
        lost += max(reached - saved, 0)
        redone = max(redone, reached - saved)
        during_start += reached == 0
        resume = ["--resume"] if killed.exists() and any(killed.iterdir()) else []
        print(
            f"kill {number + 1} after {delay:.1f} s: at step {reached or 'none'}, saved {saved}",
            flush=True,
        )
        (killed / "steps.log").unlink(missing_ok=True)
    if train(*options, f"--out={killed}", *resume).wait():
        print("the killed run could not be resumed")
        return False
    same = identical(whole, killed)
    print(
        f"\nkills survived   {arguments.kills} of {arguments.kills}, "
        f"{during_start} of them before the first step of their process\n"
        f"steps lost       {lost} in all, {redone} at most by one kill "
        f"(a checkpoint every {arguments.save_every} steps)\n"
        f"final parameters {'identical' if same else 'NOT identical'} to an undisturbed run of "
        f"{arguments.steps} steps"
    )
    return same


def watch_memory(arguments: argparse.Namespace, folder: Path) -> bool:
    """Prints the resident memory over a run's steps; returns whether it stays flat."""
    out = folder / "run"
    saves = [f"--save-every={max(arguments.steps // 10, 1)}", f"--steps={arguments.steps}"]
    process = train(*TINY, *saves, f"--out={out}")
    samples: list[tuple[int, float]] = []
    while process.poll() is None:
        step = last_step(out)
        if step and (memory := resident(process.pid)):
            samples.append((step, memory))
        time.sleep(0.1)
    if process.returncode:
        raise RuntimeError("the run failed")

    def median(first: float, last: float) -> float:
        low, high = first * arguments.steps, last * arguments.steps
        seen = [memory for step, memory in samples if low <= step <= high]
        if not seen:
            raise UserError(f"--steps={arguments.steps}: over before it was looked at; give more")
        return statistics.median(seen)

    fifths = [median(n / 5, (n + 1) / 5) for n in range(5)]
    rise = fifths[-1] / fifths[0] - 1
    print("resident memory, MB, medians of fifths of the run:", *(f"{m:.1f}" for m in fifths))
    print(f"from the first fifth to the last {100 * rise:+.1f} %   goal: within {FLAT:.0%}")
    return abs(rise) <= FLAT


def train(*options: str) -> subprocess.Popen[bytes]:
    """Starts train.py, which writes each step as a line of ``steps.log`` in the run's folder."""
    command = [sys.executable, "-c", WITH_STEPS, *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


# train.py, but each step that the host has seen is written to a file: the progress line is too
# rare to tell how far a killed process was.
WITH_STEPS = """
import sys
import train
from jaxdeblur.training.progress import RunWatcher
from jaxdeblur.console import run_command
said = RunWatcher.step
def step(self, step, metrics):
    out = next(o[6:] for o in sys.argv if o.startswith("--out="))
    with open(out + "/steps.log", "a") as log:
        log.write(f"{step}\\n")
    said(self, step, metrics)
RunWatcher.step = step
sys.argv[0] = "train.py"
run_command(train.main, "train.py", together=True)
"""


def last_step(run: Path) -> int:
    """Returns the last step that a process has written; 0 if there is none."""
    try:
        lines = re.findall(r"^(\d+)\n", (run / "steps.log").read_text(), re.MULTILINE)
    except FileNotFoundError:
        return 0
    return int(lines[-1]) if lines else 0


def newest(run: Path) -> int:
    """Returns the step of the newest complete checkpoint, or 0."""
    return max((int(p.name) for p in run.glob("checkpoints/*") if p.name.isdigit()), default=0)


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.02)


def resident(pid: int) -> float:
    """Returns the resident memory of a process in MB; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def identical(one: Path, other: Path) -> bool:
    """Returns whether two runs ended with the same parameters, bit for bit."""
    from jaxdeblur.models.parameters import split
    from jaxdeblur.weights.load import load_model

    first, second = (split(load_model(run).model)[1] for run in (one, other))
    return first.keys() == second.keys() and all(
        np.array_equal(np.asarray(first[name]), np.asarray(second[name])) for name in first
    )


if __name__ == "__main__":
    run_command(main, "tests.stress.soak")
