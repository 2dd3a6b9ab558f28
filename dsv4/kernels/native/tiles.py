"""The tile registers of AMX: Linux gives them to a process that asks."""

import ctypes
import os
from functools import cache

# <asm/unistd_64.h>, <asm/prctl.h> and the kernel's "Using XSTATE features in user space applications"
_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


@cache
def refusal_of_tiles() -> str:
    """Ask once for the tile registers, for all threads of this process; empty if they are given, else why not.

    Only for an x86-64 machine that has them.
    """
    system = ctypes.CDLL(None, use_errno=True)
    system.syscall.argtypes = [ctypes.c_long] * 3
    if system.syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0:
        return ""
    return f"the system refuses the tile registers of amx (arch_prctl: {os.strerror(ctypes.get_errno())})"
