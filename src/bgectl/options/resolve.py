"""Where values come from: flags, then `--config`, then `bgectl.yaml`, then presets, then the defaults."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from bgectl.commands import COMMANDS
from bgectl.errors import UsageError
from bgectl.options.base import Options, flag_name, flag_of, panels, shape_of
from bgectl.options.common import PresetOptions
from bgectl.options.yaml_file import Key, read_yaml
from bgectl.presets import names, nearest, read_preset, sections, values_for

PROJECT_FILE = Path("bgectl.yaml")
"""Read from the working directory when it is there: one section a command."""


@dataclass(frozen=True)
class Resolved:
    """Options and where each value came from: `flag`, `FILE:LINE`, `preset NAME`, or `default`."""

    options: Options
    sources: Mapping[str, str]


def resolve(
    model: type[Options],
    command: str,
    flags: Mapping[str, Any],
    config: Path | None = None,
    *,
    project: Path | None = PROJECT_FILE,
    fallback: Mapping[str, Any] | None = None,
) -> Resolved:
    """Merge flags over `--config` over the working directory's `bgectl.yaml` over presets over the defaults, and check.

    Any of the three may name the presets; as for other options, the first that does is heard.

    Args:
        model: The command's option model.
        command: Its words, such as `train base`; the section of a sectioned file.
        flags: The values given on the command line, by field name.
        config: The file given as `--config`.
        project: The file read when it exists; None reads none.
        fallback: Values that take the place of defaults.

    Raises:
        UsageError: A file cannot be read, a key is unknown, or a value breaks a rule; all of these are named.
    """
    values: dict[str, Any] = dict(fallback or {})
    sources: dict[str, str] = dict.fromkeys(values, "pipeline")
    problems: list[str] = []
    if project is not None and project.is_file():
        section = section_of(read_yaml(project), command, project)
        problems += _take(section, _line_of(project), values, sources, model)
    if config is not None:
        section = section_of(read_yaml(config), command, config, flat=True)
        problems += _take(section, _line_of(config), values, sources, model)
    for name, value in flags.items():
        values[name], sources[name] = value, "flag"
    if issubclass(model, PresetOptions):
        values, sources = _over_presets(model, command, values, sources)
    problems += _refused(model, values, sources)
    order = [name for names in panels(model).values() for name in names]
    try:
        options = model.model_validate(values)
    except ValidationError as found:
        items = sorted(found.errors(), key=lambda item: order.index(str(item["loc"][0])) if item["loc"] else -1)
        problems += [_said(item, model, sources) for item in items]
        missing = any(item["type"] == "missing" for item in items)
        raise _usage_error(problems, command, missing=missing) from None
    if problems:
        raise _usage_error(problems, command, missing=False)
    return Resolved(options, {name: sources.get(name, "default") for name in order})


def _usage_error(problems: Sequence[str], command: str, *, missing: bool) -> UsageError:
    hint = f"`bgectl {command} --help` lists the options"
    if missing:
        hint += f"; they can also stand in {PROJECT_FILE}, see `bgectl init`"
    return UsageError("\n       ".join(dict.fromkeys(problems)), hint=hint)


def _over_presets(
    model: type[PresetOptions], command: str, values: dict[str, Any], sources: dict[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The user's values over those of the presets that they name.

    Raises:
        UsageError: There is no such preset, or it has no section for the command.
    """
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    given = values.get("preset")
    for name in given if isinstance(given, list) else []:
        if str(name) not in names():
            raise UsageError(f"no preset `{name}`", where=_label("preset", sources), hint=nearest(str(name)))
        found = sections(read_preset(name))
        if command not in found:
            hint = f"it has {', '.join(found)}; `bgectl presets` lists all"
            place = _label("preset", sources)
            raise UsageError(f"preset `{name}` has nothing for `{command}`", where=place, hint=hint)
        section = values_for(found[command], {**merged, **values})
        problems = _take(section, partial(_of_preset, name), merged, origin, model)
        assert not problems, problems
    for name in model.gives_way(values):
        merged.pop(name, None)
        origin.pop(name, None)
    return {**merged, **values}, {**origin, **sources}


def _of_preset(name: str, _: Key) -> str:
    """Where a key of a preset comes from."""
    return f"preset {name}"


def _line_of(file: Path) -> Callable[[Key], str]:
    """Where a key of a file stands."""
    return lambda key: f"{file}:{key.line}"


def _take(
    section: Mapping[Key, Any], place_of: Callable[[Key], str], values: dict[str, Any], sources: dict[str, str],
    model: type[Options],
) -> list[str]:  # fmt: skip
    """Put a section's values in place and return what is wrong with its keys."""
    known = {name: name for name in model.model_fields}
    for name, field in model.model_fields.items():
        known.update({alias.lstrip("-").replace("-", "_"): name for alias in flag_of(field).names})
    problems = []
    seen: set[str] = set()
    for key, value in section.items():
        place = place_of(key)
        found = known.get(key.replace("-", "_"))
        if found is None:
            problems.append(f"{place}: unknown key `{key}`; {did_you_mean(key, list(model.model_fields))}")
        elif found in seen:
            problems.append(f"{place}: `{key}` is another name of a key that is given above")
        else:
            seen.add(found)
            one = shape_of(model.model_fields[found]).many and value is not None and not isinstance(value, list)
            values[found], sources[found] = [value] if one else value, place
    return problems


