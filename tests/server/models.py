"""Models behind the application in tests: the bundled one, and a script with an exact prefix cache."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsv4.encoding import Tokenizer
from dsv4.server import Settings, create_app
from tests.agents.scripted import ScriptedModel
from tests.conftest import ROOT
from tests.server.conftest import MODEL, Server


def block(*calls: tuple[str, dict[str, Any]]) -> str:
    """A block of calls as the model writes it."""
    lines = ["\n\n<｜DSML｜tool_calls>"]
    for name, arguments in calls:
        lines.append(f'<｜DSML｜invoke name="{name}">')
        for key, value in arguments.items():
            text = value if isinstance(value, str) else json.dumps(value)
            kind = "true" if isinstance(value, str) else "false"
            lines.append(f'<｜DSML｜parameter name="{key}" string="{kind}">{text}</｜DSML｜parameter>')
        lines.append("</｜DSML｜invoke>")
    return "\n".join([*lines, "</｜DSML｜tool_calls>"])


class Nano(Server):
    """The application over the bundled model."""

    def __init__(self, context: int) -> None:
        from dsv4.api.loading import load

        model = load(ROOT / "models" / "nano", context_length=context)
        assert model.tokenizer is not None
        self.tokenizer, self.service = model.tokenizer, model.service
        settings = Settings(keep_alive=0.1)
        self.app = create_app(model.service, model.tokenizer, model_name=MODEL, settings=settings)


class Cached(ScriptedModel):
    """A fixed script with the exact prefix cache of the scripted agent model."""

    def __init__(self, tokenizer: Tokenizer, script: str) -> None:
        super().__init__(tokenizer, Path("/"))
        self.script = [*tokenizer.encode_text(script, trusted=True), tokenizer.eos_id]

    def _answer(self, ids: Sequence[int]) -> list[int]:
        return self.script


def cached_server(tokenizer: Tokenizer, script: str) -> Server:
    server = Server.__new__(Server)
    server.tokenizer = tokenizer
    server.app = create_app(Cached(tokenizer, script), tokenizer, model_name=MODEL, settings=Settings())
    return server
