"""The documents as a site. Tests that build it need the extra `docs`; CI checks links in tests/architecture."""

import ast
import re
from pathlib import Path

import pytest

from deploy import build_docs

CONFIG = """
site_name: small
docs_dir: sources
site_dir: site
theme: {name: material, variant: classic, font: false}
nav: [README.md, docs/one.md]
"""
FETCHED = re.compile(
    r'<(?:script|img|iframe)[^>]*\ssrc="(\w+:[^"]*)"|<link[^>]*rel="stylesheet"[^>]*href="(\w+:[^"]*)"'
)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of two pages without a reference."""
    monkeypatch.setattr(build_docs, "PUBLIC", {})
    root = tmp_path / "repository"
    (root / "docs").mkdir(parents=True)
    (root / "mkdocs.yml").write_text(CONFIG)
    (root / "README.md").write_text("# Small\n\n[one](docs/one.md#the-end), [settings](settings.toml)\n")
    (root / "docs" / "one.md").write_text("# One\n\n## The end\n\n[back](../README.md) and `[no link](gone.md)`\n")
    (root / "settings.toml").write_text("a = 1\n")
    return root


def test_linked_files_lie_beside_the_pages(small: Path, tmp_path: Path) -> None:
    build_docs.lay_out(tmp_path / "out", small)
    assert (tmp_path / "out" / "sources" / "settings.toml").read_text() == "a = 1\n"
    assert (tmp_path / "out" / "sources" / "docs" / "one.md").is_file()


@pytest.mark.parametrize("target", ["gone.md", "../../outside.md", "../docs"])
def test_a_link_to_no_file_is_named(small: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "outside.md").write_text("# Outside\n")
    (small / "docs" / "one.md").write_text(f"# One\n\n## The end\n\n[x]({target})\n")
    with pytest.raises(build_docs.BuildError, match=re.escape(f"docs/one.md links to {target}")):
        build_docs.lay_out(tmp_path / "out", small)


def test_a_page_of_the_reference_has_a_directive_for_each_public_name() -> None:
    text = build_docs.reference_page("dsv4.hub")
    assert text.startswith("# dsv4.hub\n\nModels by name")
    assert text.count("\n::: dsv4.hub.") == len(build_docs.public_names("dsv4.hub")) == 5


def defined(module: str, name: str) -> tuple[ast.stmt, ast.stmt | None]:
    """The statement that defines a name, and the one after it; imports are followed."""
    first, _, rest = name.partition(".")
    if rest:
        return defined(f"{module}.{first}", rest)
    tree = build_docs.module_tree(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and first in [alias.name for alias in node.names]:
            return defined(node.module, first)
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = [target.id for target in targets if isinstance(target, ast.Name)]
        if getattr(node, "name", None) == first or first in named:
            return node, after
    raise AssertionError(f"{module} defines no {name}")


def undocumented(module: str, name: str) -> list[str]:
    """What the reference would show without a text, or leave out: a name, or public methods of a class."""
    node, after = defined(module, name)
    if not isinstance(node, ast.ClassDef | ast.FunctionDef):
        told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        return [] if told else [f"{module}.{name}"]
    inner = [child for child in node.body if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)]
    parts = [node, *(child for child in inner if not child.name.startswith("_"))]
    return [f"{module}.{name}: {part.name}" for part in parts if not ast.get_docstring(part)]


@pytest.mark.parametrize("module", build_docs.PUBLIC)
def test_everything_in_the_reference_has_a_docstring(module: str) -> None:
    assert [lack for name in build_docs.public_names(module) for lack in undocumented(module, name)] == []


def test_a_broken_anchor_ends_the_build(small: Path, tmp_path: Path) -> None:
    pytest.importorskip("zensical", reason="needs the extra docs")
    pytest.importorskip("mkdocstrings", reason="needs the extra docs")
    assert (build_docs.build(tmp_path / "out", small) / "docs" / "one").exists()
    (small / "README.md").write_text("# Small\n\n[one](docs/one.md#nothing)\n")
    with pytest.raises(build_docs.BuildError, match=r"anchor does not exist(.|\n)*README\.md:3"):
        build_docs.build(tmp_path / "out", small)


def test_the_site_is_built_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("zensical", reason="needs the extra docs")
    pytest.importorskip("mkdocstrings", reason="needs the extra docs")
    site = build_docs.build(tmp_path / "out")
    built = {str(file.relative_to(site)) for file in site.rglob("*.html")}
    sources = [*map(str, build_docs.pages()), *(f"reference/{module}.md" for module in build_docs.PUBLIC)]
    assert {re.sub(r"README\.md$", "index.md", page).replace(".md", ".html") for page in sources} <= built
    reference = (site / "reference" / "dsv4.html").read_text(encoding="utf-8")
    assert 'id="dsv4.load"' in reference
    assert "Raises ValueError or FileNotFoundError" in reference  # of the docstring of load
    engine = (site / "reference" / "dsv4.engine.html").read_text(encoding="utf-8")
    assert 'id="dsv4.engine.Engine.submit"' in engine  # of its base
    assert re.search(r'<span class="n">step_tokens</span>', engine)  # an argument, in the signature
    assert {
        page: found for page in built if (found := FETCHED.findall((site / page).read_text(encoding="utf-8")))
    } == {}
