"""`bgectl schema`."""

import json

import jsonschema
import pytest

from bgectl.commands import COMMANDS
from bgectl.options import MODELS
from bgectl.options.describe import describe
from bgectl.options.project import project_values


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_its_help_and_nothing_else_is_allowed(command):
    schema = MODELS[command]().model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    options = {option.name: option for rows in describe(MODELS[command]()).values() for option in rows}
    assert set(schema["properties"]) == set(options)
    for name, option in options.items():
        assert schema["properties"][name]["description"] == option.text
    assert schema["additionalProperties"] is False
    assert set(schema.get("required", [])) == {name for name, option in options.items() if option.required}


def test_printed_schema_accepts_a_project_and_refuses_a_mistake(bgectl):
    shown = bgectl("schema", "train", "base")
    assert shown.returncode == 0, shown.stderr
    schema = json.loads(shown.stdout)
    values = {name: value for name, value in project_values("model")["train base"].items() if value is not None}
    jsonschema.validate(values, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**values, "train_group_size": 0}, schema)


def test_unknown_command(bgectl):
    done = bgectl("schema", "train", "bse")
    assert done.returncode == 2
    assert "error: no command `train bse`\nhint: did you mean `train base`?" in done.stderr
