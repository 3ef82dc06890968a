"""What the pages of the documentation show: commands, files and programs, in the order in which they stand."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^(?P<indent> *)(?P<mark>`{3,}) *(?P<language>\w*)(?P<rest>[^`\n]*)$")
TITLE = re.compile(r'title="([^"]+)"')


@dataclass
class Block:
    """A fenced block.

    Attributes:
        page: Of the repository, such as docs/how-to/mine.md.
        line: Of its first fence.
        language: What stands behind the fence.
        title: The file that it shows, or nothing.
        text: Without the fences and their indentation.
    """

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def where(self):
        """For messages."""
        return f"{self.page}:{self.line}"


@dataclass
class Shown:
    """A command of a console block, its continued lines joined, and the lines that are shown under it."""

    page: str
    line: int
    text: str
    output: list[str] = field(default_factory=list)

    @property
    def where(self):
        """For messages."""
        return f"{self.page}:{self.line}: {self.text}"


def pages():
    """All pages of the documentation and the README, as paths in the repository; the generated page is left out."""
    found = [path for path in sorted((ROOT / "docs").rglob("*.md")) if path.name != "cli.md"]
    return ["README.md", *(str(path.relative_to(ROOT)) for path in found)]


def blocks(page):
    """The fenced blocks of a page, in order."""
    found, opened = [], None
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        match = FENCE.match(line)
        if opened is None and match:
            title = TITLE.search(match["rest"])
            opened = match["indent"], match["mark"]
            found.append(Block(page, number, match["language"], title[1] if title else "", ""))
        elif opened is not None and match and match["mark"] == opened[1] and not match["language"]:
            opened = None
        elif opened is not None:
            found[-1].text += line.removeprefix(opened[0]) + "\n"
    assert opened is None, f"{page}: a block is not closed"
    return found


def commands(block):
    """The commands of a console block: lines after `$ `, with the lines that a backslash joins to them."""
    found, goes_on = [], False
    for offset, line in enumerate(block.text.splitlines(), 1):
        if line.startswith("$ "):
            found.append(Shown(block.page, block.line + offset, line[2:]))
        elif goes_on:
            found[-1].text = f"{found[-1].text.removesuffix(chr(92)).rstrip()} {line.strip()}"
        else:
            assert found, f"{block.where}: a console block begins with a command"
            found[-1].output.append(line)
        goes_on = line.endswith("\\") and (goes_on or line.startswith("$ "))
    return found


def joined_lines(text):
    """Lines of a script or of YAML with continuations joined, without indentation and comments."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")]


def bgectl_words(text):
    """The words after `bgectl` of each call in a command line; None where it calls something else.

    The call may stand behind another program that starts it (srun, torchrun, exec, time), with variables of a shell.
    """
    match = re.search(r"(?:^|[\s(|])(?:-m )?bgectl (.*)$", text)
    if match is None:
        return None
    lexer = shlex.shlex(match[1], posix=True, punctuation_chars="|;&<>()")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:
        return None
    # What is quoted may hold such a character too, and is never made of them alone.
    ends = [number for number, word in enumerate(words) if re.fullmatch(r"[|;&<>()]+", word)]
    return words[: ends[0]] if ends else words
