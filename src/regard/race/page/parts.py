"""Small pieces of HTML. Whatever stands in a text is escaped here and nowhere else."""

from collections.abc import Mapping, Sequence
from html import escape


def note(text: str) -> str:
    """A paragraph in small print."""
    return f'<p class="note">{escape(text)}</p>'


def section(title: str, *parts: str) -> str:
    """A heading and what follows it."""
    return "\n".join((f"<h2>{escape(title)}</h2>", *parts))


def figure(caption: str, content: str) -> str:
    """HTML with a caption above it."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{content}</figure>"


def table(heads: Sequence[str], rows: Sequence[str]) -> str:
    """A table that scrolls sideways where it is too wide; ``rows`` are HTML, see :func:`row`."""
    titles = "".join(f"<th>{escape(head)}</th>" for head in heads)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def row(cells: Sequence[str], *, picked: bool = False) -> str:
    """Cells of text; what follows a line break is small."""
    kind = ' class="picked"' if picked else ""
    return f"<tr{kind}>{''.join(map(_cell, cells))}</tr>"


def words_row(cells: Sequence[str], words: str, span: int) -> str:
    """A row that ends in a sentence instead of numbers."""
    return f'<tr>{"".join(map(_cell, cells))}<td class="words" colspan="{span}">{escape(words)}</td></tr>'


def definitions(items: Mapping[str, str]) -> str:
    """A list of terms; those without a text are left out."""
    return (
        f"<dl>{''.join(f'<dt>{escape(term)}</dt><dd>{escape(text)}</dd>' for term, text in items.items() if text)}</dl>"
    )


def sentence(text: str) -> str:
    """A capital at the beginning, a full stop at the end."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _cell(text: str) -> str:
    large, _, small = text.partition("\n")
    return f"<td>{escape(large)}{f'<small>{escape(small)}</small>' if small else ''}</td>"
