"""Command-line options from frozen dataclasses: each field is an option, its docs are the help.

This module also has the two groups that commands share: the processes that work together, and
``--extension``, the user's own file that adds models and presets.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import inspect
import math
import re
import sys
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeAlias, TypeVar, get_args, get_origin

from jaxdeblur.errors import UserError

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Range:
    """The range of a numeric field: ``steps: Annotated[int, Range(1)]``."""

    least: int | float = -math.inf
    most: int | float = math.inf
    _: dataclasses.KW_ONLY
    above: int | float = -math.inf
    below: int | float = math.inf

    def __contains__(self, value: int | float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        if math.isfinite(self.least) and math.isfinite(self.most):
            return f"{self.least} to {self.most}"
        bounds = {
            f"{self.least} or more": self.least,
            f"above {self.above}": self.above,
            f"{self.most} or less": self.most,
            f"below {self.below}": self.below,
        }
        return " and ".join(text for text, bound in bounds.items() if math.isfinite(bound))


# Of all integers; configs bound further those that JAX counts in 32 bits.
_INTEGERS = Range(-(2**40), 2**40)

Count: TypeAlias = Annotated[int, Range(1)]
Share: TypeAlias = Annotated[float, Range(0, 1)]


def check_ranges(config: Any) -> None:
    """Checks the numbers of a config, also in tuples, against the :class:`Range` of each field.

    Raises:
      UserError: a number is out of its range; None always passes.
    """
    for name, kind in typing.get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            bounds = [_INTEGERS] if isinstance(number, int) else []
            for allowed in [*_ranges(kind), *bounds]:
                if number is not None and number not in allowed:
                    raise UserError(f"--{name.replace('_', '-')} must be {allowed}, not {number}")


def _ranges(kind: Any) -> list[Range]:
    here = [note for note in getattr(kind, "__metadata__", ()) if isinstance(note, Range)]
    return here + [found for part in get_args(kind) for found in _ranges(part)]


class Time(float):
    """A time in seconds, as written in an option: 90.5, 1:30.5 and 0:01:30.5 are the same."""

    def __new__(cls, value: float | str) -> Time:
        """Parses a number or a text.

        Raises:
          ArgumentTypeError: the text is not a time.
        """
        text, seconds = str(value), 0.0
        try:
            for part in text.split(":", 2):
                seconds = 60 * seconds + float(part)
            return super().__new__(cls, seconds)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text[:50]!r} is not a time; give seconds or [HOURS:]MINUTES:SECONDS, such as "
                "90.5 or 1:30"
            ) from None


class FrameSize(tuple[int, int]):
    """Two numbers, as written in an option: WIDTHxHEIGHT."""

    def __new__(cls, text: str, option: str = "--size", form: str = "WIDTHxHEIGHT") -> FrameSize:
        """Parses a text.

        Raises:
          UserError: it has another form.
        """
        if not (found := re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text, re.ASCII)):
            raise UserError(f"{option}={text[:50]}: must be {form}")
        return super().__new__(cls, map(int, found.groups()))


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one line (:class:`UserError`)."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **keywords)

    def error(self, message: str) -> NoReturn:
        """Replaces argparse's method, which prints the usage and exits.

        Raises:
          UserError: always.
        """
        raise UserError(f"{message} (see --help)")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # "(default: None)" says nothing, and lists read better as they are typed.
        if action.default in (None, False, argparse.SUPPRESS, ()):
            return action.help
        default = action.default
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        return f"{action.help} ({str(shown).replace('%', '%%')})"


def add_fields(parser: argparse.ArgumentParser, config: Any, title: str) -> None:
    """Adds an option for each field of the dataclass ``config``, with its values as defaults.

    Of a system of networks, only those of the networks' configs within it are options, named after
    both, such as ``--fusion-width``.
    """
    _add_fields(parser.add_argument_group(title), config, "")


def _add_fields(group: Any, config: Any, prefix: str) -> None:
    types_of = typing.get_type_hints(type(config))
    help_of = field_help(type(config))
    for name, value in _fields(config):
        if dataclasses.is_dataclass(value):
            _add_fields(group, value, f"{prefix}{name}_")
        elif not _is_system(config):
            group.add_argument(
                f"--{prefix}{name}".replace("_", "-"),
                dest=prefix + name,
                default=value,
                help=help_of.get(name, " "),
                **_how_to_parse(types_of[name]),
            )


def read_fields(arguments: argparse.Namespace, config: Config, prefix: str = "") -> Config:
    """Returns ``config`` with its fields replaced by the options that ``add_fields`` added."""
    values = {}
    for name, value in _fields(config):
        if dataclasses.is_dataclass(value):
            value = read_fields(arguments, value, f"{prefix}{name}_")
        elif not _is_system(config):
            value = getattr(arguments, prefix + name)
        values[name] = tuple(value) if isinstance(value, list) else value
    return type(config)(**values)


def _is_system(config: Any) -> bool:
    return any(dataclasses.is_dataclass(value) for _, value in _fields(config))


def _fields(config: Any) -> list[tuple[str, Any]]:
    return [(field.name, getattr(config, field.name)) for field in dataclasses.fields(config)]


def replaced(config: Config, **values: Any) -> Config:
    """Returns ``config`` with other values for some fields.

    Raises:
      UserError: a value is not among a field's choices, or out of its range.
    """
    types_of = typing.get_type_hints(type(config))
    for name, value in values.items():
        if get_origin(types_of[name]) is Literal and value not in get_args(types_of[name]):
            choices = ", ".join(map(str, get_args(types_of[name])))
            raise UserError(f"--{name.replace('_', '-')} must be one of {choices}, not {value}")
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def field_help(config: type) -> dict[str, str]:
    """Returns the help of the fields, from ``Attributes:`` of a dataclass and its base classes."""
    documented: dict[str, str] = {}
    for kind in config.__mro__:
        section = re.search(r"Attributes:\n(.*)", inspect.cleandoc(kind.__doc__ or ""), re.DOTALL)
        for entry in re.split(r"\n(?=  \w)", section.group(1)) if section else []:
            names, _, text = entry.strip().partition(": ")
            for name in names.split(", "):
                documented.setdefault(name, " ".join(text.split()).replace("%", "%%"))
    return documented


def differing_fields(ours: Any, theirs: Any) -> list[str]:
    """Returns ``name: here X, there Y`` for each field that differs, or for differing types."""
    if type(ours) is not type(theirs):
        return [f"kind: here {type(ours).__name__}, there {type(theirs).__name__}"]
    found = []
    for (name, here), (_, there) in zip(_fields(ours), _fields(theirs), strict=True):
        if dataclasses.is_dataclass(here):
            found += [f"{name} {difference}" for difference in differing_fields(here, there)]
        elif here != there:
            found.append(f"{name}: here {here}, there {there}")
    return found


def from_json(config: type[Config], values: Any, where: str) -> Config:
    """Builds a config from parsed JSON, checked against the types of its fields.

    Raises:
      UserError: fields in ``where`` are unknown, missing, of another type, or refused.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a JSON object, not {type(values).__name__}")
    types_of = typing.get_type_hints(config)
    fields = {field.name: field for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - fields.keys()):
        raise UserError(f"{where}: this version has no {', '.join(unknown)}")
    empty = dataclasses.MISSING
    needed = [n for n, f in fields.items() if f.default is empty and f.default_factory is empty]
    if missing := [name for name in needed if name not in values]:
        raise UserError(f"{where}: {', '.join(missing)} missing")
    for name, value in values.items():
        if not _fits(value, types_of[name]):
            raise UserError(f"{where}: {name} is {value!r}, but must be of type {types_of[name]}")
    try:
        return config(**{name: _tuples(value) for name, value in values.items()})
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return value in parts
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    if kind is int:
        return type(value) is int
    if kind is float:
        return isinstance(value, float) or _fits(value, int)
    return isinstance(value, origin or kind)


