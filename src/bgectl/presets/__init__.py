"""Presets: values of options that belong together, a YAML file each, sectioned by command as bgectl.yaml is.

Reading one costs yaml; their names cost nothing but a look into the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bgectl.errors import UsageError

if TYPE_CHECKING:
    from bgectl.options.yaml_file import Key

FOLDER = Path(__file__).parent
ABOUT = "about"
"""The key whose text says what the preset is for and where its values come from; its first line is the summary."""
WHEN = "when"
"""In a section: option → values that hold where that option is given too, whether by this file or by the user."""


def names() -> tuple[str, ...]:
    """All presets."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def preset_text(name: str) -> str:
    """The file.

    Raises:
        UsageError: There is no such preset.
    """
    if name not in names():
        raise UsageError(f"no preset `{name}`", hint=nearest(name))
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def read_preset(name: str) -> Mapping[Any, Any]:
    """What the file holds: `about`, and a section for each command that it has values for.

    Raises:
        UsageError: There is no such preset.
    """
    from bgectl.options.yaml_file import read_yaml

    preset_text(name)
    return read_yaml(FOLDER / f"{name}.yaml")


def sections(content: Mapping[Any, Any]) -> dict[str, Mapping[Key, Any]]:
    """Command → its values; the keys under `train` are commands of two words."""
    found: dict[str, Mapping[Key, Any]] = {}
    for key, value in content.items():
        if key == "train":
            found.update({f"train {kind}": below for kind, below in value.items()})
        elif key != ABOUT:
            found[str(key)] = value
    return found


def values_for(section: Mapping[Key, Any], given: Mapping[str, Any]) -> dict[Key, Any]:
    """A section's values, beside what the user gave.

    Args:
        section: The section.
        given: Values by field name that win over it.
    """
    values = dict(section)
    conditions: Mapping[str, Mapping[Key, Any]] = values.pop(WHEN, {})  # type: ignore[call-overload]
    for option, more in conditions.items():
        if given.get(option) not in (None, False):
            values.update(more)
    return values


def nearest(name: str) -> str:
    """A hint for a name that is no preset's: the one that was likely meant, and all."""
    import difflib

    near = difflib.get_close_matches(name.lower().replace("_", "-"), names(), n=1, cutoff=0.5)
    guess = f"did you mean `{near[0]}`? " if near else ""
    return f"{guess}there are {', '.join(names())}"
