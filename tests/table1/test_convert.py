"""Weights of reference implementations: what is read, and the errors for unsuitable files."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from jaxdeblur import models
from jaxdeblur.errors import UserError
from jaxdeblur.models.parameters import outline, split
from jaxdeblur.table1 import convert as command
from jaxdeblur.table1.convert import convert, read_arrays
from jaxdeblur.table1.dbn import DbnConfig
from jaxdeblur.table1.references import REFERENCES
from jaxdeblur.table1.srn import SrnConfig
from jaxdeblur.weights.load import load_model

SMALL = DbnConfig(width=2)


def dbn_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        theirs: rng.random(weight.shape).astype(np.float32)
        for theirs, weight in REFERENCES["dbn"].names(SMALL).items()
    }


@functools.cache
def published(system: str) -> dict[str, Any]:
    """Returns the published network's parameters by name."""
    return REFERENCES[system].names(REFERENCES[system].networks[-1])


@pytest.fixture
def small_dbn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the place of the published DBN, which is large."""
    monkeypatch.setitem(REFERENCES, "dbn", REFERENCES["dbn"]._replace(networks=(SMALL,)))


@pytest.mark.parametrize(
    "name",
    # EDVR's four take as long as all others.
    [pytest.param(n, marks=[pytest.mark.stress] * (n == "edvr")) for n in REFERENCES],
)
def test_every_parameter_of_the_published_networks_has_one_name(name: str) -> None:
    known = REFERENCES[name]
    for network in known.networks:
        _, template = outline(lambda network=network: models.build(network))
        weights = known.names(network).values()
        assert sorted(weight.ours for weight in weights) == sorted(template)


def test_a_file_says_which_network_it_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = tuple(SrnConfig(variant, width=1) for variant in ("color", "gray", "lstm"))
    known = REFERENCES["srn"]._replace(networks=variants)
    monkeypatch.setitem(REFERENCES, "srn", known)
    path = tmp_path / "weights.safetensors"
    for network in variants:
        weights = known.names(network).items()
        arrays = {theirs: np.zeros(weight.shape, np.float32) for theirs, weight in weights}
        safetensors.numpy.save_file(arrays, path)
        assert convert("srn", path).network == network


@pytest.mark.parametrize(
    ("system", "theirs", "shape"),
    [
        ("dbn", "blocks.U1.1.running_var", (256,)),
        ("edvr", "predeblur.resblock_l1.4.conv2.weight", (64, 64, 3, 3)),
        ("edvr", "pcd_align.dcn_pack.l3.conv_offset.bias", (216,)),
        ("edvr", "pcd_align.offset_conv1.l3.weight", (64, 128, 3, 3)),
        ("edvr", "upconv2.weight", (256, 64, 3, 3)),
        ("ifi_rnn", "rnncell0.F_R.5.main_branch.2.weight", (80, 80, 3, 3)),
        ("ifi_rnn", "rnncell1.F_L.0.weight", (80, 40, 3, 3)),
        ("rdn", "d41_s_conv.gamma", (256,)),
        ("rdn", "u1_0_deconv.conv.weight", (256, 128, 4, 4)),
        ("srn", "g_net/dec2_4/weights", (4, 4, 64, 128)),
        ("srn", "g_net/enc3_2/conv1/biases", (128,)),
        ("srn", "g_net/convLSTM/LSTM_conv/weights", (3, 3, 256, 512)),
        ("stfan", "kconv3_2.stem.2.weight", (128, 128, 3, 3)),
        ("stfan", "fac_deblur.3.0.weight", (3200, 128, 1, 1)),
        ("stfan", "upconv1_u.0.weight", (64, 32, 4, 4)),
    ],
)
def test_names_and_shapes_are_those_that_were_published(
    system: str, theirs: str, shape: tuple[int, ...]
) -> None:
    assert published(system)[theirs].shape == shape


@pytest.mark.parametrize(
    ("system", "theirs", "place"),
    [
        ("dbn", "blocks.D1.0.weight", lambda k, m, i, o: (o, i, k, m)),
        ("dbn", "blocks.U1.0.weight", lambda k, m, i, o: (i, o, k, m)),
        ("srn", "g_net/enc1_1/weights", lambda k, m, i, o: (k, m, i, o)),
        ("srn", "g_net/dec2_4/weights", lambda k, m, i, o: (k, m, o, i)),
    ],
)
def test_a_number_lies_where_the_reference_has_it(system: str, theirs: str, place: Any) -> None:
    """Compares all numbers by row, column, input and output."""
    network = SMALL if system == "dbn" else SrnConfig(width=1)
    weight = REFERENCES[system].names(network)[theirs]
    array = np.arange(np.prod(weight.shape)).reshape(weight.shape)
    ours = array.transpose(weight.axes)
    for at in itertools.product(*map(range, ours.shape)):
        assert ours[at] == array[place(*at)]


@pytest.mark.usefixtures("small_dbn")
def test_the_command_writes_what_the_others_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    arrays = dbn_arrays()
    wrapped = {f"module.{name}": array for name, array in arrays.items()}
    wrapped["module.blocks.F0.1.num_batches_tracked"] = np.array(7)
    safetensors.numpy.save_file(wrapped, theirs)
    monkeypatch.setattr(sys, "argv", ["convert", "dbn", str(theirs), str(ours)])
    command.main()
    assert "DbnConfig" in capsys.readouterr().out
    loaded = load_model(ours)
    assert loaded.network == SMALL
    assert loaded.metadata["converted from"] == "theirs.safetensors"
    kernel = split(loaded.model)[1]["blocks/U1/0/kernel"]
    np.testing.assert_array_equal(kernel, arrays["blocks.U1.0.weight"].transpose(2, 3, 0, 1))


@pytest.mark.usefixtures("small_dbn")
def test_what_does_not_fit_is_listed_in_one_message(tmp_path: Path) -> None:
    arrays = dbn_arrays()
    del arrays["blocks.F1.0.bias"]
    arrays["surplus"] = np.zeros(1, np.float32)
    arrays["blocks.U2.0.weight"] = np.zeros((8, 4, 3, 4), np.float32)
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(UserError) as caught:
        convert("dbn", path)
    message = str(caught.value)
    assert message.startswith(f"{path}: not the weights of dbn (")
    assert message.endswith(
        "missing: blocks.F1.0.bias; unknown: surplus; wrong shape: blocks.U2.0.weight "
        "(8, 4, 3, 4) instead of (8, 4, 4, 4)"
    )
    safetensors.numpy.save_file({"a": np.zeros(1, np.float32)}, path)
    with pytest.raises(UserError, match=r"missing: blocks.D1.0.bias, .* and 122 more; unknown: a$"):
        convert("dbn", path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"no")
    for name, reason in (
        ("broken.safetensors", "not a readable safetensors"),
        ("none.safetensors", "no such file"),
    ):
        with pytest.raises(UserError, match=reason):
            convert("dbn", tmp_path / name)
    other = tmp_path / "weights.t7"
    other.write_bytes(b"")
    with pytest.raises(UserError, match=r"use \.safetensors, PyTorch's \.pth"):
        convert("dbn", other)
    arrays = dbn_arrays()
    arrays["blocks.F1.0.bias"][0] = np.nan
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(UserError, match=r"blocks\.F1\.0\.bias is not finite"):
        convert("dbn", path)


def test_pytorchs_files_need_pytorch_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pth.tar"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"needs PyTorch; install it with pip install \"jaxdeblur"):
        convert("dbn", path)


class Tensor:
    """The part of PyTorch's tensor that is used."""

    def __init__(self, array: Any) -> None:
        self.array = np.asarray(array)

    def detach(self) -> Tensor:
        return self

    def float(self) -> Tensor:
        return self

    def numpy(self) -> np.ndarray:
        return self.array


