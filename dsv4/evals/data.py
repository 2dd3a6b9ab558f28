"""The rows of a suite: from a file or folder of the user's, the hub, an installed package, a generator, or the stand-in
that dsv4 carries; and where they came from, with checksums."""

import csv
import gzip
import hashlib
import importlib.util
import io
import json
import os
import random
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dsv4.evals.suite import Generate, HubData, PackageData, Row, Suite, estimated_tokens

STAND_INS = Path(__file__).parent / "stand_ins"
PLACES = ("hub", "package", "generated", "stand-in")


@dataclass(frozen=True, slots=True)
class Data:
    """origin: where the rows came from, for people. revision: of a data set or package, "" = none is known. sha256: of
    each file; of the rows themselves where no file has them."""

    rows: tuple[Row, ...]
    origin: str
    revision: str
    sha256: dict[str, str]


def load(suite: Suite, place: str, generate: Generate, *, since: str = "", until: str = "") -> Data:
    """The rows of a suite.

    place: a path, one of PLACES, or "" for what needs no network: an installed package, or generated rows. since,
    until: the first and the last date of rows (YYYY-MM-DD), both included, "" = any. Raises ValueError where there are
    none.
    """
    if generate.lengths and not suite.by_length:
        raise ValueError(f"--lengths: {suite.name} has no texts of chosen lengths")
    if (since or until) and suite.date is None:
        raise ValueError(f"--since, --until: the rows of {suite.name} have no dates")
    first, last = _date("--since", since), _date("--until", until)
    data = _load(suite, place, generate)
    try:
        rows = data.rows if suite.join is None else tuple(suite.join(data.rows))
        if suite.keep is not None:
            rows = tuple(filter(suite.keep, rows))
        if (first or last) and suite.date is not None:
            rows = tuple(row for row in rows if first <= suite.date(row) <= (last or "9999"))
    except KeyError as error:
        raise missing_field(data, error, suite) from None
    if not rows:
        raise ValueError(f"--data: {data.origin} has no row for the suite {suite.name}")
    return replace(data, rows=rows)


def missing_field(data: Data, error: KeyError, suite: Suite) -> ValueError:
    """What is said of rows without a field of the suite."""
    return ValueError(f"--data: rows of {data.origin} have no field {error}, which {suite.name} needs")


def chosen(rows: Sequence[Row], limit: int | None, seed: int) -> list[int]:
    """The places of `limit` rows, drawn at random but in their order: the first rows of many data sets are of one
    subject. None = all."""
    if limit is None or limit >= len(rows):
        return list(range(len(rows)))
    return sorted(random.Random(f"limit/{seed}").sample(range(len(rows)), limit))


def _load(suite: Suite, place: str, generate: Generate) -> Data:
    if place == "stand-in":
        file = STAND_INS / f"{suite.name}.jsonl"
        if file.is_file():
            return _from_files((file,), f"stand-in of dsv4 for {suite.name}", "")
        return _generated(suite, replace(generate, small=True, count_tokens=estimated_tokens), "stand-in, ")
    if place == "package" or (not place and suite.package is not None and _has(suite.package)):
        return _from_package(suite)
    if place == "generated" or (not place and suite.generate is not None):
        return _generated(suite, generate, "")
    if generate.lengths:
        raise ValueError("--lengths: only generated texts have chosen lengths (--data generated)")
    if place == "hub":
        return _from_hub(suite)
    if not place:
        raise ValueError(f"--data is needed for {suite.name}: {_ways(suite)}")
    return _from_path(suite, Path(place))


def _date(flag: str, text: str) -> str:
    """A date in the form of rows, YYYY-MM-DD: texts in it are in the order of time. "" stays."""
    try:
        return text and date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError(f"{flag} must be a date as 2026-01-31, got {text!r}") from None


def _ways(suite: Suite) -> str:
    """What a user can write after --data."""
    names = " or ".join(suite.files) or "its rows"
    ways = [f"a file or folder with {names}"]
    if suite.generate is not None or (STAND_INS / f"{suite.name}.jsonl").is_file():
        ways.append("stand-in (a few items, to try)")
    if suite.hub is not None:
        gated = ", whose terms you must have accepted there" if suite.hub.gated else ""
        ways.insert(0, f"hub (downloads {suite.hub.repo}{gated})")
    if suite.package is not None:
        ways.insert(0, f"package (after pip install {suite.package.name})")
    return "; ".join(ways)


def _generated(suite: Suite, generate: Generate, kind: str) -> Data:
    if suite.generate is None:
        raise ValueError(f"--data: the suite {suite.name} has no {'stand-in' if kind else 'generator'}; {_ways(suite)}")
    rows = tuple(suite.generate(generate))
    text = "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows)
    return Data(rows, f"{kind}generated, seed {generate.seed}", "", {"rows": _sha256(text.encode())})


