"""Held out means that nothing of it is seen in training; and a sorted file holds the rows of its lengths."""

import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgectl import jsonl
from bgectl.data import split
from bgectl.data.copies import near_copies, same_text, shingles
from bgectl.data.near import near_edges
from bgectl.errors import DataError, UsageError
from bgectl.evaluate.judged import load_judged
from bgectl.manifest import read_manifest
from bgectl.options.split import LENGTHS, SplitOptions


def read(path):
    return [row for _, row in jsonl.read_objects(path)]


def sides(out, name="rows.jsonl"):
    """Rows of both sides."""
    return [read(out / side / name) if (out / side / name).exists() else [] for side in split.SIDES]


def asked(rows):
    """What must not be on both sides, as keys."""
    return {same_text(text) for row in rows for text in (row["query"], *row["pos"])}


WORDS = [f"{a}{b}" for a in "abcdefgh" for b in "xyz"]
spelled = st.sampled_from(WORDS).flatmap(lambda word: st.sampled_from([word, word.upper(), f" {word}", f"{word}\t"]))
graphs = st.lists(
    st.tuples(spelled, st.lists(spelled, min_size=1, max_size=2), st.lists(spelled, max_size=3)),
    min_size=2,
    max_size=30,
)


@settings(max_examples=80, deadline=None)
@given(drawn=graphs, share=st.sampled_from([0.1, 0.3, 0.5, 1.0, 3.0]), seed=st.integers(0, 5), drop=st.booleans())
def test_no_text_is_on_both_sides(tmp_path_factory, drawn, share, seed, drop):
    rows = []
    for query, pos, neg in drawn:
        known: set = set()
        # Rows as training takes them: each text once.
        pos = [text for text in pos if not (text in known or known.add(text))]
        neg = [text for text in neg if not (text in known or known.add(text))]
        rows.append({"query": query, "pos": pos, "neg": neg})
    folder = tmp_path_factory.mktemp("split")
    jsonl.write_objects(folder / "rows.jsonl", rows)
    options = SplitOptions(
        paths=[folder / "rows.jsonl"], output_dir=folder / "out", held_out=share, seed=seed, drop_leaked_negatives=drop
    )
    try:
        split.run(options)
    except (DataError, UsageError):
        assert not (folder / "out" / "train").exists()
        return
    train, held = sides(folder / "out")
    assert train, "nothing is left to train on"
    assert held, "nothing is held out"
    assert not asked(train) & asked(held)
    if drop:
        assert not {same_text(text) for row in train for text in row["neg"]} & asked(held)
    # Nothing else is changed or lost.
    order = {json.dumps(row, sort_keys=True) for row in rows}
    assert {json.dumps(row, sort_keys=True) for row in held} <= order
    assert len(train) + len(held) == len(rows)
    assert sorted((row["query"], *row["pos"]) for row in train + held) == sorted((r["query"], *r["pos"]) for r in rows)


def parts(edges, count):
    """The component of each of `count` things, numbered in their order."""
    label = list(range(count))
    for one, other in edges:
        old, new = label[other], label[one]
        label = [new if value == old else value for value in label]
    first: dict = {}
    return [first.setdefault(value, len(first)) for value in label]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), words=st.integers(1, 40), template=st.integers(0, 40))
def test_near_copies_are_those_that_comparing_all_finds(seed, words, template):
    draw = random.Random(seed)
    vocabulary = ["".join(draw.choices("abcdefg ", k=draw.randint(1, 6))) for _ in range(50)]
    head = " ".join(draw.choices(vocabulary, k=template))
    bases = [draw.choices(vocabulary, k=words) for _ in range(6)]
    texts = []
    for _ in range(30):
        text = list(draw.choice(bases))
        for _ in range(draw.randint(0, 3)):
            text[draw.randrange(len(text))] = draw.choice(vocabulary)
        texts.append(f"{head} {' '.join(text)} x")
    sets = list(map(shingles, texts))
    everything = [(i, j) for i, j in itertools.combinations(range(30), 2) if near_copies(sets[i], sets[j])]
    found = list(near_edges(texts))
    assert set(map(frozenset, found)) <= set(map(frozenset, everything))
    assert parts(found, 30) == parts(everything, 30)


def test_near_copies_stay_together(tmp_path):
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    passages = [" ".join("".join(draw.choices(letters, k=6)) for _ in range(20)) for _ in range(40)]
    rows = [{"query": f"q{number}", "pos": [text]} for number, text in enumerate(passages)]
    rows += [{"query": f"again {number}", "pos": [f"{text} end"]} for number, text in enumerate(passages)]
    jsonl.write_objects(tmp_path / "rows.jsonl", rows)
    common = {"paths": [tmp_path / "rows.jsonl"], "held_out": 0.5}
    split.run(SplitOptions(**common, output_dir=tmp_path / "near", near=True))
    split.run(SplitOptions(**common, output_dir=tmp_path / "plain"))

    def torn(out):
        train, held = sides(out)
        known = {row["pos"][0].removesuffix(" end") for row in held}
        return sum(row["pos"][0].removesuffix(" end") in known for row in train)

    assert torn(tmp_path / "near") == 0
    assert torn(tmp_path / "plain") > 0, "the case is too easy"
    facts = read_manifest(tmp_path / "near" / "split")
    assert (facts["groups"], facts["largest_group"], facts["held_out_rows"]) == (40, 2, 40)


