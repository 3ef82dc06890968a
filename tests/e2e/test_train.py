"""`bgectl train base`: what it leaves opens elsewhere, repeats, learns, and fails in ways a user can act on."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from bgectl.encode import load_embedder

TEXTS = ["kaban lodor", "mifel", "a {} b: " + "rugus " * 30, "tenim vodor xaban zifel kagus", "?"]


@pytest.fixture
def train(inside, tiny_bert, tmp_path):
    """Train the tiny BERT for a moment; `out` is the folder."""

    def call(*words, data, out="out", model=tiny_bert):
        data = data if isinstance(data, list) else [data]
        quick = ["--dataloader-num-workers", 0, "--batch-size", 4, "--train-group-size", 3]
        return inside(
            "train", "base", "--model-name-or-path", model, "--train-data", *data, "--output-dir", tmp_path / out,
            *quick, *words,
        )  # fmt: skip

    return call


def weights(folder):
    return load_file(folder / "model.safetensors")


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# What others make of the folder


@pytest.mark.parametrize("architecture", ["tiny_bert", "tiny_xlmr"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_folder_gives_the_same_vectors_elsewhere(pooling, architecture, train, write_rows, toy_rows, tmp_path, request):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    flag = pytest.importorskip("FlagEmbedding")
    prompt = "find this: "
    done = train(
        "--sentence-pooling-method", pooling, "--query-instruction-for-retrieval", prompt, "--max-steps", 3,
        "--learning-rate", 1e-3, data=write_rows(toy_rows(12)), model=request.getfixturevalue(architecture),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = str(tmp_path / "out")
    ours = load_embedder(folder)
    queries, passages = ours.encode_queries(TEXTS), ours.encode_passages(TEXTS)
    assert ours.facts.pooling == pooling
    assert np.abs(queries - passages).max() > 1e-3, "the prompt has no effect"

    theirs = sentence_transformers.SentenceTransformer(folder, device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS, prompt_name="query"), queries, atol=1e-5)
    np.testing.assert_allclose(theirs.encode_query(TEXTS), queries, atol=1e-5)
    np.testing.assert_allclose(theirs.encode_document(TEXTS), passages, atol=1e-5)
    np.testing.assert_allclose(theirs.encode(TEXTS), passages, atol=1e-5)
    assert theirs.similarity_fn_name == "cosine"

    flag_model = flag.FlagModel(
        folder, pooling_method=pooling, use_fp16=False, normalize_embeddings=True, devices="cpu",
        query_instruction_for_retrieval=prompt, query_max_length=64, passage_max_length=64,
    )  # fmt: skip
    longest = theirs.max_seq_length
    np.testing.assert_allclose(flag_model.encode_queries(TEXTS, max_length=longest), queries, atol=1e-5)
    np.testing.assert_allclose(flag_model.encode_corpus(TEXTS, max_length=longest), passages, atol=1e-5)


def test_folder_without_normalisation(train, write_rows, toy_rows, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    done = train(
        "--no-normalize-embeddings", "--temperature", 1, "--max-steps", 1, data=write_rows(toy_rows(8))
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours = load_embedder(str(tmp_path / "out")).encode_passages(TEXTS)
    assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() > 0.1
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS), ours, atol=1e-5)
    assert theirs.similarity_fn_name == "dot"


def test_folder_opens_in_transformers(train, write_rows, toy_rows, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    assert train("--max-steps", 1, data=write_rows(toy_rows(8))).returncode == 0
    model = AutoModel.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    # A tokenizer that was saved while it cut texts would go on cutting them.
    assert len(tokenizer("kaban " * 100)["input_ids"]) > 100
    saved = weights(tmp_path / "out")
    assert all(torch.equal(saved[name], model.state_dict()[name]) for name in saved)
    assert not list((tmp_path / "out").glob(".*")), "temporary files are left"


# What training does


def test_loss_falls_and_retrieval_is_learnt(train, write_rows, toy_rows, tmp_path, tiny_bert):
    rows = toy_rows(40)
    done = train(
        "--epochs", 60, "--learning-rate", 1e-2, "--batch-size", 20, "--logging-steps", 5, "--temperature", 0.2,
        "--sentence-pooling-method", "mean", data=write_rows(rows),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    losses = [entry["loss"] for entry in log_of(tmp_path / "out") if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]

    def found(folder):
        embedder = load_embedder(str(folder), pooling="mean")
        passages = [row["pos"][0] for row in rows]
        scores = embedder.encode_queries([row["query"] for row in rows]) @ embedder.encode_passages(passages).T
        return np.mean(scores.argmax(axis=1) == np.arange(len(rows)))

    assert found(tmp_path / "out") > found(tiny_bert) + 0.3


@pytest.mark.parametrize("extra", [[], ["--sub-batch-size", "3"]], ids=["whole", "cached"])
def test_same_seed_same_weights(extra, train, write_rows, toy_rows, tmp_path):
    data = write_rows(toy_rows(18))
    for out, workers, seed in (("a", 0, 1), ("b", 2, 1), ("c", 0, 2)):
        words = ["--dataloader-num-workers", workers, "--seed", seed, "--epochs", 2, *extra]
        done = train(*words, data=data, out=out)
        assert done.returncode == 0, done.stderr
    a, b, c = (weights(tmp_path / out) for out in "abc")
    assert same_weights(a, b), "the weights depend on the number of loader workers"
    assert not same_weights(a, c), "the seed has no effect"


def test_sub_batches_change_nothing_but_rounding(train, write_rows, toy_rows, tmp_path, tiny_bert):
    """The last window of accumulated steps is shorter than the others: 5 steps in windows of 2."""
    config = Path(shutil.copytree(tiny_bert, tmp_path / "nodrop")) / "config.json"
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config.write_text(json.dumps(json.loads(config.read_text()) | still))
    data = write_rows(toy_rows(20))
    words = ["--gradient-accumulation-steps", 2, "--optim", "sgd", "--learning-rate", 0.01, "--max-grad-norm", 0]
    words += ["--epochs", 2, "--logging-steps", 1]
    assert train(*words, data=data, out="whole", model=config.parent).returncode == 0
    assert train(*words, "--sub-batch-size", 3, data=data, out="cached", model=config.parent).returncode == 0
    whole, cached = weights(tmp_path / "whole"), weights(tmp_path / "cached")
    for name in whole:
        torch.testing.assert_close(cached[name], whole[name], rtol=1e-4, atol=1e-6)
    losses = [[entry["loss"] for entry in log_of(tmp_path / out) if "loss" in entry] for out in ("whole", "cached")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_fixed_positions_stay_bit_equal(train, write_rows, toy_rows, tmp_path, tiny_bert):
    done = train("--fix-position-embedding", "--learning-rate", 1e-2, "--weight-decay", 0.1,
                 data=write_rows(toy_rows(12)))  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = load_file(Path(tiny_bert) / "model.safetensors"), weights(tmp_path / "out")
    key = "embeddings.position_embeddings.weight"
    assert torch.equal(before[key], after[key])
    assert not any(torch.equal(before[name], after[name]) for name in before if name != key and "bias" not in name)


@pytest.mark.parametrize(
    "flags",
    [
        ["--use-mrl", "--mrl-dims", "16", "8"],
        ["--use-mrl"],
        ["--train-group-size", "1"],
        ["--same-dataset-within-batch"],
        ["--gradient-checkpointing"],
        ["--bf16"],
        ["--bf16", "--sub-batch-size", "2"],
        ["--shuffle-ratio", "1", "--pad-to-multiple-of", "8"],
        ["--warmup-ratio", "0.2", "--lr-scheduler-type", "cosine", "--dataloader-drop-last"],
    ],
    ids=" ".join,
)
def test_option_trains(flags, train, write_rows, toy_rows, tmp_path, tiny_bert):
    done = train("--max-steps", 2, *flags, data=write_rows(toy_rows(10)))
    assert done.returncode == 0, done.stderr
    before, after = load_file(Path(tiny_bert) / "model.safetensors"), weights(tmp_path / "out")
    assert not same_weights(before, after)
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}


def test_matryoshka_trains_other_weights_than_the_whole_vector(train, write_rows, toy_rows, tmp_path):
    data = write_rows(toy_rows(8))
    train("--max-steps", 2, data=data, out="plain")
    train("--max-steps", 2, "--use-mrl", "--mrl-dims", 32, data=data, out="whole")
    train("--max-steps", 2, "--use-mrl", "--mrl-dims", 8, data=data, out="prefix")
    plain, whole, prefix = (weights(tmp_path / out) for out in ("plain", "whole", "prefix"))
    assert same_weights(plain, whole)
    assert not same_weights(plain, prefix)


def test_group_of_one_needs_no_negatives(train, write_rows, toy_rows, tmp_path):
    rows = [{"query": row["query"], "pos": row["pos"]} for row in toy_rows(8)]
    done = train("--train-group-size", 1, data=write_rows(rows))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["kl_div", "m3_kd_loss"])
def test_distillation_of_partly_scored_rows(kind, train, write_rows, toy_rows, tmp_path):
    rows = toy_rows(8)
    for row in rows[:5]:
        row |= {"pos_scores": [0.2], "neg_scores": [0.9, 0.1, 0.4]}
    words = ["--knowledge-distillation", "--kd-loss-type", kind, "--max-steps", 2]
    done = train(*words, data=write_rows(rows))
    assert done.returncode == 0, done.stderr
    assert "5 of 8 rows have teacher scores" in done.stderr
    train("--max-steps", 2, data=write_rows(rows), out="without")
    assert not same_weights(weights(tmp_path / "out"), weights(tmp_path / "without"))


def test_distillation_without_any_scores_is_refused(train, write_rows, toy_rows):
    done = train("--knowledge-distillation", data=write_rows(toy_rows(8)))
    assert done.returncode == 2
    assert "no row has teacher scores" in done.stderr
    assert "bgectl score" in done.stderr


def test_rows_prompt_is_saved_and_measured_with(train, write_rows, toy_rows, tmp_path, inside):
    """All rows carry one prompt: the saved model says so, and the card's numbers are those of `bgectl eval`."""
    rows = toy_rows(20, prompt="find this: ")
    held_out = [{key: row[key] for key in ("query", "pos", "neg")} for row in toy_rows(12)]
    data, judged = write_rows(rows), write_rows(held_out, "held.jsonl")
    done = train("--epochs", 2, "--learning-rate", 1e-3, "--eval-data", judged, "--eval-steps", 5, data=data)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    prompts = json.loads((out / "config_sentence_transformers.json").read_text())["prompts"]
    assert prompts == {"query": "find this: ", "document": ""}
    again = json.loads(inside("eval", out, "--eval-data", judged, "--format", "json").stdout)
    (report,) = again["models"]
    after = max(entry["eval_nDCG@10"] for entry in log_of(out) if entry["step"] and "eval_nDCG@10" in entry)
    measures = report.get("measures") or report
    assert measures["nDCG@10"] == pytest.approx(after, abs=1e-4)