def _refused(model: type[Options], values: dict[str, Any], sources: Mapping[str, str]) -> Iterable[str]:
    """What pydantic would let through: `true` as the number 1, an empty path as the working directory."""
    for name, value in values.items():
        kind = shape_of(model.model_fields[name]).kind
        for part in value if isinstance(value, list) else [value]:
            if kind in (int, float) and isinstance(part, bool):
                yield f"{_label(name, sources)}: is not a number (given: {str(part).lower()})"
            elif kind is Path and part == "":
                yield f"{_label(name, sources)}: is empty"


def _label(name: str, sources: Mapping[str, str]) -> str:
    source = sources.get(name, "flag")
    return flag_name(name) if source == "flag" else f"{source}: `{name}`"


def _said(item: Any, model: type[Options], sources: Mapping[str, str]) -> str:
    """One of pydantic's findings in our words, with the value as the user gave it."""
    message = item["msg"].removeprefix("Value error, ")
    if not item["loc"]:
        return str(message)
    name = str(item["loc"][0])
    field = model.model_fields[name]
    if item["type"] == "missing":
        positional = flag_of(field).positional
        return f"{name.upper()} (or {flag_name(name)}) is required" if positional else f"{flag_name(name)} is required"
    if item["input"] is None:
        return f"{_label(name, sources)}: has no value"
    text = _wording(item, field) or message
    given = item["input"] if isinstance(item["input"], str) else str(item["input"])
    return f"{_label(name, sources)}: {text} (given: {given!r})"


def _wording(item: Any, field: FieldInfo) -> str | None:
    bound = next(iter((item.get("ctx") or {}).values()), None)
    match item["type"]:
        case "int_parsing" | "int_type" | "int_from_float":
            return "is not a whole number"
        case "float_parsing" | "float_type":
            return "is not a number"
        case "bool_parsing" | "bool_type":
            return "is neither true nor false"
        case "finite_number":
            return "is not a finite number"
        case "string_type":
            return "is not text; put it in quotes"
        case "list_type":
            return "is not a list"
        case "too_short":
            return "needs at least one value"
        case "literal_error":
            return f"is not one of {', '.join(shape_of(field).choices)}"
        case "string_pattern_mismatch":
            metavar = flag_of(field).metavar
            return f"is not of the form {metavar}" if metavar else None
        case "greater_than_equal":
            return f"must be {bound} or more"
        case "greater_than":
            return f"must be more than {bound}"
        case "less_than_equal":
            return f"must be {bound} or less"
        case "less_than":
            return f"must be less than {bound}"
        case _:
            return None


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A hint that names the nearest known word; all of them when none is near and they are few."""
    plain = {name.lower().replace("-", "_"): name for name in known}
    near = difflib.get_close_matches(word.lower().replace("-", "_"), list(plain), n=1, cutoff=0.6)
    if near:
        return f"did you mean `{plain[near[0]]}`?"
    return f"known: {', '.join(known)}" if len(known) <= 12 else "`--help` lists what is known"


def sections_in(path: Path) -> list[str]:
    """The commands that have a section in a file.

    Raises:
        UsageError: The file cannot be read.
    """
    content = read_yaml(path)
    found = []
    for command in COMMANDS:
        part: Any = content
        for word in command.split():
            part = part.get(word) if isinstance(part, dict) else None
        if isinstance(part, dict):
            found.append(command)
    return found


def section_of(content: Mapping[Key, Any], command: str, path: Path, *, flat: bool = False) -> Mapping[Key, Any]:
    """The part of a file that belongs to a command; `train base` is the key `base` in the mapping `train`.

    Args:
        content: The file's mapping.
        command: The command's words.
        path: The file, for messages.
        flat: Whether a file without sections is taken whole.

    Raises:
        UsageError: A section is unknown or is not a mapping.
    """
    heads = {name.split()[0] for name in COMMANDS}
    sectioned = any(key in heads and isinstance(value, dict | None) for key, value in content.items())
    if flat and not sectioned:
        return content
    part: dict[Key, Any] = dict(content)
    place: list[str] = []
    for word in command.split():
        known = {name.split()[len(place)] for name in COMMANDS if name.split()[: len(place)] == place}
        for key in part:
            if key not in known:
                inside = f" under `{' '.join(place)}`" if place else ""
                where = f"{path}:{key.line}"
                raise UsageError(f"unknown section `{key}`{inside}", where=where, hint=_section_hint(key, known, place))
        below = part.get(Key(word, 0)) or {}
        place.append(word)
        if not isinstance(below, dict):
            raise UsageError(f"section `{' '.join(place)}` holds no mapping", where=str(path))
        part = below
    return part


def _section_hint(key: str, known: set[str], place: list[str]) -> str:
    hint = did_you_mean(key, sorted(known))
    if place or hint.startswith("did you mean"):
        return hint
    return f"options stand under their command, such as `mine:`; {hint}"
