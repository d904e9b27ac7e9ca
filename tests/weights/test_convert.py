"""Weights of reference implementations: what is read, and what is said of files that do not fit."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from jaxdeblur import models
from jaxdeblur.errors import UserError
from jaxdeblur.models.parameters import outline, split
from jaxdeblur.models.peers.dbn import DbnConfig
from jaxdeblur.weights import convert as command
from jaxdeblur.weights import reference_files
from jaxdeblur.weights.convert import convert
from jaxdeblur.weights.load import load_model
from jaxdeblur.weights.reference_names import (
    CONV,
    REFERENCES,
    SHUFFLED_BIAS,
    SHUFFLED_CONV,
    TF_TRANSPOSED,
    TRANSPOSED,
    reference,
)
from jaxdeblur.weights.tf_checkpoint import MAGIC, read_checkpoint

SMALL = DbnConfig(width=2)


def dbn_arrays() -> dict[str, np.ndarray]:
    _, template = outline(lambda: models.build(SMALL))
    rng = np.random.default_rng(0)
    return {
        theirs: rng.random(layout.theirs(template[ours].shape)).astype(np.float32)
        for theirs, (ours, layout) in reference("dbn").names(SMALL).items()
    }


@pytest.mark.parametrize("name", REFERENCES)
def test_every_parameter_of_the_published_network_has_one_name(name: str) -> None:
    known = reference(name)
    _, template = outline(lambda: models.build(known.default))
    names = known.names(known.default)
    assert sorted(ours for ours, _ in names.values()) == sorted(template)
    shapes = {
        theirs: layout.theirs(template[ours].shape) for theirs, (ours, layout) in names.items()
    }
    assert known.config(shapes) == known.default


def test_layouts() -> None:
    """A kernel's number for (row, column, in, out) lies where the reference has it."""
    for layout, theirs in (
        (CONV, lambda k, m, i, o: (o, i, k, m)),
        (TRANSPOSED, lambda k, m, i, o: (i, o, k, m)),
        (TF_TRANSPOSED, lambda k, m, i, o: (k, m, o, i)),
    ):
        shape = layout.theirs((3, 3, 4, 5))
        array = np.arange(np.prod(shape)).reshape(shape)
        ours = layout.ours(array)
        assert ours.shape == (3, 3, 4, 5)
        for place in itertools.product(range(3), range(3), range(4), range(5)):
            assert ours[place] == array[theirs(*place)]
    bias = np.arange(8)  # PixelShuffle: colour 0 at its four places, then colour 1
    assert SHUFFLED_BIAS.ours(bias).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    kernel = np.broadcast_to(bias[:, None, None, None], (8, 2, 3, 3))
    assert SHUFFLED_CONV.ours(kernel)[0, 0, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


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
    kernel = split(loaded.model)[1]["layers/U1/conv/kernel"]
    np.testing.assert_array_equal(kernel, arrays["blocks.U1.0.weight"].transpose(2, 3, 0, 1))


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
        "missing: blocks.F1.0.bias; unknown: surplus; of another shape: blocks.U2.0.weight "
        "(8, 4, 3, 4), which should be (8, 4, 4, 4)"
    )
    safetensors.numpy.save_file({"a": np.zeros(1, np.float32)}, path)
    with pytest.raises(
        UserError, match=r"missing: blocks.F0.0.weight, .* and 122 more; unknown: a$"
    ):
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
    with pytest.raises(UserError, match=r"read from \.safetensors, from PyTorch's \.pth"):
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
    """As much of PyTorch's as is read."""

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
        reference_files.read_arrays(path)
    network = {"module.a": Tensor([1.0])}
    for holder in (
        network,
        {"params": {"a": Tensor([0.0])}, "params_ema": network},
        {"deblurnet_state_dict": network, "deblurnet_solver_state_dict": {"state": {}}, "epoch": 3},
        {"anything": network},
    ):
        content.clear()
        content.update(holder)
        assert {k: v.tolist() for k, v in reference_files.read_arrays(path).items()} == {"a": [1.0]}
    content.clear()
    content.update({"epoch": 3, "optimizer": {"state": {}}})
    with pytest.raises(UserError, match="no network's weights by name, but epoch, optimizer"):
        reference_files.read_arrays(path)


