"""`bgectl data convert` and `data split` as a user or a pipe meets them."""

import gzip
import json
import os
import subprocess
import sys

import pytest
import zstandard

from bgectl.manifest import read_manifest

ROW = {"query": "q", "pos": ["p"], "neg": ["n"]}
BAD = [
    '{"query": "a", "positive": "b"}',
    '{"query": "a", "positive": 3}',
    '{"query": "", "positive": "b"}',
    '["a"]',
    '{"query": "a"}',
    '{"query": "a", "positive": "c"',
    '{"query": "d", "positive": "e"}',
]


def test_through_a_pipe(bgectl):
    done = bgectl("data", "convert", "-", "-", "--from", "csv", "--to", "bgectl", stdin="query,positive\nq,p\nq,r\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == '{"query":"q","pos":["p","r"],"neg":[]}\n'
    done = bgectl("data", "convert", "-", "-", "--from", "bgectl", "--to", "tsv", stdin=json.dumps(ROW))
    assert done.stdout == "query\tpositive\tnegative\nq\tp\tn\n"
    assert "wrote 1 row as tsv: -" in done.stderr


def test_a_pipe_gets_all_or_nothing(bgectl):
    lines = f'{json.dumps({"query": "a", "positive": "b"})}\n{{"query": "a"}}\n'
    done = bgectl("data", "convert", "-", "-", "--from", "jsonl", "--to", "tevatron", stdin=lines)
    assert (done.returncode, done.stdout) == (1, "")
    assert "-:2: `a` has neither a positive nor a negative" in done.stderr
    done = bgectl("data", "convert", "-", "-", "--from", "jsonl", "--to", "tevatron", "--skip-bad", stdin=lines)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({**ROW, "query": f"q{n}" * 50}) + "\n" for n in range(5000)))
    for format in ("csv", "tevatron"):
        program = f"{sys.executable} -m bgectl data convert in.jsonl - --to {format}"
        command = f"{program} | head -c 10; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.stdout.endswith("141\n")
        assert "rror" not in done.stderr


def test_a_name_that_cannot_be_loaded(bgectl, tmp_path):
    words = ("data", "convert", "someone/nothing", "out.jsonl", "--from", "datasets")
    done = bgectl(*words, cwd=tmp_path, env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")})
    assert done.returncode == 1
    assert done.stderr.startswith("error: someone/nothing: the data set cannot be read: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(("ending", "pack", "unpack"), [
    (".gz", gzip.compress, gzip.decompress),
    (".zst", zstandard.compress, lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)),
])  # fmt: skip
def test_compressed_files(inside, tmp_path, ending, pack, unpack):
    (tmp_path / f"in.csv{ending}").write_bytes(pack(b"query,positive,negative\nq,p,n\n"))
    done = inside("data", "convert", tmp_path / f"in.csv{ending}", tmp_path / f"rows.jsonl{ending}")
    assert done.returncode == 0, done.stderr
    assert json.loads(unpack((tmp_path / f"rows.jsonl{ending}").read_bytes())) == ROW
    done = inside("data", "convert", tmp_path / f"rows.jsonl{ending}", tmp_path / f"out.tsv{ending}")
    assert unpack((tmp_path / f"out.tsv{ending}").read_bytes()) == b"query\tpositive\tnegative\nq\tp\tn\n"


def test_all_defects_are_told_at_once(inside, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(BAD) + "\n")
    output.write_text("what was there")
    done = inside("data", "convert", source, output, "--from", "jsonl")
    assert done.returncode == 1
    for line, words in (
        (2, "`positive`: expected a text, found a number"), (3, "`query`: the text is empty"),
        (4, "expected a JSON object, found a list"), (5, "neither a positive nor a negative"), (6, "not valid JSON"),
    ):  # fmt: skip
        assert any(f"{source}:{line}" in told and words in told for told in done.stderr.splitlines()), words
    assert "hint: `--skip-bad` leaves such records out" in done.stderr
    assert output.read_text() == "what was there"
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


