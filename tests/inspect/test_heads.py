import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import regard
from regard.inspect import Sentence
from regard.inspect.head_gates import gate_heads
from regard.inspect.sentences import as_tokenize, bytes_of_words, word_maps
from regard.models import Transformer, TransformerLM
from regard.registry import UnsupportedError

WORDS = ["<s>", "the", "old", "dog", "cat", "sees", "it", "sleeps", "loudly", "zymurgy"]
"""By frequency: the last is the rarest."""


def numbers(words):
    """A token a word, and one before them that belongs to none."""
    return [0, *(WORDS.index(word) for word in words)], [-1, *range(len(words))]


class ByHand(nn.Module):
    """Three heads whose weights are written by hand: the word before; the noun of "old"; the rarest word.

    They are computed from one-hot words and places by ordinary projections.
    """

    def __init__(self, length=12):
        super().__init__()
        self.words, self.length = len(WORDS), length
        self.attention = regard.create("full", dim=3 * (self.words + length), num_heads=3)
        width = self.words + length
        q, k = torch.zeros(3, width, width), torch.zeros(3, width, width)
        place = torch.arange(length)
        q[0, self.words + place[1:] - 1, self.words + place[1:]] = 30.0  # who stands at i asks for i - 1
        k[0, self.words + place, self.words + place] = 30.0
        nouns = [WORDS.index("dog"), WORDS.index("cat")]
        q[1, 0, WORDS.index("old")] = 30.0  # "old" asks for a noun, all others for themselves
        k[1, 0, nouns] = 30.0
        others = [number for number in range(self.words) if number != WORDS.index("old")]
        q[1, 1 + torch.tensor(others), others] = 30.0
        k[1, 1 + torch.tensor(others), others] = 30.0
        q[2, 0, : self.words] = 30.0  # all ask for what is rare
        k[2, 0, : self.words] = torch.arange(self.words).float() * 3
        with torch.no_grad():
            for linear, matrices in ((self.attention.q_proj, q), (self.attention.k_proj, k)):
                linear.weight.copy_(torch.block_diag(*matrices))

    def forward(self, tokens):
        x = torch.cat([F.one_hot(tokens, self.words), F.one_hot(torch.arange(tokens.shape[1]), self.length)
                       .expand(len(tokens), -1, -1)], -1).float()  # fmt: skip
        return self.attention(x.repeat(1, 1, 3))


def amod(words, places):
    """A sentence in which the words at ``places`` depend on given heads as amod, the others on nobody."""
    heads, relations = [-1] * len(words), ["root"] * len(words)
    for place, head in places.items():
        heads[place], relations[place] = head, "amod:fancy"
    return Sentence(tuple(words), tuple(heads), tuple(relations))


DATA = [
    amod(["the", "old", "dog", "sees", "it", "loudly"], {1: 2}),
    amod(["old", "the", "cat", "sleeps"], {0: 2}),
    amod(["the", "cat", "sees", "the", "old", "zymurgy"], {4: 1}),
    amod(["it", "sleeps"], {}),
]


def test_heads_that_were_written_by_hand_are_recognised():
    thresholds = {"positional_share": 0.75, "offsets": [-1, 1], "common_words": 0, "rare_share": 0.9}
    report = regard.inspect.heads(ByHand(), DATA, numbers, **thresholds)
    before, noun, rare = report.heads
    # 14 of 18 words have a word before them
    assert before.roles == ("positional: -1",)
    assert (before.offset, before.offset_share) == (-1, pytest.approx(14 / 18))
    assert before.confidence == pytest.approx(14 / 18, abs=1e-4)
    assert noun.roles == ("syntactic: amod, dependent to head",)
    assert (noun.best.accuracy, noun.best.baseline, noun.best.arcs) == (1.0, pytest.approx(1 / 3), 3)
    assert rare.roles == ("rare words",)
    assert (rare.rarest, rare.two_rarest) == (1.0, 1.0)
    assert report.of_kind("syntactic") == (noun,)
    assert (report.sentences, report.words) == (4, 18)


