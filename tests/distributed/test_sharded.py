"""DeepSpeed and FSDP on two processes of a CPU: really cut, the steps of plain processes, gone on with, measured."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from processes import run_distributed
from safetensors.torch import load_file

from bgectl.cli import main
from bgectl.train import run
from bgectl.train.checkpoints import newest

WAYS = {
    "plain": [], "fsdp": ["--fsdp"], "stage 0": ["--deepspeed", 0], "stage 1": ["--deepspeed", 1],
    "stage 2": ["--deepspeed", 2], "stage 3": ["--deepspeed", 3],
}  # fmt: skip


CUT = ("plain", "fsdp", "stage 3")
KINDS = {
    "base": (["train", "base", "--negatives-cross-device"], tuple(WAYS)),
    "heads": (["train", "m3", "--negatives-cross-device", "all", "--use-self-distill"], CUT),
    "adapters": (
        ["train", "base", "--negatives-cross-device", "--use-lora", "--lora-rank", 4, "--lora-dropout", 0.0], CUT,
    ),
    "decoder": (
        ["train", "llm", "--negatives-cross-device", "--lora-rank", 4, "--lora-dropout", 0.0,
         "--additional-special-tokens", "<new>", "--query-instruction-for-retrieval", "x",
         "--query-instruction-format", "{}<new>{}", "--save-merged-lora-model"], (*CUT, "stage 1"),
    ),
}  # fmt: skip


def train(rank, words):
    """The command in this process; returns its exit code and which share of the weights lies here."""
    seen = {}
    finish = run.finish

    def look(options, model, trainer, *rest):
        parameters = list(model.encoder.parameters())
        if options.fsdp:
            whole, here = sum(p.numel() for p in parameters), sum(p.to_local().numel() for p in parameters)
        elif (options.deepspeed or "0") == "3":
            whole, here = sum(p.ds_numel for p in parameters), sum(p.ds_tensor.numel() for p in parameters)
        else:
            whole = here = sum(p.numel() for p in parameters)
        seen.update(share=here / whole, wrapper=type(trainer.model_wrapped).__name__)
        if options.deepspeed is not None:
            seen["stage"] = trainer.model_wrapped.zero_optimization_stage()
        finish(options, model, trainer, *rest)

    run.finish = look
    with pytest.raises(SystemExit) as ending:
        main([str(word) for word in words])
    return {**seen, "code": ending.value.code}


@pytest.fixture(scope="module")
def without_dropout(tiny_bert, tmp_path_factory):
    folder = Path(shutil.copytree(tiny_bert, tmp_path_factory.mktemp("without") / "bert"))
    config = json.loads((folder / "config.json").read_text())
    config["hidden_dropout_prob"] = config["attention_probs_dropout_prob"] = 0.0
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def change(out, model):
    """The change of the weights that have a gradient: a key's bias moves no attention."""
    merged = out / "merged_model"
    after = load_file((merged if merged.is_dir() else out) / "model.safetensors")
    before = load_file(Path(model) / "model.safetensors")
    return {name: after[name].float()[: len(before[name])] - before[name]
            for name in after if not name.endswith("key.bias")} | {
        f"new rows of {name}": after[name][len(before[name]) :].float()
        for name in after if len(after[name]) > len(before[name])
    }  # fmt: skip


def differs(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_all_ways_take_the_same_steps(kind, rows, tmp_path, without_dropout, decoders):
    changes = {}
    command, ways = KINDS[kind]
    model = decoders["mistral"] if kind == "decoder" else without_dropout
    for name in ways:
        way = WAYS[name]
        if "--deepspeed" in way:
            pytest.importorskip("deepspeed")
        out = tmp_path / name.replace(" ", "")
        words = [
            *command, "-m", model, "-t", rows, "-o", out, "-b", 4, "--train-group-size", 3,
            "--device", "cpu", "--gradient-cache", "--sub-batch-tokens", 60,
            "--gradient-accumulation-steps", 2, "--learning-rate", 1e-3, "--save-steps", 2, "--save-total-limit", 3,
            "--dataloader-num-workers", 0, "--temperature", 0.1, "--eval-data", rows, "--eval-steps", 2, *way,
        ]  # fmt: skip
        folder = tmp_path / f"results-{out.name}"
        folder.mkdir()
        results = run_distributed(train, 2, folder, words, join=False)
        assert [result["code"] for result in results] == [0, 0], name
        cut = name in ("fsdp", "stage 3")
        assert all((0.4 < result["share"] < 0.7) == cut for result in results), (name, results)
        assert {result.get("stage") for result in results} == {int(name[-1]) if "stage" in name else None}
        changes[name] = change(out, model)
        assert max(value.abs().max() for value in changes[name].values()) > 1e-4
        assert differs(changes["plain"], changes[name]) < 2e-5, name

        # Gone on with from the middle, the run ends where it ended.
        assert newest(out).name == "checkpoint-4"
        shutil.rmtree(newest(out))
        if kind == "decoder":
            assert not (out / "model.safetensors").exists()
            weights = load_file(out / "adapter_model.safetensors").values()
            assert sum(weight.numel() for weight in weights) < 6000, "the base's weights were gathered too"
            (out / "adapter_model.safetensors").unlink()
        else:
            (out / "model.safetensors").unlink()
        folder = tmp_path / f"again-{out.name}"
        folder.mkdir()
        results = run_distributed(train, 2, folder, [*words, "--resume", "auto"], join=False)
        assert [result["code"] for result in results] == [0, 0], name
        again = change(out, model)
        assert all(torch.equal(again[key], changes[name][key]) for key in again), name
        if kind == "decoder":
            with pytest.raises(SystemExit) as ending:
                main(["merge-lora", str(out / "checkpoint-4"), str(tmp_path / f"merged-{out.name}")])
            assert ending.value.code == 0, name


def test_sharding_needs_processes(inside, rows, tmp_path, without_dropout):
    done = inside("train", "base", "-m", without_dropout, "-t", rows, "-o", tmp_path / "out", "--fsdp")
    assert done.returncode == 2
    assert "--gpus" in done.stderr


@pytest.mark.parametrize(("text", "said"), [("{", "not JSON"), ("[]", "no mapping"), (None, "cannot be read")])
def test_bad_deepspeed_files(text, said, inside, rows, tmp_path, without_dropout):
    pytest.importorskip("deepspeed")
    path = tmp_path / "ds.json"
    if text is not None:
        path.write_text(text)
    done = inside("train", "base", "-m", without_dropout, "-t", rows, "-o", tmp_path / "out", "--deepspeed", path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
