"""Options that bear the name of one of transformers' training arguments mean what it means there."""

import dataclasses
import types
from typing import Union, get_args, get_origin, get_type_hints

import pytest
from transformers import TrainingArguments

from bgectl.options.base import shape_of
from bgectl.options.train import OptimOptions, PrecisionOptions, RunOptions

THEIRS = {field.name: field for field in dataclasses.fields(TrainingArguments)}
HINTS = get_type_hints(TrainingArguments)
OURS = {**OptimOptions.model_fields, **RunOptions.model_fields, **PrecisionOptions.model_fields}

OWN = {
    "warmup_ratio",
    "overwrite_output_dir",
    "dry_run",
    "probe",
    "resume",
    "layerwise_lr_decay",
    "trainer",
    "attn_implementation",
    "fsdp",  # theirs takes the words of FSDP 1 too
}
"""Dropped by transformers 5 and kept here, and our own."""

DIFFERENT = {
    "learning_rate": (2e-5, 5e-5),  # what BGE's fine-tuning examples and our own measurements settle on
    "num_train_epochs": (1.0, 3.0),  # hard negatives are learnt by heart after one pass
    "per_device_train_batch_size": (32, 8),  # in-batch negatives want batches
    "warmup_steps": (None, 0),  # a share of the steps instead, 0.1
    "lr_scheduler_type": ("linear", "linear"),
    "optim": ("adamw_torch", "adamw_torch_fused"),  # the same on every device
    "logging_steps": (10, 500),  # fine-tuning runs are short
    "save_total_limit": (2, None),  # disks are not endless
    "report_to": ([], "none"),
    "dataloader_num_workers": (2, 0),  # tokenising need not keep the model waiting
    "gradient_checkpointing": (False, None),  # theirs follows the model's configuration, which none of ours sets
    "output_dir": ("required", None),
}
"""Defaults that differ on purpose, or in form: (ours, theirs)."""


def default(field):
    if field.is_required():
        return "required"
    return field.get_default(call_default_factory=True)


def theirs(name):
    field = THEIRS[name]
    value = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    return getattr(value, "value", value)


def kinds(annotation):
    """The plain types that an annotation allows."""
    if get_origin(annotation) in (Union, types.UnionType):
        return {kind for part in get_args(annotation) for kind in kinds(part)}
    if get_origin(annotation) is list:
        return {str}
    return {annotation if annotation in (bool, int, float, type(None)) else str}


def test_names_are_theirs():
    assert set(OURS) - set(THEIRS) - OWN == set(), "an option of our own stands among theirs"


@pytest.mark.parametrize("name", sorted(set(OURS) & set(THEIRS) - OWN))
def test_type_and_default(name):
    shape = shape_of(OURS[name])
    ours = {bool: bool, int: int, float: float}.get(shape.kind, str)
    allowed = kinds(HINTS[name])
    assert ours in allowed or (ours is int and float in allowed), (ours, allowed)
    expected = DIFFERENT.get(name)
    if expected is None:
        assert default(OURS[name]) == theirs(name)
    else:
        # It was False until transformers 5.4 at least.
        known = [expected, (False, False)] if name == "gradient_checkpointing" else [expected]
        assert (default(OURS[name]), theirs(name)) in known


def test_the_table_holds_nothing_else():
    assert set(DIFFERENT) <= set(OURS) & set(THEIRS)
