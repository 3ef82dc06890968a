"""YAML files of options: reading them with the line of each key, and writing values."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from bgectl.errors import UsageError


class Key(str):
    """A key of a YAML mapping that knows its line."""

    line: int

    def __new__(cls, text: str, line: int) -> Key:
        key = super().__new__(cls, text)
        key.line = line
        return key


def read_yaml(path: Path) -> dict[Key, Any]:
    """The mapping a YAML file holds; an empty file is an empty mapping.

    Raises:
        UsageError: The file cannot be read, is not YAML, or holds no mapping; the message names the line.
    """
    import yaml

    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_loader())  # a SafeLoader
    except OSError as problem:
        raise UsageError(f"cannot be read: {problem.strerror}", where=str(path)) from None
    except UnicodeDecodeError as problem:
        raise UsageError(f"is not UTF-8 (byte {problem.start})", where=str(path)) from None
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        said = getattr(problem, "problem", None) or getattr(problem, "reason", None) or str(problem)
        raise UsageError(f"is not valid YAML: {said}", where=where) from None
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"is not valid YAML: {problem}", where=str(path)) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError("holds no mapping of option names to values", where=str(path))
    return content


@cache
def _loader() -> Any:
    """A SafeLoader made for options.

    It reads `1e-5` as a number, which YAML 1.1 takes for text, and leaves dates as text; keys know their lines, and a
    repeated key is an error.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            lines: dict[str, int] = {}
            for key_node, _ in node.value:
                if not isinstance(key_node, yaml.ScalarNode):
                    raise yaml.constructor.ConstructorError(None, None, "a key is no word", key_node.start_mark)
                if key_node.value in lines:
                    said = f"key `{key_node.value}` stands twice"
                    raise yaml.constructor.ConstructorError(None, None, said, key_node.start_mark)
                lines[key_node.value] = key_node.start_mark.line + 1
                # A key is a word, also where YAML 1.1 takes it for a truth value: `yes`, `on`.
                key_node.tag = "tag:yaml.org,2002:str"
            own = node.start_mark.line + 1
            content = super().construct_mapping(node, deep)
            return {Key(str(key), lines.get(str(key), own)): value for key, value in content.items()}

    _plain_words(Loader)
    return Loader


def _plain_words(cls: Any) -> None:
    """Change what a loader or a dumper takes a word without quotes for: `1e-5` is a number, a date is text."""
    import re

    cls.yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
        for first, pairs in cls.yaml_implicit_resolvers.items()
    }
    number = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
    cls.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))


def yaml_value(value: Any) -> str:
    """A value on one line, to stand behind its key."""
    import yaml

    text: str = yaml.dump(value, Dumper=_dumper(), default_flow_style=True, allow_unicode=True, width=10**9)
    return text.removesuffix("...\n").rstrip("\n")


@cache
def _dumper() -> Any:
    """A SafeDumper for what `_loader` reads, which keeps texts on one line."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: Any, value: str) -> Any:
        # Only between double quotes are line ends written as escapes.
        return dumper.represent_scalar(
            "tag:yaml.org,2002:str", value, style='"' if value.splitlines() not in ([], [value]) else None
        )

    _plain_words(Dumper)
    Dumper.add_representer(str, text)
    return Dumper
