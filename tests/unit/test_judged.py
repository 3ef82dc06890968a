"""Reading judged data: the layouts that are understood, and what is said of those that are not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from bgectl.errors import DataError, UsageError
from bgectl.evaluate.judged import load_judged

CORPUS = [
    {"_id": "d1", "title": "Owls", "text": "hunt at night."},
    {"_id": "d2", "title": "", "text": "Bread needs yeast."},
    {"_id": "d3", "text": "Trains run on rails."},
]
QUERIES = [{"_id": "q1", "text": "night birds"}, {"_id": "q2", "text": "baking"}, {"_id": "q3", "text": "unjudged"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td2\t1\n"


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture
def beir(tmp_path):
    def make(corpus=CORPUS, queries=QUERIES, **splits: str) -> Path:
        (tmp_path / "qrels").mkdir(exist_ok=True)
        (tmp_path / "corpus.jsonl").write_text(corpus if isinstance(corpus, str) else lines(corpus), encoding="utf-8")
        (tmp_path / "queries.jsonl").write_text(lines(queries), encoding="utf-8")
        for split, content in (splits or {"test": QRELS}).items():
            (tmp_path / "qrels" / f"{split}.tsv").write_text(content, encoding="utf-8")
        return tmp_path

    return make


def test_beir_folder(beir):
    judged = load_judged(beir())
    assert judged.query_ids == ["q1", "q2"]
    assert judged.queries == ["night birds", "baking"]
    assert judged.passage_ids == ["d1", "d2", "d3"]
    assert judged.passages == ["Owls hunt at night.", "Bread needs yeast.", "Trains run on rails."]
    assert judged.qrels == {"q1": {"d1": 2, "d2": 0}, "q2": {"d2": 1}}
    assert (judged.left_out, judged.judgments, judged.itself) == (1, 2, {})
    assert judged.prompts == [None, None]


@pytest.mark.parametrize("qrels", [
    "q1\td1\t2\nq1\td2\t0\nq2\td2\t1\n",  # no heads
    "q1 0 d1 2\nq1 0 d2 0\nq2 0 d2 1\n",  # TREC
    "q1\tQ0\td1\t2\nq1\tQ0\td2\t0\nq2\tQ0\td2\t1\n",  # TREC with tabs
    "query-id\tcorpus-id\tscore\r\nq1\td1\t2.0\r\nq1\td2\t0\r\n\r\nq2\td2\t1\r\n",  # Windows, a blank line
    QRELS + "q1\td1\t2\n",  # the same judgment twice
])  # fmt: skip
def test_forms_of_judgments(beir, qrels):
    assert load_judged(beir(test=qrels)).qrels == {"q1": {"d1": 2, "d2": 0}, "q2": {"d2": 1}}


def test_compressed_files(beir):
    folder = beir()
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress((folder / "corpus.jsonl").read_bytes()))
    (folder / "queries.jsonl.zst").write_bytes(zstandard.compress((folder / "queries.jsonl").read_bytes()))
    (folder / "qrels/test.tsv.gz").write_bytes(gzip.compress((folder / "qrels/test.tsv").read_bytes()))
    expected = load_judged(folder)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        (folder / name).unlink()
    assert load_judged(folder) == expected


def test_line_separators_inside_a_text_do_not_end_a_line(beir):
    text = "one\u2028two\x85three"
    assert load_judged(beir(corpus=[{"_id": "d1", "text": text}, *CORPUS[1:]])).passages[0] == text


def test_numbers_as_ids(beir):
    folder = beir(corpus=[{"_id": 7, "text": "seven"}], queries=[{"_id": 1, "text": "which"}], test="1\t7\t1\n")
    assert load_judged(folder).qrels == {"1": {"7": 1}}


def test_a_missing_split_names_those_there_are(beir):
    with pytest.raises(UsageError) as caught:
        load_judged(beir(dev=QRELS, train=QRELS))
    assert caught.value.hint == "there is: dev, train (choose by --split)"
    assert load_judged(beir(dev=QRELS), "dev").query_ids == ["q1", "q2"]


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_missing_part_is_named(beir, name):
    folder = beir()
    (folder / name).unlink()
    with pytest.raises(UsageError, match="test" if "test" in name else name):
        load_judged(folder)


def test_nothing_there(tmp_path):
    with pytest.raises(UsageError, match="no such"):
        load_judged(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no data file"):
        load_judged(tmp_path)


@pytest.mark.parametrize(("broken", "line", "message"), [
    ('{"_id": "d1", "text": "a"}\n{"_id": "d2", "text": ""}\n{"_id": "d1", "text": ""}\n', 3, "`d1` stands on line 1"),
    ('{"_id": "d1", "text": "a"}\n{"_id": "d2"}\n', 2, "`text` should be a string, found nothing"),
    ('{"_id": "d1", "text": ["a"]}\n', 1, "`text` should be a string, found a list"),
    ('{"text": "a"}\n', 1, "`_id` should be a string"),
    ('{"_id": "", "text": "a"}\n', 1, "found an empty one"),
    ('{"_id": true, "text": "a"}\n', 1, "found a boolean"),
    ('{"_id": "d1", "title": 3, "text": "a"}\n', 1, "`title` should be a string, found a number"),
    ('{"_id": "d1", "text": "a"}\n{"_id": "d2", "text": \n', 2, "not valid JSON"),
    ('{"_id": "d1", "text": "a"}\n["d2"]\n', 2, "expected a JSON object"),
])  # fmt: skip
def test_defects_of_the_corpus(beir, broken, line, message):
    folder = beir(corpus=broken)
    with pytest.raises(DataError, match=message) as caught:
        load_judged(folder)
    assert str(caught.value.where).startswith(f"{folder / 'corpus.jsonl'}:{line}")


@pytest.mark.parametrize(("qrels", "line", "message"), [
    ("q1\td1\n", 1, "found 2"),
    ("q1\td1\t1\nq2\t\t1\n", 2, "found 2"),
    ("q1\td1\thigh\n", 1, "whole number, found `high`"),
    ("query-id\tcorpus-id\tscore\nq1\td1\t0.5\n", 2, "whole number"),
    ("query-id\tcorpus-id\tscore\nq1\td1\tnan\n", 2, "whole number"),
    ("q1\td1\t1\nq1\td1\t2\n", 2, "another score"),
])  # fmt: skip
def test_defects_of_the_judgments(beir, qrels, line, message):
    folder = beir(test=qrels)
    with pytest.raises(DataError, match=message) as caught:
        load_judged(folder)
    assert caught.value.where == f"{folder / 'qrels/test.tsv'}:{line}"


def test_all_defects_of_a_file_are_told_at_once(beir):
    corpus = lines([{"_id": f"d{number}"} for number in range(15)])
    with pytest.raises(DataError) as caught:
        load_judged(beir(corpus=corpus))
    assert caught.value.where.endswith("corpus.jsonl:1")
    assert "corpus.jsonl:10: `text`" in caught.value.message
    assert caught.value.message.endswith("and 5 more")


@pytest.mark.parametrize(("qrels", "message"), [
    ("query-id\tcorpus-id\tscore\n", "no judgments"),
    ("", "no judgments"),
    ("q1\td1\t0\n", "no query has a relevant"),
    ("x1\td1\t1\n", "none of its query ids is known"),
    ("q1\tx1\t1\n", "none of its passage ids is known"),
])  # fmt: skip
def test_judgments_that_cannot_be_used(beir, qrels, message):
    with pytest.raises(DataError, match=message):
        load_judged(beir(test=qrels))


def test_some_unknown_ids_are_a_warning(beir, capsys):
    judged = load_judged(beir(test=QRELS + "q9\td1\t1\nq2\td9\t1\n"))
    said = capsys.readouterr().err
    assert "1 of 3 query ids are unknown, such as `q9`; not evaluated" in said
    assert "1 of 3 passage ids are unknown, such as `d9`; counted as never found" in said
    assert judged.query_ids == ["q1", "q2"]
    assert judged.qrels["q2"] == {"d2": 1, "d9": 1}


def test_a_judged_query_without_text(beir):
    with pytest.raises(DataError, match="`q1` is judged and its text is empty"):
        load_judged(beir(queries=[{"_id": "q1", "text": " "}, *QUERIES[1:]]))


def test_a_query_that_is_a_passage_is_known_by_id_and_text(beir):
    corpus = [*CORPUS, {"_id": "q1", "title": "Argument", "text": "night birds"}, {"_id": "q2", "text": "other text"}]
    assert load_judged(beir(corpus=corpus)).itself == {0: 3}


def test_training_rows(tmp_path):
    rows = [
        {"query": "night birds", "pos": ["Owls hunt.", "Bats too."], "neg": ["Bread needs yeast."]},
        {"query": "baking", "pos": ["Bread needs yeast."], "neg": ["Owls hunt."], "prompt": "Recipe: "},
        {"query": "night birds", "pos": ["Nightjars."], "neg": []},
    ]
    path = tmp_path / "held.jsonl"
    path.write_text(lines(rows), encoding="utf-8")
    judged = load_judged(path)
    assert judged.queries == ["night birds", "baking"]
    assert judged.prompts == [None, "Recipe: "]
    assert judged.passages == ["Owls hunt.", "Bats too.", "Bread needs yeast.", "Nightjars."]
    assert judged.qrels == {"q1": {"p1": 1, "p2": 1, "p4": 1}, "q2": {"p3": 1}}
    assert (judged.left_out, judged.itself) == (0, {})
    inside = tmp_path / "folder"
    inside.mkdir()
    (inside / "a.jsonl").write_text(lines(rows[:2]), encoding="utf-8")
    (inside / "b.jsonl").write_text(lines(rows[2:]), encoding="utf-8")
    assert load_judged(inside).qrels == judged.qrels


def test_symmetric_rows_do_not_find_themselves(tmp_path):
    path = tmp_path / "sts.jsonl"
    path.write_text(lines([{"query": "A", "pos": ["B"], "neg": []}, {"query": "B", "pos": ["A"], "neg": []}]))
    assert load_judged(path).itself == {0: 1, 1: 0}


def test_a_broken_row_is_named(tmp_path):
    path = tmp_path / "held.jsonl"
    path.write_text(lines([{"query": "a", "pos": ["b"], "neg": []}, {"query": "c", "pos": "d", "neg": []}]))
    with pytest.raises(DataError) as caught:
        load_judged(path)
    assert str(caught.value.where).startswith(f"{path}:2")
    path.write_text("\n")
    with pytest.raises(DataError, match="no rows"):
        load_judged(path)
