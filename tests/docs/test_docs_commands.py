"""Every command that the README and the documentation show is run, on tiny models and few rows.

Or it stands in a table that says why not; then at least its options are read. Errors that are shown are those that are
printed.
"""

import itertools
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import shown
from forked import make_cross_encoder, make_m3, quick_collections

from bgectl.options import MODELS
from bgectl.options.base import flag_of
from bgectl.options.describe import EVERY_COMMAND

NOT_RUN = {
    "pip install": "changes the environment that the tests run in",
    "make ": "made of other programs; `make docs` has a test of its own, `make demo` is example_data/demo.py",
    ".venv/bin/python benchmarks/": "minutes beside other tools, which it installs",
    "ln -s ": "tiny models stand in for the package's",
    "sbatch ": "there is no SLURM",
    "srun ": "there is no SLURM",
    "kubectl ": "there is no Kubernetes",
    "torchrun ": "several machines",
    "docker ": "there is no Docker",
    "vllm serve": "there is no vLLM",
    "curl ": "there is no server",
    "bgectl push finetuned your-name/your-model --license": "there is no hub",
    "bgectl --install-completion": "changes the files that a shell starts with",
}  # fmt: skip
"""Beginnings of commands that are not run, and why."""

NOT_RUN_WITH = {"--nnodes": "several machines"}
"""Options of commands that are not run, and why."""

NOT_RUN_HOLDING = {"--preset bge-": "the preset names a model of the hub", "--from datasets": "there is no hub"}
"""Parts of commands that are not run, and why."""

SLOW = {
    "docs/scaling.md",
    "docs/how-to/distil.md",
    "docs/how-to/icl.md",
    "docs/how-to/gemma.md",
    "docs/how-to/merge.md",
    "docs/llm.md",
}
"""Pages whose commands together take longest."""

DROPPED = {
    "--gpus": 1, "--nproc": 1, "--bf16": 0, "--fp16": 0, "--deepspeed": 1, "--fsdp": 0, "--devices": None,
    "--device": 1, "--optim": 1, "--attn-implementation": 1, "--torch-compile": 0, "--use-gpu-for-searching": 0,
}  # fmt: skip
"""Options that want GPUs or several processes, and how many words follow them (None: all up to the next option)."""

AS_THEY_STAND = {"docs/troubleshooting.md"}
"""Pages that show what happens with such options on a machine without a GPU: their commands keep them."""

IN_TWO = {"docs/scaling.md", "docs/how-to/gemma.md"}
"""Pages whose commands for several GPUs are run in two processes of a CPU."""


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Many short runs."""
    with quick_collections():
        yield


@pytest.fixture(scope="module")
def stand_ins(tiny_bert, tiny_xlmr, tiny_words, decoders, tmp_path_factory):
    """What each model of the documentation is in the tests."""
    folder = tmp_path_factory.mktemp("stand-ins")
    judge = make_cross_encoder(tiny_bert, folder / "judge")
    return {
        "BAAI/bge-small-en-v1.5": tiny_bert, "BAAI/bge-base-en-v1.5": tiny_bert, "BAAI/bge-large-en-v1.5": tiny_bert,
        "BAAI/bge-m3": make_m3(tiny_xlmr, folder / "m3"), "BAAI/bge-multilingual-gemma2": decoders["gemma2"],
        "BAAI/bge-en-icl": decoders["mistral"], "BAAI/bge-reranker-v2-m3": judge, "BAAI/bge-reranker-base": judge,
        "BAAI/bge-reranker-v2-gemma": make_language_model(tiny_words, folder / "gemma"),
    }  # fmt: skip


def make_language_model(words, folder):
    """A random Gemma 2 that gives logits of words."""
    import torch
    from decoders import tokenizer_of
    from transformers import Gemma2Config, Gemma2ForCausalLM

    tokenizer = tokenizer_of("gemma2", words)
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, intermediate_size=64, max_position_embeddings=1024, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def first_rows(path, count):
    """The first rows of a file."""
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in itertools.islice(stream, count)]


def write(path, rows):
    """Rows to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


BAD = """{"query": "a", "pos": "one text"}
{"query": "b", "pos": ["x"], "neg": ["x"]}
{"query": "c", "pos": ["y"] "neg": []}
"""


