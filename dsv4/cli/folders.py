"""Where the bundled model lies. No torch."""

from dsv4.api.folders import default_model_folder

__all__ = ["default_model_folder"]
