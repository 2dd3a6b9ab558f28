"""Where things lie on disk. No torch."""

from pathlib import Path

import dsv4


def default_model_folder() -> Path:
    """The bundled model: beside the package in a checkout, inside it in an installed wheel.

    Raises FileNotFoundError when neither is there.
    """
    package = Path(dsv4.__file__).parent
    for folder in (package.parent / "models" / "nano", package / "models" / "nano"):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError("the bundled model is missing: models/nano has no config.json")
