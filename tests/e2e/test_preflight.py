"""Before training, and where the memory is full: what is tried, what is told, and what a step is taken once more in."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch
from forked import in_processes
from safetensors.torch import load_file

from bgectl.train import trainer as trainer_module
from bgectl.train.checkpoints import WHOLE
from bgectl.train.memory import Meter
from bgectl.train.trainer import EmbedderTrainer, Packing, StepModel

DIGITS = r"[\d,]+"


class Device:
    """A device whose memory holds the activations of so many tokens, and more beside.

    Attributes:
        tokens: How many; by the number of the process where they differ.
        fails: (step, part) at which it is full once; the part is `encode`, `loss` or `backward`.
    """

    def __init__(self):
        self.tokens = 1 << 40
        self.fails = None
        self.peak = 0

    def meter(self):
        return Meter(
            "a device of the tests", reset=self.reset, peak=lambda: (self.peak, self.peak),
            room=lambda: (1 << 40, 1 << 40), held=lambda: 0, wait=lambda: None, forget=lambda: None,
        )  # fmt: skip

    def reset(self):
        self.peak = 0

    def hold(self, tokens):
        room = self.tokens[int(os.environ.get("RANK", "0"))] if isinstance(self.tokens, list) else self.tokens
        if tokens > room:
            raise torch.OutOfMemoryError("the tests' memory is full")
        self.peak = max(self.peak, tokens)

    def fail(self, step, part):
        rank = int(os.environ.get("RANK", "0"))
        if self.fails in ((step, part), (step, part, rank)):
            self.fails = None
            raise torch.OutOfMemoryError("the tests' memory is full once")


@pytest.fixture
def device(monkeypatch):
    made = Device()
    forward, gradients, loss_of = StepModel.forward, EmbedderTrainer._gradients, EmbedderTrainer._loss_of
    now = {"step": 0, "training": False}

    def held_forward(self, pieces):
        sizes = [piece["input_ids"].numel() for piece in pieces]
        made.hold(sum(sizes) if torch.is_grad_enabled() else max(sizes))
        if now["training"]:
            made.fail(now["step"], "encode")
        given = forward(self, pieces)
        if torch.is_grad_enabled() and now["training"] and given["dense"].requires_grad:
            given["dense"].register_hook(lambda _: made.fail(now["step"], "backward"))
        return given

    def noted_gradients(self, model, inputs):
        # A rehearsal takes no step that counts.
        now.update(step=self.state.global_step + 1, training=self.examples_seen > 0)
        return gradients(self, model, inputs)

    def noted_loss(self, outputs, inputs):
        if now["training"]:
            made.fail(now["step"], "loss")
        return loss_of(self, outputs, inputs)

    monkeypatch.setattr(StepModel, "forward", held_forward)
    monkeypatch.setattr(EmbedderTrainer, "_gradients", noted_gradients)
    monkeypatch.setattr(EmbedderTrainer, "_loss_of", noted_loss)
    monkeypatch.setattr(trainer_module, "meter_of", lambda device: made.meter())
    return made


@pytest.fixture
def rows(random_rows):
    return random_rows(40, 3)


def words_of(rows, out, model, *more):
    """Ten steps of 16 texts of up to 30 tokens; dropout is on."""
    return [
        "train", "base", "-m", model, "-t", rows, "-o", out, "--train-group-size", 3, "-b", 4, "--device", "cpu",
        "--query-max-len", 24, "--passage-max-len", 24, "--learning-rate", 1e-2, "--dataloader-num-workers", 0,
        "--save-steps", 0, "--logging-steps", 2, *more,
    ]  # fmt: skip


def flat(text):
    """Without the line breaks of a narrow terminal."""
    return " ".join(text.split())


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same(one, other, tolerance=0.0):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for name in one:
        # The gradient of these is 0 but for rounding, which Adam makes whole steps of.
        if tolerance and name.endswith("key.bias"):
            continue
        torch.testing.assert_close(
            one[name], other[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def differ(one, other):
    one, other = weights(one), weights(other)
    return any(not torch.allclose(one[name], other[name], rtol=0, atol=1e-5) for name in one)


def test_dry_run_takes_steps_and_leaves_nothing(inside, rows, tmp_path, tiny_bert):
    out = tmp_path / "out"
    before = sorted(tmp_path.iterdir())
    done = inside(*words_of(rows, out, tiny_bert, "--dry-run", "--probe", "--epochs", 3, "--save-steps", 10))
    assert done.returncode == 0, done.stderr
    assert sorted(tmp_path.iterdir()) == before
    said = flat(done.stdout)
    total, free = (int(number.replace(",", "")) for number in re.search(
        r"Measured on this CPU: ([\d,]+) MiB, of which ([\d,]+) MiB were free", said).groups())  # fmt: skip
    assert 0 < free <= total
    peak = int(re.search(r"longest step +1,024 tokens +no +([\d,]+)", said)[1]
               .replace(",", ""))  # fmt: skip
    assert 100 < peak < total, "not the resident set of a process that has loaded torch"
    assert re.search(r"that fits without gradient caching: [\d,]+ \(the whole step in one piece\)", said)
    assert re.search(r"the largest with --gradient-cache: [\d,]+ \(the whole step in one piece\)", said)
    assert re.search(r"30 steps +0:00:\d\d", said)
    assert re.search(r"3 checkpoints of 0 MiB +0:00:\d\d", said)
    assert re.search(r"s a batch \(those taken: ", said)


def test_processes_that_are_not_there_are_reckoned_with(inside, device, rows, tmp_path, tiny_bert):
    words = ["--dry-run", "--probe", "--nproc", 4, "--negatives-cross-device", "-b", 2]
    done = inside(*words_of(rows, tmp_path / "out", tiny_bert, *words))
    assert done.returncode == 0, done.stderr
    assert re.search(r"each of 4 processes holds about \d+ MiB more", flat(done.stdout))


def test_no_step_is_tried_of_a_model_that_is_cut(inside, rows, tmp_path, tiny_bert):
    done = inside(*words_of(rows, tmp_path / "out", tiny_bert, "--dry-run", "--probe", "--nproc", 2, "--fsdp"))
    assert done.returncode == 0, done.stderr
    assert "no step is tried" in done.stderr
    assert "Measured" not in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_cpu_is_measured_in_place_of_a_gpu(inside, rows, tmp_path, tiny_bert):
    words = ["train", "base", "-m", tiny_bert, "-t", rows, "-o", tmp_path / "out", "--dry-run", "--probe", "--gpus", 1]
    done = inside(*words)
    assert done.returncode == 2
    assert "this machine has no GPU" in done.stderr


def test_a_cpu_is_not_kept_busy_unless_asked(inside, rows, tmp_path, tiny_bert):
    done = inside(*words_of(rows, tmp_path / "out", tiny_bert, "--dry-run"))
    assert done.returncode == 0, done.stderr
    assert "estimated" in done.stdout
    assert "Measured" not in done.stdout


def test_evaluations_are_reckoned_with(inside, write_rows, toy_rows, rows, tmp_path, tiny_bert):
    held_out = write_rows(toy_rows(12), "held.jsonl")
    done = inside(*words_of(
        rows, tmp_path / "out", tiny_bert, "--dry-run", "--probe", "--eval-data", held_out, "--eval-steps", 4,
    ))  # fmt: skip
    assert done.returncode == 0, done.stderr
    # Before, after 4, 8 and the last of 10.
    assert re.search(r"4 evaluations +0:00:\d\d", done.stdout)


@pytest.mark.parametrize("room", [40, 100, 170])
def test_dry_run_finds_the_largest_pieces(inside, device, rows, tmp_path, tiny_bert, room):
    device.tokens = room
    done = inside(*words_of(rows, tmp_path / "out", tiny_bert, "--dry-run", "--probe"))
    assert done.returncode == 0, done.stderr
    said = flat(done.stdout)
    assert re.search(r"longest step +1,024 tokens +no +does not fit", said)
    found = int(re.search(r"the largest with --gradient-cache: (\d+)", said)[1])
    longest = int(re.search(r"the longest text (\d+)", said)[1])
    # A piece holds whole texts, the longest of which is longest.
    assert found <= room < found + longest + found / 8
    assert "the largest --sub-batch-tokens that fits without gradient caching: none" in said
    assert "what helps most first: --gradient-cache" in said


def test_dry_run_with_the_pieces_that_are_chosen(inside, device, rows, tmp_path, tiny_bert):
    device.tokens = 100
    done = inside(*words_of(rows, tmp_path / "out", tiny_bert, "--dry-run", "--probe", "--auto-sub-batch"))
    assert done.returncode == 0, done.stderr
    found = re.search(
        r"--auto-sub-batch takes steps in pieces of (\d+) tokens, with gradient caching", flat(done.stdout)
    )
    assert found, done.stdout
    assert re.search(rf"longest step +{found[1]} tokens +yes +{DIGITS}", flat(done.stdout))


def test_chosen_pieces_are_those_of_a_run_that_names_them(inside, device, rows, tmp_path, tiny_bert):
    """What was tried before leaves no trace: not in the weights, the optimiser, the learning rate or the dropout."""
    chosen, named = tmp_path / "chosen", tmp_path / "named"
    device.tokens = 100
    done = inside(*words_of(rows, chosen, tiny_bert, "--auto-sub-batch"))
    assert done.returncode == 0, done.stderr
    found = re.findall(r"steps are taken in pieces of (\d+) tokens, with gradient caching", done.stderr)
    assert len(found) == 1, done.stderr
    assert 72 <= int(found[0]) <= 100
    assert "once more" not in done.stderr
    device.tokens = 1 << 40
    assert inside(*words_of(rows, named, tiny_bert, "--sub-batch-tokens", found[0], "--gradient-cache")).returncode == 0
    assert_same(chosen, named)


def test_nothing_changes_where_all_fits(inside, device, rows, tmp_path, tiny_bert):
    chosen, plain = tmp_path / "chosen", tmp_path / "plain"
    done = inside(*words_of(rows, chosen, tiny_bert, "--auto-sub-batch"))
    assert done.returncode == 0, done.stderr
    assert "steps are taken in pieces of 1,024 tokens, without gradient caching" in done.stderr
    assert inside(*words_of(rows, plain, tiny_bert)).returncode == 0
    assert_same(chosen, plain, 1e-5)


def test_the_smallest_pieces_do_not_fit(inside, device, rows, tmp_path, tiny_bert):
    device.tokens = 10
    done = inside(*words_of(rows, tmp_path / "out", tiny_bert, "--auto-sub-batch"))
    assert done.returncode == 1
    assert re.search(r"error: out of memory in the longest of \d+ steps looked at, in ", done.stderr)
    assert "-max-len 12" in done.stderr


def test_resumed_with_the_same_pieces(inside, device, rows, tmp_path, tiny_bert):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = ["--auto-sub-batch", "--save-steps", 4, "--save-total-limit", 9]
    device.tokens = 100
    done = inside(*words_of(rows, whole, tiny_bert, *words))
    assert done.returncode == 0, done.stderr
    kept = json.loads((whole / "checkpoint-4" / WHOLE).read_text())["state"]["pieces"]
    assert kept["cached"]
    assert 72 <= kept["tokens"] <= 100
    shutil.copytree(whole, broken)
    for name in ("checkpoint-8", "checkpoint-10"):
        shutil.rmtree(broken / name, ignore_errors=True)
    device.tokens = 1 << 40
    done = inside(*words_of(rows, broken, tiny_bert, *words, "--resume", "auto"))
    assert done.returncode == 0, done.stderr
    assert "steps are taken" not in done.stderr, "they are chosen anew"
    again = json.loads((broken / "checkpoint-8" / WHOLE).read_text())["state"]["pieces"]
    assert again == kept
    assert_same(whole, broken)


@pytest.mark.parametrize(("part", "name"), [
    ("encode", "encoding the texts"), ("loss", "the loss"), ("backward", "the backward pass"),
])  # fmt: skip
def test_full_memory_is_told_with_the_step_and_what_helps(inside, device, rows, tmp_path, tiny_bert, part, name):
    device.fails = (3, part)
    done = inside(*words_of(rows, tmp_path / "out", tiny_bert))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    error = done.stderr[done.stderr.index("error:") :]
    places = "".join(rf"{re.escape(str(rows))}:\d+, " for _ in range(3))
    assert re.match(
        rf"error: out of memory in step 3, in {name}: 4 queries and 12 passages, \d+ tokens \(\d+ with padding\) in "
        rf"one piece, the longest text of \d+, of {re.escape(str(rows))}; rows: {places}{re.escape(str(rows))}:\d+\n",
        error,
    ), error
    helps = ["--gradient-cache", "--sub-batch-tokens ", "--auto-sub-batch", "--gradient-checkpointing", "--bf16"]
    if part == "loss":
        helps = ["--per-device-train-batch-size 2", "--gradient-cache", "--gradient-checkpointing", "--bf16"]
    order = [error.index(flag) for flag in [*helps, "-max-len "]]
    assert order == sorted(order), error


@pytest.mark.parametrize("part", ["encode", "loss", "backward"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_retried_run_is_one_with_smaller_pieces_from_there(
    inside, device, rows, tmp_path, tiny_bert, monkeypatch, part, accumulated
):
    retried, reference = tmp_path / "retried", tmp_path / "reference"
    words = ["--auto-sub-batch", "--sub-batch-tokens", 120, "--gradient-accumulation-steps", accumulated]
    device.fails = (3, part)
    done = inside(*words_of(rows, retried, tiny_bert, *words))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the memory did not hold step 3") == 1
    assert "all after it are, in pieces of 120 tokens, with gradient caching" in done.stderr.replace("\n", " ")
    assert device.fails is None
    gradients = EmbedderTrainer._gradients

    def changed(self, model, inputs):
        if self.state.global_step == 2 and self.examples_seen:
            self.packing = Packing(120, cached=True)
        return gradients(self, model, inputs)

    monkeypatch.setattr(EmbedderTrainer, "_gradients", changed)
    assert inside(*words_of(rows, reference, tiny_bert, *words)).returncode == 0
    assert_same(retried, reference, 1e-5)
    log = [json.loads(line) for line in (retried / "log.jsonl").read_text().splitlines()]
    other = [json.loads(line) for line in (reference / "log.jsonl").read_text().splitlines()]
    assert [entry["loss"] for entry in log if "loss" in entry] == pytest.approx(
        [entry["loss"] for entry in other if "loss" in entry], abs=1e-5
    )


@pytest.mark.parametrize("more", [[], ["--fix-encoder"], ["--use-lora"]], ids=["whole", "heads alone", "adapters"])
def test_heads_are_retried_too(inside, device, rows, tmp_path, m3, more):
    retried, plain = tmp_path / "retried", tmp_path / "plain"
    device.fails = (3, "loss")
    words = words_of(rows, retried, m3, "--sub-batch-tokens", 80, "--auto-sub-batch", *more)
    done = inside(*["train", "m3", *words[2:]])
    assert done.returncode == 0, done.stderr
    assert "did not hold step 3" in done.stderr
    words = words_of(rows, plain, m3, "--sub-batch-tokens", 80, "--gradient-cache", *more)
    done = inside(*["train", "m3", *words[2:]])
    assert done.returncode == 0, done.stderr
    # Dropout of the tiny model is drawn piece by piece, with and without the cache.
    assert_same(retried, plain, 1e-4)
    head = torch.load(retried / "colbert_linear.pt", weights_only=True)["weight"]
    other = torch.load(plain / "colbert_linear.pt", weights_only=True)["weight"]
    torch.testing.assert_close(head, other, rtol=0, atol=1e-4)


def test_halved_until_it_fits_and_kept(inside, device, rows, tmp_path, tiny_bert, monkeypatch):
    """The room shrinks in step 4, as where another program takes some of it."""
    out = tmp_path / "out"
    gradients = EmbedderTrainer._gradients
    taken = []

    def shrunk(self, model, inputs):
        if self.examples_seen and self.state.global_step == 3:
            device.tokens = 50
        taken.append((self.state.global_step + 1, self.packing.tokens, self.packing.cached))
        return gradients(self, model, inputs)

    monkeypatch.setattr(EmbedderTrainer, "_gradients", shrunk)
    done = inside(*words_of(rows, out, tiny_bert, "--auto-sub-batch"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("did not hold") == 1
    assert taken[-1][1] <= 50
    assert len({entry[1:] for entry in taken if entry[0] > 4}) == 1, "the smaller size is not kept"


def test_given_up_where_single_texts_do_not_fit(inside, device, rows, tmp_path, tiny_bert, monkeypatch):
    gradients = EmbedderTrainer._gradients

    def shrunk(self, model, inputs):
        if self.examples_seen and self.state.global_step == 3:
            device.tokens = 5
        return gradients(self, model, inputs)

    monkeypatch.setattr(EmbedderTrainer, "_gradients", shrunk)
    done = inside(*words_of(rows, tmp_path / "out", tiny_bert, "--auto-sub-batch"))
    assert done.returncode == 1
    assert "out of memory in step 4, in encoding the texts" in done.stderr
    hint = done.stderr[done.stderr.index("hint:") :]
    assert "--sub-batch-tokens" not in hint
    assert "--gradient-cache" not in hint
    assert "--gradient-checkpointing" in hint


LIMITED = """
import resource, sys
import torch, transformers, accelerate
torch.set_num_threads(1)
from bgectl.cli import main
from bgectl.train import run
train = run.EmbedderTrainer.train

