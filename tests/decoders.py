"""Tiny random decoders of the kinds that people use, and their tokenizers."""

import torch

KINDS = {
    "mistral": ("<s>", "</s>", "<unk>", None), "gemma2": ("<bos>", "<eos>", "<unk>", "<pad>"),
    "qwen2": (None, "<|end|>", None, "<|end|>"), "llama": ("<s>", "</s>", None, None),
    "qwen3": (None, "<|end|>", None, "<|end|>"),
}  # fmt: skip
"""bos, eos, unk and pad as the tokenizers of the published models have them; none of them adds EOS."""


def tokenizer_of(kind, words):
    """A byte-level tokenizer with the special tokens of a kind."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bos, eos, unk, pad = KINDS[kind]
    special = list(dict.fromkeys(filter(None, (bos, eos, unk, pad))))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(words, trainer)
    if bos:
        number = tokenizer.token_to_id(bos)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, number)]
        )
    names = {"bos_token": bos, "eos_token": eos, "unk_token": unk, "pad_token": pad}
    names = {name: token for name, token in names.items() if token}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def make_decoder(kind, words, folder, seed=0, **changes):
    """Write a random decoder (2 layers, hidden size 32) into a folder; returns its path as text."""
    from transformers import AutoConfig, AutoModel

    tokenizer = tokenizer_of(kind, words)
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "max_position_embeddings": 1024,
        "initializer_range": 0.1, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id, **changes,
    }  # fmt: skip
    AutoModel.from_config(AutoConfig.for_model(kind, **settings)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