def make_work(folder, models):
    """The working directory that the pages assume: example_data, smaller, and files of the usual names."""
    source = shown.ROOT / "example_data"
    for path in sorted(source.glob("*/*.jsonl")):
        count = 40 if path.parent.name == "eval" else 4
        write(folder / "example_data" / path.parent.name / path.name, first_rows(path, count))
    # Of the judgments those whose passage is still there.
    passages = {row["_id"] for row in first_rows(folder / "example_data/eval/corpus.jsonl", 40)}
    queries = {row["_id"] for row in first_rows(folder / "example_data/eval/queries.jsonl", 40)}
    head, *lines = (source / "eval/qrels/test.tsv").read_text().splitlines()
    kept = [line for line in lines if line.split("\t")[0] in queries and line.split("\t")[1] in passages]
    if not kept:
        kept = [f"{sorted(queries)[0]}\t{sorted(passages)[0]}\t1"]
    (folder / "example_data/eval/qrels").mkdir()
    (folder / "example_data/eval/qrels/test.tsv").write_text("\n".join([head, *kept]) + "\n")
    rows = [row for path in sorted((folder / "example_data/retrieval").glob("*.jsonl")) for row in first_rows(path, 4)]
    draw = random.Random(0)
    scored = [{**row, "pos_scores": [5.0] * len(row["pos"]), "neg_scores": [draw.uniform(-5, 5) for _ in row["neg"]]}
              for row in rows]  # fmt: skip
    write(folder / "train.jsonl", rows)
    write(folder / "mined.jsonl", rows)
    write(folder / "scored.jsonl", scored)
    write(folder / "toy_finetune_data.jsonl", rows)
    write(folder / "corpus.jsonl", first_rows(folder / "example_data/eval/corpus.jsonl", 40))
    write(folder / "pairs.jsonl", [{**row, "neg": []} for row in rows[:2]])
    (folder / "bad.jsonl").write_text(BAD)
    shutil.copytree(folder / "example_data/eval", folder / "eval")
    (folder / "minilm").symlink_to(models["BAAI/bge-small-en-v1.5"])


def flag_names(words):
    """Each option of a command line under its own name, `--x=y` taken apart; underscores are hyphens."""
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            yield flag.replace("_", "-")
            if equals:
                yield value
        else:
            yield word


def fitted(words, models, several=False):
    """The words of a shown command as they are run here: tiny models, few steps, one process or two."""
    kept, place = [], 0
    words = [models.get(word, word) for word in flag_names(words)]
    if several and "--gpus" in words:
        kept = words[: words.index("--gpus")] + words[words.index("--gpus") + 2 :]
        kept += ["--nproc", "2", "--devices" if words[0] in ("mine", "score") else "--device", "cpu"]
        place = len(words)
    while place < len(words):
        follows = DROPPED.get(words[place], -1)
        if follows == -1:
            kept.append(words[place])
            place += 1
            continue
        place += 1
        while follows is None and place < len(words) and not words[place].startswith("-"):
            place += 1
        place += follows or 0
    if kept[0] == "train":
        kept += ["--dataloader-num-workers", "0"]
        kept += [] if {"--max-steps", "--dry-run", "--print-config"} & set(kept) else ["--max-steps", "2"]
    return kept


def reason_not_run(text):
    """Why a command is not run; None where it is."""
    by_head = (why for head, why in NOT_RUN.items() if text.startswith(head))
    words = set(flag_names(text.split()))
    by_option = (why for option, why in NOT_RUN_WITH.items() if option in words and "bgectl " in text)
    by_part = (why for part, why in NOT_RUN_HOLDING.items() if part in text and text.startswith("bgectl "))
    return next(itertools.chain(by_head, by_option, by_part), None)


def with_stand_ins(text, models):
    """A text with the names of models replaced."""
    for name, path in models.items():
        text = re.sub(rf"{re.escape(name)}(?![\w.-])", path, text)
    return text


SAID = ("error: ", "hint: ")


def check_said(command, printed, models):
    """Errors and hints that are shown are printed; `…` stands for anything."""
    flat = " ".join(printed.split())
    for line in command.output:
        if line.strip().startswith(SAID):
            wanted = re.escape(with_stand_ins(" ".join(line.split()), models)).replace("…", ".+")
            assert re.search(wanted, flat), f"{command.where}\nshown: {line}\nprinted: {printed}"


