"""`bgectl translate`: what the shell's text, the launcher and the options become."""

import dataclasses
import json
import shlex
import subprocess

import pytest

from bgectl.options import MODELS
from bgectl.translate import flags
from bgectl.translate.run import run
from bgectl.translate.shell import commands_of, joined

TRAIN = ("--model_name_or_path m --train_data a b --output_dir o --query_max_len 32 --passage_max_len 128 "
         "--learning_rate 1e-5 --num_train_epochs 1 --per_device_train_batch_size 8 --warmup_ratio 0.1")  # fmt: skip
BASE = "-m FlagEmbedding.finetune.embedder.encoder_only.base"

SCRIPT = r"""#!/bin/bash
export WANDB_MODE=disabled

train_data="\
    ../data/retrieval \
    ../data/sts/sts.jsonl "

# large epochs for testing
num_train_epochs=4
num_gpus=2

if [ -z "$HF_HUB_CACHE" ]; then
    export HF_HUB_CACHE="$HOME/.cache/hub"
fi

model_args="\
    --model_name_or_path BAAI/bge-en-icl \
    --cache_dir $HF_HUB_CACHE \
    --additional_special_tokens '<instruct>' '<query>' '<response>' \
"

data_args="\
    --train_data $train_data \
    --cache_path ~/.cache \
    --query_max_len 512 \
    --passage_max_len 512 \
    --query_instruction_for_retrieval 'Given a query, what is relevant?' \
    --query_instruction_format '<instruct>{}\n<query>{}' \
    --icl_suffix_str '\n<response>' \
"

training_args="\
    --output_dir ./out \
    --learning_rate 1e-4 \
    --num_train_epochs $num_train_epochs \
    --per_device_train_batch_size 2 \
    --warmup_ratio 0.1 \
"

cmd="torchrun --nproc_per_node $num_gpus \
    -m FlagEmbedding.finetune.embedder.decoder_only.icl \
    $model_args \
    $data_args \
    $training_args \
"

echo $cmd
eval $cmd
"""


def only(*words):
    """The one line that the words become."""
    (line,), without = run(words)
    assert without == []
    return line


def pairs(line):
    return {part[0]: part[1:] for part in line.parts}


def test_a_script_as_flagembedding_ships_them(bgectl, tmp_path):
    """Variables in variables, `eval`, continued lines; `$HOME` is left to the shell, and pasted it is expanded."""
    done = bgectl("translate", "-", stdin=SCRIPT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "run.sh").write_text(done.stdout.replace("bgectl train icl", "printf '%s\\n'"))
    said = subprocess.run(
        ["sh", "run.sh"], cwd=tmp_path, env={"HOME": "/me"}, capture_output=True, text=True, timeout=9
    )
    words = said.stdout.split("\n")
    assert words[:4] == ["--gpus", "2", "--model-name-or-path", "BAAI/bge-en-icl"]
    assert words[words.index("--cache-dir") + 1] == "/me/.cache/hub"
    assert words[words.index("--cache-path") + 1] == "/me/.cache"
    assert words[words.index("--train-data") + 1 :][:2] == ["../data/retrieval", "../data/sts/sts.jsonl"]
    assert words[words.index("--query-instruction-for-retrieval") + 1] == "Given a query, what is relevant?"
    assert words[words.index("--query-instruction-format") + 1] == r"<instruct>{}\n<query>{}"
    assert words[words.index("--num-train-epochs") + 1] == "4"
    assert done.stdout.startswith("WANDB_MODE=disabled bgectl train icl \\\n  --gpus 2 \\\n")
    for said_too in ("HF_HUB_CACHE is set in a branch (line 13)", "$HOME is not known here", "is a newline here"):
        assert said_too in done.stderr


def test_the_three_ways_of_giving_it(bgectl, tmp_path):
    line = f"torchrun --nproc_per_node 2 {BASE} {TRAIN}"
    (tmp_path / "run.sh").write_text(line)
    given = [[line], ["--", *line.split()], line.split(), ["run.sh"], ["-"]]
    answers = [bgectl("translate", *words, cwd=tmp_path, stdin=line) for words in given]
    assert {done.returncode for done in answers} == {0}
    assert len({done.stdout for done in answers}) == 1
    assert shlex.split(answers[0].stdout.replace("\\\n", " "))[:5] == ["bgectl", "train", "base", "--gpus", "2"]