def test_bad_records_are_left_out_and_counted(inside, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(BAD) + "\n")
    done = inside("data", "convert", source, output, "--from", "jsonl", "--skip-bad", "--max-problems", 2)
    assert done.returncode == 0
    assert "5 defective records left out" in done.stderr
    assert "and 3 more" in done.stderr
    assert [json.loads(line)["query"] for line in output.read_text().splitlines()] == ["a", "d"]
    said = read_manifest(output)
    assert (said["from"], said["to"], said["rows"], said["skipped"]) == ("jsonl", "bgectl", 2, 5)
    assert said["inputs"]["input_file"]["blake2b"]


@pytest.mark.parametrize(("data", "words"), [
    (b"query,positive\na,b\na,b,c\n", "in.csv:3: 3 cells, and the first line names 2 columns"),
    (b'query,positive\na,"b\n', "in.csv:2: not valid CSV"),
    (b"query,query\na,b\n", "in.csv:1: has two columns `query`"),
    (b"query,positive\na,\xff\n", "is not UTF-8"),
    (b"", "is empty"),
    (b"query,positive\n", "holds no row"),
    (b"query,positive,negative,scores\na,b,c,[1]\n", "in.csv:2: 1 scores for 2 texts"),
    (b"query,positive,negative,score\na,b,c,0.5\n", "in.csv:2: one score for several texts is a margin"),
    (b"query,positive,scores\na,b,x\n", "in.csv:2: `scores`: expected a number"),
])  # fmt: skip
def test_broken_csv(inside, tmp_path, data, words):
    (tmp_path / "in.csv").write_bytes(data)
    done = inside("data", "convert", tmp_path / "in.csv", tmp_path / "out.jsonl")
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["in.csv"]