def _how_to_parse(kind: Any) -> dict[str, Any]:
    origin = get_origin(kind)
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if origin is Literal:
        return {"choices": get_args(kind)}
    if origin in (typing.Union, types.UnionType):
        (kind,) = [option for option in get_args(kind) if option is not type(None)]
        return _how_to_parse(kind)
    if origin is tuple:
        items = get_args(kind)
        count = "+" if items[-1] is Ellipsis else len(items)
        return {"nargs": count, "type": items[0], "metavar": _metavar(items[0])}
    return {"type": kind, "metavar": _metavar(kind)}


def _metavar(kind: type) -> str:
    return {int: "N", float: "X", str: "TEXT"}.get(kind, kind.__name__.upper())


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """Which processes work together; not needed under SLURM, Open MPI or JobSet.

    Attributes:
      coordinator: address of process 0, as host:port.
      num_processes: how many processes take part.
      process_id: index of this process, from 0.
    """

    coordinator: str | None = None
    num_processes: Count | None = None
    process_id: int | None = None

    def __post_init__(self) -> None:
        check_ranges(self)
        given = [self.coordinator, self.num_processes, self.process_id]
        if any(value is not None for value in given) and None in given:
            raise UserError(
                "--coordinator, --num-processes and --process-id must be given together"
            )
        last = (self.num_processes or 1) - 1
        if self.process_id is not None and self.process_id not in Range(0, last):
            raise UserError(f"--process-id must be {Range(0, last)}, not {self.process_id}")


def add_extension_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--extension`` to a command's options."""
    parser.add_argument(
        "--extension", metavar="FILE", help="a Python file that adds models and presets"
    )


def load_extension(path: Path | str) -> None:
    """Runs the file, which calls ``models.register`` and adds to ``PRESETS``.

    It is code that the user names on the command line; no config or checkpoint can ever lead here.

    Raises:
      UserError: there is no such Python file.
    """
    path = Path(path)
    # A distinct name, so that the file does not replace a Python module of the same name.
    name = f"jaxdeblur_extension_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"--extension={path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"--extension={path}: not valid Python: {error}") from error