def test_every_threshold_counts():
    def roles(**options):
        found = regard.inspect.heads(ByHand(), DATA, numbers, **{"common_words": 0} | options)
        return [head.roles for head in found.heads]

    assert roles() == [(), ("syntactic: amod, dependent to head",), ()]
    assert roles(positional_share=14 / 18)[0] == ("positional: -1",)
    assert roles(positional_share=0.5, offsets=[1, 2])[0] == ()
    assert roles(syntactic_margin=0.7)[1] == ()
    assert roles(relations=["nsubj"])[1] == ()
    assert roles(rare_share=1.0)[2] == ("rare words",)
    assert roles(rare_share=1.0, common_words=9)[2] == ()
    assert roles(rare_share=1.0, counts={"zymurgy": 9, "loudly": 5, "cat": 2})[2] == ()


def test_words_of_several_tokens():
    """Sum over the pieces of a word that is looked at, mean over those of one that looks."""
    weights = torch.rand(2, 3, 5, 5)
    words = torch.tensor([[-1, 0, 1, 1, 2], [0, 0, 1, -1, -1]])
    found = word_maps(weights, words, 3)
    for b, i, j in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(3)).tolist():
        queries, keys = ((words[b] == word).nonzero().flatten() for word in (i, j))
        block = weights[b][:, queries][:, :, keys]
        expected = block.sum((1, 2)) / max(1, len(queries))
        assert_close(found[b, :, i, j], expected)


def test_tokenizers_of_others():
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    model = tokenizers.models.WordPiece({"[UNK]": 0, "dog": 1, "##s": 2, "bark": 3, "[CLS]": 4}, unk_token="[UNK]")
    plain = tokenizers.Tokenizer(model)
    assert as_tokenize(plain)(["dogs", "bark"]) == ([1, 2, 3], [0, 0, 1])
    plain.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $0", special_tokens=[("[CLS]", 4)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=plain)
    assert as_tokenize(fast)(["dogs", "bark"]) == ([4, 1, 2, 3], [-1, 0, 0, 1])
    assert as_tokenize(bytes_of_words) is bytes_of_words
    with pytest.raises(TypeError, match="int is no tokenizer"):
        as_tokenize(7)
    slow = type("Slow", (), {"is_fast": False})()
    with pytest.raises(TypeError, match="Slow cannot say which word a token belongs to"):
        as_tokenize(slow)


def test_batches_of_equal_length_change_nothing():
    model, texts = TransformerLM(256, 16, 2, 2, 64), ["a bc def", "gh i jkl", "m", "no pqr st uvw x"]
    together = regard.inspect.heads(model, texts, bytes_of_words)
    alone = regard.inspect.heads(model, texts, bytes_of_words, batch=1)
    for one, other in zip(together.heads, alone.heads, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=1e-6)
        assert one.offset_share == other.offset_share


def test_gates_of_the_model_are_told():
    model = TransformerLM(256, 16, 2, 2, 64)
    gates = gate_heads(model)
    with torch.no_grad():
        gates.parameters()[1].copy_(torch.tensor([-9.0, 9.0]))
    report = regard.inspect.heads(model, ["one two three"], bytes_of_words)
    assert [head.gate for head in report.heads[2:]] == [0.0, 1.0]
    with pytest.raises(ValueError, match=r"blocks.0.attention has 2 heads, but 3 gates were given"):
        regard.inspect.heads(model, ["a b"], bytes_of_words, gates={"blocks.0.attention": torch.ones(3)})


def test_importance_by_a_loss():
    model = TransformerLM(256, 16, 2, 2, 64)
    with torch.no_grad():
        model.blocks[1].attention.out_proj.weight[:, 8:] = 0.0  # head 1 is heard by nobody

    def loss(model, tokens):
        return F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    report = regard.inspect.heads(model, ["one two three", "four five"], bytes_of_words, loss=loss)
    assert report.head("blocks.1.attention", 1).importance == 0.0
    assert report.head(1, 0).importance > 0


