"""Exceptions at the border of one request: which of them end only that request, and the message for its client."""

# these concern the program, not a request; the caller of the engine gets them
_PROGRAM = (KeyboardInterrupt, SystemExit, GeneratorExit)
_LONGEST = 400


class SamplingError(RuntimeError):
    """No token can be sampled for one answer; the client of the answer gets the message."""


def fault_of(error: BaseException) -> str:
    """The message for the client of a request that caused an exception. Exceptions that stop the program are raised
    again.

    Accepts any BaseException, because a panic in a Rust library is no Exception.
    """
    if isinstance(error, _PROGRAM):
        raise error
    text = str(error).strip().split("\n", 1)[0][:_LONGEST]
    return text if isinstance(error, SamplingError) and text else f"{type(error).__name__}: {text}"
