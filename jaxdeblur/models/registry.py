"""The list of all models; ``build`` makes one from its config.

To add a model, write one file like ``strcnn.py`` and add its config and class to ``_MODELS``, or
call ``register`` from your own code (docs/architecture.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import nnx

from jaxdeblur.errors import UserError
from jaxdeblur.models.fsta import Fsta
from jaxdeblur.models.fsta_config import FstaConfig
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.models.scale_choice import ScaleChoice
from jaxdeblur.models.strcnn import Strcnn, StrcnnConfig
from jaxdeblur.options import from_json
from jaxdeblur.paths.config import PathsConfig
from jaxdeblur.paths.restorer import PathRestorer
from jaxdeblur.paths.single_restorer import SingleFrameConfig, SingleFrameRestorer
from jaxdeblur.siblings import siblings

_MODELS: dict[type, Callable[..., VideoRestorer]] = {
    StrcnnConfig: Strcnn,
    FstaConfig: Fsta,
    PathsConfig: lambda config, rngs: PathRestorer(
        config, *(net and _build(net, rngs) for net in (config.base, config.fusion))
    ),
    SingleFrameConfig: lambda config, rngs: SingleFrameRestorer(config, _build(config.base, rngs)),
}
for _sibling in siblings():
    _MODELS |= _sibling.models()

DTYPES = ("float32", "bfloat16", "float16")
"""Values of ``dtype``, the type of the computation; parameters and output remain float32."""

_GONE = {
    "feedback": "side",
    "first_step": "copy",
    "squeeze": "features",
    "merge": "sum",
    "logit_gain": 1.0,
    "over_paths": "",
}
"""Fields of older configs, with the only value that still exists."""

MOST, MOST_LEVELS = 1024, 16
"""The largest number in a network's config (except bytes), and the largest number of levels."""


def register(config: type, model: Callable[..., VideoRestorer]) -> None:
    """Makes ``build`` return ``model(config, rngs=rngs)`` for configs of class ``config``."""
    _MODELS[config] = model


def kinds() -> dict[str, type]:
    """Returns the config classes that ``build`` knows, and thus a checkpoint may have, by name."""
    return {config.__name__: config for config in _MODELS}


def build(config: Any, seed: int = 0) -> VideoRestorer:
    """Builds the model of a config, with parameters drawn from ``seed``, at the config's scales.

    Raises:
      UserError: a number in the config is unreasonably large, or its dtype is not in ``DTYPES``.
      KeyError: no model is registered for the config's class.
    """
    return _build(config, nnx.Rngs(seed))


def _build(config: Any, rngs: nnx.Rngs) -> VideoRestorer:
    _refuse_absurd(config)
    if getattr(config, "dtype", DTYPES[0]) not in DTYPES:
        raise UserError(f"--dtype={config.dtype}: must be one of {', '.join(DTYPES)}")
    if getattr(config, "scales", (1,)) == (1,):
        return _MODELS[type(config)](config, rngs=rngs)
    network = _MODELS[type(config)](dataclasses.replace(config, scales=(1,)), rngs=rngs)
    return ScaleChoice(config, network, rngs=rngs)


def _refuse_absurd(config: Any) -> None:
    # Building a network from a damaged or hostile config must not exhaust memory or time.
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        numbers = value if isinstance(value, tuple) else (value,)
        most = 2**40 if field.name.endswith("_bytes") else MOST
        if len(numbers) > MOST_LEVELS or any(isinstance(n, int) and abs(n) > most for n in numbers):
            raise UserError(
                f"{field.name}={str(value)[:40]}: a network cannot have numbers above {most} or "
                f"more than {MOST_LEVELS} levels"
            )


def network_to_json(network: Any) -> dict[str, Any]:
    """Returns a network's config as a dict, with the name of its class under ``kind``.

    So are the configs of networks within it.
    """
    fields = {field.name: getattr(network, field.name) for field in dataclasses.fields(network)}
    inner = {
        name: network_to_json(value)
        for name, value in fields.items()
        if dataclasses.is_dataclass(value)
    }
    return {"kind": type(network).__name__, **fields, **inner}


def network_from_json(values: Any, where: str) -> Any:
    """Reads the config that ``network_to_json`` wrote.

    Raises:
      UserError: ``where`` has an unknown kind, or fields that do not fit its kind.
    """
    kind = values.get("kind") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in kinds():
        raise UserError(
            f"{where}: the network's kind is {kind!r}, not one of {', '.join(sorted(kinds()))}; if "
            "an extension defines it, give its file with --extension"
        )
    config = kinds()[kind]
    known = {field.name for field in dataclasses.fields(config)}
    if isinstance(below := values.get("over_paths"), str) and below:
        raise UserError(
            f"{where}: a network over {below} from a development version of 0.2, without that "
            "network's weights; train it again with --model=strcnn_dtb_paths"
        )
    fields = {
        name: network_from_json(value, f"{where}: {name}")
        if isinstance(value, dict) and "kind" in value
        else value
        for name, value in values.items()
        if name != "kind" and (name in known or name not in _GONE or value != _GONE[name])
    }
    return from_json(config, fields, f"{where}: network")
