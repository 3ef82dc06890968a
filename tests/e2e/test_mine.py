"""`bgectl mine`: negatives come from the ranks asked for, repeat by seed, and are never the answer."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from bgectl import jsonl
from bgectl.data.copies import same_text
from bgectl.encode import load_embedder


@pytest.fixture
def mine(inside, tiny_bert, tmp_path):
    """Mine with the tiny BERT; words given later win."""

    def call(source, *words, out="out.jsonl", model=tiny_bert):
        return inside(
            "mine",
            source,
            tmp_path / out,
            "--embedder-name-or-path",
            model,
            "--pooling-method",
            "mean",
            "--dtype",
            "float32",
            *words,
        )

    return call


@pytest.fixture
def pool_file(write_rows, tiny_words):
    """A pool of 100 distinct texts."""
    texts = [f"{first} {second}" for first, second in zip(tiny_words * 3, tiny_words[3:] * 3, strict=False)]
    texts = [f"{text} {index}" for index, text in enumerate(texts)][:100]
    return write_rows([{"text": text} for text in texts], "pool.jsonl"), texts


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check_clean(rows):
    """No negative is the query or a positive (copies included), and none stands twice."""
    for row in rows:
        keys = [same_text(text) for text in row["neg"]]
        assert len(set(keys)) == len(keys), f"a negative is repeated: {row}"
        answers = {same_text(text) for text in (row["query"], *row["pos"])}
        assert not answers & set(keys), f"an answer became a negative: {row}"


def test_the_seed_decides_the_bytes(mine, write_rows, toy_rows, tmp_path):
    source = write_rows(toy_rows(20))
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        done = mine(source, "-n", 4, "--range", "0-20", "--seed", seed, out=out)
        assert done.returncode == 0, done.stderr
    a, b, c = ((tmp_path / out).read_bytes() for out in "abc")
    assert a == b, "the same seed gives other bytes"
    assert a != c, "the seed has no effect"


def test_batches_do_not_decide_the_negatives(mine, write_rows, toy_rows, tmp_path):
    source = write_rows(toy_rows(20))
    mine(source, "-n", 4, "--range", "0-20", out="a")
    done = mine(source, "-n", 4, "--range", "0-20", "--search-batch-size", 3, "--batch-tokens", 30, out="b")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_rows_keep_their_order_and_their_other_keys(mine, write_rows, toy_rows, tmp_path):
    rows = toy_rows(12)
    for index, row in enumerate(rows):
        row |= {"id": index, "note": {"deep": [1, None, "ü\u2028"]}, "prompt": None}
    rows[3] = {"zuerst": 1, "neg": rows[3]["neg"], **rows[3], "pos_scores": [1.0], "neg_scores": [0.1, 0.2, 0.3]}
    del rows[4]["neg"]
    rows[5]["neg"] = []
    done = mine(write_rows(rows), "-n", 2, "--range", "0-20")
    assert done.returncode == 0, done.stderr
    # splitlines() would cut at the U+2028 inside the note.
    mined = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").strip("\n").split("\n")]
    scores = {"pos_scores", "neg_scores"}
    for before, after in zip(rows, mined, strict=True):
        kept = {key: value for key, value in before.items() if key not in scores | {"neg"}}
        assert {key: value for key, value in after.items() if key != "neg"} == kept
        assert len(after["neg"]) == 2
    assert list(mined[3]) == [key for key in rows[3] if key not in scores], "`neg` does not stay in its place"
    assert "teacher scores" in done.stderr
    check_clean(mined)


def brute_force(model, rows, pool):
    """Pool texts of each row, best first."""
    embedder = load_embedder(model, pooling="mean")
    scores = embedder.encode_queries([row["query"] for row in rows]) @ embedder.encode_passages(pool).T
    return [[pool[index] for index in np.argsort(-line, kind="stable")] for line in scores]


def test_negatives_come_from_the_ranks_asked_for(mine, write_rows, toy_rows, pool_file, tmp_path, tiny_bert):
    path, pool = pool_file
    rows = toy_rows(10)
    # The first row's answer is in the range: it leaves a gap, which nothing from outside the range fills.
    ranking = brute_force(tiny_bert, rows, pool)
    rows[0]["pos"] = [ranking[0][7].upper()]
    done = mine(write_rows(rows), "-n", 3, "--range", "5-15", "--candidate-pool", path)
    assert done.returncode == 0, done.stderr
    some = set()
    for row, ranked in zip(read(tmp_path / "out.jsonl"), ranking, strict=True):
        places = [ranked.index(text) for text in row["neg"]]
        assert len(places) == 3
        assert all(5 <= place < 15 for place in places), f"ranks {places} lie outside 5-15"
        assert places == sorted(places)
        some.update(places)
    assert len(some) > 6, "the draws take the same ranks over and over"
    # All ten ranks, one of which is the positive of row 0.
    done = mine(write_rows(rows), "-n", 10, "--range", "5-15", "--candidate-pool", path)
    mined = read(tmp_path / "out.jsonl")
    assert mined[1]["neg"] == ranking[1][5:15]
    assert mined[0]["neg"][:9] == [*ranking[0][5:7], *ranking[0][8:15]]
    assert len(mined[0]["neg"]) == 10
    assert "1 rows had too few texts" in done.stderr
    check_clean(mined)


def test_without_a_pool_the_texts_are_the_rows_own(mine, write_rows, toy_rows, tmp_path):
    rows = toy_rows(12)
    assert mine(write_rows(rows), "-n", 5, "--range", "0-30").returncode == 0
    own = {text for row in rows for text in (*row["pos"], *row["neg"])}
    mined = read(tmp_path / "out.jsonl")
    assert {text for row in mined for text in row["neg"]} <= own
    check_clean(mined)


def test_pool_titles_stand_before_the_text(mine, write_rows, tmp_path):
    pool = write_rows([{"title": "kaban", "text": "lodor"}, {"title": None, "text": "mifel"}], "pool.jsonl")
    source = write_rows([{"query": "rugus", "pos": ["tenim"]}])
    assert mine(source, "-n", 2, "--range", "0-2", "--candidate-pool", pool).returncode == 0
    assert sorted(read(tmp_path / "out.jsonl")[0]["neg"]) == ["kaban lodor", "mifel"]


def test_copies_of_query_and_positives_are_no_negatives(mine, write_rows, tmp_path):
    copies = ["Kaban  lodor", "kaban lodor ", "KABAN\tLODOR", "Mifel", " mifel", "rugus", "RUGUS", "tenim", "vodor"]
    pool = write_rows([{"text": text} for text in copies], "pool.jsonl")
    source = write_rows([{"query": "kaban lodor", "pos": ["mifel"], "neg": []}])
    done = mine(source, "-n", 8, "--range", "0-9", "--candidate-pool", pool)
    assert done.returncode == 0, done.stderr
    mined = read(tmp_path / "out.jsonl")
    check_clean(mined)
    assert {same_text(text) for text in mined[0]["neg"]} == {"rugus", "tenim", "vodor"}
    assert "fewer than 8 negatives" in done.stderr


def test_a_query_that_is_a_passage(mine, write_rows, tiny_words, tmp_path):
    rows = [{"query": word, "pos": [f"{word} a"], "neg": []} for word in tiny_words[:6]]
    rows.append({"query": f"{tiny_words[0]} a", "pos": [tiny_words[0]], "neg": []})
    assert mine(write_rows(rows), "-n", 4, "--range", "0-7").returncode == 0
    check_clean(read(tmp_path / "out.jsonl"))


# The ends of the pool


def test_a_range_beyond_the_pool_is_cut_with_a_warning(mine, write_rows, toy_rows, pool_file, tmp_path, tiny_bert):
    path, pool = pool_file
    rows = toy_rows(3)
    done = mine(write_rows(rows), "-n", 4, "--range", "96-500", "--candidate-pool", path)
    assert done.returncode == 0, done.stderr
    assert "beyond the pool of 100 texts" in done.stderr
    assert [row["neg"] for row in read(tmp_path / "out.jsonl")] == [
        ranked[96:] for ranked in brute_force(tiny_bert, rows, pool)
    ]


def test_a_range_that_starts_behind_the_pool_is_refused(mine, write_rows, toy_rows, pool_file, tmp_path):
    done = mine(write_rows(toy_rows(3)), "-n", 4, "--range", "100-110", "--candidate-pool", pool_file[0])
    assert done.returncode == 1
    assert "starts at rank 100 and the pool has 100 texts" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    "rows",
    [
        [{"query": "kaban", "pos": ["lodor"], "neg": []}],
        [{"query": "kaban", "pos": ["lodor"], "neg": ["Lodor", "LODOR "]}] * 5,
    ],
    ids=["one text", "duplicates only"],
)
def test_a_pool_without_any_negative_gives_none(rows, mine, write_rows, tmp_path):
    done = mine(write_rows(rows), "-n", 3, "--range", "0-10")
    assert done.returncode == 0, done.stderr
    assert [row["neg"] for row in read(tmp_path / "out.jsonl")] == [[]] * len(rows)
    assert f"{len(rows)} rows have fewer than 3 negatives" in done.stderr


# Files and failures


def test_in_place(mine, write_rows, toy_rows, tmp_path):
    source = write_rows(toy_rows(12))
    assert mine(source, "-n", 5, "--range", "0-20", out="out.jsonl").returncode == 0
    assert mine(source, "-n", 5, "--range", "0-20", out=source.name).returncode == 0
    assert source.read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    left = sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".manifest.json"))
    assert left == [".bgectl", "out.jsonl", "rows.jsonl"], "temporary files are left"


@pytest.mark.parametrize("damage", ["row", "pool", "model", "range"])
def test_a_failure_leaves_the_old_output(damage, mine, write_rows, toy_rows, tmp_path):
    rows = toy_rows(4)
    old = tmp_path / "out.jsonl"
    old.write_text("old\n")
    more, model = [], {}
    if damage == "row":
        rows[2]["pos"] = []
    if damage == "pool":
        more = ["--candidate-pool", write_rows([{"text": "kaban"}, {"txt": "lodor"}], "pool.jsonl")]
    if damage == "model":
        model = {"model": tmp_path / "nowhere"}
    done = mine(write_rows(rows), "--range", "900-901" if damage == "range" else "0-3", *more, **model)
    assert done.returncode == 1
    expected = {"row": "rows.jsonl:3", "pool": "pool.jsonl:2", "model": "nowhere", "range": "--range"}[damage]
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert old.read_text() == "old\n"
    assert not list(tmp_path.glob(".*")), "temporary files are left"


def test_a_missing_model_is_one_line(mine, write_rows, toy_rows, tmp_path):
    done = mine(write_rows(toy_rows(4)), "--range", "0-3", model=tmp_path / "nowhere")
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert sum("no such model folder" in line for line in lines) == 1
    assert len(lines) == 2, f"an error and a hint are wanted: {done.stderr}"


def test_without_faiss_the_message_says_how_to_get_it(bgectl, write_rows, toy_rows, tmp_path, tiny_bert):
    shim = tmp_path / "shim"
    shim.mkdir()
    (shim / "faiss.py").write_text("raise ImportError('no faiss here')\n")
    done = bgectl(
        "mine", write_rows(toy_rows(4)), tmp_path / "out.jsonl", "--embedder-name-or-path", tiny_bert, "--range", "0-9",
        "--index", "Flat", env={"PYTHONPATH": str(shim)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "--index needs faiss" in done.stderr
    assert "pip install 'bgectl[cpu]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_another_process_writes_the_same_bytes(mine, bgectl, write_rows, toy_rows, tmp_path, tiny_bert):
    """Nothing hangs on the hash seed; stdin and stdout are files too."""
    source = write_rows(toy_rows(20))
    assert mine(source, "-n", 4, "--range", "0-20").returncode == 0
    words = ["--embedder-name-or-path", tiny_bert, "--pooling-method", "mean", "-n", 4, "--range", "0-20"]
    words += ["--dtype", "float32"]
    done = bgectl("mine", "-", "-", *words, stdin=source.read_text("utf-8"), env={"PYTHONHASHSEED": "5"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.encode() == (tmp_path / "out.jsonl").read_bytes()


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_in_place(ending, mine, write_rows, toy_rows, tmp_path):
    source = tmp_path / f"packed.jsonl{ending}"
    jsonl.write_objects(source, toy_rows(12))
    assert mine(write_rows(toy_rows(12)), "-n", 5, "--range", "0-20").returncode == 0
    assert mine(source, "-n", 5, "--range", "0-20", out=source.name).returncode == 0
    assert [row for _, row in jsonl.read_objects(source)] == read(tmp_path / "out.jsonl")


def test_a_rows_prompt_stands_for_the_instruction(mine, write_rows, toy_rows, tmp_path):
    words = ["-n", 10, "--range", "0-10"]
    option = ["--query-instruction-for-retrieval", "xaban zifel 1 2 3: "]
    for out, extra, prompt in (("plain", [], None), ("option", option, None), ("row", option, "rugus: ")):
        source = write_rows([row | ({"prompt": prompt} if prompt else {}) for row in toy_rows(20)])
        assert mine(source, *words, *extra, out=out).returncode == 0
    own = ["--query-instruction-for-retrieval", "rugus: "]
    assert mine(write_rows(toy_rows(20)), *words, *own, out="own").returncode == 0
    negatives = {out: [row["neg"] for row in read(tmp_path / out)] for out in ("plain", "option", "row", "own")}
    assert negatives["row"] == negatives["own"]
    assert negatives["plain"] != negatives["option"] != negatives["row"]


def test_the_log_says_where_facts_come_from(inside, write_rows, toy_rows, minilm, tmp_path):
    words = ["mine", write_rows(toy_rows(6)), tmp_path / "out", "--embedder-name-or-path", minilm, "-n", 1]
    done = inside(*words, "--range", "0-9")
    assert done.returncode == 0, done.stderr
    assert "pooling mean (model files), normalised (model files)" in done.stderr
    done = inside(*words, "--range", "0-9", "--pooling-method", "cls")
    assert "pooling cls (option)" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--range", "9-9"], "range"), (["--range", "9"], "range"), (["-n", "0"], "negative"), (["--seed", "-1"], "seed")],
)
def test_options_out_of_bounds(words, said, mine, write_rows, toy_rows):
    done = mine(write_rows(toy_rows(4)), *words)
    assert done.returncode == 2
    assert said in done.stderr


def test_the_output_is_checked_before_the_model_is_loaded(mine, write_rows, toy_rows):
    done = mine(write_rows(toy_rows(4)), out="no/folder/out.jsonl", model="./nowhere")
    assert (done.returncode, "directory of this file" in done.stderr) == (2, True)


@pytest.mark.parametrize("name", ["no/such/folder", "./nowhere", "nobody/no-such-model"])
def test_a_model_that_is_nowhere(name, mine, write_rows, toy_rows):
    done = mine(write_rows(toy_rows(4)), "--range", "0-3", model=name)
    assert done.returncode == 1
    assert name in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_model_is_noticed(mine, write_rows, toy_rows, tmp_path, tiny_bert):
    """Vectors that are not numbers have no rank; faiss gives them one all the same."""
    folder = shutil.copytree(tiny_bert, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.LayerNorm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    done = mine(write_rows(toy_rows(4)), "--range", "0-3", model=folder)
    assert done.returncode == 1
    assert "not finite" in done.stderr


def test_a_full_disk_leaves_the_old_output(write_rows, toy_rows, tmp_path, tiny_bert):
    target = tmp_path / "out.jsonl"
    target.write_text("old\n")
    rows = toy_rows(12, note="x" * 8000)
    words = ["mine", write_rows(rows), target, "--embedder-name-or-path", tiny_bert, "--range", "0-9"]
    command = " ".join(map(str, [sys.executable, "-m", "bgectl", *words]))
    done = subprocess.run(["bash", "-c", f"ulimit -f 20; {command}"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert target.read_text() == "old\n"
    assert not list(tmp_path.glob(".*.part")) + list(tmp_path.glob(".bgectl/run-*")), "temporary files are left"


def scores_by_hand(model, rows, pool):
    """Inner products of the rows' queries with the pool and with their positives."""
    embedder = load_embedder(model, pooling="mean", devices=["cpu"])
    queries = embedder.encode_queries([row["query"] for row in rows])
    positives = [embedder.encode_passages(row["pos"]) @ query for row, query in zip(rows, queries, strict=True)]
    return queries @ embedder.encode_passages(pool).T, positives


