"""Exceptions at the border of one request: which of them end only that request, and what its client is told."""

# these mean the program, not a request: they go on to whoever runs the engine
_PROGRAM = (KeyboardInterrupt, SystemExit, GeneratorExit)
_LONGEST = 400


class SamplingError(RuntimeError):
    """No token can be chosen for one answer; the message is for its client."""


def fault_of(error: BaseException) -> str:
    """What to tell of an exception that one request has caused. Whatever stops the program is raised again.

    Takes any BaseException: a panic in a Rust library is no Exception.
    """
    if isinstance(error, _PROGRAM):
        raise error
    text = str(error).strip().split("\n", 1)[0][:_LONGEST]
    return text if isinstance(error, SamplingError) and text else f"{type(error).__name__}: {text}"