def _from_path(suite: Suite, path: Path) -> Data:
    if path.is_file():
        return _from_files((path,), str(path), "")
    if not path.is_dir():
        raise ValueError(f"--data must be a file, a folder, or one of {', '.join(PLACES)}, got {str(path)!r}")
    for pattern in suite.files:
        if found := sorted(path.rglob(pattern)):
            return _from_files(found, str(path), "")
    raise ValueError(f"--data {path}: no {' or '.join(suite.files) or 'file for this suite'} in this folder")


def _has(package: PackageData) -> bool:
    return importlib.util.find_spec(package.module.split(".")[0]) is not None


def _from_package(suite: Suite) -> Data:
    package = suite.package
    if package is None or not _has(package):
        if package is not None:
            raise ValueError(f"--data package: {suite.name} needs pip install {package.name}")
        raise ValueError(f"--data package: no package has the data of {suite.name}; {_ways(suite)}")
    from importlib.metadata import version

    spec = importlib.util.find_spec(package.module)
    assert spec is not None
    root = Path((spec.submodule_search_locations or [str(Path(spec.origin or "").parent)])[0])
    found = version(package.name)
    return _from_files([root / name for name in package.files], f"package {package.name} {found}", found)


def _from_hub(suite: Suite) -> Data:
    hub = suite.hub
    if hub is None:
        raise ValueError(f"--data hub: the data of {suite.name} is on no hub; {_ways(suite)}")
    folder = _downloaded(hub)
    names = {path: path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()}
    paths = [path for path, name in names.items() if any(fnmatch(name, pattern) for pattern in hub.files)]
    if not paths:
        raise ValueError(f"--data hub: {hub.repo} has no {' or '.join(hub.files)} at {hub.revision}")
    return _from_files(paths, f"hub data set {hub.repo}", folder.name)


def _downloaded(hub: HubData) -> Path:
    """The folder of the files at one commit, which is its name."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise ValueError("--data hub needs huggingface_hub: pip install 'dsv4[hub]'") from None
    try:
        found = snapshot_download(hub.repo, repo_type="dataset", revision=hub.revision, allow_patterns=list(hub.files))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"--data hub: {hub.repo} cannot be had: {str(error).splitlines()[0]}") from None
    return Path(found)


def _from_files(files: Sequence[Path], origin: str, revision: str) -> Data:
    rows: list[Row] = []
    for file in files:
        rows += read_rows(file)
    folder = os.path.commonpath([file.parent for file in files])  # two folders may have files of one name
    names = {file.relative_to(folder).as_posix(): file for file in files}
    return Data(tuple(rows), origin, revision, {name: _sha256(file.read_bytes()) for name, file in names.items()})


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_rows(file: Path) -> list[Row]:
    """The rows of a .jsonl, .json (a list, or lines), .csv or .parquet file; .gz of the first three. Raises ValueError
    naming the file."""
    name = file.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        return _parquet(file)
    if not file.is_file():
        raise ValueError(f"--data: {file}: there is no such file")
    data = _unpacked(file) if file.name.endswith(".gz") else file.read_bytes()
    text = data.decode("utf-8-sig", errors="replace")
    if name.endswith(".csv"):
        csv.field_size_limit(sys.maxsize)
        try:
            return list(csv.DictReader(io.StringIO(text, newline="")))
        except csv.Error as error:
            raise ValueError(f"--data: {file} is no CSV: {error}") from None
    if name.endswith((".jsonl", ".json")):
        return _json(file, text)
    raise ValueError(f"--data: {file}: a .jsonl, .json, .csv or .parquet file is needed")


def _unpacked(file: Path) -> bytes:
    try:
        return gzip.decompress(file.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"--data: {file} is no whole gzip file: {error}") from None


def _json(file: Path, text: str) -> list[Row]:
    if text.lstrip().startswith("["):
        return _rows(file, _decoded(file, text))
    lines = enumerate(text.split("\n"), 1)
    return _rows(file, (_decoded(file, line, f", line {number}") for number, line in lines if line.strip()))


def _decoded(file: Path, text: str, place: str = "") -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"--data: {file}{place} is no JSON: {error}") from None


def _rows(file: Path, values: Iterable[Any]) -> list[Row]:
    rows = list(values)
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"--data: {file}: every row must be a JSON object")
    return rows


def _parquet(file: Path) -> list[Row]:
    try:
        from pyarrow import parquet  # pyrefly: ignore[missing-import]  (an extra)
    except ImportError:
        raise ValueError(f"--data: reading {file} needs pyarrow: pip install pyarrow") from None
    try:
        return parquet.read_table(file).to_pylist()
    except ValueError as error:  # ArrowInvalid
        raise ValueError(f"--data: {file} is no parquet file: {error}") from None
