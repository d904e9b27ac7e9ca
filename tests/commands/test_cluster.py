"""Several processes on one machine, over gloo: they train, stop, resume and restore as one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import yaml

from jaxdeblur import devices
from jaxdeblur.errors import UserError
from jaxdeblur.models.parameters import split
from jaxdeblur.options import ClusterConfig
from jaxdeblur.video.image_file import write_png
from jaxdeblur.weights.load import load_model

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "--model=strcnn_dtb_small", "--width=4", "--blocks=1", "--m=1", "--crop=32", "--frames=2",
    "--batch-size=4", "--data=rendered:tiny", "--validate-every=0", "--save-every=100",
    "--warmup=1", "--learning-rate=1e-4",
]  # fmt: skip


def start(
    command: str, processes: int, *arguments: str, last: tuple[str, ...] = ()
) -> list[subprocess.Popen[str]]:
    """Starts all processes of a command; the last one gets the arguments ``last`` too."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = []
    for number in range(processes):
        place = [f"--coordinator={address}", f"--num-processes={processes}"]
        where = [*place, f"--process-id={number}"] if processes > 1 else []
        if number == processes - 1:
            where += last
        started.append(
            subprocess.Popen(
                [sys.executable, str(ROOT / command), *arguments, *where],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def ends(started: list[subprocess.Popen[str]], timeout: float = 300) -> list[str]:
    """Returns the output of each process once all have ended."""
    try:
        return ["".join(process.communicate(timeout=timeout)) for process in started]
    finally:
        for process in started:
            process.kill()


def run(command: str, processes: int, *arguments: str) -> list[str]:
    started = start(command, processes, *arguments)
    said = ends(started)
    assert [process.returncode for process in started] == [0] * processes, said
    return said


def parameters(folder: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in split(load_model(folder).model)[1].items()}


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of one process."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    run("train.py", 1, *TINY, "--steps=120", f"--out={folder}")
    return folder


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, begun by two processes, stopped by a SIGTERM to one, ended by one process."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    started = start("train.py", 2, *TINY, "--steps=120", f"--out={folder}")
    errors = started[0].stderr
    assert errors is not None
    assert any(line.startswith("training: ") for line in errors), "no step was done"
    asked = time.monotonic()
    started[1].send_signal(signal.SIGTERM)
    said = ends(started)
    took = time.monotonic() - asked
    assert [process.returncode for process in started] == [0, 0], said
    for text in said:
        stopped = re.search(r"stopped by SIGTERM after step (\d+); continue with --resume", text)
        assert stopped, said
        assert int(stopped[1]) < 120
        assert [path.name for path in (folder / "checkpoints").glob("[0-9]*")] == [stopped[1]]
    assert took < 60  # two seconds to agree, the save, and other load on this machine
    errors_of_one = run("train.py", 1, "--model=strcnn_dtb_small", f"--out={folder}", "--resume")
    assert f"step {stopped[1]} of 120" in errors_of_one[0]
    return folder


@pytest.mark.stress
def test_another_number_of_processes_goes_on_with_the_same_batches(
    by_one: Path, by_two: Path
) -> None:
    ours, theirs = parameters(by_two), parameters(by_one)
    assert ours.keys() == theirs.keys()
    for name in ours:
        # 120 steps of 1e-4 with other batches would differ by some 1e-3.
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-4, err_msg=name)


@pytest.mark.stress
@pytest.mark.parametrize("several", [2, 4])
def test_several_processes_train_as_one_does(several: int, tmp_path: Path) -> None:
    for processes in (1, several):
        run("train.py", processes, *TINY, "--steps=12", f"--out={tmp_path / str(processes)}")
    ours, theirs = parameters(tmp_path / str(several)), parameters(tmp_path / "1")
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-5, err_msg=name)


