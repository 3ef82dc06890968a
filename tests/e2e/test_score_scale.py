"""`bgectl score` over shards and processes: the same bytes, nothing scored twice, and what its manifest says."""

import hashlib
import json
import re
from itertools import permutations, product

import numpy as np
import pytest
from forked import in_processes, leavings, rows_of, shards

from bgectl import heads
from bgectl.encode import load_embedder
from bgectl.manifest import manifest_of

pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.fixture
def rows(tiny_words):
    """Thirty rows with keys of their own; some have no negatives, and some texts stand in several."""
    rows = [{"id": number, **row} for number, row in enumerate(rows_of(tiny_words, 30))]
    rows[4]["neg"] = []
    del rows[5]["neg"]
    rows[6] |= {"query": rows[7]["query"], "pos": rows[7]["pos"]}
    return rows


@pytest.fixture
def words_of(tmp_path):
    def words(source, teacher, *more, out="out.jsonl", work="work"):
        return [
            "score", source, tmp_path / out, "--reranker", teacher, "--devices", "cpu", "--work-folder",
            tmp_path / work, "--dtype", "float32", *more,
        ]  # fmt: skip

    return words


@pytest.fixture
def score(inside, words_of, tmp_path):
    def call(*words, out="out.jsonl", **more):
        done = inside(*words_of(*words, out=out, **more))
        assert done.returncode == 0, done.stderr
        done.rows = read(tmp_path / out)
        return done

    return call


@pytest.fixture
def loads(monkeypatch):
    """How often a cross-encoder, or an embedder, was loaded."""
    from bgectl import encode
    from bgectl.score import pairs

    found = []
    for module, name in ((encode, "load_backbone"), (pairs, "load_cross_encoder")):
        load = getattr(module, name)

        def counted(*words, _load=load, **more):
            found.append(words[0])
            return _load(*words, **more)

        monkeypatch.setattr(module, name, counted)
    return found


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def manifest(path):
    return json.loads(manifest_of(path).read_text(encoding="utf-8"))


def pairs_of(rows):
    return [(row["query"], text) for row in rows for text in (*row["pos"], *row.get("neg", []))]


def scores_of(rows):
    return [score for row in rows for score in (*row["pos_scores"], *row["neg_scores"])]


# The same bytes


