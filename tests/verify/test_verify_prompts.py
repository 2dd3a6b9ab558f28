"""The prompts that `dsv4 verify` expects are those of the official converter."""

import pytest

from dsv4.encoding import DIALECTS
from dsv4.verify.rendering import official, pairs, requests


@pytest.mark.parametrize("dialect", ["v4-0731", "v4.1"])
def test_requests_are_rendered_as_the_official_converter_does(dialect: str) -> None:
    pytest.importorskip("deepseek_recipe")
    from tests.server.test_official_prompts import official as theirs

    for what, body in requests().items():
        assert official(body, DIALECTS[dialect]) == theirs("chat", body, DIALECTS[dialect]), what


def test_pairs_have_one_prompt_in_the_dialects_of_the_final_weights() -> None:
    for pair in pairs():
        assert official(pair.one, DIALECTS["v4-0731"]) == official(pair.other, DIALECTS["v4-0731"]), pair.what
