r"""`bgectl train llm` beside FlagEmbedding's trainer of decoders: time and peak memory over batch and length.

A random decoder of Mistral's shape: hidden size 512, 8 layers, 8 heads, 4 of keys and values, vocabulary 32,000; LoRA
of rank 32 on all linear layers; float32 on a CPU. Queries have an instruction and two new tokens. Each step has the
same texts, so that the difference of two runs is that of steps alike. On a machine that is busy with other work set
OMP_NUM_THREADS=1, where threads that wait for one another took four times as long as one alone, and go by the seconds
of the processor.

With `--large` and a GPU: the size of Mistral 7B, its weights in bfloat16, gradient checkpointing, all texts 512 tokens
long. Model FLOPs utilisation is then

    T * (4 * N + 6 * A + 6 * L * D * layers) / seconds / peak

with T tokens a step, N frozen weights beside the vocabulary's, A weights of adapters, L tokens of a text, D hidden
size. Frozen weights take 2 in the forward pass and 2 for the gradient of what went into them, and none for a gradient
of their own; adapters take the usual 6. Attention takes 4 * L * D in a layer, forward, of which causality leaves half,
and twice that backward. What checkpointing computes again does not count as use. The weights need 15 GB of $TMPDIR.

With `--prefix`: what it would save to run the instruction that all queries begin with once a step, in this process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from common import ROOT, make_rows, peers, run
from m3 import cost

VOCABULARY = 32_000
RANK, ALPHA = 32, 64
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj"]
PREFIX, OWN, QUERIES, PASSAGES, PASSAGE = 24, 16, 32, 32 * 7, 128
"""Of `--prefix`: tokens of the instruction and of a query behind it, queries, passages, and tokens of a passage."""
PIECE = 8
"""Passages run at once with `--prefix`: 1,024 tokens, as `bgectl train` has it on a CPU."""
PASSAGES_ROW, PASSAGES_EVERY = "passages", 5
"""What the passages' seconds are filed under; they take long and are the same in both ways, so they are timed in one
repetition of so many."""

MODEL = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import MistralConfig, MistralModel, PreTrainedTokenizerFast
target, source, dtype = Path(sys.argv[1]), sys.argv[2], getattr(torch, sys.argv[3])
vocabulary, hidden, layers, heads, shared, inner = map(int, sys.argv[4:10])
special = ["<unk>", "<s>", "</s>"]
tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.train([source], trainers.WordLevelTrainer(special_tokens=special))
known = tokenizer.get_vocab()
# As many words as the model has rows: FlagEmbedding cuts the rows to the tokenizer's.
tokenizer.model = models.WordLevel(
    known | {f"unused{number}": number for number in range(len(known), vocabulary)}, unk_token="<unk>")
tokenizer.post_processor = processors.TemplateProcessing(
    single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], model_max_length=32768,
    bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>").save_pretrained(target)
config = MistralConfig(
    vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
    num_key_value_heads=shared, intermediate_size=inner, max_position_embeddings=32768, sliding_window=None,
    bos_token_id=1, eos_token_id=2, pad_token_id=0)
config.architectures, config.dtype = ["MistralModel"], dtype
config.save_pretrained(target)
with torch.device("meta"):
    shapes = {name: weight.shape for name, weight in MistralModel(config).state_dict().items()}
# A layer at a time, so that a large model is never whole in memory.
files = {}
for name in shapes:
    files.setdefault(".".join(name.split(".")[:2]) if name.startswith("layers.") else name, []).append(name)
index, size = {}, 0
for number, names in enumerate(files.values(), start=1):
    file = f"model-{number:05}-of-{len(files):05}.safetensors"
    weights = {
        name: torch.ones(shapes[name], dtype=dtype) if len(shapes[name]) == 1
        else torch.empty(shapes[name], dtype=dtype).normal_(0, 0.02)
        for name in names}
    save_file(weights, target / file, metadata={"format": "pt"})
    index |= dict.fromkeys(names, file)
    size += sum(weight.nbytes for weight in weights.values())
whole = {"metadata": {"total_size": size}, "weight_map": index}
(target / "model.safetensors.index.json").write_text(json.dumps(whole))
"""


