"""One engine for callers in any number of threads, without an event loop: what a model in a Python program needs.

Steps are taken only while somebody waits for a token, and by one thread of its own: Ctrl-C in a caller then never
falls into a step that others share. Callers reach it through queues alone, which a signal cannot leave half locked.
"""

import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue

import torch

from dsv4.engine.engine import Engine
from dsv4.engine.request import Request
from dsv4.generation import RequestOptions, SamplingParams, TokenEvent

Command = Callable[["SharedEngine"], None]


@dataclass(eq=False, slots=True)
class _Ticket:
    """A caller's request and what it has been told."""

    inbox: "SimpleQueue[TokenEvent | BaseException]" = field(default_factory=SimpleQueue)
    request: Request | None = None


class SharedEngine:
    """`generate` and `alone` may be called from any thread at any time; requests that are open together are batched,
    and none changes another's tokens. Belongs to the process that made it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commands: SimpleQueue[Command | None] = SimpleQueue()
        self._tickets: dict[Request, _Ticket] = {}
        self._waiting: set[_Ticket] = set()
        self._process = os.getpid()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._user: int | None = None  # the thread that has the engine for itself, by `alone`

    def generate(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> Generator[TokenEvent, None, None]:
        """Run one request to its end; closing the iterator cancels it. Raises what Engine.submit raises, what a step
        raised, and RuntimeError in a forked process or when called by the model itself (from a hook)."""
        ticket = _Ticket()
        threads = torch.get_num_threads()
        try:
            # in the caller's thread: a grammar may take seconds to start
            request = self._engine.prepare(prompt, params, options)
            self._do(lambda shared: shared._submit(ticket, threads, request))
            while True:
                if ticket.inbox.empty():
                    self._do(lambda shared: shared._want(ticket))
                event = ticket.inbox.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if event.finish is not None:
                    return
        finally:
            self._commands.put(lambda shared: shared._leave(ticket))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While this is held no step runs: the calling thread may use the model itself. A thread may hold it twice."""
        me = threading.get_ident()
        if me == self._user or self._is_worker():
            yield
            return
        begin: SimpleQueue[None] = SimpleQueue()
        end: SimpleQueue[None] = SimpleQueue()
        try:
            self._do(lambda shared: shared._pause(begin, end))
            begin.get()
            self._user = me
            yield
        finally:
            if self._user == me:
                self._user = None
            end.put(None)

    def _is_worker(self) -> bool:
        return threading.current_thread() is self._thread

    def _do(self, command: Command) -> None:
        if os.getpid() != self._process:
            raise RuntimeError(
                "this model was loaded before the process forked, and its threads stayed behind: "
                "call dsv4.load in the new process (or start it with multiprocessing's 'spawn')"
            )
        if self._is_worker() or threading.get_ident() == self._user:
            raise RuntimeError("a hook of the model asked the same model for an answer, which would wait for itself")
        with self._starting:
            if self._thread is None:
                weakref.finalize(self, self._commands.put, None)
                thread = threading.Thread(
                    target=_work, args=(weakref.ref(self), self._commands), name="dsv4-steps", daemon=True
                )
                self._thread = thread
                thread.start()
        self._commands.put(command)

    # what follows runs in the thread of the steps

    def _submit(self, ticket: _Ticket, threads: int, request: Request) -> None:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)  # torch counts them per thread
        try:
            ticket.request = self._engine.enter(request)
        except Exception as error:  # the caller's to handle
            ticket.inbox.put(error)
            return
        self._tickets[ticket.request] = ticket

    def _want(self, ticket: _Ticket) -> None:
        if ticket.inbox.empty() and ticket.request in self._tickets:
            self._waiting.add(ticket)

    def _leave(self, ticket: _Ticket) -> None:
        self._waiting.discard(ticket)
        if ticket.request is not None:
            self._tickets.pop(ticket.request, None)
            self._engine.cancel(ticket.request)

    def _pause(self, begin: "SimpleQueue[None]", end: "SimpleQueue[None]") -> None:
        begin.put(None)
        end.get()

    def _step(self) -> None:
        try:
            emitted = self._engine.step()
        except BaseException as error:  # the border of the thread: whoever had a part in the step is told
            failed = [ticket for request, ticket in self._tickets.items() if request.failed] or list(self._waiting)
            for ticket in failed:
                self._give(ticket, error)
            return
        for request, event in emitted:
            if request in self._tickets:
                self._give(self._tickets[request], event)

    def _give(self, ticket: _Ticket, event: TokenEvent | BaseException) -> None:
        self._waiting.discard(ticket)
        ticket.inbox.put(event)


def _work(owner: "weakref.ref[SharedEngine]", commands: "SimpleQueue[Command | None]") -> None:
    """Commands first, then a step if anybody waits; ends when the engine's owner is gone."""
    while (command := commands.get()) is not None:
        shared = owner()
        if shared is None:
            return
        command(shared)
        while shared._waiting:
            while not commands.empty():
                if (command := commands.get()) is None:
                    return
                command(shared)
            if shared._waiting:
                shared._step()
        command = None
        del shared
