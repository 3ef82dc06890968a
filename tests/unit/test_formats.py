"""Every format, from real files and to them; nothing that a format can hold is lost on the way there and back."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgectl import jsonl
from bgectl.data import convert
from bgectl.data.convert import FORMATS
from bgectl.errors import DataError, UsageError
from bgectl.evaluate.judged import load_judged
from bgectl.manifest import read_manifest
from bgectl.options.convert import ConvertOptions

ROWS = [
    {"query": "how do I bleed a radiator?", "pos": ["Off,\nthen open the \"key\"."], "neg": ["A valve.", "Ünï; 日"]},
    {"query": "tab\tin a query", "pos": ["one", "two"], "neg": ["three", "A valve."]},
    {"query": "no, negatives", "pos": ["p"], "neg": []},
]  # fmt: skip
SCORED = [
    {"query": "a", "pos": ["p", "q"], "neg": ["n", "m"], "pos_scores": [0.9, 0.5], "neg_scores": [0.25, -1.5]},
    {"query": "b", "pos": ["p"], "neg": ["n"], "pos_scores": [3.0], "neg_scores": [0.125]},
]


@pytest.fixture
def run(tmp_path, capsys):
    """Convert and return what stands in the output as bgectl's rows, or the file's text, and what was said."""

    def call(source, output, text=False, **options):
        source = source if isinstance(source, str) else str(source)
        convert.run(ConvertOptions(input_file=source, output_file=tmp_path / output, **options))
        place = tmp_path / output
        result = place.read_text() if text else [row for _, row in jsonl.read_objects(place)]
        return result, capsys.readouterr().err

    return call


def there_and_back(rows, folder, format, ending="", back=None, **options):
    """Rows written in a format and read again, without the ids that the format gave them."""
    source, middle, result = folder / "rows.jsonl", folder / f"there{ending}", folder / "back.jsonl"
    jsonl.write_objects(source, rows)
    convert.run(
        ConvertOptions(input_file=str(source), output_file=middle, from_format="bgectl", to_format=format, **options)
    )
    convert.run(
        ConvertOptions(
            input_file=str(middle), output_file=result, from_format=format, to_format="bgectl", **(back or {})
        )
    )
    return [{key: value for key, value in row.items() if key != "query_id"} for _, row in jsonl.read_objects(result)]


HOLDS_TEXTS = [
    ("bgectl", ".jsonl"), ("bgectl", ".jsonl.zst"), ("sentence-transformers", ".jsonl"),
    ("sentence-transformers", ".csv"),
    ("sentence-transformers", ".parquet"), ("jsonl", ".jsonl.gz"), ("csv", ".csv"), ("csv", ".csv.gz"), ("tsv", ".tsv"),
    ("tsv", ".tsv.zst"), ("parquet", ".parquet"), ("datasets", ""), ("tevatron", ".jsonl"), ("beir", ""),
]  # fmt: skip


@pytest.mark.parametrize(("format", "ending"), HOLDS_TEXTS)
def test_texts_come_back(format, ending, tmp_path):
    assert there_and_back(ROWS, tmp_path, format, ending) == ROWS


@pytest.mark.parametrize(("format", "ending"), [item for item in HOLDS_TEXTS if item[0] != "beir"])
def test_scores_come_back(format, ending, tmp_path):
    assert there_and_back(SCORED, tmp_path, format, ending) == SCORED


@pytest.mark.parametrize("format", ["bgectl", "parquet", "datasets", "csv", "jsonl"])
def test_labels_come_back(format, tmp_path):
    rows = [
        {"query": "a", "pos": ["p"], "neg": ["n"], "prompt": "Find it", "type": "symmetric_sts", "batch_size": 4},
        {"query": "a", "pos": ["p"], "neg": ["m"], "prompt": "Other"},
    ]
    ending = {"bgectl": ".jsonl", "datasets": ""}.get(format, f".{format}")
    found = there_and_back(rows, tmp_path, format, ending)
    assert [{key: value for key, value in row.items() if value is not None} for row in found] == rows


def test_all_formats_are_tried_there_and_back():
    elsewhere = {"llamaindex", "msmarco", "msmarco-ids"}
    assert {format for format, _ in HOLDS_TEXTS} | elsewhere == set(FORMATS)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)
rows_ = st.lists(
    st.tuples(texts, st.lists(texts, min_size=3, max_size=6, unique=True), st.integers(1, 2)), max_size=5, min_size=1,
    unique_by=lambda item: item[0],
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(drawn=rows_, format=st.sampled_from([item for item in HOLDS_TEXTS if item[0] not in ("datasets", "beir")]))
def test_any_texts_come_back(tmp_path_factory, drawn, format):
    rows = [{"query": query, "pos": passages[:cut], "neg": passages[cut:]} for query, passages, cut in drawn]
    assert there_and_back(rows, tmp_path_factory.mktemp("any"), *format) == rows


@pytest.mark.parametrize("shape", ["tuple", "triplet", "pair"])
@pytest.mark.parametrize("scored", [False, True])
def test_each_shape_comes_back(shape, scored, tmp_path):
    rows = SCORED if scored else ROWS[:2]
    assert there_and_back(rows, tmp_path, "sentence-transformers", ".jsonl", shape=shape) == rows


# What the files look like.


def test_sentence_transformers_trains_on_what_is_written(run, write_rows):
    import datasets

    source = write_rows(ROWS[:2])
    run(source, "st.jsonl", text=True, to_format="sentence-transformers")
    loaded = datasets.load_dataset("json", data_files=str(source.parent / "st.jsonl"), split="train")
    assert loaded.column_names == ["anchor", "positive", "negative_1", "negative_2"]
    assert loaded[2] == {
        "anchor": "tab\tin a query",
        "positive": "two",
        "negative_1": "three",
        "negative_2": "A valve.",
    }


@pytest.mark.parametrize(("shape", "header"), [
    ("tuple", "anchor,positive,negative_1,negative_2,scores"), ("triplet", "anchor,positive,negative,scores"),
    ("pair", "sentence1,sentence2,label,score"),
])  # fmt: skip
def test_columns_of_each_shape(run, write_rows, shape, header):
    text, _ = run(write_rows(SCORED), "out.csv", text=True, to_format="sentence-transformers", shape=shape)
    assert text.splitlines()[0] == header
    lines = list(csv.reader(text.splitlines()))
    assert {len(line) for line in lines} == {len(header.split(","))}
    assert lines[1] == {
        "tuple": ["a", "p", "n", "m", "[0.9,0.25,-1.5]"], "triplet": ["a", "p", "n", "[0.9,0.25]"],
        "pair": ["a", "p", "1", "0.9"],
    }[shape]  # fmt: skip


def test_negatives_makes_every_line_full(run, write_rows):
    rows = [{"query": str(n), "pos": ["p"], "neg": [f"n{i}" for i in range(n)]} for n in range(1, 5)]
    text, said = run(write_rows(rows), "out.csv", text=True, negatives=2)
    assert text.splitlines() == ["query,positive,negative_1,negative_2", "2,p,n0,n1", "3,p,n0,n1", "4,p,n0,n1"]
    assert "rows left out, since they have fewer negatives than 2: 1" in said
    assert "negatives left out that are beyond --negatives: 3" in said


def test_output_columns_have_the_names_that_are_given(run, write_rows):
    text, _ = run(write_rows(ROWS[:1]), "out.tsv", text=True, output_columns=["query=frage", "negative=falsch"])
    assert text.splitlines()[0] == "frage\tpositive\tfalsch_1\tfalsch_2"


def test_tevatron_file(run, tmp_path):
    record = {
        "query_id": "7", "query": "q",
        "positive_passages": [{"docid": "3", "title": "Title", "text": "text"}],
        "negative_passages": [{"docid": "4", "title": "", "text": "no"}, {"docid": "5", "text": "nor"}],
    }  # fmt: skip
    source = tmp_path / "tevatron.jsonl"
    source.write_text(json.dumps(record) + "\n")
    rows, said = run(source, "rows.jsonl")
    assert rows == [{"query": "q", "pos": ["Title text"], "neg": ["no", "nor"], "query_id": "7"}]
    assert "read as tevatron" in said
    text, _ = run(tmp_path / "rows.jsonl", "again.jsonl", text=True, to_format="tevatron")
    again = json.loads(text)
    assert again["query_id"] == "7"
    assert [passage["text"] for passage in again["positive_passages"]] == ["Title text"]
    assert len({passage["docid"] for passage in again["positive_passages"] + again["negative_passages"]}) == 3


def test_llamaindex_file(run, tmp_path):
    whole = {
        "queries": {"u1": "q one", "u2": "q two", "u3": "unanswered"}, "corpus": {"a": "A", "b": "B"},
        "relevant_docs": {"u1": ["a"], "u2": ["b", "a"], "u3": []}, "mode": "text",
    }  # fmt: skip
    source = tmp_path / "pairs.json"
    source.write_text(json.dumps(whole, indent=4))
    rows, said = run(source, "rows.jsonl")
    assert rows == [
        {"query": "q one", "pos": ["A"], "neg": [], "query_id": "u1"},
        {"query": "q two", "pos": ["B", "A"], "neg": [], "query_id": "u2"},
    ]
    assert "read as llamaindex" in said
    assert "queries left out, since they have no relevant document: 1" in said
    text, said = run(tmp_path / "rows.jsonl", "again.json", text=True, to_format="llamaindex")
    again = json.loads(text)
    assert again["mode"] == "text"
    assert again["queries"] == {"u1": "q one", "u2": "q two"}
    assert [again["corpus"][key] for key in again["relevant_docs"]["u2"]] == ["B", "A"]
    assert "lost" not in said


def test_llamaindex_cannot_hold_whose_negative_a_text_is(run, write_rows):
    text, said = run(write_rows(SCORED), "out.json", text=True, to_format="llamaindex")
    assert set(json.loads(text)["corpus"].values()) == {"p", "q", "n", "m"}
    assert "the format llamaindex does not hold" in said
    assert "`pos_scores` (in 2 rows)" in said
    assert "negative" in said


def test_msmarco_triples(run, tmp_path):
    source = tmp_path / "triples.tsv"
    source.write_text("q1\tp1\tn1\nq1\tp1\tn2\nq2\tp2\tn1\nq1\tp3\tn1\n")
    rows, _ = run(source, "rows.jsonl", from_format="msmarco")
    assert rows == [
        {"query": "q1", "pos": ["p1", "p3"], "neg": ["n1", "n2"]}, {"query": "q2", "pos": ["p2"], "neg": ["n1"]},
    ]  # fmt: skip
    apart, _ = run(source, "apart.jsonl", from_format="msmarco", group=False)
    assert [row["neg"] for row in apart] == [["n1"], ["n2"], ["n1"], ["n1"]]
    text, _ = run(tmp_path / "rows.jsonl", "again.tsv", text=True, to_format="msmarco")
    assert text.splitlines() == ["q1\tp1\tn1", "q1\tp1\tn2", "q1\tp3\tn1", "q1\tp3\tn2", "q2\tp2\tn1"]


def test_msmarco_says_what_tabs_became(run, write_rows):
    rows = [{"query": "a\tb", "pos": ["c\r\nd"], "neg": ["e"]}, {"query": "f", "pos": ["g"], "neg": []}]
    text, said = run(write_rows(rows), "out.tsv", text=True, to_format="msmarco")
    assert text == "a b\tc d\te\n"
    assert "tabs and line ends became spaces: 2" in said
    assert "no negative and so make no triple: 1" in said


def test_msmarco_ids(run, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "triples.tsv").write_text("1\t10\t11\n1\t10\t12\n2\t11\t10\n")
    (tmp_path / "in" / "collection.tsv").write_text("10\tten\n11\televen\n12\ttwelve\n13\tunused\n")
    (tmp_path / "in" / "queries.tsv").write_text("1\tone?\n2\ttwo?\n")
    rows, said = run(tmp_path / "in" / "triples.tsv", "rows.jsonl")
    assert rows == [
        {"query": "one?", "pos": ["ten"], "neg": ["eleven", "twelve"], "query_id": "1"},
        {"query": "two?", "pos": ["eleven"], "neg": ["ten"], "query_id": "2"},
    ]
    assert "read as msmarco-ids" in said
    (tmp_path / "out").mkdir()
    run(tmp_path / "rows.jsonl", "out/ids.tsv", text=True, to_format="msmarco-ids")
    again, _ = run(tmp_path / "out" / "ids.tsv", "again.jsonl")
    assert [(row["query"], row["pos"], row["neg"]) for row in again] == [(r["query"], r["pos"], r["neg"]) for r in rows]


def test_msmarco_ids_without_a_text(run, tmp_path):
    (tmp_path / "triples.tsv").write_text("1\t10\t11\n1\t10\t99\n")
    (tmp_path / "texts.tsv").write_text("10\tten\n11\televen\n")
    (tmp_path / "asked.tsv").write_text("1\tone?\n")
    files = {"collection": tmp_path / "texts.tsv", "queries": tmp_path / "asked.tsv"}
    with pytest.raises(DataError, match=r"triples\.tsv:2: the id `99` is not in .*texts\.tsv"):
        run(tmp_path / "triples.tsv", "rows.jsonl", **files)
    with pytest.raises(UsageError, match="--collection names it"):
        run(tmp_path / "triples.tsv", "rows.jsonl")


@pytest.fixture
def beir(tmp_path):
    """A folder in BEIR layout with two splits."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    passages = [
        {"_id": "d1", "title": "T", "text": "one"},
        {"_id": "d2", "title": "", "text": "two"},
        {"_id": "d3", "text": "three"},
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "a?"}\n{"_id": "q2", "text": "b?"}\n')
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td3\t0\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td2\t1\n")
    return folder


