"""`bgectl train m3` beside FlagEmbedding's M3 trainer: time and peak memory over batch and length.

A random XLM-R with the vocabulary of BGE-M3 (250,002 ids), hidden size 128 and 2 layers, self-distillation on; float32
on a CPU. With `--large` and a GPU: the size of XLM-R large, lengths 512, 2,048 and 8,192.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from common import ROOT, Cost, make_rows, measured, peers, run

VOCABULARY = 250_002

MODEL = """
import sys
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel
target, source = sys.argv[1:3]
vocabulary, hidden, layers, heads = map(int, sys.argv[3:7])
names = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>",
         "unk_token": "<unk>"}
tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.train([source], trainers.WordLevelTrainer(special_tokens=["<s>", "<pad>", "</s>", "<unk>"]))
tokenizer.post_processor = processors.TemplateProcessing(
    single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"],
                        model_max_length=8192, **names).save_pretrained(target)
config = XLMRobertaConfig(
    vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
    intermediate_size=4 * hidden, max_position_embeddings=8194, type_vocab_size=1, pad_token_id=1, bos_token_id=0,
    eos_token_id=2, layer_norm_eps=1e-5)
XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(target)
"""


def main() -> None:
    """Make a model and rows, train a few steps with each, over batch and length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--large", action="store_true", help="the size of XLM-R large, on a GPU")
    parser.add_argument("--alone", action="store_true", help="do not run the reference, where its environment is not")
    parser.add_argument("--shapes", nargs="*", help="batch,group,length of those to run")
    arguments = parser.parse_args()
    shapes = [(4, 4, 64), (4, 4, 128), (4, 4, 256), (2, 4, 512), (64, 8, 256)]
    size = (128, 2, 4)
    if arguments.large:
        shapes, size = [(16, 8, 512), (4, 8, 2048), (1, 8, 8192)], (1024, 24, 16)
    if arguments.shapes:
        shapes = [tuple(map(int, words.split(","))) for words in arguments.shapes]
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_rows(folder / "words.jsonl", 200, negatives=1)
        (folder / "model.py").write_text(MODEL)
        run([sys.executable, folder / "model.py", folder / "model", folder / "words.jsonl", VOCABULARY, *size])
        for batch, group, length in shapes:
            rows = folder / f"{batch}-{length}.jsonl"
            make_rows(rows, batch * 2, negatives=group - 1, words=(length, length))
            for label, command in commands(arguments, folder, rows, batch, group, length).items():
                # The reference's (B·G, L, V) tensor and its gradient; what would not fit is not tried.
                if label != "bgectl" and 2 * 4 * batch * group * length * VOCABULARY > 16 * 2**30:
                    results.append({"label": label, "shape": (batch, group, length), "wall": None, "peak": None})
                    continue
                started = cost(command, 1, arguments.rounds, arguments.large)
                whole = cost(command, 1 + arguments.steps, arguments.rounds, arguments.large)
                seconds = (whole.wall - started.wall) / arguments.steps
                results.append(
                    {"label": label, "shape": (batch, group, length), "step": seconds, "wall": whole.wall,
                     "peak": whole.peak}
                )  # fmt: skip
    show(results, arguments.steps)


def commands(
    arguments: argparse.Namespace, folder: Path, rows: Path, batch: int, group: int, length: int
) -> dict[str, list[object]]:
    """Label → command without its steps."""
    shape = {
        "per-device-train-batch-size": batch, "train-group-size": group, "query-max-len": 32,
        "passage-max-len": length, "learning-rate": "1e-5", "logging-steps": 100, "temperature": "0.02",
        "dataloader-num-workers": 0, "unified-finetuning": "True", "use-self-distill": "True",
        "num-train-epochs": 1000,
    }  # fmt: skip
    ours: list[object] = [
        sys.executable, "-m", "bgectl", "train", "m3", "--model", folder / "model", "--train-data", rows,
        "--output-dir", folder / "ours", "--overwrite-output-dir", "--save-steps", 0,
        *(word for name, value in shape.items() for word in (f"--{name}", value)),
    ]  # fmt: skip
    theirs: list[object] = [
        "-m", "FlagEmbedding.finetune.embedder.encoder_only.m3", "--model_name_or_path", folder / "model",
        "--train_data", rows, "--output_dir", folder / "theirs", "--sentence_pooling_method", "cls",
        "--normalize_embeddings", "True", "--knowledge_distillation", "False", "--save_strategy", "no",
        "--report_to", "none", "--dataloader_drop_last", "False",
        *(word for name, value in shape.items() for word in ("--" + name.replace("-", "_"), value)),
    ]  # fmt: skip
    if arguments.large:
        half: list[object] = ["--bf16", "--gradient-checkpointing"]
        ours, theirs = [*ours, *half], [*theirs, "--bf16", "--gradient_checkpointing"]
    else:
        theirs += ["--use_cpu", "True"]
    found = {"bgectl": ours}
    if not arguments.alone:
        found["FlagEmbedding"] = [peers(), *theirs]
    return found


def cost(command: list[object], steps: int, rounds: int, gpu: bool) -> Cost:
    """The least of some rounds of a command with so many steps; its peak is the GPU's where there is one."""
    runs = [measured([*command, "--max_steps", steps], gpu=gpu) for _ in range(rounds)]
    return Cost(*(min(getattr(one, key) for one in runs) for key in ("wall", "cpu", "peak")))


def show(results: list[dict], steps: int) -> None:
    """A table, a result file and a picture."""
    print(f"\nm3: seconds a step over {steps} steps, peak MiB of the whole process")
    print(f"{'batch x group x tokens':>24}{'':>16}{'s/step':>10}{'peak MiB':>10}{'time':>8}{'memory':>8}")
    ours = {tuple(entry["shape"]): entry for entry in results if entry["label"] == "bgectl"}
    for entry in results:
        base, shape = ours[tuple(entry["shape"])], " x ".join(map(str, entry["shape"]))
        if entry["wall"] is None:
            print(f"{shape:>24}{entry['label']:>16}   does not fit")
            continue
        ratios = entry["step"] / base["step"], entry["peak"] / base["peak"]
        print(
            f"{shape:>24}{entry['label']:>16}{entry['step']:10.2f}{entry['peak']:10,.0f}"
            f"{ratios[0]:7.1f}x{ratios[1]:7.1f}x"
        )
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    (folder / "m3.json").write_text(json.dumps(results, indent=1) + "\n")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6))
    shapes = list(dict.fromkeys(tuple(entry["shape"]) for entry in results))
    for axis, (key, label) in zip(axes, (("step", "seconds a step"), ("peak", "peak MiB")), strict=True):
        for number, name in enumerate(dict.fromkeys(entry["label"] for entry in results)):
            points = {tuple(e["shape"]): e.get(key) for e in results if e["label"] == name and e["wall"] is not None}
            places = [shapes.index(shape) + 0.4 * number for shape in points]
            bars = axis.bar(places, list(points.values()), width=0.4, label=name)
            axis.bar_label(bars, fmt="{:,.1f}" if key == "step" else "{:,.0f}", fontsize=7)
        axis.set_xticks([place + 0.2 for place in range(len(shapes))], ["×".join(map(str, shape)) for shape in shapes])
        axis.set_ylabel(label)
        axis.grid(axis="y", alpha=0.3)
    axes[0].legend(loc="upper left")
    figure.suptitle("queries × passages each × tokens a passage")
    figure.tight_layout()
    figure.savefig(ROOT / "benchmarks" / "m3.png", dpi=110)


if __name__ == "__main__":
    main()