@dataclass(frozen=True)
class Size:
    """Of a decoder: hidden size, layers, heads, heads of keys and values, and the size within the MLP."""

    hidden: int
    layers: int
    heads: int
    shared: int
    inner: int

    def flops(self, tokens: int, length: int) -> float:
        """What a training step of so many tokens takes, in texts of one length; the formula is the module's."""
        keys = self.hidden * self.shared // self.heads
        pairs = [(self.hidden, self.hidden)] * 2 + [(self.hidden, keys)] * 2 + [(self.hidden, self.inner)] * 3
        frozen = self.layers * sum(rows * columns for rows, columns in pairs)
        adapters = self.layers * RANK * sum(rows + columns for rows, columns in pairs)
        return tokens * (4 * frozen + 6 * adapters + 6 * length * self.hidden * self.layers)


@dataclass(frozen=True)
class Shape:
    """Of a step: queries, passages of each, tokens of a passage at most, and whether all have as many."""

    batch: int
    group: int
    length: int
    equal: bool

    def __str__(self) -> str:
        return f"{self.batch} x {self.group} x {self.length} {'equal' if self.equal else 'mixed'}"


SMALL, LARGE = Size(512, 8, 8, 4, 1408), Size(4096, 32, 32, 8, 14336)


def main() -> None:
    """Make a model and rows, train a few steps with each, over batch and length; or time the shared prefix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="4, with --large 20")
    parser.add_argument("--rounds", type=int, default=1, help="the least time of so many runs counts")
    parser.add_argument("--large", action="store_true", help="the size of Mistral 7B, on a GPU")
    parser.add_argument("--peak-tflops", type=float, default=989, help="of the GPU in bfloat16; an H100 has 989")
    parser.add_argument("--alone", action="store_true", help="do not run the reference, where its environment is not")
    parser.add_argument("--shapes", nargs="*", help="batch,group,length,mixed or batch,group,length,equal")
    parser.add_argument("--prefix", action="store_true", help="time queries with their shared prefix run once")
    parser.add_argument("--repetitions", type=int, default=10, help="of --prefix")
    arguments = parser.parse_args()
    size = LARGE if arguments.large else SMALL
    steps = arguments.steps or (20 if arguments.large else 4)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_rows(folder / "words.jsonl", 200, negatives=1)
        (folder / "model.py").write_text(MODEL)
        dtype = "bfloat16" if arguments.large else "float32"
        words = [folder / "model", folder / "words.jsonl", dtype, VOCABULARY, *astuple(size)]
        run([sys.executable, folder / "model.py", *words])
        if arguments.prefix:
            time_prefix(folder / "model", arguments.repetitions)
            return
        show_head(steps, arguments.large)
        results = []
        for shape in shapes_of(arguments):
            results += measure(arguments, folder, shape, size, steps)
    target = ROOT / "benchmarks" / "results"
    target.mkdir(exist_ok=True)
    (target / f"llm{'-large' * arguments.large}.json").write_text(json.dumps(results, indent=1) + "\n")


def shapes_of(arguments: argparse.Namespace) -> list[Shape]:
    """The shapes that were asked for, else the usual ones."""
    if arguments.shapes:
        given = [words.split(",") for words in arguments.shapes]
        return [Shape(*map(int, words[:3]), words[3] == "equal") for words in given]
    if arguments.large:
        return [Shape(4, 8, 512, True), Shape(8, 8, 512, True)]
    return [Shape(4, 4, length, equal) for length in (64, 256) for equal in (False, True)]


def measure(arguments: argparse.Namespace, folder: Path, shape: Shape, size: Size, steps: int) -> list[dict[str, Any]]:
    """Seconds of a step and peak memory of each, for one shape; they are printed as soon as they are known."""
    rows = folder / f"{str(shape).replace(' ', '')}.jsonl"
    lengths = write_rows(rows, shape, full_queries=arguments.large)
    tokens = shape.batch * (1 + shape.group) * shape.length
    results: list[dict[str, Any]] = []
    for label, command in commands(arguments, folder, rows, shape).items():
        entry: dict[str, Any] = {"label": label, "shape": str(shape), "step": None, "passage_tokens": lengths}
        results.append(entry)
        try:
            started = cost(command, 1, arguments.rounds, arguments.large)
            whole = cost(command, 1 + steps, arguments.rounds, arguments.large)
        except SystemExit as problem:
            # What does not fit a GPU for the one may fit it for the other.
            if not arguments.large:
                raise
            print(problem, file=sys.stderr)
            show(entry, results[0])
            continue
        seconds, cpu = (whole.wall - started.wall) / steps, (whole.cpu - started.cpu) / steps
        entry |= {"step": seconds, "cpu": cpu, "wall": whole.wall, "peak": whole.peak}
        if arguments.large:
            used = size.flops(tokens, shape.length) / seconds / arguments.peak_tflops / 1e12
            entry |= {"tokens_per_second": tokens / seconds, "utilisation": used}
        show(entry, results[0])
    return results


def write_rows(path: Path, shape: Shape, *, full_queries: bool) -> list[int]:
    """Write the rows of one step; returns the tokens of the passages.

    Args:
        path: The file.
        shape: Of the step.
        full_queries: Make queries as long as passages.
    """
    shortest = shape.length if shape.equal else 5
    make_rows(path, shape.batch, negatives=shape.group - 1, words=(shortest, shape.length))
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if full_queries:
        for row in rows:
            row["query"] = " ".join(reversed(row["pos"][0].split()))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    # The full stop is a token, and so are BOS and EOS.
    return [min(shape.length, len(text.split()) + 3) for row in rows for text in row["pos"] + row["neg"]]


def commands(arguments: argparse.Namespace, folder: Path, rows: Path, shape: Shape) -> dict[str, list[object]]:
    """Label → command without its steps.

    Neither has --negatives-cross-device: with one process the negatives are the same, and FlagEmbedding ends in an
    error.
    """
    common = {
        "per-device-train-batch-size": [shape.batch], "train-group-size": [shape.group],
        "query-max-len": [shape.length if arguments.large else 64], "passage-max-len": [shape.length],
        "learning-rate": ["1e-4"], "temperature": ["0.02"], "logging-steps": [100], "num-train-epochs": [1000],
        "dataloader-num-workers": [0], "lora-rank": [RANK], "lora-alpha": [ALPHA], "target-modules": TARGETS,
        "query-instruction-for-retrieval": ["Given a query, retrieve passages that are relevant to the query."],
        "query-instruction-format": [r"<instruct>{}\n<query>{}"],
        "additional-special-tokens": ["<instruct>", "<query>"],
    }  # fmt: skip
    ours: list[object] = [
        sys.executable, "-m", "bgectl", "train", "llm", "--model", folder / "model", "--train-data", rows,
        "--output-dir", folder / "ours", "--overwrite-output-dir", "--save-steps", 0,
        *(word for name, values in common.items() for word in (f"--{name}", *values)),
    ]  # fmt: skip
    theirs: list[object] = [
        "-m", "FlagEmbedding.finetune.embedder.decoder_only.base", "--model_name_or_path", folder / "model",
        "--train_data", rows, "--output_dir", folder / "theirs", "--sentence_pooling_method", "last_token",
        "--normalize_embeddings", "True", "--knowledge_distillation", "False", "--use_lora", "True",
        "--save_strategy", "no", "--report_to", "none", "--dataloader_drop_last", "False",
        *(word for name, values in common.items() for word in ("--" + name.replace("-", "_"), *values)),
    ]  # fmt: skip
    if arguments.large:
        ours += ["--bf16", "--gradient-checkpointing"]
        theirs += ["--bf16", "--gradient_checkpointing"]
    else:
        theirs += ["--use_cpu", "True"]
    found = {"bgectl": ours, "bgectl --gradient-cache": [*ours, "--gradient-cache"]}
    if not arguments.alone:
        found["FlagEmbedding"] = [peers(), *theirs]
    return found


def show_head(steps: int, gpu: bool) -> None:
    """The head of the table."""
    print(f"\nllm: seconds a step over {steps} steps, peak MiB of {'the GPU' if gpu else 'the process'}")
    words = f"{'batch x group x tokens':>24}{'mean':>6}{'most':>6}{'':>25}{'s/step':>9}{'CPU s':>8}{'peak MiB':>10}"
    print(f"{words}{'time':>8}{'CPU':>8}{'memory':>8}" + f"{'tokens/s':>12}{'MFU':>7}" * gpu, flush=True)


def show(entry: dict[str, Any], base: dict[str, Any]) -> None:
    """A line of the table, with the ratios to ours of the same shape."""
    lengths = entry["passage_tokens"]
    line = f"{entry['shape']:>24}{statistics.mean(lengths):6.0f}{max(lengths):6}{entry['label']:>25}"
    if entry["step"] is None:
        print(f"{line}   failed", flush=True)
        return
    line += f"{entry['step']:9.2f}{entry['cpu']:8.2f}{entry['peak']:10,.0f}"
    if base["step"] is None:
        line += f"{'':24}"
    else:
        line += "".join(f"{entry[key] / base[key]:7.1f}x" for key in ("step", "cpu", "peak"))
    if "utilisation" in entry:
        line += f"{entry['tokens_per_second']:12,.0f}{entry['utilisation']:7.1%}"
    print(line, flush=True)


def time_prefix(folder: Path, repetitions: int) -> None:
    """Forward and backward pass of a step's texts, with the queries' prefix run in each query and once for all.

    The adapters' second matrices are not zero here, so that both of each pair have gradients to compare.
    """
    import torch
    from torch import Tensor
    from transformers import AutoModel, DynamicCache

    from bgectl.models.lora import add_adapters

    torch.manual_seed(0)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    add_adapters(model, rank=RANK, alpha=ALPHA, dropout=0.0, targets=TARGETS, base="")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.normal_(0, 0.01)
    prefix = torch.randint(3, VOCABULARY, (1, PREFIX))
    own = torch.randint(3, VOCABULARY, (QUERIES, OWN))
    passages = torch.randint(3, VOCABULARY, (PASSAGES, PASSAGE))
    # What the loss would send back.
    back = torch.randn(QUERIES + PASSAGES, model.config.hidden_size)

    def in_each() -> Tensor:
        ids = torch.cat([prefix.expand(QUERIES, -1), own], dim=1)
        return model(input_ids=ids, use_cache=False).last_hidden_state[:, -1]

    def once() -> Tensor:
        cache = DynamicCache()
        for number, layer in enumerate(model(input_ids=prefix, use_cache=True).past_key_values.layers):
            keys, values = (part.expand(QUERIES, -1, -1, -1) for part in (layer.keys, layer.values))
            cache.update(keys, values, number)
        return model(input_ids=own, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]

    def of_queries(encode: Callable[[], Tensor]) -> Tensor:
        vectors = encode()
        vectors.backward(back[:QUERIES])
        return vectors.detach()

    def of_passages() -> None:
        for start in range(0, PASSAGES, PIECE):
            vectors = model(input_ids=passages[start : start + PIECE], use_cache=False).last_hidden_state[:, -1]
            vectors.backward(back[QUERIES + start : QUERIES + start + PIECE])

    ways = {"in each query": in_each, "once": once}
    vectors, gradients = [], []
    for encode in ways.values():
        model.zero_grad()
        vectors.append(of_queries(encode))
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in trained]))
    difference = (vectors[0] - vectors[1]).abs().max().item()
    apart = ((gradients[0] - gradients[1]).norm() / gradients[0].norm()).item()
    if not difference <= 1e-4 or not apart <= 1e-4:
        raise SystemExit(f"the vectors differ by {difference:.1e}, the gradients by {apart:.1e} of their norm")
    seconds: dict[str, list[float]] = {way: [] for way in (*ways, PASSAGES_ROW)}
    for number in range(repetitions):
        # The order turns, so that neither always comes first.
        for way in list(ways)[:: -1 if number % 2 else 1]:
            seconds[way].append(timed(lambda encode=ways[way]: of_queries(encode)))
        if number % PASSAGES_EVERY == 0:
            seconds[PASSAGES_ROW].append(timed(of_passages))
    show_prefix(seconds, difference, apart)


def timed(work: Callable[[], object]) -> float:
    """Seconds that a function takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def show_prefix(seconds: dict[str, list[float]], difference: float, apart: float) -> None:
    """A table and a result file.

    Args:
        seconds: Way → seconds of the queries in each repetition; and those of the passages, the same in both ways.
        difference: The largest of the vectors' entries.
        apart: Norm of the gradients' difference over that of the gradients.
    """
    middle = {name: statistics.median(runs) for name, runs in seconds.items()}
    passages = middle.pop(PASSAGES_ROW)
    texts = f"{QUERIES} queries of {PREFIX} + {OWN} tokens, {PASSAGES} passages of {PASSAGE}"
    print(f"\nprefix: forward and backward, {texts}; medians of {len(seconds['once'])} repetitions")
    print(f"vectors differ by {difference:.1e} at most, gradients by {apart:.1e} of their norm")
    print(f"{'the prefix is run':>20}{'queries s':>12}{'passages s':>12}{'whole s':>10}{'queries':>10}{'whole':>9}")
    for way, queries in middle.items():
        ratios = queries / middle["once"], (queries + passages) / (middle["once"] + passages)
        times = f"{queries:12.2f}{passages:12.2f}{queries + passages:10.2f}"
        print(f"{way:>20}{times}{ratios[0]:9.2f}x{ratios[1]:8.3f}x")
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    report = {"vectors_differ": difference, "gradients_differ": apart, "seconds": seconds}
    (folder / "llm-prefix.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
