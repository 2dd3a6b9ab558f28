"""The sandbox as a tool that a policy calls."""

from typing import Any

from dsv4.posttraining.chat import Tool, ToolError
from dsv4.sandbox.python import PythonSandbox


def python_tool(sandbox: PythonSandbox, name: str = "python") -> Tool:
    """A tool that takes `code` and returns what it prints."""
    description = "Runs a Python program in a fresh process and returns what it prints."
    parameters = {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]}
    function = {"name": name, "description": description, "parameters": parameters}

    async def run(arguments: dict[str, Any]) -> str:
        code = arguments.get("code")
        if not isinstance(code, str):
            raise ToolError("code must be a string")
        return (await sandbox.run(code)).text

    # programs end by the limits of the sandbox; a place may take long to come
    return Tool(function, run, seconds=3600.0)
