"""Write docs/cli.md from the option models, or with `--check` fail if it is not what they say."""

from __future__ import annotations

import sys
from pathlib import Path

from bgectl.commands import COMMANDS
from bgectl.options import MODELS
from bgectl.options.describe import EVERY_COMMAND, Described, describe

PAGE = Path(__file__).parent / "cli.md"
HEAD = """\
# Commands and options

Made from the option models by `make docs`; do not edit it here.

Every option has a long flag, which is also its key in YAML with `_` for `-`. A flag wins over `--config FILE`, that
over the `bgectl.yaml` of the working directory, and that over the default. A list takes several values after one flag,
or the flag several times. A switch is `--flag` or `--no-flag`, and `--flag True` or `--flag False` too. Underscores in
flags are taken for hyphens.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, _contents()]
    for command, summary in COMMANDS.items():
        options = describe(MODELS[command]())
        places = [f"[{option.name.upper()}]" + ("..." if option.shape.many else "")
                  for rows in options.values() for option in rows if option.positional]  # fmt: skip
        usage = " ".join(["bgectl", command, "[OPTIONS]", *places])
        parts.append(f"## bgectl {command}\n\n{summary}\n\n```\n{usage}\n```\n")
        parts += [f"### {panel}\n\n{_table(rows)}" for panel, rows in options.items()]
    parts.append(f"## Options of every command\n\n{_table(EVERY_COMMAND)}")
    return "\n".join(parts)


def _contents() -> str:
    lines = [f"- [bgectl {words}](#bgectl-{words.replace(' ', '-')}): {text}" for words, text in COMMANDS.items()]
    return "\n".join([*lines, "- [Options of every command](#options-of-every-command)", ""])


def _table(rows: list[Described]) -> str:
    lines = ["| Flag | Also | Type | Default | Meaning |", "|-|-|-|-|-|"]
    for option in rows:
        also = ", ".join(f"`{name}`" for name in [*([option.off] if option.off else []), *option.others])
        kind = ", ".join(part for part in (f"`{option.value}`" if option.value else "switch", option.bounds) if part)
        default = "required" if option.required else f"`{option.default}`" if option.default else ""
        cells = [f"`{option.flag}`", also, kind, default, option.text]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Write the page, or check it."""
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit(f"{PAGE} is stale: run `make docs`")


if __name__ == "__main__":
    main()
