"""What every option model shares: how a field becomes a flag, a YAML key and a line of the help.

An option is written once, as a field with its type, default, bounds and a docstring; the flags, `--help`, YAML keys,
`--print-config`, the JSON schema, the `bgectl.yaml` of `bgectl init` and the docs page are made from it.
"""

from __future__ import annotations

import inspect
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler


@dataclass(frozen=True, init=False)
class Flag:
    """How a field is given on the command line, where its name alone does not say it.

    Args:
        names: Other spellings, such as `-n`; the flag made of the field's name always works too.
        positional: Also taken as a positional argument, in the order of the fields.
        metavar: What stands for the value in `--help`.
        pattern: For a list that a positional argument may follow: only words that match this regular expression
            belong to the list.
        bare: The value of a choice that is given without one, as a switch is.
    """

    names: tuple[str, ...]
    positional: bool
    metavar: str | None
    pattern: str | None
    bare: str | None

    def __init__(
        self, *names: str, positional: bool = False, metavar: str | None = None, pattern: str | None = None,
        bare: str | None = None,
    ) -> None:  # fmt: skip
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "positional", positional)
        object.__setattr__(self, "metavar", metavar)
        object.__setattr__(self, "pattern", pattern)
        object.__setattr__(self, "bare", bare)


class Options(BaseModel):
    """Base of the option models. Groups of options are mixed in; each class's `panel` names its part of `--help`."""

    # pydantic's use_attribute_docstrings would read the same docstrings, but at import and by way of inspect, which
    # costs every start of the program; `describe` reads them when they are shown.
    model_config = ConfigDict(
        extra="forbid", frozen=True, defer_build=True, validate_default=False, protected_namespaces=(),
        arbitrary_types_allowed=False, allow_inf_nan=False,
    )  # fmt: skip

    panel: ClassVar[str] = "Options"

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """pydantic's schema, with the docstring of each field as its description."""
        from bgectl.options.describe import docstrings

        schema = handler.resolve_ref_schema(handler(core_schema))
        for name, text in docstrings(cls).items():
            if name in schema.get("properties", {}):
                schema["properties"][name].setdefault("description", text)
        return schema


def flag_of(field: FieldInfo) -> Flag:
    """The field's `Flag`, or one with nothing special."""
    return next((item for item in field.metadata if isinstance(item, Flag)), Flag())


def flag_name(name: str) -> str:
    """`train_group_size` → `--train-group-size`."""
    return "--" + name.replace("_", "-")


def panels(model: type[Options]) -> dict[str, list[str]]:
    """The fields of each panel.

    A model's own panel comes first, then those of the groups it is made of, in their order; but the panel of the
    positional arguments comes before all others.
    """
    result: dict[str, list[str]] = {}
    placed: set[str] = set()
    fields = model.model_fields
    for cls in model.__mro__:
        own = inspect.get_annotations(cls)
        fresh = [name for name in own if name in fields and name not in placed]
        if fresh:
            result.setdefault(str(cls.__dict__.get("panel", Options.panel)), []).extend(fresh)
            placed.update(fresh)
    return dict(sorted(result.items(), key=lambda item: not any(flag_of(fields[name]).positional for name in item[1])))


@dataclass(frozen=True)
class Shape:
    """What a field's annotation means for a command line."""

    kind: type
    """bool, int, float, str or Path; the type of one value."""
    many: bool = False
    choices: tuple[str, ...] = ()


def shape_of(field: FieldInfo) -> Shape:
    """Reduce the annotation: `X | None` is X, `list[X]` is many X, a Literal is a choice, other classes are text."""
    return _shape(field.annotation)


def _shape(annotation: Any) -> Shape:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _shape(next(part for part in get_args(annotation) if part is not type(None)))
    if origin is dict:
        return Shape(str, many=True)
    if origin in (list, tuple):
        inner = _shape(get_args(annotation)[0])
        return Shape(inner.kind, many=True, choices=inner.choices)
    if origin is Literal:
        return Shape(str, choices=tuple(str(choice) for choice in get_args(annotation)))
    if hasattr(annotation, "__metadata__"):
        return _shape(annotation.__origin__)
    return Shape(annotation if annotation in (bool, int, float, Path) else str)
