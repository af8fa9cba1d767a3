"""What Sphinx does for this site beyond its own: generated pages, texts that live elsewhere, our docstrings as reST."""

import builtins
import pydoc
import re
import shutil
from pathlib import Path
from typing import Any

import mechanism_pages
import reference_pages
from docutils.utils import get_source_line
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md", "native": "native/README.md"}
"""Pages whose text is a file of the repository: one source, two places to read it."""

MARKUP = re.compile(r"(?P<bullet>^\s*\* )|[*|]|(?<=\w)_(?!\w)|(?<=\b[A-Za-z])\.(?=\s|$)", re.MULTILINE)
"""What reST takes for emphasis, substitutions, references, and lists ("C." in "dim: C.")."""


KEEP = re.compile(r"(``.+?``|:[a-z:]+:`[^`]+`|`[^`]+`_?)", re.DOTALL)


def generate(app: Sphinx) -> None:
    """Write what is made from the registry, and fetch the notebooks."""
    source = Path(app.srcdir)
    mechanism_pages.write_pages(source / "mechanisms")
    reference_pages.write_reference(source / "api")
    folder = source / "examples"
    folder.mkdir(exist_ok=True)
    notebooks = sorted((ROOT / "examples").glob("*.ipynb"))
    for notebook in notebooks:
        copy = folder / notebook.name
        if not copy.exists() or copy.read_bytes() != notebook.read_bytes():
            shutil.copyfile(notebook, copy)
    words = "They run on your own files, named at their top, and come here with the outputs of a real run."
    toctree = "\n".join(["```{toctree}", ":maxdepth: 1", "", *(notebook.stem for notebook in notebooks), "```"])
    index = f"# Notebooks\n\n{words}\n\n{toctree}\n"
    (folder / "index.md").write_text(index, encoding="utf-8")
    for stale in {path.name for path in folder.glob("*.ipynb")} - {notebook.name for notebook in notebooks}:
        (folder / stale).unlink()


def read(app: Sphinx, docname: str, content: list[str]) -> None:
    """Texts from elsewhere, their links turned to pages; tables of results get the title that a page needs."""
    if docname in ELSEWHERE:
        path = ROOT / ELSEWHERE[docname]
        app.env.note_dependency(str(path), docname=docname)
        text = re.sub(r"\]\((\.\./|docs/)", "](", path.read_text(encoding="utf-8"))
        for page, file in ELSEWHERE.items():
            text = text.replace(f"]({file}", f"]({page}.md")
        content[0] = text
    if docname == "results/tables":
        content[0] = "# Every table of results\n\n" + content[0].replace("### ", "## ")


def as_rest(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Our docstrings are plain text with a little reST: formulas keep their stars, bars and underscores."""
    lines[:] = escaped("\n".join(lines)).split("\n")


def escaped(text: str) -> str:
    r"""Escape what reST would take for markup, outside of literals, roles, literal blocks and doctests.

    Example:
        >>> print(escaped("*grid of |i - j|, q_ and ``a*b``"))
        \*grid of \|i - j\|, q\_ and ``a*b``
    """
    out: list[str] = []
    plain: list[str] = []
    literal: int | None = None  # the indentation of the line that announced a literal block
    doctest = False
    lines = text.split("\n")
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and indent <= literal:
            literal = None
        doctest = (doctest or line.lstrip().startswith(">>>")) and bool(line.strip())
        if literal is not None or doctest:
            out += [*_escape(plain), line]
            plain = []
            continue
        if line.rstrip().endswith(":") and _formula_follows(lines[number + 1 :], indent):
            literal, line = indent, f"{line.rstrip().rstrip(':')}::"
        plain.append(line)
    return "\n".join(out + _escape(plain))


def _formula_follows(lines: list[str], indent: int) -> bool:
    """Whether what comes after an empty line stands further to the right."""
    if not lines or lines[0].strip():
        return False
    first = next((line for line in lines if line.strip()), "")
    return len(first) - len(first.lstrip()) > indent


def _escape(lines: list[str]) -> list[str]:
    if not lines:
        return []
    parts = KEEP.split("\n".join(lines))
    for number in range(0, len(parts), 2):
        parts[number] = MARKUP.sub(lambda found: found[0] if found["bullet"] else f"\\{found[0]}", parts[number])
    return "".join(parts).split("\n")


def missing(app: Sphinx, env: Any, node: Any, contnode: Any) -> Any:
    """A reference to code that has no page stays plain text, but the code must exist: others are reported as dead."""
    if node.get("refdomain") != "py":
        return None
    names = [name.strip() for name in re.split(r",| or ", node["reftarget"]) if name.strip()]
    found = re.search(r"docstring of ([\w.]+)", get_source_line(node)[0] or "")
    return contnode if all(_exists(name, found[1] if found else "regard") for name in names) else None


def _exists(name: str, documented: str) -> bool:
    """Whether a name means something by itself, in torch, in what is documented, or in the file where that stands."""
    file = getattr(pydoc.locate(documented), "__module__", "regard")
    places = ("", "torch.", f"{documented}.", f"{file}.")
    return hasattr(builtins, name) or any(pydoc.locate(f"{place}{name}") is not None for place in places)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", generate)
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", as_rest, priority=400)  # before napoleon
    app.connect("missing-reference", missing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
