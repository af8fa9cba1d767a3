import base64
import io

import pytest
import torch

from regard.explore.reading import LENGTH, SIDE, read_image, read_text
from regard.tasks.documents import InputError


def file(size, kind="PNG", mode="RGB"):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new(mode, size, 128).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def test_text_is_read_as_bytes_and_every_byte_has_a_sign():
    passage = read_text("é🍮\n")
    assert passage.tokens.tolist() == [list("é🍮\n".encode())]
    assert passage.signs == ["é", "·", "🍮", "·", "·", "·", "\n"]
    assert passage.remark.startswith("7 bytes for 3 characters")
    assert read_text("plain").remark == ""


def test_long_text_is_cut_between_characters_and_says_where():
    passage = read_text("é" * 1000)
    assert len(passage.data) == LENGTH
    assert passage.remark.startswith(f'Cut after {LENGTH} of 2,000 bytes, behind "é')
    passage = read_text("🍮" * 100, most=10, total=2_000_000)
    assert passage.data == ("🍮" * 2).encode(), "half an emoji is none"
    assert "Cut after 8 of 2,000,000 bytes" in passage.remark


def test_odd_texts():
    with pytest.raises(InputError, match="nothing to look at yet"):
        read_text("")
    assert read_text("\0").data == b" "
    assert read_text("\ud83c").data == b"?", "half of a pair, as a paste that was cut"
    assert len(read_text("\U0001f3f4\u200d\u2620\ufe0f").signs) == len("\U0001f3f4\u200d\u2620\ufe0f".encode())


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((1, 1), "1 x 1 pixels in grey, enlarged to 32 x 32"),
        ((640, 480), "the middle of 640 x 480 pixels in grey, scaled to 32 x 32"),
        ((3000, 2), "the middle of 3,000 x 2"),
    ],
)
def test_images_of_any_size(size, words):
    image, remark = read_image(file(size))
    assert image.shape == (1, SIDE, SIDE)
    assert image.dtype == torch.uint8
    assert words in remark


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "L"), ("GIF", "P"), ("PNG", "RGBA"), ("PNG", "I;16"), ("BMP", "1")]
)
def test_images_of_any_kind(kind, mode):
    assert read_image(file((40, 40), kind, mode))[0].shape == (1, SIDE, SIDE)


def test_what_is_no_image_is_refused_in_words(monkeypatch):
    with pytest.raises(InputError, match="no image yet"):
        read_image("")
    with pytest.raises(InputError, match="did not arrive whole"):
        read_image("###")
    for data in (b"text", b"%PDF-1.7", base64.b64decode(file((9, 9)))[:40]):
        with pytest.raises(InputError, match="no image that can be opened"):
            read_image(base64.b64encode(data).decode())
    monkeypatch.setattr("regard.explore.reading.MOST_PIXELS", 99)
    with pytest.raises(InputError, match="100 x 1 pixels are more than the 99"):
        read_image(file((100, 1)))
