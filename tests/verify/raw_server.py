"""A server that answers every request with given bytes, and then does what it likes with the connection."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
Answer = Callable[[socket.socket, threading.Event], None]


@contextmanager
def raw_server(answer: Answer) -> Iterator[str]:
    """The address of the server while the block runs. answer: called with each connection, when its request is read,
    and with an event that is set at the end of the block."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)

        def talk(connection: socket.socket) -> None:
            with connection:
                try:
                    _read_request(connection)
                    answer(connection, ended)
                except OSError:  # the client has left
                    return

        def accept() -> None:
            while not ended.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                connection.settimeout(20)
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            thread.join()


def _read_request(connection: socket.socket) -> None:
    """All of it: what is left unread when the connection is closed would reset it, and the answer could be lost."""
    data = b""
    while b"\r\n\r\n" not in data and (more := connection.recv(65536)):
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    left = int(length[1]) - len(body) if length else 0
    while left > 0 and (more := connection.recv(65536)):
        left -= len(more)


def says(data: bytes) -> Answer:
    """These bytes, and the end of the connection."""
    return lambda connection, ended: connection.sendall(data)


def drips(head: bytes, drop: bytes, pause: float = 0.02) -> Answer:
    """A head, and then the same bytes for ever."""

    def answer(connection: socket.socket, ended: threading.Event) -> None:
        connection.sendall(head)
        while not ended.wait(pause):
            connection.sendall(drop)

    return answer


def is_silent(connection: socket.socket, ended: threading.Event) -> None:
    """No byte."""
    ended.wait(20)
