"""The README tells the truth: its table is current, and CI calls its commands; its code runs in tests/docs."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_mechanisms_is_current():
    current = runpy.run_path(str(ROOT / "tools" / "readme.py"))["current"]
    assert current() == README, "run: python tools/readme.py"


def test_ci_calls_the_commands_of_the_readme():
    setup, test = re.search(
        r"^(python3 -m venv .*pip install .*) && (\.venv/bin/pytest.*)$", README, re.MULTILINE
    ).groups()
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace("install -q", "install")
    assert setup in script
    assert script.rstrip().endswith(test)
