"""The work folder: texts read back as they were written, values found by hash, and nothing left of what was killed."""

import errno
import multiprocessing
import os
import resource
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_distributed

from bgectl.errors import RunError
from bgectl.work import texts, vault
from bgectl.work.folder import IGNORE_FILE, TAG_FILE, leave_if_empty, run_folder, work_folder
from bgectl.work.texts import Places, Seen, TextsWriter, digest_of, hash_of, hashes_of, paired
from bgectl.work.vault import Vault, fill, unit_size

ODD = st.sampled_from(["", " ", "\n", "\0", "\u2028", "\x85", "\ud800", "\udfff", "\ud83d\ude00", "😀", "a", "ab"])
"""Texts that a file of lines, or strict UTF-8, would not give back."""
ANY_TEXT = st.one_of(ODD, st.text(st.characters()), st.tuples(ODD, st.text(st.characters()), ODD).map("".join))
ON_DISK = settings(max_examples=40, deadline=None)
"""Each shard is flushed to the disk, which others use too."""
SMALL = st.integers(0, 30)
"""Of so few numbers many are equal."""


def uint(numbers):
    return np.array(numbers, dtype=np.uint64)


# Texts


@given(st.lists(st.lists(SMALL)))
def test_seen_is_a_set(batches):
    """Whatever the batches: a hash is new once, and the first of equal ones is."""
    seen, known = Seen(), set()
    for batch in batches:
        new = seen.first(uint(batch))
        for number, is_new in zip(batch, new.tolist(), strict=True):
            assert is_new == (number not in known), (number, batches)
            known.add(number)


def test_seen_keeps_few_runs():
    """A run for each call would make a million texts as slow as a million look-ups in each of them."""
    seen = Seen()
    for start in range(0, 6_000, 3):
        assert seen.first(uint(range(start, start + 4))).tolist() == [start == 0, True, True, True]
    assert len(seen._runs) < 15


@ON_DISK
@given(st.lists(ANY_TEXT), st.integers(1, 5))
def test_texts_come_back_as_they_were(given, chunk):
    """Each text once, in the order of first mention, whatever stands in it and wherever a chunk ends."""
    with tempfile.TemporaryDirectory() as folder, patch.object(texts, "CHUNK", chunk):
        writer = TextsWriter(Path(folder) / "texts")
        hashes = [writer.add(text) for text in given]
        kept = writer.close()
        expected = list(dict.fromkeys(given))
        assert list(kept) == expected
        assert len(kept) == len(expected)
        assert kept.hashes.tolist() == hashes_of(expected).tolist()
        assert Places(kept.hashes).find(uint(hashes)).tolist() == [expected.index(text) for text in given]
        for start in range(-1, len(expected) + 2):
            for stop in (start - 1, start, start + 1, start + 2, len(expected) + 3):
                assert kept[start:stop] == expected[start:stop], (start, stop)
        assert kept.of(range(len(expected) - 1, -1, -1)) == expected[::-1]
        with pytest.raises(IndexError):
            kept[len(expected)]
        again = texts.Texts(Path(folder) / "texts")
        assert list(again) == expected
        kept.close()
        again.close()


def test_a_slice_larger_than_one_read(tmp_path, monkeypatch):
    """The system reads 2 GiB at a time at most, and a slice of long documents can be more."""
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, count, place: pread(file, min(count, 5), place))
    writer = TextsWriter(tmp_path / "texts")
    expected = [str(number) * number for number in range(12)]
    for text in expected:
        writer.add(text)
    assert writer.close()[0:12] == expected


@given(st.lists(ANY_TEXT, unique=True))
def test_a_hash_is_of_the_text_alone(given):
    hashes = hashes_of(given).tolist()
    assert len(set(hashes)) == len(given)
    assert hashes == [hash_of(text.encode("utf-8", "surrogatepass")) for text in given]


@given(st.lists(st.binary(max_size=3), max_size=4), st.lists(st.binary(max_size=3), max_size=4))
def test_a_digest_tells_apart_what_is_cut_elsewhere(one, other):
    """`ab`, `c` and `a`, `bc` are not the same data."""
    assert (digest_of(*one) == digest_of(*other)) == (one == other)


@given(st.lists(SMALL), st.lists(SMALL))
def test_places(known, asked):
    expected = [known.index(number) if number in known else -1 for number in asked]
    assert Places(uint(known)).find(uint(asked)).tolist() == expected


