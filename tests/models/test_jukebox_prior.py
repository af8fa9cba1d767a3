import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.models.code_prior import CodePrior
from regard.models.jukebox_conditions import LabelEmbedding, LyricsEncoder, TimeSignal, UpperCodes, lyric_window
from regard.models.jukebox_prior import JukeboxPrior
from regard.models.jukebox_transformer import JukeboxTransformer
from regard.models.sound_blocks import Residual

N, V, C, M, LYRICS = 12, 7, 12, 5, 6
"""Codes, their kinds, width, lyric tokens and their kinds."""

TIME = TimeSignal(N, 5, (100.0, 1000.0), (0.0, 1000.0))


def codes_prior(length=N, kinds=V, order=2, depth=3, **options):
    lines = {"row_length": 4, "attention_ratio": 0.5, "init_scale": 10.0, "prime_length": 8}
    return CodePrior(kinds, length, JukeboxTransformer(C, depth, 2, order=order, **lines), init_scale=10.0, **options)


def labels_of(tokens=0):
    lyrics = torch.randint(LYRICS, (2, tokens), generator=torch.Generator().manual_seed(2))
    return torch.cat((torch.tensor([[900, 30, 240, 2, 1, 3, -1], [503, 101, 121, 0, -1, -1, -1]]), lyrics), 1)


def artists(time=TIME):
    return LabelEmbedding(3, 4, C, max_genres=3, time=time, init_scale=10.0)


def top(**options):
    torch.manual_seed(0)
    return JukeboxPrior(codes_prior(labelled=True), labels=artists(), hop=20, **options).double().eval()


def apart(**options):
    torch.manual_seed(0)
    encoder = CodePrior(LYRICS, M, JukeboxTransformer(8, 2, 2, row_length=2, init_scale=10.0), head="none")
    prior = JukeboxPrior(
        codes_prior(order=[1, 6], depth=2, labelled=True, head="separate"),
        labels=artists(),
        lyrics=LyricsEncoder(encoder, C),
        lyric_tokens=M,
        **options,
    )
    for block in prior.codes.transformer.blocks:  # layers across start at 0
        torch.nn.init.normal_(block.attention.out_proj.weight)
    return prior.double().eval()


def in_front():
    torch.manual_seed(0)
    codes = codes_prior(M + N, LYRICS + V, order=["row", "prime", "column"], labelled=True)
    prior = JukeboxPrior(codes, labels=artists(), lyric_tokens=M, lyric_vocabulary=LYRICS)
    return prior.double().eval()


def upsampler():
    torch.manual_seed(0)
    upper = UpperCodes(V, C, 1, 4, Residual(6, 2), init_scale=10.0)
    return JukeboxPrior(codes_prior(), upper=upper, hop=5).double().eval()


def codes_of(length=N, seed=1):
    return torch.randint(V, (2, length), generator=torch.Generator().manual_seed(seed))


def test_labels_are_sums_of_embeddings():
    labels = labels_of()
    module = artists().double()
    start, signal = module(labels)
    for row in range(2):
        total, offset, length, artist, *genres = labels[row].tolist()
        expected = module.artist.weight[artist] + sum(module.genre.weight[genre] for genre in genres if genre >= 0)
        assert_close(start[row], expected)
        for t in range(N):
            where = offset + length * t / N
            bins = ((total - 100) / 900, where / 1000, where / total)
            tables = (module.total, module.absolute, module.relative)
            found = sum(table.weight[math.floor(5 * share)] for table, share in zip(tables, bins, strict=True))
            assert_close(signal[row, t], found)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, 99, "total length 99 is not from 100 to below 1000"),
        (1, -1, "offset -1 is not"),
        (2, 990, "end of the window"),
        (3, 3, "artist 3 is not from 0 to below 3"),
        (4, 4, "genre 4 is not from -1 to below 4"),
    ],
)
def test_labels_out_of_range_are_refused(column, value, message):
    labels = labels_of()
    labels[0, column] = value
    with pytest.raises(ValueError, match=message):
        artists()(labels)