@pytest.mark.parametrize(("name", "data"), [
    ("in.parquet", b"PAR1 nothing"), ("in.json", b'{"queries": {}, "corpus": {}, "relevant_docs": [1]}'),
    ("in.csv.gz", b"no gzip"), ("in.jsonl", b"\n"), ("in.csv.zst", b"(\xb5/\xfd cut"),
])  # fmt: skip
def test_files_that_are_not_what_they_seem(inside, tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    done = inside("data", "convert", tmp_path / name, tmp_path / "out.jsonl")
    assert done.returncode in (1, 2)
    assert f"{tmp_path / name}" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Error:" not in done.stderr
    assert os.listdir(tmp_path) == [name]


def test_an_unknown_column_is_named_with_those_there_are(inside, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("frage,antwort\na,b\n")
    done = inside("data", "convert", source, "-")
    assert done.returncode == 2
    assert "no column is known to be the query" in done.stderr
    assert "columns: frage, antwort" in done.stderr
    done = inside("data", "convert", source, "-", "--columns", "query=frag", "positive=antwort")
    assert "has no column `frag`" in done.stderr
    done = inside("data", "convert", source, "-", "--columns", "query=frage", "positive=antwort")
    assert done.stdout == '{"query":"a","pos":["b"],"neg":[]}\n'
    done = inside("data", "convert", source, "-", "--columns", "query=frage", "positive=antwort", "--keep", "id")
    assert (done.returncode, done.stdout) == (2, "")
    assert "has no column `id`" in done.stderr
    done = inside("data", "convert", source, "-", "--columns", "who=frage")
    assert done.returncode == 2
    assert "with a role of query, positive" in done.stderr


@pytest.mark.parametrize(("name", "data"), [
    ("in.tsv", "a\tb\tc\n"), ("in.txt", "a\n"), ("in.jsonl", '{"x": 1}\n'), ("in.jsonl", "{\n"),
])  # fmt: skip
def test_what_cannot_be_seen_is_asked_for(inside, tmp_path, name, data):
    (tmp_path / name).write_text(data)
    done = inside("data", "convert", tmp_path / name, tmp_path / "out.jsonl")
    assert done.returncode == 2
    assert "say the format" in done.stderr
    assert "--from takes one of bgectl, sentence-transformers" in done.stderr


def test_a_named_pipe(bgectl, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["bash", "-c", "printf 'query,positive\\nq,p\\n' > pipe"], cwd=tmp_path):
        done = bgectl("data", "convert", "pipe", "-", "--from", "csv", cwd=tmp_path, timeout=60)
    assert done.stdout == '{"query":"q","pos":["p"],"neg":[]}\n', done.stderr
    done = bgectl("data", "convert", "pipe", "-", cwd=tmp_path, timeout=60)
    assert "a pipe is read once only; say the format" in done.stderr


@pytest.mark.parametrize("words", [
    ["no.csv", "out.jsonl"], ["org/name", "out.jsonl"], ["in.csv", "out.xyz"], ["in.csv", "nowhere/out.jsonl"],
    ["in.csv", "out.jsonl", "--shape", "pair"], ["in.csv", "out.jsonl", "--split", "x"],
    ["in.csv", "out.jsonl", "--collection", "x"], ["in.csv", "full", "--to", "beir"], ["-", "out.jsonl"],
    ["in.csv", "out.csv", "--shape", "pair", "--negatives", "3"], ["in.csv", "in.csv/x", "--to", "beir"],
])  # fmt: skip
def test_usage_errors(inside, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text("query,positive\na,b\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    done = inside("data", "convert", *words)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") or "read as" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["full", "in.csv"]


def test_a_full_folder_is_written_into_when_asked(inside, tmp_path):
    (tmp_path / "in.csv").write_text("query,positive\na,b\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    done = inside("data", "convert", tmp_path / "in.csv", tmp_path / "full", "--to", "beir", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert {"mine.txt", "corpus.jsonl", "queries.jsonl", "qrels"} <= set(os.listdir(tmp_path / "full"))
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


@pytest.mark.parametrize(("package", "words", "extra"), [
    ("pyarrow", ["in.jsonl", "out.parquet"], "parquet"), ("pyarrow", ["in.parquet", "out.jsonl"], "parquet"),
    ("datasets", ["some/name", "out.jsonl", "--from", "datasets"], "datasets"),
])  # fmt: skip
def test_a_missing_package_is_named(inside, tmp_path, monkeypatch, package, words, extra):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text(json.dumps(ROW) + "\n")
    (tmp_path / "in.parquet").touch()
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    done = inside("data", "convert", *words)
    assert done.returncode == 1
    assert f"error: {package} is not installed" in done.stderr
    assert f"hint: pip install 'bgectl[{extra}]'" in done.stderr
    assert not [name for name in os.listdir(tmp_path) if name.startswith((".", "out"))]


@pytest.mark.parametrize("words", [
    ["convert", "in.jsonl", "out.parquet"], ["convert", "in.jsonl", "ds", "--to", "datasets"],
    ["convert", "ds", "out.jsonl", "--from", "datasets"], ["convert", "in.jsonl", "out", "--to", "beir"],
    ["split", "in.jsonl", "-o", "sides", "--near", "--beir"],
    ["split", "in.jsonl", "-o", "lengths", "--tokenizer", "", "--by-length"],
])  # fmt: skip
def test_nothing_loads_torch(tmp_path, minilm, words):
    rows = [{"query": f"q{n}", "pos": [f"p{n}"], "neg": ["n"]} for n in range(20)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "ds").mkdir()
    if words[1] == "ds":
        (tmp_path / "ds" / "x.csv").write_text("query,positive\na,b\n")
    program = (
        "import sys\nfrom bgectl.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as ending:\n"
        "    assert not ending.code, ending.code\nassert not {'torch', 'transformers'} & set(sys.modules)"
    )
    words = [word or minilm for word in words]
    done = subprocess.run(
        [sys.executable, "-c", program, "data", *words], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """The file size limit of a process stands for a full disk."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.csv"
    source.write_text("".join(json.dumps({**ROW, "query": f"q{n}" * 50}) + "\n" for n in range(20_000)))
    output.write_text("what was there")
    program = (
        "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\nfrom bgectl.cli import main\nmain(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "data", "convert", source, output], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert output.read_text() == "what was there"
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.csv"]


# data split.


def many(count=40):
    return "".join(json.dumps({"query": f"q{n}", "pos": [f"p{n}"], "neg": ["n"]}) + "\n" for n in range(count))


def test_split_of_stdin(bgectl, tmp_path):
    done = bgectl("data", "split", "-", "-o", "out", "--held-out", 4, cwd=tmp_path, stdin=many())
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "held out 4 of 40 rows" in done.stderr
    assert len((tmp_path / "out" / "train" / "rows.jsonl").read_text().splitlines()) == 36
    again = bgectl("data", "validate", tmp_path / "out" / "train", "--train-group-size", 2)
    assert again.returncode == 0, again.stdout


def test_split_tells_all_defects(inside, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(many(5) + '{"query": "x"}\n{"query": "y", "pos": [""]}\nno\n')
    done = inside("data", "split", source, "-o", tmp_path / "out", "--held-out", 2)
    assert done.returncode == 1
    for place in (f"{source}:6: `pos`", f"{source}:7: `pos[0]`", f"{source}:8:"):
        assert place in done.stderr
    assert os.listdir(tmp_path) == ["in.jsonl"]
    done = inside("data", "split", source, "-o", tmp_path / "out", "--held-out", 2, "--skip-bad")
    assert done.returncode == 0, done.stderr
    assert "3 defective records left out" in done.stderr
    assert "held out 2 of 5 rows" in done.stderr


@pytest.mark.parametrize(("words", "told"), [
    (["--held-out", "1.5"], "neither a share below 1 nor a whole number"),
    (["--held-out", "40"], "some must be left to train on"),
    (["--by-length"], "give a --tokenizer"),
    (["--by-length", "0-10", "5-20", "--unit", "characters"], "overlaps"),
    (["--by-length", "10-5", "--unit", "characters"], "must be below"),
    (["--by-length", "--unit", "characters", "--beir"], "leave --beir out"),
    (["--tokenizer", "x"], "go with --by-length"),
    (["--corpus", "held-out"], "goes with --beir"),
])  # fmt: skip
def test_split_usage_errors(inside, tmp_path, words, told):
    (tmp_path / "in.jsonl").write_text(many())
    done = inside("data", "split", tmp_path / "in.jsonl", "-o", tmp_path / "out", *words)
    assert done.returncode == 2
    assert told in done.stderr
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_by_length_takes_its_ranges_or_has_them(inside, tmp_path):
    (tmp_path / "in.jsonl").write_text(many())
    source, unit = tmp_path / "in.jsonl", ["--unit", "characters"]
    assert inside("data", "split", "-o", tmp_path / "a", "--by-length", "0-3", "3-inf", source, *unit).returncode == 0
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "in_len-0-3.jsonl", "in_len-3-inf.jsonl", "split.manifest.json",
    }  # fmt: skip
    assert inside("data", "split", source, "-o", tmp_path / "b", "--by-length", *unit).returncode == 0
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"in_len-0-500.jsonl", "split.manifest.json"}


def test_manifests_are_no_data(bgectl, tmp_path):
    """A directory that bgectl wrote into can be trained on."""
    (tmp_path / "in.csv").write_text("query,positive,negative\nq,p,n\n")
    (tmp_path / "data").mkdir()
    assert bgectl("data", "convert", tmp_path / "in.csv", tmp_path / "data" / "rows.jsonl").returncode == 0
    assert (tmp_path / "data" / "rows.jsonl.manifest.json").is_file()
    done = bgectl("data", "stats", tmp_path / "data", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert [(file["file"], file["rows"]) for file in json.loads(done.stdout)["files"]] == [
        (str(tmp_path / "data" / "rows.jsonl"), 1)
    ]
