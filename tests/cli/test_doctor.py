"""`bgectl doctor`: what it says of this installation, and of broken ones."""

import http.server
import json
import os
import threading
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest

from bgectl.doctor.hub import without_secrets
from bgectl.doctor.packages import BAD_PAIRS, _holds
from bgectl.doctor.versions import Requirement, release, requirements

DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "doctor.md"
SCHEMA = {
    "type": "object",
    "required": ["bgectl", "trains", "checks"],
    "additionalProperties": False,
    "properties": {
        "bgectl": {"type": "string"},
        "trains": {"type": "boolean"},
        "checks": {
            "type": "array",
            "minItems": 20,
            "items": {
                "type": "object",
                "required": ["check", "status", "found", "mend", "facts"],
                "additionalProperties": False,
                "properties": {
                    "check": {"type": "string", "pattern": "^[a-z0-9-]+$"},
                    "status": {"enum": ["ok", "warning", "error", "absent"]},
                    "found": {"type": "string", "pattern": "^[^\\n]+$"},
                    "mend": {"type": ["string", "null"], "pattern": "^[^\\n]+$"},
                    "facts": {"type": "object"},
                },
            },
        },
    },
}
FAILS_TO_BUILD = "raise ImportError('libtorch_cpu.so: undefined symbol: _ZN3c10')"
CRASHES = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"
WITHOUT_TORCH = """
import importlib.metadata as metadata
real = metadata.Distribution.from_name.__func__
def from_name(cls, name):
    if name == "torch":
        raise metadata.PackageNotFoundError(name)
    return real(cls, name)
metadata.Distribution.from_name = classmethod(from_name)
"""


@pytest.fixture
def doctor(bgectl, tmp_path):
    """Run it with JSON output and faults; returns the exit code, checks by name, and all that was printed."""

    def call(*words, path=None, env=None):
        environment = dict(env or {})
        if path is not None:
            environment["PYTHONPATH"] = os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])
        done = bgectl("doctor", "--format", "json", "--offline", *words, cwd=tmp_path, env=environment)
        assert done.stderr == ""
        told = json.loads(done.stdout)
        jsonschema.validate(told, SCHEMA)
        checks = {entry["check"]: entry for entry in told["checks"]}
        assert len(checks) == len(told["checks"]), "a check is told once"
        failed = any(entry["status"] == "error" for entry in told["checks"])
        assert (done.returncode, told["trains"]) == (int(failed), not failed)
        return done.returncode, checks, done.stdout

    return call


@pytest.fixture
def fake(tmp_path):
    """Put distributions of these versions, and modules of these texts, before all others; returns the folder."""

    def make(versions=(), modules=()):
        folder = tmp_path / "before"
        folder.mkdir(exist_ok=True)
        for name, number in dict(versions).items():
            metadata = folder / f"{name.replace('-', '_')}-{number}.dist-info" / "METADATA"
            metadata.parent.mkdir()
            metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
        for name, text in dict(modules).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        return folder

    return make


def test_this_installation_trains(doctor):
    code, checks, _ = doctor()
    assert code == 0
    assert checks["torch"]["facts"]["version"].partition("+")[0] == version("torch").partition("+")[0]
    assert checks["transformers"]["found"] == version("transformers")
    assert checks["temporary-folder"]["facts"]["writable"] is True
    assert checks["working-directory"]["facts"]["free"] > 0
    assert checks["hub"]["facts"]["offline"] == "HF_HUB_OFFLINE"
    assert checks["pairs"]["status"] == "ok"


def test_the_docs_name_every_check(doctor, fake):
    page = DOCS.read_text(encoding="utf-8")
    _, checks, _ = doctor()
    assert [name for name in checks if f"`{name}`" not in page] == []
    for name in ("bgectl", "trains", "checks", "check", "status", "found", "mend", "facts"):
        assert f"`{name}`" in page


def test_the_table_says_what_to_do(bgectl, tmp_path):
    done = bgectl("doctor", "--offline", cwd=tmp_path, env={"NO_COLOR": "1"})
    assert done.returncode == 0
    assert "torch " in done.stdout
    assert "not there" in done.stdout
    assert "`bgectl train` can run here" in done.stderr


