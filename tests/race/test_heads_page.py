import re
import shutil
import subprocess

import pytest
import torch

from regard.inspect.head_report import Arc, Example, Head, HeadsReport
from regard.race.page.heads import render_heads

EVIL = "<script>alert('x')</script>"
THRESHOLDS = {
    "positional share": 0.9, "offsets": [-1, 1], "syntactic margin": 0.1, "relations": ["nsubj"], "common words": 500,
    "rare-word share": None,
}  # fmt: skip


def head(layer, number, *roles, confidence=0.5, importance=None, gate=None):
    arc = Arc("nsubj", "dependent to head", 0.75, 0.5, 8)
    return Head(layer, number, confidence, -1, 0.93, arc, (), 0.25, 0.5, importance, gate, roles)


@pytest.fixture
def report():
    heads = (
        head("blocks.0", 0, confidence=0.2, importance=0.125, gate=1.0),
        head("blocks.0", 1, "syntactic: nsubj, dependent to head", confidence=0.9, importance=0.5, gate=0.0),
        head("blocks.1", 0, "positional: -1", confidence=0.4, importance=0.25, gate=0.75),
        head("blocks.1", 1, confidence=0.3, importance=0.0625, gate=0.5),
    )
    examples = []
    for words in (("dogs", "bark", EVIL), ("the", "second", "one", "here")):
        maps = torch.full((2, len(words), len(words)), 0.25)
        maps[:, 1, 0] = 0.5
        examples.append(Example(words, {"blocks.0": maps, "blocks.1": maps * torch.tensor([1.0, -1.0])[:, None, None]}))
    return HeadsReport(heads, THRESHOLDS, 12, 345, (f"{EVIL} was left out.",), examples)


def test_the_page_says_everything_and_nothing_in_it_is_markup(report):
    page = render_heads(report, model=f"model {EVIL}", data="a.conllu")
    assert EVIL not in page
    assert "4 heads in 2 layers: 1 positional, 1 syntactic." in page
    assert "12 sentences, 345 words of a.conllu" in page
    assert page.count('<article class="cell"') == 4
    assert page.count("data:image/png;base64,") == 8
    for told in ("93% at -1", "nsubj, dependent to head: 75%, any offset 50%", "25%, one of two 50%"):
        assert told in page
    assert re.search(r"importance</dt>\s*<dd[^>]*>0\.125<", page)
    assert not re.search(r'(?:src|href)="(?!data:)', page)


def test_without_importance_gates_trees_or_examples(report):
    bare = [Head(one.layer, one.number, 0.5, 1, 0.2, None, (), 0.0, 0.0, None, None, ()) for one in report.heads]
    page = render_heads(HeadsReport(tuple(bare), THRESHOLDS, 1, 2), model="m", data="d")
    assert "4 heads in 2 layers: 0 positional." in page
    assert '<option value="gate">' not in page
    assert '<select id="sentence">' not in page
    assert "no role" in page


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
def test_in_a_browser_cells_are_ordered_and_maps_are_read(report, tmp_path):
    probe = """<script>
      window.onerror = (message) => { document.title = "ERROR " + message; };
      const settled = () => new Promise((done) => setTimeout(done, 60));
      const choose = (name, value) => {
        const list = document.getElementById(name);
        list.value = value;
        list.dispatchEvent(new Event("change"));
      };
      const order = () => [...document.querySelectorAll("#heads > *")].filter((part) => part.getClientRects().length)
        .map((part) => part.tagName === "H3" ? "L" : part.dataset.layer + part.dataset.head).join(" ");
      const read = (row, column) => {
        const cell = document.querySelectorAll("#map tbody tr")[row].querySelectorAll("td")[column];
        cell.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
        return document.getElementById("weight").textContent;
      };
      addEventListener("load", async () => {
        const root = document.documentElement, told = [performance.getEntriesByType("resource").length];
        told.push(root.scrollWidth <= root.clientWidth, order());
        for (const by of ["role", "confidence", "gate"]) { choose("order", by); told.push(order()); }
        choose("order", "layer");
        const large = document.getElementById("large"), button = document.querySelectorAll(".open")[2];
        button.focus();
        told.push(document.activeElement === button);
        button.click();
        await settled();
        told.push(large.open, document.getElementById("large-title").textContent, read(1, 0));
        large.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
        await settled();
        told.push(document.getElementById("large-title").textContent, read(1, 2));
        large.close();
        choose("sentence", "1");
        told.push([...document.querySelectorAll(".on")].filter((part) => part.getClientRects().length).length);
        button.click();
        await settled();
        told.push(document.querySelectorAll("#map thead th").length, root.scrollWidth <= root.clientWidth);
        document.title = told.join("|");
      });
    </script>"""
    (tmp_path / "heads.html").write_text(
        render_heads(report, model="m", data="d").replace("<head>", f"<head>{probe}"), "utf-8"
    )
    for width in ("390", "1200"):
        told = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--enable-logging=stderr",
             "--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path / 'heads.html'}"],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        title = re.search(r"<title>(.*?)</title>", told.stdout)
        assert title is not None, told.stderr
        assert title[1].split("|") == [
            "0", "true", "L 00 01 L 10 11", "10 01 00 11", "01 10 11 00", "00 10 11 01", "true", "true",
            "blocks.1, head 0", "bark to dogs: 0.50", "blocks.1, head 1",
            "bark to &lt;script&gt;alert('x')&lt;/script&gt;: -0.25", "4", "5", "true",
        ]  # fmt: skip
        assert "CONSOLE" not in told.stderr