def test_the_network_is_found_in_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"")
    content: dict[str, Any] = {}

    class Torch:
        @staticmethod
        def load(given: Path, *, map_location: str, weights_only: bool) -> Any:
            assert (given, map_location, weights_only) == (path, "cpu", True)
            if not content:
                raise RuntimeError("Unsupported class\nand more")
            return content

    monkeypatch.setitem(sys.modules, "torch", Torch())
    with pytest.raises(UserError, match=r"weights_only=True\): Unsupported class$"):
        read_arrays(path)
    network = {"module.a": Tensor([1.0])}
    for holder in (
        network,
        {"params": {"a": Tensor([0.0])}, "params_ema": network},
        {"deblurnet_state_dict": network, "deblurnet_solver_state_dict": {"state": {}}, "epoch": 3},
    ):
        content.clear()
        content.update(holder)
        assert {k: v.tolist() for k, v in read_arrays(path).items()} == {"a": [1.0]}
    content.clear()
    content.update({"epoch": 3, "optimizer": {"state": {}}})
    with pytest.raises(UserError, match="no network weights by name, only epoch, optimizer"):
        read_arrays(path)


# TensorFlow's checkpoints.


def tensorflow(prefix: Path, arrays: dict[str, np.ndarray]) -> Any:
    """Returns the part of TensorFlow that is used; its checkpoint ``prefix`` holds ``arrays``."""

    class Reader:
        def get_variable_to_shape_map(self) -> dict[str, list[int]]:
            return {name: list(array.shape) for name, array in arrays.items()}

        def get_tensor(self, name: str) -> np.ndarray:
            return arrays[name]

    def load_checkpoint(given: str) -> Reader:
        assert given == str(prefix)
        if not arrays:
            raise RuntimeError("Unable to open table file\nand more")
        return Reader()

    return SimpleNamespace(train=SimpleNamespace(load_checkpoint=load_checkpoint))


