import gzip

import pytest

from regard.tasks.alphabet import Alphabet
from regard.tasks.documents import InputError
from regard.tasks.speech_data import asterisk, fillets, parts_of, plain_text, read_prompts

WORDS = (
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "star",
    "pound",
    "agent",
    "hold",
)
SOUNDS = "share/asterisk/sounds/en_US_f_Allison"
TEXTS = "share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
GAME = "share/games/fillets-ng"


def put(path, data=b"sound"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def exchange(root):
    """Asterisk's package: a prompt for each word, tones, and a line without a sound."""
    lines = [f"digits/{word}: {word.title()}, please." for word in WORDS]
    lines += ["beep: [a tone]", "silence/1: (1 second of silence)", "at: at [@]", "gone: Gone."]
    put(root / TEXTS, gzip.compress(("; Core sounds: English\n\n" + "\n".join(lines)).encode()))
    for word in WORDS:
        put(root / SOUNDS / f"digits/{word}.wav")
    for name in ("beep", "silence/1", "at"):
        put(root / SOUNDS / f"{name}.wav")
    return root


def game(root):
    """The game's two packages, of one level."""
    script = [
        f'dialogId("lev-{word}", "font_small", "{word} \\"in\\" English")\ndialogStr("Tak {word}\u2026 čtyři!")\n'
        for word in WORDS
    ]
    script.append('dialogId("lev-gap", "font_big", "Over %1 hours!")\ndialogStr("Přes %1 hodin!")\n')
    script.append('dialogId("lev-mute", "font_big", "Silent.")\ndialogStr("Mlčí.")\n')
    put(root / GAME / "script/level/dialogs_cs.lua", "\n".join(script).encode())
    for word in (*WORDS, "gap"):
        put(root / GAME / f"sound/level/cs/lev-{word}.ogg")
    return root


def test_texts_in_plain():
    assert plain_text("  Press *1*, or\tPRESS #2 -- now!") == "press 1 or press 2 now"
    assert plain_text("'Don\u2019t' say o'clock' '") == "don't say o'clock"
    assert plain_text("Pr\u030ci\u0301lis\u030c") == "příliš"  # composed
    assert plain_text("... ?") == ""


def test_asterisk(tmp_path):
    found = asterisk(exchange(tmp_path))
    assert [prompt.text for prompt in found.prompts] == [*(f"{word} please" for word in WORDS), "at"]
    assert found.prompts[0].name == "digits/one"
    assert found.prompts[0].path == tmp_path / SOUNDS / "digits/one.wav"
    assert found.remarks == ("1 with no recording left out", "2 with nothing that is said left out")


def test_fillets(tmp_path):
    found = fillets(game(tmp_path))
    assert [prompt.text for prompt in found.prompts] == [f"tak {word} čtyři" for word in WORDS]
    assert found.prompts[0].path == tmp_path / GAME / "sound/level/cs/lev-one.ogg"
    assert found.remarks == ("1 with no recording left out", "1 with nothing that is said left out")
    assert found.pace == (4, 30)
    with pytest.raises(InputError, match="apt-get install fillets-ng-data has them"):
        fillets(tmp_path, "nl")


def test_finds_out_what_a_folder_is(tmp_path, monkeypatch):
    assert read_prompts(exchange(tmp_path / "unpacked" / "usr").parent).title == "Asterisk's English prompts"
    assert len(asterisk(tmp_path / "unpacked").prompts) == len(WORDS) + 1
    assert len(fillets(game(tmp_path / "unpacked" / "usr").parent).prompts) == len(WORDS)
    assert read_prompts(game(tmp_path / "game")).title == "the dialogues of Fish Fillets (cs)"
    for word in WORDS:
        put(tmp_path / "own" / f"{word}.wav")
        put(tmp_path / "own" / f"{word}.txt", f"{word.upper()}!".encode())
    own = read_prompts(tmp_path / "own")
    assert (own.title, sorted(prompt.text for prompt in own.prompts)) == (str(tmp_path / "own"), sorted(WORDS))
    monkeypatch.setattr("regard.tasks.speech_data.INSTALLED", tmp_path / "game")
    assert read_prompts().title == "the dialogues of Fish Fillets (cs)"


def test_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("regard.tasks.speech_data.INSTALLED", tmp_path)
    with pytest.raises(InputError, match=r"apt-get install asterisk-core-sounds-en-wav .* or name a folder"):
        read_prompts()
    put(tmp_path / SOUNDS / "a.wav")
    with pytest.raises(InputError, match="asterisk-core-sounds-en has the texts"):
        read_prompts(tmp_path)
    put(tmp_path / TEXTS, b"no gzip")
    with pytest.raises(InputError, match="cannot read"):
        read_prompts(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        read_prompts(tmp_path / "none")
    put(tmp_path / "few" / "a.wav")
    put(tmp_path / "few" / "a.txt", b"one text")
    with pytest.raises(InputError, match="1 different texts, at least 10 are needed"):
        read_prompts(tmp_path / "few")


def test_the_split_goes_by_the_text_alone(tmp_path):
    texts = {f"text {number}" for number in range(300)}
    parts = parts_of(texts)
    assert {part: list(parts.values()).count(part) for part in ("train", "validation", "test")} == {
        "train": 240,
        "validation": 30,
        "test": 30,
    }
    assert parts == parts_of(set(texts))
    first = asterisk(exchange(tmp_path))
    put(tmp_path / SOUNDS / "again.wav")
    lines = gzip.decompress((tmp_path / TEXTS).read_bytes()) + b"\nagain: AT!"
    put(tmp_path / TEXTS, gzip.compress(lines))
    again = asterisk(tmp_path)
    assert again.prompts[:-1] == first.prompts
    assert again.prompts[-1].text == again.prompts[-2].text
    assert again.prompts[-1].part == again.prompts[-2].part


def test_labels_count_from_one_and_leave_out_what_they_lack():
    alphabet = Alphabet.of(["čaj", "a je"])
    assert (alphabet.signs, len(alphabet), alphabet.space) == (" aejč", 6, 1)
    assert alphabet.encode("jaxčaj") == [4, 2, 5, 2, 4]
    assert alphabet.decode([1, 4, 2, 1, 3, 1]) == "ja e"
    assert Alphabet.of(["ab"]).space == 1
