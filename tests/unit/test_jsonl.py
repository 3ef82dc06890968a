"""Reading keeps lines and places; writing leaves either the whole new file or what was there."""

import fcntl
import gzip
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bgectl import jsonl
from bgectl.errors import DataError, UsageError

ENDINGS = ["", ".gz", ".zst"]
ROWS = [
    {"query": "a\u2028b\u2029c\x85d\x0b\x0c\x1c e", "n": 1},
    {"query": "line\nend \r\n tab\t", "pos": ["ü", "\U0001f600"]},
]


@pytest.mark.parametrize("ending", ENDINGS)
def test_round_trip(ending, tmp_path):
    path = tmp_path / f"rows.jsonl{ending}"
    assert jsonl.write_objects(path, ROWS) == 2
    assert list(jsonl.read_objects(path)) == [(1, ROWS[0]), (2, ROWS[1])]
    first = path.read_bytes()
    jsonl.write_objects(path, ROWS)
    assert path.read_bytes() == first, "the same rows give other bytes"
    assert ending == "" or not first.startswith(b"{"), "not compressed"
    assert os.listdir(tmp_path) == [path.name]


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(), st.text() | st.integers(-(2**53), 2**53) | st.lists(st.text()))))
def test_any_text_survives(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    jsonl.write_objects(path, rows)
    assert [row for _, row in jsonl.read_objects(path)] == rows
    assert path.read_bytes().count(b"\n") == len(rows)


def test_line_numbers(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a":1}\r\n\n \t\r\n{"a":"x\xe2\x80\xa8y"}\n{"a":3}')
    assert [(number, row["a"]) for number, row in jsonl.read_objects(path)] == [(1, 1), (4, "x\u2028y"), (5, 3)]


@pytest.mark.parametrize(("line", "where"), [(b'{"a": }', ":2:7"), (b"[1]", ":2:1"), (b'"x"', ":2:1"), (b"nul", ":2:")])
def test_bad_line_is_named(line, where, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(DataError) as error:
        list(jsonl.read_objects(path))
    assert str(error.value).startswith(f"{path}{where}")
    assert error.value.hint


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_archives_of_several_parts_and_cut_ones(ending, pack, tmp_path):
    path = tmp_path / f"rows.jsonl{ending}"
    path.write_bytes(pack(b'{"a":1}\n{"a"') + pack(b":2}\n"))
    assert [row["a"] for _, row in jsonl.read_objects(path)] == [1, 2]
    path.write_bytes(pack(b'{"a":1}\n' * 1000)[:-3])
    with pytest.raises(DataError, match="damaged"):
        list(jsonl.read_objects(path))
    path.write_bytes(b"not packed at all")
    with pytest.raises(DataError, match="damaged"):
        list(jsonl.read_objects(path))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("before", [None, b"earlier"])
def test_failure_leaves_what_was_there(before, ending, tmp_path):
    path = tmp_path / f"rows.jsonl{ending}"
    if before:
        path.write_bytes(before)

    def rows():
        yield {"a": "x" * 5_000_000}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jsonl.write_objects(path, rows())
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == ([before] if before else [])


def test_mode(tmp_path):
    path = tmp_path / "rows.jsonl"
    jsonl.write_objects(path, ROWS)
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode, "not the mode of a plain open"
    path.chmod(0o640)
    jsonl.write_objects(path, ROWS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640, "an existing file's mode is lost"


def test_link_stays_a_link(tmp_path):
    real = tmp_path / "real.jsonl"
    real.write_text("earlier")
    (tmp_path / "link.jsonl").symlink_to(real)
    jsonl.write_objects(tmp_path / "link.jsonl", ROWS)
    assert (tmp_path / "link.jsonl").is_symlink()
    assert len(list(jsonl.read_objects(real))) == 2


def test_devices_and_pipes_are_written_to(tmp_path):
    """A rename would put a file in the place of /dev/null."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    jsonl.write_objects(pipe, ROWS)
    reader.join(10)
    assert read[0].count(b"\n") == 2
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_long_name(tmp_path):
    """The temporary name is longer than the target's; a file system allows 255 bytes."""
    path = tmp_path / ("n" * 245 + ".jsonl")
    jsonl.write_objects(path, ROWS)
    assert os.listdir(tmp_path) == [path.name]


def test_places_that_cannot_be_written(tmp_path):
    for path, said in ((tmp_path, "is a directory"), (tmp_path / "no" / "x.jsonl", "does not exist")):
        with pytest.raises(UsageError, match=said):
            jsonl.write_objects(path, ROWS)
        with pytest.raises(UsageError, match=said):
            jsonl.check_target(path)
    with pytest.raises(UsageError, match="cannot be written"):
        jsonl.write_objects(tmp_path / ("x" * 300), ROWS)


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        list(jsonl.read_objects(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="cannot be read"):
        list(jsonl.read_objects(tmp_path))


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a.jsonl", "a"), ("a.b.json.gz", "a.b"), ("a.jsonl.zst", "a"), ("rows", "rows"), ("a.txt", "a")],
)
def test_stem(name, stem, tmp_path):
    assert jsonl.dataset_stem(tmp_path / name) == stem


def test_what_a_killed_process_left_is_swept(tmp_path):
    """Half an output of hours stays beside it otherwise; what another process is still writing is left alone."""
    target = tmp_path / "out.jsonl"
    code = """
import os, pathlib, signal, sys
from bgectl.jsonl import replace_file
with replace_file(pathlib.Path(sys.argv[1])) as stream:
    stream.write(b"half")
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    [left] = tmp_path.glob(".*.part")
    other = tmp_path / ".out.jsonl.other.part"
    with other.open("wb") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        jsonl.write_objects(target, [{"a": 1}])
        assert not left.exists(), "what was left stays"
        assert other.exists(), "what another process writes was taken from it"
    assert target.read_bytes() == b'{"a":1}\n'