# TensorFlow's checkpoints.


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """A block of the table; of each key only what differs from the one before is written."""
    body, before, restarts = b"", b"", [0]
    for i, (key, value) in enumerate(entries):
        shared = 0
        if i % 16:
            while key[: shared + 1] == before[: shared + 1] and shared < len(key):
                shared += 1
        elif i:
            restarts.append(len(body))
        body += varint(shared) + varint(len(key) - shared) + varint(len(value))
        body += key[shared:] + value
        before = key
    for number in (*restarts, len(restarts)):
        body += number.to_bytes(4, "little")
    return body


def write_checkpoint(prefix: Path, arrays: dict[str, np.ndarray]) -> None:
    """As TensorFlow's BundleWriter, with zeros for checksums, in blocks of 20 entries."""
    kinds = {"float32": 1, "int32": 3}
    data, entries = b"", [(b"", b"\x08\x01\x1a\x02\x08\x01")]
    for name in sorted(arrays):
        array = arrays[name]
        shape = b""
        for size in array.shape:
            dimension = b"\x08" + varint(size)
            shape += b"\x12" + varint(len(dimension)) + dimension
        value = b"\x08" + varint(kinds[str(array.dtype)]) + b"\x12" + varint(len(shape)) + shape
        value += b"\x20" + varint(len(data)) if data else b""
        value += b"\x28" + varint(array.nbytes) + b"\x35\0\0\0\0"
        entries.append((name.encode(), value))
        data += array.tobytes()
    table, index = b"", []
    for start in range(0, len(entries), 20):
        part = block(entries[start : start + 20])
        index.append((entries[start : start + 20][-1][0], varint(len(table)) + varint(len(part))))
        table += part + b"\0\0\0\0\0"
    footer = b""
    for part in (block([]), block(index)):
        footer += varint(len(table)) + varint(len(part))
        table += part + b"\0\0\0\0\0"
    table += footer.ljust(40, b"\0") + MAGIC.to_bytes(8, "little")
    prefix.with_name(f"{prefix.name}.index").write_bytes(table)
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)


def test_a_tensorflow_checkpoint_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"g_net/enc1_{i}/weights": rng.random((i, 2)).astype(np.float32) for i in range(50)}
    arrays["global_step"] = np.array(523000, np.int32)
    prefix = tmp_path / "deblur.model-523000"
    write_checkpoint(prefix, arrays)
    found = read_checkpoint(prefix)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    for name in ("deblur.model-523000", "deblur.model-523000.index", "deblur.model-523000.meta"):
        assert reference_files.read_arrays(tmp_path / name).keys() == arrays.keys()


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    prefix = tmp_path / "model"
    write_checkpoint(prefix, {f"v{i}": np.zeros(3, np.float32) for i in range(30)})
    index, data = (tmp_path / f"model.{end}" for end in ("index", "data-00000-of-00001"))
    whole, numbers = index.read_bytes(), data.read_bytes()
    data.write_bytes(numbers[:-1])
    with pytest.raises(UserError, match="bytes at 348"):
        read_checkpoint(prefix)
    data.unlink()
    with pytest.raises(UserError, match="is missing"):
        read_checkpoint(prefix)
    data.write_bytes(numbers)
    rng = np.random.default_rng(0)
    for _ in range(200):  # whatever is damaged, nothing but a UserError comes of it
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        index.write_bytes(bytes(damaged[: rng.integers(1, len(whole) + 1)]))
        with contextlib.suppress(UserError):
            read_checkpoint(prefix)


def test_the_command_ends_with_one_line_and_code_2(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    ended = subprocess.run(
        [sys.executable, "-m", "jaxdeblur.weights.convert", "dbn", "nothing.pth", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr == "jaxdeblur.weights.convert: error: nothing.pth: no such file\n"
    assert not out.exists()