def expected_code(command, after):
    """The codes that a command may end with: what `echo $?` under it shows, else 0, or not where an error is shown."""
    if after is not None and after.text == "echo $?":
        return {int(after.output[0])}
    return {1, 2} if any(line.startswith("error: ") for line in command.output) else {0}


def run_command(command, models, inside, bgectl, folder, *, as_it_stands, several):
    """Run it; returns its exit code and all it printed.

    Args:
        command: See `Shown`.
        models: See `stand_ins`.
        inside: Runs bgectl in this process.
        bgectl: Runs it in one of its own, in the working directory.
        folder: The working directory.
        as_it_stands: Keep options that want GPUs.
        several: Run what is for several GPUs in two processes.
    """
    simple = re.match(r"^bgectl [^|<>$();&]*$", re.sub(r"'[^']*'", "''", command.text))
    words = shown.bgectl_words(command.text)
    if simple and words and words[0] in {name.split()[0] for name in MODELS}:
        kept = [models.get(word, word) for word in words] if as_it_stands else fitted(words, models, several)
        # A command with several processes replaces its own by a launcher.
        done = (bgectl if {"--gpus", "--nproc"} & set(kept) else inside)(*kept)
        return done.returncode, done.stdout + done.stderr
    redirected = re.match(r"^(bgectl [^|<>$();&]*) > (\S+)$", command.text)
    if redirected:
        done = inside(*fitted(shown.bgectl_words(redirected[1]), models))
        Path(redirected[2]).write_text(done.stdout)
        return done.returncode, done.stderr
    text = with_stand_ins(command.text, models)
    environment = {**os.environ, "PATH": f"{folder.parent / 'bin'}:{os.environ['PATH']}", "HOME": str(folder)}
    done = subprocess.run(
        ["bash", "-c", text], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    return done.returncode, done.stdout + done.stderr


def make_program(folder):
    """`bgectl` and `python` for what a shell runs."""
    folder.mkdir()
    for name, words in (("bgectl", "-m bgectl "), ("python", "")):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words}"$@"\n')
        program.chmod(0o755)