def test_beir_folder(run, beir):
    rows, said = run(beir, "rows.jsonl")
    assert rows == [{"query": "a?", "pos": ["T one"], "neg": ["two"], "query_id": "q1"}]
    assert "read as beir" in said
    assert "scores above 1 are taken as 1" in said
    assert "judged queries left out, since they have no relevant passage: 1" in said
    assert run(beir, "rows.jsonl", split="test")[0][0]["query"] == "b?"
    with pytest.raises(UsageError, match="has no split `dev`\nhint: --split takes one of test, train"):
        run(beir, "rows.jsonl", split="dev")


def test_beir_ids_that_are_missing_are_named(run, beir):
    (beir / "qrels" / "train.tsv").write_text("q1\td1\t1\nq1\td9\t1\nq8\td1\t1\nq2\td2\tx\n")
    with pytest.raises(DataError) as error:
        run(beir, "rows.jsonl")
    for line, words in ((2, "`d9` is not in"), (3, "`q8` is not in"), (4, "found `x`")):
        assert f"train.tsv:{line}: " in str(error.value)
        assert words in str(error.value)
    rows, said = run(beir, "rows.jsonl", skip_bad=True)
    assert [row["query"] for row in rows] == ["a?"]
    assert "3 defective records left out" in said


def test_beir_is_ready_to_evaluate_on(run, write_rows, tmp_path):
    convert.run(ConvertOptions(input_file=str(write_rows(ROWS)), output_file=tmp_path / "eval", to_format="beir"))
    judged = load_judged(tmp_path / "eval")
    assert judged.queries == [row["query"] for row in ROWS]
    assert set(judged.passages) == {text for row in ROWS for text in row["pos"] + row["neg"]}
    assert judged.judgments == 4


