"""The ```python blocks of a page, run in their order and in one namespace, as by one who pastes them."""

import re
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<word>[^\n`]*)\n(?P<code>.*?)^ *(?P=fence) *$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """Code on a page.

    Attributes:
        path: of the page.
        line: where the code begins, from 1.
        code: without the fence.
    """

    path: Path
    line: int
    code: str


def python_blocks(path):
    """Every block whose fence says python and nothing else."""
    text = path.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        if found["word"].strip() == "python":
            line = text[: found.start("code")].count("\n") + 1
            yield Block(path, line, re.sub(rf"(?m)^{found['indent']}", "", found["code"]))


def run(blocks):
    """Run the blocks of one page; a traceback names the page and the line in it."""
    namespace = {"__name__": "page"}
    for block in blocks:
        code = compile("\n" * (block.line - 1) + block.code, str(block.path), "exec")
        exec(code, namespace)