def test_json(inside):
    done = inside(
        "translate", "--format", "json", f"CUDA_VISIBLE_DEVICES=1 python {BASE} {TRAIN} --fp16 --cache_dir $HERE"
    )
    told = json.loads(done.stdout)
    assert told["command"][:5] == ["bgectl", "train", "base", "--model-name-or-path", "m"]
    assert told["command"][-2:] == ["--cache-dir", "$HERE"]
    assert told["environment"] == {"CUDA_VISIBLE_DEVICES": "1"}
    assert any("--fp16" in note for note in told["notes"])
    assert "note: --fp16" in done.stderr


@pytest.mark.parametrize(("launcher", "expected"), [
    ("torchrun", []),
    ("torchrun --standalone --nproc_per_node=4", ["--gpus", "4"]),
    ("python3 -u -m torch.distributed.run --nproc-per-node 4", ["--gpus", "4"]),
    ("python -m torch.distributed.launch --use_env --nproc_per_node 4", ["--gpus", "4"]),
    ("torchrun --nproc_per_node 8 --nnodes 2 --node_rank 1 --master_addr h0 --master_port 1234",
     ["--gpus", "8", "--nnodes", "2", "--node-rank", "1", "--rdzv-endpoint", "h0:1234"]),
    ("torchrun --nproc_per_node 8 --nnodes 2 --rdzv_backend c10d --rdzv_endpoint h0:99 --rdzv_id job --max_restarts 3",
     ["--gpus", "8", "--nnodes", "2", "--rdzv-endpoint", "h0:99", "--rdzv-id", "job", "--max-restarts", "3"]),
    ("deepspeed --num_gpus 2 --master_port 999", ["--gpus", "2"]),
    ("accelerate launch --num_processes 8 --num_machines 2 --machine_rank 0 --main_process_ip h0 "
     "--mixed_precision bf16",
     ["--gpus", "4", "--nnodes", "2", "--node-rank", "0", "--rdzv-endpoint", "h0:29500", "--bf16"]),
    ("nohup accelerate launch --num_processes 2 --use_deepspeed --zero_stage 1", ["--gpus", "2", "--deepspeed", "1"]),
])  # fmt: skip
def test_launchers(launcher, expected):
    line = only(f"{launcher} {BASE} {TRAIN}")
    words = line.words[3:]
    assert words[: words.index("--model-name-or-path")] == expected
    assert not [note for note in line.notes if note.startswith("left out")]


@pytest.mark.parametrize(("launcher", "said"), [
    ("torchrun --nproc_per_node gpu", "bgectl takes a number"),
    ("torchrun --nnodes 1:4 --rdzv_endpoint h0:1", "4 is taken"),
    ("torchrun --log_dir logs", "left out: --log_dir logs of the launcher"),
    ("deepspeed --hostfile hosts --num_gpus 2", "left out: --hostfile hosts; bgectl starts no other machine"),
    ("srun -N 2 torchrun", "left out: `srun -N 2`"),
    ("accelerate launch --config_file c.yaml", "left out: --config_file c.yaml of the launcher"),
])  # fmt: skip
def test_what_a_launcher_is_told_and_bgectl_is_not(launcher, said):
    assert any(said in note for note in only(f"{launcher} {BASE} {TRAIN}").notes)


def test_devices_of_deepspeed():
    line = only(f"deepspeed --include localhost:0,3 --module FlagEmbedding.BGE_M3.run {TRAIN}")
    assert line.environment == {"CUDA_VISIBLE_DEVICES": "0,3"}
    assert line.words[3:5] == ["--gpus", "2"]
    assert "is of an older FlagEmbedding" in line.notes[0]


