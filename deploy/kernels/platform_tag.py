"""Build hook of dsv4-kernels: the wheel fits every Python 3 of one platform, which the file platform.txt names."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PlatformTag(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        platform = (Path(self.root) / "platform.txt").read_text(encoding="utf-8").strip()
        build_data["tag"] = f"py3-none-{platform}"
        build_data["pure_python"] = False
