"""An encoder embedder: loading the backbone, token ids to vectors, and a folder that others can open.

Letters: N texts, L tokens, D dimensions.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from bgectl import console, signals
from bgectl.errors import RunError, UsageError
from bgectl.models.adapter import add_in_place, read_adapter
from bgectl.models.facts import FORMAT_FIELDS, PROMPT_FORMAT, EmbedderFacts
from bgectl.models.hub import Hub, check_model_name, model_file, unreachable, whole_model
from bgectl.models.lora import Lora, take_weights
from bgectl.models.pooling import pool

ADAPTER = "adapter"
"""Where the adapter alone lies in the folder of a merged model."""


class Encoder(nn.Module):
    """Backbone and pooling: token ids to vectors that are not normalised yet."""

    def __init__(self, backbone: nn.Module, pooling: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        self.lora: Lora | None = None
        """The backbone's adapters, where it has some."""
        self.end: int | None = None
        """The id that texts are ended with; see `decoder.end_of`."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, L) ids and mask → (N, D)."""
        return pool(self.hidden(input_ids, attention_mask), attention_mask, self.pooling)

    def outputs(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """What training looks at, by name: `dense` (N, D). The first dimension grows with the texts."""
        return {"dense": self(input_ids, attention_mask)}

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, L) ids and mask → (N, L, D), the last hidden states."""
        states: Tensor = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states

    @property
    def alone(self) -> bool:
        """Whether what is saved is the adapter, without the base model that it belongs to."""
        return self.lora is not None and self.lora.alone

    def load(self, folder: Path) -> None:
        """Take the weights of a folder that was saved from an encoder like this one."""
        if self.lora is not None:
            where = str(folder if self.alone else folder / ADAPTER)
            take_weights(self.backbone, read_adapter(where, Hub()).stored, where)
            return
        self.backbone.load_state_dict(load_backbone(str(folder), Hub()).state_dict())

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.backbone.config.hidden_size)  # type: ignore[union-attr, arg-type]


def load_config(name: str, hub: Hub) -> Any:
    """The configuration of a model.

    Raises:
        RunError: It cannot be found or read.
    """
    check_model_name(name)
    name, hub = whole_model(name, hub)
    try:
        return AutoConfig.from_pretrained(name, **hub.arguments())
    except (OSError, ValueError) as problem:
        raise unreachable(name, problem) from problem


def load_tokenizer(name: str, hub: Hub, *, decoder: bool = False, slow: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; of an adapter that has none, that of its base.

    Args:
        name: Folder or hub name.
        hub: How to reach it.
        decoder: Pad on the left, and where there is no padding token, by unk or else by eos.
        slow: The form in Python.

    Raises:
        RunError: It cannot be found or read, or has no padding token.
        UsageError: There is no slow form.
    """
    check_model_name(name)
    if model_file(name, "tokenizer_config.json", hub) is None:
        name, hub = whole_model(name, hub)
    form: dict[str, Any] = ({"use_fast": False} if slow else {}) | ({"padding_side": "left"} if decoder else {})
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **form, **hub.arguments())
    except (OSError, ValueError) as problem:
        raise unreachable(name, problem) from problem
    if slow and tokenizer.is_fast:
        raise UsageError(
            f"transformers {transformers.__version__} has no slow tokenizer for {name}", where="--use-slow-tokenizer",
            hint="leave it out",
        )  # fmt: skip
    if decoder and tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise RunError("the tokenizer has no padding token", where=name)
    return tokenizer


def load_backbone(
    name: str, hub: Hub, *, dtype: torch.dtype = torch.float32, config_name: str | None = None,
    attention: str | None = None, quantization: Any = None,
) -> Any:  # fmt: skip
    """The transformer without a head or pooler (an unused pooler would get no gradient).

    An adapter is loaded with its base, and added to it.

    Args:
        name: Folder or hub name.
        hub: How to reach it.
        dtype: Precision of the weights.
        config_name: Where the configuration is, if not with the model.
        attention: Attention by transformers' name; None for the model's own choice.
        quantization: transformers' configuration of weights in fewer bits; None for none.

    Raises:
        RunError: It cannot be found or read, or is no model that AutoModel knows.
    """
    check_model_name(name)
    whole, whole_hub = whole_model(name, hub)
    if whole != name:
        backbone = load_backbone(whole, whole_hub, dtype=dtype, attention=attention)
        add_in_place(backbone, read_adapter(name, hub).chain)
        return backbone
    try:
        config = AutoConfig.from_pretrained(config_name or name, **hub.arguments())
        extra = without_pooler(config)
        if attention is not None:
            extra["attn_implementation"] = attention
        if quantization is not None:
            # Weights in few bits lie where they are made; each process has a device of its own.
            place = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
            extra |= {"quantization_config": quantization, "device_map": {"": place}}
        with warnings.catch_warnings(), console.working(f"Loading {name}"):
            warnings.simplefilter("ignore")
            backbone, loading = AutoModel.from_pretrained(
                name, config=config, dtype=dtype, output_loading_info=True, **extra, **hub.arguments()
            )
    except (OSError, ValueError, RuntimeError, ImportError) as problem:
        if attention is not None and ("attn" in str(problem) or "attention" in str(problem).lower()):
            text = str(problem).strip().split("\n")[0]
            raise RunError(
                f"{attention} cannot be had: {text}", where=name, hint="try sdpa, or leave it out"
            ) from problem
        raise unreachable(name, problem) from problem
    except SafetensorError as problem:
        raise RunError(f"the weights are damaged: {problem}", where=name) from problem
    forget_old_names(backbone)
    missing = sorted(key for key in loading["missing_keys"] if "pooler" not in key)
    if missing:
        console.warn(f"{name}: the files lack {len(missing)} weights, which start at random: {', '.join(missing[:3])}")
    return backbone


