"""The list of MCP servers that a page may use, in the `mcpServers` form that MCP clients share.

Nothing that is not in the list can be started or reached: programs are bridged at `/mcp/NAME`, and the page's content
security policy lets it connect to the listed addresses only.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import urlsplit

NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
PROGRAM_FIELDS = frozenset({"type", "command", "args", "env", "cwd", "timeout", "disabled"})
ADDRESS_FIELDS = frozenset({"type", "url", "disabled"})
FILE_FIELDS = frozenset({"mcpServers", "allowedOrigins"})
# what a program gets of this server's environment: never keys
INHERITED = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER")
TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class McpProgram:
    """One stdio server. command: absolute path and arguments; environment: all variables that it gets; folder: where
    it runs, None = where this server runs; seconds: how long it may be silent while it owes an answer."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path | None = None
    seconds: float = TIMEOUT_SECONDS


@dataclass(frozen=True, slots=True)
class AllowedMcp:
    """The MCP servers of a page. programs: bridged by this server; addresses: streamable HTTP servers by name, to
    which the page connects itself; origins: those of the addresses, and further ones of which users may add servers.

    >>> AllowedMcp.parse({"mcpServers": {"a": {"url": "http://127.0.0.1:3001/mcp"}}}).origins
    ('http://127.0.0.1:3001',)
    """

    programs: Mapping[str, McpProgram] = field(default_factory=lambda: MappingProxyType({}))
    addresses: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    origins: tuple[str, ...] = ()

    @classmethod
    def load(cls, file: Path) -> Self:
        """The list of a JSON file. Raises OSError, or ValueError naming the file, the server and the field."""
        try:
            return cls.parse(json.loads(file.read_text(encoding="utf-8-sig")))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    @classmethod
    def parse(cls, value: object) -> Self:
        """The list of a decoded file. Raises ValueError naming the server and the field."""
        top = _mapping("the file", value, FILE_FIELDS)
        if "mcpServers" not in top:
            raise ValueError("mcpServers: required, but missing")
        programs: dict[str, McpProgram] = {}
        addresses: dict[str, str] = {}
        for name, entry in _mapping("mcpServers", top["mcpServers"]).items():
            place = f"mcpServers.{name}"
            if not NAME.fullmatch(name):
                raise ValueError(f"{place}: a name has 1 to 32 letters, digits, - and _")
            own = _mapping(place, entry, ADDRESS_FIELDS if "url" in _mapping(place, entry) else PROGRAM_FIELDS)
            if own.get("disabled") is True:
                continue
            if "url" in own:
                addresses[name] = _text(f"{place}.url", own["url"])
                origin_of(f"{place}.url", addresses[name])
            else:
                programs[name] = _program(name, place, own)
        origins = [origin_of(f"mcpServers.{name}.url", url) for name, url in addresses.items()]
        for index, origin in enumerate(_texts("allowedOrigins", top.get("allowedOrigins", []))):
            place = f"allowedOrigins[{index}]"
            if origin_of(place, origin) != origin:
                raise ValueError(f"{place}: expected an origin such as http://127.0.0.1:3001, got {origin!r}")
            origins.append(origin)
        frozen = MappingProxyType(programs), MappingProxyType(addresses)
        return cls(*frozen, tuple(dict.fromkeys(origins)))

    def __bool__(self) -> bool:
        return bool(self.programs or self.origins)


def origin_of(place: str, url: str) -> str:
    """Scheme, host and port of an http or https address. Raises ValueError naming `place`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    # only what cannot end or widen a directive of the content security policy
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not re.fullmatch(r"[A-Za-z0-9.-]+|[0-9a-f:]+", host):
        raise ValueError(f"{place}: expected an http or https address, got {url!r}")
    if parts.username is not None:
        raise ValueError(f"{place}: an address must hold no password, because every user of the page sees it")
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}" + ("" if port is None else f":{port}")


def _program(name: str, place: str, own: Mapping[str, Any]) -> McpProgram:
    if own.get("type", "stdio") != "stdio":
        raise ValueError(f"{place}.type: expected 'stdio' beside a command, got {own['type']!r}")
    added = {
        key: _text(f"{place}.env.{key}", text) for key, text in _mapping(f"{place}.env", own.get("env", {})).items()
    }
    environment = {key: os.environ[key] for key in INHERITED if key in os.environ} | added
    command = _text(f"{place}.command", own.get("command"))
    found = shutil.which(command, path=environment.get("PATH"))
    if found is None:
        raise ValueError(f"{place}.command: there is no program {command!r}")
    folder = None if own.get("cwd") is None else Path(_text(f"{place}.cwd", own["cwd"])).expanduser()
    if folder is not None and not folder.is_dir():
        raise ValueError(f"{place}.cwd: {folder} is no folder")
    seconds = own.get("timeout", TIMEOUT_SECONDS)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= 3600:
        raise ValueError(f"{place}.timeout: must be in (0, 3600] seconds, got {seconds!r}")
    arguments = _texts(f"{place}.args", own.get("args", []))
    absolute = os.path.abspath(found)
    return McpProgram(name, (absolute, *arguments), MappingProxyType(environment), folder, float(seconds))


def _mapping(place: str, value: object, known: frozenset[str] | None = None) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{place}: expected an object, got {value!r:.80}")
    unknown = sorted(value.keys() - known) if known is not None else []
    if unknown:
        assert known is not None
        raise ValueError(f"{place}: {unknown[0]!r} is not supported; known are {', '.join(sorted(known))}")
    return value


def _text(place: str, value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{place}: expected a text, got {value!r:.80}")
    return value


def _texts(place: str, value: object) -> list[str]:
    if not isinstance(value, list):
        raise ValueError(f"{place}: expected a list of texts, got {value!r:.80}")
    return [_text(f"{place}[{index}]", text) for index, text in enumerate(value)]
