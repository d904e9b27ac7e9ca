"""Reads a TensorFlow V2 checkpoint: ``NAME.index`` and ``NAME.data-00000-of-00001``.

The index is a sorted-string table, as LevelDB's: blocks of keys and values and, at the end of the
file, where the block lies that lists the blocks. Each key is a variable's name, each value a small
protocol buffer (BundleEntryProto): number type, shape, and where its bytes lie in the data file.
Nothing in such files is code. Checksums are not verified; sizes are.

Format: TensorFlow's tensor_bundle.proto and core/lib/io/format.h (Apache-2.0), from which facts
were taken and no code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxdeblur.errors import UserError

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
_TYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}
"""NumPy's names of TensorFlow's number types."""


def prefix_of(path: Path) -> Path | None:
    """``NAME`` if ``path`` is that, or one of the files of the checkpoint of that name."""
    for ending in (".index", ".meta", ".data-00000-of-00001", ""):
        name = path.name.removesuffix(ending)
        if path.name.endswith(ending) and path.with_name(f"{name}.index").is_file():
            return path.with_name(name)
    return None


def read_checkpoint(prefix: Path) -> dict[str, np.ndarray]:
    """Every variable of the checkpoint ``prefix``, by name.

    Raises:
      UserError: a file is missing or damaged, or holds what is not read here.
    """
    index = prefix.with_name(f"{prefix.name}.index")
    try:
        table = dict(_entries(index.read_bytes()))
        header = dict(_fields(table.pop(b"")))
        if header.get(1, 1) != 1 or header.get(2, 0) != 0:
            raise UserError(f"{index}: only checkpoints with one little-endian data file are read")
        data_path = prefix.with_name(f"{prefix.name}.data-00000-of-00001")
        data = np.memmap(data_path, np.uint8, "r")
        return {name.decode(): _array(data, value) for name, value in table.items()}
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: it belongs to {index}, and is missing") from error
    except (ValueError, KeyError, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise UserError(f"{index}: not a readable TensorFlow checkpoint ({error})") from error


def _array(data: np.ndarray, value: bytes) -> np.ndarray:
    fields: dict[int, int | bytes] = dict(_fields(value))
    if 7 in fields:
        raise ValueError("a variable is stored in slices")
    kind = _TYPES.get(int(fields.get(1, 0)))
    if kind is None:
        raise ValueError(f"numbers of TensorFlow's type {fields.get(1)!r}")
    dimensions = [entry for number, entry in _fields(_bytes(fields.get(2, b""))) if number == 2]
    shape = [int(dict(_fields(_bytes(entry))).get(1, 0)) for entry in dimensions]
    offset, size = int(fields.get(4, 0)), int(fields.get(5, 0))
    if size != math.prod(shape) * np.dtype(kind).itemsize or offset + size > len(data):
        raise ValueError(f"{size} bytes at {offset} are not the {shape} numbers of a variable")
    return np.frombuffer(data[offset : offset + size].tobytes(), kind).reshape(shape)


# The sorted-string table.


def _entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    footer = table[-FOOTER:]
    if len(footer) < FOOTER or int.from_bytes(footer[-8:], "little") != MAGIC:
        raise ValueError("it does not end as such a file does")
    _, _, at = _handle(footer, 0)  # of the filters, which there are none
    start, size, _ = _handle(footer, at)
    for _, handle in _block(table, start, size):
        yield from _block(table, *_handle(handle, 0)[:2])


def _block(table: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    if start + size + 5 > len(table):
        raise ValueError("it is cut off")
    if table[start + size] != 0:
        raise ValueError("its index is compressed")
    block = table[start : start + size]
    # Behind the entries stand where keys are written whole, and their number.
    end = size - 4 * (1 + int.from_bytes(block[-4:], "little"))
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        rest, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + rest + length > end:
            raise ValueError("a key is longer than its block")
        key = key[:shared] + block[at : at + rest]
        yield key, block[at + rest : at + rest + length]
        at += rest + length


def _handle(data: bytes, at: int) -> tuple[int, int, int]:
    start, at = _varint(data, at)
    size, at = _varint(data, at)
    return start, size, at


# Protocol buffers.


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, at = _varint(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of wire type {kind}")
        if at + length > len(message):
            raise ValueError("a field is longer than its message")
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError("a number of more than 64 bits")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value
