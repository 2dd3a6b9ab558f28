"""The programs people point at a server: how each is installed outside the repository, told where it is, and run."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.agents.scripted import TASK

CACHE = Path.home() / ".cache" / "dsv4" / "agents"
MODEL = "deepseek-v4-flash"
NODE = "node@24"  # Claude Code's newer versions do not start on older ones
NODE_BIN = CACHE / "node" / "node_modules" / "node" / "bin"
LLM_TOOLS = '''
def write_file(path: str, content: str) -> str:
    """Write a file."""
    open(path, "w").write(content)
    return "written"

def read_file(path: str) -> str:
    """Read a file."""
    return open(path).read()
'''


@dataclass(frozen=True, slots=True)
class Place:
    """Where one run happens: the address of the server, the client's own home folder, the folder it works in."""

    url: str
    home: Path
    work: Path


Files = Callable[[Place], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Client:
    """One program. package: with its version, of npm or (python) of the Python index; program: its executable.

    arguments, variables and files (relative to its home) are made for one `Place`. turns: how many requests it sends
    for the task at least; 1 for those without tools.
    """

    name: str
    package: str
    program: str
    arguments: Callable[[Place], list[str]]
    variables: Callable[[Place], dict[str, str]] = lambda place: {}
    files: Files = field(default=lambda place: {})
    python: bool = False
    turns: int = 3

    @property
    def executable(self) -> Path:
        folder = CACHE / self.program
        return folder / "bin" / self.program if self.python else folder / "node_modules" / ".bin" / self.program

    def install(self) -> None:
        """Into the cache folder, unless this version is there. Raises CalledProcessError or FileNotFoundError."""
        folder, stamp = CACHE / self.program, CACHE / self.program / f".{self.package.replace('/', '_')}"
        if stamp.is_file():
            return
        folder.mkdir(parents=True, exist_ok=True)
        if self.python:
            run([sys.executable, "-m", "venv", str(folder)])
            run([str(folder / "bin" / "pip"), "install", "-q", self.package])
        else:
            if not (NODE_BIN / "node").exists():
                npm_install(CACHE / "node", NODE)
            npm_install(folder, self.package)
        stamp.touch()

    def run(self, place: Place, seconds: float = 300) -> "subprocess.CompletedProcess[str]":
        """Give it the task; its output as text. Its home is empty but for `files`, its environment but for the path."""
        for name, text in self.files(place).items():
            file = place.home / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        environment = {
            "PATH": f"{NODE_BIN}:{os.environ['PATH']}",
            "HOME": str(place.home),
            "TERM": "dumb",
            "NO_COLOR": "1",
            **self.variables(place),
        }
        command = [str(self.executable), *self.arguments(place)]
        return subprocess.run(
            command, cwd=place.work, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=seconds,
        )  # fmt: skip


def npm_install(folder: Path, package: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = f"{NODE_BIN}:{os.environ['PATH']}"
    run(
        ["npm", "install", "--no-fund", "--no-audit", "--prefix", ".", package],
        cwd=folder,
        env={**os.environ, "PATH": path},
    )


def run(command: list[str], **options: object) -> None:
    """Raises CalledProcessError with what the command wrote."""
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=900, **options)  # type: ignore[call-overload]


def npm_is_there() -> bool:
    return shutil.which("npm") is not None


def _claude(place: Place) -> dict[str, str]:
    names = {f"ANTHROPIC_DEFAULT_{tier}_MODEL": MODEL for tier in ("SONNET", "HAIKU", "OPUS")}
    return {
        "ANTHROPIC_BASE_URL": place.url,
        "ANTHROPIC_AUTH_TOKEN": "none",
        "ANTHROPIC_MODEL": MODEL,
        **names,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "IS_SANDBOX": "1",
    }


def _codex(place: Place) -> dict[str, str]:
    return {
        ".codex/config.toml": f'model = "{MODEL}"\nmodel_provider = "local"\n\n[model_providers.local]\n'
        f'name = "local"\nbase_url = "{place.url}/v1"\nwire_api = "responses"\nenv_key = "LOCAL_KEY"\n'
    }


def _opencode(place: Place) -> dict[str, str]:
    model = {"interleaved": {"field": "reasoning_content"}, "reasoning": True, "tool_call": True,
             "limit": {"context": 131072, "output": 32768}}  # fmt: skip
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{place.url}/v1", "apiKey": "none"},
        "models": {MODEL: model},
    }
    return {".config/opencode/opencode.json": json.dumps({"provider": {"local": provider}, "permission": "allow"})}


def _pi(place: Place) -> dict[str, str]:
    model = {
        "id": MODEL, "name": MODEL, "reasoning": True, "input": ["text"], "contextWindow": 131072, "maxTokens": 384000,
        "compat": {"thinkingFormat": "deepseek", "requiresReasoningContentOnAssistantMessages": True},
    }  # fmt: skip
    provider = {"baseUrl": f"{place.url}/v1", "api": "openai-completions", "apiKey": "none", "models": [model]}
    return {".pi/agent/models.json": json.dumps({"providers": {"local": provider}})}


def _llm(place: Place) -> dict[str, str]:
    models = f"- model_id: local\n  model_name: {MODEL}\n  api_base: {place.url}/v1\n  supports_tools: true\n"
    return {"llm/extra-openai-models.yaml": models, "tools.py": LLM_TOOLS}


def _openai(place: Place) -> dict[str, str]:
    return {"OPENAI_BASE_URL": f"{place.url}/v1", "OPENAI_API_KEY": "none", "OPENAI_MODEL": MODEL}


CLIENTS = [
    Client(
        "Claude Code", "@anthropic-ai/claude-code@2.1.330", "claude",
        lambda place: ["-p", TASK, "--dangerously-skip-permissions"], _claude,
    ),
    Client(
        "Codex", "@openai/codex@0.169.0", "codex",
        lambda place: ["exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", TASK],
        lambda place: {"LOCAL_KEY": "none"}, _codex,
    ),
    Client(
        "OpenCode", "opencode-ai@1.18.33", "opencode",
        lambda place: ["run", "-m", f"local/{MODEL}", TASK],
        lambda place: {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_AUTOUPDATE": "1"}, _opencode,
    ),
    Client(
        "Pi", "@earendil-works/pi-coding-agent@0.74.2", "pi",
        lambda place: ["--provider", "local", "--model", MODEL, "-p", TASK],
        lambda place: {"PI_OFFLINE": "1"}, _pi,
    ),
    Client(
        "Qwen Code", "@qwen-code/qwen-code@0.24.4", "qwen",
        lambda place: ["--auth-type", "openai", "--yolo", "-p", TASK], _openai,
    ),
    Client(
        "aider", "aider-chat==0.86.2", "aider",
        lambda place: [
            "--model", f"openai/{MODEL}", "--yes-always", "--no-git", "--no-show-model-warnings", "--no-check-update",
            "--analytics-disable", "--no-show-release-notes", "--message", TASK, "hello.txt",
        ],
        lambda place: {"OPENAI_API_BASE": f"{place.url}/v1", "OPENAI_API_KEY": "none"}, python=True, turns=1,
    ),
    Client(
        "llm", "llm==0.36", "llm",
        lambda place: ["-m", "local", "--key", "none", "--functions", str(place.home / "tools.py"), TASK],
        lambda place: {"LLM_USER_PATH": str(place.home / "llm")}, _llm, python=True,
    ),
]  # fmt: skip
