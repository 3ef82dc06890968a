"""What continuous integration calls is there: the workflow, noxfile.py and .ci/run name targets of the Makefile."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def jobs():
    """The jobs of the workflow."""
    if not WORKFLOW.is_file():
        pytest.skip("not a checkout")
    return yaml.safe_load(WORKFLOW.read_text())["jobs"]


def called(command):
    """The targets that a command line gives to make."""
    words = command.partition("make ")[2].split()
    return [word for word in words if re.fullmatch("[a-z]+", word)]


def runs(jobs):
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


def test_the_workflow_calls_targets_that_there_are(jobs):
    found = [target for run in runs(jobs) if run.startswith("make ") for target in called(run)]
    assert set(found) == {"lint", "docs", "test", "bare"}
    assert set(found) <= TARGETS
    for target in set(found):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_ci_run_calls_targets_that_there_are():
    line = next(line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make "))
    assert set(called(line)) <= TARGETS


def test_the_workflow_may_only_read(jobs):
    whole = yaml.safe_load(WORKFLOW.read_text())
    assert whole["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in jobs.values())
    assert "secrets." not in WORKFLOW.read_text()
    for job in jobs.values():
        checkout = next(step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@"))
        assert checkout["with"]["persist-credentials"] is False
        assert job["timeout-minutes"] <= 180


def test_no_expression_stands_in_a_shell_line(jobs):
    """A value that is put into the text of a script is run as such; it goes by the environment."""
    assert [run for run in runs(jobs) if "${{" in run] == []


def test_workflow_and_nox_have_the_same_matrix(jobs):
    told = noxfile()
    matrix = jobs["test"]["strategy"]["matrix"]
    assert matrix["python"] == told["PYTHONS"]
    assert any(row["pins"] == told["OLDEST"] for row in matrix["include"])
    assert any(row["constraints"] == "constraints.txt" and row["python"] == told["PINNED"] for row in matrix["include"])


def noxfile():
    """The constants of noxfile.py, which is not imported: nox is not everywhere."""
    path = ROOT / "noxfile.py"
    if not path.is_file():
        pytest.skip("not a checkout")
    body = ast.parse(path.read_text()).body
    return {
        item.targets[0].id: ast.literal_eval(item.value)
        for item in body
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name)
    }


def test_nox_starts_at_the_lower_bounds():
    lower = dict(re.findall(r'^  "([a-z]+)>=([\d.]+)', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for pin in noxfile()["OLDEST"].split():
        name, _, version = pin.partition("==")
        assert lower[name] == version.removesuffix(".*"), "the oldest that is tested is the oldest that is allowed"
    assert (
        noxfile()["PYTHONS"][0]
        == re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    )


def test_nox_calls_targets_that_there_are():
    text = (ROOT / "noxfile.py").read_text()
    assert set(re.findall(r'make\(session, "([a-z]+)"', text)) == {"test", "bare", "lint", "docs"} <= TARGETS


def test_nox_lists_its_sessions():
    pytest.importorskip("nox")
    done = subprocess.run([sys.executable, "-m", "nox", "-l"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for session in ("tests-3.10", "tests-3.13", "oldest", "newest", "bare", "lint", "docs"):
        assert session in done.stdout
