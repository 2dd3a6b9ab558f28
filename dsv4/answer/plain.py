"""An answer that its caller reads by the token: nothing in it is looked for, and only the engine ends it."""

from dsv4.answer.logprobs import Section, TokenRecord
from dsv4.answer.progress import AnswerInProgress, AnswerStep
from dsv4.encoding import ContentDelta, Tokenizer
from dsv4.generation import FinishReason, TokenEvent


class PlainAnswer(AnswerInProgress):
    """The text of every token is content, control tokens and calls included; the end token has none. Each token has a
    record, the end token too."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer, thinking=False, continued=True)

    def step(self, event: TokenEvent) -> AnswerStep:
        """Take one event. Raises ValueError for a token id that the tokenizer does not know."""
        step, text = AnswerStep(), ""
        if event.token is not None:
            self.completion_tokens += 1
            text = "" if event.finish is FinishReason.STOP else self._decoder.step(event.token)
            if event.logprobs is not None:
                step.logprobs.append(TokenRecord(Section.CONTENT, event.token, event.logprobs))
        self.finish = event.finish
        if self.over:
            text += self._decoder.finish()
        if text:
            step.deltas.append(ContentDelta(text))
            self.parsed.content += text
        return step
