"""Make a site of the documents: the Markdown files of the repository become `dist/docs/site`.

    python3 -m deploy.build_docs [FOLDER]     builds into FOLDER/site; a warning or a broken link ends it with status 1

Needs the extra `docs` (`pip install dsv4[docs]`) and no network. `mkdocs.yml` has navigation and look. Pages are copied
with the paths that they have in the repository, together with the files that they link to, so a link that is right on a
repository page is right on the site. The reference is made from the docstrings of the names in PUBLIC.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "dist" / "docs"
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "models/nano/*.md", "docs/**/*.md")
# a module and the names of it that the reference shows; none = those of its __all__
PUBLIC: dict[str, tuple[str, ...]] = {
    "dsv4": ("load", "LocalModel"),
    "dsv4.generation": (
        "TokenGenerator", "SamplingParams", "SamplingDefaults", "RequestOptions", "TokenEvent", "FinishReason",
    ),
    "dsv4.encoding": (),
    "dsv4.answer": (),
    "dsv4.config": (),
    "dsv4.checkpoint": (),
    "dsv4.engine": (),
    "dsv4.server": (),
    "dsv4.hub": (),
    "dsv4.testing": ("stub.StubGenerator", "tiny.tiny_config"),
}  # fmt: skip
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)")
CODE = re.compile(r"^```.*?^```[ ]*$|``.*?``|`[^`\n]*`", re.MULTILINE | re.DOTALL)
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class BuildError(Exception):
    """Why there is no site, in a sentence."""


def pages(root: Path = ROOT) -> list[Path]:
    """The documents, as paths below `root`."""
    found = {file.relative_to(root) for pattern in PAGES for file in root.glob(pattern)}
    return sorted(found)


def linked_files(page: Path, root: Path = ROOT) -> set[Path]:
    """The files of the repository that a page links to, as paths below `root`. Raises BuildError for one that does not
    exist."""
    found = set()
    for target in LINK.findall(CODE.sub("", (root / page).read_text(encoding="utf-8"))):
        file = Path(os.path.normpath(page.parent / target))
        if not (root / file).is_file() or file.parts[0] == "..":
            raise BuildError(f"{page} links to {target}, which is no file of the repository")
        found.add(file)
    return found


def public_names(module: str, root: Path = ROOT) -> tuple[str, ...]:
    """The names of a module that the reference shows: those of PUBLIC, else of its `__all__`."""
    if PUBLIC[module]:
        return PUBLIC[module]
    for node in module_tree(module, root).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return tuple(ast.literal_eval(node.value))
    raise BuildError(f"{module} has no __all__")


def module_tree(module: str, root: Path = ROOT) -> ast.Module:
    """The syntax tree of a module or package of ours."""
    path = root / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def reference_page(module: str, root: Path = ROOT) -> str:
    """The Markdown of one page of the reference: a directive for each public name."""
    text = ast.get_docstring(module_tree(module, root)) or ""
    directives = [f"::: {module}.{name}" for name in public_names(module, root)]
    return "\n\n".join([f"# {module}", text, *directives]) + "\n"


def lay_out(out: Path, root: Path = ROOT) -> Path:
    """Copy pages and linked files to `out/sources` and the configuration to `out`. Returns the configuration."""
    sources = out / "sources"
    shutil.rmtree(out, ignore_errors=True)
    for file in sorted({*pages(root), *(file for page in pages(root) for file in linked_files(page, root))}):
        target = sources / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / file, target)
    (sources / "reference").mkdir()
    for module in PUBLIC:
        (sources / "reference" / f"{module}.md").write_text(reference_page(module, root), encoding="utf-8")
    return Path(shutil.copyfile(root / "mkdocs.yml", out / "mkdocs.yml"))


def build(out: Path = OUT, root: Path = ROOT) -> Path:
    """Build the site. Returns its folder. Raises BuildError, with the output of the generator if that failed."""
    if find_spec("zensical") is None or find_spec("mkdocstrings") is None:
        raise BuildError("the site needs the extra docs: pip install 'dsv4[docs]'")
    config = lay_out(out, root)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", config.name]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, cwd=out, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode:
        said = ANSI.sub("", done.stdout + done.stderr)
        raise BuildError(f"{' '.join(command)} ended with status {done.returncode}\n{said}")
    return out / "site"


def main() -> int:
    try:
        site = build(*(Path(argument).resolve() for argument in sys.argv[1:2]))
    except BuildError as error:
        print(f"build_docs: {error}", file=sys.stderr)
        return 1
    print(f"{site} has {len(list(site.rglob('*.html')))} pages; open {site / 'index.html'}, or with the search:")
    print(f"python3 -m http.server -b 127.0.0.1 -d {site}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
