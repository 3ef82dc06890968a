"""`bgectl push` against a hub of its own: what goes, what stays, and what is refused."""

import base64
import http.server
import json
import os
import pickle
import shutil
import threading
from pathlib import Path

import pytest
import yaml

from bgectl.push.files import contents, imports, secrets

TOKEN = "hf_" + "abcdefgh" * 4
OTHER = "hf_" + "ijklmnop" * 4
CARD = "---\nlibrary_name: sentence-transformers\npipeline_tag: sentence-similarity\ntags:\n- bgectl\n---\n\n# Toy\n"


@pytest.fixture
def model(tiny_bert, tmp_path):
    """A model folder as a training leaves it, with all that stays beside it."""
    folder = tmp_path / "finetuned"
    shutil.copytree(tiny_bert, folder)
    (folder / "README.md").write_text(CARD)
    (folder / "options.yaml").write_text("learning_rate: 2.0e-05\ntoken: null\n")
    for name in (
        "checkpoint-10/model.safetensors", "checkpoint-10/optimizer.pt", "log.jsonl", "bgectl-run.json",
        "bgectl-manifest.json", ".bgectl.lock",
        "events.out.tfevents.1", "half.safetensors.part", "optimizer.pt", "rng_state_0.pth", ".git/config",
    ):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


GOES = {"README.md", "config.json", "model.safetensors", "options.yaml", "tokenizer.json", "tokenizer_config.json"}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files asks of it."""

    def answer(self, code, content=None):
        body = json.dumps(content if content is not None else {}).encode()
        self.send_response(code)
        for key, value in (("Content-Type", "application/json"), ("Content-Length", str(len(body)))):
            self.send_header(key, value)
        if code == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(body)

    def handle_one(self):
        hub = self.server
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size) if size else b""
        hub.asked.append((self.command, self.path))
        hub.tokens.add(self.headers.get("Authorization"))
        path = self.path.partition("?")[0]
        if hub.refuses is not None and (self.command == "POST" or hub.refuses == 401):
            return self.answer(hub.refuses, {"error": "no"})
        if path == "/api/whoami-v2":
            return self.answer(200, {"name": "me", "type": "user"})
        if self.command == "GET" and path.startswith("/api/models/"):
            return self.answer(404) if hub.repository is None else self.answer(200, hub.repository)
        if path == "/api/repos/create":
            hub.created.append(json.loads(body))
            return self.answer(200, {"url": f"http://127.0.0.1:{hub.server_port}/{hub.name}"})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if "/branch/" in path:
            hub.branches.append(path.rpartition("/")[2])
            return self.answer(200)
        if "/preupload/" in path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(body)["files"]]  # fmt: skip
            return self.answer(200, {"files": files})
        if "/commit/" in path:
            hub.commits.append((path, [json.loads(line) for line in body.splitlines()]))
            url = f"http://127.0.0.1:{hub.server_port}/{hub.name}/commit/{'c' * 40}"
            done = {"success": True, "commitOid": "c" * 40, "commitUrl": url}
            return self.answer(200, {**done, "hookOutput": ""})
        return self.answer(500, {"error": f"not foreseen: {self.command} {path}"})

    do_GET = do_POST = do_HEAD = handle_one

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    """A hub without repositories."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.created, server.branches, server.commits, server.tokens = [], [], [], [], set()
    server.repository, server.refuses, server.name = None, None, "me/toy"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def push(bgectl, hub, tmp_path):
    """Run the command with this hub; it must never say the token."""

    def call(*words, token=TOKEN, **environment):
        online = {
            "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home"), "no_proxy": "*", "HF_TOKEN": token or "",
            **environment,
        }  # fmt: skip
        done = bgectl("push", *words, env=online, cwd=tmp_path)
        assert TOKEN not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return call


def uploaded(hub):
    """File → bytes of the one commit."""
    ((_, lines),) = hub.commits
    files = [line["value"] for line in lines if line["key"] == "file"]
    return {file["path"]: base64.b64decode(file["content"]) for file in files}


def test_without_yes_nothing_is_asked_of_the_hub(push, hub, model):
    done = push(model, "me/toy")
    assert done.returncode == 0, done.stderr
    assert hub.asked == []
    assert "would upload 6 files" in done.stderr
    assert "`--yes` does it" in done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert all("stays" not in lines[name] for name in GOES)
    assert "stays: checkpoint" in lines["checkpoint-10/"]
    assert "stays: state of the optimiser" in lines["optimizer.pt"]
    assert "stays: not written to its end" in lines["half.safetensors.part"]
    assert "names no license" in done.stderr


