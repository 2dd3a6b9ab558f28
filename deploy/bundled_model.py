"""Build hook of dsv4: its wheel holds the bundled model. An editable installation finds the model in the checkout."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BundledModel(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            build_data["force_include"]["models/nano"] = "dsv4/models/nano"
