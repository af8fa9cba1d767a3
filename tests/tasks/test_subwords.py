import pytest

from regard.tasks.documents import InputError
from regard.tasks.subwords import Subwords

pytest.importorskip("tokenizers")

SENTENCES = ["the house and the mouse", "das Haus und die Maus", "der Größe nach", "the size of the house"] * 3


def test_every_text_goes_there_and_back():
    subwords = Subwords.train(SENTENCES, size=300)
    for text in (*SENTENCES, "never seen: ¿日本?", "<pad> <s> </s> </w>", "a  b", ""):
        tokens = subwords.encode(text)
        assert subwords.decode(tokens) == text
        assert min(tokens, default=3) >= 3  # no text contains padding, start or end
        assert max(tokens, default=0) < len(subwords)
    assert subwords.encode_all(SENTENCES) == [subwords.encode(text) for text in SENTENCES]


def test_decoding_ends_at_the_end():
    subwords = Subwords.train(SENTENCES, size=300)
    house, mouse = subwords.encode("the house"), subwords.encode("the mouse")
    tokens = [subwords.start, *house, subwords.pad, subwords.end, *mouse]
    assert subwords.decode(tokens) == "the house"
    assert "".join(subwords.pieces(tokens)) == "<start> the house<end> the mouse"


def test_frequent_words_become_one_piece_and_the_size_is_kept():
    subwords = Subwords.train(SENTENCES, size=300)
    assert subwords.pieces(subwords.encode("the house")) == [" the", " house"]
    assert 259 < len(subwords) <= 300
    assert len(Subwords.train(SENTENCES, size=259)) == 259  # bytes alone
    assert Subwords.train(SENTENCES, size=259).pieces([3 + 32])  # each of which can be written


def test_the_same_sentences_give_the_same_pieces():
    assert Subwords.train(SENTENCES).to_json() == Subwords.train(iter(SENTENCES)).to_json()


def test_saved_and_loaded(tmp_path):
    subwords = Subwords.train(SENTENCES, size=300)
    subwords.save(tmp_path / "subwords.json")
    assert Subwords.load(tmp_path / "subwords.json").encode("the größte") == subwords.encode("the größte")
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match="not the subwords of a tokenizer"):
        Subwords.load(tmp_path / "other.json")
    with pytest.raises(InputError, match="does not exist"):
        Subwords.load(tmp_path / "none")


def test_too_small_a_size_is_refused():
    with pytest.raises(InputError, match="258 kinds of tokens"):
        Subwords.train(SENTENCES, size=258)
