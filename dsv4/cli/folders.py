"""Where models lie: the bundled one, folders, and pulled models by name. No torch."""

from dsv4.api.folders import default_model_folder, model_folder

__all__ = ["default_model_folder", "model_folder"]