@pytest.mark.parametrize(("head", "command"), [
    ("python hn_mine.py", "mine"),
    ("python FlagEmbedding/scripts/hn_mine.py", "mine"),
    ("python -m FlagEmbedding.baai_general_embedding.finetune.hn_mine", "mine"),
    ("python /x/scripts/add_reranker_score.py", "score"),
    ("torchrun -m FlagEmbedding.finetune.embedder.encoder_only.base", "train base"),
    ("torchrun -m FlagEmbedding.finetune.embedder.encoder_only.m3.__main__", "train m3"),
    ("torchrun FlagEmbedding/finetune/embedder/decoder_only/base/__main__.py", "train llm"),
    ("torchrun -m FlagEmbedding.finetune.embedder.decoder_only.icl", "train icl"),
    ("torchrun -m FlagEmbedding.baai_general_embedding.finetune.run", "train base"),
    ("torchrun -m FlagEmbedding.BGE_M3.run", "train m3"),
])  # fmt: skip
def test_heads(head, command):
    own = {"mine": "--input_file a --output_file b --embedder_name_or_path m",
           "score": "--input_file a --output_file b --reranker_name_or_path m"}.get(command, TRAIN)  # fmt: skip
    assert only(f"{head} {own}").command == command


@pytest.mark.parametrize(("theirs", "ours"), [
    ("--normlized False", ["--no-normalize-embeddings"]),
    ("--same_task_within_batch True", ["--same-dataset-within-batch"]),
    ("--sentence_pooling_method mean", ["--sentence-pooling-method", "mean"]),
    ("--save_strategy no", ["--save-steps", "0"]),
    ("--resume_from_checkpoint True", ["--resume", "auto"]),
    ("--resume_from_checkpoint o/checkpoint-5", ["--resume", "o/checkpoint-5"]),
    ("--fsdp 'full_shard auto_wrap'", ["--fsdp"]),
    ("--adam_beta2 0.98", ["--trainer", "adam_beta2=0.98"]),
    ("--max_grad_norm=0.5", ["--max-grad-norm", "0.5"]),
    ("--query_instruction_for_retrieval '- a: '", ["--query-instruction-for-retrieval=- a: "]),
    ("--passage_instruction_for_retrieval ''", ["--passage-instruction-for-retrieval", ""]),
])  # fmt: skip
def test_options_of_training(theirs, ours):
    assert ours in only(f"torchrun {BASE} {TRAIN} {theirs}").parts


@pytest.mark.parametrize(("theirs", "said"), [
    ("--enable_sub_batch True", "left out: --enable_sub_batch: a step is encoded in pieces"),
    ("--use_inbatch_neg False", "left out: --use_inbatch_neg: in-batch negatives are turned off"),
    ("--evaluation_strategy steps", "left out: --evaluation_strategy: --eval-data measures"),
    ("--learning_rat 1", "left out: --learning_rat: bgectl has no such option; did you mean `learning_rate`?"),
    ("--overwrite_output_dir", "--overwrite-output-dir: deletes what is in the output folder"),
    ("--negatives_cross_device", "--negatives-cross-device: the gradient is the exact one"),
])  # fmt: skip
def test_notes_on_options(theirs, said):
    assert any(note.startswith(said) for note in only(f"torchrun {BASE} {TRAIN} {theirs}").notes)


@pytest.mark.parametrize("quiet", [
    "--use_inbatch_neg True", "--negatives_cross_device False", "--do_train", "--evaluation_strategy no",
    "--save_strategy steps", "--enable_sub_batch False", "--use_fast_tokenizer True",
])  # fmt: skip
def test_what_loses_nothing_is_not_noted(quiet):
    assert only(f"torchrun {BASE} {TRAIN} {quiet}").notes == []


def test_their_defaults_are_said_where_they_are_not_ours():
    line = only("torchrun -m FlagEmbedding.finetune.embedder.encoder_only.m3 --model_name_or_path m --train_data a "
                "--output_dir o --warmup_steps 5")  # fmt: skip
    said = pairs(line)
    assert said == {
        "--model-name-or-path": ["m"], "--train-data": ["a"], "--output-dir": ["o"], "--warmup-steps": ["5"],
        "--query-max-len": ["32"], "--passage-max-len": ["128"], "--learning-rate": ["5e-5"],
        "--num-train-epochs": ["3"], "--per-device-train-batch-size": ["8"], "--no-unified-finetuning": [],
    }  # fmt: skip
    assert any("FlagEmbedding's defaults" in note for note in line.notes)


