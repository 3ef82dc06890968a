"""What is known of an embedder before it is loaded: pooling, normalisation, prompts, length, and who says so.

The model's own files are asked first (the layout of sentence-transformers: modules.json, 1_Pooling/config.json,
config_sentence_transformers.json, sentence_bert_config.json), then the table of published names, then the defaults.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bgectl.data.prompts import shown_prefix
from bgectl.errors import RunError
from bgectl.models.hub import Hub, model_file, read_json

BGE_EN = "Represent this sentence for searching relevant passages: "
BGE_ZH = "为这个句子生成表示以用于检索相关文章："

WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"

ICL_QUERY, ICL_SUFFIX, ICL_EXAMPLE = "<instruct>{}\n<query>{}", "\n<response>", "<instruct>{}\n<query>{}\n<response>{}"
"""What bge-en-icl was trained with, and FlagICLModel takes for any embedder of its kind."""

KNOWN: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"bge-(small|base|large)-en(-v1\.5)?", {"pooling": "cls", "query_prompt": BGE_EN}),
    (r"bge-(small|base|large)-zh(-v1\.5)?", {"pooling": "cls", "query_prompt": BGE_ZH}),
    (r"bge-m3(-.*)?", {"pooling": "cls"}),
    (r"(multilingual-)?e5-(small|base|large)(-v2)?", {
        "pooling": "mean", "query_prompt": "query: ", "passage_prompt": "passage: ",
    }),
    (r"bge-multilingual-gemma2", {
        "pooling": "last_token", "query_instruction": f"{WEB_SEARCH}.", "query_format": "<instruct>{}\n<query>{}",
    }),
    (r"bge-en-icl", {
        "pooling": "last_token", "query_instruction": f"{WEB_SEARCH}.", "query_format": ICL_QUERY,
        "query_suffix": ICL_SUFFIX,
    }),
    (r"e5-mistral-7b-instruct", {
        "pooling": "last_token", "query_instruction": WEB_SEARCH, "query_format": "Instruct: {}\nQuery: {}",
    }),
    (r"all-(minilm-l\d+|mpnet-base)-v\d", {"pooling": "mean"}),
)  # fmt: skip
"""What the authors of published models say of them, by the last part of the name, lower case."""


PROMPT_FORMAT = "prompt_format.json"
"""What a model folder says of prompts beyond a prefix: the instruction, how it is joined with the query, and what
stands behind the query."""
FORMAT_FIELDS = ("query_instruction", "query_format", "query_suffix")


@dataclass(frozen=True)
class EmbedderFacts:
    """Pooling, normalisation, prompts and length of an embedder. `sources` says where each came from.

    Attributes:
        query_prompt: What stands before a query where the user names no instruction.
        query_instruction: The instruction in it, where it is known apart from its format.
        query_format: How an instruction and a query are joined.
        query_suffix: What stands behind a query of an embedder that was trained with examples (icl).
    """

    pooling: str = "cls"
    normalize: bool = True
    query_prompt: str = ""
    passage_prompt: str = ""
    query_instruction: str | None = None
    query_format: str = "{}{}"
    query_suffix: str = ""
    max_length: int | None = None
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def instruction(self) -> str:
        """What is joined with a query by `query_format`, where a row has no prompt of its own."""
        own = self.query_instruction
        if own is not None and shown_prefix(self.query_format, own) == self.query_prompt:
            return own
        return self.query_prompt

    def instructed(self, instruction: str) -> EmbedderFacts:
        """The facts with another instruction for queries, which the user names."""
        prompt = shown_prefix(self.query_format, instruction) or ""
        return _with(self, {"query_instruction": instruction, "query_prompt": prompt}, "option")

    def as_icl(self) -> EmbedderFacts:
        """The facts of an embedder that takes examples; what is not known of it is as in bge-en-icl."""
        facts = self
        for name, usual in (("query_suffix", ICL_SUFFIX), ("query_format", ICL_QUERY)):
            facts = facts if name in facts.sources else _with(facts, {name: usual}, "icl")
        return facts

    def describe(self) -> str:
        """One line for the log."""
        parts = [f"pooling {self.pooling} ({self._source('pooling')})"]
        parts.append(f"{'normalised' if self.normalize else 'not normalised'} ({self._source('normalize')})")
        for name, label in (("query_prompt", "query prompt"), ("passage_prompt", "passage prompt")):
            text = getattr(self, name)
            parts.append(f"{label} {text!r} ({self._source(name)})" if text else f"no {label}")
        if self.query_suffix:
            parts.append(f"query suffix {self.query_suffix!r} ({self._source('query_suffix')})")
        return ", ".join(parts)

    def _source(self, name: str) -> str:
        return self.sources.get(name, "default")


def embedder_facts(name: str, hub: Hub, *, default_pooling: str = "cls", **given: Any) -> EmbedderFacts:
    """Gather the facts; what the user gave (values that are not None) wins over the files.

    Args:
        name: Folder or hub name of the model.
        hub: How to reach it.
        given: Fields of `EmbedderFacts` from options, None where the user said nothing.

    Raises:
        RunError: The model cannot be reached, or has layers that would be left out.
    """
    facts = EmbedderFacts(pooling=default_pooling)
    facts = _with(facts, known_facts(name), "known for its name")
    facts = _with(facts, file_facts(name, hub), "model files")
    facts = _with(facts, format_facts(name, hub), "model files")
    if facts.query_instruction is not None and not facts.query_prompt:
        prompt = shown_prefix(facts.query_format, facts.query_instruction) or ""
        facts = _with(facts, {"query_prompt": prompt}, facts.sources["query_instruction"])
    return _with(facts, {key: value for key, value in given.items() if value is not None}, "option")


def _with(facts: EmbedderFacts, values: dict[str, Any], source: str) -> EmbedderFacts:
    return replace(facts, **values, sources=facts.sources | dict.fromkeys(values, source))


def known_facts(name: str) -> dict[str, Any]:
    """What the table of published names says; empty for an unknown name."""
    last = Path(name).name.lower()
    return next((values for pattern, values in KNOWN if re.fullmatch(pattern, last)), {})


def format_facts(name: str, hub: Hub) -> dict[str, Any]:
    """What the model's `prompt_format.json` says; empty without one.

    Raises:
        RunError: It says something else than texts.
    """
    path = model_file(name, PROMPT_FORMAT, hub)
    if path is None:
        return {}
    found = read_json(path)
    facts = {name: found[name] for name in FORMAT_FIELDS if found.get(name) is not None}
    if any(not isinstance(value, str) for value in facts.values()):
        raise RunError(f"holds something else than texts: {facts}", where=str(path))
    return facts


def file_facts(name: str, hub: Hub) -> dict[str, Any]:
    """What the files in sentence-transformers' layout say; empty without a modules.json.

    Raises:
        RunError: The modules hold a layer that bgectl does not compute, such as Dense.
    """
    modules_path = model_file(name, "modules.json", hub)
    if modules_path is None:
        return {}
    facts: dict[str, Any] = {"normalize": False}
    for module in read_json(modules_path):
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Pooling":
            path = model_file(name, f"{module['path']}/config.json", hub)
            if path is not None:
                facts["pooling"] = _pooling_of(read_json(path), name)
        elif kind == "Normalize":
            facts["normalize"] = True
        elif kind != "Transformer":
            raise RunError(f"the model has a {kind} layer, which bgectl does not compute", where=name)
    general_path = model_file(name, "config_sentence_transformers.json", hub)
    general = read_json(general_path) if general_path else {}
    if general.get("similarity_fn_name") in (None, "cosine"):
        # Cosine similarity is the inner product of normalised vectors, whatever the modules say.
        facts["normalize"] = True
    prompts = general.get("prompts") or {}
    if "query" in prompts:
        facts["query_prompt"] = prompts["query"] or ""
    passage = next((prompts[key] for key in ("document", "passage", "corpus") if key in prompts), None)
    if passage is not None:
        facts["passage_prompt"] = passage or ""
    # An empty prompt in the files of an old model means that nobody filled it in; names then know better.
    known = known_facts(name)
    for key, source in (("query_prompt", "query_instruction"), ("passage_prompt", "passage_prompt")):
        if not facts.get(key) and (known.get(key) or known.get(source)):
            facts.pop(key, None)
    length_path = model_file(name, "sentence_bert_config.json", hub)
    length = read_json(length_path).get("max_seq_length") if length_path else None
    if length is None:
        # Newer releases of sentence-transformers leave it to the tokenizer, where a huge number means no limit.
        tokenizer_path = model_file(name, "tokenizer_config.json", hub)
        length = read_json(tokenizer_path).get("model_max_length") if tokenizer_path else None
    if isinstance(length, int) and length < 1 << 30:
        facts["max_length"] = length
    return facts


def _pooling_of(config: dict[str, Any], name: str) -> str:
    """The pooling that a 1_Pooling/config.json names, in its old form (flags) or its new one (`pooling_mode`)."""
    flags = {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_lasttoken": "last_token",
    }
    chosen = [flag for flag, value in config.items() if flag.startswith("pooling_mode_") and value is True]
    mode = config.get("pooling_mode")
    modes = {"cls": "cls", "mean": "mean", "lasttoken": "last_token"}
    found = modes.get(str(mode)) if mode is not None else (flags.get(chosen[0]) if len(chosen) == 1 else None)
    if found is None:
        raise RunError(
            f"the model pools by {mode or ' and '.join(chosen) or 'nothing'}, which bgectl does not compute",
            where=name,
            hint="cls, mean and last_token are known",
        )
    return found
