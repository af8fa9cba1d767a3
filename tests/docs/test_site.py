import dataclasses
import inspect
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

import regard
from regard.registry import Card
from tests.docs.links import dead, read

pytest.importorskip("myst_nb", reason="the site needs regard[docs]")
pytest.importorskip("furo", reason="the site needs regard[docs]")
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The site, built once from a copy, as its command in CONTRIBUTING builds it; warnings are errors."""
    folder = tmp_path_factory.mktemp("site").resolve()
    source = folder / "checkout" / "docs"
    shutil.copytree(
        DOCS, source, ignore=shutil.ignore_patterns("mechanisms", "api", "examples", "__pycache__", "build")
    )
    for name in ("CONTRIBUTING.md", "CHANGELOG.md", "native/README.md", "examples"):
        if (DOCS.parent / name).is_dir():
            shutil.copytree(DOCS.parent / name, source.parent / name)
        elif (DOCS.parent / name).exists():
            (source.parent / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(DOCS.parent / name, source.parent / name)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", str(source), str(folder / "html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    return folder / "html"


@pytest.fixture(scope="session")
def pages(site):
    return {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in read(site)}


def test_no_link_is_dead(site):
    assert dead(site) == []


def test_dead_links_are_found(site, tmp_path):
    copy = tmp_path.resolve() / "copy"
    shutil.copytree(site, copy)
    page = copy / "start.html"
    planted = [
        "nowhere.html",
        "choose.html#no-such-place",
        "#no-such-place",
        "_static/none.css",
        "https://nowhere",
        "../../secret",
    ]
    links = "".join(f'<a href="{link}">x</a>' for link in planted)
    page.write_text(page.read_text(encoding="utf-8").replace("</article>", f"{links}</article>"), encoding="utf-8")
    assert sorted(link for name, link in dead(copy) if name == "start.html") == sorted(planted)
    assert {name for name, _ in dead(copy)} == {"start.html"}


@pytest.mark.parametrize("name", regard.names())
def test_every_mechanism_has_a_page(pages, name):
    text = pages[f"mechanisms/{name}.html"]
    about = regard.card(name)
    for part in ("What it does", "Card", "Cost", "The authors\u2019 numbers", "Reference", "Of the same family"):
        assert f"<h2>{part}<" in text, part
    assert f'<span class="badge name">{name}</span>' in text
    assert 'class="badge good"' in text or "published no code that could be run" in text
    assert '<figure class="cost">' in text or "No curve (" in text
    assert f'regard.create("{name}"' in unescape(re.sub(r"<[^>]+>", "", text))
    if about.paper.startswith("arXiv:"):
        assert f"https://arxiv.org/abs/{about.paper.removeprefix('arXiv:')}" in text
    assert f'href="{name}.html"' in pages["mechanisms/index.html"]


def test_pages_tell_every_field_of_a_card():
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        from cards_told import FAMILIES, ROWS
    finally:
        sys.path.pop(0)
    told = {"title", "paper", "year", "summary", "formula", *ROWS}
    assert told == {field.name for field in dataclasses.fields(Card)}
    assert {regard.card(name).family for name in regard.names()} == FAMILIES.keys()


def test_patterns_have_pictures(pages):
    drawn = {name for name in regard.names() if '<figure class="pattern' in pages[f"mechanisms/{name}.html"]}
    assert {"local", "longformer", "bigbird", "sparse_transformer", "criss_cross", "neighborhood"} <= drawn
    assert not {"linear_transformer", "reformer", "linformer", "cbam"} & drawn


def test_every_public_name_is_in_the_reference(pages):
    anchors = "".join(pages.values())
    for name in regard.__all__:
        if name == "engines" or not inspect.ismodule(getattr(regard, name)):
            assert f'id="regard.{name}"' in anchors, name
    for package in (regard.patterns, regard.scores, regard.memory, regard.inspect, regard.models):
        for name in package.__all__:
            assert f'id="{package.__name__}.{name}"' in anchors, name


def test_texts_with_one_source_are_pages(pages):
    assert "Add a mechanism: one file" in pages["contributing.html"]
    assert "Keep a Changelog" in pages["changelog.html"]
    assert "REGARD_ISA" in pages["native.html"]
    assert "Every table of results" in pages["results/tables.html"]