@pytest.mark.parametrize(("module", "command"), [
    ("encoder_only.base", "train base"), ("encoder_only.m3", "train m3"), ("decoder_only.base", "train llm"),
    ("decoder_only.icl", "train icl"),
])  # fmt: skip
def test_no_default_of_theirs_is_forgotten(module, command):
    """Each option of the installed FlagEmbedding that bgectl has: the default is ours, is added, or costs nothing."""
    finetune = pytest.importorskip(f"FlagEmbedding.finetune.embedder.{module}")
    from FlagEmbedding.abc.finetune import embedder
    from transformers import TrainingArguments

    common = {field.name for field in dataclasses.fields(TrainingArguments)}
    classes = [getattr(source, name) for source in (embedder, finetune) for name in dir(source)
               if name.endswith("Arguments")]  # fmt: skip
    classes = [cls for cls in classes if dataclasses.is_dataclass(cls)]
    fields = {field.name: field for cls in classes for field in dataclasses.fields(cls) if field.name not in common}
    ours = MODELS[command]().model_construct().model_dump(mode="json", warnings=False)
    unlimited = ("", None, [], 100000000)
    apart = {
        # Taken from the model's files; FlagEmbedding's `cls` is meant for those that have none.
        "sentence_pooling_method",
        "token",
        # Listed in another order.
        "target_modules",
    }
    if command == "train icl":
        # Examples come from the step's other rows: always on, here and there.
        apart.add("same_dataset_within_batch")
    if command == "train m3":
        apart.add("unified_finetuning")
    checked = 0
    for name, field in fields.items():
        if name not in ours or name in apart or name in flags.THEIRS or field.default is dataclasses.MISSING:
            continue
        theirs, own = field.default, ours[name]
        assert own == theirs or (theirs in unlimited and own in unlimited) or not (own or theirs), name
        checked += 1
    assert checked > 20
    assert {name: str(fields[name].default) for name in ("query_max_len", "passage_max_len")} == {
        name: flags.THEIRS[name] for name in ("query_max_len", "passage_max_len")
    }
    for name in ("learning_rate", "num_train_epochs", "per_device_train_batch_size"):
        assert float(flags.THEIRS[name]) == TrainingArguments.__dataclass_fields__[name].default


def test_arguments_of_transformers_are_known_to_it():
    from transformers import TrainingArguments

    from bgectl.train.arguments import OWN_WORK

    known = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    assert known >= flags.TRAINER
    assert set(OWN_WORK) - {"use_cpu"} <= set(flags.LEFT_OUT)
    for command in ("train base", "train icl"):
        assert not flags.TRAINER & set(MODELS[command]().model_fields)


def test_options_of_mining_and_scoring():
    files = "--input_file a --output_file b"
    old = "python -m FlagEmbedding.baai_general_embedding.finetune.hn_mine --model_name_or_path m"
    mined = pairs(only(f"{old} {files} --range_for_sampling 2-200 --use_gpu_for_searching"))
    assert mined["--embedder-name-or-path"] == ["m"]
    assert (mined["--range"], mined["--use-gpu-for-searching"]) == (["2-200"], [])
    teacher = "--reranker_name_or_path m --devices 0 1 --use_bf16 True --cutoff_layers 28"
    scored = pairs(only(f"python add_reranker_score.py {files} {teacher}"))
    assert (scored["--devices"], scored["--cutoff-layers"]) == (["cuda:0", "cuda:1"], ["28"])
    assert scored["--use-bf16"] == []


@pytest.mark.parametrize(("module", "said"), [
    ("FlagEmbedding.finetune.reranker.encoder_only.base", "bgectl fine-tunes embedders, not rerankers"),
    ("FlagEmbedding.reranker.run", "bgectl fine-tunes embedders, not rerankers"),
    ("FlagEmbedding.evaluation.beir", "`bgectl eval` measures on your own data"),
])  # fmt: skip
def test_without_a_counterpart(inside, module, said):
    done = inside("translate", f"torchrun --nproc_per_node 2 -m {module} --x 1")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"error: {module}: {said}" in done.stderr


