"""`bgectl presets [NAME]`."""

from __future__ import annotations

from typer.core import TyperCommand

from bgectl import console
from bgectl.cli import bind
from bgectl.options.tools import PresetsOptions
from bgectl.presets import ABOUT, names, preset_text, read_preset, sections


def presets(options: PresetsOptions) -> None:
    """List the presets: values of options for known models, with what they are for. With a name, print that one."""
    import json

    wanted = names() if options.name is None else (options.name,)
    form = options.format or ("table" if options.name is None else "yaml")
    if form == "yaml":
        print("---\n".join(preset_text(name) for name in wanted), end="")
        return
    contents = {name: read_preset(name) for name in wanted}
    if form == "json":
        print(json.dumps(contents, indent=2, ensure_ascii=False))
        return
    rows = [
        [name, ", ".join(sections(content)), str(content[ABOUT]).partition("\n")[0]]
        for name, content in contents.items()
    ]
    console.table("Presets", ["name", "for", "about"], rows, on_stdout=True)


def command() -> TyperCommand:
    """The Typer command."""
    return bind.command_of(
        "presets", PresetsOptions, presets, epilog="Example: bgectl presets bge-m3 > my.yaml", project=None
    )
