"""Two and three processes take the step of one process that holds the joined batch."""

import json
import random

import pytest
import torch
from processes import run_distributed

from bgectl.errors import DataError
from bgectl.launch import place
from bgectl.models.encoder import quiet_libraries
from bgectl.options.train import TrainBaseOptions, TrainM3Options
from bgectl.train import run
from bgectl.train.collate import Groups
from bgectl.train.model import fit_lengths, load_model, prompts_of

CASES = {
    "in-batch": {},
    "pieces": {"sub_batch_tokens": 48},
    "cached": {"sub_batch_tokens": 48, "gradient_cache": True},
    "distilled": {"knowledge_distillation": True},
    "distilled by m3_kd_loss, cached": {
        "knowledge_distillation": True, "kd_loss_type": "m3_kd_loss", "sub_batch_tokens": 48, "gradient_cache": True,
    },
    "prefixes": {"use_mrl": True, "mrl_dims": [8, 32]},
    "prefixes, distilled, cached": {
        "use_mrl": True, "mrl_dims": [8, 32], "knowledge_distillation": True, "sub_batch_size": 3,
    },
    "margin": {"false_negative_margin": 0.0, "sub_batch_tokens": 48, "gradient_cache": True},
    "accumulated": {"gradient_accumulation_steps": 2, "sub_batch_tokens": 48, "gradient_cache": True},
}  # fmt: skip


HEADS = {
    "all heads": {},
    "pieces": {"sub_batch_tokens": 48},
    "cached": {"sub_batch_tokens": 48, "gradient_cache": True},
    "self-distilled, cached": {"use_self_distill": True, "sub_batch_size": 3},
    "distilled twice, prefixes": {
        "use_self_distill": True, "knowledge_distillation": True, "kd_loss_type": "m3_kd_loss", "use_mrl": True,
        "mrl_dims": [8, 32],
    },
    "margin, small vectors": {"false_negative_margin": 0.0, "colbert_dim": 8},
    "accumulated, cached": {"gradient_accumulation_steps": 2, "sub_batch_tokens": 48, "gradient_cache": True},
}  # fmt: skip


def step_of(rank, folder, model, world, dropout, case):
    """The change of the weights by one step of SGD with a learning rate of 1, which is the gradient."""
    kind = TrainM3Options if "negatives_cross_device" in case else TrainBaseOptions
    options = kind.model_validate({
        "model_name_or_path": model, "train_data": [folder / "rows.jsonl"], "output_dir": folder / "out",
        "train_group_size": 3, "per_device_train_batch_size": 12 // world, "query_max_len": 40, "passage_max_len": 60,
        "learning_rate": 1.0, "optim": "sgd", "max_grad_norm": 0.0, "warmup_steps": 0, "max_steps": 1, "save_steps": 0,
        "temperature": 0.1, "dataloader_num_workers": 0, "negatives_cross_device": True, "device": "cpu", **case,
    })  # fmt: skip
    quiet_libraries()
    collection, plan = run.plan_batches(options, place(), folder / "unpacked")
    torch.manual_seed(options.seed)
    encoder, tokenizer, facts = load_model(options, collection)
    encoder.double()
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    before = {name: weight.clone() for name, weight in encoder.named_parameters()}
    groups = Groups(collection, prompts_of(options), seed=options.seed)
    whole = run.Model(encoder, tokenizer, facts, fit_lengths(options, encoder))
    (folder / "out").mkdir(exist_ok=True)
    trainer, _ = run.build_trainer(options, whole, groups, plan, None, None)
    torch.manual_seed(rank)
    trainer.train()
    return {name: before[name] - weight.detach() for name, weight in encoder.named_parameters()}


def steps_of(rank, folder, model, world, dropout, cases):
    folder = folder / str(rank)
    return {name: step_of(rank, folder, model, world, dropout, case) for name, case in cases.items()}


