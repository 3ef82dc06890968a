"""`bgectl mine` over many shards and processes: the same bytes, nothing encoded twice, and every way to search."""

import html
import json
import re
import shutil

import numpy as np
import pytest
import torch
from forked import in_processes, leavings, rows_of, sentences, shards
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from bgectl import heads
from bgectl.data.copies import same_text
from bgectl.encode import load_embedder
from bgectl.mine.lexical import Bm25, fuse
from bgectl.models.hub import Hub
from bgectl.models.rerankers import load_cross_encoder
from bgectl.work.texts import digest_of

pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.fixture
def loads(monkeypatch):
    """How often the embedder's weights were loaded."""
    from bgectl import encode

    found = []
    load = encode.load_backbone
    monkeypatch.setattr(encode, "load_backbone", lambda *words, **more: found.append(words[0]) or load(*words, **more))
    return found


@pytest.fixture
def words_of(tiny_bert, tmp_path):
    """The command line; `--work-folder` is one for all unless another is named."""

    def words(source, *more, out="out.jsonl", model=tiny_bert, work="work"):
        return [
            "mine", source, tmp_path / out, "--embedder-name-or-path", model, "--devices", "cpu",
            "--work-folder", tmp_path / work, "--dtype", "float32", *more,
        ]  # fmt: skip

    return words


@pytest.fixture
def mine(inside, words_of, tmp_path):
    """Mine in this process; the result has the rows and how many texts were encoded."""

    def call(*words, out="out.jsonl", **more):
        done = inside(*words_of(*words, out=out, **more))
        assert done.returncode == 0, done.stderr
        done.rows = read(tmp_path / out)
        told = re.search(r"encoded ([\d,]+) texts", done.stderr)
        done.encoded = int(told[1].replace(",", "")) if told else None
        return done

    return call


@pytest.fixture
def rows(tiny_words):
    return rows_of(tiny_words, 30)


@pytest.fixture
def source(rows, write_rows):
    return write_rows(rows)


@pytest.fixture
def pool(tiny_words):
    return sentences(tiny_words, 150, seed=7)


@pytest.fixture
def pool_file(pool, write_rows):
    return write_rows([{"text": text} for text in pool], "pool.jsonl")


