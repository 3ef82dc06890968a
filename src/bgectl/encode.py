"""Texts to vectors, over the devices given. Mining, scoring by an embedder and evaluation share it.

Texts are tokenised once, sorted by length, and batched by a budget of tokens, so that little of a batch is padding.
Letters: N texts, D dimensions.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from bgectl import console
from bgectl.data.icl import Wording, read_examples
from bgectl.data.prompts import Prompts, shown_prefix
from bgectl.errors import RunError, UsageError
from bgectl.models.decoder import end_of, ended, is_decoder
from bgectl.models.encoder import Encoder, load_backbone, load_config, load_tokenizer, position_limit, quiet_libraries
from bgectl.models.facts import ICL_EXAMPLE, EmbedderFacts, embedder_facts
from bgectl.models.hub import Hub

Vectors = npt.NDArray[np.float32]

SLACK = 8
"""Tokens that a query may take more behind examples than it has alone."""

CHUNK = 65_536
"""Texts tokenised at a time: bounds the memory for token ids, and is far more than sorting needs."""


def choose_devices(names: Sequence[str]) -> list[torch.device]:
    """The devices named, or the best one there is.

    Raises:
        UsageError: A device does not exist on this machine.
    """
    if not names or list(names) == ["auto"]:
        return [torch.device("cuda" if torch.cuda.is_available() else "cpu")]
    devices = []
    for name in names:
        try:
            device = torch.device(name)
        except RuntimeError:
            raise UsageError(
                f"no such kind of device: {name!r}", where="--devices", hint="cpu, cuda or cuda:0"
            ) from None
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise UsageError(f"there is no {name}", where="--devices", hint=f"this machine has {count} CUDA devices")
        devices.append(device)
    return devices


def weakest(devices: Sequence[torch.device]) -> torch.device:
    """The device that decides the precision of all replicas: a CPU where there is one."""
    return next((device for device in devices if device.type == "cpu"), devices[0])


def choose_dtype(
    name: str, device: torch.device, *, use_fp16: bool = False, use_bf16: bool = False, decoder: bool = False,
    quick: bool = False,
) -> torch.dtype:  # fmt: skip
    """The precision of the weights on a device.

    Args:
        name: `auto` is float16 on a GPU, bfloat16 there for a decoder, some of which overflow in float16, and float32
            on a CPU.
        device: The device.
        use_fp16: The same as float16.
        use_bf16: The same as bfloat16.
        decoder: The model is one.
        quick: `auto` is bfloat16 on a CPU that computes in it.

    Raises:
        UsageError: The flags contradict each other, or float16 is asked of a CPU.
    """
    asked = {"float16": use_fp16, "bfloat16": use_bf16}
    names = {name for name, on in asked.items() if on} | ({name} - {"auto"})
    if len(names) > 1:
        raise UsageError(f"{' and '.join(sorted(names))} exclude each other", where="--dtype")
    if names:
        chosen = names.pop()
    elif device.type == "cpu":
        chosen = "bfloat16" if quick and computes_in_bfloat16() else "float32"
    else:
        chosen = "bfloat16" if decoder else "float16"
    if chosen == "float16" and device.type == "cpu":
        raise UsageError("float16 does not run on a CPU", where="--dtype", hint="use float32 or bfloat16 there")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[chosen]


def computes_in_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; without them it is slower than float32."""
    # Older releases of torch do not tell.
    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(told.get("avx512_bf16") or told.get("amx_bf16"))


def token_budget(given: int | None, device: torch.device) -> int:
    """Tokens in a batch: what was given, else what measured fastest: small on a CPU, whose caches are small."""
    return given or (2_048 if device.type == "cpu" else 65_536)


