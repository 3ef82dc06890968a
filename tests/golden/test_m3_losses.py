"""Scores, losses and gradients of the M3 heads equal those recorded from the reference, in one process and in two."""

import json
from types import SimpleNamespace

import pytest
import torch
from processes import run_distributed
from recorded import GOLDEN, step_of
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from bgectl.gradcache import cached_backward
from bgectl.losses.embedding import EmbeddingLoss
from bgectl.losses.unified import UnifiedLoss, ensemble
from bgectl.models.encoder import Encoder, load_backbone
from bgectl.models.hub import Hub
from bgectl.models.m3 import with_heads
from bgectl.train.objective import DenseObjective, M3Objective
from bgectl.train.trainer import StepModel

CASES = {
    name: case
    for name, case in json.loads((GOLDEN / "expected_losses.json").read_text())["cases"].items()
    if case["options"]["model"] == "m3"
}
SINGLE = sorted(name for name, case in CASES.items() if "rank0" in case and "world_size" not in case["options"])
PAIRS = sorted(name for name, case in CASES.items() if "rank0" in case and case["options"].get("world_size") == 2)
TOKENIZER = SimpleNamespace(cls_token_id=0, pad_token_id=1, eos_token_id=2, unk_token_id=3)


def model_of(options):
    folder = str(GOLDEN / "models" / "xlmr")
    encoder = Encoder(load_backbone(folder, Hub()), options.get("pooling", "cls"))
    if options.get("unified", True):
        encoder = with_heads(encoder, folder, TOKENIZER, Hub())
    return StepModel(encoder).train()


def objective_of(options):
    distillation = options["kd_loss_type"] if options.get("kd") else None
    dense = EmbeddingLoss(options.get("temperature", 0.02), options.get("normalize", True), distillation)
    if not options.get("unified", True):
        return DenseObjective(dense)
    cross = "dense" if options.get("negatives_cross_device") else None
    start = options.get("self_distill_start_step", -1) if options.get("self_distill") else None
    return M3Objective(dense, UnifiedLoss(distillation), cross, distill_from=start)


def train_a_step(rank, options, cached, number=0, wrap=lambda model: model):
    """The loss, what the log shows, and the norm of each parameter's gradient by the reference's names."""
    model, step, objective = wrap(model_of(options)), step_of(rank, options), objective_of(options)
    shown = {}

    def loss_of(outputs):
        loss, parts = objective(outputs, step, number)
        shown.update({name: part.item() for name, part in parts.items()})
        return loss

    if cached:
        pause = getattr(model, "no_sync", None)
        loss = cached_backward(
            model, [[piece] for piece in step["pieces"]], loss_of,
            around_piece=lambda last: torch.enable_grad() if last or pause is None else pause(),
        )  # fmt: skip
    else:
        loss = loss_of(model(step["pieces"]))
        loss.backward()
    norms = {
        name.removeprefix("module.").replace("encoder.backbone.", "model.", 1).removeprefix("encoder."): (
            parameter.grad.norm().item()
        )
        for name, parameter in model.named_parameters()
    }
    return loss.item(), shown, norms


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("cached", [False, True], ids=["whole", "cached"])
def test_loss_and_gradient(name, cached):
    case = CASES[name]
    steps = case["rank0"]["steps"]
    for number, expected in enumerate(steps):
        loss, shown, norms = train_a_step(0, case["options"], cached, number)
        assert loss == pytest.approx(case.get("intended_loss", expected["loss"]), rel=1e-4)
        parts = [head for head in ("dense", "sparse", "colbert", "ensemble") if f"loss_{head}" in shown]
        assert len(parts) == (4 if case["options"].get("unified", True) else 0)
        for head in parts:
            if head != "ensemble" or "intended_loss" not in case:
                assert shown[f"loss_{head}"] == pytest.approx(expected["components"][head]["loss"], rel=1e-4), head
        if "intended_loss" in case:
            continue  # the reference's gradient is that of its own loss
        assert sum(norm**2 for norm in norms.values()) ** 0.5 == pytest.approx(expected["grad_norm"], rel=1e-4)
        for parameter, norm in expected["param_grad_norms"].items():
            assert norms[parameter] == pytest.approx(norm, rel=1e-4), parameter