@pytest.mark.parametrize(("teacher", "more"), [
    ("judge", []), ("judge", ["--dtype", "auto"]), ("tiny_bert", []), ("m3", ["--score", "hybrid"]),
], ids=["cross-encoder", "quick", "embedder", "m3"])  # fmt: skip
def test_three_processes_write_the_same_bytes(
    teacher, more, score, words_of, rows, write_rows, tmp_path, request, monkeypatch
):
    from bgectl import distributed
    from bgectl.work.vault import Vault

    model, source = request.getfixturevalue(teacher), write_rows(rows)
    words = [source, model, "--shard-size", 9, *more]
    score(*words, work="one", out="one.jsonl")
    add = Vault.add

    def told(self, *arguments):
        with (tmp_path / "shares").open("a") as stream:
            stream.write(f"{distributed.rank()}\n")
        return add(self, *arguments)

    monkeypatch.setattr(Vault, "add", told)
    codes, said = in_processes(3, words_of(*words, work="three", out="three.jsonl"), tmp_path)
    assert codes == [0, 0, 0], said
    assert (tmp_path / "three.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert manifest(tmp_path / "three.jsonl") == manifest(tmp_path / "one.jsonl")
    assert set((tmp_path / "shares").read_text().split()) == {"0", "1", "2"}, "a process had nothing to do"
    assert {path.name for path in shards(tmp_path / "three")} == {path.name for path in shards(tmp_path / "one")}
    assert said[1] == said[2] == ""
    assert leavings(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["judge", "tiny_bert"])
def test_three_processes_as_typed(teacher, score, bgectl, words_of, rows, write_rows, tmp_path, request):
    """By the launcher, and from a pipe, which one process reads."""
    model, source = request.getfixturevalue(teacher), write_rows(rows)
    score(source, model, "--shard-size", 9, work="one", out="one.jsonl")
    words = words_of("-", model, "--shard-size", 9, "--nproc", 3, "--check", work="three", out="three.jsonl")
    done = bgectl(*words, env={"OMP_NUM_THREADS": "1"}, stdin=source.read_text())
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "three.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert done.stderr.count("scored ") == 1
    rows = [json.loads(line)["row"] for line in done.stdout.splitlines()]
    assert rows == sorted(set(rows)), "processes print the same rows"
    assert rows
    assert leavings(tmp_path) == []


@pytest.mark.parametrize("teacher", ["judge", "tiny_bert", "m3"])
def test_shards_and_chunks_do_not_matter(teacher, score, rows, write_rows, request, monkeypatch):
    from bgectl.score import run

    model, source = request.getfixturevalue(teacher), write_rows(rows)
    more = ["--score", "hybrid"] if teacher == "m3" else []
    whole = score(source, model, *more, work="whole").rows
    for size, chunk in ((1, 4), (7, 16_384)):
        monkeypatch.setattr(run, "ROWS", chunk)
        cut = score(source, model, "--shard-size", size, *more, work=f"cut-{size}").rows
        np.testing.assert_allclose(scores_of(cut), scores_of(whole), rtol=1e-6, atol=1e-5)
        again = score(source, model, "--shard-size", size, *more, work=f"cut-{size}").rows
        assert again == cut


# Nothing is scored twice


def test_a_second_run_scores_nothing(score, rows, write_rows, judge, loads, tmp_path):
    count = len(set(pairs_of(rows)))
    source = write_rows(rows)
    first = score(source, judge, out="first.jsonl")
    assert f"scored {count} pairs of 30 rows" in first.stderr
    assert "had been scored before" not in first.stderr
    kept = shards(tmp_path / "work")
    second = score(source, judge, out="second.jsonl")
    assert f"{count} of them had been scored before" in second.stderr
    assert (tmp_path / "first.jsonl").read_bytes() == (tmp_path / "second.jsonl").read_bytes()
    assert len(loads) == 1, "the weights are loaded for nothing"
    assert shards(tmp_path / "work") == kept
    # Other ways to write the same logits.
    for more in (["--normalize"], ["--scale", 3], ["--batch-tokens", 50]):
        assert f"{count} of them had been scored before" in score(source, judge, *more).stderr
    assert len(loads) == 1


def test_what_grew_is_all_that_is_scored(score, rows, write_rows, judge, tmp_path):
    """Rows in another order, and another negative each."""
    score(write_rows(rows), judge)
    grown = [{**row, "neg": ["kaban lodor", *row.get("neg", [])]} for row in reversed(rows)]
    before, after = set(pairs_of(rows)), set(pairs_of(grown))
    done = score(write_rows(grown), judge, out="grown.jsonl")
    assert f"scored {len(after)} pairs" in done.stderr
    assert f"{len(before)} of them had been scored before" in done.stderr
    fresh = score(write_rows(grown), judge, out="fresh.jsonl", work="fresh")
    np.testing.assert_allclose(scores_of(done.rows), scores_of(fresh.rows), atol=1e-5)


@pytest.mark.parametrize("more", [
    ["--reranker-max-length", 12], ["--reranker-query-max-length", 4], ["--query-instruction-for-rerank", "xaban "],
    ["--passage-instruction-for-rerank", "xaban "], ["--dtype", "bfloat16"],
], ids=lambda more: more[0])  # fmt: skip
def test_what_changes_logits_is_scored_anew(more, score, rows, write_rows, judge):
    source = write_rows(rows)
    plain = score(source, judge)
    done = score(source, judge, *more)
    assert "had been scored before" not in done.stderr
    assert done.rows == score(source, judge, *more, work="fresh").rows != plain.rows


def test_mining_and_an_embedder_share_vectors(inside, score, rows, write_rows, tiny_bert, loads, tmp_path):
    """What mining encoded, scoring by the same embedder does not."""
    source = write_rows(rows)
    done = inside(
        "mine", source, tmp_path / "mined.jsonl", "--embedder-name-or-path", tiny_bert, "--devices", "cpu",
        "--work-folder", tmp_path / "work", "--dtype", "float32", "-n", 3, "--range", "0-20", "--keep-scores",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = score(tmp_path / "mined.jsonl", tiny_bert)
    assert len(loads) == 1
    for row in done.rows:
        np.testing.assert_allclose(row["pos_scores"], row["mined_pos_scores"], atol=1e-5)
        np.testing.assert_allclose(row["neg_scores"], row["mined_neg_scores"], atol=1e-5)


@pytest.mark.parametrize("teacher", ["judge", "tiny_bert", "m3"])
def test_no_keep_work_leaves_nothing(teacher, score, rows, write_rows, tmp_path, request):
    more = ["--score", "hybrid"] if teacher == "m3" else []
    score(write_rows(rows), request.getfixturevalue(teacher), "--no-keep-work", *more)
    assert not (tmp_path / "work").exists()


# Only what is missing


@pytest.fixture
def half_scored(rows, write_rows):
    """Every other row has scores, written as another program would."""
    for number, row in enumerate(rows):
        if number % 2:
            row |= {"pos_scores": [0.1 + 1e-17] * len(row["pos"]), "neg_scores": [7] * len(row.get("neg", []))}
    # Scores of one side are as good as none.
    del rows[1]["neg_scores"]
    rows[3]["pos_scores"] = None
    return write_rows(rows, "half.jsonl")


@pytest.mark.parametrize("teacher", ["judge", "tiny_bert"])
def test_only_missing_scores_the_rest(teacher, score, rows, half_scored, tmp_path, request):
    model = request.getfixturevalue(teacher)
    whole = score(half_scored, model, work="whole", out="whole.jsonl").rows
    done = score(half_scored, model, "--only-missing")
    kept = set(range(5, 30, 2))
    before = half_scored.read_bytes().split(b"\n")
    after = (tmp_path / "out.jsonl").read_bytes().split(b"\n")
    for number in range(30):
        if number in kept:
            assert json.loads(after[number]) == json.loads(before[number])
            assert done.rows[number]["pos_scores"] == rows[number]["pos_scores"]
        else:
            np.testing.assert_allclose(scores_of([done.rows[number]]), scores_of([whole[number]]), atol=1e-5)
    scored = {pair for number, row in enumerate(rows) if number not in kept for pair in pairs_of([row])}
    assert f"scored {len(scored)} pairs of 30 rows" in done.stderr
    assert f"{len(kept)} rows had scores" in done.stderr
    # What it wrote is read again without a change of a byte.
    again = score(tmp_path / "out.jsonl", model, "--only-missing", out="again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    assert "scored 0 pairs of 30 rows" in again.stderr
    assert "30 rows had scores" in again.stderr


@pytest.mark.parametrize("teacher", ["judge", "tiny_bert", "m3"])
def test_only_missing_where_a_chunk_misses_nothing(teacher, score, rows, write_rows, request, monkeypatch):
    """Rows are scored some thousands at a time, of which all may have scores."""
    from bgectl.score import run

    more = ["--score", "hybrid"] if teacher == "m3" else []
    for row in rows[:12]:
        row |= {"pos_scores": [1.0] * len(row["pos"]), "neg_scores": [0.0] * len(row.get("neg", []))}
    monkeypatch.setattr(run, "ROWS", 6)
    done = score(write_rows(rows), request.getfixturevalue(teacher), "--only-missing", *more)
    assert "12 rows had scores" in done.stderr
    assert all(row["pos_scores"] == [1.0] * len(row["pos"]) for row in done.rows[:12])


def test_only_missing_refuses_scores_of_others(inside, score, words_of, rows, write_rows, judge, tiny_bert, tmp_path):
    score(write_rows(rows), judge, "--scale", 2, out="scored.jsonl")
    source = tmp_path / "scored.jsonl"
    new = [*read(source), {"query": "kaban", "pos": ["lodor"]}]
    source.write_text("".join(json.dumps(row) + "\n" for row in new))
    for teacher, more, said in (
        (tiny_bert, ["--scale", 2], judge), (judge, [], "scale 2.0"),
        (judge, ["--scale", 2, "--normalize"], "normalize"),
        (judge, ["--scale", 2, "--reranker-max-length", 16], "options"),
        (judge, ["--scale", 2, "--query-instruction-for-rerank", "x"], "options"),
    ):  # fmt: skip
        done = inside(*words_of(source, teacher, "--only-missing", *more))
        assert done.returncode == 2, done.stderr
        assert "--only-missing" in done.stderr
        assert said in done.stderr
        assert not (tmp_path / "out.jsonl").exists()
    done = score(source, judge, "--only-missing", "--scale", 2, "--batch-tokens", 77, "--shard-size", 3)
    assert "30 rows had scores" in done.stderr
    # Without a manifest nothing is known, and nothing refused.
    manifest_of(source).unlink()
    done = score(source, tiny_bert, "--only-missing")
    assert "30 rows had scores" in done.stderr
    manifest_of(source).write_text("{broken")
    assert "30 rows had scores" in score(source, tiny_bert, "--only-missing").stderr


# The manifest


def test_the_manifest_says_what_decided_the_scores(score, rows, write_rows, judge, tmp_path):
    source = write_rows(rows)
    words = [source, judge, "--normalize", "--scale", 4, "--reranker-max-length", 40, "--reranker-query-max-length", 9]
    score(*words, "--batch-tokens", 60, "--shard-size", 5)
    first = manifest_of(tmp_path / "out.jsonl").read_bytes()
    told = manifest(tmp_path / "out.jsonl")
    digest = hashlib.blake2b(source.read_bytes(), digest_size=16).hexdigest()
    assert told["command"] == "bgectl score"
    assert told["inputs"] == {"input_file": {"path": str(source), "blake2b": digest}}
    assert (told["teacher"], told["kind"], told["normalize"], told["scale"]) == (judge, "encoder-only-base", True, 4.0)
    assert told["options"]["reranker_max_length"] == 40
    assert told["options"]["reranker_query_max_length"] == 9
    assert not {"batch_tokens", "shard_size", "work_folder", "devices"} & told["options"].keys()
    assert re.fullmatch(r"[0-9a-f]{32}", told["files"])
    assert {"bgectl", "torch", "transformers"} <= told.keys()
    score(*words, work="other")
    assert manifest_of(tmp_path / "out.jsonl").read_bytes() == first, "a time, or what decides nothing, is in it"
    score(source, judge, "--scale", 4, out="plain.jsonl")
    plain = manifest(tmp_path / "plain.jsonl")
    assert (plain["files"], plain["options"].keys() - {"dtype"}) == (told["files"], set())


def test_the_manifest_names_the_files_of_the_teacher(score, rows, write_rows, judge, tiny_bert, tmp_path):
    """Another model has another digest, and so has the same one after training; a copy elsewhere has the same."""
    import shutil

    from safetensors.torch import load_file, save_file

    source = write_rows(rows[:3])
    copy = shutil.copytree(judge, tmp_path / "copy")
    found = {}
    for name, model in (("own", judge), ("copy", copy), ("other", tiny_bert)):
        score(source, model)
        found[name] = manifest(tmp_path / "out.jsonl")["files"]
    weights = load_file(copy / "model.safetensors")
    weights["classifier.bias"] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    score(source, copy)
    found["trained"] = manifest(tmp_path / "out.jsonl")["files"]
    assert found["own"] == found["copy"]
    assert len(set(found.values())) == 3


def test_the_manifest_of_a_file_scored_in_place(score, rows, write_rows, judge, tmp_path):
    """Its input is what was there before, not what was put in its place."""
    source = write_rows(rows, "out.jsonl")
    digest = hashlib.blake2b(source.read_bytes(), digest_size=16).hexdigest()
    score(source, judge)
    assert manifest(source)["inputs"]["input_file"]["blake2b"] == digest


def test_a_pipe_has_no_manifest(bgectl, words_of, rows, write_rows, judge, tmp_path):
    words = [str(word) if word != tmp_path / "out.jsonl" else "-" for word in words_of("-", judge)]
    done = bgectl(*words, stdin=write_rows(rows).read_text())
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 30
    assert not list(tmp_path.glob("**/*manifest*"))


# --check


def test_check_prints_what_looks_wrong(score, rows, write_rows, judge):
    """A line of JSON for each row in which a negative scores above every positive; nothing else is on stdout."""
    done = score(write_rows(rows), judge, "--check")
    expected = []
    for number, row in enumerate(done.rows, 1):
        if row["neg"] and max(row["neg_scores"]) > max(row["pos_scores"]):
            best, worst = np.argmax(row["pos_scores"]), np.argmax(row["neg_scores"])
            expected.append({
                "row": number, "query": row["query"],
                "positive": row["pos"][best], "positive_score": pytest.approx(row["pos_scores"][best], abs=1e-6),
                "negative": row["neg"][worst], "negative_score": pytest.approx(row["neg_scores"][worst], abs=1e-6),
            })  # fmt: skip
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected
    assert 3 < len(expected) < 27
    assert f"in {len(expected)} rows the teacher puts a negative above every positive" in done.stderr


def test_check_looks_at_scores_that_are_kept(score, write_rows, judge):
    rows = [{"query": "kaban", "pos": ["lodor"], "neg": ["mifel", "rugus"], "pos_scores": [1], "neg_scores": [0, 2.5]},
            {"query": "kaban", "pos": ["lodor"], "neg": ["mifel"], "pos_scores": [1], "neg_scores": [1]}]  # fmt: skip
    done = score(write_rows(rows), judge, "--check", "--only-missing")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"row": 1, "query": "kaban", "positive": "lodor", "positive_score": 1.0, "negative": "rugus",
         "negative_score": 2.5}
    ]  # fmt: skip


def test_check_needs_stdout_for_itself(inside, rows, write_rows, judge, loads):
    done = inside("score", write_rows(rows), "-", "--reranker", judge, "--check")
    assert (done.returncode, done.stdout, loads) == (2, "", [])
    assert "--check" in done.stderr


# Teachers


@pytest.mark.parametrize(("kind", "more"), [
    ("hybrid", []), ("hybrid", ["--weights", 2, 0, 1]), ("sparse", []), ("colbert", []),
], ids=str)  # fmt: skip
def test_an_m3_teacher_by_hand(kind, more, score, rows, write_rows, m3):
    for row in rows[::3]:
        row["prompt"] = "xaban: "
    done = score(write_rows(rows), m3, "--score", kind, *more, "--scale", 2)
    embedder = load_embedder(m3, devices=["cpu"], heads=True)
    weights = more[1:] or (1.0, 0.3, 1.0)
    seen = set()
    for row in done.rows:
        texts = [f"{row.get('prompt', '')}{row['query']}"], [*row["pos"], *row["neg"]]
        encoded = [heads.encode(embedder, part, 64, lambda amount=1: None) for part in texts]
        expected = heads.score(*encoded, [kind], weights)[kind].numpy()[0]
        np.testing.assert_allclose(scores_of([row]), 2 * expected, rtol=1e-4, atol=1e-5)
        seen |= set(expected.tolist())
    assert np.ptp(list(seen)) > 0.05
    assert "(embedder)" in done.stderr


@pytest.mark.parametrize(("teacher", "more", "said"), [
    ("tiny_bert", ["--normalize"], "--normalize"), ("m3", ["--score", "hybrid", "--normalize"], "--normalize"),
    ("judge", ["--score", "hybrid"], "--score"), ("judge", ["--prompt", "relevant?"], "--prompt"),
    ("tiny_bert", ["--cutoff-layers", 2], "--cutoff-layers"), ("judge", ["--compress-ratio", 2], "--compress-ratio"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_options_that_mean_nothing_to_a_teacher(
    teacher, more, said, inside, words_of, rows, write_rows, loads, request
):
    done = inside(*words_of(write_rows(rows), request.getfixturevalue(teacher), *more))
    assert (done.returncode, said in done.stderr, loads) == (2, True, []), done.stderr


def test_an_embedder_without_heads(inside, words_of, rows, write_rows, tiny_xlmr):
    done = inside(*words_of(write_rows(rows), tiny_xlmr, "--score", "hybrid"))
    assert (done.returncode, "sparse_linear.pt" in done.stderr) == (1, True), done.stderr


def test_numbers_are_those_of_float32(score, rows, write_rows, judge, tmp_path):
    """As short as they can be: read as float32 and written again they are the same."""
    score(write_rows(rows), judge)
    text = (tmp_path / "out.jsonl").read_text()
    numbers = re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text)
    assert len(numbers) > 100
    assert all(len(number.lstrip("-").replace(".", "").strip("0")) <= 9 for number in numbers)
    assert all(float(str(np.float32(number))) == float(number) for number in numbers)


def test_one_text_many_times(score, write_rows, judge, tiny_bert):
    """All pairs of few texts: each pair is scored once and stands where it belongs."""
    texts = ["kaban", "lodor mifel", "rugus a"]
    rows = [
        {"query": query, "pos": [one], "neg": [other]} for query, (one, other) in product(texts, permutations(texts, 2))
    ]  # fmt: skip
    for teacher in (judge, tiny_bert):
        done = score(write_rows(rows), teacher)
        assert "scored 9 pairs of 18 rows" in done.stderr
        known = {}
        for row in done.rows:
            for text, value in zip([*row["pos"], *row["neg"]], scores_of([row]), strict=True):
                assert known.setdefault((row["query"], text), value) == value
        assert len(set(known.values())) > 4
