"""The first thing that runs in the process of a sandbox: it gives up what the program must not have, and becomes it.

Started by `dsv4.sandbox.python` with Python's isolated mode and the limits as arguments; imports nothing of ours.
"""

import contextlib
import ctypes
import os
import resource
import sys

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_KEEP_CAPABILITIES, _CAPABILITY_VERSION, _READ_ALL = 8, 0x20080522, 1 << 2
_FIRST_USER = 1_000_000  # as root, each process gets a user of its own: limits then count it alone


def cut_off_network() -> bool:
    """Move into an empty network namespace. False where the system does not allow it."""
    try:
        unshare = ctypes.CDLL(None, use_errno=True).unshare
    except (OSError, AttributeError):
        return False
    return unshare(_NEW_NETWORK) == 0 or unshare(_NEW_USER | _NEW_NETWORK) == 0


def _become(user: int) -> None:
    """Another user than root, who can still read Python's own files where only root may look into their folder."""
    libc, keep = ctypes.CDLL(None), not _open_to_all(os.__file__)
    if keep:
        libc.prctl(_KEEP_CAPABILITIES, 1, 0, 0, 0)
    os.chown(".", user, user)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    if keep:
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
        libc.capset(header, (ctypes.c_uint32 * 6)(_READ_ALL, _READ_ALL, 0, 0, 0, 0))


def _open_to_all(path: str) -> bool:
    while path != "/":
        path = os.path.dirname(path)
        if not os.stat(path).st_mode & 0o001:
            return False
    return True


def _tasks_of_user() -> int:
    """Threads that this user has already: the limit counts them too."""
    count = 0
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with contextlib.suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def main(cpu_seconds: int, memory: int, file: int, processes: int) -> None:
    """Limits in seconds, bytes, bytes, and processes; then run main.py of the current folder."""
    cut_off_network()
    before = 0
    if os.getuid() == 0:
        _become(_FIRST_USER + os.getpid())
    else:
        before = _tasks_of_user() - 1
    _limit(resource.RLIMIT_CPU, cpu_seconds)
    _limit(resource.RLIMIT_FSIZE, file)
    _limit(resource.RLIMIT_NOFILE, 64)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NPROC, before + processes)
    with open("main.py", encoding="utf-8") as source:
        program = compile(source.read(), "main.py", "exec")
    _limit(resource.RLIMIT_AS, memory)
    names = {"__name__": "__main__", "__builtins__": __builtins__}
    exec(program, names)


if __name__ == "__main__":
    if sys.argv[1:] == ["probe"]:
        sys.exit(0 if cut_off_network() else 1)
    main(*map(int, sys.argv[1:]))