def forget_old_names(backbone: Any) -> None:
    """Let LayerNorm's weights be saved by the names that torch has for them.

    The releases 5.0 to 5.4 of transformers write any model that was loaded by names of the first BERTs (gamma, beta),
    because they could have been loaded from such.
    """
    conversions = getattr(backbone, "_weight_conversions", None)
    if conversions:
        old = [{"LayerNorm.gamma", "LayerNorm.beta"} & set(_patterns(item)) for item in conversions]
        backbone._weight_conversions = [item for item, found in zip(conversions, old, strict=True) if not found]


def _patterns(conversion: Any) -> list[str]:
    patterns = getattr(conversion, "source_patterns", [])
    return [patterns] if isinstance(patterns, str) else list(patterns)


def without_pooler(config: Any) -> dict[str, Any]:
    """What AutoModel is to be told so that the model has no pooler."""
    kind = transformers.MODEL_MAPPING.get(type(config), None)
    kind = kind[0] if isinstance(kind, tuple) else kind
    known = kind is not None and "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    return {"add_pooling_layer": False} if known else {}


def position_limit(config: Any) -> int | None:
    """Tokens that the model's position table allows; None where positions are computed.

    RoBERTa and its kin count positions from padding_idx + 1, so two of their 514 cannot be used.
    """
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    if config.model_type in {"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet", "roberta-prelayernorm"}:
        return limit - (config.pad_token_id or 0) - 1
    return limit


def save_embedder(
    folder: Path, backbone: Any, tokenizer: PreTrainedTokenizerBase, facts: EmbedderFacts, *, state: Any = None
) -> None:
    """Write weights, tokenizer and the files by which sentence-transformers, TEI and bgectl know pooling and prompts.

    The form is the one that sentence-transformers reads since version 2.

    Raises:
        RunError: The folder cannot be written.
    """
    with written(folder):
        arguments = {} if state is None else {"state_dict": dict(state)}
        backbone.save_pretrained(folder, **arguments)
    save_beside(folder, tokenizer, facts, backbone.config)


def save_beside(folder: Path, tokenizer: PreTrainedTokenizerBase, facts: EmbedderFacts, config: Any) -> None:
    """Write all of an embedder's folder but its weights and their configuration; see `save_embedder`."""
    with written(folder):
        _forget_cutting(tokenizer)
        tokenizer.save_pretrained(folder)
        for path, content in layout(facts, config).items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def written(folder: Path) -> Iterator[None]:
    """A folder that is there to be written into.

    Raises:
        RunError: It cannot be, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, SafetensorError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise RunError(f"the model cannot be written: {reason}", where=str(folder)) from problem


def refuse_used(out: Path) -> None:
    """Refuse an output folder that exists and is not empty.

    Raises:
        UsageError: It is one.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("the output folder is not empty", where=f"--output-dir {out}", hint="name another one")


@contextmanager
def model_beside(out: Path) -> Iterator[Path]:
    """A folder to fill with a model, which then takes the place of `out`; nothing is left where that fails.

    Args:
        out: Does not exist, or is an empty folder; see `refuse_used`.

    Raises:
        RunError: The disk is full, or the folder cannot be written.
    """
    beside = out.with_name(f".{out.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with signals.half_written(beside):
            yield beside
            if out.is_dir():
                out.rmdir()
            os.replace(beside, out)
    except OSError as problem:
        raise RunError(f"cannot be written: {problem.strerror or problem}", where=str(out)) from problem
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _forget_cutting(tokenizer: PreTrainedTokenizerBase) -> None:
    """Fast tokenizers write the cut and padding of their last call into tokenizer.json."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()


def layout(facts: EmbedderFacts, config: Any) -> dict[str, Any]:
    """Path → content of the JSON files of sentence-transformers' layout."""
    dimension = int(config.hidden_size)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")] + (
        [("2_Normalize", "Normalize")] if facts.normalize else []
    )
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ]
    files: dict[str, Any] = {
        "modules.json": modules,
        "1_Pooling/config.json": {
            "word_embedding_dimension": dimension,
            "pooling_mode_cls_token": facts.pooling == "cls",
            "pooling_mode_mean_tokens": facts.pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "pooling_mode_weightedmean_tokens": False,
            "pooling_mode_lasttoken": facts.pooling == "last_token",
            "include_prompt": True,
        },
        "sentence_bert_config.json": {
            "max_seq_length": facts.max_length or position_limit(config) or 512, "do_lower_case": False,
        },
        "config_sentence_transformers.json": {
            "__version__": {"transformers": transformers.__version__, "pytorch": torch.__version__},
            "prompts": {"query": facts.query_prompt, "document": facts.passage_prompt},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if facts.normalize else "dot",
        },
    }  # fmt: skip
    if facts.normalize:
        files["2_Normalize/config.json"] = {}
    if facts.query_format != "{}{}" or facts.query_suffix:
        files[PROMPT_FORMAT] = {name: getattr(facts, name) for name in FORMAT_FIELDS}
    return files


def quiet_libraries() -> None:
    """Keep the libraries' own bars and advice off the user's terminal; warnings about errors stay. `--verbose` shows
    what they say.
    """
    # What follows computes in the libraries, which look at no signal.
    signals.watch()
    if not torch.cuda.is_available():
        # Else DeepSpeed, which accelerate imports where it is installed, warns that it has looked in vain for a GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if console.verbose():
        transformers.utils.logging.set_verbosity_warning()
    else:
        # Of their own calls into newer releases of torch, which a user can do nothing about.
        warnings.filterwarnings("ignore", category=FutureWarning)
        transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