def limited(self, *arguments, **named):
    size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[1]), resource.RLIM_INFINITY))
    return train(self, *arguments, **named)

run.EmbedderTrainer.train = limited
main(sys.argv[2:])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
@pytest.mark.slow
def test_a_real_limit(tmp_path, tiny_bert, write_rows, tiny_words):
    """torch's own allocator on a CPU fails, and the error is ours; with --auto-sub-batch the run goes through."""
    text = " ".join(tiny_words)
    rows = write_rows([
        {"query": f"{word} {number}", "pos": [f"{word} {number} {text}"],
         "neg": [f"a {word} {number} {text}", f"b {word} {number} {text}"]}
        for number in range(6) for word in tiny_words
    ])  # fmt: skip

    def train(out, *more):
        words = [
            "train", "base", "-m", tiny_bert, "-t", rows, "-o", out, "--train-group-size", 3, "-b", 240,
            "--device", "cpu", "--dataloader-num-workers", 0, "--save-steps", 0, "--sub-batch-tokens", 1 << 20, *more,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        return subprocess.run(
            [sys.executable, "-c", LIMITED, str(200 << 20), *map(str, words)], capture_output=True, text=True,
            env=environment, check=False, timeout=300,
        )  # fmt: skip

    done = train(tmp_path / "plain")
    assert done.returncode == 1, done.stderr
    assert "error: out of memory in step 1, in " in done.stderr
    assert "240 queries and" in done.stderr
    assert "Traceback" not in done.stderr
    done = train(tmp_path / "auto", "--auto-sub-batch")
    assert done.returncode == 0, done.stderr
    found = re.search(r"steps are taken in pieces of ([\d,]+) tokens, with gradient caching", done.stderr)
    assert found, done.stderr
    assert (tmp_path / "auto" / "model.safetensors").is_file()


def both(words, folder):
    """The command in two processes, forked from this one; exit codes and what each said."""
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    folder.mkdir()
    return in_processes(2, words, folder)


CROSS = pytest.mark.parametrize("more", [[], ["--negatives-cross-device"]], ids=["own negatives", "cross-device"])


@CROSS
def test_two_processes_agree_on_the_pieces(device, rows, tmp_path, tiny_bert, more):
    """The process with less room decides, and both train as two that are given its number."""
    chosen, named = tmp_path / "chosen", tmp_path / "named"
    device.tokens = [1 << 40, 60]
    codes, said = both(words_of(rows, chosen, tiny_bert, "--auto-sub-batch", *more), tmp_path / "first")
    assert codes == [0, 0], said
    found = re.search(r"steps are taken in pieces of (\d+) tokens, with gradient caching", said[0])
    assert found, said[0]
    assert 40 <= int(found[1]) <= 60
    device.tokens = 1 << 40
    words = words_of(rows, named, tiny_bert, "--sub-batch-tokens", found[1], "--gradient-cache", *more)
    assert both(words, tmp_path / "second")[0] == [0, 0]
    assert_same(chosen, named, 1e-5)


@CROSS
@pytest.mark.parametrize("part", ["encode", "backward"])
def test_two_processes_retry_together(device, rows, tmp_path, tiny_bert, part, more):
    """One process has no memory for its step; the other takes it once more too, and nobody waits for ever."""
    retried, plain = tmp_path / "retried", tmp_path / "plain"
    device.fails = (3, part, 1)
    words = words_of(rows, retried, tiny_bert, "--auto-sub-batch", "--gradient-accumulation-steps", 2, *more)
    codes, said = both(words, tmp_path / "first")
    assert codes == [0, 0], said
    assert "the memory did not hold step 3" in said[0]
    device.fails = None
    words = words_of(rows, plain, tiny_bert, "--gradient-accumulation-steps", 2, *more)
    assert both(words, tmp_path / "second")[0] == [0, 0]
    # A step is one piece here, which draws the same dropout with and without the cache.
    assert_same(retried, plain, 1e-5)


def test_two_processes_end_where_no_retry_can_be_agreed(device, rows, tmp_path, tiny_bert):
    """In the loss, the other process waits for vectors that never come; the run ends, and soon."""
    device.fails = (3, "loss", 1)
    started = time.monotonic()
    codes, said = both(
        words_of(rows, tmp_path / "out", tiny_bert, "--auto-sub-batch", "--negatives-cross-device"), tmp_path / "first"
    )
    assert codes[1] == 1, said
    assert codes[0] not in (0, None), said
    assert time.monotonic() - started < 100
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(("words", "problem"), [
    (["--probe"], "--probe needs --dry-run"),
    (["--auto-sub-batch", "--fsdp"], "--auto-sub-batch excludes --fsdp and --deepspeed"),
    (["--auto-sub-batch", "--deepspeed", "2"], "--auto-sub-batch excludes --fsdp and --deepspeed"),
])  # fmt: skip
def test_options_that_do_not_go_together(inside, tmp_path, words, problem):
    done = inside("train", "base", "-m", "m", "-t", "rows.jsonl", "-o", tmp_path / "out", *words)
    assert done.returncode == 2
    assert problem in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(inside, rows, tmp_path, minilm):
    """A dry run probes without being asked, and its peak is what torch's allocator says of a real step."""
    words = ["train", "base", "-m", minilm, "-t", rows, "-o", tmp_path / "out", "--train-group-size", 3, "-b", 4]
    done = inside(*words, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"Measured on {torch.cuda.get_device_name()}" in done.stdout
    peak, reserved = re.search(rf"longest step +65,536 tokens +no +({DIGITS}) +({DIGITS})", flat(done.stdout)).groups()
    assert 0 < int(peak.replace(",", "")) <= int(reserved.replace(",", ""))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_full_gpu(inside, random_rows, tmp_path, minilm):
    """The allocator may take a part of the memory only: the step does not fit, and with --auto-sub-batch it does."""
    rows = random_rows(600, 7)
    words = [
        "train", "base", "-m", minilm, "-t", rows, "--train-group-size", 8, "-b", 256, "--max-steps", 2,
        "--save-steps", 0,
    ]  # fmt: skip
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.2 * 2**30 / total)
    try:
        done = inside(*words, "-o", tmp_path / "plain")
        assert done.returncode == 1
        assert "out of memory in step 1" in done.stderr
        done = inside(*words, "-o", tmp_path / "auto", "--auto-sub-batch")
        assert done.returncode == 0, done.stderr
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
