"""Syntax trees are whole, whatever finalisers do meanwhile."""

import ast
import gc

SOURCE = "\n".join(f"def f{number}(a, b=1): return [a, b, {{'x': {number}}}]" for number in range(300))


class Parses:
    """Garbage that only a collection finds, whose finaliser parses at another depth of calls."""

    ran = 0

    def __init__(self) -> None:
        self.own = self

    def __del__(self) -> None:
        Parses.ran += 1
        self._parse(20)

    def _parse(self, depth: int) -> None:
        if depth:
            self._parse(depth - 1)
        else:
            ast.parse("a + b")


def test_a_finaliser_that_parses_does_not_break_another_parse() -> None:
    gc.collect()
    before = Parses.ran
    for _ in range(20):
        Parses()
        assert len(ast.parse(SOURCE).body) == 300
    gc.collect()
    assert Parses.ran == before + 20
    assert gc.isenabled()


def test_a_parse_that_nests_too_deep_leaves_nothing_behind() -> None:
    for _ in range(5):
        for text in ("+0" * 5000, "-" * 5000 + "1"):
            try:
                ast.parse(text)
            except (RecursionError, MemoryError):
                continue
        assert len(ast.parse(SOURCE).body) == 300
