"""A text is passed to `format` once, as an argument: nothing in it is ever interpreted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgectl.data.prompts import Prompts, instruct, prefix_of
from bgectl.options.common import two_places

FORMATS = st.sampled_from(["{}{}", "Instruct: {}\nQuery: {}", "<{}> {} </s>"])


@given(FORMATS, st.text(min_size=1), st.text())
def test_braces_in_data_mean_nothing(template, instruction, text):
    before, between, after = template.split("{}")
    assert instruct(template, instruction, text) == before + instruction + between + text + after


@given(FORMATS, st.text())
def test_no_instruction_leaves_the_text(template, text):
    assert instruct(template, None, text) == instruct(template, "", text) == text


@given(st.text(min_size=1).filter(lambda text: "\0" not in text), st.text())
def test_prefix_is_what_stands_before(instruction, text):
    template = "Instruct: {}\nQuery: {}"
    assert prefix_of(template, instruction) + text == instruct(template, instruction, text)
    assert prefix_of("{}{} </s>", instruction) is None
    assert prefix_of(template, None) == ""


def test_rows_prompt_replaces_the_instruction_and_an_empty_one_turns_it_off():
    prompts = Prompts("I ", "{}{}", "P ", "{}{}")
    assert prompts.query("q") == prompts.query("q", None) == "I q"
    assert prompts.query("q", "R ") == "R q"
    assert prompts.query("q", "") == "q"
    assert prompts.passage("p") == "P p"


def test_backslash_n_in_an_option_is_a_newline():
    assert two_places(r"Instruct: {}\nQuery: {}") == "Instruct: {}\nQuery: {}"


@pytest.mark.parametrize("template", ["", "{}", "{} {} {x}", "{", "{0}", "{0}{0}", "{}{}{}"])
def test_formats_without_two_places_are_refused(template):
    with pytest.raises(ValueError):
        two_places(template)
