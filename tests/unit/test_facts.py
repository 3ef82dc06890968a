"""Pooling, normalisation and prompts: the user, then the model's files, then its name, then the defaults."""

import json

import pytest

from bgectl.errors import DataError, RunError
from bgectl.models.facts import BGE_EN, embedder_facts, known_facts
from bgectl.models.hub import Hub, check_model_name, model_file

OLD = "sentence_transformers.models."
NEW = "sentence_transformers.base.modules."


@pytest.fixture
def model(tmp_path):
    """A folder with the files of sentence-transformers' layout."""

    def make(kinds=("Transformer", "Pooling", "Normalize"), prefix=OLD, pooling=None, general=None, length=None,
             name="model"):  # fmt: skip
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        modules = [
            {"idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_{kind}", "type": prefix + kind}
            for i, kind in enumerate(kinds)
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling/config.json").write_text(json.dumps(pooling or {"pooling_mode_mean_tokens": True}))
        if general is not None:
            (folder / "config_sentence_transformers.json").write_text(json.dumps(general))
        if length:
            (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
        return str(folder)

    return make


def facts(name, **given):
    return embedder_facts(name, Hub(), **given)


@pytest.mark.parametrize("prefix", [OLD, NEW])
@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}, "last_token"),
        ({"pooling_mode": "cls", "embedding_dimension": 4}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last_token"),
    ],
)
def test_pooling_in_old_and_new_form(prefix, config, pooling, model):
    found = facts(model(prefix=prefix, pooling=config))
    assert (found.pooling, found.sources["pooling"]) == (pooling, "model files")


@pytest.mark.parametrize(
    "config", [{"pooling_mode": "max"}, {"pooling_mode_max_tokens": True}, {},
               {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}]
)  # fmt: skip
def test_other_poolings_are_refused(config, model):
    with pytest.raises(RunError, match="pools by"):
        facts(model(pooling=config or {"pooling_mode_cls_token": False}))


def test_files_of_the_installed_sentence_transformers(minilm, tmp_path):
    """Whatever form the release at hand writes."""
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(minilm, device="cpu", prompts={"query": "q: ", "document": "d: "})
    theirs.max_seq_length = 77
    theirs.save(str(tmp_path / "saved"))
    found = facts(str(tmp_path / "saved"))
    assert (found.pooling, found.normalize, found.query_prompt, found.passage_prompt) == ("mean", True, "q: ", "d: ")
    assert found.max_length == 77


def test_a_layer_that_would_be_left_out_is_refused(model):
    with pytest.raises(RunError, match="Dense"):
        facts(model(("Transformer", "Pooling", "Dense", "Normalize")))


@pytest.mark.parametrize(
    ("kinds", "similarity", "normalize"),
    [
        (("Transformer", "Pooling", "Normalize"), "cosine", True), (("Transformer", "Pooling"), "cosine", True),
        (("Transformer", "Pooling"), None, True), (("Transformer", "Pooling"), "dot", False),
        (("Transformer", "Pooling", "Normalize"), "dot", True),
    ],
)  # fmt: skip
def test_normalisation(kinds, similarity, normalize, model):
    assert facts(model(kinds, general={"similarity_fn_name": similarity})).normalize is normalize


def test_the_user_wins_over_the_files_and_they_over_the_name(model):
    folder = model(pooling={"pooling_mode": "mean"}, general={"prompts": {"query": "f: "}}, name="bge-small-en-v1.5")
    found = facts(folder)
    assert (found.pooling, found.query_prompt) == ("mean", "f: ")
    found = facts(folder, pooling="last_token", query_prompt="", normalize=False, passage_prompt=None)
    assert (found.pooling, found.query_prompt, found.normalize) == ("last_token", "", False)
    assert {found.sources[key] for key in ("pooling", "query_prompt", "normalize")} == {"option"}


@pytest.mark.parametrize("prompts", [{}, {"query": "", "document": ""}, {"query": None}])
def test_empty_prompts_are_filled_from_the_name(prompts, model):
    found = facts(model(general={"prompts": prompts}, name="BGE-large-en"))
    assert (found.query_prompt, found.sources["query_prompt"]) == (BGE_EN, "known for its name")
    assert found.passage_prompt == ""


@pytest.mark.parametrize("key", ["document", "passage", "corpus"])
def test_names_of_the_passage_prompt(key, model):
    assert facts(model(general={"prompts": {key: "p: "}})).passage_prompt == "p: "


@pytest.mark.parametrize(
    ("name", "pooling", "query"),
    [
        ("BAAI/bge-base-en-v1.5", "cls", BGE_EN), ("BAAI/bge-m3", "cls", None), ("BAAI/bge-m3-retromae", "cls", None),
        ("intfloat/multilingual-e5-small", "mean", "query: "), ("intfloat/e5-base-v2", "mean", "query: "),
        ("sentence-transformers/all-MiniLM-L6-v2", "mean", None), ("/x/all-mpnet-base-v2", "mean", None),
        ("me/my-bge-base-en", None, None), ("bert-base-uncased", None, None),
    ],
)  # fmt: skip
def test_known_names(name, pooling, query):
    found = known_facts(name)
    assert (found.get("pooling"), found.get("query_prompt")) == (pooling, query)


def test_length(model):
    assert facts(model(length=256)).max_length == 256


def test_folder_without_any_of_the_files(tiny_bert):
    found = facts(tiny_bert)
    assert (found.pooling, found.normalize, found.query_prompt, found.max_length) == ("cls", True, "", None)
    assert "pooling cls (default)" in found.describe()


def test_description_says_where_from(model):
    text = facts(model(general={"prompts": {"query": "a\nb: "}}), pooling="cls").describe()
    assert "pooling cls (option)" in text
    assert r"query prompt 'a\nb: ' (model files)" in text


def test_damaged_files(model, tmp_path):
    folder = model()
    (tmp_path / "model/modules.json").write_text("{")
    with pytest.raises(DataError, match=r"modules\.json"):
        facts(folder)


# Where files are


@pytest.mark.parametrize("name", ["./x", "/x/y", "~/x", "a/b/c", "x/"])
def test_mistyped_folder(name):
    with pytest.raises(RunError, match="no such model folder"):
        check_model_name(name)


def test_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(RunError, match="is a file"):
        check_model_name(str(tmp_path / "model.safetensors"))


def test_local_copy_of_a_hub_model_without_a_network(tmp_path, monkeypatch, capfd):
    """A file that the model lacks is no reason to stop; a model that is not there is."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    (snapshot / "config.json").write_text("{}")
    hub = Hub(cache_dir=tmp_path)
    assert model_file("org/name", "config.json", hub) == snapshot / "config.json"
    assert model_file("org/name", "modules.json", hub) is None
    assert "no modules.json in the local copy" in capfd.readouterr().err
    with pytest.raises(RunError, match="cannot be loaded"):
        model_file("org/other", "modules.json", hub)
