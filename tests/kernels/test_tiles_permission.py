"""The tiles of AMX are chosen only where Linux gives them, and a refusal is told."""

from collections.abc import Iterator

import pytest

from dsv4.kernels.native import build, tiles

EVERYTHING = frozenset().union(*(needs for needs, _ in build.ISA.values()))


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    tiles.refusal_of_tiles.cache_clear()
    yield
    tiles.refusal_of_tiles.cache_clear()


class System:
    """A C library whose kernel gives the tile registers or does not."""

    def __init__(self, result: int) -> None:
        self.asked: list[tuple[int, ...]] = []

        def syscall(*numbers: int) -> int:
            self.asked.append(numbers)
            return result

        self.syscall = syscall


@pytest.mark.parametrize("given", [True, False])
def test_where_the_processor_has_tiles(monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
    system = System(0 if given else -1)
    monkeypatch.setattr(build, "machine_features", lambda: EVERYTHING)
    monkeypatch.setattr(tiles.ctypes, "CDLL", lambda *_, **__: system)
    monkeypatch.setattr(tiles.ctypes, "get_errno", lambda: 1)
    assert build.choose_isa() == "avx512bf16"  # no machine has run the tiles yet
    assert system.asked == []
    if given:
        assert build.choose_isa("amx") == "amx"
    else:
        with pytest.raises(ValueError, match=r"the system refuses the tile registers of amx \(arch_prctl: Operation"):
            build.choose_isa("amx")
    assert system.asked == [(158, 0x1023, 18)]  # once


def test_a_processor_without_tiles_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(0)
    monkeypatch.setattr(build, "machine_features", lambda: EVERYTHING - {"amx_bf16"})
    monkeypatch.setattr(tiles.ctypes, "CDLL", lambda *_, **__: system)
    assert build.choose_isa() == "avx512bf16"
    with pytest.raises(ValueError, match="this machine does not have amx_bf16, which amx needs"):
        build.choose_isa("amx")
    assert system.asked == []
