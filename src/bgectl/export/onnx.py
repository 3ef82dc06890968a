"""`bgectl export --to onnx`: an embedder as an ONNX graph, in a folder that other programs open.

The graph is made by torch's own exporter. optimum-onnx, the other way, asks for transformers below 4.58 in its newest
release (0.1.0), so pip would take back transformers 5, which bgectl needs; sentence-transformers opens the folder by
optimum all the same, in an environment of its own.

Letters: N texts, L tokens, D dimensions, C size of the ColBERT vectors.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bgectl import console
from bgectl.doctor.versions import installed
from bgectl.encode import Embedder, load_embedder
from bgectl.errors import RunError, UsageError
from bgectl.jsonl import plain_mode
from bgectl.manifest import write_manifest
from bgectl.models.decoder import end_texts
from bgectl.models.encoder import Encoder, model_beside, refuse_used, save_beside, written
from bgectl.models.files import model_facts
from bgectl.models.hub import Hub, model_file
from bgectl.models.m3 import HEADS, M3Encoder
from bgectl.models.pooling import pool
from bgectl.options.export import ExportOptions

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
MISSING = "pip install 'bgectl[onnx]'"

GRAPH = "onnx/model.onnx"
"""Where sentence-transformers, TEI and transformers.js look for it."""
WEIGHTS = "model.onnx_data"
"""The weights of a model that is too large for one file; optimum downloads it by this name."""
ONE_FILE = 1_800_000_000
"""Bytes of weights that still go into the graph's own file: protobuf ends at 2 GiB."""

TEXTS = (
    "a", "a short query", "What is the capital of the state in the north?", "模型 naïve Zürich",
    "A passage of some length says one thing after the other, so that all layers have their share. " * 3,
)  # fmt: skip
BATCHES = ((0,), (1, 2, 3), (4, 0), (4, 3, 2, 1, 0))
"""Texts that are compared in one batch: of one and of several, short and long."""
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}
"""The largest difference there may be, as a part of an output's largest value (or of 1, if that is less)."""


def run(options: ExportOptions) -> None:
    """Export what the options name.

    Raises:
        UsageError: A package is missing, or the target is in use.
        RunError: The model cannot be loaded or exported, or the exported one computes something else.
    """
    need_packages()
    hub = Hub(options.revision, options.cache_dir, options.token, options.trust_remote_code)
    export(
        options.model_name_or_path, options.output_dir, hub=hub, dtype=getattr(torch, options.dtype),
        opset=options.opset, pooling=options.pooling_method, scale=options.normalize_embeddings, check=options.check,
    )  # fmt: skip