def test_best_step_is_kept(train, write_rows, toy_rows, tmp_path):
    """A learning rate that first helps and then ruins; the card says before, after and which step."""
    rows = toy_rows(24)
    judged = write_rows([{key: row[key] for key in ("query", "pos", "neg")} for row in rows], "held.jsonl")
    words = ["--epochs", 6, "--learning-rate", 3e-3, "--temperature", 0.1, "--eval-data", judged, "--eval-steps", 6]
    done = train(*words, "--save-steps", 0, "--logging-steps", 3, data=write_rows(rows))
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert [entry["step"] for entry in log_of(out) if "loss" in entry] == [1, *range(3, 37, 3)]
    measured = {entry["step"]: entry["eval_nDCG@10"] for entry in log_of(out) if "eval_nDCG@10" in entry}
    assert sorted(measured) == [0, 6, 12, 18, 24, 30, 36]
    best = max((step for step in measured if step), key=lambda step: (measured[step], -step))
    assert f"weights of step {best} of 36" in done.stderr
    card = (out / "README.md").read_text()
    assert f"| nDCG@10 | {measured[0]:.4f} | {measured[best]:.4f} |" in card
    assert not list(out.glob(".*"))


def test_what_lies_in_the_folder(train, write_rows, toy_rows, tmp_path, inside):
    data = write_rows(toy_rows(12))
    done = train("--max-steps", 3, "--save-steps", 2, "--logging-steps", 1, "--run-name", "a | b", data=data)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "checkpoint-2/model.safetensors").is_file()
    assert (out / "checkpoint-2/modules.json").is_file()
    entries = log_of(out)
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 3]
    assert all({"loss", "learning_rate", "tokens_per_second"} <= entry.keys() for entry in entries if "loss" in entry)
    card = (out / "README.md").read_text()
    assert "library_name: sentence-transformers" in card
    assert "| max_steps | `3` |" in card
    assert "base_model:" not in card, "a local folder is no base model to others"
    options = yaml.safe_load((out / "options.yaml").read_text())
    assert options["max_steps"] == 3
    assert oct((out / "model.safetensors").stat().st_mode & 0o777) == oct((out / "config.json").stat().st_mode & 0o777)

    again = inside("train", "base", "--config", out / "options.yaml", "--output-dir", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    assert same_weights(weights(out), weights(tmp_path / "again"))


def test_short_run_has_a_curve(train, write_rows, toy_rows, tmp_path):
    """Fewer steps than --logging-steps."""
    assert train("--max-steps", 2, data=write_rows(toy_rows(8))).returncode == 0
    assert any("loss" in entry for entry in log_of(tmp_path / "out"))


# What it refuses


def test_half_precision_on_a_cpu(train, write_rows, toy_rows, tmp_path):
    done = train("--fp16", "--use-cpu", data=write_rows(toy_rows(8)))
    assert done.returncode == 2
    assert "--fp16" in done.stderr
    assert not (tmp_path / "out").exists()


def test_output_folder_is_not_empty(train, write_rows, toy_rows, tmp_path):
    data = write_rows(toy_rows(8))
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    done = train("--max-steps", 1, data=data)
    assert (done.returncode, "not empty" in done.stderr) == (2, True)
    done = train("--max-steps", 1, "--overwrite-output-dir", data=data)
    assert done.returncode == 2, "a folder that no run made"
    assert (out / "thesis.tex").read_text() == "years of work"


def test_overwriting_deletes_the_runs_files_and_no_others(train, write_rows, toy_rows, tmp_path):
    data = write_rows(toy_rows(8))
    out = tmp_path / "out"
    assert train("--max-steps", 2, "--save-steps", 1, data=data).returncode == 0
    assert train("--max-steps", 1, data=data).returncode == 2
    (out / "notes.txt").write_text("mine")
    for _ in range(2):
        done = train("--max-steps", 1, "--save-steps", 0, "--overwrite-output-dir", data=data)
        assert done.returncode == 0, done.stderr
        assert (out / "notes.txt").read_text() == "mine"
        assert not list(out.glob("checkpoint-*"))
        assert {entry["step"] for entry in log_of(out)} == {1}, "the log of the earlier run is still there"


def test_output_path_is_a_file(train, write_rows, toy_rows, tmp_path):
    (tmp_path / "out").write_text("x")
    done = train(data=write_rows(toy_rows(8)))
    assert (done.returncode, "is a file" in done.stderr) == (2, True)


def test_empty_negatives_name_their_line(train, write_rows, toy_rows, tmp_path):
    rows = toy_rows(8)
    rows[4]["neg"] = []
    data = write_rows(rows)
    done = train(data=data)
    assert done.returncode == 1
    assert f"{data}:5" in done.stderr
    assert "bgectl mine" in done.stderr
    assert not (tmp_path / "out").exists()


def test_mixed_types(train, write_rows, toy_rows):
    rows = toy_rows(8)
    rows[6]["type"] = "symmetric_sts"
    data = write_rows(rows)
    done = train("--same-dataset-within-batch", data=data)
    assert done.returncode == 1
    assert f"{data}:7" in done.stderr
    assert train("--max-steps", 1, data=data).returncode == 0, "flat mode knows no types"


def test_dataset_without_a_batch(train, write_rows, toy_rows):
    data = [write_rows(toy_rows(8), "big.jsonl"), write_rows(toy_rows(2), "small.jsonl")]
    words = ["--same-dataset-within-batch", "--dataloader-drop-last"]
    done = train(*words, data=data)
    assert done.returncode == 1
    assert "small.jsonl gives no batch" in done.stderr
    done = train(*words, "--allow-empty-datasets", data=data)
    assert done.returncode == 0, done.stderr
    assert "small.jsonl" in done.stderr


def test_non_finite_loss_names_rows(train, write_rows, toy_rows, tmp_path, tiny_bert):
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "broken"))
    broken = load_file(folder / "model.safetensors")
    broken["embeddings.LayerNorm.weight"][3] = float("nan")
    save_file(broken, folder / "model.safetensors", metadata={"format": "pt"})
    data = write_rows(toy_rows(8))
    done = train(data=data, model=folder)
    assert done.returncode == 1
    assert "the loss of step 1 is nan" in done.stderr
    assert f"{data}:" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out/config.json").exists()


