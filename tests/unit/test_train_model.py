"""Learning rates by layer, the estimate of memory, and what is set under `trainer`."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel, TrainingArguments

from bgectl.errors import UsageError
from bgectl.models.encoder import Encoder, load_backbone
from bgectl.models.hub import Hub
from bgectl.options.train import TrainBaseOptions
from bgectl.train.arguments import OWN_WORK, check_trainer_names, training_arguments, translate
from bgectl.train.model import learning_rates
from bgectl.train.report import held_per_text, saved_bytes
from bgectl.train.trainer import StepModel


def options(**given):
    return TrainBaseOptions.model_validate(
        {"model_name_or_path": "m", "train_data": ["t"], "output_dir": "o", "device": "cpu", **given}
    )


@pytest.mark.parametrize("architecture", ["tiny_bert", "tiny_xlmr"])
def test_learning_rate_falls_by_layer(architecture, request):
    model = StepModel(Encoder(AutoModel.from_pretrained(request.getfixturevalue(architecture)), "cls"))
    rates = learning_rates(model, 1.0, 0.5)
    assert set(rates) == {name for name, _ in model.named_parameters()}
    for name, rate in rates.items():
        depth = -1 if "embeddings" in name else int(name.split(".layer.")[1].split(".")[0]) if "layer." in name else 1
        assert rate == 0.5 ** (1 - depth), name
    assert sorted(set(rates.values())) == [0.25, 0.5, 1.0]


def test_model_without_layers():
    with pytest.raises(UsageError, match="not numbered"):
        learning_rates(torch.nn.Linear(2, 2), 1.0, 0.5)


@pytest.mark.parametrize("bf16", [False, True])
def test_memory_of_a_text_is_foreseen(bf16, minilm):
    """What autograd holds for texts of other lengths than those that were tried."""
    encoder = Encoder(load_backbone(minilm, Hub()), "mean")
    given = SimpleNamespace(bf16=bf16, fp16=False)
    per_text = held_per_text(encoder, given)
    grown = [saved_bytes(encoder, length, given) / 2 for length in (48, 200)]
    foreseen = [per_text(length) for length in (48, 200)]
    assert foreseen[1] - foreseen[0] == pytest.approx(grown[1] - grown[0], rel=0.05)
    assert encoder.training


def test_any_training_argument_goes_through():
    arguments = training_arguments(options(trainer={"adam_beta2": 0.95, "label_smoothing_factor": 0.1}))
    assert (arguments.adam_beta2, arguments.label_smoothing_factor) == (0.95, 0.1)
    pairs = options(trainer=["adam_beta2=0.95", "lr-scheduler-kwargs={num_cycles: 2}"]).trainer
    assert pairs == {"adam_beta2": 0.95, "lr_scheduler_kwargs": {"num_cycles": 2}}


@pytest.mark.parametrize(("name", "said"), [
    ("adam_beta_2", "did you mean `adam_beta2`"),
    ("learning_rate", "an option of its own: --learning-rate"),
    ("load_best_model_at_end", "--eval-data keeps the best weights"),
])  # fmt: skip
def test_names_under_trainer_are_checked(name, said):
    with pytest.raises(UsageError, match=said):
        check_trainer_names(options(trainer={name: 1}))


def test_refused_arguments_exist():
    assert set(OWN_WORK) <= set(TrainingArguments.__dataclass_fields__)


def test_old_deepspeed_files_are_translated(capsys):
    config = {
        "bf16": {"enabled": True, "loss_scale": 0, "hysteresis": 2}, "train_batch_size": "auto",
        "zero_optimization": {"stage": 3},
    }  # fmt: skip
    translate(config)
    assert config == {"bf16": {"enabled": True}, "zero_optimization": {"stage": 3}}
    assert "bf16.loss_scale left out" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "said"), [
    ({"gpus": 2, "device": "cpu"}, "--nproc counts processes on a CPU"),
    ({"nnodes": 2}, "needs --rdzv-endpoint"),
    ({"nnodes": 2, "rdzv_endpoint": "h:1", "node_rank": 2}, "counts from 0"),
    ({"fsdp": True, "deepspeed": "2"}, "exclude each other"),
    ({"fsdp": True, "fp16": True, "device": "auto"}, "--bf16"),
    ({"resume": "auto", "overwrite_output_dir": True}, "exclude each other"),
    ({"deepspeed": "7"}, "0 to 3"),
    ({"fp16": True}, "does not train on a CPU"),
])  # fmt: skip
def test_options_that_contradict(given, said):
    with pytest.raises(ValueError, match=said):
        options(**given)


def test_attention_is_chosen_by_name(tiny_bert):
    assert load_backbone(tiny_bert, Hub(), attention="eager").config._attn_implementation == "eager"
    assert load_backbone(tiny_bert, Hub()).config._attn_implementation == "sdpa"