@pytest.fixture
def rows(tmp_path):
    """A hundred rows without a common text, but for the negatives: each has the positives of others."""
    path = tmp_path / "rows.jsonl"
    jsonl.write_objects(path, [
        {"query": f"q{n}", "pos": [f"p{n}"], "neg": [f"p{(n + k) % 100}" for k in (1, 2, 3)], "pos_scores": [1.5],
         "neg_scores": [0.1, 0.2, 0.3], "id": n}
        for n in range(100)
    ])  # fmt: skip
    return path


def test_share_count_and_seed(rows, tmp_path):
    found = {}
    for name, options in {
        "share": {"held_out": 0.2}, "count": {"held_out": 20}, "again": {"held_out": 20},
        "other": {"seed": 1, "held_out": 20},
    }.items():  # fmt: skip
        split.run(SplitOptions(paths=[rows], output_dir=tmp_path / name, **options))
        found[name] = sides(tmp_path / name)
        assert [len(side) for side in found[name]] == [80, 20]
        for side in found[name]:
            assert [row["id"] for row in side] == sorted(row["id"] for row in side), "the order is kept"
    assert found["share"] == found["count"] == found["again"]
    assert found["other"] != found["count"]


def test_leaked_negatives_are_counted_and_taken_out(rows, tmp_path, capsys):
    split.run(SplitOptions(paths=[rows], output_dir=tmp_path / "kept"))
    said = capsys.readouterr().err
    train, held = sides(tmp_path / "kept")
    hidden = {text for row in held for text in row["pos"]}
    leaks = sum(text in hidden for row in train for text in row["neg"])
    assert f"{leaks} negatives of {sum(not hidden.isdisjoint(row['neg']) for row in train)} training rows" in said
    split.run(SplitOptions(paths=[rows], output_dir=tmp_path / "taken", drop_leaked_negatives=True))
    fixed, same = sides(tmp_path / "taken")
    assert same == held
    for before, after in zip(train, fixed, strict=True):
        pairs = [pair for pair in zip(before["neg"], before["neg_scores"], strict=True) if pair[0] not in hidden]
        assert list(zip(after["neg"], after["neg_scores"], strict=True)) == pairs
        assert {key: after[key] for key in ("query", "pos", "pos_scores", "id")} == {
            key: before[key] for key in ("query", "pos", "pos_scores", "id")
        }


def test_one_big_group_is_explained(tmp_path):
    path = tmp_path / "rows.jsonl"
    chain = [{"query": f"q{n}", "pos": [f"p{n}", f"p{n + 1}"]} for n in range(60)]
    apart = [{"query": f"other {n}", "pos": [f"r{n}"]} for n in range(5)]
    jsonl.write_objects(path, chain + apart)
    with pytest.raises(DataError) as error:
        split.run(SplitOptions(paths=[path], output_dir=tmp_path / "out", held_out=20, beir=True))
    assert "20 rows cannot be held out without a leak" in str(error.value)
    assert "6 groups, the largest of 60 of 65 rows" in str(error.value)
    assert "hint: --held-out 5 takes these" in str(error.value)
    assert not (tmp_path / "out").exists()
    split.run(SplitOptions(paths=[path], output_dir=tmp_path / "out", held_out=5))
    assert [len(side) for side in sides(tmp_path / "out")] == [60, 5]


@pytest.mark.parametrize(("sizes", "wanted", "total"), [
    ([5, 5, 3, 3, 3], 9, 8), ([1] * 50, 7, 7), ([10, 10, 4], 4, 4), ([3, 3, 3], 2, 3), ([2, 2], 3, 2), ([9, 1], 5, 1),
])  # fmt: skip
def test_groups_come_near_what_is_wanted(sizes, wanted, total):
    found = {int(np.array(sizes)[split.choose(np.array(sizes), wanted, seed)].sum()) for seed in range(5)}
    assert max(abs(rows - wanted) for rows in found) <= max(abs(total - wanted), 1)
    assert max(found) < sum(sizes)


