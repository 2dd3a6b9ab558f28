"""A radix tree over token ids. It maps token sequences to values and finds the sequences that are prefixes of a
query."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
_WIDTH = 4


def token_key(tokens: Sequence[int]) -> bytes:
    """Token ids as bytes, four for each: two prefixes are then compared in one memory comparison."""
    key = array("I", tokens)
    assert key.itemsize == _WIDTH
    return key.tobytes()


def _agree(edge: bytes, key: bytes, at: int) -> int:
    """The number of bytes, in whole tokens, in which `edge` agrees with `key` from `at` on; by binary search, because
    edges may be long."""
    if key.startswith(edge, at):
        return len(edge)
    low, high = 0, min(len(edge), len(key) - at) // _WIDTH
    while low < high:
        middle = (low + high + 1) // 2
        if edge[: middle * _WIDTH] == key[at : at + middle * _WIDTH]:
            low = middle
        else:
            high = middle - 1
    return low * _WIDTH


class _Node(Generic[T]):
    __slots__ = ("children", "edge", "parent", "value")

    def __init__(self, edge: bytes, parent: "_Node[T] | None") -> None:
        self.edge, self.parent = edge, parent
        self.children: dict[bytes, _Node[T]] = {}
        self.value: T | None = None


class RadixTree(Generic[T]):
    """Maps token sequences (as `token_key`) to values. The empty sequence has no value."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node(b"", None)

    def __bool__(self) -> bool:
        """Whether the tree has a value."""
        return bool(self._root.children)

    def get(self, key: bytes) -> T | None:
        """The value of exactly this sequence."""
        node, at, rest = self._walk(key)
        return node.value if at == len(key) and not rest else None

    def prefixes(self, key: bytes) -> Iterator[T]:
        """The values of all sequences that are prefixes of `key`, the shortest first."""
        node, at = self._root, 0
        while (child := node.children.get(key[at : at + _WIDTH])) is not None and key.startswith(child.edge, at):
            node, at = child, at + len(child.edge)
            if node.value is not None:
                yield node.value

    def parents(self) -> Iterator[tuple[T, T | None]]:
        """Each value with that of the longest sequence which is a prefix of its own; a value comes after its parent."""
        todo: list[tuple[_Node[T], T | None]] = [(self._root, None)]
        while todo:
            node, above = todo.pop()
            if node.value is not None:
                yield node.value, above
                above = node.value
            todo += [(child, above) for child in node.children.values()]

    def set(self, key: bytes, value: T) -> None:
        """Set the value of a sequence. Raises ValueError for the empty sequence."""
        if not key:
            raise ValueError("the empty sequence has no value")
        node, at, shared = self._walk(key)
        if shared:
            node = self._split(node.children[key[at : at + _WIDTH]], shared)
            at += shared
        if at < len(key):
            child = _Node(key[at:], node)
            node.children[key[at : at + _WIDTH]] = child
            node = child
        node.value = value

    def remove(self, key: bytes) -> None:
        """Remove the value of a sequence. Raises KeyError when there is none."""
        node, at, rest = self._walk(key)
        if at != len(key) or rest or node.value is None:
            raise KeyError(key)
        node.value = None
        while node.parent is not None and node.value is None and len(node.children) < 2:
            parent = node.parent
            if node.children:
                (child,) = node.children.values()
                child.edge, child.parent = node.edge + child.edge, parent
                parent.children[child.edge[:_WIDTH]] = child
                return
            del parent.children[node.edge[:_WIDTH]]
            node = parent

    def _walk(self, key: bytes) -> tuple[_Node[T], int, int]:
        """The deepest node whose sequence is a prefix of `key`, the length of that sequence, and the number of bytes in
        which the next edge agrees."""
        node, at = self._root, 0
        while (child := node.children.get(key[at : at + _WIDTH])) is not None:
            shared = _agree(child.edge, key, at)
            if shared < len(child.edge):
                return node, at, shared
            node, at = child, at + shared
        return node, at, 0

    @staticmethod
    def _split(node: _Node[T], length: int) -> _Node[T]:
        """Cut an edge. Returns the new node at the cut."""
        parent = node.parent
        assert parent is not None
        upper = _Node(node.edge[:length], parent)
        parent.children[upper.edge[:_WIDTH]] = upper
        node.edge, node.parent = node.edge[length:], upper
        upper.children[node.edge[:_WIDTH]] = node
        return upper