def read(path):
    """Lines end at newlines alone: a text may hold other separators."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def forbidden(row):
    return {same_text(text) for text in (row["query"], *row["pos"])}


def embedder_of(model, **more):
    return load_embedder(model, devices=["cpu"], **more)


# The same bytes

CASES = {
    "plain": [],
    "quick": ["--dtype", "auto", "--keep-scores"],
    "rule": ["--preset", "positive-aware", "--keep-scores"],
    "judged": ["--keep-scores", "--cross-encoder", "JUDGE"],
    "fused": ["--fuse", "rrf", "--keep-scores"],
    "index": ["--index", "IVF4,Flat", "--keep-scores"],
}
QUICK = ["-n", 4, "--range", "2-30"]


@pytest.mark.parametrize("case", CASES)
def test_three_processes_write_the_same_bytes(case, mine, words_of, source, pool_file, judge, tmp_path, monkeypatch):
    from bgectl import distributed
    from bgectl.work.vault import Vault

    more = [judge if word == "JUDGE" else word for word in CASES[case]]
    words = [source, *QUICK, "--candidate-pool", pool_file, "--shard-size", 11, "--search-batch-size", 2, *more]
    alone = mine(*words, work="one", out="one.jsonl")
    add = Vault.add

    def told(self, *arguments):
        with (tmp_path / "shares").open("a") as stream:
            stream.write(f"{self.folder.name} {distributed.rank()} {digest_of(arguments[0].tobytes())}\n")
        return add(self, *arguments)

    monkeypatch.setattr(Vault, "add", told)
    codes, said = in_processes(3, words_of(*words, work="three", out="three.jsonl"), tmp_path)
    assert codes == [0, 0, 0], said
    assert (tmp_path / "three.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    shares = [line.split() for line in (tmp_path / "shares").read_text().splitlines()]
    assert len({(folder, shard) for folder, _, shard in shares}) == len(shares), "two processes computed the same"
    for kind in ("passages", "found", *(["scores"] if case == "judged" else [])):
        ranks = {rank for folder, rank, _ in shares if folder.startswith(kind)}
        assert ranks == set("012"), f"{kind}: a process had nothing to do"
    assert {path.name for path in shards(tmp_path / "three")} == {path.name for path in shards(tmp_path / "one")}
    assert alone.encoded == 150 + 30 + 60
    assert "encoded 240 texts" in said[0]
    assert said[1] == said[2] == "", "of several processes one speaks"
    assert leavings(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "rule", "judged"])
def test_three_processes_as_typed(case, mine, bgectl, words_of, source, pool_file, judge, tmp_path):
    """The same by the launcher."""
    more = [judge if word == "JUDGE" else word for word in CASES[case]]
    words = [source, *QUICK, "--candidate-pool", pool_file, "--shard-size", 11, *more]
    mine(*words, work="one", out="one.jsonl")
    done = bgectl(
        *words_of(*words, work="three", out="three.jsonl"), "--nproc", 3, env={"OMP_NUM_THREADS": "1"}
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "three.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert done.stderr.count("encoded 240 texts") == 1
    assert leavings(tmp_path) == []


def test_shards_do_not_decide_the_negatives(mine, source, pool_file, tmp_path):
    words = [source, *QUICK, "--candidate-pool", pool_file, "--preset", "positive-aware"]
    found = {}
    for size in (7, 100, None):
        found[size] = mine(*words, *(["--shard-size", size] if size else []), work=f"work-{size}")
        assert len(shards(tmp_path / f"work-{size}", ["passages"])) == {7: 30, 100: 3, None: 1}[size]
    assert found[7].rows == found[100].rows == found[None].rows
    assert found[7].stderr.count("30 rows") == found[None].stderr.count("30 rows")


@pytest.mark.parametrize("case", ["plain", "rule", "judged"])
def test_chunks_of_rows_do_not_decide_the_negatives(case, mine, source, pool_file, judge, monkeypatch):
    """Rows are looked at some at a time; each is drawn for by its place in the whole file."""
    from bgectl.mine import run

    more = [judge if word == "JUDGE" else word for word in CASES[case] if word != "--keep-scores"]
    whole = mine(source, *QUICK, "--candidate-pool", pool_file, *more)
    monkeypatch.setattr(run, "ROWS", 7)
    assert mine(source, *QUICK, "--candidate-pool", pool_file, *more).rows == whole.rows


def test_a_work_folder_of_other_shards_serves_too(mine, source, pool_file):
    first = mine(source, *QUICK, "--candidate-pool", pool_file, "--shard-size", 7)
    second = mine(source, *QUICK, "--candidate-pool", pool_file, "--shard-size", 50)
    assert (first.encoded, second.encoded) == (240, 0)
    assert first.rows == second.rows


# Nothing is encoded twice


def test_a_second_run_encodes_nothing(mine, source, pool_file, loads, tmp_path):
    words = [source, *QUICK, "--candidate-pool", pool_file]
    first = mine(*words, out="first.jsonl")
    assert (first.encoded, len(loads)) == (240, 1)
    kept = shards(tmp_path / "work")
    second = mine(*words, out="second.jsonl")
    assert (second.encoded, len(loads)) == (0, 1), "the weights are loaded for nothing"
    assert "240 were there already" in second.stderr
    assert (tmp_path / "first.jsonl").read_bytes() == (tmp_path / "second.jsonl").read_bytes()
    assert shards(tmp_path / "work") == kept


@pytest.mark.parametrize("more", [
    ["--range", "0-50"], ["-n", 9], ["--preset", "positive-aware"], ["--max-score", 0.9], ["--keep-scores"],
    ["--sampling", "top"], ["--seed", 3], ["--fuse", "rrf"], ["--index", "Flat"], ["--batch-tokens", 99],
    ["--dedupe", "exact"], ["--embedder-query-max-length", 64],
], ids=lambda more: more[0])  # fmt: skip
def test_other_options_encode_nothing(more, mine, source, pool_file, loads):
    words = [source, "--candidate-pool", pool_file]
    mine(*words, *QUICK)
    done = mine(*words, *([*QUICK, *more] if more[0] not in QUICK else [*QUICK[2:], *more]))
    assert (done.encoded, len(loads)) == (0, 1)


def test_what_grew_is_all_that_is_encoded(mine, rows, pool, write_rows, tiny_words, loads, tmp_path):
    """New passages, new queries; those that are there, in another order too, are not."""
    first = mine(write_rows(rows), *QUICK, "--candidate-pool", write_rows([{"text": text} for text in pool], "p.jsonl"))
    more = [*sentences(tiny_words, 11, seed=99, longest=12), *reversed(pool)]
    grown = write_rows([{"text": text} for text in more], "p.jsonl")
    done = mine(write_rows(rows[::-1]), *QUICK, "--candidate-pool", grown)
    assert (first.encoded, done.encoded) == (240, 11)
    new = [{"query": "xaban", "pos": [pool[0]]}, {"query": "xaban lodor", "pos": ["zinim zinim"]}]
    done = mine(write_rows([*new, *rows]), *QUICK, "--candidate-pool", grown)
    assert done.encoded == 3
    by_itself = mine(write_rows([*new, *rows]), *QUICK, "--candidate-pool", grown, work="other", out="other.jsonl")
    assert by_itself.rows == done.rows, "what was put together from several runs is another embedding"
    assert len(loads) == 4


@pytest.mark.parametrize(("more", "passages", "queries"), [
    (["--embedder-passage-max-length", 8], True, False),
    (["--embedder-query-max-length", 8], False, True),
    (["--passage-instruction-for-retrieval", "xaban: "], True, False),
    (["--query-instruction-for-retrieval", "xaban: "], False, True),
    (["--pooling-method", "mean"], True, True),
    (["--no-normalize-embeddings"], True, True),
    (["--dtype", "bfloat16"], True, True),
    ("model", True, True),
], ids=str)  # fmt: skip
def test_what_changes_vectors_encodes_anew(more, passages, queries, mine, source, pool_file, tiny_bert, tmp_path):
    words = [source, *QUICK, "--candidate-pool", pool_file]
    mine(*words)
    model = {}
    if more == "model":
        folder, more = shutil.copytree(tiny_bert, tmp_path / "bert"), []
        weights = load_file(folder / "model.safetensors")
        weights["embeddings.LayerNorm.weight"] *= 1.5
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        model = {"model": folder}
    done = mine(*words, *more, out="other.jsonl", **model)
    assert done.encoded == 210 * passages + 30 * queries
    fresh = mine(*words, *more, out="fresh.jsonl", work="fresh", **model)
    assert fresh.rows == done.rows, "vectors of another kind were taken"
    assert mine(*words).encoded == 0, "the first kind is gone"


def test_the_same_model_elsewhere_is_the_same(mine, source, pool_file, tiny_bert, tmp_path):
    """It is told by its files, not by its place."""
    mine(source, *QUICK, "--candidate-pool", pool_file)
    folder = shutil.copytree(tiny_bert, tmp_path / "elsewhere" / "bert")
    assert mine(source, *QUICK, "--candidate-pool", pool_file, model=folder).encoded == 0


@pytest.mark.parametrize("case", ["plain", "rule", "judged", "index", "m3"])
def test_no_keep_work_leaves_nothing(case, mine, source, pool_file, judge, m3, tmp_path):
    model = {"model": m3} if case == "m3" else {}
    more = ["--mode", "m3", "--preset", "positive-aware"] if case == "m3" else CASES[case]
    words = [source, *QUICK, "--candidate-pool", pool_file, *[judge if word == "JUDGE" else word for word in more]]
    kept = mine(*words, work="kept", out="kept.jsonl", **model)
    assert leavings(tmp_path / "kept") == [], "what only one run uses stays"
    done = mine(*words, "--no-keep-work", **model)
    assert done.rows == kept.rows
    assert not (tmp_path / "work").exists(), sorted(path.name for path in (tmp_path / "work").iterdir())


def test_no_keep_work_spares_what_others_kept(mine, source, pool_file, tmp_path, tiny_bert):
    mine(source, *QUICK, "--candidate-pool", pool_file)
    before = shards(tmp_path / "work")
    mine(source, *QUICK, "--candidate-pool", pool_file, "--pooling-method", "mean", "--no-keep-work")
    assert shards(tmp_path / "work") == before


# Indexes of faiss


@pytest.mark.parametrize("more", [[], ["--preset", "positive-aware", "--keep-scores"], ["--fuse", "rrf"]], ids=str)
@pytest.mark.parametrize(
    "index", [["Flat"], ["IVF4,Flat", "--index-parameters", "nprobe=4"]], ids=["flat", "all lists"]
)
def test_an_index_that_misses_nothing_is_exact(index, more, mine, source, pool_file, tmp_path):
    words = [source, *QUICK, "--candidate-pool", pool_file, "--shard-size", 40, *more]
    exact = mine(*words, out="exact.jsonl")
    done = mine(*words, "--index", *index, out="index.jsonl")
    if "--keep-scores" not in more:
        assert (tmp_path / "index.jsonl").read_bytes() == (tmp_path / "exact.jsonl").read_bytes()
    for one, other in zip(done.rows, exact.rows, strict=True):
        assert one["neg"] == other["neg"]
        # Their last digit hangs on how many products are computed together.
        scores = [row.get("mined_neg_scores", []) for row in (one, other)]
        np.testing.assert_allclose(*np.array(scores, dtype=np.float64), atol=2e-6)
    assert "100.0% of the" in done.stderr
    assert "measured with 30 queries" in done.stderr


@pytest.mark.parametrize("index", ["IVF4,Flat", "HNSW8", "IVF4,PQ4x4", "PQ8x4"])
def test_an_index_tells_its_recall(index, mine, source, rows, pool, pool_file, tiny_bert, tmp_path):
    """Few of the best are missed, no answer is taken, scores are exact, and the index is kept for the next run."""
    words = [source, *QUICK, "--candidate-pool", pool_file, "--index", index, "--keep-scores", "--sampling", "top",
             *(["--index-parameters", "nprobe=1"] if "IVF" in index else [])]  # fmt: skip
    done = mine(*words)
    told = re.search(rf"--index {index}: ([\d.]+)% of the 30 best passages are found", done.stderr)
    assert told, done.stderr
    assert 0 < float(told[1]) <= 100
    vectors = embedder_of(tiny_bert)
    queries, passages = vectors.encode_queries([row["query"] for row in rows]), vectors.encode_passages(pool)
    for row, query in zip(done.rows, queries, strict=True):
        scores = [float(query @ passages[pool.index(text)]) for text in row["neg"]]
        np.testing.assert_allclose(row["mined_neg_scores"], scores, atol=1e-5)
        assert scores == sorted(scores, reverse=True)
        assert not forbidden(row) & {same_text(text) for text in row["neg"]}
    (kept,) = (tmp_path / "work").glob("index-*.faiss")
    before = kept.stat().st_mtime_ns
    assert mine(*words, "-n", 9).encoded == 0
    assert [path.stat().st_mtime_ns for path in (tmp_path / "work").glob("index-*.faiss")] == [before]


def test_an_index_outlives_other_passages(mine, source, pool, pool_file, write_rows, tiny_words, tmp_path):
    """It numbers passages by where they lie in shards: those that come later, or copies of them, change nothing."""
    words = [source, *QUICK, "--candidate-pool", pool_file, "--shard-size", 10, "--keep-scores"]
    exact = mine(*words, work="exact")
    mine(source, *QUICK, "--shard-size", 10, "--candidate-pool", write_rows([{"text": t} for t in pool[::2]], "half"))
    index = ["--index", "IVF4,Flat", "--index-parameters", "nprobe=4"]
    found = [mine(*words, *index) for _ in range(2)]
    other = write_rows([{"text": text} for text in sentences(tiny_words, 60, seed=5)], "other")
    mine(source, *QUICK, "--candidate-pool", other, "--shard-size", 10)
    found.append(mine(*words, *index))
    assert len(list((tmp_path / "work").glob("index-*.faiss"))) == 1, "it was built again for nothing"
    # As if another run had encoded the same at the same time.
    mine(source, *QUICK, "--candidate-pool", pool_file, "--shard-size", 33, work="beside")
    (theirs,) = (tmp_path / "beside").glob("passages-*")
    for path in theirs.glob("*.safetensors"):
        shutil.copy(path, tmp_path / "work" / theirs.name)
    found.append(mine(*words, *index))
    for done in found:
        assert "100.0% of the" in done.stderr
        assert [row["neg"] for row in done.rows] == [row["neg"] for row in exact.rows]


def test_a_full_disk_while_the_index_is_written(inside, words_of, source, pool_file, mine, tmp_path, monkeypatch):
    import faiss

    def full(index, path):
        with open(path, "wb") as stream:
            stream.write(b"half of it")
        raise RuntimeError(
            "Error in void write(FILE*): Error: 'ret == (1)' failed: write error: No space left on device"
        )

    monkeypatch.setattr(faiss, "write_index", full)
    done = inside(*words_of(source, *QUICK, "--candidate-pool", pool_file, "--index", "Flat"))
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "No space left" in done.stderr
    assert not list(tmp_path.glob("**/*.part"))
    assert not list((tmp_path / "work").glob("index-*"))


@pytest.mark.parametrize("index", ["Nonsense", "PQ7", "IVF", ""])
def test_an_index_that_cannot_be(index, inside, words_of, source, pool_file, loads, tmp_path):
    done = inside(*words_of(source, *QUICK, "--candidate-pool", pool_file, "--index", index))
    assert done.returncode == 2, done.stderr
    assert f"--index {index}" in done.stderr
    assert "32 dimensions" in done.stderr
    assert "Traceback" not in done.stderr
    assert loads == [], "the pool was encoded first"
    assert not (tmp_path / "out.jsonl").exists()


def test_parameters_that_cannot_be(inside, words_of, source, pool_file, tmp_path):
    more = ["--index", "IVF4,Flat", "--index-parameters", "nonsense=3"]
    done = inside(*words_of(source, *QUICK, "--candidate-pool", pool_file, *more))
    assert (done.returncode, "--index-parameters" in done.stderr) == (2, True), done.stderr


def test_too_few_passages_for_an_index(inside, words_of, source, pool_file):
    done = inside(*words_of(source, *QUICK, "--candidate-pool", pool_file, "--index", "IVF400,Flat"))
    assert done.returncode == 1
    assert "--index IVF400,Flat: faiss cannot build the index" in done.stderr
    assert "Traceback" not in done.stderr


# BM25


def test_fused_ranks_by_hand(mine, rows, source, pool, pool_file, tiny_bert):
    """The sum of 1 / (60 + rank) over the exact ranks and those of BM25, each twice as deep as the range."""
    done = mine(
        source, "--candidate-pool", pool_file, "-n", 10, "--range", "3-20", "--fuse", "rrf", "--sampling", "top",
        "--keep-scores",
    )  # fmt: skip
    vectors = embedder_of(tiny_bert)
    queries = [row["query"] for row in rows]
    table = vectors.encode_queries(queries) @ vectors.encode_passages(pool).T
    lexical = Bm25(AutoTokenizer.from_pretrained(tiny_bert), pool).best(queries, 40)
    differ = 0
    for row, scores, other in zip(done.rows, table, lexical, strict=True):
        exact = np.argsort(-scores, kind="stable")[:40].tolist()
        best = [pool[number] for number in fuse([exact, other])[3:20] if same_text(pool[number]) not in forbidden(row)]
        assert row["neg"] == best[:10]
        np.testing.assert_allclose(
            row["mined_neg_scores"], [scores[pool.index(text)] for text in row["neg"]], atol=1e-5
        )
        differ += row["neg"] != [pool[number] for number in exact[3:13]]
    assert differ > 20, "BM25 changes nothing"


def test_fuse_without_bm25s(inside, words_of, source, pool_file, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "bm25s", None)
    done = inside(*words_of(source, *QUICK, "--candidate-pool", pool_file, "--fuse", "rrf"))
    assert done.returncode == 1
    assert "--fuse needs bm25s" in done.stderr
    assert "pip install 'bgectl[bm25]'" in done.stderr


# Lower ranks


def test_lower_ranks_by_hand(mine, rows, source, pool, pool_file, tiny_bert):
    """Rows with too few candidates in the range get the best of those below it that keep to the rule."""
    done = mine(
        source, "--candidate-pool", pool_file, "-n", 8, "--range", "1-12", "--sampling", "top", "--keep-scores",
        "--positive-percent", 0.999, "--fill", "deeper",
    )  # fmt: skip
    vectors = embedder_of(tiny_bert)
    queries, passages = vectors.encode_queries([row["query"] for row in rows]), vectors.encode_passages(pool)
    deeper = bare = 0
    for row, query in zip(done.rows, queries, strict=True):
        scores = passages @ query
        bound = 0.999 * (vectors.encode_passages(row["pos"]) @ query).min()
        order = np.argsort(-scores, kind="stable")[1:120].tolist()
        fine = [number for number in order if scores[number] < bound and same_text(pool[number]) not in forbidden(row)]
        if not fine:
            # Random ones, since training takes no row without a negative.
            assert len(row["neg"]) == 8
            bare += 1
            continue
        assert row["neg"] == [pool[number] for number in fine[:8]]
        np.testing.assert_allclose(row["mined_neg_scores"], scores[fine[:8]], atol=1e-5)
        deeper += not {*fine[:8]} <= {*order[:11]}
    assert 5 < deeper < 25, "all rows, or none, had enough in the range, and this shows little"
    assert f"{deeper + bare} rows had too few texts in the range" in done.stderr


def test_a_cross_encoder_by_hand(mine, rows, source, pool, pool_file, tiny_bert, judge):
    """It ranks those of the range, and those alone."""
    done = mine(
        source, "--candidate-pool", pool_file, "-n", 5, "--range", "4-16", "--sampling", "top", "--keep-scores",
        "--cross-encoder", judge,
    )  # fmt: skip
    vectors = embedder_of(tiny_bert)
    table = vectors.encode_queries([row["query"] for row in rows]) @ vectors.encode_passages(pool).T
    reader = load_cross_encoder(
        judge, hub=Hub(), devices=[torch.device("cpu")], dtype=torch.float32, query_max_length=None, max_length=512,
        batch_tokens=2048, batch_size=3000,
    )  # fmt: skip
    for row, scores in zip(done.rows, table, strict=True):
        range_ = [pool[number] for number in np.argsort(-scores, kind="stable")[4:16]]
        fine = [text for text in range_ if same_text(text) not in forbidden(row)]
        logits = dict(zip(fine, reader.score([(row["query"], text) for text in fine]).tolist(), strict=True))
        assert row["neg"] == sorted(fine, key=lambda text: -logits[text])[:5]
        np.testing.assert_allclose(row["mined_neg_scores"], [logits[text] for text in row["neg"]], atol=1e-5)
        own = reader.score([(row["query"], text) for text in row["pos"]])
        np.testing.assert_allclose(row["mined_pos_scores"], own, atol=1e-5)


# What is no negative


def test_judged_passages_are_no_negatives(mine, write_rows, tmp_path):
    folder = tmp_path / "beir"
    corpus = [{"_id": f"d{number}", "title": "kaban" * (number % 2), "text": f"lodor {number}"} for number in range(9)]
    queries = [{"_id": "q0", "text": "mifel"}, {"_id": "q1", "text": "rugus"}, {"_id": "q2", "text": "tenim"}]
    write_rows(corpus, "beir/corpus.jsonl")
    write_rows(queries, "beir/queries.jsonl")
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td1\t1\nq0\td2\t0\nq1\td3\t2\n")
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td4\t1\n")
    source = write_rows([{"query": "mifel", "pos": ["LODOR  0"]}, {"query": "rugus", "pos": ["lodor 0"]},
                         {"query": "tenim", "pos": ["lodor 0"]}])  # fmt: skip
    words = [source, "--candidate-pool", folder / "corpus.jsonl", "-n", 9, "--range", "0-9"]
    texts = [f"{entry['title']} {entry['text']}".strip() for entry in corpus]

    def without(*numbers):
        return {text for number, text in enumerate(texts) if number not in numbers}

    assert [set(row["neg"]) for row in mine(*words).rows] == [without(0)] * 3
    found = [set(row["neg"]) for row in mine(*words, "--exclude-qrels", folder).rows]
    assert found == [without(0, 1, 4), without(0, 3), without(0)], "all splits count, grades of 0 do not"
    judged = write_rows([{"query": "rugus", "pos": [texts[5].upper(), texts[6]], "neg": [texts[7]]}], "judged.jsonl")
    assert [set(row["neg"]) for row in mine(*words, "--exclude-qrels", judged).rows] == [
        without(0), without(0, 5, 6), without(0)
    ]  # fmt: skip
    exact = mine(*words, "--exclude-qrels", judged, "--dedupe", "exact").rows
    assert [set(row["neg"]) for row in exact] == [without(), without(0, 6), without(0)]


def test_judgments_that_are_nowhere(inside, words_of, source, pool_file, tmp_path):
    done = inside(
        *words_of(source, *QUICK, "--candidate-pool", pool_file, "--exclude-qrels", tmp_path / "nowhere")
    )  # fmt: skip
    assert (done.returncode, "nowhere" in done.stderr) == (2, True), done.stderr


def test_what_counts_as_a_copy(mine, write_rows):
    long = "kaban lodor mifel rugus tenim vodor xaban zifel"
    texts = [long, long.upper(), f"{long}  ", f"{long} a", "vogus", "VOGUS", "tenim", "ruban rudor tefel vofel",
             "ruban rudor tefel vofel a"]  # fmt: skip
    pool = write_rows([{"text": text} for text in texts], "pool.jsonl")
    source = write_rows([{"query": "tenim", "pos": [texts[7]]}, {"query": "minim", "pos": [long]}])
    words = [source, "--candidate-pool", pool, "-n", 9, "--range", "0-9", "--dedupe"]

    def negatives(how):
        done = mine(*words, how)
        return [sorted(map(texts.index, row["neg"])) for row in done.rows], done.stderr

    exact, _ = negatives("exact")
    assert exact == [[0, 1, 2, 3, 4, 5, 8], [1, 2, 3, 4, 5, 6, 7, 8]]
    (first, second), _ = negatives("normalized")
    assert (len(first), len(second)) == (4, 5)
    assert (len(set(first) & {0, 1, 2}), len(set(first) & {4, 5}), set(first) - {0, 1, 2, 4, 5}) == (1, 1, {3, 8})
    assert (len(set(second) & {4, 5}), set(second) - {4, 5}) == (1, {3, 6, 7, 8})
    (first, second), said = negatives("near")
    assert (len(set(first) & {0, 1, 2, 3}), len(set(first) & {4, 5}), set(first) - set(range(6))) == (1, 1, set())
    assert (set(second) & {0, 1, 2, 3}, len(set(second) & {7, 8}), 6 in second) == (set(), 1, True)
    assert re.search(r"left out: \d candidates of 2 rows as near copies", said)


def test_rows_of_one_query_share_their_positives(mine, write_rows, pool, pool_file):
    """One row's positive is never the other's negative, wherever the rows stand and whatever the case."""
    rows = [
        {"query": "kaban lodor", "pos": [pool[0]]}, {"query": "mifel", "pos": [pool[1]]},
        {"query": "kaban lodor", "pos": [pool[2].upper(), pool[3]]}, {"query": "kaban lodor", "pos": [pool[4]]},
    ]  # fmt: skip
    done = mine(write_rows(rows), "--candidate-pool", pool_file, "-n", 150, "--range", "0-150")
    for number, own in ((0, {0, 2, 3, 4}), (1, {1}), (2, {0, 2, 3, 4}), (3, {0, 2, 3, 4})):
        assert set(pool) - set(done.rows[number]["neg"]) == {pool[place] for place in own}
    # Without a pool as well, where the positives of each are passages for the others.
    done = mine(write_rows(rows), "-n", 5, "--range", "0-5")
    assert [sorted(row["neg"]) for row in done.rows] == [
        [pool[1]], sorted([pool[0], pool[2].upper(), pool[3], pool[4]]), [pool[1]], [pool[1]]
    ]  # fmt: skip


# The heads of M3


def hybrid(embedder, queries, passages, weights=(1.0, 0.3, 1.0)):
    """(Q, N) hybrid scores of all pairs."""
    encoded = [heads.encode(embedder, texts, 64, lambda amount=1: None) for texts in (queries, passages)]
    return heads.score(*encoded, ["hybrid"], weights)["hybrid"].numpy()


@pytest.mark.parametrize("weights", [(), (1, 0, 2)], ids=str)
def test_m3_is_the_hybrid_score(weights, mine, rows, write_rows, pool, pool_file, m3, tmp_path):
    for row in rows:
        row["pos"] = [f"{row['query']} kaban", f"xaban {row['query']}"]
    words = [
        write_rows(rows), "--candidate-pool", pool_file, "-n", 6, "--range", "1-40", "--sampling", "top", "--fill",
        "none", "--positive-percent", 0.98, "--keep-scores", "--shard-size", 40,
        *(["--weights", *weights] if weights else []),
    ]  # fmt: skip
    done = mine(*words, "--mode", "m3", model=m3, out="mode.jsonl")
    mine(*words, "--score", "hybrid", model=m3, out="score.jsonl", work="other")
    assert (tmp_path / "mode.jsonl").read_bytes() == (tmp_path / "score.jsonl").read_bytes()
    embedder = embedder_of(m3, heads=True)
    queries = [row["query"] for row in rows]
    more = {"weights": weights} if weights else {}
    found = heads.search(embedder, queries, [None] * len(queries), pool, 40, scores=["hybrid"], **more)["hybrid"]
    left_out = 0
    for number, row in enumerate(done.rows):
        own = hybrid(embedder, [row["query"]], row["pos"], **more)[0]
        np.testing.assert_allclose(row["mined_pos_scores"], own, atol=1e-5)
        bound = own.min() - 0.02 * abs(own.min())
        ranking = list(zip(found.indices[number][1:].tolist(), found.scores[number][1:].tolist(), strict=True))
        fine = [(pool[index], score) for index, score in ranking if score < bound and pool[index] not in row["pos"]]
        left_out += len(ranking) - len(fine)
        assert row["neg"] == [text for text, _ in fine][:6]
        np.testing.assert_allclose(row["mined_neg_scores"], [score for _, score in fine][:6], atol=1e-5)
    assert left_out > 30, "the rule leaves nothing out here"
    assert sum(len(row["neg"]) for row in done.rows) > 10
    assert "Scores (hybrid)" in done.stderr


def test_many_queries_of_m3_lie_in_several_shards(mine, source, pool_file, m3, tmp_path, monkeypatch):
    words = [source, *QUICK, "--candidate-pool", pool_file, "--mode", "m3"]
    whole = mine(*words, model=m3, work="whole")
    monkeypatch.setattr("bgectl.mine.by_heads.SHARD", 7)
    assert mine(*words, model=m3, work="cut").rows == whole.rows


def test_m3_in_three_processes(mine, words_of, source, pool_file, m3, tmp_path):
    words = [source, *QUICK, "--candidate-pool", pool_file, "--shard-size", 11, "--mode", "m3", "--keep-scores",
             "--preset", "positive-aware"]  # fmt: skip
    mine(*words, model=m3, out="one.jsonl", work="one")
    codes, said = in_processes(3, words_of(*words, model=m3, out="three.jsonl", work="three"), tmp_path)
    assert codes == [0, 0, 0], said
    assert (tmp_path / "three.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


# Edges


def test_a_pool_smaller_than_the_range(mine, write_rows):
    pool = write_rows([{"text": text} for text in ("kaban", "lodor", "mifel")], "pool.jsonl")
    source = write_rows([{"query": "rugus", "pos": ["tenim"]}, {"query": "lodor", "pos": ["kaban"], "neg": []},
                         {"query": "vodor", "pos": ["zinim"], "neg": None}])  # fmt: skip
    for more in ([], ["--fuse", "rrf"], ["--index", "Flat"], ["--preset", "positive-aware"]):
        done = mine(source, "--candidate-pool", pool, "-n", 2, "--range", "0-200", *more)
        assert "beyond the pool of 3 texts" in done.stderr
        assert len(done.rows[0]["neg"]) <= 2
        assert set(done.rows[1]["neg"]) <= {"mifel"}
    assert [len(row["neg"]) for row in mine(source, "--candidate-pool", pool, "-n", 9, "--range", "0-200").rows] == [
        3, 1, 3
    ]  # fmt: skip


@pytest.mark.parametrize("more", [
    [], ["--fuse", "rrf"], ["--index", "Flat"], ["--preset", "positive-aware"], ["--cross-encoder", "JUDGE"], ["--m3"],
], ids=str)  # fmt: skip
@pytest.mark.parametrize("texts", [["kaban"], ["kaban", "Kaban", "KABAN "]], ids=["one passage", "copies"])
def test_the_smallest_pools(texts, more, mine, write_rows, judge, m3):
    pool = write_rows([{"text": text} for text in texts], "pool.jsonl")
    source = write_rows([{"query": "rugus", "pos": ["tenim"]}, {"query": "kaban", "pos": ["lodor"]},
                         {"query": "mifel", "pos": ["kaban"]}])  # fmt: skip
    model = {"model": m3} if more == ["--m3"] else {}
    words = [judge if word == "JUDGE" else "--mode=m3" if word == "--m3" else word for word in more]
    done = mine(source, "--candidate-pool", pool, "-n", 2, "--range", "0-9", *words, **model)
    assert [row["neg"] for row in done.rows[1:]] == [[], []], "the query or the positive became a negative"
    assert {same_text(text) for text in done.rows[0]["neg"]} <= {"kaban"}
    assert len(done.rows[0]["neg"]) <= 1
    if not more:
        assert done.rows[0]["neg"] == ["kaban"]


ODD = ["kaban\u2028lodor", "mifel\x85rugus", "tenim\u2029vodor", "zinim\x1cxaban", "null\x00", "\ufeffkaban", "🙂 😀",
       "a\tb\nc\r\nd", "<b>&amp;\"'", "\\ud800", "ﬁ ẞ İ"]  # fmt: skip


def test_texts_are_kept_as_they_are(mine, write_rows, tmp_path):
    """Separators of lines that are none, nulls, marks of byte order: they come out as they went in."""
    source = write_rows([{"query": f"rugus {text}", "pos": [f"{text} p"], "neg": [text]} for text in ODD])
    done = mine(source, "-n", 30, "--range", "0-30")
    assert [row["query"] for row in done.rows] == [f"rugus {text}" for text in ODD]
    for row in done.rows:
        assert set(row["neg"]) == {*ODD, *(f"{text} p" for text in ODD)} - set(row["pos"])
    pool = write_rows([{"text": text} for text in ODD], "pool.jsonl")
    done = mine(source, "-n", 30, "--range", "0-30", "--candidate-pool", pool)
    assert all(set(row["neg"]) == set(ODD) for row in done.rows)
    # Pairs of surrogates are how JSON may write a character; halves of them are no text.
    pool.write_bytes(b'{"text": "\\ud83d\\ude42 \\ud83d\\ude00"}\n')
    assert mine(source, "-n", 1, "--range", "0-1", "--candidate-pool", pool).rows[0]["neg"] == ["🙂 😀"]


def test_half_a_surrogate_is_named(inside, words_of, source, tmp_path):
    pool = tmp_path / "pool.jsonl"
    pool.write_bytes(b'{"text": "kaban"}\n{"text": "\\ud800"}\n')
    done = inside(*words_of(source, *QUICK, "--candidate-pool", pool))
    assert (done.returncode, f"{pool}:2" in done.stderr) == (1, True), done.stderr


@pytest.mark.parametrize("change", ["query", "positive", "fewer", "more", "order"])
def test_an_input_that_changes_meanwhile(change, inside, words_of, rows, source, write_rows, tmp_path, monkeypatch):
    """Rows are read a second time when negatives are chosen; those of other rows would be written."""
    from bgectl.mine import run

    reading = run.read_inputs

    def changed(*words, **more):
        inputs = reading(*words, **more)
        rows[3]["query"] += " a" * (change == "query")
        rows[3]["pos"] = rows[3]["pos"][: 1 if change == "positive" else None]
        write_rows({"fewer": rows[:-1], "more": [*rows, rows[0]], "order": rows[::-1]}.get(change, rows))
        return inputs

    monkeypatch.setattr(run, "read_inputs", changed)
    done = inside(*words_of(source, *QUICK))
    assert done.returncode == 1, done.stderr
    assert f"{source}: has changed while it was being mined for" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


# The report


def test_the_report_shows_what_to_look_at(mine, write_rows, pool, pool_file, tmp_path):
    """The table of scores on the terminal, and the pair that is the most suspicious on the page, escaped."""
    trap = "kaban lodor <script>alert('mifel')</script> & \u2028"
    rows = [{"query": f"{trap} q", "pos": ["zinim xanim"]}, {"query": "tenim", "pos": [pool[0]]}]
    write_rows([{"text": text} for text in [*pool, trap]], "pool.jsonl")
    page = tmp_path / "page.html"
    more = ["--sampling", "top", "--max-score", 5, "--report", page]
    done = mine(write_rows(rows), "--candidate-pool", pool_file, "-n", 4, "--range", "0-20", *more)
    assert done.rows[0]["neg"][0] == trap, "it is not the nearest, and this shows nothing"
    table = re.findall(r"^ *(positives|negatives) +(\d+) +(-?[\d.]+)", done.stderr, re.MULTILINE)
    assert [(name, count) for name, count, _ in table] == [("positives", "2"), ("negatives", "8")]
    text = page.read_text(encoding="utf-8")
    assert "Scores of positives and negatives" in text
    assert "Likely false negatives" in text
    assert "<script" not in text, "a text of the data is code on the page"
    assert html.escape("<script>alert('mifel')</script> &") in text or "&lt;script&gt;alert(" in text
    first = text.split("Likely false negatives")[1]
    assert first.index("lodor &lt;script&gt;") < first.index("tenim"), "the most suspicious row does not come first"
    assert "above --max-score" in text
    assert str(pool_file) in text
    again = text
    mine(write_rows(rows), "--candidate-pool", pool_file, "-n", 4, "--range", "0-20", *more)
    without_times = re.compile(r"<h2>Time</h2>.*?</section>", re.DOTALL)
    assert without_times.sub("", page.read_text(encoding="utf-8")) == without_times.sub("", again)


def test_a_report_that_cannot_be_written(inside, words_of, source, loads, tmp_path):
    done = inside(*words_of(source, *QUICK, "--report", tmp_path / "no" / "page.html"))
    assert (done.returncode, "directory of this file" in done.stderr, loads) == (2, True, [])
