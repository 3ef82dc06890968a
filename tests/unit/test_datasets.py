"""From files to datasets: flags by name, thresholds, types, samples, and errors that name their line."""

import gzip
import json
import os
import random

import pytest
import zstandard

from bgectl.data.datasets import build_datasets, own_negatives_only
from bgectl.errors import DataError, UsageError


@pytest.fixture
def put(tmp_path):
    """Write rows with distinct queries to a file; `rows` is a count or the rows."""

    def write(name, rows, **extra):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(rows, int):
            rows = [
                {"query": f"{name} {i}", "pos": [f"p {i}"], "neg": [f"n {i}", f"m {i}"], **extra} for i in range(rows)
            ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def build(tmp_path):
    def call(*paths, **options):
        given = {"group_size": 3, "batch_size": 8, "seed": 1, "unpack_to": tmp_path / "unpacked"} | options
        return build_datasets(paths, **given)

    return call


def queries(dataset):
    return [dataset.read(position)[1].query for position in range(len(dataset))]


# no_in_batch_neg


@pytest.mark.parametrize(
    ("given", "flagged"),
    [
        ("a.jsonl", False), ("./a.jsonl", False), ("plain", False), ("./plain/", False),
        ("x-no_in_batch_neg.jsonl", True), ("./x-no_in_batch_neg.jsonl", True), ("x_no_in_batch_neg.json.gz", True),
        ("dir-no_in_batch_neg", True), ("dir-no_in_batch_neg/", True), ("./dir-no_in_batch_neg/", True),
        ("dir-no_in_batch_neg/a.jsonl", True), ("no_in_batch_neg_not.jsonl", False),
        ("dir-no_in_batch_neg/deeper", True), ("dir-no_in_batch_neg/deeper/a.jsonl", True),
    ],
)  # fmt: skip
def test_flag_by_name(given, flagged, put, build, tmp_path, monkeypatch):
    for name in ("a.jsonl", "plain/a.jsonl", "x-no_in_batch_neg.jsonl", "dir-no_in_batch_neg/a.jsonl",
                 "no_in_batch_neg_not.jsonl", "dir-no_in_batch_neg/deeper/a.jsonl"):  # fmt: skip
        put(name, 2)
    (tmp_path / "x_no_in_batch_neg.json.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    for same in (False, True):
        (dataset,) = build(Path(given), same_dataset=same).datasets
        assert dataset.own_negatives_only is flagged


@pytest.mark.parametrize("given", [".", "a.jsonl", "./a.jsonl", "../dir-no_in_batch_neg"])
def test_flag_of_the_working_directory(given, put, build, tmp_path, monkeypatch):
    from pathlib import Path

    put("dir-no_in_batch_neg/a.jsonl", 2)
    monkeypatch.chdir(tmp_path / "dir-no_in_batch_neg")
    assert build(Path(given)).datasets[0].own_negatives_only


def test_a_path_without_a_dot(put):
    assert not own_negatives_only(put("rows", 1))
    assert own_negatives_only(put("rows_no_in_batch_neg", 1))


# Order, thresholds, samples


def test_directories_are_read_in_sorted_order(put, build, tmp_path):
    for name in ("c.jsonl", "a.json", "b.jsonl", "notes.txt"):
        put(f"dir/{name}", 2)
    names = [os.path.basename(dataset.name) for dataset in build(tmp_path / "dir").datasets]
    assert names == ["a.json", "b.jsonl", "c.jsonl"]


def test_missing_and_empty_paths(build, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nothing", tmp_path / "empty"):
        with pytest.raises(UsageError, match=str(path)):
            build(path)


@pytest.mark.parametrize(
    ("small", "drop", "sizes", "dropped"),
    [
        (0, 0, [3, 4, 9], 0),
        (4, 0, [4, 9, 3], 0),
        (5, 0, [9, 7], 0),
        (5, 7, [9, 7], 0),
        (5, 8, [9], 7),
        (10, 17, [], 16),
    ],
)
def test_thresholds_in_a_directory(small, drop, sizes, dropped, put, build, tmp_path):
    for name, count in (("a", 3), ("b", 4), ("c", 9)):
        put(f"dir/{name}.jsonl", count)
    collection = build(tmp_path / "dir", same_dataset=True, small_threshold=small, drop_threshold=drop)
    assert [len(dataset) for dataset in collection.datasets] == sizes
    assert sum(item.rows for item in collection.dropped) == dropped
    assert all(item.why for item in collection.dropped)


def test_a_small_single_file_is_dropped(put, build):
    path = put("a.jsonl", 3)
    collection = build(path, put("b.jsonl", 9), same_dataset=True, small_threshold=5)
    assert [len(dataset) for dataset in collection.datasets] == [9]
    assert [(item.name, item.rows) for item in collection.dropped] == [(str(path), 3)]
    assert "5" in collection.dropped[0].why


def test_thresholds_mean_nothing_in_flat_mode(put, build):
    assert [len(dataset) for dataset in build(put("a.jsonl", 3), small_threshold=50, drop_threshold=50).datasets] == [3]


def test_small_files_are_merged_type_by_type_and_flag_by_flag(put, build, tmp_path):
    put("dir/a.jsonl", 2)
    put("dir/b.jsonl", 3, type="symmetric_sts")
    put("dir/c.jsonl", 4)
    put("dir/d_no_in_batch_neg.jsonl", 5)
    datasets = build(tmp_path / "dir", same_dataset=True, small_threshold=10).datasets
    assert [(len(d), d.type, d.own_negatives_only, d.batch_size) for d in datasets] == [
        (6, "normal", False, 8), (3, "symmetric_sts", False, 4), (5, "normal", True, 8),
    ]  # fmt: skip
    assert queries(datasets[0]) == [f"dir/a.jsonl {i}" for i in range(2)] + [f"dir/c.jsonl {i}" for i in range(4)]


def test_sample(put, build):
    path = put("a.jsonl", 50)
    first = queries(build(path, most_rows=10).datasets[0])
    assert len(set(first)) == 10
    assert [int(query.split()[1]) for query in first] == sorted(int(query.split()[1]) for query in first)
    random.seed(5)
    assert queries(build(path, most_rows=10).datasets[0]) == first
    assert queries(build(path, most_rows=10, seed=2).datasets[0]) != first
    assert len(build(path, most_rows=80).datasets[0]) == 50


# Types and columns


@pytest.mark.parametrize(
    ("extra", "group", "batch"),
    [
        ({}, 3, 8), ({"type": "normal"}, 3, 8), ({"type": "only_1neg"}, 2, 8), ({"type": "symmetric_sts"}, 3, 4),
        ({"type": "symmetric_class"}, 3, 4), ({"type": "symmetric_class", "neg": ["n"]}, 2, 4),
        ({"type": "symmetric_clustering", "category": "c"}, 3, 4), ({"batch_size": 5}, 3, 5),
        ({"type": "symmetric_sts", "batch_size": 6, "train_group_size": 2}, 2, 6),
        ({"type": "only_1neg", "train_group_size": 4}, 4, 8),
    ],
)  # fmt: skip
def test_types_and_columns(extra, group, batch, put, build):
    path = put("a.jsonl", 2, **extra)
    (dataset,) = build(path, same_dataset=True).datasets
    assert (dataset.group_size, dataset.batch_size) == (group, batch)
    (flat,) = build(path).datasets
    assert (flat.group_size, flat.batch_size) == (3, 8)


def test_batch_size_is_never_zero(put, build):
    assert build(put("a.jsonl", 2, type="symmetric_sts"), same_dataset=True, batch_size=1).datasets[0].batch_size == 1


def test_mixed_types_name_the_row(put, build, tmp_path):
    rows = [{"query": f"q{i}", "pos": ["p"], "neg": ["n"]} for i in range(5)]
    rows[3]["type"] = "only_1neg"
    path = put("a.jsonl", rows)
    with pytest.raises(DataError, match=f"{path}:4.*only_1neg"):
        build(path, same_dataset=True)
    assert len(build(path)) == 5


# Rows


def test_empty_negatives_name_every_file_and_line(put, build):
    rows = [{"query": f"q{i}", "pos": ["p"], "neg": ["n"] * (i != 1 and i != 2)} for i in range(4)]
    one, other = put("a.jsonl", rows), put("b.jsonl", rows[:2])
    with pytest.raises(DataError) as error:
        build(one, other, put("c.jsonl", 2))
    assert f"{one}:2: `neg` is empty (2 rows, lines 2, 3)" in str(error.value)
    assert f"{other}:2" in str(error.value)
    assert "c.jsonl" not in str(error.value)
    assert [d.group_size for d in build(one, other, group_size=1).datasets] == [1, 1]


def test_neither_in_batch_nor_own_negatives(put, build):
    with pytest.raises(DataError, match="loss is 0"):
        build(put("a_no_in_batch_neg.jsonl", 4), group_size=1)


def test_errors_name_lines_and_are_not_endless(put, build):
    path = put("a.jsonl", [{"query": "", "pos": ["p"], "neg": []}] * 30)
    with pytest.raises(DataError) as error:
        build(path)
    assert f"{path}:1: `query`" in str(error.value)
    assert "and 20 more" in str(error.value)


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_blank_lines_and_byte_order_mark_do_not_shift_rows(ending, build, tmp_path):
    rows = [json.dumps({"query": f"q{i} \u2028", "pos": ["p"], "neg": ["n"]}, ensure_ascii=False) for i in range(4)]
    text = "\ufeff" + rows[0] + "\r\n\n   \n" + rows[1] + "\n" + rows[2] + "\n\n\n" + rows[3]
    data = text.encode()
    pack = {"": lambda d: d, ".gz": gzip.compress, ".zst": zstandard.compress}[ending]
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(pack(data))
    (dataset,) = build(path).datasets
    places = [dataset.read(position) for position in range(4)]
    assert [row.query for _, row in places] == [f"q{i} \u2028" for i in range(4)]
    assert [place for place, _ in places] == [f"{path}:{line}" for line in (1, 4, 5, 8)]
    with pytest.raises(IndexError):
        dataset.read(4)


def test_damaged_archive(build, put, tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(put("a.jsonl", 50).read_bytes())[:-30])
    with pytest.raises(DataError, match="damaged gzip"):
        build(path)


def test_file_that_changes_later(put, build):
    path = put("a.jsonl", 3)
    dataset = build(path).datasets[0]
    path.write_text("short\n")
    with pytest.raises(DataError, match=f"{path}:2.*changed"):
        dataset.read(1)
