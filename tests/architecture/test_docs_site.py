"""The navigation names every page once, and every link and anchor leads somewhere, on a repository page as on the site.

The site itself is built in tests/deploy/test_build_docs.py; nothing is needed here beyond the repository.
"""

import ast
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.build_docs import CODE, PUBLIC, module_tree, pages, public_names
from tests.conftest import ROOT

PAGES = pages()
ANCHOR = re.compile(r"\]\((?!\w+:)([^)#\s]*)#([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```[ ]*$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ +(.+?) *#*$", re.MULTILINE)


def entries(nav: Any) -> Iterator[str]:
    """The pages of a navigation, in its order."""
    if isinstance(nav, str):
        yield nav
        return
    for item in nav.values() if isinstance(nav, dict) else nav:
        yield from entries(item)


def repository_slug(heading: str) -> str:
    """The anchor of a heading on a repository page: spaces become hyphens one by one, punctuation goes."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def site_slug(heading: str) -> str:
    """The anchor of a heading on the site, as Python-Markdown makes it: ASCII, runs of hyphens become one."""
    text = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


def anchors(page: Path, slug: Callable[[str], str], repeated: str) -> set[str]:
    """The anchors of a page: those of its headings, the second of one name with `repeated` and a number, and its own
    ids."""
    text = FENCED.sub("", (ROOT / page).read_text(encoding="utf-8"))
    found = set(re.findall(r'<a id="([^"]+)">', text))
    for heading in HEADING.findall(text):
        plain = slug(re.sub(r"`|\*|\[([^]]*)\]\([^)]*\)", r"\1", heading))
        names = (plain if number == 0 else f"{plain}{repeated}{number}" for number in count())
        found.add(next(name for name in names if name not in found))
    return found


def test_the_navigation_names_every_page_once() -> None:
    named = Counter(entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    expected = {*map(str, PAGES), *(f"reference/{module}.md" for module in PUBLIC)}
    assert sorted(expected - set(named)) == [], "pages without a place in nav of mkdocs.yml"
    assert sorted(set(named) - expected) == [], "nav of mkdocs.yml names pages that do not exist"
    assert [page for page, times in named.items() if times > 1] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_anchors_exist_on_repository_pages_and_on_the_site(page: Path) -> None:
    for target, anchor in ANCHOR.findall(CODE.sub("", (ROOT / page).read_text(encoding="utf-8"))):
        other = (ROOT / page.parent / target).resolve().relative_to(ROOT) if target else page
        assert anchor in anchors(other, repository_slug, "-"), f"{target}#{anchor} (repository)"
        assert anchor in anchors(other, site_slug, "_"), f"{target}#{anchor} (site)"


def test_slugs_are_those_of_both_renderers() -> None:
    assert repository_slug("Pages (`web/`) - a, b") == "pages-web---a-b"
    assert site_slug("Pages (`web/`) - a, b") == "pages-web-a-b"


@pytest.mark.parametrize("module", PUBLIC)
def test_the_reference_names_what_exists(module: str) -> None:
    for name in public_names(module):
        place, _, last = f"{module}.{name}".rpartition(".")
        tree = module_tree(place)
        known = {alias.asname or alias.name for node in walk_imports(tree) for alias in node.names}
        known |= {node.name for node in tree.body if hasattr(node, "name")}
        known |= {target.id for node in tree.body for target in getattr(node, "targets", ()) if hasattr(target, "id")}
        assert last in known, f"{place} has no {last}"


def walk_imports(tree: ast.Module) -> Iterator[ast.ImportFrom]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