@pytest.mark.parametrize(("words", "fine"), [
    (["--positive-percent", 0.9], lambda s, p: s < p - 0.1 * abs(p)),
    (["--relative-margin", 0.1], lambda s, p: s < p - 0.1 * abs(p)),
    (["--absolute-margin", 0.05], lambda s, p: s <= p - 0.05),
    (["--max-score", 0.9, "--min-score", 0.4], lambda s, p: 0.4 <= s <= 0.9),
    (["--preset", "positive-aware"], lambda s, p: s < p - 0.05 * abs(p)),
])  # fmt: skip
def test_rules_against_likely_positives(words, fine, mine, pool_file, write_rows, toy_rows, tmp_path, tiny_bert):
    path, pool = pool_file
    source = write_rows([{**row, "pos": [row["query"] + " b", row["query"] + " c"]} for row in toy_rows(12)])
    fill = [] if "--preset" in words else ["--fill", "none"]
    done = mine(source, "--candidate-pool", path, "-n", 6, "--range", "0-30", "--keep-scores", *fill, *words)
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / "out.jsonl")
    check_clean(rows)
    table, positives = scores_by_hand(tiny_bert, rows, pool)
    taken = 0
    for row, scores, own in zip(rows, table, positives, strict=True):
        np.testing.assert_allclose(row["mined_pos_scores"], own, atol=1e-5)
        theirs = [scores[pool.index(text)] for text in row["neg"]]
        np.testing.assert_allclose(row["mined_neg_scores"], theirs, atol=1e-5)
        assert all(fine(score, own.min() + 1e-5) for score in theirs)
        depth = len(pool) if "--preset" in words else 30
        order = np.argsort(-scores, kind="stable")[:depth]
        answers = {same_text(text) for text in (row["query"], *row["pos"])}
        possible = [i for i in order if fine(scores[i], own.min() - 1e-5) and same_text(pool[i]) not in answers]
        assert len(row["neg"]) >= min(6, len(possible))
        taken += len(theirs)
    assert taken
    assert "left out: " in done.stderr
    assert "Scores (dense)" in done.stderr


