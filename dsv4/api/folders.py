"""Where models lie on disk: the bundled one, folders, and pulled models by name. No torch."""

from pathlib import Path

import dsv4
from dsv4.hub.folders import find_pulled, is_begun
from dsv4.hub.names import RELEASED, Repository, repository


def model_folder(named: str | Path | None) -> Path:
    """The folder of a model: of the bundled one for None and `nano`, of a path, or of a pulled model (`flash`,
    `owner/name`).

    A folder of that name comes before the bundled and a pulled model. A path that does not exist and is no name is
    returned as it is, for the caller to report. Raises FileNotFoundError for the name of a model that was not pulled.
    """
    if named is None:
        return default_model_folder()
    path = Path(named)
    if path == Path("nano") and not path.exists():
        return default_model_folder()
    wanted = None if path.exists() else repository(path.as_posix())
    if wanted is None:
        return path
    folder = find_pulled(wanted)
    if folder is None:
        raise FileNotFoundError(not_pulled(path.as_posix(), wanted))
    return folder


def not_pulled(named: str, wanted: Repository) -> str:
    """The sentence for a name whose model is not here."""
    size = f" ({wanted.bytes / 2**30:,.1f} GiB)" if wanted.bytes else ""
    what = wanted.name if named in RELEASED else "the model of that name"
    if is_begun(wanted):
        return f"{named}: no such folder, and {what} was pulled only in part: `dsv4 pull {named}` goes on"
    return f"{named}: no such folder, and {what} was not pulled: `dsv4 pull {named}` fetches it{size}"


def default_model_folder() -> Path:
    """The bundled model: models/nano of the checkout, or its copy in the installed package. Raises FileNotFoundError
    when it is not there."""
    package = Path(dsv4.__file__).parent
    places = [base / "models" / "nano" for base in (package.parent, package)]
    for folder in places:
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(f"the bundled model is not at {places[0]}: name a model folder")