@pytest.mark.parametrize(
    ("text", "told"), [(FAILS_TO_BUILD, "cannot be imported: ImportError: libtorch_cpu.so"), (CRASHES, "SIGSEGV")]
)
def test_a_torch_that_cannot_be_imported_is_a_finding(doctor, fake, text, told):
    code, checks, _ = doctor(path=fake({"torch": "2.13.0"}, {"torch/__init__.py": text}))
    assert code == 1
    assert checks["torch"]["status"] == "error"
    assert told in checks["torch"]["found"]
    assert checks["torch"]["mend"].startswith("pip install --force-reinstall 'torch>=")
    assert checks["transformers"]["status"] == "ok", "the other checks go on"


def test_a_missing_torch_is_a_finding(doctor, fake):
    code, checks, _ = doctor(path=fake(modules={"sitecustomize.py": WITHOUT_TORCH}))
    assert code == 1
    assert checks["torch"]["found"] == "is not installed"
    assert checks["torch"]["mend"].startswith("pip install 'torch>=")
    assert checks["gpus"]["status"] == "absent"


@pytest.mark.parametrize(("name", "number"), [("transformers", "4.57.6"), ("torch", "2.1.0"), ("peft", "0.10.0")])
def test_a_core_package_that_is_too_old_fails(doctor, fake, name, number):
    code, checks, _ = doctor(path=fake({name: number}))
    assert code == 1
    assert checks[name]["status"] == "error"
    assert number in checks[name]["found"]
    need = next(item for item in requirements("bgectl") if item.name == name)
    assert checks[name]["mend"] == f"pip install '{need.spec}'"


def test_two_faisses_are_told(doctor, fake):
    code, checks, _ = doctor(path=fake({"faiss-gpu-cu12": "1.12.0"}))
    assert code == 0
    assert checks["faiss"]["status"] == "warning"
    assert checks["faiss"]["facts"]["flavour"] == "both"
    assert checks["faiss"]["mend"] == "pip uninstall -y faiss-cpu faiss-gpu-cu12 && pip install faiss-gpu-cu12"


@pytest.mark.parametrize(
    ("versions", "name", "code"),
    [
        ({"faiss-cpu": "1.8.0", "numpy": "2.1.0"}, "faiss-numpy", 0),
        ({"deepspeed": "0.14.0", "torch": "2.13.0"}, "deepspeed-torch", 1),
    ],
)
def test_versions_that_do_not_go_together(doctor, fake, versions, name, code):
    found, checks, _ = doctor(path=fake(versions))
    finding = checks[f"pair-{name}"]
    assert found == code
    assert finding["facts"]["source"].startswith("https://")
    assert all(number in finding["found"] for number in versions.values())


def test_what_transformers_itself_refuses_is_told(doctor, fake):
    code, checks, _ = doctor(path=fake({"tokenizers": "0.10.0"}))
    assert code == 1
    assert "needs tokenizers" in checks["pair-transformers-tokenizers"]["found"]


def test_a_driver_without_a_torch_for_it_is_a_warning(doctor, tmp_path):
    if version("torch").partition("+")[2] not in ("", "cpu"):
        pytest.skip("this torch has CUDA")
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho '570.86.15, NVIDIA H100 80GB HBM3, 81559, 80994, 9.0'\n")
    tool.chmod(0o755)
    code, checks, _ = doctor(env={"PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}"})
    assert code == 0
    assert checks["cuda"]["status"] == "warning"
    assert "built without CUDA" in checks["cuda"]["found"]
    assert "--index-url" in checks["cuda"]["mend"]
    device = {"name": "NVIDIA H100 80GB HBM3", "total": 81559 << 20, "free": 80994 << 20, "capability": "9.0"}
    assert checks["gpus"]["facts"] == {"devices": [device], "usable": False}


def test_a_temporary_folder_that_cannot_be_written_fails(doctor, fake, tmp_path):
    path = fake(modules={"sitecustomize.py": "import tempfile\ntempfile.tempdir = '/proc/nowhere'\n"})
    code, checks, _ = doctor(path=path)
    assert code == 1
    assert checks["temporary-folder"]["status"] == "error"
    assert checks["temporary-folder"]["mend"].startswith("export TMPDIR=")
    code, checks, _ = doctor(env={"TMPDIR": str(tmp_path / "gone")})
    assert (code, checks["temporary-folder"]["status"]) == (0, "warning")


