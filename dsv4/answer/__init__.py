"""From tokens to an answer: stop strings, reasoning apart from content, counts, log-probabilities.

The server and `dsv4.load` share this code. It contains no HTTP and loads no torch.
"""

from dsv4.answer.logprobs import LogprobTrack, Section, TokenRecord
from dsv4.answer.plain import PlainAnswer
from dsv4.answer.progress import AnswerInProgress, AnswerStep
from dsv4.answer.stopping import StopStrings

__all__ = ["AnswerInProgress", "AnswerStep", "LogprobTrack", "PlainAnswer", "Section", "StopStrings", "TokenRecord"]
