"""Where things lie on disk. No torch."""

from pathlib import Path

import dsv4


def default_model_folder() -> Path:
    """The bundled model, models/nano of the checkout. Raises FileNotFoundError when it is not there."""
    folder = Path(dsv4.__file__).parents[1] / "models" / "nano"
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"the bundled model is not at {folder}: name a model folder")
    return folder