@pytest.mark.parametrize("steps", [1, 6])
def test_exploding_weights_are_not_saved(steps, train, write_rows, toy_rows, tmp_path):
    words = ["--learning-rate", 1e38, "--warmup-steps", 0, "--max-steps", steps, "--weight-decay", 1]
    done = train(*words, data=write_rows(toy_rows(8)))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out/config.json").exists()


def test_file_that_changes_under_the_run(write_rows, toy_rows, tmp_path, tiny_bert):
    """A loader process meets the problem; the user reads one line of it."""
    script = tmp_path / "run.py"
    data = write_rows(toy_rows(8))
    script.write_text(
        "import sys\n"
        "from bgectl.train import run\n"
        "claim = run.claim_folder\n"
        "def spoil(folder):\n"
        "    claim(folder)\n"
        f"    open({str(data)!r}, 'w').write('x' * 4000)\n"
        "run.claim_folder = spoil\n"
        "from bgectl.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    words = ["train", "base", "-m", tiny_bert, "-t", data, "-o", tmp_path / "out", "--dataloader-num-workers", 1]
    words += ["--train-group-size", 3]
    done = subprocess.run([sys.executable, script, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the file has changed" in done.stderr
    assert f"{data}:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flags", [["--lr-scheduler-type", "nonsense"], ["--optim", "nonsense"],
                                   ["--report-to", "nonsense"]], ids=" ".join)  # fmt: skip
def test_words_that_transformers_does_not_know(flags, train, write_rows, toy_rows, tmp_path):
    data = write_rows(toy_rows(8))
    done = train("--max-steps", 1, *flags, data=data)
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert "Traceback" not in done.stderr
    assert train("--max-steps", 1, data=data).returncode == 0, "the failed run blocks the folder"


@pytest.mark.parametrize("checkpoints", [0, 1])
def test_full_disk(checkpoints, write_rows, toy_rows, tmp_path, tiny_bert):
    """Files end at 100 kB; the model has more."""
    out = tmp_path / "out"
    words = ["train", "base", "-m", tiny_bert, "-t", write_rows(toy_rows(8)), "-o", out, "--train-group-size", 3,
             "--dataloader-num-workers", 0, "--max-steps", 1, "--save-steps", checkpoints]  # fmt: skip
    command = " ".join(map(str, [sys.executable, "-m", "bgectl", *words]))
    done = subprocess.run(["bash", "-c", f"ulimit -f 60; {command}"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert "report it" not in done.stderr, "the message calls a full disk a bug"
    left = {path.name for path in out.iterdir()}
    assert not left & {"model.safetensors", "config.json", ".model.part"}


@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted(workers, write_rows, toy_rows, tmp_path, tiny_bert):
    out = tmp_path / "out"
    words = ["train", "base", "-m", tiny_bert, "-t", write_rows(toy_rows(40)), "-o", out, "--epochs", 100_000,
             "--dataloader-num-workers", workers, "--train-group-size", 3, "--logging-steps", 1,
             "--save-steps", 0]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "bgectl", *map(str, words)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for _ in range(600):
        if (out / "log.jsonl").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    # As Ctrl-C in a terminal: the loader's processes get it too.
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "interrupted" in stderr
    assert not (out / "config.json").exists()


@pytest.mark.parametrize("flags", [
    ["--layerwise-lr-decay", 0.5], ["--optim", "adamw_torch_fused"],
    ["--bf16", "--gradient-checkpointing"], ["--trainer", "adam_beta2=0.9"], ["--false-negative-margin", 0.1],
    ["--gradient-cache"], ["--sub-batch-tokens", 40], ["--fix-position-embedding"],
], ids=lambda flags: " ".join(map(str, flags)))  # fmt: skip
def test_options_change_what_is_learnt(flags, train, write_rows, toy_rows, tmp_path):
    """Each trains, and none of them does nothing."""
    data = write_rows(toy_rows(16))
    words = ["--max-steps", 3, "--learning-rate", 1e-2, "--temperature", 0.5]
    done = train(*words, *flags, data=data)
    assert done.returncode == 0, done.stderr
    assert train(*words, data=data, out="plain").returncode == 0
    one, other = weights(tmp_path / "out"), weights(tmp_path / "plain")
    if flags == ["--gradient-cache"]:
        for name in one:
            torch.testing.assert_close(one[name], other[name], atol=1e-4, rtol=0)
    else:
        assert not same_weights(one, other)


def test_flash_attention_that_is_not_installed(train, write_rows, toy_rows):
    done = train("--attn-implementation", "flash_attention_2", data=write_rows(toy_rows(8)))
    if done.returncode == 0:
        pytest.skip("it is installed here")
    assert done.returncode == 1
    assert "flash_attention_2 cannot be had" in done.stderr


@pytest.mark.slow
def test_compiled_model_learns_the_same(train, write_rows, toy_rows, tmp_path):
    data = write_rows(toy_rows(8))
    words = ["--max-steps", 2, "--learning-rate", 1e-2]
    done = train(*words, "--torch-compile", data=data)
    if "compiler" in done.stderr:
        pytest.skip("no compiler here")
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "out").keys() == {name for name in weights(tmp_path / "out") if "_orig_mod" not in name}
    assert len(log_of(tmp_path / "out")) == 2


def test_unpacked_copies_are_kept_and_taken_again(train, toy_rows, tmp_path):
    data = tmp_path / "rows.jsonl.gz"
    cache = tmp_path / "cache"

    def write(rows):
        data.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))

    write(toy_rows(8))
    made = []
    for out in ("one", "two"):
        assert train("--max-steps", 1, "--cache-path", cache, data=data, out=out).returncode == 0
        (copy,) = cache.iterdir()
        made.append(copy.stat().st_mtime_ns)
    assert made[0] == made[1], "it was unpacked again"
    write(toy_rows(12))
    done = train("--max-steps", 1, "--cache-path", cache, data=data, out="three")
    assert "12" in done.stderr
    assert len(list(cache.iterdir())) == 2, "the copy of another file was taken"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("flags", [["--gpus", 1], ["--device", "cuda"]], ids=["--gpus", "--device"])
def test_no_gpu(flags, train, write_rows, toy_rows, tmp_path):
    done = train(*flags, data=write_rows(toy_rows(8)))
    assert done.returncode == 2
    assert f"{flags[0]}" in done.stderr
    assert "no GPU" in done.stderr
    assert not (tmp_path / "out").exists()