PAGES = [
    pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else [])
    for page in shown.pages()
    if any(block.language == "console" for block in shown.blocks(page))
]


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_run(page, stand_ins, inside, bgectl, tmp_path, monkeypatch):
    """In the order in which they stand, in one folder; files that a page shows are written to it."""
    folder = tmp_path / "work"
    folder.mkdir()
    make_program(tmp_path / "bin")
    make_work(folder, stand_ins)
    for name in MADE_BEFORE.get(page, ()):
        shutil.copytree(stand_ins["BAAI/bge-small-en-v1.5"], folder / name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    for block in shown.blocks(page):
        if block.title:
            Path(block.title).write_text(with_stand_ins(block.text, stand_ins))
        listed = shown.commands(block) if block.language == "console" else []
        for command, after in itertools.zip_longest(listed, listed[1:]):
            if command.text == "echo $?" or reason_not_run(command.text):
                continue
            code, printed = run_command(
                command, stand_ins, inside, bgectl, folder, as_it_stands=page in AS_THEY_STAND, several=page in IN_TWO
            )
            assert code in expected_code(command, after), f"{command.where}\nended with {code}:\n{printed[-3000:]}"
            check_said(command, printed, stand_ins)


MADE_BEFORE = {
    "docs/how-to/evaluate.md": ["tuned"], "docs/m3.md": [],
}  # fmt: skip
"""Models that a page takes as given."""


@pytest.mark.parametrize("page", shown.pages())
def test_options_of_shown_commands_exist(page, inside, tmp_path, monkeypatch):
    """As they are shown, also those of scripts and of what is not run here."""
    monkeypatch.chdir(tmp_path)
    for block in shown.blocks(page):
        if block.title.endswith((".yaml", ".jsonl")):
            Path(block.title).write_text(block.text)
    for where, text in bgectl_lines(page):
        words = shown.bgectl_words(text)
        assert words is not None, f"{where}: {text}"
        if not words or words[0].startswith("-"):
            continue
        assert words[0] in {name.split()[0] for name in MODELS}, f"{where}: no such command: {text}"
        if words[0] in ("init", "schema") or fails_as_shown(page, text):
            continue
        done = inside(*words, "--print-config")
        assert done.returncode == 0, f"{where}: {text}\n{done.stderr}"


def fails_as_shown(page, text):
    """Whether the page shows that this command line is refused; the other test looks at that."""
    return any(
        command.text == text and any(line.startswith("error: ") for line in command.output)
        for block in shown.blocks(page) if block.language == "console" for command in shown.commands(block)
    )  # fmt: skip


VARIABLES = {
    "SLURM_JOB_ID": "17", "SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "8", "JOB_COMPLETION_INDEX": "0", "head": "node0",
}  # fmt: skip
"""Values for the variables of shown scripts."""


def bgectl_lines(page):
    """(place, command line) of each call of bgectl that a page shows: in consoles, scripts and YAML."""
    for block in shown.blocks(page):
        if block.language == "console":
            lines = [command.text for command in shown.commands(block)]
        elif block.language in ("bash", "yaml", "sh"):
            lines = [re.sub(r"\$\{?(\w+)\}?", lambda name: VARIABLES.get(name[1], ""), line.replace("$?", ""))
                     for line in shown.joined_lines(block.text)]  # fmt: skip
        else:
            continue
        for line in lines:
            if re.search(r"(^|[\s(|])bgectl ", line) and not line.startswith(("pip ", "#", "-", "image")):
                yield block.where, line


def test_what_is_not_run_is_shown_somewhere():
    """The tables hold nothing that no page shows any more."""
    texts = [
        command.text for page in shown.pages() for block in shown.blocks(page) if block.language == "console"
        for command in shown.commands(block)
    ]  # fmt: skip
    scripts = [block.text for page in shown.pages() for block in shown.blocks(page) if block.language == "bash"]
    for head in NOT_RUN:
        assert any(text.startswith(head) for text in texts) or any(head in text for text in scripts), head
    for option in (*NOT_RUN_WITH, *NOT_RUN_HOLDING):
        assert any(option in text for text in texts), option


FOREIGN = {
    "--nproc-per-node", "--nnodes", "--ntasks-per-node", "--job-name", "--nodes", "--gpus-per-node", "--cpus-per-task",
    "--time", "--signal", "--requeue", "--rdzv-backend", "--gpus", "--model-id", "--default-prompt-name", "--runner",
    "--port", "--version", "--install-completion", "--show-completion", "--help", "--large", "--prefix", "--pooling",
    "--flag", "--no-flag", "--embeder-name-or-path", "--normlized", "--same-task-within-batch", "--enable-sub-batch",
    "--num-gpus", "--module", "--sed", "--input-path", "--keep",
}  # fmt: skip
"""Flags of other programs, of the program itself, and of examples."""


def test_every_flag_in_the_text_exists():
    """A flag that is told of anywhere is one of some command."""
    known = FOREIGN | {option.flag for option in EVERY_COMMAND}
    for load in MODELS.values():
        for name, field in load().model_fields.items():
            own = {f"--{name.replace('_', '-')}", *(alias for alias in flag_of(field).names if alias.startswith("--"))}
            known |= own | {f"--no-{flag[2:]}" for flag in own}
    for page in shown.pages():
        text = (shown.ROOT / page).read_text(encoding="utf-8")
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", text):
            assert flag.replace("_", "-") in known, f"{page}: no command has {flag}"


PROGRAMS = [
    pytest.param(block, id=block.where, marks=[pytest.mark.slow] if "FlagEmbedding" in block.text else [])
    for page in shown.pages() for block in shown.blocks(page) if block.language == "python"
]  # fmt: skip


@pytest.mark.parametrize("block", PROGRAMS)
def test_programs_run(block, minilm, tmp_path, inside, write_rows):
    """Python that a page shows, with a model that `train base` made as the page says."""
    rows = [{"query": "ka", "pos": ["lo"], "neg": ["mi"]}, {"query": "ru", "pos": ["te"], "neg": ["vo"]}]
    done = inside(
        "train", "base", "--model", minilm, "-t", write_rows(rows), "-o", tmp_path / "tuned", "--max-steps", "1",
        "--query-instruction-for-retrieval", "Represent this sentence for searching relevant passages: ",
        "--dataloader-num-workers", "0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-c", block.text + "\nprint(scores)"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "[" in done.stdout
