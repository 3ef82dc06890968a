r"""`bgectl score` beside FlagEmbedding's rerankers and sentence-transformers' CrossEncoder.predict.

FlagEmbedding's add_reranker_score.py is no part of its wheel, so its classes are driven here as that script does, at
the script's batch of 3,000 pairs and at smaller ones. They sort pairs by length too; the first batch, which finds out
what fits, is scored twice. Few pairs are hard on a large batch, since they are all in the first one, padded to the
longest: judge 3,000 by several times as many.

The cross-encoder is all-MiniLM-L6-v2 with a random head of one label, since no real reranker comes from PyPI; pairs/s
depend on shapes alone. Scores are compared too: bfloat16 against float32, and ours against each peer's.

The decoders are random Gemmas, as bge-reranker-v2-gemma is one: a small one with a vocabulary of 250,002 words, and
one whose vocabulary takes the share of the work that it takes in Gemma 2B. FlagEmbedding computes the logits of the
whole vocabulary at all positions, and keeps those of one batch while it computes the next: 2 * N * L * V * 4 bytes for
N pairs of L tokens and V words. Its batch of 3,000 would be 1 TB, and where memory is promised before it is there, as
on Linux, the process would be killed rather than try a smaller one: so 16 and 4 are run.

With `--large` and a GPU: random weights in 16 bits of the size of bge-large and of Gemma 2B, peaks of the GPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import astuple, dataclass
from pathlib import Path

from common import compare, example_rows, make_encoder, make_rows, minilm, peers, read_rows, run, save

FLAG_EMBEDDING = """
import json, sys
from FlagEmbedding import FlagLLMReranker, FlagReranker

def main(model, source, target, batch, device, kind):
    rows = [json.loads(line) for line in open(source, encoding="utf-8")]
    pairs = [(row["query"], text) for row in rows for text in row["pos"] + row["neg"]]
    if kind == "decoder":
        reranker = FlagLLMReranker(model, use_bf16=device != "cpu", devices=device, batch_size=batch)
    else:
        reranker = FlagReranker(model, use_fp16=device != "cpu", devices=device, batch_size=batch)
    scores = iter(reranker.compute_score(pairs))
    with open(target, "w", encoding="utf-8") as stream:
        for row in rows:
            row["pos_scores"] = [float(next(scores)) for _ in row["pos"]]
            row["neg_scores"] = [float(next(scores)) for _ in row["neg"]]
            stream.write(json.dumps(row) + "\\n")

if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), *sys.argv[5:7])
"""

SENTENCE_TRANSFORMERS = """
import json, sys
from sentence_transformers import CrossEncoder
from torch import nn

model, source, target, batch, device = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]
rows = [json.loads(line) for line in open(source, encoding="utf-8")]
half = {} if device == "cpu" else {"model_kwargs": {"dtype": "float16"}}
reranker = CrossEncoder(model, device=device, max_length=512, **half)
pairs = [(row["query"], text) for row in rows for text in row["pos"] + row["neg"]]
scores = iter(reranker.predict(pairs, batch_size=batch, activation_fn=nn.Identity()).tolist())
with open(target, "w", encoding="utf-8") as stream:
    for row in rows:
        row["pos_scores"] = [next(scores) for _ in row["pos"]]
        row["neg_scores"] = [next(scores) for _ in row["neg"]]
        stream.write(json.dumps(row) + "\\n")
"""

DECODER = """
import json, sys, torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast
from bgectl.models.decoder_rerankers import BETWEEN, PASSAGE, PROMPT, QUERY
target, source, dtype = sys.argv[1:4]
vocabulary, hidden, layers, heads, shared, width, inner = map(int, sys.argv[4:11])
names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
# The newline between query and passage is a token, as it is to Gemma.
tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\n|\\w+|[^\\w\\s]"), "removed", invert=True)
rows = [json.loads(line) for line in open(source, encoding="utf-8")]
texts = [text for row in rows for text in (row["query"], *row["pos"], *row["neg"])]
special = list(names.values())
tokenizer.train_from_iterator(
    [QUERY, PASSAGE, BETWEEN, PROMPT, *texts],
    trainers.WordLevelTrainer(vocab_size=vocabulary, special_tokens=special))
known = tokenizer.get_vocab()
tokenizer.model = models.WordLevel(
    known | {f"unused{number}": number for number in range(len(known), vocabulary)}, unk_token="<unk>")
