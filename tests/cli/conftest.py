"""Running a command line in this process, as far as its options."""

import pytest

from bgectl.cli import bind
from bgectl.options import MODELS


@pytest.fixture
def options_of(tmp_path, monkeypatch):
    """The options that a command line resolves to, in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def call(name, *words):
        seen = []
        command = bind.command_of(name, MODELS[name](), seen.append)
        with command.make_context(name, list(words)) as context:
            command.invoke(context)
        return seen[0]

    return call
