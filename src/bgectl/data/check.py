"""Everything that can be wrong with one line of a training file.

`row_flaws` judges a parsed row and is quick about clean ones, for it runs on every row of every command.
`examine_line` judges bytes; it is called for lines that did not pass, and takes the time to find columns and hints.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from bgectl.data.rows import TYPES, Flaw, Severity
from bgectl.jsonl import json_type

KNOWN = (
    "query", "pos", "neg", "pos_scores", "neg_scores", "prompt", "type", "category", "batch_size", "train_group_size",
)  # fmt: skip
"""The keys of a row that mean something."""

MEANT_BY = {
    "queries": "query", "question": "query", "anchor": "query", "sentence": "query", "text": "query",
    "positive": "pos", "positives": "pos", "positive_passages": "pos", "passages": "pos", "passage": "pos",
    "documents": "pos", "answer": "pos", "answers": "pos", "response": "pos",
    "negative": "neg", "negatives": "neg", "negative_passages": "neg", "hard_negatives": "neg", "hard_neg": "neg",
    "positive_scores": "pos_scores", "negative_scores": "neg_scores", "teacher_scores": "pos_scores",
    "instruction": "prompt", "instruct": "prompt", "task_type": "type",
    "batchsize": "batch_size", "group_size": "train_group_size",
}  # fmt: skip
"""Words that other tools use, or that are written by mistake."""

KNOWN_KEYS = frozenset(KNOWN)
_TEXT_KEYS = frozenset(("query", "pos", "neg"))
_NUMBERS = frozenset((int, float))
_strip = str.strip
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Problem:
    """A defect with its place.

    Attributes:
        file: The file as the user named it, or `-`.
        line: Counted from 1; None when it concerns the file as a whole.
        column: Counted from 1, in characters; None where no one column is to blame.
        field: The field, such as `neg[3]`.
        code: A stable short name.
        severity: `error` or `warning`.
        message: What is wrong.
        hint: What to do.
    """

    file: str
    line: int | None
    column: int | None
    field: str | None
    code: str
    severity: Severity
    message: str
    hint: str

    @property
    def where(self) -> str:
        """`file:line:column`, as far as it is known."""
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)


def row_flaws(raw: dict[str, Any], *, icl: bool = False, distill: bool = False, negatives: int = 0) -> list[Flaw]:
    """What is wrong with a parsed row; empty for a clean one.

    Args:
        raw: The object as read.
        icl: Rows of type symmetric_clustering need a `category`.
        distill: Rows need teacher scores.
        negatives: Warn of fewer negatives than this.
    """
    if texts_if_clean(raw, icl, distill, negatives):
        return []
    return list(_flaws(raw, icl, distill, negatives))


def texts_if_clean(raw: dict[str, Any], icl: bool, distill: bool, negatives: int) -> list[str] | None:
    """The query, the positives and the negatives of a row without flaws; None where there may be one."""
    # Each test runs in C over all texts at once; a TypeError means that something is no string.
    try:
        pos, neg = raw["pos"], raw["neg"]
        if type(pos) is list and type(neg) is list and pos and len(neg) >= negatives:
            texts = [raw["query"], *pos, *neg]
            if (
                all(map(_strip, texts))
                and len(set(texts)) == len(texts)
                and "\0" not in "".join(texts)
                and ((len(raw) == 3 and not distill) or _clean_labels(raw, icl, distill))
            ):
                return texts
    except (KeyError, TypeError):
        pass
    return None


def _clean_labels(raw: dict[str, Any], icl: bool, distill: bool) -> bool:
    """Whether the fields beside the texts are certainly all right."""
    for key, value in raw.items():
        if key in _TEXT_KEYS or value is None:
            continue
        if key == "pos_scores" or key == "neg_scores":
            if (
                type(value) is not list
                or len(value) != len(raw[key[:3]])
                or not _NUMBERS.issuperset(map(type, value))
                or not all(map(math.isfinite, value))
            ):
                return False
        elif key == "type":
            if value not in TYPES:
                return False
        elif key == "prompt" or key == "category":
            if type(value) is not str or "\0" in value:
                return False
        elif key == "batch_size" or key == "train_group_size":
            if type(value) is not int or value < 1:
                return False
        elif _stands_for_a_missing_key(key, raw):
            return False
    if icl and raw.get("type") == "symmetric_clustering" and not (raw.get("category") or "").strip():
        return False
    unscored = (raw.get("pos_scores") is None) + (raw.get("neg_scores") is None)
    return unscored == 0 or (unscored == 2 and not distill)


def _flaws(raw: dict[str, Any], icl: bool, distill: bool, negatives: int) -> Iterator[Flaw]:
    """Every flaw, at leisure."""
    yield from _query_flaws(raw)
    yield from _list_flaws(raw, "pos", negatives)
    yield from _list_flaws(raw, "neg", negatives)
    yield from _repeat_flaws(raw)
    yield from _score_flaws(raw, distill)
    yield from _label_flaws(raw, icl)
    yield from _column_flaws(raw)
    yield from _key_flaws(raw)


def _query_flaws(raw: dict[str, Any]) -> Iterator[Flaw]:
    if "query" not in raw:
        yield _missing(raw, "query", "a string")
    else:
        yield from _text_flaws("query", raw["query"])


def _text_flaws(field: str, value: object) -> Iterator[Flaw]:
    """Flaws of one text."""
    if not isinstance(value, str):
        yield Flaw(field, "wrong-type", f"expected a string, found {json_type(value)}", "write the text in quotes")
    elif not value.strip():
        found = "is empty" if not value else "holds only white space"
        yield Flaw(field, "empty-text", f"the text {found}", "give it a text, or take it out")
    else:
        yield from _character_flaws(field, value)


def _character_flaws(field: str, value: str) -> Iterator[Flaw]:
    """Characters that survive JSON and break what comes after."""
    if "\0" in value:
        hint = "often the mark of a wrong decoding step; take it out"
        yield Flaw(field, "nul-character", "the text holds the character U+0000", hint, "warning")
    if _LONE_SURROGATE.search(value):
        hint = "half of a \\ud83d\\ude00 pair was cut off; cut texts by character, not by UTF-16 unit"
        yield Flaw(field, "lone-surrogate", "the text holds half of a surrogate pair, which is no character", hint)


def _list_flaws(raw: dict[str, Any], side: str, negatives: int) -> Iterator[Flaw]:
    """Flaws of `pos` or `neg`."""
    value = raw.get(side)
    if side == "pos" and side not in raw:
        yield _missing(raw, side, "a list of strings")
        return
    if side == "neg" and value is None:
        if negatives:
            yield too_few_negatives("neg" if side in raw else "", 0, negatives)
        return
    if not isinstance(value, list):
        hint = f'a single text is a list too: "{side}": ["..."]' if isinstance(value, str) else "give a list of strings"
        yield Flaw(side, "wrong-type", f"expected a list of strings, found {json_type(value)}", hint)
        return
    if side == "pos" and not value:
        yield Flaw(side, "empty-pos", "`pos` is empty; a row needs a positive", "give one, or take the row out")
    if side == "neg" and len(value) < negatives:
        yield too_few_negatives(side, len(value), negatives)
    for index, text in enumerate(value):
        yield from _text_flaws(f"{side}[{index}]", text)


def too_few_negatives(field: str, found: int, wanted: int) -> Flaw:
    """The flaw of a row whose group needs more negatives than it has."""
    if not found:
        message = f"no negatives; a group of {wanted + 1} needs {wanted}"
        return Flaw(field, "no-negatives", message, "`bgectl mine` finds some", "warning")
    message = f"{found} negative{'s' * (found > 1)}; a group of {wanted + 1} needs {wanted}, so some would be repeated"
    return Flaw(field, "few-negatives", message, "`bgectl mine -n` finds more, or lower --train-group-size", "warning")


def _repeat_flaws(raw: dict[str, Any]) -> Iterator[Flaw]:
    """Texts that stand in a row more than once."""
    query = raw.get("query")
    first: dict[str, str] = {}
    for side, name in (("pos", "positive"), ("neg", "negative")):
        texts = raw.get(side)
        for index, text in enumerate(texts if isinstance(texts, list) else ()):
            field = f"{side}[{index}]"
            if not isinstance(text, str) or not text.strip():
                continue
            if text == query:
                hint = f"a text matches itself always, so nothing is learnt; give another {name}"
                yield Flaw(field, f"query-is-{name}", f"the {name} is the query itself", hint, "warning")
            before = first.setdefault(text, field)
            if before == field:
                continue
            if before.startswith(side):
                hint = "keep one" if side == "pos" else "keep one (and its score)"
                yield Flaw(field, f"duplicate-{name}", f"the same text as {before}", hint, "warning")
            else:
                hint = "a passage cannot be both relevant and not; take one out"
                yield Flaw(field, "positive-is-negative", f"the same text as {before}", hint)


def _score_flaws(raw: dict[str, Any], distill: bool) -> Iterator[Flaw]:
    """Flaws of the teacher scores."""
    given = [side for side in ("pos", "neg") if raw.get(f"{side}_scores") is not None]
    for side in given:
        yield from _scores_of_side(raw, side)
    missing = [side for side in ("pos", "neg") if side not in given]
    if not given and distill:
        hint = "`bgectl score` adds them; without, the row trains with no distillation term"
        yield Flaw("", "missing-scores", "the row has no teacher scores", hint, "warning")
    elif len(given) == 1 and (missing[0] == "pos" or raw.get("neg")):
        hint = "`bgectl score` writes both; with one of them the row counts as not scored"
        message = f"`{given[0]}_scores` without `{missing[0]}_scores`"
        yield Flaw(f"{given[0]}_scores", "one-sided-scores", message, hint, "error" if distill else "warning")


def _scores_of_side(raw: dict[str, Any], side: str) -> Iterator[Flaw]:
    field = f"{side}_scores"
    scores, texts = raw[field], raw.get(side)
    if not isinstance(scores, list):
        message = f"expected a list of numbers, found {json_type(scores)}"
        yield Flaw(field, "wrong-type", message, f"one for each text in `{side}`")
        return
    count = len(texts) if isinstance(texts, list) else 0 if texts is None else len(scores)
    if len(scores) != count:
        message = f"{len(scores)} scores for {count} texts in `{side}`"
        yield Flaw(field, "score-count", message, "one score for each text, in their order; `bgectl score` writes them")
    for index, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float):
            message = f"expected a number, found {json_type(score)}"
            yield Flaw(f"{field}[{index}]", "wrong-type", message, "scores are numbers without quotes")
        elif not _finite(score):
            hint = "score the row again, or take it out"
            yield Flaw(f"{field}[{index}]", "non-finite", f"the score is {_as_json(score)}, not a finite number", hint)


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def _as_json(number: float) -> str:
    if isinstance(number, int):
        return "too large"
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _label_flaws(raw: dict[str, Any], icl: bool) -> Iterator[Flaw]:
    """Flaws of `prompt`, `type` and `category`."""
    for key in ("prompt", "type", "category"):
        value = raw.get(key)
        if value is not None and not isinstance(value, str):
            message = f"expected a string or null, found {json_type(value)}"
            yield Flaw(key, "wrong-type", message, "write it in quotes, or leave the key out")
        elif isinstance(value, str):
            yield from _character_flaws(key, value)
    kind, category = raw.get("type"), raw.get("category")
    if isinstance(kind, str) and kind not in TYPES:
        near = difflib.get_close_matches(kind.lower(), TYPES, n=1, cutoff=0.6)
        hint = f"did you mean `{near[0]}`?" if near else "leave it out, or take one of these: " + ", ".join(TYPES)
        yield Flaw("type", "unknown-type", f"unknown type {kind[:50]!r}", hint)
    blank = category is None or (isinstance(category, str) and not category.strip())
    if icl and kind == "symmetric_clustering" and blank:
        hint = "icl shows the category in place of the positive; add it"
        message = "`category` is missing" if "category" not in raw else "`category` is empty"
        yield Flaw("category" if "category" in raw else "", "missing-category", message, hint)


def _column_flaws(raw: dict[str, Any]) -> Iterator[Flaw]:
    """Flaws of `batch_size` and `train_group_size`."""
    for key in ("batch_size", "train_group_size"):
        if raw.get(key) is None:
            continue
        value = raw[key]
        hint = "the first row's value holds for the whole file"
        if isinstance(value, bool) or not isinstance(value, int):
            found = f"the number {value}" if isinstance(value, float) else json_type(value)
            yield Flaw(key, "wrong-type", f"expected a whole number, found {found}", hint)
        elif value < 1:
            yield Flaw(key, "out-of-range", f"expected at least 1, found {value}", hint)


def _key_flaws(raw: dict[str, Any]) -> Iterator[Flaw]:
    """Unknown keys that stand for a known one which the row lacks."""
    for key in raw:
        if _stands_for_a_missing_key(key, raw):
            message = f"unknown key `{key[:50]}`, which is ignored"
            yield Flaw(key, "unknown-key", message, f"did you mean `{meant_by(key)}`?", "warning")


def _stands_for_a_missing_key(key: str, raw: dict[str, Any]) -> bool:
    return key not in KNOWN_KEYS and (meant_by(key) or key) not in raw


@lru_cache(maxsize=4096)
def meant_by(key: str) -> str | None:
    """The known key that an unknown one looks like."""
    word = key.strip().lower().replace("-", "_").replace(" ", "_")
    if word in KNOWN_KEYS:
        return word
    near = difflib.get_close_matches(word, [*MEANT_BY, *KNOWN], n=1, cutoff=0.75)
    return MEANT_BY.get(near[0], near[0]) if near else None


def _missing(raw: dict[str, Any], field: str, what: str) -> Flaw:
    likely = next((key for key in raw if key not in KNOWN_KEYS and meant_by(key) == field), None)
    hint = f"rename `{likely[:50]}` to `{field}`?" if likely else f"every row needs `{field}`, {what}"
    return Flaw(field, "missing-field", f"`{field}` is missing", hint)


@dataclass(frozen=True, slots=True)
class Placed:
    """A flaw and the column it stands at."""

    flaw: Flaw
    column: int | None


def examine_line(
    line: bytes, *, first: bool = False, cut_off: bool = False, icl: bool = False, distill: bool = False,
    negatives: int = 0,
) -> list[Placed]:  # fmt: skip
    """All that is wrong with the bytes of one line, in the order of the columns.

    Args:
        line: The line, with or without its line end.
        first: It is the first line of its file, where a byte order mark may stand.
        cut_off: It is the last line and has no line end.
        icl: See `row_flaws`.
        distill: See `row_flaws`.
        negatives: See `row_flaws`.
    """
    found: list[Placed] = []
    text = _decode(line.rstrip(b"\r\n"), found)
    if text.startswith("\ufeff"):
        found.append(_byte_order_mark(first))
        # A space in its place keeps the columns.
        text = " " + text[1:]
    if not text.strip(" \t\r\n"):
        return found
    raw = _parse(text, cut_off, found)
    if isinstance(raw, dict):
        found += [
            Placed(flaw, column_of(text, flaw.field, key=flaw.code == "unknown-key"))
            for flaw in _flaws(raw, icl, distill, negatives)
        ]
        found += _duplicate_keys(text)
    return sorted(found, key=lambda placed: placed.column or 0)


def _decode(line: bytes, found: list[Placed]) -> str:
    """The line's text; bytes that are not UTF-8 are noted once and replaced, so that the rest can be judged."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as problem:
        column = len(line[: problem.start].decode("utf-8")) + 1
        message = f"byte 0x{line[problem.start]:02x} is not UTF-8"
        hint = "save the file as UTF-8, e.g. `iconv -f WINDOWS-1252 -t UTF-8`"
        if problem.end >= len(line) and "end of data" in problem.reason:
            message, hint = "the line ends inside a character", "the text was cut by bytes; cut it by characters"
        found.append(Placed(Flaw("", "not-utf8", message, hint), column))
        return line.decode("utf-8", "replace")


