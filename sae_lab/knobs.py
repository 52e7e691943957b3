"""A config field that knows its range and its sentence.

One declaration is the default, the allowed range, the help text, the saved config, the CLI flag and the slider:

    k: int = knob(32, 1, 512, "latents kept per token")
    optimizer: str = knob("adam", choices=("adam", "sgd"), help="who takes the step")
"""

import types
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin, get_type_hints


def knob(default: Any, low=None, high=None, help: str = "", choices: tuple = ()) -> Any:
    """A dataclass field with the range and the sentence that a form, a flag and an error need.

    `None` as a default means "worked out from the rest"; the sentence says how.

    Raises:
        ValueError: if `default` lies outside `[low, high]` or is none of `choices`.
    """
    meta = {"low": low, "high": high, "help": help, "choices": tuple(choices)}
    Knob("default", object, default, optional=True, **meta).check(default)
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Knob:
    """One row of a form: what a panel, a flag or an error needs to know of a config field."""

    name: str
    kind: type
    default: object
    low: int | float | None = None
    high: int | float | None = None
    help: str = ""
    choices: tuple = ()
    optional: bool = False

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is None and not self.optional

    @property
    def reach(self) -> str:
        """The range in words."""
        if self.low is None:
            return ""
        return f"{self.low:g} or more" if self.high >= 2**20 else f"{self.low:g} to {self.high:g}"

    def check(self, value: object) -> None:
        """Raises:
        ValueError: if `value` is of the wrong type or out of range; the message names value, rule and way out.
        """
        if value is None and self.optional:
            return
        wanted = (int, float) if self.kind is float else self.kind
        if not isinstance(value, wanted) or (isinstance(value, bool) and self.kind in (int, float)):
            raise ValueError(f"{self.name}={value!r} must be {self.kind.__name__}. {self.help}".rstrip())
        if self.choices and value not in self.choices:
            raise ValueError(f"{self.name}={value!r} is not one of {', '.join(map(repr, self.choices))}.")
        if self.low is not None and not self.low <= value <= self.high:  # also catches NaN
            raise ValueError(f"{self.name}={value!r} must lie in [{self.low}, {self.high}]. {self.help}".rstrip())

    def read(self, given: Any) -> Any:
        """What was typed, as its kind; what is no such thing stays as it is, for `check` to refuse."""
        if isinstance(given, str):
            text = given.strip()
            if not text or (self.optional and text == "None"):
                return None
            if self.kind is bool:
                given = {"true": True, "false": False}.get(text.lower(), text)
            elif self.kind in (tuple, list):
                parts = (part.strip(" '\"") for part in text.strip("()[]").split(","))
                given = self.kind(_number(part) for part in parts if part)
            else:
                given = _number(text) if self.kind in (int, float) else text
        value = plain(given)
        return int(value) if self.kind is int and isinstance(value, float) and value.is_integer() else value

    def several(self, given: str) -> list[Any]:
        """Values with commas between.

        Raises:
            ValueError: if there is none, or one is wrong.
        """
        found = [self.read(part) for part in given.split(",") if part.strip()]
        if not found:
            raise ValueError(f"{self.name} has no values: give some, with commas between.")
        for value in found:
            self.check(value)
        return found


def knobs(config: type) -> list[Knob]:
    """The form rows of a config class, in declaration order."""
    return list(_rows(config))


def check(config: Any) -> None:
    """Checks every value of a config against its knob; call it in `__post_init__`.

    Raises:
        ValueError: the first value that is out of range, of the wrong type, or no known choice.
    """
    for row in knobs(type(config)):
        value = plain(getattr(config, row.name))
        object.__setattr__(config, row.name, value)
        row.check(value)


class Checked:
    """A config that checks its values against their knobs when it is made."""

    def __post_init__(self) -> None:
        check(self)


def hint(name: str, known: Iterable[str]) -> str:
    """ " Did you mean ...?" where a known name is near, else nothing."""
    close = get_close_matches(name, list(known), 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def plain(value: Any) -> Any:
    """numpy's numbers as Python's own, which JSON knows."""
    if isinstance(value, bool | int | float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


@cache
def _rows(config: type) -> tuple[Knob, ...]:
    hints = get_type_hints(config)
    return tuple(_row(f, hints[f.name]) for f in fields(config))


def _row(f: Field, hint: Any) -> Knob:
    optional = get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)
    if optional:
        (hint,) = (a for a in get_args(hint) if a is not type(None))
    made = None if f.default_factory is MISSING else f.default_factory()
    default = made if f.default is MISSING else f.default
    return Knob(f.name, get_origin(hint) or hint, default, optional=optional, **f.metadata)
