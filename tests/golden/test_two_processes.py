"""Losses and gradients of two processes equal those recorded, with the mended gradient across devices."""

import json

import pytest
import torch
from processes import run_distributed
from recorded import GOLDEN, loss_of_case, step_of
from torch.nn.parallel import DistributedDataParallel

from bgectl.gradcache import cached_backward
from bgectl.models.encoder import Encoder, load_backbone
from bgectl.models.hub import Hub
from bgectl.train.objective import DenseObjective
from bgectl.train.trainer import BACKBONE, ENCODER, StepModel

CASES = {
    name: case
    for name, case in json.loads((GOLDEN / "expected_losses.json").read_text())["cases"].items()
    if case["options"]["model"] == "base" and case["options"].get("world_size") == 2 and "rank0" in case
}


def train_a_step(rank, cached):
    results = {}
    for name, case in CASES.items():
        options = case["options"]
        step, loss = step_of(rank, options), loss_of_case(options)
        encoder = Encoder(load_backbone(str(GOLDEN / "models" / "bert"), Hub()), options.get("pooling", "cls")).train()
        model = DistributedDataParallel(StepModel(encoder), broadcast_buffers=False)

        objective = DenseObjective(loss, bool(options.get("negatives_cross_device")))

        def loss_of(outputs, objective=objective, step=step):
            return objective(outputs, step, 0)[0]

        if cached:
            value = cached_backward(
                model, [[piece] for piece in step["pieces"]], loss_of,
                around_piece=lambda last, model=model: torch.enable_grad() if last else model.no_sync(),
            )  # fmt: skip
        else:
            value = loss_of(model(step["pieces"]))
            value.backward()
        gradients = {
            "model." + name.removeprefix("module." + ENCODER + BACKBONE): parameter.grad.norm().item()
            for name, parameter in model.named_parameters()
        }
        results[name] = (value.item(), gradients)
    return results


@pytest.mark.parametrize("cached", [False, True], ids=["whole", "cached"])
def test_two_processes(cached, tmp_path):
    ranks = run_distributed(train_a_step, 2, tmp_path, cached)
    for name, case in CASES.items():
        recorded = [case[f"rank{rank}"]["steps"][0] for rank in range(2)]
        ours = [ranks[rank][name] for rank in range(2)]
        assert ours[0][1] == pytest.approx(ours[1][1], rel=1e-5), "the processes have different gradients"
        # Each takes the loss of its own queries; the reference's is the mean of all where passages are exchanged.
        assert sum(value for value, _ in ours) / 2 == pytest.approx(
            sum(step["loss"] for step in recorded) / 2, rel=1e-4
        )
        total = sum(norm**2 for norm in ours[0][1].values()) ** 0.5
        across = case["options"].get("negatives_cross_device") and not case["options"].get("no_in_batch_neg")
        whole = case.get("single_process_both_ranks")
        if whole is not None:
            assert total == pytest.approx(whole["grad_norm"], rel=1e-4), name
        if case["options"].get("kd_loss_type") == "kl_div":
            continue  # one of its two terms is exact in the reference, and the other half as large as it should be
        factor = 2 if across else 1
        assert total == pytest.approx(factor * recorded[0]["grad_norm"], rel=1e-4), name
        for parameter, norm in recorded[0]["param_grad_norms"].items():
            assert ours[0][1][parameter] == pytest.approx(factor * norm, rel=1e-4), (name, parameter)
