"""``python train.py`` as users run it, in its own processes: kills, resumes and refusals."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from jaxdeblur import devices
from jaxdeblur.commands import export
from jaxdeblur.console import run_command
from jaxdeblur.errors import UserError
from jaxdeblur.models.parameters import split
from jaxdeblur.testing import float32_error
from jaxdeblur.training.run_folder import Run, check_folder, make_folder
from jaxdeblur.weights.load import load_model
from jaxdeblur.weights.save import export_weights

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "--model=strcnn_dtb_small", "--width=4", "--blocks=1", "--m=1", "--crop=32", "--frames=2",
    "--data=rendered:tiny", "--validate-every=0", "--save-every=5", "--warmup=1",
]  # fmt: skip


def start(*arguments: str) -> subprocess.Popen[str]:
    # Caches all programs: otherwise most time would go into compiling the same small ones.
    environment = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str, code: int = 0) -> str:
    process = start(*arguments)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    return errors


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs train.py in this process; it must end with one line and exit code 2."""
    for name in ("keep_freed_memory", "keep_compiled"):
        monkeypatch.setattr(devices, name, lambda: None)

    def refuse(*arguments: str) -> str:
        # The tests have eight devices, which share a batch.
        monkeypatch.setattr(sys, "argv", ["train.py", "--batch-size=8", *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        said = capsys.readouterr().err
        return one_line(said, ended.value.code)

    return refuse


def one_line(errors: str, code: object) -> str:
    said = ("rendering: ", "loading JAX")
    lines = [line for line in errors.splitlines() if not line.startswith(said)]
    assert code == 2, errors
    assert len(lines) == 1, errors
    assert lines[0].startswith("train.py: error: ")
    return errors


def parameters(folder: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in split(load_model(folder).model)[1].items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of 12 steps."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(*TINY, "--steps=12", f"--out={folder}")
    return folder


def test_killed_and_resumed_the_parameters_are_bit_identical(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    process = start(*TINY, "--steps=12", f"--out={folder}")
    deadline = time.monotonic() + 240
    while not list(folder.glob("checkpoints/[0-9]*")) and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.02)
    process.kill()
    process.communicate()
    errors = run(f"--out={folder}", "--resume")
    assert errors.startswith("loading JAX"), "it speaks before it waits"
    assert "of 12" in errors
    assert f"score it: python evaluate.py --ckpt={folder}" in errors
    assert json.loads((folder / "config.json").read_text())["preset"] == "strcnn_dtb_small"
    ours, theirs = parameters(folder), parameters(whole)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.stress  # tests/training covers signals within one process
def test_asked_to_stop_it_saves_and_can_be_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    process = start(*TINY, "--steps=100000", "--save-every=100000", f"--out={folder}")
    lines: list[str] = []
    assert process.stderr is not None
    for line in process.stderr:  # the first progress line comes when a step is done
        lines.append(line)
        if line.startswith("training: "):
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, (lines, errors)
    stopped = re.search(r"stopped by SIGTERM after step (\d+); continue with --resume", errors)
    assert stopped, errors
    steps = [int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")]
    assert steps == [int(stopped[1])]


def test_what_a_run_folder_holds(whole: Path) -> None:
    config = json.loads((whole / "config.json").read_text())
    assert config["preset"] == "strcnn_dtb_small"
    assert config["network"]["width"] == 4
    assert config["training"]["steps"] == 12
    assert list(whole.glob("tensorboard/events*"))


def test_an_existing_run_is_refused_and_left_as_it_is(
    whole: Path, refused: Callable[..., str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert "--resume" in refused(*TINY, f"--out={whole}")
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_a_folder_that_is_no_run_is_never_overwritten(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "config.json").write_text('{"a": 1}')  # many projects have one
    assert "not a run folder" in refused(*TINY, f"--out={tmp_path}", "--overwrite")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_overwriting_a_run_leaves_what_is_not_of_it(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(whole, folder)
    (folder / "scores.txt").write_text("worth keeping")
    again = Run.read(folder)
    check_folder(again, folder, resume=False, overwrite=True)
    make_folder(again, folder, resume=False)
    assert Run.read(folder) == again
    assert not (folder / "checkpoints").exists()
    assert (folder / "scores.txt").read_text() == "worth keeping"


def test_a_run_that_is_done_can_be_resumed_and_stays_as_it_is(
    whole: Path, refused: Callable[..., str]
) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert "step 12 of 12" in run(f"--out={whole}", "--resume")
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before
    assert f"the run in {whole} uses strcnn_dtb_small" in refused(
        f"--out={whole}", "--resume", "--model=strcnn_dtb"
    )


def test_resuming_another_network_names_the_fields(
    whole: Path, refused: Callable[..., str]
) -> None:
    message = refused("--model=strcnn_dtb_small", f"--out={whole}", "--resume", "--width=8")
    assert "width: here 8, there 4" in message


@pytest.mark.parametrize("option", ["--optimizer=adam", "--average=0.5"])
def test_resuming_with_another_state_names_the_option(
    option: str, whole: Path, refused: Callable[..., str]
) -> None:
    message = refused("--model=strcnn_dtb_small", f"--out={whole}", "--resume", option)
    assert f"--resume: the run in {whole} began with {option.split('=')[0]}=" in message


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model=nope"], "--model=nope"),
        (["--steps=0"], "--steps"),
        (["--steps=many"], "--steps"),
        (["--crop=100000"], "--crop must be 16 to 2048, not 100000"),
        (["--stpes=3"], "--stpes=3"),
        (["--data=/nowhere"], "/nowhere"),
        (["--exclude=TEST03"], "--exclude has no effect on --data=rendered:tiny"),
        (["--dtype=float8"], "--dtype=float8"),
        (["--dtype=float16"], "--dtype=float16: most gradients are too small for it"),
        (["--start-from=nowhere"], "nowhere"),
        (["--resume"], "not a run folder"),
        (["--process-id=1"], "--coordinator"),
        (["--extension=nowhere.py"], "nowhere.py"),
        (["--micro-batch=3"], "--micro-batch=3 must divide the 1 clips per batch on each of 8 dev"),
    ],
)
def test_bad_options_are_one_line(
    arguments: list[str], named: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "new"
    assert named in refused(*TINY, f"--out={out}", *arguments)
    assert not out.exists()


@pytest.mark.stress
def test_weights_start_another_run_at_every_scale(whole: Path, tmp_path: Path) -> None:
    weights = tmp_path / "start.safetensors"
    export_weights(load_model(whole), weights, half=True)
    folder = tmp_path / "choice"
    run(*TINY, "--steps=1", f"--out={folder}", f"--start-from={weights}", "--scales", "2", "1",
        "--learning-rate=1e-9")  # fmt: skip
    for stage in ("begun", "resumed", "begun anew"):
        if stage == "resumed":  # as if killed before its first save, and the weights lost since
            shutil.rmtree(folder / "checkpoints" / "1")
            aside = weights.rename(tmp_path / "aside")
            assert "step 0 of 1" in run(f"--out={folder}", "--resume")
            aside.rename(weights)
        elif stage == "begun anew":  # as if killed before it kept its initial state
            shutil.rmtree(folder / "checkpoints")
            assert "step 0 of 1" in run(f"--out={folder}", "--resume")
        start_of, now = parameters(whole), parameters(folder)
        for name, array in start_of.items():
            np.testing.assert_allclose(now[f"level/{name}"], array, atol=1e-3)
    # A job restarted with all its options continues; the weights it began with are not needed.
    weights.unlink()
    assert "step 1 of 1" in run(f"--out={folder}", "--resume", "--start-from=gone")
    assert Run.read(folder).start_from == str(weights)


def test_an_exported_file_says_where_it_comes_from(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "small.safetensors"
    arguments = ["export", str(whole), str(file), "--half", "--licence=free"]
    monkeypatch.setattr(sys, "argv", [*arguments, f"--after={whole}"])
    export.main()
    exported, run = load_model(file), load_model(whole)
    assert exported.metadata["licence of the data"] == "free"
    assert exported.metadata["step"] == run.step
    (before,) = exported.metadata["after"]
    assert (before["preset"], before["step"]) == (run.preset, run.step)
    assert before["data"] == exported.metadata["data"]
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", [*arguments, "--after", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as ended:
        run_command(export.main, "export")
    assert ended.value.code == 2
    assert "nowhere: no such run folder" in capsys.readouterr().err


def test_exported_weights_can_be_a_mean(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = load_model(whole)
    rebuild, ours = split(other.model)
    doubled = rebuild({name: 2 * array for name, array in ours.items()})
    export_weights(other._replace(model=doubled), tmp_path / "other.safetensors")
    file = tmp_path / "mean.safetensors"
    arguments = [str(whole), str(file), "--licence=free", "--mix-with"]
    monkeypatch.setattr(sys, "argv", ["export", *arguments, str(tmp_path / "other"), "0.25"])
    with pytest.raises(UserError, match="other: no such run"):
        export.main()
    for share in ("2", "half"):
        monkeypatch.setattr(sys, "argv", ["export", *arguments, str(whole), share])
        with pytest.raises(UserError, match="--mix-with: the share must be 0 to 1"):
            export.main()
    assert not file.exists()
    source = str(tmp_path / "other.safetensors")
    monkeypatch.setattr(sys, "argv", ["export", *arguments, source, "0.25"])
    export.main()
    mean = load_model(file)
    assert mean.metadata["mixed"] == {"with": "other.safetensors", "share": 0.25}
    for name, array in split(mean.model)[1].items():
        np.testing.assert_allclose(array, 1.25 * ours[name], rtol=float32_error(3))


def test_weights_that_do_not_say_how_they_were_trained_are_named(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, file = tmp_path / "bare.safetensors", tmp_path / "file.safetensors"
    export_weights(load_model(whole)._replace(metadata={}), bare)
    for arguments, said in (
        ([str(bare)], r"bare\.safetensors.*: does not say how it was trained"),
        ([str(whole), f"--after={bare}"], r"bare\.safetensors.*: does not say how it was trained"),
        ([str(whole), "--extension=nowhere.py"], "no such Python file"),
    ):
        command = ["export", arguments[0], str(file), "--licence=free", *arguments[1:]]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(UserError, match=said):
            export.main()
    assert not file.exists()


def test_weights_that_are_no_numbers_are_refused(whole: Path, tmp_path: Path) -> None:
    """Otherwise a pixel that is not a number would come out as the input pixel."""
    loaded, file = load_model(whole), tmp_path / "broken.safetensors"
    rebuild, arrays = split(loaded.model)
    name = sorted(arrays)[0]
    broken = arrays | {name: np.nan * arrays[name]}
    export_weights(loaded._replace(model=rebuild(broken)), file)
    with pytest.raises(UserError, match=f": {name} is not finite"):
        load_model(file)
    raw = file.read_bytes()
    file.write_bytes(raw.replace(b'"F32"', b'"I32"'))
    with pytest.raises(UserError, match="is int32"):
        load_model(file)


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "no header", "other network"])
def test_damaged_weights_are_refused(damage: str, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    export_weights(load_model(whole), path)
    raw = path.read_bytes()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    elif damage == "flipped":
        path.write_bytes(bytes([255 - raw[0]]) + raw[1:])
    elif damage == "no header":
        safetensors.numpy.save_file({"a": np.zeros(3)}, path)
    else:
        path.write_bytes(raw.replace(b'\\"width\\": 4', b'\\"width\\": 6'))
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        load_model(path)


def test_an_unknown_checkpoint_lists_what_there_is() -> None:
    with pytest.raises(UserError, match=r"^nowhere: no such run folder"):
        load_model("nowhere")
