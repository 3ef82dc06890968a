"""The forms a command line may have."""

from pathlib import Path

import pytest

from bgectl.errors import UsageError

MINE = ("--embedder-name-or-path", "model")
TRAIN = ("--model", "model", "--output-dir", "out")


@pytest.mark.parametrize("words", [
    ("--train-data", "a", "b", "c"),
    ("--train_data", "a", "b", "c"),
    ("--train-data", "a", "--train-data", "b", "c"),
    ("-t", "a", "-tb", "--train_data=c"),
    ("--train-data=a", "--train-data", "b", "--use-cpu", "-t", "c"),
])  # fmt: skip
def test_lists_take_several_values_or_the_flag_again(options_of, words):
    assert options_of("train base", *TRAIN, *words).train_data == [Path("a"), Path("b"), Path("c")]


@pytest.mark.parametrize(("words", "value"), [
    (("--normalize-embeddings",), True),
    (("--no-normalize-embeddings",), False),
    (("--no_normalize_embeddings",), False),
    (("--normalize_embeddings", "True"), True),
    (("--normalize_embeddings", "False"), False),
    (("--normalize-embeddings=false",), False),
    (("--normalize-embeddings", "0"), False),
    (("--no-normalize-embeddings", "--normalize-embeddings"), True),
    ((), True),
])  # fmt: skip
def test_switches(options_of, words, value):
    assert options_of("train base", *TRAIN, "--train-data", "a", *words).normalize_embeddings is value


@pytest.mark.parametrize(
    "words", [("-n", "7"), ("-n7",), ("-n=7",), ("--negative-number=7",), ("--negative_number", "7")]
)
def test_short_flags(options_of, words):
    assert options_of("mine", "in", "out", *MINE, *words).negative_number == 7


def test_other_names(options_of):
    mined = options_of("mine", "--input_file", "in", "--output_file", "out", *MINE, "--range_for_sampling", "2-200")
    assert (mined.input_file, mined.output_file, mined.range) == (Path("in"), Path("out"), "2-200")


def test_negative_numbers_are_values(options_of):
    assert options_of("train base", *TRAIN, "-t", "a", "--max-steps", "-1").max_steps == -1


@pytest.mark.parametrize("text", ["", "-", "--", "-n", "--- ", "-1", "a b", "query: ", "-i like", "{}"])
def test_any_text_is_a_value(options_of, text):
    words = [f"--query-instruction-for-retrieval={text}"]
    assert options_of("train base", *TRAIN, "-t", "a", *words).query_instruction_for_retrieval == text
    assert options_of("train base", *TRAIN, "-t", "a", *words[0].split("=", 1)).query_instruction_for_retrieval == text


def test_a_list_ends_where_its_values_do(options_of):
    mined = options_of("mine", *MINE, "--devices", "cuda:0", "cuda:1", "in.jsonl", "out.jsonl")
    assert (mined.devices, mined.input_file, mined.output_file) == (
        ["cuda:0", "cuda:1"], Path("in.jsonl"), Path("out.jsonl"),
    )  # fmt: skip
    judged = options_of("eval", "--eval-data", "data", "--cutoffs", "5", "20", "one", "two")
    assert (judged.cutoffs, judged.model_name_or_path) == ([5, 20], ["one", "two"])


def test_words_after_two_dashes_are_arguments(options_of):
    assert options_of("mine", *MINE, "--", "--in", "-o").input_file == Path("--in")


def test_stdin_is_an_argument(options_of):
    assert options_of("data validate", "-", "b").paths == [Path("-"), Path("b")]


def test_arguments_fill_what_flags_left(options_of):
    mined = options_of("mine", *MINE, "--input-file", "in", "out")
    assert (mined.input_file, mined.output_file) == (Path("in"), Path("out"))


def problem(options_of, command, *words):
    with pytest.raises(UsageError) as caught:
        options_of(command, *words)
    return str(caught.value)


def test_missing_options_are_named_all_at_once(options_of):
    said = problem(options_of, "mine")
    for name in ("--embedder-name-or-path is required", "(or --input-file) is required", "(or --output-file) is"):
        assert name in said


def test_bad_values_are_named_all_at_once(options_of):
    words = ["--range", "9-3", "-n", "0", "--seed", "x", "--pooling-method", "meen", "--search-batch-size", "1.5"]
    said = problem(options_of, "mine", "in", "out", *MINE, *words)
    for part in ("--range: the first rank must be below the second (given: '9-3')",
                 "--negative-number: must be 1 or more (given: '0')",
                 "--seed: is not a whole number (given: 'x')",
                 "--pooling-method: is not one of cls, mean, last_token (given: 'meen')",
                 "--search-batch-size: is not a whole number (given: '1.5')"):  # fmt: skip
        assert part in said


@pytest.mark.parametrize(("words", "said"), [
    (["--sed", "3"], "no such option: --sed; did you mean `--seed`?"),
    (["--embedder-name", "x"], "no such option: --embedder-name; did you mean `--embedder-name-or-path`?"),
    (["-seed", "3"], "did you mean `--seed`?"),
    (["--seed"], "--seed needs a value"),
    (["--range", "--seed", "3"], "--range needs a value; if that is the text, write --range=--seed"),
    (["--use-fp16=maybe"], "--use-fp16: takes True or False (given: 'maybe')"),
    (["--no-use-fp16=True"], "--no-use-fp16 takes no value"),
    (["c"], "unexpected argument 'c'"),
    (["--candidate-pool="], "--candidate-pool: is empty"),
])  # fmt: skip
def test_what_is_wrong_with_a_command_line(options_of, words, said):
    assert said in problem(options_of, "mine", *MINE, "in", "out", *words)


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1", "warm"])
def test_a_temperature_is_a_positive_number(options_of, value):
    assert "--temperature: " in problem(options_of, "train base", *TRAIN, "-t", "a", "--temperature", value)


def test_help_wins_over_mistakes(bgectl):
    assert bgectl("mine", "--sed", "3", "--help").returncode == 0