def test_pairs_do_not_collide():
    """Neighbours, pairs the other way round and equal ones all have hashes of their own."""
    for numbers in (np.arange(700, dtype=np.uint64), hashes_of(map(str, range(700)))):
        first, second = np.repeat(numbers, 700), np.tile(numbers, 700)
        before = first.copy(), second.copy()
        assert len(np.unique(paired(first, second))) == 700 * 700
        assert (first == before[0]).all()
        assert (second == before[1]).all()
    one, other = hashes_of(["a"]), hashes_of(["b"])
    assert paired(one, other)[0] == paired(np.repeat(one, 3), np.repeat(other, 3))[2], "it depends on its neighbours"


# Values


def values_of(hashes):
    """(N, 3) numbers that follow from the hashes."""
    return np.stack([hashes % 97, hashes % 89, hashes % 83], axis=1).astype(np.float32)


@ON_DISK
@given(st.lists(st.sets(SMALL, min_size=1), max_size=6), st.lists(SMALL))
def test_a_vault_gives_what_was_put_in(shards, asked):
    with tempfile.TemporaryDirectory() as name:
        own, known = Vault(Path(name) / "v", {"kind": "test"}), set()
        for shard in shards:
            own.add(uint(sorted(shard)), values_of(uint(sorted(shard))), {"cut": str(len(shard))})
            assert set(own.hashes.tolist()) == known, "a shard is seen before `refresh`"
            own.refresh()
            known |= shard
        other = Vault(Path(name) / "v", {"kind": "test"})
        for kept in (own, other):
            missing = [place for place, number in enumerate(asked) if number not in known | set(asked[:place])]
            assert kept.missing(uint(asked)).tolist() == missing
            found = [number for number in asked if number in known]
            if found:
                assert (kept.get(uint(found)) == values_of(uint(found))).all()
                places = zip(*kept.locate(uint(found)), strict=True)
                read = [kept.read(int(shard))[row] for shard, row in places]
                assert (np.array(read) == values_of(uint(found))).all()
                assert all(int(note) >= 1 for note in kept.notes(uint(found), "cut").values())
            if len(found) < len(asked):
                with pytest.raises(KeyError):
                    kept.locate(uint(asked))
        assert own.size() == sum(path.stat().st_size for path in own.folder.glob("*.safetensors"))


def test_another_process_is_seen_after_refresh(tmp_path):
    one, other = Vault(tmp_path / "v", {}), Vault(tmp_path / "v", {})
    numbers = uint([5, 7])
    one.add(numbers, values_of(numbers))
    assert other.missing(numbers).tolist() == [0, 1]
    other.refresh()
    assert other.missing(numbers).tolist() == []
    assert (other.get(uint([7, 5, 7])) == values_of(uint([7, 5, 7]))).all()


def test_no_values_are_asked_for(tmp_path):
    """A row group in which everything is known asks for nothing."""
    kept = Vault(tmp_path / "v", {})
    assert len(kept.get(uint([]))) == len(kept.missing(uint([]))) == 0
    assert kept.notes(uint([]), "cut") == {}


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_a_damaged_shard_is_named(damage, tmp_path):
    kept = Vault(tmp_path / "v", {})
    for start in (0, 10):
        kept.add(uint(range(start, start + 3)), values_of(uint(range(start, start + 3))))
    kept.refresh()
    path = sorted(kept.folder.glob("*.safetensors"))[1]
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-5], "empty": b"", "garbage": b"\xff" * len(data)}[damage])
    with pytest.raises(RunError) as reading:
        Vault(tmp_path / "v", {})
    with pytest.raises(RunError) as getting:
        kept.get(kept.hashes)
    for caught in (reading, getting):
        assert caught.value.where == str(path)
        assert "damaged" in caught.value.message
        assert "delete it" in caught.value.hint
    path.unlink()
    assert len(Vault(tmp_path / "v", {}).hashes) == 3, "the other shard is lost too"


@contextmanager
def no_file_larger_than(size):
    """What a full disk does to a file that grows beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_nothing(tmp_path):
    kept = Vault(tmp_path / "v", {})
    numbers = uint(range(2000))
    before = sorted(kept.folder.iterdir())
    with no_file_larger_than(4096), pytest.raises(RunError) as caught:
        kept.add(numbers, values_of(numbers))
    assert "cannot be written: File too large" in caught.value.message
    assert "--work-folder" in caught.value.hint
    assert sorted(kept.folder.iterdir()) == before, "half a shard is left"
    kept.add(numbers, values_of(numbers))
    kept.refresh()
    assert (kept.get(numbers) == values_of(numbers)).all()


def test_a_disk_that_tells_late_leaves_nothing(tmp_path, monkeypatch):
    """A network's file system tells of a full disk when the file is flushed."""
    kept = Vault(tmp_path / "v", {})
    before = sorted(kept.folder.iterdir())

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        kept.add(uint([1]), values_of(uint([1])))
    assert sorted(kept.folder.iterdir()) == before