def test_pairs_with_a_score(run, tmp_path):
    source = tmp_path / "pairs.csv"
    source.write_text("sentence1,sentence2,score\na,b,0.9\na,c,0.1\nd,e,0.2\n")
    with pytest.raises(UsageError, match="--positive-from"):
        run(source, "rows.jsonl")
    rows, said = run(source, "rows.jsonl", positive_from=0.5)
    assert rows == [{"query": "a", "pos": ["b"], "neg": ["c"], "pos_scores": [0.9], "neg_scores": [0.1]}]
    assert "queries left out, since they have negatives and no positive: 1" in said
    rows, _ = run(source, "rows.jsonl", columns=["score="])
    assert rows == [{"query": "a", "pos": ["b", "c"], "neg": []}, {"query": "d", "pos": ["e"], "neg": []}]


def test_pairs_with_a_label(run, tmp_path):
    source = tmp_path / "pairs.jsonl"
    source.write_text('{"anchor":"a","positive":"b","label":1}\n{"anchor":"a","positive":"c","label":0}\n')
    assert run(source, "rows.jsonl")[0] == [{"query": "a", "pos": ["b"], "neg": ["c"]}]


@pytest.mark.parametrize("name", ["anchor", "query", "question", "sentence1"])
def test_names_in_use_are_known(run, tmp_path, name):
    source = tmp_path / "t.jsonl"
    source.write_text(
        json.dumps({name: "q", "positive": "p", "negative_1": "n", "negative_2": None, "negative_10": "m"}) + "\n"
    )
    rows, said = run(source, "rows.jsonl")
    assert rows == [{"query": "q", "pos": ["p"], "neg": ["n", "m"]}]
    assert "read as jsonl" in said