def test_the_encoder_of_a_translator_and_what_looks_elsewhere():
    model = Transformer(256, dim=16, num_heads=2, depth=1, hidden=24)
    alone = regard.inspect.heads(model, ["one two"], bytes_of_words, run=lambda model, src: model.encode(src))
    assert alone.layers == ("encoder.layers.0.self_attention",)
    both = regard.inspect.heads(model, ["one two"], bytes_of_words, run=lambda model, src: model(src, src[:, :3]))
    assert both.layers == alone.layers
    assert any("decoder.layers.0.cross_attention looks at something else" in remark for remark in both.remarks)


def test_the_table_and_the_file(tmp_path):
    report = regard.inspect.heads(ByHand(), DATA, numbers, common_words=0, rare_share=0.9)
    lines = report.table().splitlines()
    assert lines[0].split()[:3] == ["layer", "head", "confidence"]
    assert lines[2].startswith("attention  1")
    assert "100% of amod, dependent to head (any offset: 33%)" in lines[2]
    stored = json.loads(report.save(tmp_path / "new").read_text("utf-8"))
    assert stored["heads"][1]["roles"] == ["syntactic: amod, dependent to head"]
    assert stored["examples"][0]["words"] == ["the", "old", "dog", "sees", "it", "loudly"]
    assert stored["examples"][0]["maps"]["attention"][1][1][2] == 1.0
    assert stored["thresholds"]["positional share"] == 0.9


def test_refusals():
    model = TransformerLM(256, 16, 1, 2, 8)
    with pytest.raises(ValueError, match="there are no sentences"):
        regard.inspect.heads(model, [], bytes_of_words)
    with pytest.raises(ValueError, match="a sentence without words"):
        regard.inspect.heads(model, ["a", " "], bytes_of_words)
    with pytest.raises(
        ValueError, match=r"1 of 2 sentences are longer than the model's 8 tokens \(the longest has 11\)"
    ):
        regard.inspect.heads(model, ["short", "rather long"], bytes_of_words)
    with pytest.raises(ValueError, match=r"2 of 2 sentences are longer than .* 4 tokens"):
        regard.inspect.heads(model, ["short", "rather long"], bytes_of_words, max_length=4)
    report = regard.inspect.heads(model, ["short", "rather long"], bytes_of_words, too_long="skip")
    assert report.sentences == 1
    assert "1 of 2 sentences are longer than the model's 8 tokens and were left out." in report.remarks
    with pytest.raises(ValueError, match="all sentences are longer"):
        regard.inspect.heads(model, ["rather long"], bytes_of_words, too_long="skip")
    with pytest.raises(ValueError, match=r"positional_share=90 is no share"):
        regard.inspect.heads(model, ["a"], bytes_of_words, positional_share=90)
    with pytest.raises(ValueError, match="offsets= is empty"):
        regard.inspect.heads(model, ["a"], bytes_of_words, offsets=[])
    with pytest.raises(UnsupportedError, match="Embedding has no attention"):
        regard.inspect.heads(nn.Embedding(256, 4), ["a"], bytes_of_words)
    with pytest.raises(ValueError, match=r"head 2 of blocks.0.attention does not exist: it has 2, from 0"):
        report.head("blocks.0.attention", 2)
    with pytest.raises(ValueError, match=r"layer 1 does not exist: there are 1, from 0"):
        report.head(1, 0)
    with pytest.raises(ValueError, match=r"layer 'x' does not exist: there are blocks.0.attention"):
        report.head("x", 0)


def test_sentences_that_fit_no_tree():
    with pytest.raises(ValueError, match="2 words, but 1 heads and 2 relations"):
        Sentence(("a", "b"), (-1,), ("root", "obj"))
    with pytest.raises(ValueError, match="a head at place 2 in a sentence of 2 words"):
        Sentence(("a", "b"), (-1, 2), ("root", "obj"))
    with pytest.raises(ValueError, match="one of them is missing"):
        Sentence(("a", "b"), (-1, 0))