def _byte_order_mark(first: bool) -> Placed:
    if first:
        hint = "other programs stumble over it; --fix leaves it out"
        return Placed(Flaw("", "bom", "the file starts with a byte order mark", hint, "warning"), 1)
    hint = "files were joined that each had one; take it out"
    return Placed(Flaw("", "bom", "a byte order mark inside the file", hint), 1)


def _parse(text: str, cut_off: bool, found: list[Placed]) -> Any:
    """The line's value, also where it is only almost JSON; None when nothing can be made of it."""
    strict: orjson.JSONDecodeError | None = None
    value: Any = None
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as problem:
        strict = problem
        try:
            value = json.loads(text, strict=False)
        except json.JSONDecodeError as worse:
            found.append(_bad_json(text, worse.msg, worse.pos, cut_off))
            return None
        except (RecursionError, ValueError):
            # ValueError: an integer of more digits than Python converts.
            hint = "write rows with a JSON library"
            found.append(Placed(Flaw("", "bad-json", f"not valid JSON: {problem.msg}", hint), problem.colno))
            return None
    if not isinstance(value, dict):
        code, hint = "not-object", 'each line is one object such as {"query": "...", "pos": ["..."], "neg": ["..."]}'
        if any(isinstance(item, dict) for item in _as_list(value)):
            code, hint = "json-array", ARRAY_HINT
        column = len(text) - len(text.lstrip()) + 1
        found.append(Placed(Flaw("", code, f"expected a JSON object, found {json_type(value)}", hint), column))
        return None
    if strict is not None:
        found += _almost_json(text, value, strict)
    return value


