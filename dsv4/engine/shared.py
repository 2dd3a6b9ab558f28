"""One engine for callers in any number of threads, without an event loop, as a model in a Python program needs it.

A thread of its own runs the steps, and only while a caller waits for a token. Ctrl-C in a caller therefore never
interrupts a step that others share. Callers reach the thread through queues only, because a signal cannot leave a queue
half locked.
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
    """A caller's request and the events for it."""

    inbox: "SimpleQueue[TokenEvent | BaseException]" = field(default_factory=SimpleQueue)
    request: Request | None = None


class SharedEngine:
    """`generate` and `alone` may be called from any thread at any time; requests that are open at the same time are
    batched, and none changes another's tokens. Only the process that made it may use it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commands: SimpleQueue[Command | None] = SimpleQueue()
        self._tickets: dict[Request, _Ticket] = {}
        self._waiting: set[_Ticket] = set()
        self._process = os.getpid()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._user: int | None = None  # the thread that is inside `alone`

    def generate(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> Generator[TokenEvent, None, None]:
        """Run one request to its end; closing the iterator cancels it. Raises the exceptions of Engine.submit and of a
        step, and RuntimeError in a forked process or in a hook of the model."""
        ticket = _Ticket()
        threads = torch.get_num_threads()
        try:
            # in the caller's thread, because a grammar may take seconds to start
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
        """No step runs inside this context, so the calling thread may use the model itself. A thread may enter it
        twice."""
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
                "this model was loaded before the process forked, and its threads exist only in the old process: "
                "call dsv4.load in the new process (or start it with multiprocessing's 'spawn')"
            )
        if self._is_worker() or threading.get_ident() == self._user:
            raise RuntimeError("a hook of the model called the same model, which would wait for itself")
        with self._starting:
            if self._thread is None:
                weakref.finalize(self, self._commands.put, None)
                thread = threading.Thread(
                    target=_work, args=(weakref.ref(self), self._commands), name="dsv4-steps", daemon=True
                )
                self._thread = thread
                thread.start()
        self._commands.put(command)

    # the methods below run in the thread of the steps

    def _submit(self, ticket: _Ticket, threads: int, request: Request) -> None:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)  # torch has a setting for each thread
        try:
            ticket.request = self._engine.enter(request)
        except Exception as error:  # the caller handles it
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
        except BaseException as error:  # the border of the thread: the callers of the step get the error
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
    """Run commands, then a step if a caller waits; end when the SharedEngine is garbage-collected."""
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