@pytest.mark.stress
def test_a_process_that_fails_does_not_leave_the_others_waiting(tmp_path: Path) -> None:
    nowhere = f"--data={tmp_path / 'nowhere'}"
    out = f"--out={tmp_path / 'run'}"
    good, bad = start("train.py", 2, *TINY, "--steps=100000", out, last=(nowhere,))
    said = ends([good, bad])
    assert bad.returncode == 2, said
    assert f"train.py: error: {tmp_path / 'nowhere'}: no such folder" in said[1]
    assert good.returncode not in (0, None), said
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.stress
def test_evaluation_is_shared_and_a_second_start_does_nothing(by_one: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for half in ("blur", "sharp"):
        for video in range(3):
            folder = tmp_path / "pairs" / half / f"v{video}"
            folder.mkdir(parents=True)
            for frame in range(3):
                write_png(folder / f"{frame}.png", rng.integers(0, 256, (16, 16, 3), np.uint8))
    out = tmp_path / "scores"
    arguments = [f"--ckpt={by_one}", f"--data={tmp_path / 'pairs'}", f"--out={out}"]
    before = {path: path.stat().st_mtime_ns for path in by_one.rglob("*")}
    said = run("evaluate.py", 2, *arguments)
    done = {path: path.stat().st_mtime_ns for path in (out / "videos").iterdir()}
    assert len(done) == 3
    assert "mean over videos" in said[0]
    assert "mean over videos" not in said[1]
    metrics = json.loads((out / "metrics.json").read_text())
    assert [video["name"] for video in metrics["videos"]] == ["v0", "v1", "v2"]
    run("evaluate.py", 1, *arguments)
    assert {path: path.stat().st_mtime_ns for path in (out / "videos").iterdir()} == done
    assert {path: path.stat().st_mtime_ns for path in by_one.rglob("*")} == before


@pytest.mark.stress
def test_restoration_is_shared_by_file(by_one: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_png(tmp_path / f"{name}.png", np.zeros((16, 16, 3), np.uint8))
    out = tmp_path / "restored"
    inputs = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    said = run("deblur.py", 2, *inputs, f"--out-dir={out}", f"--ckpt={by_one}")
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "b.png"]
    assert "a.png" in said[0]
    assert "a.png" not in said[1].replace(str(inputs), "")
    # A process may have no share, and finished files are not restored again.
    (out / "a.png").unlink()
    before = (out / "b.png").stat().st_mtime_ns
    said = run("deblur.py", 2, *inputs, f"--out-dir={out}", f"--ckpt={by_one}", "--skip-done")
    assert "nothing left to do" in said[1]
    assert (out / "a.png").exists()
    assert (out / "b.png").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"coordinator": "host:1"}, "must be given together"),
        ({"coordinator": "h:1", "num_processes": 0, "process_id": 0}, "--num-processes"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, "--process-id must be 0 to"),
    ],
)
def test_wrong_places_are_refused(fields: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        ClusterConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("environment", "processes"),
    [
        ({}, 1),
        ({"SLURM_NTASKS": "8"}, 1),  # a shell inside an allocation
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3"}, 8),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, 4),
    ],
)
def test_who_started_this_process(
    environment: dict[str, str], processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "JOB")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    joined: list[tuple[object, ...]] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **_: joined.append(a))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    devices.join(ClusterConfig())
    assert bool(joined) == (processes > 1)


FAKE_SRUN = """#!/usr/bin/env python3
# Two tasks with the environment that SLURM gives them.
import os, subprocess, sys
command = [word for word in sys.argv[1:] if not word.startswith("--kill-on-bad-exit")]
common = {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"}
tasks = [
    subprocess.Popen(
        command, env={**os.environ, **common, "SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)}
    )
    for n in range(2)
]
sys.exit(max(task.wait() for task in tasks))
"""


@pytest.mark.stress
def test_the_slurm_script_trains_and_goes_on(tmp_path: Path) -> None:
    srun = tmp_path / "srun"
    srun.write_text(FAKE_SRUN)
    srun.chmod(0o755)
    run_folder = tmp_path / "run"
    environment = {
        **{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),  # JAX takes the port from it
        "RUN": str(run_folder),
        "PYTHON": sys.executable,
    }
    for steps, begins in ((1, "step 0 of 1"), (2, "step 1 of 2")):
        result = subprocess.run(
            ["bash", "docs/cluster/train.slurm", *TINY, f"--steps={steps}"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        assert begins in result.stderr
        assert result.stderr.count(begins) == 1, "two runs, not two processes of one"


@pytest.mark.parametrize("stopped", [False, True])
def test_the_job_set_gives_each_pod_its_place(stopped: bool, tmp_path: Path) -> None:
    manifest = yaml.safe_load((ROOT / "docs/cluster/train-jobset.yaml").read_text())
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    # A stand-in for python, which prints its arguments and handles SIGTERM as train.py does. One
    # that fails may have ended before the shell waits for it.
    fake = tmp_path / "python"
    fake.write_text(
        "#!/bin/bash\ntrap 'exit 0' TERM\necho \"$@\"\n"
        + ("for _ in {1..500}; do sleep 0.02; done\n" if stopped else "exit 3\n")
    )
    fake.chmod(0o755)
    process = subprocess.Popen(
        [*container["command"], *container["args"]],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as output:
        arguments = output.readline().split()
        if stopped:
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    name = manifest["metadata"]["name"]
    port = container["ports"][0]["containerPort"]
    assert f"--coordinator={name}-{job['name']}-0-0.{name}:{port}" in arguments
    assert f"--num-processes={spec['completions']}" in arguments
    assert "--process-id=1" in arguments
    assert spec["completions"] == spec["parallelism"]
    # Kubernetes must not mistake a run that was stopped for one that is done.
    assert process.returncode == (143 if stopped else 3)


@pytest.mark.parametrize(("clips", "cores", "expected"), [(8, 4, 4), (6, 4, 3), (1, 4, 1)])
def test_as_many_cores_as_share_the_batch_evenly_are_used(
    clips: int, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: dict[str, int] = {}
    config = SimpleNamespace(update=lambda name, value: chosen.update({name: value}))
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(devices, "jax", SimpleNamespace(config=config))
    monkeypatch.setattr(devices, "cores", lambda: cores)
    monkeypatch.setattr(devices, "_spare", False)
    devices.use_cores(clips)
    assert chosen == {"jax_num_cpu_devices": expected}
    devices.use_cores(clips, spare=True)  # for scenes rendered meanwhile
    assert chosen == {"jax_num_cpu_devices": expected + 1}