ARRAY_HINT = "the file is one JSON array; write a row a line: `jq -c '.[]' FILE > FILE.jsonl`"


def _almost_json(text: str, raw: dict[str, Any], problem: orjson.JSONDecodeError) -> list[Placed]:
    """What a lenient parser reads and a strict one refuses, as far as `_flaws` does not find it in a known field."""
    if "control character" in problem.msg:
        code = ord(text[problem.pos]) if problem.pos < len(text) else 0
        flaw = Flaw(
            "", "control-character", f"the control character U+{code:04X} stands unescaped in a string",
            "write it as \\t, \\n or \\u00XX, or take it out",
        )  # fmt: skip
        return [Placed(flaw, problem.colno)]
    scores = [score for side in ("pos", "neg") for score in _as_list(raw.get(f"{side}_scores"))]
    if any(isinstance(score, float) and not _finite(score) for score in scores):
        return []
    texts = [raw.get("query"), *_as_list(raw.get("pos")), *_as_list(raw.get("neg")), raw.get("prompt")]
    if any(isinstance(item, str) and _LONE_SURROGATE.search(item) for item in texts):
        return []
    return [_bad_json(text, problem.msg, problem.pos, cut_off=False)]


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _bad_json(text: str, message: str, position: int, cut_off: bool) -> Placed:
    """A line that is no JSON, with a guess at how it came about."""
    rest = text[position:]
    before = text[:position].rstrip()
    code, hint = "bad-json", "write rows with a JSON library, one object a line"
    message = message[:1].lower() + message[1:]
    word = re.match(r"-?(NaN|Infinity|None|True|False|nan|inf)\b", rest)
    if cut_off and text.lstrip().startswith("{") and not text.rstrip().endswith("}"):
        code, hint = "truncated-line", "the file was cut off while it was written or copied; make it again"
    elif message.startswith("unterminated string") or not rest.strip():
        hint = "the line ends before the object does; a line break inside a text is written \\n"
    elif word and word[1] in {"None", "True", "False"}:
        hint = f"`{word[0]}` is Python, not JSON: write rows with json.dumps, not with str()"
    elif word or "infinity" in message:
        code, hint = "non-finite", f"{word[0] if word else 'so large a number'} is not JSON; leave the value out"
    elif rest.startswith("'"):
        hint = "JSON wants double quotes: write rows with json.dumps, not with str()"
    elif message.startswith("illegal trailing comma") or (rest[0] in "}]," and before.endswith((",", "[", "{"))):
        hint = "take the extra comma out"
    elif rest.lstrip().startswith(("//", "/*", "#")):
        hint = "JSON has no comments"
    elif message.startswith("extra data"):
        hint = "a line holds one object and nothing else"
        if "\r" in text[:position]:
            hint = "the file's lines end in a bare carriage return; convert them: `tr '\\r' '\\n'`"
        elif rest.startswith("{"):
            hint = "two objects on one line; each needs a line of its own"
        elif rest.startswith(","):
            hint = "no comma between rows"
    elif message.startswith("expecting property name") and re.match(r"\w", rest):
        hint = "names stand in double quotes"
    elif message.startswith("invalid \\"):
        hint = "a backslash is written \\\\"
    elif message.startswith("expecting ',' delimiter") and before.endswith('"'):
        hint = 'a comma is missing, or a quote inside a text is not written \\"'
    elif "surrogate" in message:
        code = "lone-surrogate"
        hint = "half of a \\ud83d\\ude00 pair was cut off; cut texts by character, not by UTF-16 unit"
    return Placed(Flaw("", code, f"not valid JSON: {message}", hint), min(position, len(text.rstrip())) + 1)


