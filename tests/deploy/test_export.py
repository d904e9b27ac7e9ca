"""Exported files, run by ONNX Runtime and ``jax.export``, give the frames of the stream."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from jaxdeblur.commands import export
from jaxdeblur.deploy import write
from jaxdeblur.deploy.forms import make_form
from jaxdeblur.errors import UserError
from jaxdeblur.models.fsta_config import FstaConfig
from jaxdeblur.models.registry import build
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.restoration.stream import restore_pixels
from jaxdeblur.table1.dbn import DbnConfig
from jaxdeblur.table1.edvr import EdvrConfig
from jaxdeblur.table1.ifi_rnn import IfiRnnConfig
from jaxdeblur.table1.rdn import RdnConfig
from jaxdeblur.table1.srn import SrnConfig
from jaxdeblur.table1.stfan import StfanConfig
from jaxdeblur.weights import shipped
from jaxdeblur.weights.load import LoadedModel, load_model
from jaxdeblur.weights.save import export_weights

SMALL = StrcnnConfig(m=1, width=4, blocks=1, head_width=0, residual=True, leak=0.1)
ATTENTION = FstaConfig(
    window=3,
    widths=(8,),
    growths=(4,),
    dense_layers=1,
    encoder_blocks=(1,),
    decoder_blocks=(1,),
    attention_levels=(0,),
    spatial_maps=2,
    temporal_maps=2,
)
IFI_RNN = IfiRnnConfig(widths=(4, 6, 8), hidden=4, up_widths=(6, 4), blocks=1, iterations=2)
PEERS: dict[str, Any] = {
    "ifi_rnn": IFI_RNN,
}
NO_ONNX: dict[str, Any] = {
    "edvr": EdvrConfig(width=8, groups=2, extract_blocks=1, blocks=1, head_width=8),
    "rdn": RdnConfig(width=2),
    "srn": SrnConfig(width=2),
    "srn_lstm": SrnConfig("lstm", width=2),
    "stfan": StfanConfig(width=2),
}
STOPPED_BY = {"edvr": "reduce_window_max"}
"""The operator that cannot be converted to ONNX, where it is not broadcast_in_dim."""
NETWORKS: dict[str, Any] = {
    **PEERS,
    **NO_ONNX,
    "dbn": DbnConfig(width=4),
    "blending": SMALL,
    "choice": dataclasses.replace(SMALL, scales=(2, 1)),
    "attention": ATTENTION,
    "neighbours": dataclasses.replace(ATTENTION, fusion="concat_fsta"),
}
SIZES = ((7, 9), (5, 20), (17, 3))
FRAMES = 12


def missing(*packages: str) -> str:
    return ", ".join(name for name in packages if importlib.util.find_spec(name) is None)


NEEDED = {".onnx": ("jax2onnx", "onnx", "onnxruntime"), ".stablehlo": ("flatbuffers",)}
needs_onnx, needs_flatbuffers = (
    pytest.mark.skipif(
        bool(missing(*packages)), reason=f"not installed: {missing(*packages)} ({write.TO_INSTALL})"
    )
    for packages in NEEDED.values()
)


@functools.cache
def loaded(name: str) -> LoadedModel:
    config = NETWORKS[name]
    model = build(config, seed=3)
    return LoadedModel(model, name, config, 7, name, {"licence of the data": "drawn at random"})


def random_video(height: int, width: int, frames: int = FRAMES) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)


def moving_video(height: int, width: int, frames: int = FRAMES) -> np.ndarray:
    """Returns patches that move by 5 pixels per exposure, a blur that opens the gates."""
    rows, columns = height // 4 + 1, (width + 5 * frames) // 4 + 1
    small = np.random.default_rng(0).integers(0, 256, (rows, columns, 3), np.uint8)
    large = small.repeat(4, axis=0).repeat(4, axis=1)[:height].astype(np.float32)
    moments = np.stack([large[:, at : at + width] for at in range(5 * frames)])
    return to_uint8(moments.reshape(frames, 5, height, width, 3).mean(1) / 255)


def to_floats(video: np.ndarray) -> np.ndarray:
    return video.astype(np.float32) / 255


def fed(video: np.ndarray, lookahead: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Yields frames as the recipe feeds them, ``1 H W 3``, and whether they are repeated."""
    for frame in video:
        yield frame[None], False
    for _ in range(lookahead):
        yield video[-1:], True


