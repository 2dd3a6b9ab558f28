"""What the release's parser reads in a model's text."""

import pytest

from dsv4.encoding import V4
from dsv4.verify.model_text import read

D = V4.dsml
CALL = f'<{D}invoke name="now">\n\n</{D}invoke>\n'
OPEN, CLOSE = f"\n\n<{D}tool_calls>\n", f"</{D}tool_calls>{V4.eos}"


@pytest.mark.parametrize("begun", ["", "<", f"<{D}", f"<{D}invoke", f'<{D}invoke name="other">\n<{D}parameter name="'])
def test_a_second_call_that_was_begun_is_not_read_where_one_is_allowed(begun: str) -> None:
    """The text is cut where the server ended its answer, which is no mistake of the model."""
    text = OPEN + CALL + begun
    found = read(text, V4.name, thinking=False, single=True)
    assert (found.text, found.error, found.calls) == (text, "", (("now", "{}"),))
    assert read(text, V4.name, thinking=False).error


@pytest.mark.parametrize("text", [OPEN + CALL + CALL + CLOSE, OPEN + CALL + "x" + CLOSE, OPEN + CALL[:-5], "Plain."])
def test_other_texts_are_read_as_they_are_where_one_call_is_allowed(text: str) -> None:
    assert read(text, V4.name, thinking=False, single=True) == read(text, V4.name, thinking=False)