_SPACES = re.compile(r"[ \t\r\n]*")
_VALUE = json.JSONDecoder(strict=False).raw_decode
_FIELD = re.compile(r"(.*)\[(\d+)\]", re.DOTALL)


def _members(text: str) -> Iterator[tuple[str, int, int]]:
    """(key, offset of the key, offset of the value) of an object, as far as it can be read."""
    place = _skip(text, 0)
    if text[place : place + 1] != "{":
        return
    try:
        while text[place] != "}":
            start = _skip(text, place + 1)
            key, place = _VALUE(text, start)
            value = _skip(text, _skip(text, place) + 1)
            yield key, start, value
            place = _skip(text, _VALUE(text, value)[1])
    except (IndexError, ValueError, RecursionError):
        return


def _skip(text: str, place: int) -> int:
    match = _SPACES.match(text, place)
    return match.end() if match else place


def column_of(text: str, field: str, *, key: bool = False) -> int:
    """The column of a field's value in the text of an object (of its key, if asked); that of the object if it has none.

    Args:
        text: One line.
        field: A key, or a list's item such as `neg[3]`.
        key: Wanted is the column of the key.
    """
    found = _skip(text, 0)
    if not field:
        return found + 1
    item = None if key else _FIELD.fullmatch(field)
    name, index = (item[1], int(item[2])) if item else (field, None)
    for member, start, value in _members(text):
        # Of a repeated key the last counts, as for the parser.
        if member == name:
            found = start if key else value if index is None else _item(text, value, index)
    return found + 1


def _item(text: str, place: int, index: int) -> int:
    """The offset of a list's item, or of the list."""
    start = place
    try:
        place = _skip(text, place + 1)
        for _ in range(index):
            place = _skip(text, _skip(text, _VALUE(text, place)[1]) + 1)
    except (IndexError, ValueError, RecursionError):
        return start
    return place


def _duplicate_keys(text: str) -> Sequence[Placed]:
    seen: dict[str, int] = {}
    found = []
    for key, start, _ in _members(text):
        if key in seen:
            message = f"the key `{key[:50]}` stands twice; only the last counts"
            found.append(Placed(Flaw(key, "duplicate-key", message, "keep one of them"), start + 1))
        seen[key] = start
    return found
