"""`bgectl data validate` and `data stats` as a user or a pipe meets them."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter

import jsonschema
import pytest
import zstandard

from bgectl.data.scan import Checks
from bgectl.data.stats import as_dict, bins_of, count_files
from bgectl.data.validate import as_json, check_files

PROBLEM = {
    "type": "object",
    "additionalProperties": False,
    "required": ["file", "line", "column", "field", "code", "severity", "message", "hint"],
    "properties": {
        "file": {"type": "string"},
        "line": {"type": ["integer", "null"], "minimum": 1},
        "column": {"type": ["integer", "null"], "minimum": 1},
        "field": {"type": ["string", "null"]},
        "code": {"type": "string", "pattern": "^[a-z0-9-]+$"},
        "severity": {"enum": ["error", "warning"]},
        "message": {"type": "string", "minLength": 1},
        "hint": {"type": "string", "minLength": 1},
    },
}
SHAPE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["files", "rows", "summary", "problems"],
    "properties": {
        "files": {"type": "integer"},
        "rows": {"type": "integer"},
        "summary": {"type": "object", "required": ["errors", "warnings", "codes", "files", "truncated"]},
        "problems": {"type": "array", "items": PROBLEM},
    },
}


def rows(count, start=0, negatives=7):
    return [
        {"query": f"query {n}", "pos": [f"positive {n}"], "neg": [f"negative {n} {m}" for m in range(negatives)]}
        for n in range(start, start + count)
    ]


def lines(values):
    return "".join(json.dumps(value) + "\n" for value in values)


def test_clean(bgectl, write_rows):
    done = bgectl("data", "validate", write_rows(rows(20)))
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 file, 20 rows: no problems\n", "")


def test_error_is_named_with_its_place_and_exit_is_1(bgectl, write_rows):
    path = write_rows([*rows(9), {"query": "", "pos": ["p"], "neg": ["n"] * 7}])
    done = bgectl("data", "validate", path, "--train-group-size", "2")
    assert done.returncode == 1
    assert f"{path}:10:11: `query`: the text is empty" in done.stdout
    assert "hint: " in done.stdout
    assert done.stdout.splitlines()[-1] == "1 file, 10 rows: 1 error, 6 warnings"
    assert "Traceback" not in done.stderr


def test_warnings_fail_under_strict_only(bgectl, write_rows):
    path = write_rows([*rows(9), rows(1)[0]])
    assert bgectl("data", "validate", path).returncode == 0
    done = bgectl("data", "validate", path, "--strict", "--format", "json")
    assert done.returncode == 1
    assert [(p["code"], p["severity"], p["line"]) for p in json.loads(done.stdout)["problems"]] == [
        ("duplicate-row", "error", 10)
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["missing.jsonl"],
        [],
        ["."],
        ["rows.jsonl", "--format", "xml"],
        ["rows.jsonl", "--train-group-size", "0"],
        ["rows.jsonl", "--no-such-flag"],
        ["rows.jsonl", "--fix", "rows.jsonl"],
        ["rows.jsonl", "--fix", "nowhere/out.jsonl"],
        ["rows.jsonl", "--fix", "-"],
    ],
)
def test_usage_errors(bgectl, write_rows, tmp_path, words):
    data = write_rows(rows(9), "data/rows.jsonl")
    folder = tmp_path / "empty" if words == ["."] else data.parent
    folder.mkdir(exist_ok=True)
    done = bgectl("data", "validate", *words, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert sorted(entry.name for entry in data.parent.iterdir()) == ["rows.jsonl"]


def test_json_has_the_documented_shape(bgectl, write_rows):
    path = write_rows([*rows(9), {"query": 1, "pos": []}])
    path.write_bytes(path.read_bytes() + b"\xff\n")
    done = bgectl("data", "validate", path, "--format", "json")
    assert done.returncode == 1
    content = json.loads(done.stdout)
    jsonschema.validate(content, SHAPE)
    assert (content["files"], content["rows"]) == (1, 11)
    assert content["summary"]["codes"]["empty-pos"] == {"severity": "error", "count": 1}
    assert content["summary"]["files"][0]["rows"] == 11
    assert {p["file"] for p in content["problems"]} == {str(path)}


def test_directory_in_sorted_order_and_compressed_files(bgectl, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    bad = lines([{"query": "q", "pos": ["p"]}]).encode()
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(lines(rows(9)).encode() + b"{\n"))
    (folder / "a.jsonl.zst").write_bytes(zstandard.compress(lines(rows(9, 10)).encode() + b"[]\n"))
    (folder / "b.json").write_bytes(lines(rows(9, 20)).encode() + bad + b"1\n")
    (folder / "notes.txt").write_text("no data")
    done = bgectl("data", "validate", folder, "--format", "json")
    content = json.loads(done.stdout)
    assert [entry["file"].rsplit("/")[-1] for entry in content["summary"]["files"]] == [
        "a.jsonl.zst", "b.json", "c.jsonl.gz",
    ]  # fmt: skip
    assert [(p["line"], p["code"]) for p in content["problems"]] == [
        (10, "not-object"), (10, "no-negatives"), (11, "not-object"), (10, "bad-json"),
    ]  # fmt: skip


def test_stdin(bgectl):
    done = bgectl("data", "validate", "-", "--format", "json", stdin=lines(rows(9)) + '{"query": "q"}\n')
    content = json.loads(done.stdout)
    assert done.returncode == 1
    assert content["rows"] == 10
    assert {(p["file"], p["line"]) for p in content["problems"]} == {("-", 10)}


def test_fix_separates_and_keeps_bytes(bgectl, tmp_path):
    good = '{ "query":"q é" , "id": 1e2, "pos":["p"],"neg":["n"]}'
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(f'\ufeff{good}\r\n\n{{"query": "", "pos": ["p"]}}\n{good}\nnot json'.encode())
    done = bgectl("data", "validate", path, "--fix", out, "--train-group-size", "2", "--format", "json")
    assert done.returncode == 1
    assert out.read_bytes() == good.encode() + b"\n"
    rejected = [json.loads(line) for line in (tmp_path / "out.jsonl.rejected.jsonl").read_text().splitlines()]
    assert [(item["file"], item["line"]) for item in rejected] == [(str(path), 3), (str(path), 4), (str(path), 5)]
    assert [item["raw"] for item in rejected] == ['{"query": "", "pos": ["p"]}', good, "not json"]
    assert rejected[0]["reasons"] == ["query: the text is empty"]
    assert rejected[1]["reasons"] == ["repeats an earlier row"]
    assert json.loads(done.stdout)["summary"]["fixed"]["rows"] == 1
    again = bgectl("data", "validate", out, "--strict", "--train-group-size", 2, "--per-device-train-batch-size", 1)
    assert again.returncode == 0


def test_fix_of_stdin(bgectl, tmp_path):
    out = tmp_path / "out.jsonl.gz"
    done = bgectl("data", "validate", "-", "--fix", out, stdin=lines(rows(9)) + "{}\n")
    assert done.returncode == 1
    assert gzip.decompress(out.read_bytes()).decode() == lines(rows(9))


def test_fix_does_not_mix_types_or_feed_itself(bgectl, write_rows, tmp_path):
    first = write_rows(rows(9), "in/a.jsonl")
    second = write_rows([row | {"type": "symmetric_sts"} for row in rows(9, 10)], "in/b.jsonl")
    out = tmp_path / "out.jsonl"
    done = bgectl("data", "validate", first, second, "--fix", out)
    assert done.returncode == 2
    assert "several types" in done.stderr
    assert not out.exists()
    done = bgectl("data", "validate", first.parent, "--fix", first.parent / "out.jsonl")
    assert done.returncode == 2
    assert "an input" in done.stderr


def test_no_heavy_library_is_imported(write_rows):
    path = write_rows([*rows(9), {}])
    code = (
        "import sys, bgectl.cli\n"
        "try: bgectl.cli.main(['data', 'validate', sys.argv[1]])\n"
        "except SystemExit as done: assert done.code == 1\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'faiss', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_tokens_are_counted(bgectl, write_rows, minilm):
    done = bgectl(
        "data", "validate", write_rows(rows(9)), "--tokenizer", minilm, "--query-max-len", 3, "--format", "json"
    )
    assert done.returncode == 0, done.stderr
    tokens = json.loads(done.stdout)["summary"]["tokens"]
    # [CLS] query 7 [SEP]
    assert tokens["queries"] == {
        "count": 9, "mean": 4.0, "p50": 4, "p90": 4, "p99": 4, "max": 4, "limit": 3, "cut": 9,
    }  # fmt: skip
    assert (tokens["passages"]["count"], tokens["passages"]["cut"]) == (72, 0)


def test_tokenizer_that_is_not_there(bgectl, write_rows, tmp_path):
    done = bgectl("data", "validate", write_rows(rows(9)), "--tokenizer", tmp_path / "none")
    assert done.returncode == 1
    assert "cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def mixed_file(tmp_path):
    """Rows with defects sprinkled in, of all the kinds that need to know about other pieces."""
    source = random.Random(7)
    values = [json.dumps(row) for row in rows(3000)]
    for _ in range(60):
        spot = source.randrange(1, len(values))
        values[spot] = source.choice(
            ["{", "", '{"query": "x"}', values[0], values[source.randrange(3000)], "é" * 50,
             json.dumps(rows(1, spot)[0] | {"type": "symmetric_sts"}), json.dumps(rows(1, spot)[0] | {"batch_size": 4}),
             json.dumps(rows(1, spot, negatives=3)[0])]
        )  # fmt: skip
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(values), encoding="utf-8")
    return path


@pytest.mark.parametrize("piece_bytes", [997, 20_000, 300_000])
def test_several_processes_find_what_one_finds(mixed_file, piece_bytes):
    """Lines counted wrongly at a cut, or a row lost or read twice there, would show as a difference."""
    checks = Checks()
    alone = as_json(check_files([mixed_file], checks))
    shared = as_json(check_files([mixed_file], checks, workers=2, piece_bytes=piece_bytes))
    assert json.loads(alone)["summary"]["codes"].keys() >= {
        "bad-json", "duplicate-row", "mixed-types", "mixed-columns", "few-negatives",
    }  # fmt: skip
    assert json.loads(shared) == json.loads(alone)


def test_duplicates_are_found_across_files_and_by_numpy(write_rows, monkeypatch):
    first, second = write_rows(rows(30), "a.jsonl"), write_rows(rows(30, 25), "b.jsonl")
    few = json.loads(as_json(check_files([first, second], Checks())))
    monkeypatch.setattr("bgectl.data.validate.FEW_ROWS", 0)
    many = json.loads(as_json(check_files([first, second], Checks())))
    assert few == many
    assert [(p["line"], p["message"]) for p in few["problems"]] == [
        (n, f"the same row as {first}:{n + 25}") for n in range(1, 6)
    ]


def test_named_pipe(tmp_path, bgectl):
    """`bgectl data validate <(zcat x.gz)` is read once, from its start."""
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    with subprocess.Popen([sys.executable, "-c", f"open({str(pipe)!r}, 'w').write({lines(rows(9))!r})"]):
        done = bgectl("data", "validate", pipe, timeout=60)
    assert done.stdout == "1 file, 9 rows: no problems\n"


def test_stats(bgectl, write_rows, tmp_path):
    path = write_rows([*(row | {"prompt": "Find:"} for row in rows(20)), {"query": "q", "pos": ["p", "r"]}, {}])
    picture = tmp_path / "lengths.png"
    done = bgectl("data", "stats", path, "--format", "json", "--plot", picture)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    stats = content["files"][0]
    assert (stats["rows"], stats["bad_rows"], stats["types"]) == (21, 1, {"normal": 21})
    assert stats["pos"] == {"min": 1, "mean": 1.05, "max": 2}
    assert stats["neg"] == {"min": 0, "mean": 6.67, "max": 7}
    assert stats["prompts"] == [{"prompt": "Find:", "rows": 20}, {"prompt": None, "rows": 1}]
    assert stats["characters"]["query"]["max"] == len("query 19")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "1 row with errors" in done.stderr
    shown = bgectl("data", "stats", path)
    assert "█" in shown.stdout
    assert bgectl("data", "stats", path, "--plot", tmp_path / "x.txt").returncode == 2


def test_stats_of_pieces_are_those_of_the_file(mixed_file):
    alone = count_files([mixed_file])
    shared = count_files([mixed_file], workers=2, piece_bytes=5000)
    assert as_dict(shared[0]) == as_dict(alone[0])


def test_histogram_bins_hold_every_text():
    source = random.Random(1)
    counts = Counter(int(source.lognormvariate(4, 1)) for _ in range(5000))
    bins = bins_of(counts)
    assert sum(count for _, _, count in bins) == 5000
    assert (bins[0][0], bins[-1][1]) == (min(counts), max(counts))
    assert all(one[1] + 1 == other[0] for one, other in itertools.pairwise(bins))