def test_lyrics_of_a_window():
    text = list(range(40))
    for count in (4, 5, 40):
        for offset in (0, 100, 555, 900):
            window = lyric_window(text, count, 1000, offset, 100)
            assert len(window) == count
            assert window == text[window[0] : window[0] + count]
            middle = int(40 * (offset + 50) / 1000)
            assert window[0] == min(max(middle - count // 2, 0), 40 - count)
    assert lyric_window([7], 3, 10, 0, 10) == [0, 0, 7]


def test_lyrics_apart():
    prior, codes, labels = apart(), codes_of(), labels_of(M)
    tokens = labels[:, -M:]
    states = prior.lyrics.norm(prior.lyrics.projection(prior.lyrics.prior(tokens)))
    start, signal = prior.labels(labels[:, :-M])
    logits = prior.codes(codes, start=start, condition=signal, context=states)
    assert_close(prior(codes, labels=labels), logits, rtol=0, atol=1e-12)
    mine = F.cross_entropy(logits.flatten(0, 1), codes.flatten()) / math.log(2)
    theirs = F.cross_entropy((states @ prior.lyrics.out.weight.T).flatten(0, 1), tokens.flatten()) / math.log(2)
    told = prior.bits(codes, labels=labels)
    assert_close(told.total, 0.4 * theirs * M / (M + N) + mine * N / (M + N), rtol=0, atol=1e-12)
    assert_close((told.codes, told.lyrics), (mine, theirs), rtol=0, atol=1e-12)
    _, aux = prior(codes, labels=labels, return_aux=True)
    trained = (mine * math.log(2) + aux["loss/lyrics"]) * N / (M + N) / math.log(2)
    assert_close(trained, told.total, rtol=0, atol=1e-12)


def test_nobody_reads_the_last_lyric():
    prior, codes, labels = apart(), codes_of(), labels_of(M)
    for column, changes in ((-1, False), (-2, True)):
        other = labels.clone()
        other[:, column] = (other[:, column] + 1) % LYRICS
        same = torch.allclose(prior(codes, labels=labels), prior(codes, labels=other))
        assert same != changes


def test_lyrics_in_front():
    prior, codes, labels = in_front(), codes_of(), labels_of(M)
    tokens = labels[:, -M:]
    start, signal = prior.labels(labels[:, :-M])
    joint = torch.cat((tokens, codes + LYRICS), 1)
    logits = prior.codes(joint, start=start, condition=F.pad(signal, (0, 0, M, 0)))
    assert_close(prior.joint_logits(codes, labels=labels), logits, rtol=0, atol=1e-12)
    assert_close(prior(codes, labels=labels), logits[:, M:, LYRICS:], rtol=0, atol=1e-12)
    nats = F.cross_entropy(logits.transpose(1, 2), joint, reduction="none")
    mine, theirs = nats[:, M:].mean() / math.log(2), nats[:, :M].mean() / math.log(2)
    told = prior.bits(codes, labels=labels)
    assert_close(told.total, 0.4 * theirs * M / (M + N) + mine * N / (M + N), rtol=0, atol=1e-12)


def test_an_upsampler_is_told_one_vector_for_each_code():
    prior, codes, above = upsampler(), codes_of(), codes_of(3, seed=4)
    x = prior.upper.embedding(above).mT
    condition = prior.upper.norm(prior.upper.upsampler(x).mT)
    assert condition.shape == (2, N, C)
    expected = prior.codes(codes, condition=condition)
    assert_close(prior(codes, upper_codes=above), expected, rtol=0, atol=1e-12)
    assert_close(prior(codes[:, :8], upper_codes=above[:, :2]).shape, torch.Size([2, 8, V]))


@pytest.mark.parametrize("made", [top, apart, in_front, upsampler])
def test_a_stream_is_the_whole(made):
    prior, codes = made(), codes_of()
    told = {"upper_codes": codes_of(3, seed=4)} if prior.upper else {"labels": labels_of(prior.lyric_tokens)}
    memory, outs = prior.memory(2, **told), []
    for piece in codes[:, : N - 1].split([0, 1, 1, 4, N - 7], 1):
        logits, memory = prior.stream(piece, memory)
        outs.append(logits)
    assert_close(torch.cat(outs, 1), prior(codes, **told), rtol=0, atol=1e-12)


@pytest.mark.parametrize("made", [top, apart, in_front, upsampler])
def test_padding_changes_nothing(made):
    prior, codes = made(), codes_of()
    told = {"upper_codes": codes_of(3, seed=4)} if prior.upper else {"labels": labels_of(prior.lyric_tokens)}
    keep = torch.arange(N) < torch.tensor([[N], [7]])
    y = prior(codes.masked_fill(~keep, 0), key_mask=keep, **told)
    assert_close(y[1, :7], prior(codes, **told)[1, :7], rtol=0, atol=1e-12)


def test_a_copy_of_the_codes_takes_the_place_of_lyrics():
    prior, codes = apart(copy_input=True), codes_of() % LYRICS
    labels = labels_of(M)
    other = labels.clone()
    other[:, -M:] = codes[:, :M]
    assert_close(prior.bits(codes, labels=labels), apart().bits(codes, labels=other), rtol=0, atol=1e-12)


def test_every_parameter_gets_a_gradient():
    for prior in (top(), apart(), in_front(), upsampler()):
        told = {"upper_codes": codes_of(3)} if prior.upper else {"labels": labels_of(prior.lyric_tokens)}
        prior.bits(codes_of(), **told).total.backward()
        for name, parameter in prior.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_refusals():
    codes = codes_of()
    with pytest.raises(ValueError, match="labelled=True"):
        JukeboxPrior(codes_prior(), labels=artists())
    with pytest.raises(ValueError, match=r"apart .* or in front"):
        JukeboxPrior(codes_prior(labelled=True), labels=artists(), lyrics=apart().lyrics, lyric_vocabulary=3)
    with pytest.raises(ValueError, match="needs lyric_tokens="):
        JukeboxPrior(codes_prior(labelled=True), labels=artists(), lyrics=apart().lyrics)
    with pytest.raises(ValueError, match='head="none"'):
        LyricsEncoder(codes_prior(), C)
    with pytest.raises(ValueError, match="needs labels="):
        top()(codes)
    with pytest.raises(ValueError, match="takes no upper_codes"):
        top()(codes, labels=labels_of(), upper_codes=codes)
    with pytest.raises(ValueError, match="needs upper_codes="):
        upsampler()(codes)
    with pytest.raises(ValueError, match="was built without labels"):
        upsampler()(codes, upper_codes=codes_of(3), labels=labels_of())
    with pytest.raises(ValueError, match=r"upper_codes have shape \(2, 4\).*12 codes need \(batch, 3\)"):
        upsampler()(codes, upper_codes=codes_of(4))
    with pytest.raises(ValueError, match=r"labels have shape \(2, 7\), expected \(2, 12\): 4, 3 genres and 5 lyric"):
        apart()(codes, labels=labels_of())
    with pytest.raises(ValueError, match="at most max_length=12"):
        top()(codes_of(13), labels=labels_of())
