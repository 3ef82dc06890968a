"""A corpus of broken files: each defect is named at its place, hides none after it, and costs no half-written file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgectl.data import scan
from bgectl.data.scan import Checks
from bgectl.data.validate import Report, as_json, check_and_fix, check_files, print_report
from bgectl.errors import BgectlError

SMALL = Checks(group_size=2, batch_size=1)


def row(query: str = "q", **changes: Any) -> bytes:
    """A good row, with fields changed; a field set to `...` is left out."""
    values = {"query": query, "pos": [f"{query} p"], "neg": [f"{query} n"]} | changes
    return json.dumps({key: value for key, value in values.items() if value is not ...}, ensure_ascii=False).encode()


def text(*lines: bytes | str) -> bytes:
    return b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)


GOOD, LAST = row("first"), row("last")


def second(line: bytes | str) -> bytes:
    """The defect in the second line of three."""
    return text(GOOD, line, LAST)


class Case(NamedTuple):
    """A broken file and what must be said of it; None for a place that is not to be compared."""

    name: str
    data: bytes
    line: int | None
    code: str
    column: int | None = None
    field: str | None = None
    severity: str = "error"
    hint: str = ""
    checks: Checks = SMALL
    suffix: str = ".jsonl"


W = "warning"
ICL = Checks(group_size=2, batch_size=1, icl=True)
DISTILL = Checks(group_size=2, batch_size=1, distill=True)
TAIL = '"pos": ["p"], "neg": ["n"]}'

CASES = [
    # Bytes.
    Case("latin-1 byte", second(b'{"query": "caf\xe9", ' + TAIL.encode()), 2, "not-utf8", 15, hint="iconv"),
    Case("utf-8 after wide text", second('{"query": "日本'.encode() + b'\xff", ' + TAIL.encode()), 2, "not-utf8", 14),
    Case("surrogate as bytes", second(b'{"query": "\xed\xa0\x80", ' + TAIL.encode()), 2, "not-utf8", 12),
    Case("overlong utf-8", second(b'{"query": "\xc0\xaf", ' + TAIL.encode()), 2, "not-utf8", 12),
    Case("line of random bytes", second(b"\x80\x81\x82\xfe"), 2, "not-utf8", 1),
    Case("character cut at the end", text(GOOD) + b'{"query": "caf\xc3', 2, "not-utf8", 15, hint="cut"),
    Case("byte order mark", b"\xef\xbb\xbf" + second(row("a")), 1, "bom", 1, severity=W),
    Case("byte order mark alone", b"\xef\xbb\xbf\n" + second(row("a")), 1, "bom", 1, severity=W),
    Case("byte order mark in an empty file", b"\xef\xbb\xbf", None, "no-rows"),
    Case("byte order mark inside", second(b"\xef\xbb\xbf" + row("a")), 2, "bom", 1),
    Case("utf-16 with mark", second(row("a")).decode().encode("utf-16"), 1, "wrong-encoding", hint="iconv"),
    Case("utf-16 big endian", second(row("a")).decode().encode("utf-16-be"), 1, "wrong-encoding", hint="UTF-16BE"),
    Case("utf-16 without mark", second(row("a")).decode().encode("utf-16-le"), 1, "wrong-encoding", hint="UTF-16LE"),
    Case("gzip by another name", gzip.compress(second(row("a"))), 1, "wrong-format", hint=".gz"),
    Case("zstandard by another name", zstandard.compress(second(row("a"))), 1, "wrong-format", hint=".zst"),
    Case("zip", b"PK\x03\x04" + bytes(50), 1, "wrong-format", hint="unpack"),
    Case("parquet", b"PAR1" + bytes(50), 1, "wrong-format", hint="data convert"),
    Case("raw NUL", second(b'{"query": "a\0b", ' + TAIL.encode()), 2, "control-character", 13),
    Case("raw tab", second('{"query": "a\tb", ' + TAIL), 2, "control-character", 13, hint="\\t"),
    Case("line of NULs", second(bytes(20)), 2, "bad-json", 1),
    # Whole files.
    Case("empty file", b"", None, "no-rows"),
    Case("blank lines only", b"\n  \n\r\n\t\n", None, "no-rows"),
    Case("json array", b"[\n" + GOOD + b",\n" + LAST + b"\n]\n", 1, "json-array", hint="jq"),
    Case("json array of one", b"[\n" + GOOD + b"\n]\n", 1, "json-array", hint="jq"),
    Case("json array on one line", b"[" + GOOD + b", " + LAST + b"]", 1, "json-array", hint="jq"),
    Case("json array, opened on the first row", b"[" + GOOD + b",\n" + LAST + b"]\n", 1, "json-array"),
    Case("indented object", json.dumps(json.loads(GOOD), indent=2).encode(), 1, "object-over-lines", hint="jq -c"),
    Case("damaged gzip", gzip.compress(second(row("a")))[:-12], None, "damaged", suffix=".jsonl.gz"),
    Case("not gzip", second(row("a")), None, "damaged", suffix=".jsonl.gz"),
    Case("gzip with a flipped bit", gzip.compress(text(GOOD))[:-8] + bytes(8), None, "damaged", suffix=".jsonl.gz"),
    Case("not zstandard", second(row("a")), None, "damaged", suffix=".jsonl.zst"),
    Case("cut zstandard", zstandard.compress(second(row("a")))[:-6], None, "damaged", suffix=".jsonl.zst"),
    Case("few rows", text(GOOD), None, "small-dataset", severity=W, checks=Checks(group_size=2, batch_size=8)),
    # JSON.
    Case("no JSON", second("hello"), 2, "bad-json", 1),
    Case("truncated last line", text(GOOD) + LAST[:30], 2, "truncated-line", hint="cut off"),
    Case("truncated in a literal", text(GOOD) + b'{"query": tru', 2, "truncated-line", 11),
    Case("line break in a text", second('{"query": "a\nb", ' + TAIL), 2, "bad-json", 11, hint="line break"),
    Case("unclosed object", second(GOOD[:-1]), 2, "bad-json", len(GOOD)),
    Case("unclosed list", second('{"query": "a", "pos": ["p"}'), 2, "bad-json", 27),
    Case("comma after the last item", second('{"query": "a", "pos": ["p",], "neg": []}'), 2, "bad-json", hint="comma"),
    Case("comma after the last key", second('{"query": "a", "pos": ["p"],}'), 2, "bad-json", hint="comma"),
    Case("missing comma", second('{"query": "a" "pos": ["p"]}'), 2, "bad-json", 15, hint="comma"),
    Case("missing colon", second('{"query" "a"}'), 2, "bad-json", 10),
    Case("unescaped quote", second('{"query": "say "hi"", ' + TAIL), 2, "bad-json", 17, hint='\\"'),
    Case("bad escape", second(r'{"query": "C:\dir", ' + TAIL), 2, "bad-json", 14, hint="\\\\"),
    Case("short unicode escape", second(r'{"query": "\u12", ' + TAIL), 2, "bad-json"),
    Case("single quotes", second("{'query': 'a'}"), 2, "bad-json", 2, hint="double quotes"),
    Case("python None", second('{"query": "a", "prompt": None, ' + TAIL), 2, "bad-json", 26, hint="Python"),
    Case("python True", second('{"query": True, ' + TAIL), 2, "bad-json", 11, hint="Python"),
    Case("unquoted key", second("{query: 1}"), 2, "bad-json", 2, hint="double quotes"),
    Case("comment line", second("// rows"), 2, "bad-json", 1, hint="comments"),
    Case("comment after a row", second(row("a") + b" // x"), 2, "bad-json", hint="comments"),
    Case("two objects", second(row("a") + row("b")), 2, "bad-json", len(row("a")) + 1, hint="two objects"),
    Case("comma after a row", second(row("a") + b","), 2, "bad-json", len(row("a")) + 1, hint="comma"),
    Case("bare carriage returns", GOOD + b"\r" + LAST + b"\r", 1, "bad-json", hint="carriage return"),
    Case("deep nesting", second("[" * 100_000), 2, "bad-json"),
    Case("half a surrogate pair", second(r'{"query": "x\ud83d", ' + TAIL), 2, "lone-surrogate", 11, "query"),
    Case("half a pair elsewhere", second(r'{"query": "x", "id": "\udc00", ' + TAIL), 2, "lone-surrogate"),
    Case("half a pair in a list", second(r'{"query": "x", "pos": ["a", "\ud83d"], "neg": ["n"]}'),
         2, "lone-surrogate", 29),
    Case("NaN in an unknown key", second('{"query": "a", "x": NaN, ' + TAIL), 2, "non-finite", 21, hint="NaN"),
    Case("a key twice", second('{"query": "a", "query": "b", ' + TAIL), 2, "duplicate-key", 16, "query"),
    # Not a row.
    Case("a list", second('["a", "b"]'), 2, "not-object", 1),
    Case("a list of objects", second(b"[" + row("a") + b"]"), 2, "json-array", 1),
    Case("a string", second('  "a"'), 2, "not-object", 3),
    Case("a number", second("12"), 2, "not-object", 1),
    Case("null", second("null"), 2, "not-object", 1),
    Case("an empty object", second("{}"), 2, "missing-field", 1, "query"),
    # Fields.
    Case("no query", second('{"pos": ["p"], "neg": ["n"]}'), 2, "missing-field", 1, "query"),
    Case("no pos", second(row("a", pos=...)), 2, "missing-field", 1, "pos"),
    Case("pos misspelt", second(row("a", pos=..., postive=["p"])), 2, "missing-field", 1, "pos", hint="postive"),
    Case("query null", second('{"query": null, ' + TAIL), 2, "wrong-type", 11, "query"),
    Case("query a list", second('{"query": ["a"], ' + TAIL), 2, "wrong-type", 11, "query"),
    Case("query a number", second('{"query": 5, ' + TAIL), 2, "wrong-type", 11, "query"),
    Case("query empty", second('{"query": "", ' + TAIL), 2, "empty-text", 11, "query"),
    Case("query blank", second('{"query": " \\n\\u00a0", ' + TAIL), 2, "empty-text", 11, "query"),
    Case("pos a string", second('{"query": "a", "pos": "p"}'), 2, "wrong-type", 23, "pos", hint='"pos": ['),
    Case("pos null", second('{"query": "a", "pos": null}'), 2, "wrong-type", 23, "pos"),
    Case("pos empty", second('{"query": "a", "pos": [], "neg": ["n"]}'), 2, "empty-pos", 23, "pos"),
    Case("pos with null", second('{"query": "a", "pos": ["p", null]}'), 2, "wrong-type", 29, "pos[1]"),
    Case("pos nested", second('{"query": "a", "pos": [["p"]]}'), 2, "wrong-type", 24, "pos[0]"),
    Case("pos of objects", second('{"query": "a", "pos": [{"text": "p"}]}'), 2, "wrong-type", 24, "pos[0]"),
    Case("pos with empty text", second('{"query": "a", "pos": ["p", ""]}'), 2, "empty-text", 29, "pos[1]"),
    Case("neg a string", second(row("a", neg="n")), 2, "wrong-type", None, "neg"),
    Case("neg with a number", second(row("a", neg=["n", 3])), 2, "wrong-type", None, "neg[1]"),
    Case("neg with blank text", second(row("a", neg=["n", "\t"])), 2, "empty-text", None, "neg[1]"),
    Case("neg missing", second(row("a", neg=...)), 2, "no-negatives", 1, None, W, hint="mine"),
    Case("neg empty", second(row("a", neg=[])), 2, "no-negatives", None, "neg", W, hint="mine"),
    Case("few negatives", text(GOOD), 1, "few-negatives", None, "neg", W, checks=Checks(group_size=8, batch_size=1)),
    Case("few negatives for its column", text(row("a", train_group_size=4)), 1, "few-negatives", None, "neg", W),
    Case("escaped NUL", second(r'{"query": "a\u0000", ' + TAIL), 2, "nul-character", 11, "query", W),
    Case("prompt a number", second(row("a", prompt=1)), 2, "wrong-type", None, "prompt"),
    Case("prompt a list", second(row("a", prompt=["p"])), 2, "wrong-type", None, "prompt"),
    Case("category a number", second(row("a", category=3)), 2, "wrong-type", None, "category"),
    Case("unknown type", second(row("a", type="symmetric-sts")), 2, "unknown-type", None, "type", hint="symmetric_sts"),
    Case("type a number", second(row("a", type=2)), 2, "wrong-type", None, "type"),
    Case("empty type", second(row("a", type="")), 2, "unknown-type", None, "type"),
    Case("mixed types", second(row("a", type="symmetric_sts")), 2, "mixed-types", None, "type"),
    Case("mixed types, typed first", text(row("a", type="symmetric_sts"), GOOD), 2, "mixed-types", None, "type"),
    Case("no category", second(row("a", type="symmetric_clustering")), 2, "missing-category", 1, checks=ICL),
    Case("blank category", text(row("a", type="symmetric_clustering", category=" ")), 1, "missing-category", None,
         "category", checks=ICL),
    Case("group size 0", second(row("a", train_group_size=0)), 2, "out-of-range", None, "train_group_size"),
    Case("batch size a string", second(row("a", batch_size="8")), 2, "wrong-type", None, "batch_size"),
    Case("batch size true", second(row("a", batch_size=True)), 2, "wrong-type", None, "batch_size"),
    Case("batch size a fraction", second(row("a", batch_size=8.0)), 2, "wrong-type", None, "batch_size"),
    Case("batch sizes differ", text(row("a", batch_size=1), row("b", batch_size=2)), 2, "mixed-columns", None,
         "batch_size", W),
    Case("batch size in one row", second(row("a", batch_size=4)), 2, "mixed-columns", None, "batch_size", W),
    # Scores.
    Case("one score too few", second(row("a", pos_scores=[], neg_scores=[1])), 2, "score-count", None, "pos_scores"),
    Case("one score too many", second(row("a", pos_scores=[1], neg_scores=[1, 2])),
         2, "score-count", None, "neg_scores"),
    Case("score NaN", second(row("a", pos_scores=[float("nan")], neg_scores=[1])),
         2, "non-finite", None, "pos_scores[0]"),
    Case("score infinite", second(row("a", pos_scores=[1], neg_scores=[float("inf")])), 2, "non-finite", None,
         "neg_scores[0]"),
    Case("score beyond a double", second(row("a", pos_scores=[1], neg_scores=[7]).replace(b"7", b"1e999")), 2,
         "non-finite", None, "neg_scores[0]"),
    Case("score a string", second(row("a", pos_scores=["1"], neg_scores=[1])), 2, "wrong-type", None, "pos_scores[0]"),
    Case("score null", second(row("a", pos_scores=[1], neg_scores=[None])), 2, "wrong-type", None, "neg_scores[0]"),
    Case("score true", second(row("a", pos_scores=[True], neg_scores=[1])), 2, "wrong-type", None, "pos_scores[0]"),
    Case("scores a number", second(row("a", pos_scores=1, neg_scores=[1])), 2, "wrong-type", None, "pos_scores"),
    Case("scores of one side", second(row("a", pos_scores=[1])), 2, "one-sided-scores", None, "pos_scores", W),
    Case("one side, distilling", text(row("a", neg_scores=[1])), 1, "one-sided-scores", None, checks=DISTILL),
    Case("no scores, distilling", text(row("a")), 1, "missing-scores", 1, None, W, checks=DISTILL),
    # Texts against each other.
    Case("positive is negative", second(row("a", pos=["x", "y"], neg=["z", "y"])),
         2, "positive-is-negative", None, "neg[1]"),
    Case("query is positive", second(row("a", pos=["a"])), 2, "query-is-positive", None, "pos[0]", W),
    Case("query is negative", second(row("a", neg=["n", "a"])), 2, "query-is-negative", None, "neg[1]", W),
    Case("negative twice", second(row("a", neg=["n", "m", "n"])), 2, "duplicate-negative", None, "neg[2]", W),
    Case("positive twice", second(row("a", pos=["p", "p"])), 2, "duplicate-positive", None, "pos[1]", W),
    Case("row twice", text(GOOD, LAST, GOOD), 3, "duplicate-row", 1, None, W),
    Case("row twice, keys in another order", text(GOOD, b'{"neg": ["first n"], "pos": ["first p"], "query": "first"}'),
         2, "duplicate-row", 1, None, W),
    # Keys.
    Case("negs", second(row("a", neg=..., negs=["n"])), 2, "unknown-key", 32, "negs", W, hint="`neg`"),
    Case("capital key", second(row("a", Prompt="x")), 2, "unknown-key", None, "Prompt", W, hint="`prompt`"),
    Case("passages", second(row("a", pos=..., passages=["x"])), 2, "unknown-key", None, "passages", W, hint="`pos`"),
    Case("score for scores", second(row("a", pos_score=[1])),
         2, "unknown-key", None, "pos_score", W, hint="`pos_scores`"),
]  # fmt: skip


def check(folder: Path, case: Case) -> Report:
    path = folder / f"data{case.suffix}"
    path.write_bytes(case.data)
    return check_files([path], case.checks)


def test_corpus_is_large_and_names_are_different():
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_defect_is_reported_at_its_place(case, tmp_path):
    report = check(tmp_path, case)
    found = [problem for problem in report.problems if problem.code == case.code]
    assert found, report.problems
    problem = found[0]
    if case.code != "damaged":
        assert problem.line == case.line
    # The rows around the defect are good: nothing is said of them.
    if case.line == 2:
        assert {problem.line for problem in report.problems} <= {2, 3 if case.name == "line break in a text" else 2}
    assert problem.severity == case.severity
    if case.column is not None:
        assert problem.column == case.column
    if case.field is not None:
        assert problem.field == case.field
    assert case.hint in problem.hint
    assert problem.message
    assert problem.hint


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_reports_can_be_printed(case, tmp_path, capsys):
    report = check(tmp_path, case)
    content = json.loads(as_json(report))
    assert content["summary"]["errors"] + content["summary"]["warnings"] == len(content["problems"])
    print_report(report, 5)
    shown = capsys.readouterr().out.splitlines()
    assert any(case.code in line for line in shown)
    assert shown[-1].startswith("1 file, ")


@pytest.mark.parametrize("case", [case for case in CASES if case.line == 2], ids=lambda case: case.name)
def test_defect_hides_none_after_it(case, tmp_path):
    """A second defect below the first is found at its own line."""
    late = b'{"query": "late", "pos": ["p", ""], "neg": ["n"]}\n'
    data = case.data if case.data.endswith(b"\n") else case.data + b"\n"
    report = check(tmp_path, case._replace(data=data + late))
    line = data.count(b"\n") + 1
    assert [(problem.code, problem.field) for problem in report.problems if problem.line == line and
            problem.code == "empty-text"] == [("empty-text", "pos[1]")]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fix_leaves_rows_that_pass(case, tmp_path):
    """What --fix keeps has no errors; what it does not keep is in the other file; nothing else is left behind."""
    path = tmp_path / f"data{case.suffix}"
    path.write_bytes(case.data)
    out = tmp_path / "out" / "good.jsonl"
    out.parent.mkdir()
    report = check_and_fix(out, [path], [path], case.checks)
    assert sorted(entry.name for entry in out.parent.iterdir()) == ["good.jsonl", "good.jsonl.rejected.jsonl"]
    kept = out.read_bytes().splitlines(keepends=True)
    rejected = [json.loads(line) for line in out.with_name("good.jsonl.rejected.jsonl").read_bytes().splitlines()]
    assert report.fixed is not None
    assert (len(kept), len(rejected)) == (report.fixed.kept_rows, report.fixed.rejected_rows)
    if not any(file.whole for file in report.files):
        assert len(kept) + len(rejected) == report.rows
    again = check_files([out], case.checks)
    assert not [problem for problem in again.problems if problem.severity == "error" and problem.code != "no-rows"]
    assert "duplicate-row" not in {problem.code for problem in again.problems}
    for item in rejected:
        assert item["reasons"]
        assert item["file"] == str(path)


def test_line_numbers_with_blank_and_crlf_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\r\n" + GOOD + b"\r\n\r\n   \r\n" + b"{\r\n" + LAST)
    report = check_files([path], SMALL)
    assert [(problem.line, problem.code) for problem in report.problems] == [(5, "bad-json")]
    assert report.rows == 3


def test_line_too_long_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "LONGEST_LINE", 200)
    path = tmp_path / "a.jsonl"
    path.write_bytes(text(GOOD, row("a", pos=["x" * 5000]), b'{"query": ""}'))
    report = check_files([path], SMALL)
    assert {(2, "line-too-long"), (3, "empty-text")} <= {(problem.line, problem.code) for problem in report.problems}


def test_several_frames_of_zstandard_are_read(tmp_path):
    """`cat a.zst b.zst`: stopping after the first frame would lose rows in silence."""
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(text(GOOD)) + zstandard.compress(text(LAST, "{}")))
    report = check_files([path], SMALL)
    assert report.rows == 3
    assert {problem.line for problem in report.problems} == {3}


def test_rows_before_the_damage_are_judged(tmp_path):
    import random

    source = random.Random(0)
    lines = [row(f"{number} {source.random()}") for number in range(5000)]
    lines[3] = b"{"
    packed = gzip.compress(text(*lines))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(packed[: len(packed) // 2])
    report = check_files([path], SMALL)
    assert [problem.code for problem in report.problems] == ["bad-json", "damaged"]
    assert report.problems[0].line == 4
    assert 100 < report.rows < 5000
    assert report.problems[1].line == report.rows


def test_problems_beyond_the_limit_are_counted(tmp_path, monkeypatch):
    for module in ("bgectl.data.scan", "bgectl.data.validate"):
        monkeypatch.setattr(f"{module}.MOST_PROBLEMS", 10)
    path = tmp_path / "a.jsonl"
    path.write_bytes(text(*["{}"] * 50))
    content = json.loads(as_json(check_files([path], SMALL)))
    assert len(content["problems"]) == 10
    assert content["summary"]["truncated"] is True
    assert content["summary"]["errors"] == 100


def test_full_disk_leaves_the_old_output(tmp_path, monkeypatch):
    path, out = tmp_path / "a.jsonl", tmp_path / "good.jsonl"
    path.write_bytes(text(GOOD, LAST))
    out.write_bytes(b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bgectl.jsonl.os.fsync", full)
    with pytest.raises(BgectlError, match="No space left"):
        check_and_fix(out, [path], [path], SMALL)
    assert out.read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.jsonl", "good.jsonl"]


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["a", "b", "", " ", "\0", "normal", "symmetric_sts", "symmetric_clustering"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
texts = st.lists(st.sampled_from(["a", "b", "c", "d e", "é"]), max_size=4)
fields = st.fixed_dictionaries(
    {},
    optional={
        "query": st.sampled_from(["a", "b"]) | anything, "pos": texts | anything, "neg": texts | anything,
        "pos_scores": st.lists(st.floats(), max_size=4) | anything,
        "neg_scores": st.lists(st.floats(), max_size=4) | anything,
        "prompt": anything, "type": anything, "category": anything, "batch_size": anything,
        "train_group_size": anything, "negs": anything, "id": anything,
    },
)  # fmt: skip
lines_of_rows = fields.map(lambda raw: json.dumps(raw, ensure_ascii=False).encode("utf-8", "surrogatepass"))
checks = st.builds(
    Checks, group_size=st.integers(1, 4), batch_size=st.integers(1, 4), icl=st.booleans(), distill=st.booleans(),
    strict=st.booleans(),
)  # fmt: skip
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def judge(path: Path, data: bytes, wanted: Checks) -> None:
    """Check, print and mend a file; every problem lies within it, and what is mended has no errors in its rows."""
    path.write_bytes(data)
    report = check_files([path], wanted)
    lines = data.split(b"\n")
    for problem in report.problems:
        if problem.line is not None:
            assert 1 <= problem.line <= len(lines)
        if problem.column is not None and problem.line is not None:
            line = lines[problem.line - 1].decode("utf-8", "replace")
            assert 1 <= problem.column <= len(line) + 1
    content = orjson.loads(as_json(report))
    lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
    assert content["rows"] == sum(bool(line.strip()) for line in lines) or report.files[0].whole
    out = path.with_name("out.jsonl")
    check_and_fix(out, [path], [path], wanted)
    ignored = {"no-rows", "small-dataset", "mixed-columns", "few-negatives", "no-negatives"}
    left = [problem for problem in check_files([out], wanted).problems if problem.severity == "error"]
    assert {problem.code for problem in left} <= ignored


@fuzz
@given(st.lists(lines_of_rows, max_size=6), checks)
def test_any_rows(tmp_path, rows, wanted):
    judge(tmp_path / "a.jsonl", b"\n".join(rows), wanted)


@fuzz
@given(
    st.lists(
        st.binary(max_size=30)
        | lines_of_rows
        | st.builds(lambda line, at, extra: line[:at] + extra + line[at:], lines_of_rows, st.integers(0, 60),
                    st.binary(max_size=3)),
        max_size=6,
    ),
    st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"]),
    checks,
)  # fmt: skip
def test_any_bytes(tmp_path, rows, line_end, wanted):
    judge(tmp_path / "a.jsonl", line_end.join(rows), wanted)


@fuzz
@given(st.binary(max_size=200), st.sampled_from([".gz", ".zst"]), st.integers(0, 300))
def test_any_compressed_bytes(tmp_path, data, suffix, cut):
    path = tmp_path / f"a.jsonl{suffix}"
    pack = gzip.compress if suffix == ".gz" else zstandard.compress
    packed = pack(text(GOOD, LAST))
    path.write_bytes(packed[:cut] + data)
    check_files([path], SMALL)
