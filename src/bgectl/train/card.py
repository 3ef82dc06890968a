"""The model card: what the model is, what it learned from, how, and what it reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bgectl import __version__
from bgectl.models.facts import EmbedderFacts
from bgectl.train.batches import DatasetPlan

USAGE = """\
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{folder}")
queries = model.encode(["..."]{query_argument})
passages = model.encode(["..."]{passage_argument})
scores = model.similarity(queries, passages)
```
"""

HEADS_USAGE = """\
The folder also holds a sparse and a ColBERT head, as BGE-M3 has them:

```python
from FlagEmbedding import BGEM3FlagModel

model = BGEM3FlagModel("{folder}"{arguments})
model.encode(["..."], return_dense=True, return_sparse=True, return_colbert_vecs=True)
```

`bgectl eval {folder} --score dense sparse colbert hybrid --eval-data DIR` measures each of them.
"""


ADAPTER_USAGE = """\
This folder holds a LoRA adapter; it works together with its base model. `bgectl eval` and `bgectl mine` take it as it
is, and

```
bgectl merge-lora {folder} {folder}-merged
```

makes a whole model of both, which sentence-transformers, transformers and FlagEmbedding open. In Python, by peft:

```python
from peft import AutoPeftModelForFeatureExtraction

model = AutoPeftModelForFeatureExtraction.from_pretrained("{folder}")
```

A text's vector is the {pooling} vector of the last hidden states; the tokenizer of this folder ends each text in EOS.
"""

DECODER_USAGE = """\
```python
from FlagEmbedding import {kind}

