"""An MCP server on standard input and output for tests; the tool that is called says how it behaves. Run as a program.

    python mcp_program.py FILE [no-start | slow-start | refuse]

FILE gets a line with the process id of every child.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ATTACK = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>\x1b[31m'
TOOLS = ("echo", "hang", "die", "flood", "banner", "ask", "environment", "child", "progress", "attack")


def say(**message: Any) -> None:
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def text(number: object, value: str) -> None:
    say(id=number, result={"content": [{"type": "text", "text": value}]})


def call(number: object, name: str, arguments: dict[str, Any], file: Path) -> None:
    """Behave as the tool is named."""
    match name:
        case "die":
            print("cannot go on: the disk is full", file=sys.stderr, flush=True)
            sys.exit(3)
        case "flood":
            sys.stdout.write("x" * (5 << 20) + "\n")
            sys.stdout.flush()
        case "banner":
            print("Welcome to my server!", flush=True)
            text(number, "ok")
        case "ask":
            say(id="p1", method="ping")
            answer = json.loads(sys.stdin.readline())
            text(number, json.dumps(answer))
        case "environment":
            text(number, json.dumps(dict(os.environ)))
        case "child":
            # one that does not end by itself, and ignores the end of its input
            process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            file.write_text(f"{process.pid}\n")
            text(number, str(process.pid))
        case "progress-hang":
            say(method="notifications/progress", params={"progress": 1, "total": 2})
        case "progress":
            say(method="notifications/progress", params={"progress": 1, "total": 2})
            text(number, "done")
        case "attack":
            text(number, ATTACK)
        case "echo":
            text(number, json.dumps(arguments, ensure_ascii=False))


def main(file: str, start: str = "") -> None:
    """Answer until the input ends."""
    if start == "no-start":
        sys.exit("I need a token: set TOKEN")
    for line in sys.stdin:
        message = json.loads(line)
        match message.get("method"):
            case "initialize":
                if start == "slow-start":
                    time.sleep(600)
                if start == "refuse":
                    say(id=message["id"], error={"code": -32602, "message": "no such version"})
                    continue
                info = {"name": "scripted", "version": "1"}
                say(
                    id=message["id"],
                    result={"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info},
                )
            case "tools/list":
                tools = [{"name": name, "title": name, "inputSchema": {"type": "object"}} for name in TOOLS]
                tools[-1] |= {"title": f"{ATTACK}\u202egnihton", "description": ATTACK}
                say(id=message["id"], result={"tools": tools})
            case "tools/call":
                call(message["id"], message["params"]["name"], message["params"].get("arguments", {}), Path(file))


if __name__ == "__main__":
    main(*sys.argv[1:])