@pytest.fixture
def endpoint():
    """A hub that answers each HEAD with this code; calls are its `.asked`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        code = 200

        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(server.code)
            self.end_headers()

        def log_message(self, *_):
            pass

    asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.code, server.asked = 200, asked
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def hub(bgectl, tmp_path, **environment):
    online = {"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "", "HF_HOME": str(tmp_path / "home"), **environment}
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        online.setdefault(name, "")
        online.setdefault(name.upper(), "")
    done = bgectl("doctor", "--format", "json", "--timeout", "3", cwd=tmp_path, env=online)
    assert done.returncode == 0, "training needs no hub"
    return {entry["check"]: entry for entry in json.loads(done.stdout)["checks"]}, done.stdout + done.stderr


def test_the_hub_is_asked_and_secrets_stay_hidden(bgectl, tmp_path, endpoint):
    place = f"127.0.0.1:{endpoint.server_port}"
    model = tmp_path / "home" / "hub" / "models--BAAI--bge-m3" / "blobs" / "abc"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"x" * 1000)
    checks, printed = hub(
        bgectl, tmp_path, HF_ENDPOINT="http://hub.example", http_proxy=f"http://me:pr0xyw0rd@{place}",
        HF_TOKEN="hf_notasecret123",
    )  # fmt: skip
    assert checks["hub"]["status"] == "ok", checks["hub"]
    assert endpoint.asked == ["http://hub.example"] or endpoint.asked == ["http://hub.example/"]
    assert "pr0xyw0rd" not in printed
    assert f"http://***@{place}" in printed
    assert "hf_notasecret123" not in printed
    assert checks["hub-token"]["facts"] == {"source": "HF_TOKEN"}
    assert checks["hub-cache"]["facts"]["models"] == ["BAAI/bge-m3"]
    assert checks["hub-cache"]["facts"]["size"] == 1000


def test_a_hub_that_is_not_reached_is_a_warning(bgectl, tmp_path, endpoint):
    endpoint.code = 503
    checks, _ = hub(bgectl, tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{endpoint.server_port}")
    assert (checks["hub"]["status"], checks["hub"]["facts"]["http"]) == ("warning", 503)
    checks, printed = hub(bgectl, tmp_path, HF_ENDPOINT="http://me:pa55word@127.0.0.1:9")
    assert checks["hub"]["status"] == "warning"
    assert "refused" in checks["hub"]["found"]
    assert "pa55word" not in printed


def test_offline_asks_nobody(doctor, endpoint):
    place = f"http://127.0.0.1:{endpoint.server_port}"
    _, checks, _ = doctor(env={"HF_ENDPOINT": place, "HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": ""})
    assert checks["hub"]["facts"]["offline"] == "--offline"
    assert endpoint.asked == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://proxy:3128", "http://proxy:3128"),
        ("http://me:a/b?c@d@proxy:3128", "http://***@proxy:3128"),
        ("me:secret@proxy:3128", "***@proxy:3128"),
        ("https://hub.example/?token=abc", "https://hub.example/"),
    ],
)
def test_addresses_are_shown_without_secrets(url, shown):
    assert without_secrets(url) == shown


@pytest.mark.parametrize(
    ("needed", "found", "allowed"),
    [
        (">=5.0,<6", "5.0.0", True), (">=5.0,<6", "6.0", False), (">=2.4", "2.13.0+cpu", True), (">=2.4", "2.3", False),
        ("!=2019.12.17", "2019.12.17", False), ("~=2.1.0", "2.1.5", True), ("~=2.1.1", "2.2.0", False), ("", "1", True),
        (">=0.4.5", "0.4.10", True),
    ],
)  # fmt: skip
def test_ranges(needed, found, allowed):
    assert Requirement("name", needed, None).allows(found) is allowed


def test_releases_and_pairs_are_read():
    assert release("2.13.0+cpu") == release("2.13")
    assert release("0.14.0rc1") < release("0.14.4")
    for pair in BAD_PAIRS:
        assert not (_holds(pair.one) and _holds(pair.other)), "what is installed here goes together"
        assert pair.source.startswith("https://github.com/")
