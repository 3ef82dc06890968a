"""Losses and gradients of a decoder with LoRA equal those recorded from the reference, in one process and in two."""

import json

import pytest
import torch
from processes import run_distributed
from recorded import GOLDEN, loss_of_case, step_of
from torch.nn.parallel import DistributedDataParallel

from bgectl.gradcache import cached_backward
from bgectl.losses.contrastive import similarity
from bgectl.models.adapter import put_layers, read_adapter
from bgectl.models.encoder import Encoder, load_backbone
from bgectl.models.hub import Hub
from bgectl.train.objective import DenseObjective
from bgectl.train.trainer import BACKBONE, ENCODER, StepModel

CASES = {
    name: case
    for name, case in json.loads((GOLDEN / "expected_losses.json").read_text())["cases"].items()
    if case["options"]["model"] in ("llm", "icl")
}
SINGLE = sorted(name for name, case in CASES.items() if "world_size" not in case["options"])
PAIRS = sorted(set(CASES) - set(SINGLE))


def model_of(options):
    backbone = load_backbone(str(GOLDEN / "models" / "mistral"), Hub())
    put_layers(backbone, read_adapter(str(GOLDEN / "models" / "mistral_lora"), Hub()), None)
    return StepModel(Encoder(backbone, options["pooling"])).train()


def train_a_step(rank, options, cached, wrap=lambda model: model):
    """The loss, and the norm of each parameter's gradient by the reference's names."""
    model, step = wrap(model_of(options)), step_of(rank, options)
    objective = DenseObjective(loss_of_case(options), bool(options.get("negatives_cross_device")))

    def loss_of(outputs):
        return objective(outputs, step, 0)[0]

    if cached:
        quiet = getattr(model, "no_sync", torch.enable_grad)
        loss = cached_backward(
            model, [[piece] for piece in step["pieces"]], loss_of,
            around_piece=lambda last: torch.enable_grad() if last else quiet(),
        )  # fmt: skip
    else:
        loss = loss_of(model(step["pieces"]))
        loss.backward()
    norms = {
        "model.base_model.model." + name.removeprefix("module.").removeprefix(ENCODER + BACKBONE): p.grad.norm().item()
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    return loss.item(), norms


def total(norms):
    return sum(norm**2 for norm in norms.values()) ** 0.5


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("cached", [False, True], ids=["whole", "cached"])
def test_one_process(name, cached):
    expected = CASES[name]["rank0"]["steps"][0]
    loss, norms = train_a_step(0, CASES[name]["options"], cached)
    assert loss == pytest.approx(expected["loss"], rel=1e-4)
    assert len(norms) == expected["n_params_with_grad"]
    assert total(norms) == pytest.approx(expected["grad_norm"], rel=1e-4)
    for parameter, norm in expected["param_grad_norms"].items():
        assert norms[parameter] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("name", ["llm.plain", "llm.temp1", "llm.rightpad", "icl.plain"])
def test_scores(name):
    options = CASES[name]["options"]
    temperature = options.get("temperature", 0.02)
    model, step = model_of(options), step_of(0, options)
    queries, passages = (
        torch.nn.functional.normalize(model.encoder(**piece), dim=-1) for piece in step["pieces"]
    )  # fmt: skip
    expected = torch.tensor(CASES[name]["rank0"]["steps"][0]["components"]["dense"]["scores"])
    scores = similarity(queries, passages, temperature)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4 if temperature == 1 else 5e-3)


def each_case(rank, cached):
    def wrap(model):
        return DistributedDataParallel(model, broadcast_buffers=False)

    return {name: train_a_step(rank, CASES[name]["options"], cached, wrap) for name in PAIRS}


@pytest.mark.parametrize("cached", [False, True], ids=["whole", "cached"])
def test_two_processes(cached, tmp_path):
    ranks = run_distributed(each_case, 2, tmp_path, cached)
    for name in PAIRS:
        case, ours = CASES[name], [result[name] for result in ranks]
        recorded = [case[f"rank{rank}"]["steps"][0]["loss"] for rank in range(2)]
        assert sum(loss for loss, _ in ours) == pytest.approx(sum(recorded), rel=1e-4)
        assert ours[0][1] == pytest.approx(ours[1][1], rel=1e-5), "the processes have different gradients"
        # The reference's own gradient on two processes is half of this one.
        assert total(ours[0][1]) == pytest.approx(case["single_process_both_ranks"]["grad_norm"], rel=1e-4), name
