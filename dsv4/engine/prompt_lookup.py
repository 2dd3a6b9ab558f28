"""Drafts by looking up what was said before (prompt lookup, n-gram drafts): where the last tokens of a request occurred
earlier in its prompt or answer, the tokens after that place are the draft.

The place is the one with the longest match. How often a match of that length was continued rightly is counted for each
request, also for tokens that were not drafted, so a text that does not repeat itself costs no rows of a step.

Legend: T tokens.
"""

from array import array

import torch

_PLACES = 8  # earlier places that are compared, the latest first
_LONGEST = 64  # matches are not compared beyond this length
_FIRST, _SECOND = 0x9E3779B1, 0x85EBCA6B  # multipliers of the hash; with ids below 2^30 a sum fits into 63 bits
_SHIFT = 15
_NONE = -1

# how often the next token was right after a match, by the bits of its length, in edited files of this repository
_USUAL = (0.0, 0.3, 0.55, 0.7, 0.8, 0.87, 0.93, 0.97)
_USUAL_WEIGHT = 6.0  # of these, in tokens of the request's own
_DECAY = 0.97  # of the weight of an older token
_LEAST = 0.05  # drafts that are accepted less often are not made


class PairIndex:
    """Where each pair of tokens occurred in a growing list, as chains from the latest place to earlier ones.

    tokens: the list, which only grows; the index never modifies it. Memory: up to 16 bytes a token.
    """

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._mask = 1023
        self._latest = array("i", [_NONE]) * (self._mask + 1)  # by the hash of a pair, where it ended last
        self._before = array("i")  # for each position, the end of a pair of the same hash before it

    def extend(self, end: int) -> None:
        """Enter the pairs that end before position `end`."""
        begin = len(self._before)
        if end > self._mask:
            self._rebuild(end)
            return
        tokens, latest, before, mask = self._tokens, self._latest, self._before, self._mask
        for position in range(begin, end):
            if position == 0:
                before.append(_NONE)
                continue
            mixed = tokens[position - 1] * _FIRST + tokens[position] * _SECOND
            slot = (mixed ^ (mixed >> _SHIFT)) & mask
            before.append(latest[slot])
            latest[slot] = position

    def find(self) -> tuple[int, int]:
        """The place after the longest earlier occurrence of the last tokens, and the length of the match; (-1, 0)
        without one. Of equally long ones the latest. Only pairs that were entered are found."""
        tokens, last = self._tokens, len(self._tokens) - 1
        if last < 1:
            return _NONE, 0
        mixed = tokens[last - 1] * _FIRST + tokens[last] * _SECOND
        at, best, longest = self._latest[(mixed ^ (mixed >> _SHIFT)) & self._mask], _NONE, 1
        for _ in range(_PLACES):
            if at == _NONE:
                break
            length = 0
            while length < _LONGEST and length <= at and tokens[at - length] == tokens[last - length]:
                length += 1
            if length > longest:
                best, longest = at, length
            at = self._before[at]
        return (best + 1, longest) if best != _NONE else (_NONE, 0)

    def _rebuild(self, end: int) -> None:
        """Enter all pairs that end before `end` into a table of twice as many places."""
        self._mask = (1 << (end + end // 2).bit_length()) - 1
        tokens_T = torch.tensor(self._tokens[:end])
        mixed_T = tokens_T[:-1] * _FIRST + tokens_T[1:] * _SECOND
        slots_T = (mixed_T ^ (mixed_T >> _SHIFT)) & self._mask
        sorted_T, order_T = slots_T.sort(stable=True)
        same_T = sorted_T[1:] == sorted_T[:-1]
        before_T = torch.full((end,), _NONE, dtype=torch.int32)
        before_T[1 + order_T[1:][same_T]] = (1 + order_T[:-1][same_T]).int()
        latest_T = torch.full((self._mask + 1,), _NONE, dtype=torch.int32)
        ends_T = torch.cat([~same_T, torch.ones(1, dtype=torch.bool)])
        latest_T[sorted_T[ends_T]] = (1 + order_T[ends_T]).int()
        self._before = array("i", before_T.numpy().tobytes())
        self._latest = array("i", latest_T.numpy().tobytes())


class PromptLookup:
    """The look-up of one request. tokens: its prompt and answer, a list that only grows."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens, self._index = tokens, PairIndex(tokens)
        self._known = len(tokens)
        self._place, self._length = self._search()
        self._right = [share * _USUAL_WEIGHT for share in _USUAL]
        self._seen = [_USUAL_WEIGHT] * len(_USUAL)

    def follow(self) -> None:
        """Take in the tokens since the last call."""
        tokens = self._tokens
        while self._known < len(tokens):
            token, place = tokens[self._known], self._place
            self._known += 1
            if place != _NONE:
                kind, right = _kind(self._length), tokens[place] == token
                self._right[kind] = _DECAY * self._right[kind] + right
                self._seen[kind] = _DECAY * self._seen[kind] + 1
                if right:
                    self._place, self._length = place + 1, self._length + 1
                    continue
            if self._known == len(tokens):
                self._place, self._length = self._search()
            else:  # the longest match of earlier tokens is not needed, and would cost a search
                self._place = _NONE

    def draft(self, most: int) -> tuple[list[int], list[float]]:
        """Up to `most` tokens that may come next, and for each the probability that it and all before it are right."""
        place, length, survival = self._place, self._length, 1.0
        drafts: list[int] = []
        survivals: list[float] = []
        if place == _NONE:
            return drafts, survivals
        tokens, end = self._tokens, len(self._tokens)
        for at in range(place, place + most):
            kind = _kind(length)
            survival *= self._right[kind] / self._seen[kind]
            if survival < _LEAST:
                break
            # a draft that reaches the end of the text repeats itself
            drafts.append(tokens[at] if at < end else drafts[at - end])
            survivals.append(survival)
            length += 1
        return drafts, survivals

    def _search(self) -> tuple[int, int]:
        """The longest match of all tokens. Before it, the index gets every token but the last, whose pair would match
        itself."""
        self._index.extend(len(self._tokens) - 1)
        return self._index.find()


def _kind(length: int) -> int:
    return min(length.bit_length(), len(_USUAL) - 1)
