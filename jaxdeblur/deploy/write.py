"""Writes a form of a network as ``.onnx`` or ``.stablehlo``, each with what is needed to use it.

ONNX is made by jax2onnx, StableHLO by ``jax.export``. Neither file needs this package or the JAX
version that wrote it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxdeblur import VERSION
from jaxdeblur.deploy.forms import Form, make_form
from jaxdeblur.deploy.plain import in_plain_primitives
from jaxdeblur.errors import UserError
from jaxdeblur.files import replace_when_whole
from jaxdeblur.models.parameters import outline, split
from jaxdeblur.models.registry import build
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.weights.load import LoadedModel
from jaxdeblur.weights.save import data_of

# jax2onnx requires last year's Orbax, which only its examples need: hence --no-deps.
TO_INSTALL = (
    "in the project folder, run pip install --editable '.[export]' && "
    "pip install --no-deps 'jax2onnx>=0.17.1,<0.18'"
)
OPSET = 18
"""Version of the ONNX operator set, supported by every runtime since 2023."""

_KNOWN = ("licence of the data", "licence", "scores", "data", "commit", "source")


def write_onnx(
    loaded: LoadedModel,
    path: Path,
    form: str,
    warm_up: int | None,
    *,
    half: bool,
    metadata: dict[str, Any],
) -> None:
    """Writes a model as one ONNX file for frames of any height and width.

    Args:
      loaded: the model.
      path: the file, replaced when the new one is whole.
      form: "step", "window" or "image" (``deploy.forms``); images are NCHW.
      warm_up: for a window, how many frames before the restored one pass through the network.
      half: computes in float16 and stores half the size; inputs and outputs stay float32.
      metadata: further information for readers of the file.

    Raises:
      UserError: jax2onnx is not installed, or it can't convert an operator of the network.
    """
    onnx = _module("onnx")
    with _quiet():  # it tries all its examples and logs a traceback for each that lacks a package
        jax2onnx = _module("jax2onnx")
    # A network may name an operator of its that the converter gets wrong.
    if operator := getattr(loaded.model, "not_in_onnx", ""):
        raise UserError(
            f"{loaded.source}: cannot be converted to ONNX: the converter fails at {operator}"
        )
    with _said_which_operator(loaded, "ONNX"), _quiet():
        # ONNX has no convolution of bfloat16; the parameters are float32 in any case.
        network = _for_export(loaded, dtype="float32")
        made = make_form(network, form, warm_up).channels_first()
        shapes = list(made.inputs.values())
        _find_producers_at_once()
        model = jax2onnx.to_onnx(
            in_plain_primitives(made.function, *shapes),
            shapes,
            model_name=loaded.preset or "jaxdeblur",
            opset=OPSET,
            input_names=list(made.inputs),
            output_names=list(made.outputs),
        )
    # jax2onnx declares a product's shape as that of its first factor, even if the second one is
    # larger. ONNX Runtime warns of that on a desktop and rejects the file in a browser.
    del model.graph.value_info[:]
    if half:
        model = _in_half(model)
        del model.graph.value_info[:]
    about = _about(loaded, made, metadata) | {"half": half, "layout": "NCHW"}
    texts = {name: text for name, text in about.items() if isinstance(text, str)}
    texts["jaxdeblur"] = json.dumps(about)
    onnx.helper.set_model_props(model, texts)
    model.producer_name, model.producer_version = "jaxdeblur", VERSION
    onnx.checker.check_model(model, full_check=True)
    with replace_when_whole(path) as part:
        part.write_bytes(model.SerializeToString())


def write_stablehlo(loaded: LoadedModel, path: Path, form: str, warm_up: int | None) -> None:
    """Writes a model as ``jax.export`` serialises it, for cpu and cuda, any height and width.

    Images are NHWC. ``step`` takes and returns each array of the state separately, in the order
    that the ``Exported`` lists (docs/deploy.md has the ten lines that run it).

    Args:
      loaded: the model.
      path: the file, replaced when the new one is whole.
      form: "step", "window" or "image" (``deploy.forms``).
      warm_up: for a window, how many frames before the restored one pass through the network.

    Raises:
      UserError: flatbuffers is not installed, or the network cannot be traced at symbolic sizes.
    """
    _module("flatbuffers")
    with _said_which_operator(loaded, "StableHLO"):
        made = make_form(_for_export(loaded), form, warm_up)
        exported = jax.export.export(jax.jit(made.function), platforms=("cpu", "cuda"))(
            *made.inputs.values()
        )
    with replace_when_whole(path) as part:
        part.write_bytes(exported.serialize())


def _for_export(loaded: LoadedModel, **changed: str) -> VideoRestorer:
    """Returns the network without hand-written kernels, which need a GPU and JAX."""
    changed["implementation"] = "einsum"
    known = {name: value for name, value in changed.items() if hasattr(loaded.network, name)}
    if not known:
        return loaded.model
    rebuild, _ = outline(lambda: build(dataclasses.replace(loaded.network, **known)))
    return rebuild(split(loaded.model)[1])


def _about(loaded: LoadedModel, made: Form, metadata: dict[str, Any]) -> dict[str, Any]:
    known = {name: loaded.metadata[name] for name in _KNOWN if name in loaded.metadata}
    if isinstance(known.get("data"), dict):
        known["data"] = data_of(loaded)
    return {
        "jaxdeblur": VERSION,
        "preset": loaded.preset,
        "weights": f"{Path(loaded.source).name} at step {loaded.step}",
        **known,
        **metadata,
        "images": "RGB, 0 to 1; restored is not clipped",
        **made.about,
    }


def _in_half(model: Any) -> Any:
    onnx_model = _module("onnxruntime.transformers.onnx_model").OnnxModel(model)
    with _quiet():
        onnx_model.convert_float_to_float16(keep_io_types=True)
        onnx_model.topological_sort()  # input casts were appended at the end
    return onnx_model.model


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name} is not installed; {TO_INSTALL}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    for name in ("jax2onnx", "onnx_ir", "symbolic_shape_infer"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@functools.cache
def _find_producers_at_once() -> None:
    """Replaces jax2onnx 0.17's search for each output's producer among all nodes before it.

    For a window of the shipped weights it takes most of the time, and the value knows its node.
    """
    binding = importlib.import_module("jax2onnx.converter.output_binding")
    name = "_value_is_graph_connected"
    search = getattr(binding, name)
    setattr(binding, name, lambda ctx, value: value.producer() is not None or search(ctx, value))


@contextlib.contextmanager
def _said_which_operator(loaded: LoadedModel, what: str) -> Iterator[None]:
    """Turns what JAX and jax2onnx raise at an operator that they cannot convert into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{loaded.source}: cannot be converted to {what}: {reason}") from error