@pytest.mark.parametrize("name", [name for name in SINGLE if CASES[name]["options"].get("unified", True)])
def test_scores(name):
    options = CASES[name]["options"]
    step, objective, model = step_of(0, options), objective_of(options), model_of(options)
    outputs = model(step["pieces"])
    vectors = outputs["dense"][step["order"]]
    scores = objective._scores(outputs, step, vectors[:3], vectors[3:], False)
    scores["ensemble"] = ensemble(scores)
    tolerance = 1e-4 if options.get("temperature", 0.02) == 1 else 5e-3
    components = CASES[name]["rank0"]["steps"][0]["components"]
    for head in ("dense", "sparse", "colbert", "ensemble"):
        expected, ours = torch.tensor(components[head]["scores"]), scores[head]
        if options.get("no_in_batch_neg"):
            if head == "ensemble":
                continue  # one column in the reference
            rows = torch.arange(3).unsqueeze(1)
            ours = ours[rows, rows * 4 + torch.arange(4)]
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=tolerance, msg=head)


@pytest.mark.skipif("m3.no_in_batch_neg.kd_m3" not in CASES, reason="the set has no such case")
def test_m3_distillation_without_in_batch_negatives():
    """The reference raises an IndexError here; the value is the formula over the group's own scores of each head."""
    options = CASES["m3.no_in_batch_neg.kd_m3"]["options"]
    components = CASES["m3.no_in_batch_neg"]["rank0"]["steps"][0]["components"]
    teacher = load_file(GOLDEN / "inputs.safetensors")["rank0.teacher_scores"].softmax(dim=1)

    def formula(scores):
        targets = torch.zeros(len(scores), dtype=torch.long)
        losses = [
            teacher[:, j] * torch.nn.functional.cross_entropy(scores[:, j:], targets, reduction="none")
            for j in range(scores.shape[1])
        ]
        return sum(losses).mean().item()

    scores = {head: torch.tensor(components[head]["scores"]) for head in ("dense", "sparse", "colbert")}
    losses = {head: formula(part) for head, part in {**scores, "ensemble": ensemble(scores)}.items()}
    loss, shown, _ = train_a_step(0, options, False)
    assert {head: shown[f"loss_{head}"] for head in losses} == pytest.approx(losses, rel=1e-4)
    expected = (losses["dense"] + losses["ensemble"] + 0.1 * losses["sparse"] + losses["colbert"]) / 4
    assert loss == pytest.approx(expected, rel=1e-4)


def two_processes(rank, cached):
    return {
        name: train_a_step(
            rank, CASES[name]["options"], cached, wrap=lambda model: DistributedDataParallel(model)
        )
        for name in PAIRS
    }  # fmt: skip


@pytest.mark.parametrize("cached", [False, True], ids=["whole", "cached"])
def test_two_processes(cached, tmp_path):
    ranks = run_distributed(two_processes, 2, tmp_path, cached)
    assert PAIRS
    for name in PAIRS:
        recorded = [CASES[name][f"rank{rank}"]["steps"][0] for rank in range(2)]
        ours = [ranks[rank][name] for rank in range(2)]
        assert ours[0][2] == pytest.approx(ours[1][2], rel=1e-5), "the processes have different gradients"
        # Each takes the loss of its own queries; the reference's dense part is the mean of all.
        assert sum(loss for loss, _, _ in ours) == pytest.approx(sum(step["loss"] for step in recorded), rel=1e-4)
        for head in ("sparse", "colbert", "ensemble"):
            for (_, shown, _), step in zip(ours, recorded, strict=True):
                assert shown[f"loss_{head}"] == pytest.approx(step["components"][head]["loss"], rel=1e-4)
