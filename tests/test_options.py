"""Options: every config field becomes an option, and configs survive a round trip by JSON."""

from __future__ import annotations

import argparse
import dataclasses
import random  # noqa: F401  # what an extension of this name must not replace
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from jaxdeblur.errors import UserError
from jaxdeblur.options import (
    Count,
    FrameSize,
    Parser,
    Range,
    Share,
    Time,
    add_fields,
    check_ranges,
    differing_fields,
    field_help,
    from_json,
    load_extension,
    read_fields,
    replaced,
)
from jaxdeblur.training.step import TrainingConfig


@dataclasses.dataclass(frozen=True)
class Base:
    """A config that another one extends.

    Attributes:
      below: documented in the base.
    """

    below: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True)
class Sample(Base):
    """A config with a field of each type.

    Attributes:
      count: how many, at most 100 %
        of them.
      low, high: the range.
    """

    count: int = 1
    low: float = 0.5
    high: float = 2.0
    kind: Literal["a", "b"] = "a"
    flag: bool = True
    name: str | None = None
    pair: tuple[float, float] = (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class System:
    """A config with others within it."""

    first: Any
    inner: Any
    absent: Any = None
    share: Share = 0.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90.5", 90.5), ("1:30.5", 90.5), ("0:01:30.5", 90.5), ("100:00", 6000), ("01:00:00", 3600)],
)
def test_times(text: str, seconds: float) -> None:
    assert Time(text) == seconds


@pytest.mark.parametrize("text", ["", "1:", ":30", "1:2:3:4", "soon"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a time"):
        Time(text)


def test_a_size_is_width_by_height() -> None:
    assert FrameSize("1280x720") == (1280, 720)
    with pytest.raises(UserError, match="--size=0x720: must be WIDTHxHEIGHT"):
        FrameSize("0x720")


def parse(*arguments: str) -> Sample:
    parser = Parser(prog="test")
    add_fields(parser, Sample(), "sample")
    return read_fields(parser.parse_args(arguments), Sample())


def test_fields_become_options() -> None:
    assert parse() == Sample()
    given = parse("--count=3", "--kind=b", "--no-flag", "--name", "x", "--below", "4", "5", "6")
    assert given == Sample(count=3, kind="b", flag=False, name="x", below=(4, 5, 6))
    assert parse("--pair", "2", "3").pair == (2.0, 3.0)


def test_the_options_of_a_system_are_those_of_its_networks() -> None:
    system = System(Base(), Sample(count=2), None, share=0.5)
    parser = Parser()
    add_fields(parser, Sample(), "data")  # whose names do not clash with the system's
    add_fields(parser, system, "network")
    given = parser.parse_args(["--inner-count=3", "--first-below", "4", "--count=9"])
    expected = System(Base((4,)), Sample(count=3), None, share=0.5)
    assert read_fields(given, system) == expected
    assert read_fields(given, Sample()) == Sample(count=9)
    assert differing_fields(system, expected) == [
        "first below: here (1, 2), there (4,)",
        "inner count: here 2, there 3",
    ]


def test_a_replaced_value_is_one_of_the_choices() -> None:
    assert replaced(Sample(), kind="b", count=4) == Sample(kind="b", count=4)
    with pytest.raises(UserError, match="--kind must be one of a, b, not B"):
        replaced(Sample(), kind="B")


def test_help_comes_from_the_docstrings() -> None:
    documented = field_help(Sample)
    assert documented["count"] == "how many, at most 100 %% of them."
    assert documented["low"] == documented["high"] == "the range."
    assert documented["below"] == "documented in the base."
    parser = Parser(prog="test")
    add_fields(parser, Sample(), "sample")
    text = parser.format_help()
    assert "at most 100 % of them. (1)" in text
    assert "(1 2)" in text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--count=x"], "--count"),
        (["--kind=c"], "--kind"),
        (["--cuont=1"], "--cuont=1"),
        (["--pair", "1"], "--pair"),
        (["stray"], "stray"),
        (["--coun=1"], "--coun=1"),
    ],
)
def test_a_bad_option_is_one_line_that_names_it(arguments: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named) as error:
        parse(*arguments)
    assert "\n" not in str(error.value)


def test_json_round_trip() -> None:
    sample = Sample(name="x", below=())
    assert from_json(Sample, dataclasses.asdict(sample), "here") == sample
    assert from_json(Sample, {"below": [3], "pair": [1, 2]}, "here").below == (3,)


@pytest.mark.parametrize(
    "values",
    [
        [],
        None,
        {"unknown": 1},
        {"count": "1"},
        {"count": True},
        {"count": 1.5},
        {"kind": "c"},
        {"flag": 1},
        {"name": 3},
        {"below": 3},
        {"below": ["a"]},
        {"pair": [1]},
        {"low": None},
    ],
)
def test_json_of_another_type_is_refused(values: object) -> None:
    with pytest.raises(UserError, match="here"):
        from_json(Sample, values, "here")


def test_a_field_without_a_default_has_to_be_there() -> None:
    @dataclasses.dataclass(frozen=True)
    class Named:
        name: str
        count: int = 1

    with pytest.raises(UserError, match=r"^here: name missing$"):
        from_json(Named, {"count": 2}, "here")


def test_differing_fields_are_named() -> None:
    assert differing_fields(Sample(), Sample(count=2)) == ["count: here 1, there 2"]


def test_an_extension_does_not_replace_a_module_of_its_name(tmp_path: Path) -> None:
    file = tmp_path / "random.py"
    file.write_text("")
    load_extension(file)
    assert hasattr(sys.modules["random"], "randint"), "it took the place of Python's own"


def test_what_a_config_refuses_names_the_file() -> None:
    with pytest.raises(
        UserError, match=r"^runs/a/config\.json: --steps must be 1 to 2147483646, not 0$"
    ):
        from_json(TrainingConfig, {"steps": 0}, "runs/a/config.json")


@dataclasses.dataclass(frozen=True)
class Ranges:
    least: Count = 1
    both: Share = 0.5
    open_ends: Annotated[float, Range(above=0, below=2)] = 1.0
    most: Annotated[int, Range(most=3)] = 0
    items: tuple[Annotated[int, Range(0)], ...] = ()
    perhaps: Count | None = None

    def __post_init__(self) -> None:
        check_ranges(self)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"least": 0}, "--least must be 1 or more, not 0"),
        ({"both": 1.5}, "--both must be 0 to 1, not 1.5"),
        ({"both": float("nan")}, "--both must be 0 to 1, not nan"),
        ({"least": float("inf")}, "--least must be 1 or more, not inf"),
        ({"least": 10**30}, f"--least must be -{2**40} to {2**40}, not {10**30}"),
        ({"open_ends": 0.0}, "--open-ends must be above 0 and below 2, not 0.0"),
        ({"open_ends": 2.0}, "--open-ends must be above 0 and below 2, not 2.0"),
        ({"most": 4}, "--most must be 3 or less, not 4"),
        ({"items": (3, -1)}, "--items must be 0 or more, not -1"),
        ({"perhaps": 0}, "--perhaps must be 1 or more, not 0"),
    ],
)
def test_a_number_out_of_its_range_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}$"):
        Ranges(**fields)


def test_the_ends_of_a_range_are_in_it() -> None:
    Ranges(least=1, both=0.0, open_ends=1e-9, most=3, items=(0, 7), perhaps=None)