model = {kind}("{folder}"{arguments})
queries = model.encode_queries(["..."])
passages = model.encode_corpus(["..."])
scores = queries @ passages.T
```
"""


def merged_card(*, name: str, base_model: str, adapters: Sequence[str], facts: EmbedderFacts) -> str:
    """The README.md of a model that `merge-lora` made.

    Args:
        name: Its title.
        base_model: The base.
        adapters: Where the adapters lay, in the order they were added.
        facts: Pooling and prompts.
    """
    lines = [_front_matter(base_model), f"# {name}", ""]
    lines += [f"`{base_model}` with {len(adapters)} LoRA adapter{'s' if len(adapters) > 1 else ''} merged into it by "]
    lines[-1] += f"bgectl {__version__}: {', '.join(f'`{Path(adapter).name}`' for adapter in adapters)}."
    lines += ["", *_facts(facts), "", "## Use", "", _usage(Path(name), facts), *_decoder_usage(name, facts)]
    return "\n".join(lines)


def _facts(facts: EmbedderFacts) -> list[str]:
    lines = ["| | |", "|-|-|", f"| Pooling | {facts.pooling} |"]
    lines += [f"| Normalised | {'yes' if facts.normalize else 'no'} |", f"| Tokens | {facts.max_length} |"]
    lines += [f"| Query prompt | {_code(facts.query_prompt)} |", f"| Passage prompt | {_code(facts.passage_prompt)} |"]
    if facts.query_format != "{}{}" or facts.query_suffix:
        lines += [
            f"| Query instruction | {_code(facts.query_instruction)} |",
            f"| Query format | {_code(facts.query_format)} |",
            f"| Query suffix | {_code(facts.query_suffix)} |",
        ]  # fmt: skip
    return lines


def _decoder_usage(name: str, facts: EmbedderFacts) -> list[str]:
    if facts.pooling != "last_token":
        return []
    kind = "FlagICLModel" if facts.query_suffix else "FlagLLMModel"
    arguments = ""
    if facts.query_instruction:
        arguments += f", query_instruction_for_retrieval={facts.query_instruction!r}"
        arguments += f", query_instruction_format={facts.query_format!r}"
    arguments += f", suffix={facts.query_suffix!r}" if facts.query_suffix else ""
    return ["or", "", DECODER_USAGE.format(kind=kind, folder=name, arguments=arguments)]


def model_card(
    *,
    folder: Path,
    base_model: str,
    facts: EmbedderFacts,
    plan: Sequence[DatasetPlan],
    options: Mapping[str, Any],
    changed: Sequence[str],
    before: Mapping[str, float] | None,
    after: Mapping[str, float] | None,
    kept: str | None,
    steps: int,
    loss: float | None,
    colbert: tuple[int, int] | None = None,
    adapter: bool = False,
) -> str:
    """The text of README.md.

    Args:
        folder: Where the model lies; its name is the title.
        base_model: The model that training started from.
        facts: Pooling, prompts and length of the trained model.
        plan: The datasets.
        options: All options of the run by name, secrets left out.
        changed: Names of the options that are not at their default.
        before: Held-out measures of the base model, where they were taken.
        after: Held-out measures of the saved weights.
        kept: Which weights were saved, such as `step 400 of 600`.
        steps: Steps trained.
        loss: The mean loss.
        colbert: Size of the hidden states and of the ColBERT vectors, where the model has the heads of M3.
        adapter: The folder holds an adapter without its base.
    """
    lines = [_front_matter(base_model), f"# {folder.name}", ""]
    lines += [f"A text embedder fine-tuned from `{base_model}` with bgectl {__version__}.", ""]
    lines += _facts(facts)
    if adapter:
        lines += ["", "## Use", "", ADAPTER_USAGE.format(folder=folder.name, pooling=facts.pooling)]
    else:
        lines += ["", "## Use", "", _usage(folder, facts), *_decoder_usage(folder.name, facts)]
    lines += [_heads_usage(folder, facts, *colbert)] if colbert else []
    lines += ["## Training data", ""]
    lines += ["| dataset | rows | passages a query | queries a step | steps an epoch |", "|-|-:|-:|-:|-:|"]
    lines += [f"| {p.name} | {p.rows:,} | {p.group_size} | {p.batch_size} | {p.steps:,} |" for p in plan]
    lines += ["", "## Results", "", *_results(before, after, kept)]
    lines += ["", f"Trained for {steps:,} steps" + (f"; mean loss {loss:.4f}." if loss is not None else "."), ""]
    lines += ["![curves](curves.png)", "", "## Options", ""]
    lines += ["Not at their defaults:", "", "| option | value |", "|-|-|"]
    lines += [f"| {name} | {_code(options[name])} |" for name in changed]
    return "\n".join([*lines, "", "All of them are in `options.yaml`.", ""])


def _front_matter(base_model: str) -> str:
    lines = ["---", "library_name: sentence-transformers", "pipeline_tag: sentence-similarity"]
    # Hub names only: a folder of the author's machine is no base model to others.
    if base_model.count("/") == 1 and not base_model.startswith((".", "/", "~")) and not Path(base_model).exists():
        lines.append(f"base_model: {base_model}")
    tags = ["sentence-transformers", "feature-extraction", "sentence-similarity", "bgectl"]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---", ""])


def _code(value: Any) -> str:
    text = str(value).replace("|", "\\|").replace("\n", "\\n")
    return f"`{text}`" if text else "none"


def _usage(folder: Path, facts: EmbedderFacts) -> str:
    return USAGE.format(
        folder=folder.name,
        query_argument=', prompt_name="query"' if facts.query_prompt else "",
        passage_argument=', prompt_name="document"' if facts.passage_prompt else "",
    )


def _heads_usage(folder: Path, facts: EmbedderFacts, hidden: int, colbert: int) -> str:
    arguments = "" if facts.pooling == "cls" else f', pooling_method="{facts.pooling}"'
    arguments += "" if facts.normalize else ", normalize_embeddings=False"
    arguments += "" if colbert == hidden else f", colbert_dim={colbert}"
    return HEADS_USAGE.format(folder=folder.name, arguments=arguments)


def _results(before: Mapping[str, float] | None, after: Mapping[str, float] | None, kept: str | None) -> list[str]:
    if before is None or after is None:
        return ["Nothing was held out (`--eval-data`); compare with `bgectl eval BASE THIS --eval-data DIR`."]
    rows = [f"| {name} | {before[name]:.4f} | {value:.4f} |" for name, value in after.items()]
    return [f"On held-out data; the weights are those of {kept}.", "", "| | before | after |", "|-|-:|-:|", *rows]
