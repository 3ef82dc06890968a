"""The commands of a shell script, as far as scripts that start a training use the shell.

Quotes, line continuations, comments, variables and arrays assigned in the script, `eval` and `bash -c` are followed.
Nothing is run: what only running would tell (an environment variable, `$(date)`, a glob) stays as it is written, marked
so that `quoted` leaves it to the shell that the result is pasted into.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bgectl.errors import DataError

OPEN, CLOSE = "\ue000", "\ue001"
"""Around what follows a `$` that the script does not resolve."""
GLOBS = {"*": "\ue002", "?": "\ue003", "[": "\ue004"}
BLANK = " \t\r"
NAME = re.compile(r"[A-Za-z_]\w*")
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
OPENERS = {"if", "while", "until", "for", "case", "select"}
CLOSERS = {"fi", "done", "esac"}
PASSED_OVER = {"then", "else", "elif", "do", "{", "}", "!", "time"}
CONDITIONS = {"if", "elif", "while", "until"}


@dataclass
class Command:
    """A simple command.

    Attributes:
        words: With what is left to the shell marked; see `quoted`.
        environment: What is set for it, by `X=1 command` or by `export` above it.
        line: Where it starts in the script, from 1.
        notes: What stood around it and is left out.
    """

    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    line: int = 1
    notes: list[str] = field(default_factory=list)


@dataclass
class _State:
    """What the script has set so far."""

    variables: dict[str, str | list[str]] = field(default_factory=dict)
    exported: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    conditional: dict[str, int] = field(default_factory=dict)
    depth: int = 0


def commands_of(text: str) -> list[Command]:
    """The commands of a script, in order; assignments, exports and control words are followed and not returned.

    Raises:
        DataError: A quote or a bracket is still open at the end.
    """
    state = _State()
    found = list(_run(text, state, 1))
    for command in found:
        for name, value in state.exported.items():
            if name not in state.used:
                command.environment.setdefault(name, value)
            elif not re.search(r"\s", value):
                command.notes.append(f"the script also exports {name}={quoted(value)}")
    return found


def _run(text: str, state: _State, first_line: int) -> Iterator[Command]:
    for command in _split(text, state, first_line):
        words = command.words
        while words and words[0] in PASSED_OVER | OPENERS | CLOSERS:
            word = words.pop(0)
            state.depth += (word in OPENERS) - (word in CLOSERS)
            if word in CONDITIONS:
                words.clear()
            elif word in ("for", "select", "case"):
                if word != "case" and words:
                    state.variables.pop(words[0], None)
                words.clear()
        while words and (match := ASSIGNMENT.fullmatch(words[0])):
            command.environment[match[1]] = match[3]
            words.pop(0)
        if not words or words[0] in ("[", "[[", "test", GLOBS["["], GLOBS["["] * 2):
            continue
        if words[0] in ("export", "declare", "local", "readonly", "typeset"):
            for word in words[1:]:
                match = ASSIGNMENT.fullmatch(word)
                if match:
                    _assign(state, command, match[1], match[3], exported=words[0] == "export")
                elif words[0] == "export" and isinstance(state.variables.get(word), str):
                    state.exported[word] = str(state.variables[word])
        elif words[0] == "eval" or (words[0] in ("bash", "sh", "zsh") and words[1:2] in (["-c"], ["-lc"])):
            inner = _without_globs(" ".join(words[1:]) if words[0] == "eval" else "".join(words[2:3]))
            for below in _run(inner, state, command.line):
                below.notes[:0] = command.notes
                below.line = command.line
                yield below
        else:
            for name in sorted(state.conditional.keys() & state.used):
                command.notes.append(
                    f"{name} is set in a branch (line {state.conditional[name]}), which is taken to be followed"
                )
            yield command


def _assign(state: _State, command: Command, name: str, value: str | list[str], *, exported: bool = False) -> None:
    state.variables[name] = value
    if exported and state.depth == 0 and isinstance(value, str):
        state.exported[name] = value
    if state.depth:
        state.conditional[name] = command.line
    else:
        state.conditional.pop(name, None)


class _Text:
    """A position in the script."""

    def __init__(self, text: str, line: int) -> None:
        self.text, self.at, self.first = text, 0, line

    def peek(self, count: int = 1) -> str:
        return self.text[self.at : self.at + count]

    def take(self, count: int = 1) -> str:
        taken = self.peek(count)
        self.at += count
        return taken

    def until(self, end: str, what: str) -> str:
        """The text up to `end`, which is passed over."""
        stop = self.text.find(end, self.at)
        if stop < 0:
            raise DataError(f"{what} is not closed", where=f"line {self.line}")
        taken = self.text[self.at : stop]
        self.at = stop + len(end)
        return taken

    def bracket(self, opened: str, closed: str) -> str:
        """The text up to the bracket that closes the one just passed over, which is passed over too."""
        depth, start, line = 1, self.at, self.line
        while depth:
            letter = self.take()
            if not letter:
                raise DataError(f"`{opened}` is not closed", where=f"line {line}")
            depth += (letter == opened) - (letter == closed)
        return self.text[start : self.at - 1]

    @property
    def line(self) -> int:
        return self.first + self.text.count("\n", 0, self.at)


def _split(text: str, state: _State, first_line: int) -> Iterator[Command]:
    """Simple commands with their words; assignments on their own are carried out."""
    source = _Text(text.replace("\r\n", "\n"), first_line)
    command = Command([], line=first_line)
    heredocs: list[str] = []
    while True:
        while source.peek() and (source.peek() in BLANK or source.peek(2) == "\\\n"):
            source.take(2 if source.peek() == "\\" else 1)
        letter = source.peek()
        if letter == "#":
            source.at = source.text.find("\n", source.at) if "\n" in source.text[source.at :] else len(source.text)
            continue
        if letter == "\n" and command.words and re.match(r"\s+--?[A-Za-z]", source.text[source.at :]):
            # No command begins so: a backslash was lost when the line was copied.
            source.take()
            continue
        if not letter or letter in "\n;|&()":
            operator = source.take()
            if operator and source.peek() == operator and operator in "|&;":
                source.take()
                operator *= 2
            if operator == "|" and command.words:
                rest = re.split(r"[\n;]", source.text[source.at :], maxsplit=1)[0].strip()
                command.notes.append(f"left out: the pipe into `{rest}`")
            if operator == "&" and command.words:
                command.notes.append("left out: the `&` that puts it into the background")
            if command.words:
                yield command
            elif len(command.environment) > 0:
                for name, value in command.environment.items():
                    _assign(state, command, name, value)
            if operator == "\n":
                for end in heredocs:
                    lines = source.text[source.at :].split("\n")
                    stop = next((index for index, line in enumerate(lines) if line.strip() == end), len(lines) - 1)
                    source.at += len("\n".join(lines[: stop + 1])) + 1
                heredocs = []
            if not operator:
                return
            command = Command([], line=source.line)
            continue
        redirected = re.match(r"\d*(?:&>>?|>>?&?|<<<|<<-?|<)", source.text[source.at :])
        if redirected:
            operator = source.take(len(redirected[0]))
            while source.peek() and source.peek() in BLANK:
                source.take()
            target = _words(source, state)
            if operator.startswith("<<") and operator != "<<<":
                heredocs += target
            elif command.words and not operator.endswith(">&"):
                command.notes.append(f"left out: {operator} {' '.join(map(quoted, target))}".rstrip())
            continue
        if not command.words:
            command.line = source.line
            array = re.match(r"([A-Za-z_]\w*)(\+?)=\(", source.text[source.at :])
            if array:
                source.take(len(array[0]))
                inner = list(_split(source.bracket("(", ")").replace("\n", " "), state, source.line))
                former = state.variables.get(array[1], []) if array[2] else []
                items = [*([former] if isinstance(former, str) else former), *(inner[0].words if inner else [])]
                _assign(state, command, array[1], items)
                continue
            match = re.match(r"([A-Za-z_]\w*)(\+?)=", source.text[source.at :])
            if match:
                source.take(len(match[0]))
                former = str(state.variables.get(match[1], "")) if match[2] else ""
                command.environment[match[1]] = former + " ".join(_words(source, state, split=False))
                continue
        command.words += _words(source, state)


def _words(source: _Text, state: _State, *, split: bool = True) -> list[str]:
    """The word at the position; several or none where a variable without quotes is expanded."""
    words = [""]
    quoted_part = False
    start = True
    while source.peek() and source.peek() not in BLANK + "\n;|&()<>":
        letter = source.take()
        if letter == "\\":
            following = source.take()
            words[-1] += "" if following == "\n" else following
        elif letter == "'":
            words[-1] += source.until("'", "a quote '")
            quoted_part = True
        elif letter == '"':
            items = _double(source, state)
            words[-1] += items[0]
            words += items[1:]
            quoted_part = True
        elif letter == "$" and source.peek() == "'":
            source.take()
            words[-1] += source.until("'", "a quote $'").replace("\\n", "\n").replace("\\t", "\t")
            quoted_part = True
        elif letter in "$`":
            value = _expanded(source, state, letter)
            text = " ".join(value)
            for sign, mark in GLOBS.items() if split else ():
                text = text.replace(sign, mark)
            if not split:
                words[-1] += text
                continue
            # Not at the blanks of `$(date +%s)`.
            parts = re.split(rf"[ \t\n]+(?![^{OPEN}]*{CLOSE})", text)
            words[-1] += parts[0]
            words += parts[1:]
        elif letter == "~" and start and re.match(r"/|\s|$", source.peek() or ""):
            words[-1] += f"{OPEN}HOME{CLOSE}"
        else:
            words[-1] += GLOBS.get(letter, letter) if split else letter
        start = False
    if not source.text:
        return []
    return [word for word in words if word or (quoted_part and len(words) == 1)]


def _double(source: _Text, state: _State) -> list[str]:
    """What stands between double quotes, the first of which is passed; several words for `"${array[@]}"` alone."""
    words = [""]
    line = source.line
    while True:
        letter = source.take()
        if not letter:
            raise DataError('a quote " is not closed', where=f"line {line}")
        if letter == '"':
            return words
        if letter == "\\" and source.peek() in ("$", "`", '"', "\\", "\n"):
            following = source.take()
            words[-1] += "" if following == "\n" else following
        elif letter in "$`":
            every = re.match(r"\{\w+\[@\]\}", source.text[source.at :])
            value = _expanded(source, state, letter)
            value = value if every else [" ".join(value)]
            words[-1] += value[0] if value else ""
            words += value[1:]
        else:
            words[-1] += letter


def _expanded(source: _Text, state: _State, letter: str) -> list[str]:
    """The value of what follows a `$`, or a marked word where the script does not tell."""
    if letter == "`":
        return [f"{OPEN}({source.until('`', 'a quote `')}){CLOSE}"]
    if source.peek() == "(":
        source.take()
        return [f"{OPEN}({source.bracket('(', ')')}){CLOSE}"]
    if source.peek() == "{":
        source.take()
        inner = source.bracket("{", "}")
        match = re.fullmatch(r"(\w+)(?:\[[@*]\])?(?::?([-=])(.*))?", inner, re.DOTALL)
        if match and match[1] in state.variables:
            return _value(state, match[1])
        if match and match[2]:
            other = _Text(match[3], source.line)
            words: list[str] = []
            while other.peek():
                words += _words(other, state, split=False)
                other.take()
            return [" ".join(words)]
        return [f"{OPEN}{{{inner}}}{CLOSE}"]
    named = NAME.match(source.text, source.at)
    if named:
        source.take(len(named[0]))
        return _value(state, named[0]) if named[0] in state.variables else [f"{OPEN}{named[0]}{CLOSE}"]
    if source.peek() and source.peek() in "@*#?$!0123456789":
        return [f"{OPEN}{source.take()}{CLOSE}"]
    return ["$"]


def _value(state: _State, name: str) -> list[str]:
    state.used.add(name)
    value = state.variables[name]
    return value if isinstance(value, list) else [value]


def unresolved(word: str) -> list[str]:
    """What the script does not tell: `$HOME`, `$(date)`."""
    return ["$" + text for text in re.findall(f"{OPEN}(.*?){CLOSE}", word, re.DOTALL)]


def _without_globs(text: str) -> str:
    for letter, mark in GLOBS.items():
        text = text.replace(mark, letter)
    return text


def plain(word: str) -> str:
    """The word as it was written, without marks."""
    return re.sub(f"{OPEN}(.*?){CLOSE}", r"$\1", _without_globs(word), flags=re.DOTALL)


def quoted(word: str) -> str:
    """The word in a form that can be pasted: quoted where it must be, but for what is left to the shell."""
    parts = re.split(f"({OPEN}.*?{CLOSE}|[{''.join(GLOBS.values())}])", word, flags=re.DOTALL)
    if len(parts) == 1:
        return shlex.quote(word)
    shown = [
        f'"{plain(part)}"' if part.startswith(OPEN) else plain(part) if part in GLOBS.values() else shlex.quote(part)
        for part in parts if part
    ]  # fmt: skip
    return "".join(shown)


def joined(words: Sequence[str]) -> str:
    """Words as a line."""
    return " ".join(map(quoted, words))
