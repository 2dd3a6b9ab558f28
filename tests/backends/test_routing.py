"""Which server gets a request."""

from dsv4.backends.routing import PrefixRouter, prefix_keys

LONG = list(range(1000, 3000))


def test_keys_name_beginnings() -> None:
    keys = prefix_keys(LONG, (100, 700, 5000), "a")
    assert len(keys) == 3
    assert prefix_keys([*LONG, 7], (100, 700, 2000), "a")[:3] == keys
    assert prefix_keys(LONG[:700], (100,), "a") == keys[:2]
    assert not set(prefix_keys(LONG, (100, 700), "b")) & set(keys)
    assert not set(prefix_keys([5, *LONG[1:]], (100, 700), "a")) & set(keys)
    assert prefix_keys(LONG, (), "a")[-1] == keys[-1]
    assert prefix_keys([], (), "a") != []


def test_a_conversation_stays_unless_its_server_is_clearly_busier() -> None:
    router = PrefixRouter()
    keys = prefix_keys(LONG, (100, 700), "a")
    router.remember(keys, 1)
    later = prefix_keys([*LONG, 1, 2, 3], (100, 700, 2000), "a")
    assert router.choose(later, [0, 4, 0]) == 1
    assert router.choose(later, [0, 5, 1]) == 0
    assert router.choose(later, [10, 19, 10]) == 1
    assert router.choose(later, [10, 20, 11]) == 0
    assert router.choose(later, [3, None, 4]) == 0
    assert router.choose(later, [None, None, None]) is None


def test_equal_servers_take_turns_and_the_oldest_is_forgotten() -> None:
    router = PrefixRouter(most=3)
    assert sorted(router.choose([b"x"], [0, 0, 0]) for _ in range(6)) == [0, 0, 1, 1, 2, 2]
    router.remember([b"a", b"b"], 1)
    router.remember([b"c", b"d"], 0)
    assert {router.choose([b"a"], [0, 1]) for _ in range(3)} == {0}
    assert router.choose([b"b"], [0, 1]) == 1