tokenizer.post_processor = processors.TemplateProcessing(
    single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", special.index("<bos>"))])
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], model_max_length=8192,
    padding_side="left", **names).save_pretrained(target)
config = GemmaConfig(
    vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
    num_key_value_heads=shared, head_dim=width, intermediate_size=inner, max_position_embeddings=8192,
    pad_token_id=0, eos_token_id=1, bos_token_id=2, dtype=dtype)
torch.manual_seed(0)
torch.set_default_dtype(getattr(torch, dtype))
GemmaForCausalLM(config).save_pretrained(target)
"""

BATCHES = {"FlagEmbedding": (3000, 256, 32), "sentence-transformers": (32, 128)}
"""The first of each is its default."""
DECODER_BATCHES, LARGE_DECODER_BATCHES = (16, 4), (3000, 128, 32)
"""Of FlagEmbedding."""
LITTLE = 2
"""Rows of the smaller run that is taken from a larger one; with --large ten times as many."""


@dataclass(frozen=True)
class Size:
    """Of a Gemma: words, hidden size, layers, heads, heads of keys and values, width of a head, size within the MLP."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    shared: int
    width: int
    inner: int

    def share(self) -> float:
        """What part of all products with weights the vocabulary's are."""
        layer = self.hidden * (2 * self.width * (self.heads + self.shared) + 3 * self.inner)
        words = self.vocabulary * self.hidden
        return words / (words + self.layers * layer)


DECODERS = {
    "score-decoder": Size(250_002, 256, 3, 4, 1, 64, 1024),
    "score-decoder as in Gemma 2B": Size(32_000, 256, 8, 4, 1, 64, 3584),
}
LARGE_DECODERS = {"score-decoder-large": Size(256_000, 2048, 18, 8, 1, 256, 16384)}


