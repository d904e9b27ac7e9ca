"""The command ``jaxdeblur``: in this process, and from a wheel in its own environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import types
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxdeblur import VERSION, commands
from jaxdeblur.commands import evaluate, train
from jaxdeblur.errors import UserError
from jaxdeblur.video.image_file import read_image, write_png

ROOT = Path(__file__).parents[2]


def said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Runs ``jaxdeblur``, which must exit; returns its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/jaxdeblur", *arguments])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err


def test_says_its_version_and_commands(monkeypatch, capsys):
    assert said(monkeypatch, capsys, "--version") == (0, f"jaxdeblur {VERSION}\n", "")
    code, out, _ = said(monkeypatch, capsys, "--help")
    assert code == 0
    for name, (_, what) in commands.COMMANDS.items():
        assert f"  {name:10} {what}\n" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "jaxdeblur: error: the following arguments are required: COMMAND (see --help)"),
        (["blur", "a"], "jaxdeblur: error: argument COMMAND: invalid choice: 'blur'"),
        (["deblur", "in.mp4"], "jaxdeblur deblur: error: give an OUTPUT for in.mp4"),
        (["train", "--modle=fsta"], "jaxdeblur train: error: unrecognized arguments"),
        (
            ["evaluate", "--name=x"],
            "jaxdeblur evaluate: error: the following arguments are required: --ckpt",
        ),
        (["convert", "rdn"], "jaxdeblur convert: error: the following arguments are required"),
        (["app", "--port=0"], "jaxdeblur app: error: --port must be 1 to 65535, not 0"),
        (["prepare", "VOC", "a", "b"], "jaxdeblur prepare: error: argument name: invalid choice"),
        (["synthesis", "a", "b", "--tau=0"], "jaxdeblur synthesis: error: tau must be 1 to 256"),
        (["path-clips"], "jaxdeblur path-clips: error: the following arguments are required"),
        (["fit-gates", "x", "x.npz"], "jaxdeblur fit-gates: error: x.npz: must be a .safetensors"),
        (["export", "x", "x.zip"], "jaxdeblur export: error: x.zip: unknown suffix; use one of"),
    ],
)
def test_what_is_wrong_is_one_line_in_the_name_of_the_command(
    arguments, message, monkeypatch, capsys
):
    code, _, err = said(monkeypatch, capsys, *arguments)
    assert code == 2
    assert err.removeprefix("loading JAX ...\n").startswith(message)
    assert err.removeprefix("loading JAX ...\n").count("\n") == 1


@pytest.mark.parametrize(
    ("former", "command"),
    [
        ("export", "export"),
        ("weights.convert", "convert"),
        ("data.prepare", "prepare"),
        ("data.synthesis", "synthesis"),
        ("training.path_clips", "path-clips"),
        ("training.fit_gates", "fit-gates"),
    ],
)
def test_a_former_command_names_the_one_that_replaces_it(former: str, command: str) -> None:
    assert command in commands.COMMANDS
    ended = python("-m", f"jaxdeblur.{former}", "in", "out")
    told = f"python -m jaxdeblur.{former} is now: jaxdeblur {command}\n"
    assert (ended.returncode, ended.stderr) == (2, told)


def test_python_runs_the_command_as_a_module() -> None:
    ended = python("-m", "jaxdeblur", "--version")
    assert (ended.returncode, ended.stdout) == (0, f"jaxdeblur {VERSION}\n")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_help_calls_a_command_as_it_was_called(monkeypatch, capsys):
    code, out, _ = said(monkeypatch, capsys, "deblur", "--help")
    assert (code, "deblur.py" in out) == (0, False)
    assert out.startswith("usage: jaxdeblur deblur ")
    assert "\n  jaxdeblur deblur in.mp4 out.mp4 " in out


@pytest.mark.stress
def test_a_wheel_works_where_there_is_no_checkout(tmp_path: Path) -> None:
    """It is built from a copy of the package's files and installed into a new virtual environment.

    The environment is empty: the wheel is installed without dependencies. A ``.pth`` file adds this
    Python's packages, so nothing large is fetched. They come after the wheel on the path, where
    their own ``.pth`` files (this checkout's, if it is editable) have no effect. pip fetches
    setuptools for the build.
    """
    for name in ("jaxdeblur", "kernels"):
        shutil.copytree(
            ROOT / name, tmp_path / "copy" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "copy" / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", f"--wheel-dir={tmp_path}", tmp_path / "copy", cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    expected = {
        path.relative_to(ROOT).as_posix()
        for name in ("jaxdeblur", "kernels")
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= packed
    assert all(name.startswith(("jaxdeblur", "kernels/")) for name in packed)

    venv.create(tmp_path / "env", with_pip=False)
    python, command = (tmp_path / "env" / "bin" / name for name in ("python", "jaxdeblur"))
    pip += ["--python", str(python)]
    run(*pip, "install", "--no-deps", wheel, cwd=tmp_path)
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "packages.pth").write_text("".join(f"{path}\n" for path in sorted(paths)))

    inside = tmp_path / "elsewhere"
    inside.mkdir()
    where = run(python, "-c", "import jaxdeblur; print(jaxdeblur.__file__)", cwd=inside)
    assert where.strip() == str(site / "jaxdeblur" / "__init__.py")
    assert run(command, "--version", cwd=inside) == f"jaxdeblur {VERSION}\n"
    assert "deblur" in run(command, "--help", cwd=inside)
    blurred = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    write_png(inside / "blurred.png", blurred)
    run(command, "deblur", "blurred.png", "sharp.png", cwd=inside)
    assert read_image(inside / "sharp.png").shape == blurred.shape


def run(*command: str | Path, cwd: Path) -> str:
    """Returns what a command prints. It must succeed, and no path leads it to this checkout."""
    left_out = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("module", "options"), [(train, ["--steps=1"]), (evaluate, ["--ckpt=paths"])]
)
def test_an_address_is_refused_before_a_folder_of_its_name_is_made(
    module: types.ModuleType,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["command", *options, "--out=gs://bucket/run"])
    with pytest.raises(UserError, match="--out=gs:/bucket/run: an address, not a local folder"):
        module.main()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("weights", "adds"), [("paths", True), ("strcnn_dtb_live", False)])
def test_evaluate_adds_threads_for_blur_paths_alone(
    weights: str, adds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = []

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxdeblur.devices.add_threads", lambda: added.append(1))
    monkeypatch.setattr("jaxdeblur.devices.join", stop)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", f"--ckpt={weights}"])
    with pytest.raises(KeyboardInterrupt):
        evaluate.main()
    assert bool(added) == adds
