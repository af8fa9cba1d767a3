"""What is released: an sdist that builds, a wheel that holds all it needs, works elsewhere, and may be used freely."""

import email
import importlib.metadata
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from regard.verify.cases import numbers

ROOT = Path(__file__).parents[1]
USED = ("native", "race", "transformers", "onnx", "explore")  # what users install; docs and dev stay with developers

REVIEWED = {  # licences with duties beyond naming the authors, each read
    "gemmi": "MPL-2.0: a module of its own, used unchanged",
    "soundfile": "BSD-3-Clause; libsndfile in its wheel is LGPL-2.1, a shared library that may be exchanged",
    "soxr": "LGPL-2.1: a module of its own, with libsoxr, that may be exchanged",
    "tqdm": "MPL-2.0 for some files, used unchanged; MIT for the rest",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that was built from it: -> their paths."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def metadata(built):
    with zipfile.ZipFile(built[1]) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(file.read(name))


def test_a_checkout_reads_the_numbers_of_the_tests():
    assert numbers() == ROOT / "tests" / "parity" / "data"


def test_a_wheel_holds_the_same_numbers_and_finds_them(built, tmp_path):
    with zipfile.ZipFile(built[1]) as file:
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
    assert contents(Path(found), "*.safetensors") == contents(numbers(), "*.safetensors")


def test_a_wheel_holds_every_file_of_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as file:
        names = set(file.namelist())
    source = {f"regard/{path}" for path in contents(ROOT / "src" / "regard", "*") if "__pycache__" not in path.parts}
    assert "regard/py.typed" in source <= names
    rest = {name for name in names - source if not name.startswith("regard/authors/numbers/")}
    assert {re.sub(r"^regard-[\d.]+\.dist-info", "regard.dist-info", name) for name in rest} == {
        f"regard.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    }


def test_an_sdist_holds_the_sources_and_the_tests_alone(built):
    with tarfile.open(built[0]) as file:
        names = {Path(*Path(member).parts[1:]) for member in file.getnames()}
    assert {Path("LICENSE"), Path("CITATION.cff"), Path("tests/conftest.py"), Path("src/regard/py.typed")} <= names
    assert not {name.parts[0] for name in names if name.parts} & {"native", "dist", "build", "site", ".venv", ".ci"}
    assert not any("__pycache__" in name.parts for name in names)


def test_the_metadata_is_whole(metadata):
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().lstrip().startswith("# regard")
    assert set(USED) <= set(metadata.get_all("Provides-Extra"))
    pythons = {line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") if "Python :: 3." in line}
    assert pythons == {f"3.{minor}" for minor in range(10, 15)}
    assert not any("example" in url or "TODO" in url for url in metadata.get_all("Project-URL") or [])


def test_one_version_everywhere(metadata):
    version = metadata["Version"]
    native = (ROOT / "native" / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{version}"\n' in native
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"regard-native=={version}; extra == 'native'" in metadata.get_all("Requires-Dist")
    assert (ROOT / "native" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_nothing_that_is_needed_forbids_a_use(metadata):
    """No GPL below regard and its extras; what is weaker but has duties of its own was read and is listed above."""
    found = {}
    for name in sorted(needed(metadata)):
        licence = licence_of(name)
        assert licence, f"{name} names no licence: read it, then say here what it is"
        if name not in REVIEWED:
            assert not re.search(r"GPL|GNU|MPL|Mozilla|SSPL|BUSL|proprietary", licence, re.I), f"{name}: {licence}"
        found[name] = licence
    assert {"torch", "jaxtyping", "safetensors", "typer", "soundfile", "gemmi"} <= set(found)
    assert set(REVIEWED) <= set(found)
    assert not [name for name, licence in found.items() if re.search(r"(?<!L)GPL|GNU General", licence)]


@pytest.mark.slow
def test_a_wheel_works_in_a_fresh_environment_beside_torch(built, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        str(built[1]),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    others = Path(importlib.metadata.distribution("torch").locate_file(""))
    (site / "torch.pth").write_text(f"{others}\n", encoding="utf-8")  # behind its own: its regard comes first
    code = """
import torch, regard
x = torch.randn(2, 9, 12)
assert regard.create("linear_transformer", dim=12, num_heads=3, causal=True)(x).shape == x.shape
q = torch.randn(1, 2, 9, 4)
torch.testing.assert_close(regard.attend(q, q, q), torch.nn.functional.scaled_dot_product_attention(q, q, q))
print(regard.__file__)
"""
    told = subprocess.run([python, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert Path(told.stdout.strip()).is_relative_to(site)
    listed = subprocess.run(
        [python.parent / "regard", "list"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert "linformer" in listed.stdout


@pytest.mark.slow
def test_what_is_installed_fits_together():
    told = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout


def contents(folder, pattern):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob(pattern) if path.is_file()}


def needed(metadata):
    """The names of all distributions below regard and the extras that users install."""
    found = set()
    queue = [(Requirement(line), set(USED)) for line in metadata.get_all("Requires-Dist")]
    while queue:
        requirement, extras = queue.pop()
        name = canonicalize_name(requirement.name)
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            continue
        if name.startswith("regard") or (name, *sorted(requirement.extras)) in found:
            continue
        found.add((name, *sorted(requirement.extras)))
        requires = importlib.metadata.distribution(name).requires or []
        queue += [(Requirement(line), requirement.extras) for line in requires]
    return {name for name, *_ in found}


def licence_of(name):
    """What the distribution says of itself; the whole text of a licence counts by its first lines."""
    told = importlib.metadata.distribution(name).metadata
    parts = [told["License-Expression"], (told["License"] or "")[:200]]
    parts += [line for line in told.get_all("Classifier") or [] if line.startswith("License")]
    return "; ".join(filter(None, parts))
