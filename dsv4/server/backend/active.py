"""The answers that are being generated, as the engine page lists them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ActiveAnswer:
    """One answer so far. key: the name of the client's key. The other numbers are tokens and seconds. done: of the
    prompt, in the cache; reused: of the prompt, from the prefix cache; limit: of the answer. first_token_seconds: None
    before the first token."""

    id: str
    key: str
    model: str
    prompt: int
    done: int
    reused: int
    generated: int
    limit: int
    seconds: float
    first_token_seconds: float | None
