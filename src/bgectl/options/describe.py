"""What `--help`, the docs page and `bgectl init` say about an option, read from its model."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from bgectl.options.base import Options, Shape, flag_name, flag_of, panels, shape_of

SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
TYPES = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH", bool: ""}


@dataclass(frozen=True)
class Described:
    """An option in words."""

    name: str
    """The field's name, which is the YAML key."""
    flag: str
    """The long flag."""
    others: tuple[str, ...]
    """Other spellings of the flag."""
    shape: Shape
    value: str
    """What stands for the value; empty for a switch."""
    text: str
    """The field's docstring, on one line."""
    default: str | None = None
    """The default as one would write it on a command line; None where there is nothing to say."""
    required: bool = False
    bounds: str = ""
    """Such as `>= 0, <= 1`; empty where there are none."""
    positional: bool = False
    pattern: str | None = None
    """What the values of a list look like; see `Flag`."""
    bare: str | None = None
    """The value of a choice that is given without one; see `Flag`."""
    only_on: bool = False
    """A switch without a `--no-` form."""

    @property
    def spellings(self) -> list[str]:
        """Every word that is this flag."""
        off = [] if self.off is None else [self.off]
        return [self.flag, *off, *self.others]

    @property
    def off(self) -> str | None:
        """The flag that turns a switch off."""
        return f"--no-{self.flag[2:]}" if self.shape.kind is bool and not self.only_on else None

    @property
    def spelled(self) -> str:
        """All spellings, short ones first: `-i, --input-file, --input`."""
        short = [name for name in self.others if not name.startswith("--")]
        long = [name for name in self.others if name.startswith("--")]
        main = f"--[no-]{self.flag[2:]}" if self.off else self.flag
        return ", ".join([*short, main, *long])

    @property
    def notes(self) -> str:
        """Bounds and default: `[>= 1; default: 15]`."""
        parts = [self.bounds, "required" if self.required else "", f"default: {self.default}" if self.default else ""]
        said = "; ".join(part for part in parts if part)
        return f"[{said}]" if said else ""


EVERY_COMMAND = [
    Described(
        name="config",
        flag="--config",
        others=(),
        shape=Shape(Path),
        value="FILE",
        text="Read options from this YAML file; flags win over it, and it wins over bgectl.yaml.",
    ),
    Described(
        name="print_config",
        flag="--print-config",
        others=(),
        shape=Shape(bool),
        value="",
        text="Print all options as YAML, each with where it came from, and stop.",
        only_on=True,
    ),
    Described(
        name="debug",
        flag="--debug",
        others=(),
        shape=Shape(bool),
        value="",
        text="Show the traceback when something fails.",
        only_on=True,
    ),
    Described(
        name="verbose",
        flag="--verbose",
        others=("-v",),
        shape=Shape(bool),
        value="",
        text="Say more: where options came from, how long each stage took, and what the libraries say themselves.",
        only_on=True,
    ),
    Described(
        name="quiet",
        flag="--quiet",
        others=("-q",),
        shape=Shape(bool),
        value="",
        text="Show only warnings and errors, and the results on stdout.",
        only_on=True,
    ),
    Described(
        name="log_format",
        flag="--log-format",
        others=(),
        shape=Shape(str, choices=("text", "json")),
        value="text|json",
        text="Form of what is said on stderr; `json` is one object a line, for programs.",
        default="text",
    ),
]
"""What every command takes beside the fields of its model."""


def describe(model: type[Options]) -> dict[str, list[Described]]:
    """Every option of a model, by panel, in the order they are shown."""
    texts = docstrings(model)
    return {
        panel: [_describe(name, model.model_fields[name], texts.get(name, "")) for name in names]
        for panel, names in panels(model).items()
    }


def _describe(name: str, field: FieldInfo, text: str) -> Described:
    flag, shape = flag_of(field), shape_of(field)
    choices = "|".join(shape.choices) + ("..." if shape.many else "") if shape.choices else ""
    value = flag.metavar or choices or TYPES[shape.kind] + ("..." if shape.many else "")
    value = f"[{value}]" if flag.bare else value
    return Described(
        name=name,
        flag=flag_name(name),
        others=flag.names,
        shape=shape,
        value=value,
        text=text,
        default=_default(field),
        required=field.is_required(),
        bounds=", ".join(_bounds(field)),
        positional=flag.positional,
        pattern=flag.pattern,
        bare=flag.bare,
    )


def _bounds(field: FieldInfo) -> Iterator[str]:
    for item in field.metadata:
        for key, sign in SIGNS.items():
            bound = getattr(item, key, None)
            if bound is not None:
                yield f"{sign} {bound}"


def _default(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    value: Any = field.get_default(call_default_factory=True)
    if value is None or value in ([], (), {}, ""):
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " ".join(str(part) for part in value)
    return str(value).replace("\n", "\\n")


def docstrings(model: type[Options]) -> dict[str, str]:
    """The docstring under each field of a model and of the groups it is made of, on one line each."""
    result: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if issubclass(cls, Options):
            result.update(_docstrings_of_module(cls.__module__).get(cls.__qualname__, {}))
    return {name: text for name, text in result.items() if name in model.model_fields}


@cache
def _docstrings_of_module(module: str) -> dict[str, dict[str, str]]:
    """Class → field → docstring, for the classes at the top of a module."""
    loader: Any = getattr(sys.modules[module], "__loader__", None)
    source = loader.get_source(module) if hasattr(loader, "get_source") else None
    found: dict[str, dict[str, str]] = {}
    for statement in ast.parse(source or "").body:
        if isinstance(statement, ast.ClassDef):
            pairs = zip(statement.body, statement.body[1:], strict=False)
            found[statement.name] = {
                field.target.id: " ".join(below.value.value.split())
                for field, below in pairs
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            }  # fmt: skip
    return found
