"""Where models lie: the bundled one, folders, and pulled models by name. No torch."""

from pathlib import Path

from dsv4.api.folders import default_model_folder, model_folder

__all__ = ["default_model_folder", "model_folder", "recipe_folder"]


def recipe_folder(named: str) -> str:
    """The folder of a model that a recipe names: of the bundled or a pulled one for its name; any other path is
    returned as it is written. Raises FileNotFoundError for the name of a model that was not pulled."""
    found = model_folder(named)
    return named if found == Path(named) else str(found)