def main() -> None:
    """Make models and rows, score them with each, and compare the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="of the cross-encoder: 500, with --large 5000; a row has 8 pairs")
    parser.add_argument("--decoder-rows", type=int, help="24, with --large 1000")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--large", action="store_true", help="the sizes of bge-large and Gemma 2B, on a GPU")
    parser.add_argument("--alone", action="store_true", help="do not run the peers, where their environment is not")
    parser.add_argument("--only", choices=["encoder", "decoder"], help="one kind of reranker")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "with-FlagEmbedding.py").write_text(FLAG_EMBEDDING)
        (folder / "with-sentence-transformers.py").write_text(SENTENCE_TRANSFORMERS)
        if arguments.only != "decoder":
            measure_encoder(arguments, folder)
        if arguments.only != "encoder":
            for title, size in (LARGE_DECODERS if arguments.large else DECODERS).items():
                measure_decoder(arguments, folder, title, size)


def measure_encoder(arguments: argparse.Namespace, folder: Path) -> None:
    """A cross-encoder."""
    model = folder / "reranker"
    make_encoder(model, kind="reranker", large=arguments.large)
    rows = arguments.rows or (5000 if arguments.large else 500)
    precisions = ("float16", "bfloat16", "float32") if arguments.large else ("float32", "bfloat16")
    measure(
        arguments, folder, "score" + "-large" * arguments.large, model, "encoder-only-base", rows, precisions, BATCHES
    )
    trained_teacher(folder)


def measure_decoder(arguments: argparse.Namespace, folder: Path, title: str, size: Size) -> None:
    """A decoder that scores by its logit of `Yes`."""
    rows = arguments.decoder_rows or (1000 if arguments.large else 24)
    model, source = folder / title, folder / "words.jsonl"
    make_rows(source, rows, negatives=7)
    dtype = "bfloat16" if arguments.large else "float32"
    run([sys.executable, "-c", DECODER, model, source, dtype, *astuple(size)])
    batches = LARGE_DECODER_BATCHES if arguments.large else DECODER_BATCHES
    print(f"\n{size}: {size.share():.0%} of the products with weights are the vocabulary's, if all logits are computed")
    precisions = ("bfloat16",) if arguments.large else ("float32", "bfloat16")
    measure(arguments, folder, title, model, "decoder-only-base", rows, precisions, {"FlagEmbedding": batches})


def measure(
    arguments: argparse.Namespace, folder: Path, title: str, model: Path, kind: str, rows: int,
    precisions: tuple[str, ...], batches: dict[str, tuple[int, ...]],
) -> None:  # fmt: skip
    """Time, memory and scores of each, for one model.

    Args:
        arguments: Of the command line.
        folder: For rows and results.
        title: Of the table and the result files.
        model: The reranker's folder.
        kind: Its kind, as bgectl calls it.
        rows: Rows of 8 pairs.
        precisions: Of ours; the first is the peers' too.
        batches: Peer → its batches.
    """
    source, little = folder / f"{title}.jsonl", folder / f"{title}-little.jsonl"
    make_rows(source, rows, negatives=7)
    fewer = LITTLE * 10 if arguments.large else LITTLE
    make_rows(little, fewer, negatives=7)

    def commands(source: Path) -> dict[str, list[object]]:
        device = "cuda:0" if arguments.large else "cpu"
        found: dict[str, list[object]] = {}
        for dtype in precisions:
            label = f"bgectl score, {dtype}"
            found[label] = [
                *score(source, folder / label / "rows.jsonl", model, dtype), "--reranker-model-class", kind,
                "--devices", device,
            ]  # fmt: skip
        for peer, sizes in {} if arguments.alone else batches.items():
            for batch in sizes:
                label = f"{peer}, batch {batch}"
                words = [model, source, folder / label / "rows.jsonl", batch, device, kind.split("-")[0]]
                found[label] = [peers(), folder / f"with-{peer}.py", *words]
        return found

    whole = commands(source)
    # Decoders are small here and few pairs are enough; with --large starting up is most of a run.
    differ = arguments.large or kind.startswith("decoder")
    compare(
        whole, rounds=arguments.rounds, amount=rows * 8, unit="pairs", name=title,
        folders={label: folder / label for label in whole}, gpu=arguments.large,
        less=(fewer * 8, commands(little)) if differ else None,
    )  # fmt: skip
    results = {label: folder / label / "rows.jsonl" for label in whole}
    found = {label: scores_of(path) for label, path in results.items() if path.exists()}
    show_agreement(f"{title.split(',')[0]}-agreement", found)


def score(source: Path, target: Path, model: str | Path, dtype: str) -> list[object]:
    """The command that both kinds begin with."""
    return [
        sys.executable, "-m", "bgectl", "score", source, target, "--reranker-name-or-path", model, "--dtype", dtype,
    ]  # fmt: skip


def trained_teacher(folder: Path) -> None:
    """What bfloat16 changes for a teacher whose scores mean something: the embedder's cosines on example_data."""
    source = folder / "examples.jsonl"
    example_rows(source)
    found = {}
    for dtype in ("float32", "bfloat16"):
        target = folder / f"trained-{dtype}" / "rows.jsonl"
        target.parent.mkdir()
        run([*score(source, target, minilm(), dtype), "--reranker-model-class", "embedder"])
        found[f"cosine, {dtype}"] = scores_of(target)
    show_agreement("score-agreement of all-MiniLM-L6-v2 on example_data", found)


def scores_of(path: Path) -> list[list[float]]:
    """Of each row, the scores of its positives and negatives."""
    return [row["pos_scores"] + row["neg_scores"] for row in read_rows(path)]


def show_agreement(name: str, found: dict[str, list[list[float]]]) -> None:
    """A table of rank correlations with the first, over all pairs and within rows, and a result file."""
    # Not above: what a process starts is charged with its peak.
    from scipy.stats import kendalltau, spearmanr

    labels = list(found)
    base = found[labels[0]]
    flat = [score for row in base for score in row]
    print(f"\n{name}: against {labels[0]}, {len(flat):,} scores, standard deviation {statistics.pstdev(flat):.3f}")
    print(f"{'':34}{'Spearman':>10}{'Kendall':>10}{'within rows':>13}{'same first':>12}{'most apart':>12}")
    report = {}
    for label in labels[1:]:
        other = [score for row in found[label] for score in row]
        within = statistics.mean(kendalltau(*rows).statistic for rows in zip(base, found[label], strict=True))
        first = statistics.mean(
            one.index(max(one)) == two.index(max(two)) for one, two in zip(base, found[label], strict=True)
        )
        apart = max(abs(one - two) for one, two in zip(flat, other, strict=True))
        spearman, kendall = spearmanr(flat, other).statistic, kendalltau(flat, other).statistic
        print(f"{label:34}{spearman:10.5f}{kendall:10.5f}{within:13.5f}{first:12.1%}{apart:12.1e}")
        report[label] = {
            "spearman": spearman, "kendall": kendall, "kendall_within_rows": within, "same_first": first,
            "most_apart": apart,
        }  # fmt: skip
    save(name, report)


if __name__ == "__main__":
    main()