def test_columns_with_lists(run, tmp_path):
    source = tmp_path / "t.json"
    source.write_text(json.dumps([{"q": "x", "yes": ["a", "b"], "no": ["c"], "id": 3, "src": "web"}], indent=1))
    rows, said = run(
        source, "rows.jsonl", from_format="jsonl", columns=["query=q", "positive=yes", "negative=no"], keep=["src"]
    )
    assert rows == [{"query": "x", "pos": ["a", "b"], "neg": ["c"], "src": "web"}]
    assert "columns not used: id" in said


def test_semicolons_of_a_spreadsheet(run, tmp_path):
    source = tmp_path / "t.csv"
    source.write_bytes(b'\xef\xbb\xbfquery;positive\r\n"a;b";"c\r\nd"\r\n')
    assert run(source, "rows.jsonl")[0] == [{"query": "a;b", "pos": ["c\r\nd"], "neg": []}]


def test_saved_dataset_with_splits(run, tmp_path):
    import datasets

    parts = {
        name: datasets.Dataset.from_dict({"question": [f"{name}?"], "answer": ["yes"]}) for name in ("train", "dev")
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    rows, said = run(tmp_path / "saved", "rows.jsonl")
    assert rows == [{"query": "train?", "pos": ["yes"], "neg": []}]
    assert "read as datasets" in said
    assert run(tmp_path / "saved", "rows.jsonl", split="dev")[0][0]["query"] == "dev?"
    with pytest.raises(UsageError, match="has no split `x`"):
        run(tmp_path / "saved", "rows.jsonl", split="x")


def test_a_written_dataset_loads(run, write_rows, tmp_path):
    import datasets

    source = str(write_rows(SCORED))
    convert.run(ConvertOptions(input_file=source, output_file=tmp_path / "ds", to_format="datasets", split="dev"))
    loaded = datasets.load_dataset(str(tmp_path / "ds"), split="dev")
    assert list(map(dict, loaded)) == SCORED
    assert read_manifest(tmp_path / "ds" / "dataset")["rows"] == 2


def test_texts_stand_once_and_keep_their_scores(run, write_rows):
    row = {
        "query": "q",
        "pos": ["p", "p"],
        "neg": ["n", "p", "m", "n"],
        "pos_scores": [2, 3],
        "neg_scores": [1, 9, 0, 8],
    }
    rows, said = run(write_rows([row]), "out.jsonl")
    assert rows == [{"query": "q", "pos": ["p"], "neg": ["n", "m"], "pos_scores": [2], "neg_scores": [1, 0]}]
    assert "texts left out that stand in their row before: 2" in said
    assert "negatives left out that are a positive of their row: 1" in said


@pytest.mark.parametrize(("format", "ending"), [item for item in HOLDS_TEXTS if item[1]])
def test_same_input_same_bytes(write_rows, tmp_path, format, ending):
    source, output = str(write_rows(ROWS + SCORED)), tmp_path / f"out{ending}"
    found = []
    for _ in range(2):
        convert.run(ConvertOptions(input_file=source, output_file=output, to_format=format))
        found.append(output.read_bytes())
    assert found[0] == found[1]


def test_the_reading_side_of_a_folder_of_files(run, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for name in ("b", "a"):
        Path(folder, f"{name}.csv").write_text(f"query,positive\nsame,{name}\n")
    assert run(folder, "rows.jsonl")[0] == [{"query": "same", "pos": ["a", "b"], "neg": []}]