@pytest.fixture
def rows(tmp_path, tiny_words):
    """48 rows of mixed lengths with scores; some share their positive. A copy for each process."""
    draw = random.Random(0)

    def text(most):
        return " ".join(draw.choices(tiny_words, k=draw.randint(1, most)))

    lines = []
    for number in range(48):
        negatives = [text(20) for _ in range(4)]
        row = {
            "query": f"{text(6)} {number}", "pos": [f"the {number % 40} {text(3)}", "shared"], "neg": negatives,
            "pos_scores": [draw.random(), 1.0], "neg_scores": [draw.random() for _ in negatives],
        }  # fmt: skip
        lines.append(json.dumps(row) + "\n")
    for name in ("0", "1", "2", "one"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text("".join(lines))
    return tmp_path


def difference(one, other):
    """The largest difference of two gradients over the largest value."""
    high = max(gradient.abs().max().item() for gradient in one.values())
    return max((one[name] - other[name]).abs().max().item() for name in one) / high


@pytest.mark.parametrize("world", [2, 3])
def test_as_one_process_with_the_joined_batch(world, rows, tmp_path, tiny_bert):
    expected = {name: step_of(0, rows / "one", tiny_bert, 1, 0.0, case) for name, case in CASES.items()}
    ranks = run_distributed(steps_of, world, tmp_path, rows, tiny_bert, world, 0.0, CASES)
    for name in CASES:
        assert max(gradient.abs().max() for gradient in expected[name].values()) > 1e-3
        for rank in range(world):
            assert difference(expected[name], ranks[rank][name]) < 1e-6, (name, rank)
    assert difference(expected["in-batch"], expected["distilled"]) > 1e-3, "the cases are all the same"
    assert difference(expected["in-batch"], expected["prefixes"]) > 1e-3
    assert difference(expected["in-batch"], expected["margin"]) > 1e-3


def test_all_heads_as_one_process_with_the_joined_batch(rows, tmp_path, tiny_xlmr):
    cases = {name: {"negatives_cross_device": "all", **case} for name, case in HEADS.items()}
    expected = {name: step_of(0, rows / "one", tiny_xlmr, 1, 0.0, case) for name, case in cases.items()}
    ranks = run_distributed(steps_of, 2, tmp_path, rows, tiny_xlmr, 2, 0.0, cases)
    for name, gradients in expected.items():
        for head in ("sparse_linear.weight", "colbert_linear.weight", "backbone.embeddings.word_embeddings.weight"):
            assert gradients[head].abs().max() > 1e-4, (name, head)
        for rank in range(2):
            assert difference(gradients, ranks[rank][name]) < 1e-6, (name, rank)
    assert difference(expected["all heads"], expected["cached"]) < 1e-6
    assert difference(expected["all heads"], expected["self-distilled, cached"]) > 1e-3


def test_only_the_dense_scores_see_other_processes(rows, tmp_path, tiny_xlmr):
    cases = {name: {"negatives_cross_device": name or None} for name in ("dense", "all", "")}
    ranks = run_distributed(steps_of, 2, tmp_path, rows, tiny_xlmr, 2, 0.0, cases)
    # The dense scores look at no head: what these learn from is their own process's passages either way.
    sparse = {name: step["sparse_linear.weight"] for name, step in ranks[0].items()}
    low = {name: step["backbone.embeddings.word_embeddings.weight"] for name, step in ranks[0].items()}
    torch.testing.assert_close(sparse["dense"], sparse[""])
    assert (sparse["all"] - sparse[""]).abs().max() > 1e-4
    assert (low["dense"] - low[""]).abs().max() > 1e-4


def test_caching_draws_the_same_dropout(rows, tmp_path, tiny_bert):
    cases = {name: CASES[name] for name in ("pieces", "cached")}
    ranks = run_distributed(steps_of, 2, tmp_path, rows, tiny_bert, 2, 0.3, cases)
    for rank in range(2):
        assert difference(ranks[rank]["pieces"], ranks[rank]["cached"]) < 1e-6
    without = step_of(0, rows / "one", tiny_bert, 1, 0.0, CASES["pieces"])
    assert difference(without, ranks[0]["pieces"]) > 1e-2, "there is no dropout"


def plan_of(rank, folder, model):
    path = folder / str(rank) / "rows.jsonl"
    if rank == 1:
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    try:
        step_of(rank, folder / str(rank), model, 2, 0.0, {})
    except DataError as problem:
        return problem.message
    return "trained"


def test_processes_that_see_other_data(rows, tmp_path, tiny_bert):
    assert (
        run_distributed(plan_of, 2, tmp_path, rows, tiny_bert)
        == ["process 1 sees other training data than process 0"] * 2
    )
