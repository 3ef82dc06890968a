"""Mining and scoring that are killed and started again end as an unbroken run does, and compute nothing twice."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import (
    LASTING,
    in_a_process,
    leavings,
    make_cross_encoder,
    make_m3,
    quick_collections,
    rows_of,
    sentences,
    shards,
)

KILLS = {"mine": 7, "rule": 7, "judged": 6, "m3": 4, "score": 6, "embedder": 4}
"""Kills of each kind of run."""


@pytest.fixture(autouse=True, scope="module")
def _quick():
    import matplotlib.figure  # noqa: F401 (else each process that writes a report imports it anew)

    with quick_collections():
        yield


@pytest.fixture(scope="module")
def models(tiny_bert, tiny_xlmr, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "bert": tiny_bert, "judge": make_cross_encoder(tiny_bert, folder / "judge"),
        "m3": make_m3(tiny_xlmr, folder / "m3"),
    }  # fmt: skip


@pytest.fixture
def files(tiny_words, write_rows):
    rows = write_rows(rows_of(tiny_words, 120), "rows.jsonl")
    pool = write_rows([{"text": text} for text in sentences(tiny_words, 400, seed=7)], "pool.jsonl")
    return rows, pool


def command(kind, files, models, output, work):
    """A run of a second or so with some dozens of shards."""
    rows, pool = files
    common = ["--devices", "cpu", "--work-folder", work, "--batch-tokens", 200]
    if kind in ("score", "embedder"):
        teacher = models["judge" if kind == "score" else "bert"]
        return ["score", rows, output, "--reranker", teacher, "--shard-size", 20, *common]
    more = {
        "mine": ["--report", output.with_suffix(".html")],
        "rule": ["--preset", "positive-aware", "--dtype", "float32"],
        "judged": ["--cross-encoder", models["judge"], "--range", "2-7"],
        "m3": ["--mode", "m3", "--preset", "positive-aware"],
    }[kind]
    return [
        "mine", rows, output, "--embedder-name-or-path", models["m3" if kind == "m3" else "bert"], "--candidate-pool",
        pool, "-n", 5, "--range", "2-20", "--keep-scores", "--search-batch-size", 5, "--shard-size", 12, *more, *common,
    ]  # fmt: skip


def finished(words, said):
    process = in_a_process(words, said)
    process.join(120)
    assert process.exitcode == 0, said.read_text()


def everything(work):
    """All shards, those too that only a run uses."""
    return shards(work, (*LASTING, "found", "found-*/parts"))


def check_kept(before, work, kind):
    """A file that was there is there still, and was not written again; what single runs use may go."""
    after = everything(work)
    lasting = {path for path in before if path.parent.name.split("-")[0] in LASTING}
    gone = sorted(lasting - after.keys())
    again = [path for path in before if after.get(path, before[path]) != before[path]]
    assert not gone, f"{kind}: lost: {gone}"
    assert not again, f"{kind}: computed twice: {again}"
    return after


@pytest.mark.slow
@pytest.mark.parametrize("kind", KILLS)
def test_killed_at_any_moment(kind, files, models, tmp_path):
    whole, broken, said = tmp_path / "whole", tmp_path / "broken", tmp_path / "said"
    for folder in (whole, broken):
        folder.mkdir()
    started = time.monotonic()
    finished(command(kind, files, models, whole / "out.jsonl", whole / "work"), said)
    seconds = time.monotonic() - started
    wanted = {path.relative_to(whole) for path in shards(whole / "work")}
    words = command(kind, files, models, broken / "out.jsonl", broken / "work")
    draw = random.Random(kind)
    kills, known, reached = 0, {}, set()
    while True:
        process = in_a_process(words, said)
        if kills == KILLS[kind]:
            process.join(120)
        elif draw.random() < 0.5:
            process.join(draw.uniform(0.05, 0.9) * seconds)
        else:
            # Some shards later: by the clock alone most kills fall into reading and loading.
            until = len(known) + draw.randint(1, 20)
            while process.exitcode is None and len(everything(broken / "work")) < until:
                process.join(0.002)
            process.join(draw.uniform(0, 0.1))
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
            known = check_kept(known, broken / "work", kind)
            reached.add(len(known))
            continue
        assert process.exitcode == 0, said.read_text()
        check_kept(known, broken / "work", kind)
        assert {path.relative_to(broken) for path in shards(broken / "work")} == wanted
        for path in (path for path in whole.iterdir() if path.suffix in (".jsonl", ".json")):
            assert (broken / path.name).read_bytes() == path.read_bytes(), path.name
        assert [left for left in leavings(broken) if left.startswith("work")] == []
        if kills == KILLS[kind]:
            break
        # It ended before it was killed often enough: from the start once more.
        shutil.rmtree(broken)
        broken.mkdir()
        known = {}
    print(f"{kind}: {kills} kills at {sorted(reached)} shards; {seconds:.1f} s unbroken")
    assert len(reached) > 1, "it was always killed at the same place"


@pytest.mark.slow
def test_killed_while_something_is_written(files, models, tmp_path):
    """Half-written shards, texts and outputs: each kill falls into a flush to the disk, one later than the last."""
    whole, broken, said = tmp_path / "whole", tmp_path / "broken", tmp_path / "said"
    for folder in (whole, broken):
        folder.mkdir()
    finished(command("rule", files, models, whole / "out.jsonl", whole / "work"), said)
    words = command("rule", files, models, broken / "out.jsonl", broken / "work")
    sync, known, codes = os.fsync, {}, []
    for count in (1, 3, 6, 15, 20, 12, 200):
        left = count

        def dying(file, limit=count):
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            sync(file)

        os.fsync = dying
        try:
            process = in_a_process(words, said)
        finally:
            os.fsync = sync
        process.join(120)
        codes.append(process.exitcode)
        known = check_kept(known, broken / "work", "rule")
    assert codes == [-signal.SIGKILL] * 6 + [0], codes
    assert (broken / "out.jsonl").read_bytes() == (whole / "out.jsonl").read_bytes()
    assert [left for left in leavings(broken) if left.startswith("work")] == []


@pytest.mark.slow
def test_killed_between_the_pieces_and_their_sum(files, models, tmp_path, monkeypatch):
    """What the heads of M3 found in the pieces of the pool goes, also where the kill came before it went."""
    from bgectl.mine import by_heads

    words = command("m3", files, models, tmp_path / "out.jsonl", tmp_path / "work")
    with monkeypatch.context() as patch:
        patch.setattr(by_heads, "delete", lambda vaults: os.kill(os.getpid(), signal.SIGKILL))
        process = in_a_process(words)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert list((tmp_path / "work").glob("**/parts-*/*.safetensors"))
    finished(words, tmp_path / "said")
    assert [left for left in leavings(tmp_path) if left.startswith("work")] == []


def children_of(process):
    """Process numbers of the ranks that a launcher started."""
    found = []
    for number in os.listdir("/proc"):
        if number.isdigit():
            try:
                parent = int(Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            if parent == process.pid:
                found.append(int(number))
    return sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rule", "score"])
def test_one_of_two_processes_is_killed(kind, files, models, tmp_path):
    """The run fails as a whole, says so once, and the same command goes on to the same bytes."""
    whole, broken, said = tmp_path / "whole", tmp_path / "broken", tmp_path / "said"
    for folder in (whole, broken):
        folder.mkdir()
    finished(command(kind, files, models, whole / "out.jsonl", whole / "work"), said)
    words = command(kind, files, models, broken / "out.jsonl", broken / "work")
    line = [sys.executable, "-m", "bgectl", *map(str, words), "--nproc", "2"]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    until = time.monotonic() + 90
    try:
        while len(shards(broken / "work")) < 3 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        assert process.poll() is None, process.stderr.read()
        ranks = children_of(process)
        assert len(ranks) == 2, ranks
        os.kill(ranks[1], signal.SIGKILL)
        _, stderr = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 137, stderr
    assert stderr.count("error: ") == 1
    assert "was ended by SIGKILL" in stderr
    assert "Traceback" not in stderr
    assert not (broken / "out.jsonl").exists()
    known = shards(broken / "work")
    assert known
    wanted = {path.relative_to(whole) for path in shards(whole / "work")}
    assert len(known) < len(wanted), "it was killed after all had been done"
    finished(words, said)
    assert {path.relative_to(broken) for path in check_kept(known, broken / "work", kind)} == wanted
    assert (broken / "out.jsonl").read_bytes() == (whole / "out.jsonl").read_bytes()
    assert [left for left in leavings(broken) if left.startswith("work")] == []


def test_a_damaged_shard_is_named_and_made_again(inside, files, models, tmp_path):
    """A disk that lost a part of a file: the message names it, and without it the run goes on."""
    words = command("mine", files, models, tmp_path / "out.jsonl", tmp_path / "work")
    assert inside(*words).returncode == 0
    first = (tmp_path / "out.jsonl").read_bytes()
    path = sorted(shards(tmp_path / "work", ["passages"]))[5]
    path.write_bytes(path.read_bytes()[:-9])
    done = inside(*words)
    assert done.returncode == 1
    assert f"{path}: is damaged" in done.stderr
    assert "delete it" in done.stderr
    path.unlink()
    done = inside(*words)
    assert done.returncode == 0, done.stderr
    assert "encoded 12 texts" in done.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == first


@pytest.mark.parametrize("kind", ["mine", "score"])
def test_a_full_disk(kind, files, models, tmp_path):
    """What was finished is kept, nothing half-written is left, the old output stays, and the run goes on later."""
    output, work = tmp_path / "out.jsonl", tmp_path / "work"
    output.write_text("old\n")
    words = [str(word) for word in command(kind, files, models, output, work)]
    sync, left = os.fsync, 9

    def full(file):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        sync(file)

    os.fsync = full
    try:
        process = in_a_process(words, tmp_path / "said")
    finally:
        os.fsync = sync
    process.join(60)
    said = (tmp_path / "said").read_text()
    assert process.exitcode == 1, said
    assert "No space left on device" in said
    assert "--work-folder" in said
    assert "Traceback" not in said
    assert output.read_text() == "old\n"
    known = shards(work)
    assert known, "what was finished is not kept"
    assert [path for path in leavings(tmp_path) if not path.startswith("work/found-")] == []
    finished(words, tmp_path / "said")
    check_kept(known, work, kind)
    assert len(output.read_text().splitlines()) == 120


def test_kinds_of_values_are_those_that_are_looked_at(inside, files, models, tmp_path):
    """If a kind were named otherwise, the tests above would look at nothing."""
    found = set()
    for kind in ("mine", "judged", "score"):
        work = tmp_path / kind
        assert inside(*command(kind, files, models, tmp_path / f"{kind}.jsonl", work)).returncode == 0
        found |= {path.name.split("-")[0] for path in work.iterdir() if list(path.glob("*.safetensors"))}
        abouts = [json.loads(path.read_text()) for path in work.glob("*/about.json")]
        assert abouts
        assert all("files" in json.dumps(about) for about in abouts)
    assert found == set(LASTING)
