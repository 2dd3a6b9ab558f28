"""`dsv4 completion`: the script that lets a shell complete verbs, flags and their values."""

import sys
from typing import Literal, get_args

Shell = Literal["bash", "zsh", "fish"]


def completion(shell: Shell | None = None, *, install: bool = False) -> None:
    """Print the completion script of a shell, or install it for the current user.

    Parameters
    ----------
    shell
        bash, zsh or fish. Default: the shell that runs this command.
    install
        Write the script into the user's folder of completions, and for bash and zsh a line into ~/.bashrc or ~/.zshrc
        that loads it. New shells then have it.
    """
    from dsv4.cli.__main__ import make_app

    app, name = make_app(), shell or running_shell()
    if not install:
        sys.stdout.write(app.generate_completion(shell=name))
        return
    written = app.install_completion(shell=name)
    needs = "; ~/.zshrc must run `autoload -Uz compinit && compinit`" if name == "zsh" else ""
    print(f"wrote {written}; new {name} shells complete dsv4{needs}")


def running_shell() -> Shell:
    """The shell this command was started from, else the user's. Raises ValueError if it is none of the known ones."""
    from cyclopts.completion.detect import ShellDetectionError, detect_shell

    try:
        found = detect_shell()
    except ShellDetectionError:
        found = None
    for shell in get_args(Shell):
        if shell == found:
            return shell
    known = ", ".join(get_args(Shell))
    raise ValueError(f"shell must be one of {known}; this one was not recognised, so name it: dsv4 completion bash")
