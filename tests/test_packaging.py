"""The numbers come with regard: a wheel holds them, a checkout finds them where they are."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

from regard.verify.cases import numbers

ROOT = Path(__file__).parents[2]


def test_a_checkout_reads_the_numbers_of_the_tests():
    assert numbers() == ROOT / "tests" / "parity" / "data"


def test_a_wheel_holds_the_same_numbers_and_finds_them(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    code = f"""
import json, sys
sys.path.insert(0, {str(tmp_path / "site")!r})
from regard.verify import verify
from regard.verify.cases import numbers
status = next(verify(["sparse_transformer/openai_strided"])).status
print(json.dumps([str(numbers()), status]))
"""
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    found, status = json.loads(told.stdout)
    assert status == "ok"
    assert Path(found) == tmp_path / "site" / "regard" / "authors" / "numbers"
    assert contents(Path(found)) == contents(numbers())


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.safetensors")}