def plan_batches(lengths: Sequence[int], budget: int, most: int) -> list[list[int]]:
    """Cut texts, longest first, into batches that hold at most `budget` tokens once padded.

    Args:
        lengths: Tokens of each text.
        budget: Tokens of a batch with padding; a single longer text is a batch of its own.
        most: Texts in a batch at most.

    Returns:
        Indices into `lengths`; every index stands once.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        if not batches or len(batches[-1]) == most or (len(batches[-1]) + 1) * longest > budget:
            batches.append([])
            longest = max(lengths[index], 1)
        batches[-1].append(index)
    return batches


def over_devices(count: int, devices: int, work: Callable[[int, int], None]) -> None:
    """Call `work(device, item)` for every item, one thread a device, each taking the next item that is left."""
    if devices == 1:
        for item in range(count):
            work(0, item)
        return
    items = iter(range(count))
    lock = threading.Lock()

    stop = threading.Event()

    def loop(device: int) -> None:
        while not stop.is_set():
            with lock:
                item = next(items, None)
            if item is None:
                return
            work(device, item)

    with ThreadPoolExecutor(devices) as pool:
        try:
            for future in [pool.submit(loop, device) for device in range(devices)]:
                future.result()
        finally:
            # Leaving the pool waits for its threads: after an error or Ctrl-C they end with the item in hand.
            stop.set()


@dataclass
class Embedder:
    """An embedder ready for inference: replicas on one or several devices."""

    name: str
    load: Callable[[], list[Encoder]]
    """Loads a replica for each device."""
    devices: list[torch.device]
    tokenizer: PreTrainedTokenizerBase
    facts: EmbedderFacts
    prompts: Prompts
    query_max_length: int
    passage_max_length: int
    batch_tokens: int
    batch_size: int
    end: int | None = None
    """The id that each text is ended with; see `decoder.end_of`."""
    examples: str = ""
    """What stands before each query (icl)."""
    dtype: str = "float32"
    """The precision of the weights."""
    cut: int = 0
    """Texts cut to their length so far."""
    _encoders: list[Encoder] = field(default_factory=list, init=False)

    @property
    def encoders(self) -> list[Encoder]:
        """The replicas; they are loaded when they are first asked for."""
        if not self._encoders:
            self._encoders = self.load()
        return self._encoders

    def space(self, *, queries: bool) -> dict[str, Any]:
        """What the vectors of queries, or of passages, depend on besides their text and the model's files."""
        common = {
            "pooling": self.facts.pooling,
            "normalize": self.facts.normalize,
            "dtype": self.dtype,
            "end": self.end,
        }
        if queries:
            return common | {
                "max_length": self.query_max_length, "instruction": self.prompts.query_instruction,
                "format": self.prompts.query_format, "suffix": self.facts.query_suffix, "examples": self.examples,
            }  # fmt: skip
        return common | {
            "max_length": self.passage_max_length, "instruction": self.prompts.passage_instruction,
            "format": self.prompts.passage_format,
        }  # fmt: skip

    @property
    def description(self) -> str:
        """Pooling, normalisation and prompts, each with where it came from."""
        return self.facts.describe()

    def encode_queries(
        self, texts: Sequence[str], prompts: Sequence[str | None] | None = None, advance: console.Advance | None = None
    ) -> Vectors:
        """(N, D) float32 vectors of queries.

        Args:
            texts: Queries without instruction.
            prompts: For each query the prompt of its row, which replaces the instruction; None where there is none.
            advance: Is told of each batch; None shows a progress bar.
        """
        own = prompts or [None] * len(texts)
        prompted = [self.prompts.query(text, prompt) for text, prompt in zip(texts, own, strict=True)]
        length = self.query_max_length
        if self.examples or self.facts.query_suffix:
            wording = Wording(self.tokenizer, self.facts.query_suffix, self.end)
            ended = [wording.ended(text, length) for text in prompted]
            self.cut += sum(text != whole + wording.suffix for text, whole in zip(ended, prompted, strict=True))
            prompted = [self.examples + text for text in ended]
            length += wording.length(self.examples) + SLACK
        return self._encode(prompted, length, "Encoding queries", advance)

    def encode_passages(self, texts: Sequence[str], advance: console.Advance | None = None) -> Vectors:
        """(N, D) float32 vectors of passages; the instruction is put in front here. See `encode_queries`."""
        prompted = [self.prompts.passage(text) for text in texts]
        return self._encode(prompted, self.passage_max_length, "Encoding passages", advance)

    def _encode(self, texts: Sequence[str], max_length: int, label: str, told: console.Advance | None) -> Vectors:
        vectors = np.empty((len(texts), self.encoders[0].dimension), dtype=np.float32)
        with nullcontext(told) if told else console.progress(label, len(texts), "texts") as advance:
            for start in range(0, len(texts), CHUNK):
                self._encode_chunk(texts[start : start + CHUNK], max_length, vectors[start : start + CHUNK], advance)
        self._refuse_broken(texts, vectors)
        return vectors

    def _refuse_broken(self, texts: Sequence[str], vectors: Vectors) -> None:
        """A vector that is not finite would stand at any rank."""
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(broken):
            raise RunError(
                f"the vector of {texts[int(broken[0])][:60]!r} is not finite ({len(broken):,} of {len(texts):,} texts)",
                where=self.name or None,
                hint="float16 overflows in some models, --dtype float32 or bfloat16 does not; else the weights are "
                "damaged",
            )

    def _encode_chunk(self, texts: Sequence[str], max_length: int, out: Vectors, advance: console.Advance) -> None:
        ids, cut = tokenize(self.tokenizer, texts, max_length, self.end)
        self.cut += cut
        batches = plan_batches([len(text) for text in ids], self.batch_tokens, self.batch_size)

        def work(device: int, item: int) -> None:
            batch = batches[item]
            out[batch] = self._forward([ids[index] for index in batch], device)
            advance(len(batch))

        over_devices(len(batches), len(self.encoders), work)

    def _forward(self, ids: list[list[int]], device: int) -> Vectors:
        inputs = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        with torch.inference_mode():
            vectors = self.encoders[device](
                inputs["input_ids"].to(self.devices[device]), inputs["attention_mask"].to(self.devices[device])
            ).float()
            if self.facts.normalize:
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
        result: Vectors = vectors.cpu().numpy()
        return result

    def close(self) -> None:
        """Give the weights' memory back; they are loaded again where they are asked for again."""
        if not self._encoders:
            return
        self._encoders = []
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, end: int | None = None
) -> tuple[list[list[int]], int]:
    """Token ids of each text, cut to `max_length`, and how many texts were cut.

    Args:
        tokenizer: The model's.
        texts: N texts.
        max_length: Tokens of a text.
        end: The id that each text is ended with; None leaves that to the tokenizer. See `decoder.end_of`.
    """
    if not texts:
        return [], 0
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length, return_overflowing_tokens=False,
                        return_attention_mask=False, return_token_type_ids=False)  # fmt: skip
    ids: list[list[int]] = encoded["input_ids"]
    encodings = encoded.encodings
    cut = sum(1 for encoding in encodings if encoding.overflowing) if encodings else 0
    return [ended(text, end, max_length) for text in ids] if end is not None else ids, cut


