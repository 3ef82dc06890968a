"""`bgectl train m3`: folders that open elsewhere, heads that learn, and what `eval` and `mine` do with them."""

import json
import random
import shlex
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bgectl import heads
from bgectl.encode import load_embedder
from bgectl.options.train import TrainM3Options
from bgectl.train.monitor import Collapse

HEADS = ("sparse_linear", "colbert_linear")


@pytest.fixture
def train(inside, tiny_xlmr, tmp_path, toy_rows, write_rows):
    """Train the tiny XLM-R for a moment; `out` is the folder."""

    def call(*words, data=None, out="out", model=tiny_xlmr):
        quick = ["--dataloader-num-workers", 0, "--batch-size", 4, "--train-group-size", 3, "--max-steps", 2]
        return inside(
            "train", "m3", "--model", model, "--train-data", data or write_rows(toy_rows()), "--output-dir",
            tmp_path / out, *quick, *words,
        )  # fmt: skip

    return call


def head(folder, name):
    return torch.load(folder / f"{name}.pt", weights_only=True)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def texts(words, count=100):
    """Of several scripts and lengths; most of it is unknown to a tiny tokenizer, as much is to a real one."""
    draw = random.Random(0)
    others = ["нормальный", "текст", "検索エンジン", "模型", "كتاب", "δοκιμή", "a", "b: {}", "naïve", "🙂", "12"]
    return [" ".join(draw.choices(words + others, k=draw.randint(1, 45))) for _ in range(count)]


@pytest.mark.parametrize("size", [-1, 12])
def test_flagembedding_gives_the_same(size, train, tmp_path, tiny_words):
    flag = pytest.importorskip("FlagEmbedding")
    done = train("--learning-rate", "0.01", "--use-self-distill", "--colbert-dim", size)
    assert done.returncode == 0, done.stderr
    out, sample = tmp_path / "out", texts(tiny_words)
    theirs = flag.BGEM3FlagModel(str(out), use_fp16=False, devices="cpu", colbert_dim=size).encode(
        sample, return_dense=True, return_sparse=True, return_colbert_vecs=True, max_length=60, batch_size=7
    )
    embedder = load_embedder(str(out), passage_max_length=60, devices=["cpu"], heads=True)
    ours = heads.encode(embedder, sample, 60, lambda count: None)
    np.testing.assert_allclose(ours.dense, theirs["dense_vecs"], atol=1e-5)
    weights = ours.sparse.values.split(ours.sparse.lengths)
    ids = ours.ids.split(ours.sparse.lengths)
    vectors = ours.colbert.values.split(ours.colbert.lengths)
    for number in range(len(sample)):
        lexical = {}
        for token, weight in zip(ids[number].tolist(), weights[number].tolist(), strict=True):
            lexical[str(token)] = max(lexical.get(str(token), 0.0), weight)
        lexical = {token: weight for token, weight in lexical.items() if weight > 0}
        expected = {token: float(weight) for token, weight in theirs["lexical_weights"][number].items()}
        assert lexical == pytest.approx(expected, abs=1e-5)
        np.testing.assert_allclose(vectors[number], theirs["colbert_vecs"][number], atol=1e-5)
    card = (out / "README.md").read_text()
    assert 'BGEM3FlagModel("out")' in card if size < 0 else f'BGEM3FlagModel("out", colbert_dim={size})' in card
    assert max(len(part) for part in weights) > 40
    assert sum(len(part) for part in theirs["lexical_weights"]) > 100


