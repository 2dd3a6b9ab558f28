"""Whether a grammar lets a text through, and texts of calls for it."""

from dsv4.encoding import Tokenizer
from dsv4.encoding.grammar import Grammar


def follows(grammar: Grammar, tokenizer: Tokenizer, text: str) -> bool:
    """Whether the text can be written, and then end. Forced text must come in the tokens the vocabulary would cut it
    into by itself, so where the usual token is not allowed, a shorter one that begins the rest will do."""
    state = grammar.start()
    ids = tokenizer.encode_text(text, trusted=True)
    while ids:
        mask = state.allowed()
        token = ids.pop(0)
        if not allows(mask, token):
            rest = tokenizer.decode([token, *ids])
            other = shorter(tokenizer, mask, rest)
            if other is None:
                return False
            token, ids = other, tokenizer.encode_text(rest[len(tokenizer.decode([other])) :], trusted=True)
        state.accept(token)
    return allows(state.allowed(), tokenizer.eos_id)


def allows(mask: bytes | None, token: int) -> bool:
    return mask is None or bool((mask[token // 8] >> (token % 8)) & 1)


def shorter(tokenizer: Tokenizer, mask: bytes | None, text: str) -> int | None:
    plain = tokenizer.encode_text(text.split("｜")[0])
    pieces = [tokenizer.encode_text(text[:n]) for n in range(len(tokenizer.decode(plain[:1])), 0, -1)]
    return next((ids[0] for ids in pieces if len(ids) == 1 and allows(mask, ids[0])), None)


def call(tokenizer: Tokenizer, name: str, *parameters: tuple[str, str, str]) -> str:
    dsml = tokenizer.dialect.dsml
    rows = [f'<{dsml}parameter name="{k}" string="{raw}">{value}</{dsml}parameter>' for k, raw, value in parameters]
    return f'<{dsml}invoke name="{name}">\n' + "\n".join(rows) + f"\n</{dsml}invoke>"


def block(tokenizer: Tokenizer, *calls: str) -> str:
    dsml = tokenizer.dialect.dsml
    return f"\n\n<{dsml}tool_calls>\n" + "\n".join(calls) + f"\n</{dsml}tool_calls>"
