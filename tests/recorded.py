"""Steps recorded from the reference, in the collator's form."""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file

from bgectl.losses.embedding import EmbeddingLoss

GOLDEN = Path(os.environ.get("BGECTL_GOLDEN_TRAINING", Path(__file__).parent / "golden" / "data" / "training"))


def step_of(rank, options):
    """A process's step of a case: a piece of queries and one of passages."""
    tensors = load_file(GOLDEN / "inputs.safetensors")
    side = ".left" if options.get("padding") == "left" else ""
    pieces = [
        {key: tensors[f"rank{rank}.{kind}{side}.{key}"] for key in ("input_ids", "attention_mask")} for kind in "qp"
    ]
    queries, passages = (len(piece["input_ids"]) for piece in pieces)
    size, first = passages // queries, rank * passages
    return {
        "pieces": pieces,
        "lengths": [int(length) for piece in pieces for length in piece["attention_mask"].sum(dim=1)],
        "order": torch.arange(queries + passages),
        "group_size": size,
        "passage_ids": torch.arange(first, first + passages),
        "positive_ids": torch.arange(first, first + passages, size).unsqueeze(1),
        "own_only": torch.full((queries,), bool(options.get("no_in_batch_neg"))),
        "teacher": tensors[f"rank{rank}.teacher_scores"] if options.get("kd") else None,
    }


def loss_of_case(options):
    """The loss of a case's vectors."""
    return EmbeddingLoss(
        temperature=options.get("temperature", 0.02),
        normalize=options.get("normalize", True),
        distillation=options["kd_loss_type"] if options.get("kd") else None,
        dims=options.get("mrl_dims", []),
    )
