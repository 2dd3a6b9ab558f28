"""Suites by name: a file of `dsv4/evals/suites`, or a module of the user's with a SUITE."""

import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from dsv4.evals import suites
from dsv4.evals.suite import Suite


def suite_names() -> tuple[str, ...]:
    """The suites that dsv4 has."""
    return tuple(sorted(found.name for found in pkgutil.iter_modules(suites.__path__)))


def suite_named(name: str, more: Mapping[str, str] | None = None) -> Suite:
    """A suite of ours by its name; else the SUITE of a Python file, or of a module (`package.module`). more: further
    names and their modules. Raises ValueError."""
    name = (more or {}).get(name, name)
    if name in suite_names():
        return _suite(importlib.import_module(f"{suites.__name__}.{name}"), name)
    if name.endswith(".py"):
        return _suite(_module_of(Path(name)), name)
    if "." in name:
        try:
            return _suite(importlib.import_module(name), name)
        except ModuleNotFoundError as error:
            raise ValueError(f"--suite {name}: {error}; a file must be a Python file (NAME.py)") from None
    names = ", ".join(sorted({*suite_names(), *(more or {})}))
    raise ValueError(f"--suite must be one of {names}, a Python file (NAME.py) or a module, got {name!r}")


def _module_of(file: Path) -> ModuleType:
    if not file.is_file():
        raise ValueError(f"--suite {file}: there is no such file")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None  # it ends with .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _suite(module: ModuleType, name: str) -> Suite:
    found = getattr(module, "SUITE", None)
    if not isinstance(found, Suite):
        raise ValueError(f"--suite {name}: the module must have a SUITE, a dsv4.evals.suite.Suite")
    return found