def need_packages() -> None:
    """Refuse to start without what exporting takes.

    Raises:
        UsageError: A package is missing.
    """
    missing = [name for name in PACKAGES if installed(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UsageError(f"{', '.join(missing)} {verb} not installed", where="--to onnx", hint=MISSING)


def export(
    name: str, out: Path, *, hub: Hub, dtype: torch.dtype = torch.float32, opset: int | None = None,
    pooling: str | None = None, scale: bool | None = None, check: bool = True,
) -> None:  # fmt: skip
    """Write the folder of the exported model.

    Args:
        name: Folder or hub name of the embedder.
        out: Folder that must not exist, or be empty.
        hub: How to reach models.
        dtype: Precision of the weights.
        opset: Version of the operators; None leaves it to the exporter.
        pooling: `cls`, `mean` or `last_token`; None asks the model's files.
        scale: Normalise the pooled vectors; None asks the model's files.
        check: Compare with the given model.

    Raises:
        UsageError, RunError: See `run`.
    """
    refuse_used(out)
    heads = all(model_file(name, f"{head}.pt", hub) is not None for head in HEADS)
    embedder = load_embedder(
        name, pooling=pooling, normalize=scale, devices=["cpu"], dtype="float32", heads=heads, hub=hub
    )
    encoder, tokenizer, facts = embedder.encoders[0], embedder.tokenizer, embedder.facts
    backbone: Any = encoder.backbone
    # The folder is opened by programs that do not end texts themselves.
    if embedder.end is not None and end_texts(tokenizer) is not None:
        raise RunError("the tokenizer has no fast form that could end texts in EOS by itself", where=name)
    graph = Outputs(encoder, normalized=facts.normalize)
    with model_beside(out) as beside:
        with written(beside):
            save_beside(beside, tokenizer, facts, backbone.config)
            backbone.config.save_pretrained(beside)
            (beside / GRAPH).parent.mkdir()
        inputs = inputs_of(embedder, TEXTS[1:4])
        asked = reference(graph, embedder) if check else []
        graph.to(dtype)
        console.info(f"exporting {name}: {', '.join(inputs)} → {', '.join(graph.names)}")
        make_graph(graph, inputs, beside / GRAPH, opset, name)
        if check:
            console.info(compare(beside / GRAPH, graph.names, asked, dtype))
        card(name, beside, out.name, graph.names)
        decided = {"dtype": str(dtype).removeprefix("torch."), "opset": opset, "outputs": graph.names}
        write_manifest(beside, "export", {}, {"models": model_facts([name], hub), **decided})
    size = sum(path.stat().st_size for path in (out / GRAPH).parent.iterdir())
    console.info(f"exported model: {out} ({size / 1e6:,.1f} MB, {str(dtype).removeprefix('torch.')})")


class Outputs(nn.Module):
    """What the graph computes.

    Args:
        encoder: Backbone and pooling, and heads where it has some.
        normalized: Scale the pooled vectors to length 1.
    """

    def __init__(self, encoder: Encoder, *, normalized: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.normalized = normalized
        self.names = ["last_hidden_state", "sentence_embedding"]
        if isinstance(encoder, M3Encoder):
            self.names += ["sparse_weights", "colbert_vectors"]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """(N, L) ids and mask → the outputs in the order of `names`.

        `last_hidden_state` (N, L, D) and `sentence_embedding` (N, D); with the heads of M3 also `sparse_weights`
        (N, L), a weight for each token, 0 for padding and special tokens, and `colbert_vectors` (N, L - 1, C), of
        length 1, for each token but the first, 0 for padding.
        """
        kinds = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        backbone: Any = self.encoder.backbone
        hidden = backbone(input_ids=input_ids, attention_mask=attention_mask, **kinds).last_hidden_state
        pooled = pool(hidden, attention_mask, self.encoder.pooling)
        results = [hidden, normalize(pooled, dim=-1) if self.normalized else pooled]
        if isinstance(self.encoder, M3Encoder):
            mask = attention_mask.to(hidden.dtype)
            # Not `isin`, for which there is no ONNX operator.
            special = (input_ids.unsqueeze(-1) == self.encoder.special_ids).any(dim=-1).to(hidden.dtype)
            weights = torch.relu(self.encoder.sparse_linear(hidden).squeeze(-1)) * mask * (1 - special)
            vectors = normalize(self.encoder.colbert_linear(hidden[:, 1:]), dim=-1) * mask[:, 1:].unsqueeze(-1)
            results += [weights, vectors]
        return tuple(results)


def inputs_of(embedder: Embedder, texts: Sequence[str]) -> dict[str, Tensor]:
    """What the graph is given for texts, in the order of the model's arguments."""
    length = embedder.passage_max_length
    encoded = embedder.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
    config: Any = embedder.encoders[0].backbone.config
    kinds = getattr(config, "type_vocab_size", 0)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if kinds and "token_type_ids" in encoded else [])]
    return {name: encoded[name] for name in names}


Asked = tuple[dict[str, Tensor], tuple[Tensor, ...]]
"""Inputs, and what the given model says to them in float32."""


def reference(graph: Outputs, embedder: Embedder) -> list[Asked]:
    """What the given model computes for the texts that are compared."""
    graph.eval()
    asked = []
    with torch.inference_mode():
        for batch in BATCHES:
            inputs = inputs_of(embedder, [TEXTS[index] for index in batch])
            asked.append((inputs, graph(**inputs)))
    return asked


def make_graph(graph: Outputs, inputs: Mapping[str, Tensor], path: Path, opset: int | None, name: str) -> None:
    """Trace the model and write the graph, its batch and length left open.

    Raises:
        RunError: torch cannot export this kind of model.
    """
    import onnx

    open_ends = {key: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for key in inputs}
    graph.eval()
    with quietly():
        try:
            made = torch.onnx.export(
                graph, kwargs=dict(inputs), input_names=list(inputs), output_names=graph.names, dynamo=True,
                dynamic_shapes=open_ends, opset_version=opset, verbose=False,
            )  # fmt: skip
            assert made is not None
            model = made.model_proto
        except Exception as problem:
            cause: BaseException = problem
            while cause.__cause__ is not None:
                cause = cause.__cause__
            reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
            raise RunError(
                f"torch {torch.__version__} cannot export this kind of model: {reason[:300]}", where=name,
                hint="`--debug` shows where",
            ) from problem  # fmt: skip
    name_axes(model)
    forget_origin(model)
    size = sum(weight.numel() * weight.element_size() for weight in graph.state_dict().values())
    large = size > ONE_FILE
    onnx.save_model(
        model, str(path), save_as_external_data=large, all_tensors_to_one_file=True, location=WEIGHTS if large else None
    )  # fmt: skip
    for file in path.parent.iterdir():
        file.chmod(plain_mode())


AXES = {"sentence_embedding": ("batch",), "colbert_vectors": ("batch", "sequence_without_first")}
"""The open axes of the outputs that are not open in batch and sequence."""


def name_axes(model: Any) -> None:
    """Call the open axes of the graph `batch` and `sequence`; the exporter numbers them."""
    for value in [*model.graph.input, *model.graph.output]:
        axes = AXES.get(value.name, ("batch", "sequence"))
        for axis, dim in zip(axes, value.type.tensor_type.shape.dim, strict=False):
            dim.dim_param = axis
    # They speak of the former names.
    del model.graph.value_info[:]


def forget_origin(model: Any) -> None:
    """Take out the exporter's notes: for each operator the lines, and the folders on this machine, it comes from."""
    parts = [model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output]
    for function in model.functions:
        parts += [function, *function.node]
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""


@contextmanager
def quietly() -> Iterator[None]:
    """Keep the exporter's many lines off the terminal."""
    heard = io.StringIO()
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(), contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard),
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(former)


