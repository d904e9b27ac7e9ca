"""docs/cluster: one video is one index, on SLURM, Kubernetes and Ray; what is tried again."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cluster(tmp_path: Path) -> Any:
    """Returns what runs a script with stand-ins for python and scontrol, which note their use."""
    notes = tmp_path / "notes"
    for name in ("python", "scontrol"):
        code = "$CODE" if name == "python" else "0"
        program = tmp_path / name
        program.write_text(
            f'#!/bin/bash\necho {name} "$@" "cache=$JAXDEBLUR_CACHE" >> {notes}\nexit {code}\n'
        )
        program.chmod(0o755)

    def run(*command: str, code: int = 0, **environment: str) -> tuple[int, list[str]]:
        notes.write_text("")
        known = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**known, "PATH": path, "CODE": str(code), **environment},
            capture_output=True,
            text=True,
        )
        return done.returncode, notes.read_text().splitlines()

    return run


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("b b.mp4", "a.mp4", ".hidden"):
        (folder / name).touch()
    return folder


def test_an_index_is_a_line_or_a_file(cluster: Any, videos: Path, tmp_path: Path) -> None:
    listed, out = tmp_path / "list.txt", tmp_path / "out"
    listed.write_text(f"{videos}/b b.mp4\n{videos}/a.mp4\n")
    one = ("bash", "docs/cluster/restore_one.sh")
    for source, index, name in (
        (videos, "0", "a.mp4"), (videos, "1", "b b.mp4"), (listed, "0", "b b.mp4")
    ):  # fmt: skip
        code, notes = cluster(*one, str(source), str(out), index, "--fast")
        options = f"--out-dir={out} --skip-done --fast cache={out}/.compiled"
        assert (code, notes) == (0, [f"python deblur.py {videos}/{name} {options}"])
    assert cluster(*one, str(videos), str(out), "2") == (0, [])
    assert cluster(*one, str(videos), str(out), "0", code=75)[0] == 75


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [(0, "0", 0), (2, "0", 0), (75, "0", 1), (137, "2", 1), (1, "3", 0)],
)
@pytest.mark.parametrize("script", ["restore", "parts"])
def test_slurm_tries_bad_machines_again_but_not_bad_videos(
    script: str, code: int, restarts: str, again: int, cluster: Any, videos: Path, tmp_path: Path
) -> None:
    arguments = [str(videos), str(tmp_path / "out")]
    place = {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "4"}
    ended, notes = cluster(
        "bash", f"docs/cluster/{script}.slurm", *arguments, code=code,
        SLURM_RESTART_COUNT=restarts, **place,
    )  # fmt: skip
    assert ended == code
    assert sum(line.startswith("scontrol requeue 9_1") for line in notes) == again
    if script == "parts":
        assert "--part=/4 --skip-done" in notes[0]


def test_kubernetes_fails_the_index_of_a_bad_video_only(
    cluster: Any, videos: Path, tmp_path: Path
) -> None:
    job = yaml.safe_load((ROOT / "docs/cluster/restore-job.yaml").read_text())["spec"]
    assert job["completionMode"] == "Indexed"
    assert job["backoffLimitPerIndex"] > 0
    rules = {rule["action"]: rule for rule in job["podFailurePolicy"]["rules"]}
    assert rules["FailIndex"]["onExitCodes"]["values"] == [2]
    (container,) = job["template"]["spec"]["containers"]
    assert rules["FailIndex"]["onExitCodes"]["containerName"] == container["name"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # which the policy needs
    (tmp_path / "list.txt").write_text(f"{videos}/a.mp4\n{videos}/b b.mp4\n")
    script = container["args"][0].replace("/data/videos.txt", str(tmp_path / "list.txt"))
    script = script.replace("/data/restored", str(tmp_path / "out"))
    code, notes = cluster(*container["command"], script, code=2, JOB_COMPLETION_INDEX="1")
    assert code == 2
    assert notes[0].startswith(f"python deblur.py {videos}/b b.mp4 --out-dir={tmp_path}/out")
    assert notes[0].endswith("cache=/data/.compiled")


def test_ray_passes_names(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    codes = {"a.mp4": 0, "b.mp4": 2, "c.mp4": 75}
    ran: list[list[str]] = []

    def remote(**options: Any) -> Any:
        assert options["retry_exceptions"]

        def decorated(function: Any) -> Any:
            function.remote = function
            return function

        return decorated

    def run(command: list[str], check: bool) -> Any:
        ran.append(command)
        return types.SimpleNamespace(returncode=codes[command[2]])

    fake = types.SimpleNamespace(remote=remote, get=lambda made: made)
    monkeypatch.setitem(sys.modules, "ray", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(subprocess, "run", run)
    path = ROOT / "docs/cluster/ray_videos.py"
    for videos in (["a.mp4", "b.mp4"], ["c.mp4"]):
        monkeypatch.setattr(sys, "argv", [str(path), "out", *videos])
        code = compile(path.read_text(), path, "exec")
        if videos == ["c.mp4"]:
            with pytest.raises(RuntimeError, match=r"c.mp4: exit code 75"):
                exec(code, {"__name__": "__main__"})
        else:
            exec(code, {"__name__": "__main__"})
    assert capsys.readouterr().out == "a.mp4: done\nb.mp4: a bad video\n"
    assert ran[0] == ["jaxdeblur", "deblur", "a.mp4", "--out-dir=out", "--skip-done", "--quiet"]