def test_of_several_commands_those_that_can_be_are_translated(inside):
    script = f"""
        cd examples
        python hn_mine.py --input_file a --output_file b --embedder_name_or_path m && torchrun {BASE} {TRAIN}
        torchrun -m FlagEmbedding.reranker.run
    """
    done = inside("translate", script)
    assert done.returncode == 1
    first, second = done.stdout.split("\n\n")
    assert first.startswith("bgectl mine ")
    assert second.startswith("bgectl train base ")
    assert "the script works in `examples`" in done.stderr
    assert "error: FlagEmbedding.reranker.run: " in done.stderr


@pytest.mark.parametrize(("text", "said"), [
    ("ls -l", "no command of FlagEmbedding found"),
    ("", "no command of FlagEmbedding found"),
    (f"torchrun {BASE} --output_dir 'o", "line 1: a quote ' is not closed"),
    (f"torchrun {BASE} --output_dir o", "--model-name-or-path is required"),
    (f"torchrun {BASE} {TRAIN} --train_group_size eight", "--train-group-size: is not a whole number (given: 'eight')"),
    (f"torchrun {BASE} {TRAIN} --train_group_size $N", "--train-group-size: is not a whole number (given: '$N')"),
    (f"torchrun {BASE} {TRAIN} --fp16 maybe", "--fp16: takes True or False (given: 'maybe')"),
    (f"torchrun {BASE} {TRAIN} --seed 1 2", "--seed takes one value (given: '1 2')"),
    (f"torchrun {BASE} {TRAIN} --fp16 --bf16", "--bf16 and --fp16 exclude each other"),
])  # fmt: skip
def test_what_cannot_be_translated(inside, text, said):
    done = inside("translate", text)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr


@pytest.mark.parametrize(("script", "words"), [
    ("python x \\\n  a # b\nno", ["python x a", "no"]),
    ("python x\n  --a b\n\n--c d\npython y", ["python x --a b --c d", "python y"]),
    ("X=1; python $X ${X}0 '$X' \"$X y\" \\$X", ["python 1 10 '$X' '1 y' '$X'"]),
    ("A='a b'\npython $A \"$A\"", ["python a b 'a b'"]),
    ("A=a\nA+=b; python $A", ["python ab"]),
    ("L=(--a 'b c')\nL+=(d)\npython \"${L[@]}\" ${#L[@]}", ['python --a \'b c\' d "${#L[@]}"']),
    ("python ${N:-8} ${M:=x y}", ["python 8 x y"]),
    ("python $(date +%s) `hostname` $1 $HOME/x ~/y a~b", [
        'python "$(date +%s)" "$(hostname)" "$1" "$HOME"/x "$HOME"/y \'a~b\'',
    ]),
    ("python data/*.jsonl '*'", ["python data/*.jsonl '*'"]),
    ("bash -c 'python \"a b\"'", ["python 'a b'"]),
    ("cat <<EOF > f\npython no\nEOF\npython yes", ["cat", "python yes"]),
    ("for i in 1 2; do\npython $i\ndone", ['python "$i"']),
    ("python '' a", ["python '' a"]),
    ("python a\r\npython b\r\n", ["python a", "python b"]),
    ("python a 2>&1 | tee l; python b >o &", ["python a", "tee l", "python b"]),
    ("python a#b $'x\\ny'", ["python 'a#b' 'x\ny'"]),
])  # fmt: skip
def test_the_shells_text(script, words):
    assert [joined(command.words) for command in commands_of(script)] == words


def test_exports_and_variables_before_a_command():
    (command,) = commands_of("export A=1 B='x y'\nC=2\nexport C D=$A\nE=3 python run")
    assert command.environment == {"E": "3", "B": "x y", "C": "2", "D": "1"}
    assert command.notes == ["the script also exports A=1"]