def streamed(model: VideoRestorer, video: np.ndarray) -> np.ndarray:
    """Returns what the project's own stream gives, in floats."""
    step = nnx.jit(lambda model, *arguments: model.step(*arguments))
    state, restored = model.initial_state(1, *video.shape[1:3]), []
    for frame, repeated in fed(video, model.lookahead):
        state, out = step(model, state, frame, repeated)
        restored.append(np.asarray(out[0]))
    return np.stack(restored[model.lookahead :])


def about(session: Any) -> dict[str, Any]:
    return json.loads(session.get_modelmeta().custom_metadata_map["jaxdeblur"])


def session_of(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def size_of(told: int | dict[str, Any], height: int, width: int) -> int:
    """Returns a dimension of the state for frames of ``height x width`` pixels."""
    if isinstance(told, int):
        return told
    side = {"height": height, "width": width}[told["of"]]
    return told["times"] * -(-side // told["per"])


def run_step(session: Any, video: np.ndarray) -> np.ndarray:
    """Restores a video by the recipe in the file's metadata alone."""
    told = about(session)
    size = video.shape[1:3]
    state = {
        f"state.{leaf['name']}": np.zeros([size_of(n, *size) for n in leaf["shape"]], leaf["type"])
        for leaf in told["state"]
    }
    restored = []
    for frame, repeated in fed(video, told["lookahead"]):
        frame = np.ascontiguousarray(frame.transpose(0, 3, 1, 2))
        out, *after = session.run(None, {"frame": frame, "repeated": np.array(repeated), **state})
        state = dict(zip(state, after, strict=True))
        restored.append(out[0].transpose(1, 2, 0))
    return np.stack(restored[told["lookahead"] :])


def run_windows(session: Any, video: np.ndarray) -> np.ndarray:
    """Restores each frame from its own window; the end frames are repeated beyond the ends."""
    told, restored = about(session), []
    for i in range(len(video)):
        places = np.clip(i - told["restored"] + np.arange(told["frames"]), 0, len(video) - 1)
        window = video[places].transpose(0, 3, 1, 2).reshape(1, -1, *video.shape[1:3])
        (out,) = session.run(None, {"frames": np.ascontiguousarray(window)})
        restored.append(out[0].transpose(1, 2, 0))
    return np.stack(restored)


def to_uint8(video: np.ndarray) -> np.ndarray:
    return np.round(np.clip(video, 0, 1) * 255).astype(np.uint8)


QUICK = ("blending", "attention")
WRITTEN = {
    **{f"{name}.onnx": [name] for name in QUICK},
    "attention.stablehlo": ["attention"],
    "window.onnx": ["blending", "--form=window"],
    "cold.onnx": ["blending", "--form=window", "--warm-up=0"],
    "image.onnx": ["blending", "--form=image"],
    "half.onnx": ["blending", "--half", "--licence=mine"],
}
"""The weights and options of each file that the tests check."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of the files, all written by one process."""
    folder = tmp_path_factory.mktemp("exported")
    write_all(folder, WRITTEN)
    return folder


def write_all(folder: Path, files: dict[str, list[str]]) -> None:
    """Exports in its own process: the tests check annotations, which symbolic sizes violate."""
    for name in {weights for weights, *_ in files.values()}:
        export_weights(loaded(name), folder / f"{name}.safetensors")
    commands = [
        [f"{weights}.safetensors", file, *options]
        for file, (weights, *options) in files.items()
        if not missing(*NEEDED[Path(file).suffix])
    ]
    code = (
        "import sys\nfrom jaxdeblur.commands import export\nfor sys.argv[1:] in {}: export.main()"
    )
    root = Path(export.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_NUM_CPU_DEVICES": "1"}
    subprocess.run(
        [sys.executable, "-c", code.format(commands)], cwd=folder, env=environment, check=True
    )


@needs_onnx
@pytest.mark.parametrize("name", QUICK)
def test_onnx_steps_give_what_the_stream_gives_at_any_size(name: str, folder: Path) -> None:
    check_step(session_of(folder / f"{name}.onnx"), loaded(name).model)


@needs_onnx
@pytest.mark.stress
@pytest.mark.parametrize("name", ["choice", "neighbours"])
def test_several_sizes_and_neighbours_side_by_side_too(name: str, tmp_path: Path) -> None:
    write_all(tmp_path, {f"{name}.{to}": [name] for to in ("onnx", "stablehlo")})
    model = loaded(name).model
    check_step(session_of(tmp_path / f"{name}.onnx"), model)
    check_stablehlo(tmp_path / f"{name}.stablehlo", model, tmp_path)


@needs_onnx
@pytest.mark.stress
def test_the_weights_that_ship(tmp_path: Path) -> None:
    """Adds to the tests' sizes one where all four scales have something to restore."""
    name = shipped.default_name("fast video")
    command = [sys.executable, "-m", "jaxdeblur", "export", name, str(tmp_path / "step.onnx")]
    subprocess.run(command, check=True)
    sizes = (*SIZES, (101, 67))
    check_step(session_of(tmp_path / "step.onnx"), load_model(name).model, sizes, moving_video)


@needs_onnx
@pytest.mark.stress
def test_a_window_of_the_weights_that_ship(tmp_path: Path) -> None:
    """Four networks run three times each, which used to take the converter too long."""
    name = shipped.default_name("fast video")
    command = [sys.executable, "-m", "jaxdeblur", "export", name, str(tmp_path / "window.onnx")]
    subprocess.run([*command, "--form=window"], check=True)
    session = session_of(tmp_path / "window.onnx")
    video = to_floats(moving_video(37, 50, about(session)["frames"]))
    restored = about(session)["restored"]
    given = run_windows(session, video)[restored]
    expected = streamed(load_model(name).model, video)[restored]
    np.testing.assert_allclose(given, expected, atol=1e-4, rtol=0)
    assert np.abs(given - video[restored]).max() > 1e-2, "it has to restore something"


@needs_onnx
@pytest.mark.stress
@pytest.mark.parametrize("name", sorted(PEERS))
def test_the_systems_of_table_1(name: str, tmp_path: Path) -> None:
    write_all(tmp_path, {f"{name}.onnx": [name]})
    check_step(session_of(tmp_path / f"{name}.onnx"), loaded(name).model, ((35, 18),))


@needs_onnx
@pytest.mark.stress
@pytest.mark.parametrize("name", sorted(NO_ONNX))
def test_those_that_cannot_become_onnx_say_why(name: str, tmp_path: Path) -> None:
    export_weights(loaded(name), tmp_path / f"{name}.safetensors")
    done = export_in_process(tmp_path / f"{name}.safetensors", tmp_path / "out.onnx")
    assert done.returncode == 2
    assert f"{name}.safetensors: cannot be converted to ONNX: " in done.stderr
    assert STOPPED_BY.get(name, "broadcast_in_dim") in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out.onnx").exists()


def test_a_network_that_pads_in_its_own_way_is_refused() -> None:
    """DBN pads with zeros; its file, padded with the edge like all files, gave other pixels."""
    with pytest.raises(UserError, match=r"Dbn has its own pad method"):
        make_form(loaded("dbn").model, "step")


@needs_flatbuffers
@pytest.mark.stress
def test_each_system_of_table_1_becomes_stablehlo(tmp_path: Path) -> None:
    write_all(tmp_path, {f"{name}.stablehlo": [name] for name in (*PEERS, *NO_ONNX)})
    assert len(list(tmp_path.glob("*.stablehlo"))) == len(PEERS) + len(NO_ONNX)
    check_stablehlo(tmp_path / "srn_lstm.stablehlo", loaded("srn_lstm").model, tmp_path)


def export_in_process(*arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jaxdeblur", "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def check_step(
    session: Any,
    model: VideoRestorer,
    sizes: tuple[tuple[int, int], ...] = SIZES,
    video_of: Callable[[int, int], np.ndarray] = random_video,
) -> None:
    for size in sizes:
        video = video_of(*size)
        expected = streamed(model, to_floats(video))
        given = run_step(session, to_floats(video))
        np.testing.assert_allclose(given, expected, atol=1e-4, rtol=0)
        ours = to_uint8(expected).astype(int)
        assert np.abs(to_uint8(given).astype(int) - ours).max() <= 1
        assert np.abs(to_floats(video) - given).max() > 1e-2, "it has to restore something"


@needs_onnx
def test_a_file_says_what_it_is(folder: Path) -> None:
    session = session_of(folder / "blending.onnx")
    told = about(session)
    assert told["form"] == "step"
    assert told["preset"] == "blending"
    assert told["licence of the data"] == "drawn at random"
    assert session.get_modelmeta().custom_metadata_map["licence of the data"] == "drawn at random"
    assert "repeated" in told["recipe"]
    inputs = [each.name for each in session.get_inputs()]
    outputs = [each.name for each in session.get_outputs()]
    names = [leaf["name"] for leaf in told["state"]]
    assert inputs == ["frame", "repeated", *(f"state.{name}" for name in names)]
    assert outputs == ["restored", *(f"next.{name}" for name in names)]
    assert session.get_inputs()[0].shape == [1, 3, "height", "width"]


@needs_onnx
def test_a_bias_is_added_as_it_is(folder: Path) -> None:
    """If it is spread over the frame first, runtimes do not fuse it with its convolution."""
    import onnx

    nodes = onnx.load(folder / "blending.onnx").graph.node
    added = {name for node in nodes if node.op_type == "Add" for name in node.input}
    assert len(added) > 10
    spread = [node for node in nodes if node.op_type == "Expand" and node.output[0] in added]
    assert len(spread) <= 1, "but beta of the blending, which is one number"


@needs_onnx
def test_a_window_is_the_stream_that_begins_with_it(folder: Path) -> None:
    model, video = loaded("blending").model, random_video(9, 6, 6)
    for file, frames in (("window.onnx", 3), ("cold.onnx", 2)):
        session = session_of(folder / file)
        told = about(session)
        assert told["frames"] == frames
        assert told["restored"] == frames - 2
        given = run_windows(session, to_floats(video))
        for i in range(len(video)):
            places = np.clip(i - told["restored"] + np.arange(frames), 0, len(video) - 1)
            stream = streamed(model, to_floats(video)[places])
            np.testing.assert_allclose(given[i], stream[told["restored"]], atol=1e-4, rtol=0)


@needs_onnx
def test_an_image_is_a_clip_of_one_frame(folder: Path) -> None:
    image = random_video(13, 10, 1)
    (given,) = session_of(folder / "image.onnx").run(
        None, {"image": to_floats(image).transpose(0, 3, 1, 2)}
    )
    expected = restore_pixels(loaded("blending").model, image)
    assert np.abs(to_uint8(given.transpose(0, 2, 3, 1)).astype(int) - expected).max() <= 1


@needs_onnx
def test_half_is_half_the_size_and_nearly_the_same(folder: Path) -> None:
    whole, half = folder / "blending.onnx", folder / "half.onnx"
    video = to_floats(random_video(8, 11))
    given, expected = (run_step(session_of(path), video) for path in (half, whole))
    assert 0 < np.abs(given - expected).max() < 5e-3
    assert half.stat().st_size < whole.stat().st_size
    assert about(session_of(half))["licence of the data"] == "mine"


@needs_flatbuffers
def test_stablehlo_runs_without_this_package(folder: Path, tmp_path: Path) -> None:
    check_stablehlo(folder / "attention.stablehlo", loaded("attention").model, tmp_path)


def check_stablehlo(file: Path, model: VideoRestorer, tmp_path: Path) -> None:
    """Runs the lines of docs/deploy.md in a process that cannot import the package."""
    frames, out = (tmp_path / n for n in ("frames.npy", "restored.npy"))
    video = to_floats(random_video(7, 9))
    np.save(frames, video)
    guide = (Path(__file__).parents[2] / "docs/deploy.md").read_text(encoding="utf-8")
    (lines,) = [part for part in guide.split("```") if "export.deserialize" in part]
    code = lines.removeprefix("python\n").replace("sharp.stablehlo", str(file))
    code = code.replace("frames.npy", str(frames)).replace("restored.npy", str(out))
    code = code.replace("late, restored = 2,", f"late, restored = {model.lookahead},")
    alone = "import sys; sys.modules['jaxdeblur'] = None\n"
    subprocess.run([sys.executable, "-c", alone + code], cwd=tmp_path, check=True)
    np.testing.assert_allclose(np.load(out), streamed(model, video), atol=1e-4, rtol=0)


def exported(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["export", *arguments])
    export.main()


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("out.pt", [], "unknown suffix; use one of .safetensors, .onnx, .stablehlo"),
        ("out.safetensors", [], "--licence is missing"),
        (
            "out.safetensors",
            ["--licence=x", "--form=window"],
            "--form applies to .onnx and .stablehlo only",
        ),
        ("out.onnx", ["--warm-up=2"], "requires --form=window"),
        ("out.onnx", ["--warm-up=-1", "--form=window"], "0 to 64"),
        ("out.onnx", ["--mix-with", "other", "0.5"], "--mix-with applies to .safetensors only"),
        ("out.stablehlo", ["--half"], "--half applies to .safetensors and .onnx only"),
    ],
)
def test_bad_input_writes_nothing(
    name: str, options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, out = tmp_path / "weights.safetensors", tmp_path / name
    export_weights(loaded("blending")._replace(metadata={}), weights)
    out.write_text("old")
    monkeypatch.setattr(write, "_module", lambda name: None)
    with pytest.raises(UserError, match=said):
        exported(monkeypatch, str(weights), str(out), *options)
    assert out.read_text() == "old"


@pytest.mark.parametrize("name", ["out.onnx", "out.stablehlo"])
def test_without_the_packages_it_says_what_installs_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    # Not the module's own function, by which JAX itself imports lazily.
    monkeypatch.setattr(write, "importlib", types.SimpleNamespace(import_module=absent))
    out = tmp_path / name
    with pytest.raises(UserError, match=r"not installed; .* pip install --editable '.\[export\]'"):
        exported(monkeypatch, "strcnn_dtb_choice", str(out))
    assert not out.exists()


@pytest.mark.parametrize("name", ["out.onnx", "out.stablehlo"])
def test_blur_paths_are_not_exported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the paths, their network would be of no use."""
    with pytest.raises(UserError, match=r"blur paths cannot be exported, only .* as strcnn_dtb_"):
        exported(monkeypatch, "strcnn_dtb_paths", str(tmp_path / name))
    assert not (tmp_path / name).exists()


@pytest.mark.stress  # a process of its own; the refusals below are quick
@needs_flatbuffers
def test_what_cannot_be_exported_says_so(tmp_path: Path) -> None:
    config = dataclasses.replace(ATTENTION, fusion="nonlocal")
    weights = tmp_path / "nonlocal.safetensors"
    export_weights(LoadedModel(build(config), "nonlocal", config, 0, "nonlocal", {}), weights)
    done = export_in_process(weights, tmp_path / "o.stablehlo")
    assert done.returncode == 2
    assert "nonlocal.safetensors: cannot be converted to StableHLO" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["nonlocal.safetensors"]


def test_blur_paths_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="paths: blur paths cannot be exported"):
        exported(monkeypatch, "paths", str(tmp_path / "out.onnx"))


@needs_onnx
def test_a_network_in_bfloat16_is_written_in_float32_without_folders(tmp_path: Path) -> None:
    run, file = loaded("blending"), tmp_path / "weights.safetensors"
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    about_run = {"data": {"data": ["highspeed:/nowhere/fast"], "photos": "/nowhere/pictures"}}
    run = run._replace(model=build(config, seed=3), network=config, metadata=about_run)
    export_weights(run, file)
    done = export_in_process(file, tmp_path / "out.onnx")
    assert done.returncode == 0, done.stderr
    told = about(session_of(tmp_path / "out.onnx"))
    assert told["data"] == {"data": ["highspeed:fast"], "photos": "pictures", "validate_on": ""}