def test_the_best_ranks(mine, pool_file, write_rows, toy_rows, tmp_path, tiny_bert):
    path, pool = pool_file
    done = mine(write_rows(toy_rows(8)), "--candidate-pool", path, "-n", 5, "--range", "3-30", "--sampling", "top")
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / "out.jsonl")
    table, _ = scores_by_hand(tiny_bert, rows, pool)
    for row, scores in zip(rows, table, strict=True):
        assert "mined_neg_scores" not in row
        ranked = [pool[index] for index in np.argsort(-scores, kind="stable")[3:30]]
        answers = {same_text(text) for text in (row["query"], *row["pos"])}
        assert row["neg"] == [text for text in ranked if same_text(text) not in answers][:5]


def test_random_texts_have_no_score(mine, pool_file, write_rows, toy_rows, tmp_path):
    done = mine(
        write_rows(toy_rows(6)), "--candidate-pool", pool_file[0], "-n", 8, "--range", "0-3", "--keep-scores"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for row in read(tmp_path / "out.jsonl"):
        assert len(row["neg"]) == len(row["mined_neg_scores"]) == 8
        assert sum(score is None for score in row["mined_neg_scores"]) >= 5


def test_a_cross_encoder_judges(mine, inside, pool_file, write_rows, toy_rows, tmp_path, tiny_bert):
    """Candidates are ranked and judged by its scores, which are those of `score`."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    torch.manual_seed(0)
    judge = tmp_path / "judge"
    BertForSequenceClassification.from_pretrained(tiny_bert, num_labels=1).save_pretrained(judge)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(judge)
    path, _ = pool_file
    words = ["--candidate-pool", path, "-n", 4, "--range", "2-12", "--keep-scores", "--cross-encoder", judge]
    done = mine(write_rows(toy_rows(8)), *words, "--preset", "positive-aware", "--sampling", "top")
    assert done.returncode == 0, done.stderr
    assert "Scores (cross-encoder)" in done.stderr
    mined = read(tmp_path / "out.jsonl")
    words = ["score", tmp_path / "out.jsonl", tmp_path / "scored.jsonl", "--reranker-name-or-path", judge]
    done = inside(*words, "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    total = 0
    for row, scored in zip(mined, read(tmp_path / "scored.jsonl"), strict=True):
        np.testing.assert_allclose(row["mined_pos_scores"], scored["pos_scores"], atol=1e-5)
        np.testing.assert_allclose(row["mined_neg_scores"], scored["neg_scores"], atol=1e-5)
        assert row["mined_neg_scores"] == sorted(row["mined_neg_scores"], reverse=True)
        least = min(row["mined_pos_scores"])
        assert all(score < least - 0.05 * abs(least) for score in row["mined_neg_scores"])
        total += len(row["neg"])
    assert 0 < total < 32


@pytest.mark.parametrize(("words", "said"), [
    (["--positive-percent", 0.9, "--relative-margin", 0.1], "say the same"),
    (["--min-score", 0.5, "--max-score", 0.5], "not below"),
    (["--positive-percent", 1.5], "--positive-percent"),
    (["--score", "colbert", "--index", "Flat"], "searches by dense vectors"),
    (["--mode", "m3", "--fuse", "rrf"], "searches by dense vectors"),
    (["--mode", "m3", "--score", "dense"], "exclude each other"),
    (["--index-parameters", "nprobe=4"], "says nothing without --index"),
    (["--nnodes", 2], "--rdzv-endpoint"),
    (["--gpus", 2, "--devices", "cpu"], "--nproc"),
    (["--cross-encoder", "x", "--fill", "deeper"], "exclude each other"),
])  # fmt: skip
def test_rules_that_cannot_be(words, said, mine, write_rows, toy_rows, tmp_path):
    done = mine(write_rows(toy_rows(4)), *words)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_an_embedder_judges_no_pairs(mine, write_rows, toy_rows, tiny_bert):
    done = mine(write_rows(toy_rows(6)), "-n", 2, "--range", "0-5", "--cross-encoder", tiny_bert)
    assert (done.returncode, "a model that scores pairs is wanted" in done.stderr) == (1, True), done.stderr