def load_embedder(
    name: str,
    *,
    pooling: str | None = None,
    normalize: bool | None = None,
    query_instruction: str | None = None,
    query_format: str | None = None,
    passage_instruction: str | None = None,
    passage_format: str = "{}{}",
    query_max_length: int = 512,
    passage_max_length: int = 512,
    devices: Sequence[str] = (),
    dtype: str = "auto",
    use_fp16: bool = False,
    use_bf16: bool = False,
    batch_tokens: int | None = None,
    batch_size: int = 3000,
    heads: bool = False,
    kind: str | None = None,
    examples: Path | None = None,
    examples_format: str = ICL_EXAMPLE,
    lazy: bool = False,
    quick: bool = False,
    hub: Hub | None = None,
) -> Embedder:
    """Load an embedder for inference.

    Args:
        name: Folder or hub name.
        pooling: `cls`, `mean` or `last_token`; None asks the model's files, then its name.
        normalize: Scale vectors to length 1; None asks the model's files.
        query_instruction: Instruction for queries; None asks the model's files, then its name.
        query_format: How instruction and query are joined; None asks the model's files, then its name.
        passage_instruction: Instruction for passages.
        passage_format: The same for passages.
        query_max_length: Tokens of a query.
        passage_max_length: Tokens of a passage.
        devices: Devices by name; empty for the best one.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        use_fp16: The same as float16.
        use_bf16: The same as bfloat16.
        batch_tokens: Tokens in a batch; None chooses by device.
        batch_size: Texts in a batch at most.
        heads: Load the sparse and the ColBERT head too, for `heads.search`.
        kind: `encoder-only-base`, `encoder-only-m3`, `decoder-only-base` or `decoder-only-icl`; None sees it from the
            model's files.
        examples: File of examples to put before each query of an icl embedder; see `icl.read_examples`.
        examples_format: How instruction, query and response of an example are joined.
        lazy: Load the weights when something is first encoded.
        quick: See `choose_dtype`.
        hub: How to reach the model.

    Raises:
        UsageError: Devices or precision cannot be had, or the model is of another kind.
        RunError: The model cannot be loaded.
    """
    quiet_libraries()
    hub = hub or Hub()
    chosen = choose_devices(devices)
    decoder = is_decoder(name, hub)
    if kind is not None and decoder != kind.startswith("decoder"):
        found = "a decoder" if decoder else "an encoder"
        raise UsageError(f"{name} is {found}", where=f"--embedder-model-class {kind}")
    precision = choose_dtype(dtype, weakest(chosen), use_fp16=use_fp16, use_bf16=use_bf16, decoder=decoder, quick=quick)
    facts = embedder_facts(
        name,
        hub,
        default_pooling="last_token" if decoder else "cls",
        pooling=pooling,
        normalize=normalize,
        query_format=query_format,
        passage_prompt=shown_prefix(passage_format, passage_instruction),
    )
    if kind == "decoder-only-icl":
        facts = facts.as_icl()
    elif kind == "decoder-only-base":
        facts = replace(facts, query_suffix="")
    if query_instruction is not None:
        facts = facts.instructed(query_instruction)
    prompts = Prompts(
        facts.instruction,
        facts.query_format,
        facts.passage_prompt if passage_instruction is None else passage_instruction,
        passage_format,
    )
    if examples is not None and not facts.query_suffix:
        raise UsageError(
            f"{name} is not known to be trained with examples", where="--examples-for-task",
            hint="--embedder-model-class decoder-only-icl says that it was",
        )  # fmt: skip
    tokenizer = load_tokenizer(name, hub, decoder=decoder)
    limit = position_limit(load_config(name, hub))

    def load() -> list[Encoder]:
        backbone = load_backbone(name, hub, dtype=precision)
        if decoder:
            # Else it keeps keys and values for tokens that never come.
            backbone.config.use_cache = False
        encoder = Encoder(backbone, facts.pooling)
        if heads:
            from bgectl.models.m3 import with_heads

            encoder = with_heads(encoder, name, tokenizer, hub, dtype=precision)
        return [_replica(encoder, device, last=number == len(chosen) - 1) for number, device in enumerate(chosen)]

    embedder = Embedder(
        name, load, chosen, tokenizer, facts, prompts,
        min(query_max_length, limit or query_max_length), min(passage_max_length, limit or passage_max_length),
        token_budget(batch_tokens, chosen[0]), batch_size, end_of(tokenizer) if decoder else None,
        "" if examples is None else read_examples(examples, examples_format, prompts.query_instruction),
        str(precision).removeprefix("torch."),
    )  # fmt: skip
    if not lazy:
        _ = embedder.encoders
    return embedder


def embedder_over(
    encoder: Encoder, tokenizer: PreTrainedTokenizerBase, facts: EmbedderFacts, prompts: Prompts,
    query_max_length: int, passage_max_length: int,
) -> Embedder:  # fmt: skip
    """An embedder around an encoder that is already loaded, such as one in training; the weights are shared."""
    device = next(encoder.parameters()).device
    return Embedder(
        "", lambda: [encoder], [device], tokenizer, facts, prompts, query_max_length, passage_max_length,
        token_budget(None, device), 3000, encoder.end,
    )  # fmt: skip


def _replica(encoder: Encoder, device: torch.device, *, last: bool) -> Encoder:
    """The encoder on a device; the last one takes the loaded weights themselves."""
    return (encoder if last else deepcopy(encoder)).to(device).eval()