def test_yes_uploads_what_was_shown(push, hub, model):
    done = push(model, "me/toy", "--yes", "--license", "mit", "--private", "--message", "first", "--revision", "v1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"http://127.0.0.1:{hub.server_port}/me/toy/commit/{'c' * 40}"
    files = uploaded(hub)
    assert set(files) == GOES
    for name in GOES - {"README.md"}:
        assert files[name] == (model / name).read_bytes(), name
    head = files["README.md"].decode().split("---\n")
    assert yaml.safe_load(head[1])["license"] == "mit"
    assert head[2] == "\n# Toy\n"
    assert (model / "README.md").read_text() == CARD, "the folder's own card stays as it is"
    # Newer releases of huggingface_hub say it in the second way.
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"
    made = hub.created[0]
    assert made["name"] == "me/toy" or (made["organization"], made["name"]) == ("me", "toy")
    assert hub.branches == ["v1"]
    path, lines = hub.commits[0]
    assert path == "/api/models/me/toy/commit/v1"
    assert lines[0]["value"]["summary"] == "first"
    assert f"Bearer {TOKEN}" in hub.tokens


def test_a_name_without_account_goes_to_ones_own(push, hub, model):
    done = push(model, "toy", "--yes", "--token", TOKEN, token=None)
    assert done.returncode == 0, done.stderr
    assert hub.commits[0][0] == "/api/models/me/toy/commit/main"
    assert hub.branches == []


def test_private_never_becomes_public(push, hub, model):
    hub.repository = {"id": "me/toy", "private": False, "tags": [], "siblings": []}
    done = push(model, "me/toy", "--yes", "--private")
    assert done.returncode == 1
    assert "exists and is public" in done.stderr
    assert hub.commits == []
    assert push(model, "me/toy", "--yes").returncode == 0
    assert hub.created == [], "it is there already"


@pytest.mark.parametrize(
    ("code", "told"), [(401, "does not accept the token"), (403, "may not write there"), (500, "the hub answers 500")]
)
def test_what_the_hub_refuses_is_worded(push, hub, model, code, told):
    hub.refuses = code
    done = push(model, "me/toy", "--yes")
    assert done.returncode == 1
    assert told in done.stderr
    assert "hint: " in done.stderr
    assert hub.commits == []


def test_without_token_or_network(push, hub, model):
    hub.refuses = 401
    done = push(model, "me/toy", "--yes", token=None)
    assert (done.returncode, "there is no token" in done.stderr) == (1, True)
    done = push(model, "me/toy", "--yes", HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.returncode, "the hub is not reached" in done.stderr) == (1, True)
    done = push(model, "me/toy", "--yes", HF_HUB_OFFLINE="1")
    assert (done.returncode, "the hub may not be asked" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("name", "line", "kind"),
    [
        ("options.yaml", f"token: {TOKEN}", "the token that is used now"),
        ("notes.md", OTHER, "a token of the hub"),
        ("options.yaml", "token: s3cretvalue", "a value that a name calls secret"),
        ("train.py", "API_KEY = 'abcd1234efgh'", "a value that a name calls secret"),
        ("notes.md", "http://me:passw0rd@proxy:3128", "a password in an address"),
        ("tokenizer.json", TOKEN, "the token that is used now"),
    ],
)
def test_secrets_are_not_published(inside, model, monkeypatch, name, line, kind):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with (model / name).open("a") as stream:
        stream.write(line + "\n")
    number = len((model / name).read_text().splitlines())
    # The hub is not to be reached here: an attempt would be told as such.
    done = inside("push", model, "me/toy", "--yes")
    assert done.returncode == 1
    assert f"{name}:{number}: {kind}" in done.stderr
    assert line.split()[-1] not in done.stderr


def test_a_model_without_secrets_is_not_accused(minilm, tmp_path):
    (tmp_path / "options.yaml").write_text("token: null\nhub_token:\npassword: ~\ntoken: false\nbatch_tokens: 2048\n")
    (tmp_path / "special_tokens_map.json").write_text('{"cls_token": "[CLS]", "token": null, "pad_token": "[PAD]"}')
    for folder in (Path(minilm), tmp_path):
        assert secrets(folder, list(contents(folder).taken), None) == []


def test_pickles_stay_but_for_heads_of_tensors(inside, model, m3, tmp_path):
    class Bad:
        def __reduce__(self):
            return os.system, ("touch " + str(tmp_path / "ran"),)

    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bad()))
    for head in ("sparse_linear.pt", "colbert_linear.pt"):
        shutil.copy(Path(m3) / head, model)
    found = contents(model)
    assert found.left["pytorch_model.bin"].startswith("refused: a pickle")
    assert {"sparse_linear.pt", "colbert_linear.pt"} <= set(found.taken)
    import torch

    torch.save({"weight": torch.zeros(1), "more": Bad()}, model / "sparse_linear.pt")
    assert imports(model / "sparse_linear.pt") in ("posix system", "os system")
    done = inside("push", model, "me/toy")
    assert (done.returncode, "sparse_linear.pt is no file of tensors" in done.stderr) == (1, True)
    assert not (tmp_path / "ran").exists()


def test_links_out_of_the_folder_stay(model, tmp_path):
    (tmp_path / "private.json").write_text("{}")
    (model / "link.json").symlink_to(tmp_path / "private.json")
    (model / "all").symlink_to(tmp_path)
    left = contents(model).left
    assert left["link.json"] == left["all/"] == "link out of the folder"


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda folder: (folder / "README.md").unlink(), "there is no model card"),
        (lambda folder: (folder / "README.md").write_text("---\na: [\n---\n"), "are no YAML"),
        (lambda folder: (folder / "config.json").unlink(), "there is no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").unlink(), "there are no weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "the weights are damaged"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot be loaded"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone"}}'),
            "weights are missing: gone",
        ),
    ],
)
def test_what_is_no_model_is_refused(inside, model, break_it, told):
    break_it(model)
    done = inside("push", model, "me/toy", "--yes")
    assert done.returncode == 1
    assert told in done.stderr
    assert "the hub is not reached" not in done.stderr
    assert "may not be asked" not in done.stderr


def test_folders_of_this_machine_are_told(inside, model):
    with (model / "options.yaml").open("a") as stream:
        stream.write("train_data:\n- /home/somebody/corpus.jsonl\n")
    done = inside("push", model, "me/toy")
    assert done.returncode == 0
    assert "options.yaml:4 names a folder of this machine: /home/somebody/corpus.jsonl" in done.stderr


@pytest.mark.parametrize("words", [["me/"], ["a/b/c"], ["me/toy", "--license", "My Own"], ["../x"]])
def test_names_are_checked(inside, model, words):
    assert inside("push", model, *words).returncode == 2