def test_a_tensorflow_checkpoint_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = tmp_path / "deblur.model-523000"
    for ending in ("index", "data-00000-of-00001"):
        prefix.with_name(f"{prefix.name}.{ending}").write_bytes(b"")
    rng = np.random.default_rng(0)
    network = SrnConfig("lstm", width=2)
    weights = {
        theirs: rng.random(weight.shape).astype(np.float32)
        for theirs, weight in REFERENCES["srn"].names(network).items()
    }
    training = {f"{name}/Adam": array for name, array in weights.items()}
    training |= {"global_step": np.array(523000), "beta1_power": np.array(0.5)}
    training |= {"_CHECKPOINTABLE_OBJECT_GRAPH": np.array(b"a text")}
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow(prefix, weights | training))
    monkeypatch.setitem(REFERENCES, "srn", REFERENCES["srn"]._replace(networks=(network,)))
    index = prefix.with_name(f"{prefix.name}.index")
    loaded = convert("srn", index)
    assert loaded.network == network
    parameters = split(loaded.model)[1]
    kernel = parameters["g_net/dec2_4/kernel"]
    np.testing.assert_array_equal(kernel, weights["g_net/dec2_4/weights"].transpose(0, 1, 3, 2))
    kernel = parameters["g_net/enc1_2/second/kernel"]
    np.testing.assert_array_equal(kernel, weights["g_net/enc1_2/conv2/weights"])

    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow(prefix, {}))
    with pytest.raises(UserError, match=r"523000.index: .*load_checkpoint: Unable to open [^\n]*$"):
        convert("srn", index)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match=r"needs TensorFlow; install it with pip install \"jaxd"):
        convert("srn", index)


def test_the_command_ends_with_one_line_and_code_2(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    ended = subprocess.run(
        [sys.executable, "-m", "jaxdeblur", "convert", "dbn", "nothing.pth", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr == "jaxdeblur convert: error: nothing.pth: no such file\n"
    assert not out.exists()
