"""Decoders as embedders: which models are decoders, and how their texts end (SPEC §6).

The vector of a text is that of its last token, so each text ends in the same one, cut or not.
"""

from __future__ import annotations

from tokenizers import processors
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from bgectl.errors import RunError
from bgectl.models.encoder import load_config
from bgectl.models.hub import Hub


def is_decoder(name: str, hub: Hub) -> bool:
    """Whether a model is a decoder, as its configuration says.

    Raises:
        RunError: It cannot be read, or is an encoder-decoder.
    """
    config = load_config(name, hub)
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise RunError(f"is an encoder-decoder ({kind}); encoders and decoders are taken", where=name)
    architectures = " ".join(getattr(config, "architectures", None) or [])
    # Encoders such as BERT stand in both tables: each can be told to be a decoder.
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return bool(causal or getattr(config, "is_decoder", False) or "CausalLM" in architectures)


def end_of(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that texts have to be ended with; None where the tokenizer ends each text in a special token itself.

    Raises:
        RunError: It does not, and has no EOS token.
    """
    ids = tokenizer("a")["input_ids"]
    if ids and ids[-1] in tokenizer.all_special_ids and ids[-1] != tokenizer.bos_token_id:
        return None
    if not isinstance(tokenizer.eos_token_id, int):
        raise RunError("the tokenizer has no EOS token to end texts with", where=tokenizer.name_or_path or None)
    return tokenizer.eos_token_id


def end_texts(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Let a tokenizer end each text in EOS itself, so that whoever opens the trained folder does so too.

    Returns:
        The id that texts have still to be ended with: EOS where the tokenizer has no fast form, else None.

    Raises:
        RunError: It has no EOS token.
    """
    end = end_of(tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if end is None or backend is None:
        return end
    token = tokenizer.eos_token
    last = processors.TemplateProcessing(single=f"$A {token}", pair=f"$A $B:1 {token}:1", special_tokens=[(token, end)])
    former = backend.post_processor
    backend.post_processor = last if former is None else processors.Sequence([former, last])
    # A class that builds the template anew when it is loaded goes by this.
    tokenizer.init_kwargs["add_eos_token"] = True
    return end_of(tokenizer)


def ended(ids: list[int], end: int, max_length: int) -> list[int]:
    """Token ids with `end` at their end, within `max_length`.

    Args:
        ids: Of one text, at most `max_length`.
        end: See `end_of`.
        max_length: Tokens of a text, its end included.
    """
    return ids if ids and ids[-1] == end else [*ids[: max_length - 1], end]
