"""Cut what the tests need from the full recorded data: `python tests/golden/cut.py FULL [TARGET]`.

Files keep their places. Left out are the weights and logits of the recorded model (14 MB), the tokenizer's vocabulary,
and what the official API answered beside its token counts.
"""

import json
import sys
from pathlib import Path

WHOLE = (
    "configs/*_config.json",
    "configs/*_expert0_only.json",
    "encoding/*.json",
    "encoding/upstream/*",
    "reference/ops.safetensors",
    "reference/flash_like/*.json",
)
KEPT = {
    "configs/tokenizer_added_tokens_and_pretokenizer.json": ("pre_tokenizer",),
    "encoding/api_vectors/official/*.json": ("source", "created_at", "request", "usage"),
}


def cut(full: Path, target: Path) -> None:
    """Write the files the tests need from `full` under `target`."""
    for pattern in WHOLE:
        for file in sorted(full.glob(pattern)):
            _write(target / file.relative_to(full), file.read_bytes())
    for pattern, fields in KEPT.items():
        for file in sorted(full.glob(pattern)):
            value = json.loads(file.read_text(encoding="utf-8"))
            text = json.dumps({name: value[name] for name in fields}, ensure_ascii=False, indent=1)
            _write(target / file.relative_to(full), text.encode() + b"\n")


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


if __name__ == "__main__":
    cut(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent)
