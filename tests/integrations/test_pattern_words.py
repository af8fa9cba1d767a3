import pytest

from regard.integrations.pattern_words import pattern_from_words
from regard.patterns import (
    Axis,
    BigBird,
    Blocks,
    Causal,
    Columns,
    CrissCross,
    Dilated,
    Fixed,
    Full,
    Global,
    Halo,
    Neighborhood,
    Rows,
    Strided,
    Summary,
    Window,
)


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        ("full", Full()),
        ("causal", Causal()),
        ("window-3", Window(3)),
        ("window-3-0", Window(3, 0)),
        ("dilated-2-3", Dilated(2, 3)),
        ("strided-4", Strided(4)),
        ("fixed-4-1", Fixed(4, 1)),
        ("summary-4-1", Summary(4, 1)),
        ("blocks-4-1", Blocks(4, 1)),
        ("global-2", Global(2)),
        ("bigbird-2-3-2-1-7", BigBird(2, 3, 2, 1, 7)),
        ("rows-3x4", Rows((3, 4))),
        ("columns-3x4", Columns((3, 4))),
        ("criss_cross-3x4", CrissCross((3, 4))),
        ("axis-2x3x4-1", Axis((2, 3, 4), 1)),
        ("neighborhood-9x9-3x5-2", Neighborhood((9, 9), (3, 5), 2)),
        ("halo-4x4-2-1", Halo((4, 4), 2, 1)),
        ("causal&(window-512|global-4)", Causal() & (Window(512) | Global(4))),
        ("causal & window-2 | global-1", (Causal() & Window(2)) | Global(1)),
        ("global-1|causal&window-2", Global(1) | (Causal() & Window(2))),
        ("~causal&window-2", ~Causal() & Window(2)),
        ("~(causal&window-2)", ~(Causal() & Window(2))),
        ("~~causal", ~~Causal()),
    ],
)
def test_says_the_pattern(words, pattern):
    assert pattern_from_words(words) == pattern


@pytest.mark.parametrize(
    ("words", "message", "place"),
    [
        ("", "a pattern is missing", 1),
        ("causal&", "a pattern is missing", 8),
        ("causal&|full", "a pattern is missing", 8),
        ("causal full", "'full' does not belong here: & or | joins", 8),
        ("(causal", "a bracket is not closed", 8),
        ("causal)", r"'\)' does not belong here", 7),
        ("causal&windw-3", "no pattern is called 'windw': did you mean 'window'", 8),
        ("xyz", "no pattern is called 'xyz': there are axis, bigbird", 1),
        ("window-a", "numbers follow the name behind hyphens", 1),
        ("causal&window", "'window': Window refuses its numbers", 8),
        ("window-1-2-3", "Window refuses its numbers", 1),
        ("strided-0", "Strided refuses its numbers: stride must be", 1),
        ("rows-14", "Rows refuses its numbers", 1),
    ],
)
def test_errors_say_what_and_where(words, message, place):
    with pytest.raises(ValueError, match=message) as caught:
        pattern_from_words(words)
    assert str(caught.value).endswith(f"^ place {place}")
    assert f"  {words}\n" in str(caught.value)


def test_every_pattern_of_numbers_has_a_word():
    from regard import patterns

    others = {"ListedBlocks", "Pattern", "PerHead", "Segments"}  # they hold tensors or patterns
    classes = {name for name in patterns.__all__ if name[0].isupper()} - others
    said = {type(pattern_from_words(words)).__name__ for words in _ONE_OF_EACH}
    assert said == classes


_ONE_OF_EACH = [
    *(
        "axis-2-0",
        "bigbird-2-3-2-1",
        "blocks-2",
        "causal",
        "columns-2x2",
        "criss_cross-2x2",
        "dilated-1-2",
        "fixed-2-1",
    ),
    *("full", "global-1", "halo-4-2-1", "neighborhood-4-3", "rows-2x2", "strided-2", "summary-2-1", "window-1"),
]
