"""Where everybody looked: attention maps as small pictures, whose rows are read by touching them."""

import base64
import struct
import zlib
from html import escape
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.inspect.maps import IN_WORDS
from regard.inspect.picture import relative
from regard.race.looking import MIXTURES, unpack
from regard.race.page.parts import note, section

POSITIVE, NEGATIVE = (36, 87, 166), (194, 87, 26)
"""The accents of the bright page; style.css turns them for the dark one."""


def looks(told: dict[str, Any]) -> str:
    """The maps of all that have one, and why others have none; empty if nobody got there."""
    entries = [entry for entry in told["entrants"] if entry.get("attention_map")]
    if not entries:
        return ""
    passage, unit = told["data"]["passage"].encode("latin-1"), told["data"].get("unit", "bytes")
    remark = (
        f"The last attention of every model on the same {len(passage)} {unit} of the test part, read alone. Queries "
        "downwards, keys to the right; each row has its full colour at its largest weight (orange: negative). Exact "
        "weights are what multiplies the values; a Jacobian norm, where there are no weights, is how strongly an "
        "output depends on an input, by way of keys and queries too. Touch a map to read a row."
    )
    text = f'<pre id="passage">{escape(one_sign_a_byte(passage))}</pre>'
    cards = "".join(map(_card, entries))
    return section("Where it looked", note(remark), text, f'<div class="looks">{cards}</div>')


def one_sign_a_byte(passage: bytes) -> str:
    """Bytes as they are read: a character at its first byte, and a dot for each further byte and all unprintable ones.

    Example:
        >>> one_sign_a_byte("naïve".encode())
        'naï·ve'
    """
    signs: list[str] = []
    for character in passage.decode("utf-8", "surrogateescape"):
        width = len(character.encode("utf-8", "surrogateescape"))
        signs.append((character if character.isprintable() or character == "\n" else "·") + "·" * (width - 1))
    return "".join(signs)


def _card(entry: dict[str, Any]) -> str:
    found, title = entry["attention_map"], f"<h3>{escape(entry['label'])}</h3>"
    if "error" in found:
        return f"<figure>{title}<figcaption>no map: {escape(found['error'])}</figcaption></figure>"
    heads = unpack(found)
    several = len(heads) > 1
    words = IN_WORDS[found["kind"]]
    words += f", from {MIXTURES} mixtures of its features" if found["kind"] == "jacobian" else ""
    words += f", mean of {len(heads)} heads and each of them" if several else ""
    large = image(heads.mean(0), f"{entry['label']}, mean of the heads" if several else entry["label"])
    small = "".join(image(head, f"{entry['label']}, head {number}") for number, head in enumerate(heads))
    below = f'<div class="heads">{small}</div>' if several else ""
    return f"<figure>{large}{below}{title}<figcaption>{escape(words)}</figcaption></figure>"


def image(weights: Tensor, name: str) -> str:
    """A picture that also carries its numbers: the opacity of a cell is its share of the largest weight of its row."""
    shares = (127 * relative(weights)).round().to(torch.int8)
    source = base64.b64encode(_png(shares)).decode()
    largest = " ".join(f"{value:.3g}" for value in weights.abs().amax(-1).tolist())
    about = f'alt="{escape(name, quote=True)}" data-largest="{largest}"'
    return f'<img class="look" src="data:image/png;base64,{source}" {about}>'


def _png(shares: Tensor) -> bytes:
    """Int8 (rows, columns) as an image with a palette: 1 to 127 in one colour, -127 to -1 in the other, 0 clear."""
    opacities = [number if number < 128 else 256 - number for number in range(256)]
    rows, columns = shares.shape
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", bytes(POSITIVE) * 128 + bytes(NEGATIVE) * 128),
            _chunk(b"tRNS", bytes(min(255, 2 * opacity) for opacity in opacities)),
            _chunk(b"IDAT", zlib.compress(F.pad(shares, (1, 0)).numpy().tobytes(), 9)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