def test_several_files_keep_their_names(tmp_path):
    for place, name in (("a", "x"), ("b", "x"), ("c-no_in_batch_neg", "y")):
        (tmp_path / place).mkdir()
        jsonl.write_objects(
            tmp_path / place / f"{name}.jsonl", [{"query": f"{place} {n}", "pos": [f"{place} p{n}"]} for n in range(20)]
        )
    inputs = [tmp_path / "a" / "x.jsonl", tmp_path / "b", tmp_path / "c-no_in_batch_neg"]
    split.run(SplitOptions(paths=inputs, output_dir=tmp_path / "out", held_out=0.5))
    names = {"a-x.jsonl", "b-x.jsonl", "y-no_in_batch_neg.jsonl"}
    assert {path.name for path in (tmp_path / "out" / "train").iterdir()} == names
    assert sum(len(sides(tmp_path / "out", name)[1]) for name in names) == 30


def test_held_out_as_judged_data(rows, tmp_path):
    split.run(SplitOptions(paths=[rows], output_dir=tmp_path / "out", beir=True))
    judged = load_judged(tmp_path / "out" / "eval")
    held = sides(tmp_path / "out")[1]
    assert sorted(judged.queries) == sorted(row["query"] for row in held)
    assert set(judged.passages) == {f"p{n}" for n in range(100)}
    texts = dict(zip(judged.passage_ids, judged.passages, strict=True))
    for key, query in zip(judged.query_ids, judged.queries, strict=True):
        relevant = [texts[passage] for passage, grade in judged.qrels[key].items() if grade > 0]
        assert relevant == [query.replace("q", "p")]
    split.run(SplitOptions(paths=[rows], output_dir=tmp_path / "few", beir=True, corpus="held-out"))
    few = load_judged(tmp_path / "few" / "eval")
    assert set(few.passages) == {text for row in held for text in row["pos"] + row["neg"]}


def test_nothing_is_written_over_without_being_asked(rows, tmp_path):
    options = {"paths": [rows], "output_dir": tmp_path / "out", "held_out": 0.3, "beir": True}
    split.run(SplitOptions(**options))
    with pytest.raises(UsageError, match="exists already"):
        split.run(SplitOptions(**options))
    split.run(SplitOptions(**options, overwrite=True, seed=7))
    assert [len(side) for side in sides(tmp_path / "out")] == [70, 30]
    assert sorted(load_judged(tmp_path / "out" / "eval").queries) == sorted(
        r["query"] for r in sides(tmp_path / "out")[1]
    )


# By length.


def test_rows_are_sorted_by_their_longest_text(tmp_path):
    lengths = [(3, 4, 5), (9, 1, 1), (1, 10, 1), (1, 1, 20), (2, 2, 40)]
    rows = [{"query": "q" * a, "pos": ["p" * b], "neg": ["n" * c]} for a, b, c in lengths]
    jsonl.write_objects(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "out"
    ranges = ["0-10", "10-20", "20-30"]
    split.run(SplitOptions(paths=[tmp_path / "rows.jsonl"], output_dir=out, by_length=ranges, unit="characters"))
    found = {path.name: read(path) for path in out.glob("*.jsonl")}
    assert found == {
        "rows_len-0-10.jsonl": rows[:2], "rows_len-10-20.jsonl": rows[2:3], "rows_len-20-30.jsonl": rows[3:4],
    }  # fmt: skip
    assert read_manifest(out / "split")["outside"] == 1


def test_token_lengths_are_the_tokenizers(minilm, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm)
    draw = random.Random(1)
    words = ["antidisestablishmentarianism", "cat", "don't", "日本", "Zürich"]
    rows = [
        {"query": f"q{n}", "pos": [" ".join(draw.choices(words, k=draw.randint(1, 60)))],
         "neg": ["cat " * draw.randint(1, 90)]}
        for n in range(50)
    ]  # fmt: skip
    jsonl.write_objects(tmp_path / "rows.jsonl", rows)
    ranges = ["0-50", "50-100", "100-inf"]
    out = tmp_path / "out"
    split.run(SplitOptions(paths=[tmp_path / "rows.jsonl"], output_dir=out, by_length=ranges, tokenizer=minilm))
    expected: dict = {}
    for row in rows:
        longest = max(len(ids) for ids in tokenizer([row["query"], *row["pos"], *row["neg"]])["input_ids"])
        name = next(text for text in ranges if longest < float(text.split("-")[1]))
        expected.setdefault(f"rows_len-{name}.jsonl", []).append(row)
    assert {path.name: read(path) for path in out.glob("*.jsonl")} == expected
    assert len(expected) == 3, "the case is too easy"


def test_names_that_turn_in_batch_negatives_off_still_do(tmp_path):
    from bgectl.data.datasets import own_negatives_only

    path = tmp_path / "labels-no_in_batch_neg.jsonl"
    jsonl.write_objects(path, [{"query": "q", "pos": ["p"], "neg": ["n"]}])
    split.run(SplitOptions(paths=[path], output_dir=tmp_path / "out", by_length=list(LENGTHS), unit="characters"))
    (made,) = (tmp_path / "out").rglob("*.jsonl")
    assert made.name == "labels-no_in_batch_neg_len-0-500.jsonl"
    assert own_negatives_only(made)