def in_a_process(function, *arguments):
    """Start a function in a forked process."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def test_a_write_that_was_killed_is_not_seen_and_goes(tmp_path):
    """Half a shard counts for nothing, and the next run that opens the vault takes it away."""
    numbers = uint(range(50))

    def die():
        os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
        kept.add(numbers, values_of(numbers))

    kept = Vault(tmp_path / "v", {})
    process = in_a_process(die)
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    kept.refresh()
    assert len(kept.missing(numbers)) == 50
    again = Vault(tmp_path / "v", {})
    assert len(again.missing(numbers)) == 50
    again.add(numbers, values_of(numbers))
    again.refresh()
    assert (again.get(numbers) == values_of(numbers)).all()
    left = {path.name for path in kept.folder.iterdir()} - {"about.json"}
    assert left == {path.name for path in kept.folder.glob("*.safetensors")}, "what was killed lies there for ever"


def test_a_write_that_goes_on_is_left_alone(tmp_path):
    """Another run that opens the vault takes no file away that is being written."""
    numbers = uint(range(50))
    context = multiprocessing.get_context("fork")
    reached, go = context.Event(), context.Event()

    def slowly():
        sync = os.fsync
        os.fsync = lambda file: (reached.set(), go.wait(30), sync(file))
        kept.add(numbers, values_of(numbers))

    kept = Vault(tmp_path / "v", {})
    process = in_a_process(slowly)
    assert reached.wait(30)
    Vault(tmp_path / "v", {})
    go.set()
    process.join(30)
    assert process.exitcode == 0
    kept.refresh()
    assert (kept.get(numbers) == values_of(numbers)).all()


def test_a_shard_appears_whole(tmp_path, monkeypatch):
    """What was flushed to the disk is what stands there then: a reader never meets a part of it."""
    flushed = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (flushed.append(os.fstat(file)), sync(file)))
    vault.put(tmp_path / "shard", b"x" * 5000)
    assert [(found.st_ino, found.st_size) for found in flushed] == [((tmp_path / "shard").stat().st_ino, 5000)]


def test_processes_of_two_machines_with_the_same_number(tmp_path, monkeypatch):
    """In containers process numbers repeat; both write the same file at the same time."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    replace = Path.replace
    inner = []

    def late(self, target):
        if not inner:
            inner.append(1)
            vault.put(tmp_path / "about.json", b"{}\n")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", late)
    vault.put(tmp_path / "about.json", b"{}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["about.json"]
    assert (tmp_path / "about.json").read_bytes() == b"{}\n"


@ON_DISK
@given(
    known=st.sets(SMALL), asked=st.lists(SMALL, min_size=1), shard=st.integers(1, 7), sized=st.booleans()
)  # fmt: skip
def test_fill_computes_what_is_missing_once(known, asked, shard, sized):
    """In pieces of the shard's size, each hash once, and told of what it is worth."""
    with tempfile.TemporaryDirectory() as name:
        kept = Vault(Path(name) / "v", {})
        if known:
            kept.add(uint(sorted(known)), values_of(uint(sorted(known))))
            kept.refresh()
        computed = []

        def compute(places, advance):
            computed.append([asked[place] for place in places])
            return values_of(uint(computed[-1])), {}

        sizes = [3] * len(asked) if sized else None
        count = fill(kept, uint(asked), shard, compute, "Testing", "texts", sizes)
        wanted = list(dict.fromkeys(number for number in asked if number not in known))
        assert computed == [wanted[start : start + shard] for start in range(0, len(wanted), shard)]
        assert count == len(wanted)
        assert (kept.get(uint(asked)) == values_of(uint(asked))).all()


def fill_together(rank, folder):
    """Two processes of which the second saw what another run wrote a moment ago; returns what each computed."""
    vault.SECONDS_TO_SHOW = 2
    kept = Vault(folder / "v", {})
    torch.distributed.barrier()
    if rank:
        kept.add(uint([0, 1]), values_of(uint([0, 1])))
        kept.refresh()
    wanted, computed = uint(range(10)), []

    def compute(places, advance):
        computed.extend(places.tolist())
        return values_of(wanted[places]), {}

    fill(kept, wanted, 2, compute, "Testing", "texts")
    assert (kept.get(wanted) == values_of(wanted)).all()
    return computed


def test_processes_that_see_different_shards_agree(tmp_path):
    """Another run may write to the folder while this one starts: all processes share out the same work, and none waits
    for a piece that nobody has.
    """
    first, second = run_distributed(fill_together, 2, tmp_path, tmp_path)
    assert set(first) | set(second) >= set(range(2, 10))
    assert not set(first) & set(second), "both computed the same"


@given(st.integers(0, 5_000), st.integers(1, 3_000), st.integers(1, 300), st.integers(1, 9))
def test_pieces_of_work(count, most, multiple, processes):
    size = unit_size(count, most, multiple, processes)
    assert size > 0
    assert size % multiple == 0, "a piece ends within a batch"
    assert size < most + multiple
    if count >= 4 * processes * multiple:
        assert -(-count // size) >= 2 * processes, "a process waits for the others without work"


# The folder


def test_a_run_folder_goes_at_the_end(tmp_path):
    work = work_folder(None, tmp_path / "out.jsonl")
    assert work == tmp_path / ".bgectl"
    (work / "kept").mkdir()
    with run_folder(work) as own:
        assert own.parent == work
        (own / "texts").write_text("x")
    assert {path.name for path in work.iterdir()} == {"kept", TAG_FILE, IGNORE_FILE}
    with pytest.raises(FileNotFoundError), run_folder(work) as own:
        (own / "nothing").read_text()
    assert {path.name for path in work.iterdir()} == {"kept", TAG_FILE, IGNORE_FILE}


def test_an_empty_work_folder_goes_too(tmp_path):
    work = work_folder(None, tmp_path / "out.jsonl")
    with run_folder(work):
        assert (work / TAG_FILE).read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55")
        assert (work / IGNORE_FILE).read_text() == "*\n"
    assert not work.exists()
    leave_if_empty(work)
    work = work_folder(None, tmp_path / "out.jsonl")
    (work / "note.txt").write_text("mine")
    leave_if_empty(work)
    assert (work / "note.txt").read_text() == "mine", "a file of the user's is deleted"


def test_where_the_work_folder_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for output, expected in (
        (Path("-"), tmp_path / ".bgectl"), (Path("out.jsonl"), Path(".bgectl")),
        (Path("/dev/null"), tmp_path / ".bgectl"), (tmp_path / "no" / "out.jsonl", tmp_path / ".bgectl"),
    ):  # fmt: skip
        assert work_folder(None, output).resolve() == expected.resolve()
    assert work_folder(tmp_path / "a" / "b", Path("-")) == tmp_path / "a" / "b"
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        work_folder(tmp_path / "file" / "b", Path("-"))


def hold(work, pipe):
    with run_folder(work) as own:
        (own / "texts").write_text("x")
        pipe.send(str(own))
        pipe.recv()


@pytest.fixture
def another_run(tmp_path):
    """A process that is in its run folder: (work folder, its run folder, its process, how to let it go on)."""
    work = work_folder(None, tmp_path / "out.jsonl")
    here, there = multiprocessing.Pipe()
    process = in_a_process(hold, work, there)
    assert here.poll(30)
    yield work, Path(here.recv()), process, here
    process.kill()
    process.join()


def test_what_a_killed_run_left_is_swept(another_run):
    work, left, process, _ = another_run
    process.kill()
    process.join()
    assert left.is_dir()
    with run_folder(work) as own:
        assert own != left
        assert not left.exists()
    assert not work.exists()


def test_another_runs_folder_is_kept(another_run):
    work, theirs, process, pipe = another_run
    with run_folder(work) as own:
        assert own != theirs
        assert (theirs / "texts").read_text() == "x", "the texts of a living run are deleted"
    assert (theirs / "texts").read_text() == "x"
    pipe.send("go on")
    process.join(30)
    assert process.exitcode == 0
    assert not work.exists()


def test_a_run_killed_before_it_locked_is_swept(tmp_path):
    """Between a folder and its lock there is a moment; what is left of it goes when it is old enough to be nobody's."""
    work = work_folder(None, tmp_path / "out.jsonl")
    old, young = work / "run-old", work / "run-young"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    with run_folder(work):
        assert not old.exists()
        assert young.exists(), "it may be another run's that is about to lock it"