def test_sentence_transformers_gives_the_dense_part(train, tmp_path, tiny_words):
    library = pytest.importorskip("sentence_transformers")
    assert train("--sentence-pooling-method", "mean").returncode == 0
    sample = texts(tiny_words, 10)
    theirs = library.SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(sample)
    ours = load_embedder(str(tmp_path / "out"), devices=["cpu"]).encode_passages(sample)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_each_head_learns(train, tmp_path, tiny_words, toy_rows, write_rows):
    """A task that only training solves; the log has each head's part."""
    rows = toy_rows(40)
    held_out = write_rows(rows, "held_out.jsonl")
    done = train(
        "--max-steps", 200, "--learning-rate", "0.005", "--logging-steps", 20, "--eval-data", held_out, "--eval-steps",
        30, "--batch-size", 8, data=write_rows(rows),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    log = log_of(tmp_path / "out")
    losses = [entry for entry in log if "loss" in entry]
    for name in ("dense", "sparse", "colbert", "ensemble"):
        assert losses[-1][f"loss_{name}"] < 0.7 * losses[0][f"loss_{name}"], name
        assert 0 <= losses[-1][f"accuracy_{name}"] <= 1
    weighted = [entry["loss_dense"] + entry["loss_ensemble"] + 0.1 * entry["loss_sparse"] + entry["loss_colbert"]
                for entry in losses]  # fmt: skip
    assert [entry["loss"] for entry in losses] == pytest.approx([total / 4 for total in weighted], rel=1e-4)
    measured = [entry for entry in log if "eval_nDCG@10" in entry]
    for key in ("eval_nDCG@10", "eval_nDCG@10 dense", "eval_nDCG@10 sparse", "eval_nDCG@10 colbert"):
        assert measured[-1][key] > measured[0][key] + 0.02, key
    assert "(dense " in done.stderr
    assert "colbert" in done.stderr
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000


def test_fixed_encoder_stays_bit_equal(train, tmp_path, tiny_xlmr):
    done = train("--fix-encoder", "--learning-rate", "0.01", "--sub-batch-size", 3)
    assert done.returncode == 0, done.stderr
    before, after = load_file(f"{tiny_xlmr}/model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert train("--learning-rate", "1e-30", out="still").returncode == 0
    for name in HEADS:
        moved = (head(tmp_path / "out", name)["weight"] - head(tmp_path / "still", name)["weight"]).abs().max()
        assert moved > 1e-3, name


def test_training_goes_on_from_the_heads_there_are(train, tmp_path):
    assert train("--learning-rate", "0.01", "--colbert-dim", 8, out="first").returncode == 0
    done = train("--learning-rate", "1e-30", model=tmp_path / "first", out="second")
    assert done.returncode == 0, done.stderr
    assert "newly initialised" not in done.stderr
    for name in HEADS:
        before, after = head(tmp_path / "first", name), head(tmp_path / "second", name)
        assert all(torch.equal(before[kind], after[kind]) for kind in ("weight", "bias"))
    assert head(tmp_path / "second", "colbert_linear")["weight"].shape == (8, 32)


def test_without_heads_it_is_train_base(train, inside, tmp_path, tiny_xlmr, toy_rows, write_rows):
    assert train("--no-unified-finetuning", "--learning-rate", "0.01").returncode == 0
    assert not list((tmp_path / "out").glob("*_linear.pt"))
    words = ["--batch-size", 4, "--train-group-size", 3, "--max-steps", 2, "--learning-rate", "0.01"]
    base = inside(
        "train", "base", "--model", tiny_xlmr, "--train-data", write_rows(toy_rows()), "--output-dir",
        tmp_path / "base", *words,
    )  # fmt: skip
    assert base.returncode == 0, base.stderr
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "base"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_resumed_run_ends_with_the_same_bits(train, tmp_path):
    words = ["--learning-rate", "0.01", "--save-steps", 2, "--logging-steps", 1, "--use-self-distill",
             "--self-distill-start-step", 2, "--max-steps", 6]  # fmt: skip
    assert train(*words, out="whole").returncode == 0
    assert train(*words, out="cut").returncode == 0
    cut = tmp_path / "cut"
    for name in ("checkpoint-6", "model.safetensors", *(f"{name}.pt" for name in HEADS)):
        path = cut / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = train(*words, "--resume", "auto", out="cut")
    assert done.returncode == 0, done.stderr
    assert "checkpoint-4" in done.stderr
    for name in HEADS:
        one, other = head(tmp_path / "whole", name), head(cut, name)
        assert all(torch.equal(one[kind], other[kind]) for kind in one)
    one, other = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", cut))
    assert all(torch.equal(one[name], other[name]) for name in one)
    ours, theirs = log_of(cut), log_of(tmp_path / "whole")
    for name in ("loss", "loss_sparse", "accuracy_colbert"):
        assert [entry.get(name) for entry in ours] == [entry.get(name) for entry in theirs], name


@pytest.mark.parametrize("flags", [
    ["--bf16"], ["--gradient-checkpointing"], ["--layerwise-lr-decay", 0.5], ["--use-mrl", "--mrl-dims", 8, 32],
    ["--false-negative-margin", 0.1], ["--no-normalize-embeddings", "--temperature", 1], ["--use-lora", "--bf16"],
], ids=lambda flags: " ".join(map(str, flags)))  # fmt: skip
def test_options_train_all_heads(flags, train, tmp_path, tiny_xlmr):
    done = train("--learning-rate", "0.01", *flags)
    assert done.returncode == 0, done.stderr
    before, after = load_file(f"{tiny_xlmr}/model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert any((before[name] - after[name]).abs().max() > 1e-3 for name in after)
    assert head(tmp_path / "out", "sparse_linear")["weight"].abs().max() > 5e-3, "still as it started"


def test_two_processes_as_typed(bgectl, tmp_path, tiny_xlmr, toy_rows, write_rows):
    done = bgectl(
        "train", "m3", "--model", tiny_xlmr, "--train-data", write_rows(toy_rows()), "--output-dir", tmp_path / "out",
        "--batch-size", 4, "--train-group-size", 3, "--max-steps", 2, "--negatives-cross-device", "--nproc", 2,
        "--device", "cpu", "--use-self-distill",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "sparse_linear.pt").is_file()
    assert done.stderr.count("trained model") == 1


@pytest.mark.parametrize(("words", "value"), [
    (["--negatives-cross-device"], "dense"), (["--negatives_cross_device", "True"], "dense"),
    (["--negatives-cross-device", "all"], "all"), (["--negatives-cross-device=all"], "all"),
    (["--negatives-cross-device", "False"], None), ([], None),
])  # fmt: skip
def test_ways_to_say_cross_device(words, value, inside):
    done = inside("train", "m3", "-m", "m", "-t", "t", "-o", "o", *words, "--seed", 3, "--print-config")
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("negatives_cross_device"))
    assert line.split("#")[0].split(":")[1].strip() == ("null" if value is None else value)


@pytest.mark.parametrize(("given", "said"), [
    ({"unified_finetuning": False, "fix_encoder": True}, "--fix-encoder needs --unified-finetuning"),
    ({"unified_finetuning": False, "use_self_distill": True}, "--use-self-distill needs"),
    ({"unified_finetuning": False, "negatives_cross_device": "all"}, "`dense` is all there is"),
    ({"colbert_dim": 0}, "number of dimensions"),
])  # fmt: skip
def test_options_that_contradict_each_other(given, said):
    with pytest.raises(ValueError, match=said):
        TrainM3Options.model_validate({"model_name_or_path": "m", "train_data": ["t"], "output_dir": "o", **given})


def test_heads_that_cannot_be_used(train, tmp_path):
    assert train("--colbert-dim", 8).returncode == 0
    out = tmp_path / "out"
    done = train("--colbert-dim", 16, model=out, out="other")
    assert (done.returncode, "vectors of 8" in done.stderr) == (2, True), done.stderr
    (out / "sparse_linear.pt").write_bytes(b"no weights")
    done = train(model=out, out="other")
    assert done.returncode == 1
    assert "sparse_linear.pt: cannot be read" in done.stderr
    torch.save({"weight": torch.zeros(1, 5), "bias": torch.zeros(1)}, out / "sparse_linear.pt")
    done = train(model=out, out="other")
    assert "does not fit the model: hidden size 32" in done.stderr
    assert not (tmp_path / "other" / "config.json").exists()


def test_head_files_run_no_code(train, tmp_path):
    import pickle

    assert train().returncode == 0

    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    with (tmp_path / "out" / "colbert_linear.pt").open("wb") as stream:
        pickle.dump({"weight": Evil()}, stream)
    done = train(model=tmp_path / "out", out="other")
    assert done.returncode == 1
    assert not (tmp_path / "ran").exists()


# eval and mine


@pytest.fixture
def trained(train, tmp_path):
    assert train("--learning-rate", "0.01").returncode == 0
    return tmp_path / "out"


def scores_one_by_one(embedder, queries, passages):
    """Each pair by itself, from its definition."""
    encoded = [
        heads.encode(embedder, [text], 60, lambda count: None) for text in [*queries, *passages]
    ]  # fmt: skip
    result = {name: np.zeros((len(queries), len(passages))) for name in heads.SCORES}
    for row, query in enumerate(encoded[: len(queries)]):
        for column, passage in enumerate(encoded[len(queries) :]):
            strongest = [
                {
                    token: max(
                        w for t, w in zip(part.ids.tolist(), part.sparse.values.tolist(), strict=True) if t == token
                    )
                    for token in part.ids.tolist()
                }
                for part in (query, passage)
            ]
            dense = float(query.dense[0] @ passage.dense[0])
            sparse = sum(weight * strongest[1].get(token, 0.0) for token, weight in strongest[0].items())
            colbert = float((query.colbert.values @ passage.colbert.values.T).max(dim=1).values.mean())
            hybrid = (2 * dense + sparse + colbert) / 4
            for name, value in zip(heads.SCORES, (dense, sparse, colbert, hybrid), strict=True):
                result[name][row, column] = value
    return result


@pytest.mark.parametrize(("block", "chunk"), [(256, 1024), (3, 7)])
def test_search_equals_brute_force(block, chunk, trained, tiny_words, monkeypatch):
    monkeypatch.setattr(heads, "QUERY_BLOCK", block)
    monkeypatch.setattr(heads, "CHUNK", chunk)
    sample = list(dict.fromkeys(texts(tiny_words, 40)))
    queries, passages = sample[:8], sample[8:]
    embedder = load_embedder(str(trained), query_max_length=60, passage_max_length=60, devices=["cpu"], heads=True)
    found = heads.search(embedder, queries, [None] * 8, passages, 20, weights=[2, 1, 1])
    expected = scores_one_by_one(embedder, queries, passages)
    for name in heads.SCORES:
        best = -np.sort(-expected[name], axis=1)[:, :20]
        np.testing.assert_allclose(found[name].scores, best, atol=1e-5)
        taken = np.take_along_axis(expected[name], found[name].indices, axis=1)
        np.testing.assert_allclose(taken, best, atol=1e-5)
        assert all(len(set(row)) == 20 for row in found[name].indices.tolist())


def test_eval_by_each_score(trained, inside, write_rows, toy_rows, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # the table has the path of the data in its head
    data = write_rows(toy_rows(40), "judged.jsonl")
    report = tmp_path / "report.json"
    done = inside(
        "eval", trained, trained, "--eval-data", data, "--score", "dense", "sparse", "colbert", "hybrid", "-o", report
    )
    assert done.returncode == 0, done.stderr
    assert "out sparse" in done.stdout
    found = json.loads(report.read_text())
    assert [entry["score"] for entry in found["models"]] == [*heads.SCORES, *heads.SCORES]
    plain = inside("eval", trained, "--eval-data", data, "--format", "json")
    dense = json.loads(plain.stdout)["models"][0]["measures"]
    assert dense == pytest.approx(found["models"][0]["measures"])
    assert dense != pytest.approx(found["models"][1]["measures"])
    # Kinds of score with the first kind; a second model with the first one by the same kind.
    pairs = {(entry["baseline_score"], entry["score"]) for entry in found["comparisons"]}
    assert pairs == {("dense", "sparse"), ("dense", "colbert"), ("dense", "hybrid")} | {(k, k) for k in heads.SCORES}


def test_weights_decide_the_hybrid_score(trained, inside, write_rows, toy_rows):
    data = write_rows(toy_rows(40), "judged.jsonl")

    def measures(*words):
        done = inside("eval", trained, "--eval-data", data, "--format", "json", *words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["models"][0]["measures"]

    assert measures("--score", "hybrid", "--weights", 0, 1, 0) == measures("--score", "sparse")
    assert measures("--score", "hybrid", "--weights", 0, 0, 2) == measures("--score", "colbert")
    done = inside("eval", trained, "--eval-data", data, "--score", "hybrid", "--weights", 0, 0, 0)
    assert (done.returncode, "one of the weights is above 0" in done.stderr) == (2, True)
    done = inside("eval", trained, "--eval-data", data, "--score", "hybrid", "--weights", 1, 2)
    assert (done.returncode, "--weights" in done.stderr) == (2, True)


def test_mine_by_a_score(trained, inside, write_rows, toy_rows, tmp_path):
    rows = toy_rows(40)
    source = write_rows(rows, "rows.jsonl")
    negatives = {}
    for name in heads.SCORES:
        done = inside(
            "mine", source, tmp_path / f"{name}.jsonl", "--embedder-name-or-path", trained, "--range", "0-4", "-n", 3,
            "--score", name, "--embedder-model-class", "encoder-only-m3", "--dtype", "float32",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        negatives[name] = [json.loads(line)["neg"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    pool = list(dict.fromkeys(text for row in rows for text in (*row["pos"], *row["neg"])))
    embedder = load_embedder(str(trained), devices=["cpu"], heads=True)
    found = heads.search(embedder, [row["query"] for row in rows], [None] * len(rows), pool, 4)
    for name in heads.SCORES:
        for row, places, chosen in zip(rows, found[name].indices, negatives[name], strict=True):
            near = [pool[place] for place in places if pool[place] not in row["pos"]]
            assert set(near[:3]) <= set(near)
            assert set(chosen) & set(near) == set(chosen) or len(near) < 3
    assert len({json.dumps(found) for found in negatives.values()}) > 1


def test_a_model_without_heads(inside, tiny_xlmr, write_rows, toy_rows):
    data = write_rows(toy_rows(4), "judged.jsonl")
    done = inside("eval", tiny_xlmr, "--eval-data", data, "--score", "colbert")
    assert done.returncode == 1
    assert "no sparse_linear.pt and no colbert_linear.pt" in done.stderr
    assert "--score dense" in done.stderr


# Collapse


def entry(**changed):
    good = {f"accuracy_{name}": 0.5 for name in ("dense", "sparse", "colbert", "ensemble")}
    return {"loss": 1.0, "chance": 0.1, "sparse_tokens": 0.4, **good, **changed}


@pytest.mark.parametrize(("changed", "said"), [
    ({"sparse_tokens": 0.0}, ["sparse head gives every token weight 0"]),
    ({"accuracy_colbert": 0.0}, ["colbert head finds the positive no more often"]),
    ({}, []),
])  # fmt: skip
def test_collapsed_heads_are_told_once(changed, said, capfd):
    seen = 0
    watch = Collapse(lambda: seen)
    state = type("State", (), {"global_step": 10})
    for seen in (8, 16, 100, 200, 300):
        watch.on_log(None, state, None, entry(**(changed if seen > 10 else {})))
        if seen == 16:
            assert "head" not in capfd.readouterr().err, "too few queries to say so"
    warnings = [line for line in capfd.readouterr().err.splitlines() if "head" in line]
    assert len(warnings) == len(said)
    assert all(words in " ".join(warnings) for words in said)


def test_command_of_the_reference_with_its_head_replaced(inside):
    """FlagEmbedding's published command for bge-m3; a GPU is wanted where it trains."""
    words = shlex.split("""
        --model_name_or_path BAAI/bge-m3 --cache_dir ./cache/model --train_data ./data/retrieval ./data/sts/sts.jsonl
        ./data/classification-no_in_batch_neg ./data/clustering-no_in_batch_neg --cache_path ./cache/data
        --train_group_size 8 --query_max_len 512 --passage_max_len 512 --pad_to_multiple_of 8
        --knowledge_distillation True --same_dataset_within_batch True --small_threshold 0 --drop_threshold 0
        --output_dir ./out --overwrite_output_dir --learning_rate 1e-5 --fp16 --num_train_epochs 2
        --per_device_train_batch_size 2 --dataloader_drop_last True --warmup_ratio 0.1 --gradient_checkpointing
        --deepspeed ../ds_stage0.json --logging_steps 1 --save_steps 1000 --negatives_cross_device --temperature 0.02
        --sentence_pooling_method cls --normalize_embeddings True --kd_loss_type m3_kd_loss --unified_finetuning True
        --use_self_distill True --fix_encoder False --self_distill_start_step 0
    """)
    done = inside("train", "m3", *words, "--gpus", 2, "--print-config")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split("  #")[0].split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert lines["negatives_cross_device"] == "dense"
    assert lines["self_distill_start_step"] == "0"
    assert lines["fix_encoder"] == "false"
    assert lines["kd_loss_type"] == "m3_kd_loss"
    assert lines["gpus"] == "2"


def test_dry_run_counts_the_heads(train, tmp_path):
    def scores(*words):
        done = train("--dry-run", *words)
        assert done.returncode == 0, done.stderr
        line = next(line for line in done.stdout.splitlines() if line.split()[:1] == ["scores"])
        return int(line.split()[1].replace(",", ""))

    large = ["--colbert-dim", 40_000]
    assert scores(*large) > scores() + 5
    assert scores("--no-unified-finetuning") <= scores()
    assert not (tmp_path / "out").exists()
