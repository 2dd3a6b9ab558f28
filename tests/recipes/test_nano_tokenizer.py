"""The tokenizer of the bundled model: digits stay apart, the fixed texts get short."""

from pathlib import Path

from dsv4.encoding import V4, train_bpe
from recipes.nano.tokenizer import corpus, pieces


def test_corpus_has_no_digits_and_no_control_tokens() -> None:
    for text in corpus(items=100):
        assert not any(c.isdigit() for c in text)
        assert not any(token in text for token in V4.control_tokens)


def test_every_digit_is_a_token(tmp_path: Path) -> None:
    codec = train_bpe(pieces(corpus(items=300)), 2048, tmp_path)
    assert codec.vocab_size == 2048
    assert len(codec.encode_text("4821 and 37")) == 6 + len(codec.encode_text(" and "))
    for token in V4.control_tokens:
        assert codec.encode_text(token, trusted=True) == [codec.token_id(token)]
    block = V4.tools_block.format(dsml=V4.dsml, think_open="<think>", think_close="</think>", schemas="")
    # one token a word, and marks: the block stands in every prompt with tools
    assert len(codec.encode_text(block, trusted=True)) < 1.9 * len(block.split())