def compare(path: Path, names: Sequence[str], asked: Sequence[Asked], dtype: torch.dtype) -> str:
    """See that the graph computes what the given model does, and say how near it is.

    Padding is left out: what a decoder computes there depends on the implementation.

    Raises:
        RunError: It does not.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        said = [session.run(list(names), {name: ids.numpy() for name, ids in inputs.items()}) for inputs, _ in asked]
    except Exception as problem:
        first = str(problem).strip().split("\n")[0][:300]
        raise RunError(
            f"onnxruntime does not run the exported model: {first}", where=str(path.name), hint="try another --opset"
        ) from problem
    worst = dict.fromkeys(names, 0.0)
    broken = []
    for number, name in enumerate(names):
        for (inputs, expected), outputs in zip(asked, said, strict=True):
            one, other = expected[number].float().numpy(), np.asarray(outputs[number], dtype=np.float32)
            real = inputs["attention_mask"].bool().numpy()
            if one.shape != other.shape:
                raise RunError(f"the exported model's {name} has shape {other.shape}, not {one.shape}", where=path.name)
            if name in ("last_hidden_state", "sparse_weights"):
                one, other = one[real], other[real]
            difference = np.abs(one - other).max(initial=0.0)
            worst[name] = max(worst[name], float(difference))
            # Not `>`: it must also catch what is not a number.
            if not difference <= TOLERANCE[dtype] * max(1.0, float(np.abs(one).max(initial=0.0))):
                broken.append(name)
    told = ", ".join(f"{name} {difference:.1e}" for name, difference in worst.items())
    told = f"largest differences between the given and the exported model on {len(TEXTS)} texts: {told}"
    if broken:
        raise RunError(
            f"the exported model does not agree with the given one in {', '.join(dict.fromkeys(broken))}; {told}",
            hint=None if dtype is torch.float32 else "float16 overflows in some models; --dtype float32 does not",
        )  # fmt: skip
    return told


USAGE = """
## ONNX

`{graph}` takes `input_ids` and `attention_mask` and gives {outputs}. `sentence_embedding` is pooled{normalized}:

```python
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
session = onnxruntime.InferenceSession("{name}/{graph}")
inputs = tokenizer(["..."], padding=True, truncation=True, return_tensors="np")
names = {{node.name for node in session.get_inputs()}}
(vectors,) = session.run(["sentence_embedding"], {{key: ids for key, ids in inputs.items() if key in names}})
```
"""


def card(name: str, folder: Path, title: str, outputs: Sequence[str]) -> None:
    """Write the model card: the given model's own, or none, and how the graph is used."""
    own = Path(name) / "README.md"
    text = own.read_text(encoding="utf-8") if own.is_file() else f"# {title}\n\n`{name}` as ONNX.\n"
    normalized = " and of length 1" if (folder / "2_Normalize").is_dir() else ""
    said = ", ".join(f"`{output}`" for output in outputs)
    usage = USAGE.format(graph=GRAPH, outputs=said, normalized=normalized, name=title)
    (folder / "README.md").write_text(text.rstrip("\n") + "\n" + usage, encoding="utf-8")
