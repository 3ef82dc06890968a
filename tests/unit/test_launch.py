"""What starts processes, without starting any."""

import json
import os

import pytest

from bgectl import launch, launcher
from bgectl.launch import Place, adopt_slurm, first_host, launcher_words, place


@pytest.fixture
def become(monkeypatch):
    """Notes what the process would have become; the environment is one without processes."""
    became = []
    monkeypatch.setattr(launch, "become", became.append)
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    return became


@pytest.mark.parametrize(("asked", "launched"), [
    ({"processes": 1}, False),
    ({"processes": 2}, True),
    ({"processes": 1, "nnodes": 2, "endpoint": "host:1"}, True),
    ({"processes": 1, "max_restarts": 1}, True),
])  # fmt: skip
def test_when_processes_are_started(asked, launched, become):
    launch.launch(device="cpu", words=["train"], **asked)
    assert len(become) == launched


def test_processes_that_are_there_are_taken(become, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    launch.launch(processes=4, device="cpu")
    assert become == []


def test_the_command_is_handed_on_whole():
    words = ["train", "base", "--nproc", "2", "-m", "model", "--", "x"]
    line = launcher_words(processes=2, device="cpu", nnodes=1, node_rank=None, endpoint=None, meeting="m",
                          max_restarts=3, words=words)  # fmt: skip
    assert line[:3] == ["-m", "bgectl.launcher", "cpu"]
    assert line[-len(words) :] == words
    assert {"--standalone", "--nproc-per-node=2", "--max-restarts=3"} < set(line)
    line = launcher_words(processes=8, device="cuda", nnodes=2, node_rank=1, endpoint="host:29500", meeting="m",
                          max_restarts=0, words=words)  # fmt: skip
    assert line[2] == "cuda"
    assert {"--rdzv-endpoint=host:29500", "--rdzv-id=m", "--rdzv-conf=is_host=0", "--nnodes=2"} < set(line)


def test_place():
    assert place({}) == Place(0, 1, 0)
    assert place({"RANK": "3", "WORLD_SIZE": "8"}) == Place(0, 1, 0), "not a process of a launcher"
    there = {"LOCAL_RANK": "1", "RANK": "3", "WORLD_SIZE": "8", "TORCHELASTIC_RESTART_COUNT": "2"}
    assert place(there) == Place(3, 8, 2)
    assert not place(there).first


@pytest.mark.parametrize(("nodes", "first"), [
    ("localhost", "localhost"), ("gpu[03-05,9],cpu1", "gpu03"), ("a1,a2", "a1"), ("rack2-n[7,9-11]", "rack2-n7"),
    ("n[1-2].cluster", "n1.cluster"),
])  # fmt: skip
def test_first_host_of_slurm(nodes, first):
    assert first_host(nodes) == first


def test_slurm_tasks_become_processes():
    step = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "1234567",
            "SLURM_STEP_NODELIST": "gpu[03-04]"}  # fmt: skip
    adopt_slurm(step)
    assert place(step) == Place(9, 16, 0)
    assert (step["LOCAL_RANK"], step["MASTER_ADDR"]) == ("1", "gpu03")
    assert 1024 < int(step["MASTER_PORT"]) < 65536
    batch_script = {"SLURM_NTASKS": "16", "SLURM_PROCID": "0"}
    adopt_slurm(batch_script)
    assert "LOCAL_RANK" not in batch_script, "a batch script is one process, whatever the job's tasks"


def test_errors_are_left_to_our_own_launcher(monkeypatch, tmp_path):
    path = tmp_path / "error.json"
    monkeypatch.setenv(launch.ERROR_FILE, str(path))
    problem = RuntimeError("[../gloo/transport] Connection closed by peer")
    monkeypatch.delenv(launch.LAUNCHED, raising=False)
    assert not launch.leave_to_launcher(problem, "m", None, 1), "torchrun does not read our words"
    monkeypatch.setenv(launch.LAUNCHED, "1")
    assert launch.leave_to_launcher(problem, str(problem), "h", 1)
    said = json.loads(path.read_text())["bgectl"]
    assert (said["exit_code"], said["hint"], said["lost_connection"]) == (1, "h", True)


@pytest.mark.parametrize(("there", "wanted", "needed", "enough"), [
    (0, 2, False, True), (0, 2, True, False), (1, 2, False, False), (2, 2, True, True), (4, 2, False, True),
])  # fmt: skip
def test_gpus_are_counted(there, wanted, needed, enough, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    assert launcher.enough_gpus(wanted, needed=needed) == enough
    assert ("this machine has" in capsys.readouterr().err) != enough
