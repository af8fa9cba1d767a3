"""LibreOffice's help in two languages: pages whose paragraphs carry the same id, so nothing has to be guessed.

52,804 English-German pairs from 2,540 pages, 35,254 of them different (MPL-2.0), as Debian's packages
``libreoffice-help-en-us`` and ``libreoffice-help-de`` have them, and some thirty languages more in the same form.
"""

import html
import re
from pathlib import Path

from regard.tasks.documents import InputError, printable
from regard.tasks.parallel_text import ParallelText

FOLDER = Path("/usr/share/libreoffice/help")
"""Where Debian puts them."""

DIGEST = "90ba47facc3a56f0a454ffe374cac05ada139a076dc52cb7c7ff109f1fe06806"
"""sha256 of English and German in 7.4.7-1+deb12u14, see :attr:`regard.tasks.parallel_text.ParallelText.digest`."""

_PARAGRAPH = re.compile(r'<(p|h[1-6])\b[^>]*\bid="((?:par|hd)_id[^"]+)"[^>]*>(.*?)</\1>', re.DOTALL)
_MARKUP = re.compile("<[^>]+>")


def libreoffice_help(folder: str | Path | None = None, languages: tuple[str, str] = ("en-US", "de")) -> ParallelText:
    """The paragraphs and headings of all pages that were really translated, that is whose two sides differ.

    Args:
        folder: that holds a folder for each language, or the one that the packages were unpacked into; None: where
            Debian puts them.
        languages: source and target, as the folders are called.

    Returns:
        The pairs in the order of pages and paragraphs; the group of a pair is its page.

    Raises:
        InputError: a language is missing (the message says how to get it), or the two have no page in common.
    """
    place = FOLDER if folder is None else Path(folder)
    inside = place / FOLDER.relative_to("/")
    source, target = (_paragraphs(inside if inside.is_dir() else place, language) for language in languages)
    common = [key for key in source if source[key] and target.get(key)]
    different = [key for key in common if source[key] != target[key]]
    if not different:
        raise InputError(
            f"{printable(str(place))}: {languages[0]} and {languages[1]} have no paragraph in common that differs; "
            "take both from the same release"
        )
    remarks = [f"{len(common) - len(different):,} paragraphs that are the same in both languages left out"]
    columns = ((source[key], target[key], key[0]) for key in different)
    sources, targets, pages = zip(*columns, strict=True)
    return ParallelText(sources, targets, pages, tuple(remarks))


def _paragraphs(place: Path, language: str) -> dict[tuple[str, str], str]:
    """The text of each paragraph by page and id."""
    root = place / language / "text"
    if not root.is_dir():
        package = f"libreoffice-help-{language.lower()}"
        raise InputError(
            f"LibreOffice's help in {language} is missing: there is no {printable(str(root))}; apt-get install "
            f"{package}, or without root apt-get download {package} && dpkg -x {package}_*.deb help for both "
            "languages, and name the folder help"
        )
    found: dict[tuple[str, str], str] = {}
    for file in sorted(root.rglob("*.html")):
        try:
            page = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {printable(str(file))}: {error}") from error
        for _, name, body in _PARAGRAPH.findall(page):
            text = html.unescape(_MARKUP.sub("", body))
            found[file.relative_to(root).as_posix(), name] = " ".join(text.split())
    return found
