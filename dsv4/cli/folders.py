"""Where models lie: the bundled one, folders, and pulled models by name. No torch."""

from pathlib import Path

from dsv4.api.folders import default_model_folder, model_folder

__all__ = ["default_model_folder", "model_folder", "recipe_folder"]


def recipe_folder(named: str) -> str:
    """The folder of a model that a recipe names: of the bundled or a pulled one for its name; any other path is
    returned as it is written. Raises FileNotFoundError for the name of a model that was not pulled."""
    found = model_folder(named)
    return named if found == Path(named) else str(found)


def served_folder(target: str) -> Path:
    """The folder of a TARGET that is no URL, which a command serves meanwhile. Raises ValueError for a file."""
    folder = model_folder(Path(target))
    if not folder.is_dir():
        raise ValueError(f"TARGET must be http://HOST:PORT, a model folder or its name, got {target!r}")
    return folder
