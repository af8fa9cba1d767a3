import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from regard.memory import (
    KeyValueCache,
    LayerMemory,
    LinearState,
    RollingWindow,
    StaticCache,
    check_memory,
    detach,
    load,
    named_tensors,
    reorder,
    save,
    truncate,
)

B, G, D, DV = 3, 2, 4, 5


def tokens(n, **options):
    return torch.randn(B, G, n, D, **options), torch.randn(B, G, n, DV, **options)


def test_a_cache_grows_and_leaves_the_old_one_alone():
    (k1, v1), (k2, v2) = tokens(3), tokens(1)
    first = KeyValueCache.start(B, G, D, DV).append(k1, v1)
    second = first.append(k2, v2)
    assert_close(first, KeyValueCache(k1, v1))
    assert_close(second, KeyValueCache(torch.cat((k1, k2), 2), torch.cat((v1, v2), 2)))


def test_a_cache_keeps_its_dtype():
    cache = KeyValueCache.start(B, G, D, DV, dtype=torch.bfloat16).append(*tokens(2))
    assert cache.key.dtype == cache.value.dtype == torch.bfloat16


def test_a_static_cache_is_overwritten():
    (k1, v1), (k2, v2) = tokens(3), tokens(2)
    empty = StaticCache.start(B, G, 7, D, DV)
    full = empty.append(k1, v1).append(k2, v2)
    assert full.key is empty.key
    assert empty.length.tolist() == [0, 0, 0]
    assert full.filled().tolist() == [[True] * 5 + [False] * 2] * B
    assert_close(full.key[:, :, :5], torch.cat((k1, k2), 2))
    assert_close(full.value[:, :, :5], torch.cat((v1, v2), 2))


def test_a_static_cache_takes_sequences_of_different_lengths():
    k, v = tokens(2)
    cache = StaticCache.start(B, G, 7, D, DV)._replace(length=torch.tensor([0, 3, 5])).append(k, v)
    for row, start in enumerate((0, 3, 5)):
        assert_close(cache.key[row, :, start : start + 2], k[row])
        assert_close(cache.value[row, :, start : start + 2], v[row])


def test_a_static_cache_refuses():
    cache = StaticCache.start(B, G, 4, D, DV).append(*tokens(3))
    with pytest.raises(ValueError, match=r"3 tokens and 2 more.*static=4"):
        cache.append(*tokens(2))
    with pytest.raises(ValueError, match=r"autograd cannot follow.*no_grad"):
        cache.append(*tokens(1, requires_grad=True))


@pytest.mark.parametrize("pieces", [(1, 1, 1, 1, 1, 1, 1), (2, 5), (7,), (6, 1)])
def test_a_window_holds_the_last_tokens(pieces):
    k, v = tokens(7)
    memory, seen = RollingWindow.start(B, G, 3, D, DV), 0
    for n in pieces:
        old = memory
        keys, values, real, memory = memory.append(k[:, :, seen : seen + n], v[:, :, seen : seen + n])
        past = min(seen, 3)
        assert real.tolist() == [[slot >= 3 - past for slot in range(3 + n)]] * B
        assert_close(keys[:, :, 3 - past :], k[:, :, seen - past : seen + n])
        assert_close(values[:, :, 3 - past :], v[:, :, seen - past : seen + n])
        assert old.length.tolist() == [seen] * B
        seen += n
    assert memory.length.tolist() == [7] * B
    assert_close(memory.key, k[:, :, -3:])
    assert memory.key.untyped_storage().nbytes() == memory.key.numel() * 4  # no view of a long prompt


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_linear_states_sum_in_float32_at_least(dtype, expected):
    memory = LinearState.start(B, G, D, DV, dtype=dtype)
    assert (memory.state.shape, memory.normaliser.shape) == ((B, G, D, DV), (B, G, D))
    assert memory.state.dtype == memory.normaliser.dtype == expected
    assert not memory.state.any()
    assert not memory.normaliser.any()


def test_beams_are_reordered_and_graphs_cut():
    k, v = tokens(2, requires_grad=True)
    memory = ((KeyValueCache(k, v), LinearState.start(B, G, D, DV)), torch.arange(B))
    again = reorder(memory, torch.tensor([2, 0]))
    assert isinstance(again[0][0], KeyValueCache)
    assert_close(again[0][0].key, k[[2, 0]])
    assert again[1].tolist() == [2, 0]
    assert again[0][0].key.requires_grad
    assert not detach(again)[0][0].key.requires_grad


def seen(kind, n):
    k, v = (torch.arange(n, dtype=torch.float32)[:, None].expand(B, G, n, width) for width in (D, DV))
    memory = kind.start(B, G, *(() if kind is KeyValueCache else (4,)), D, DV)
    grown = memory.append(k, v)
    return grown[3] if kind is RollingWindow else grown


@pytest.mark.parametrize("kind", [KeyValueCache, StaticCache, RollingWindow])
@pytest.mark.parametrize("length", [0, 2, 4, 9])
def test_tokens_are_taken_back(kind, length):
    back, then = truncate(seen(kind, 4), length), seen(kind, min(length, 4))
    if kind is KeyValueCache:
        assert_close(back, then, rtol=0, atol=0)
        return
    assert back.length.tolist() == then.length.tolist()
    window = kind is RollingWindow
    real = torch.arange(4) >= 4 - back.length[:, None] if window else back.filled()
    assert_close(back.key[real[:, None].expand(B, G, 4)], then.key[real[:, None].expand(B, G, 4)], rtol=0, atol=0)


def test_rows_of_a_window_are_taken_back_one_by_one():
    memory = seen(RollingWindow, 4)._replace(length=torch.tensor([4, 2, 3]))
    back = truncate(memory, 2)
    assert back.length.tolist() == [2, 2, 2]
    assert back.key[:, 0, 2:, 0].tolist() == [[0.0, 1.0], [2.0, 3.0], [1.0, 2.0]]


def test_what_cannot_be_taken_back_says_so():
    with pytest.raises(ValueError, match=r"window of 4 held some that have left it.*keep the memory"):
        truncate(seen(RollingWindow, 6), 5)
    assert truncate(seen(RollingWindow, 6), 6).length.tolist() == [6] * B
    with pytest.raises(ValueError, match=r"LinearState does not hold its tokens.*keep the memory"):
        truncate(LayerMemory(LinearState.start(B, G, D, DV), torch.zeros(B, dtype=torch.long)), 1)
    with pytest.raises(ValueError, match="must not be negative"):
        truncate(seen(KeyValueCache, 4), -1)


def test_a_model_of_several_layers_is_taken_back_whole():
    layers = tuple(LayerMemory(seen(KeyValueCache, 4), torch.full((B,), 4)) for _ in range(2))
    back = truncate(layers, 3)
    assert [layer.core.key.shape[2] for layer in back] == [3, 3]
    assert [layer.position.tolist() for layer in back] == [[3] * B] * 2


def test_the_door_of_a_stream():
    memory, place = LayerMemory(seen(KeyValueCache, 4), torch.full((B,), 4)), torch.empty(0)

    def empty(batch=B, heads=G, kind=KeyValueCache, **place):
        sizes = (batch, heads, D, DV) if kind is KeyValueCache else (batch, heads, 4, D, DV)
        return LayerMemory(kind.start(*sizes, **place), torch.zeros(batch, dtype=torch.long, **place))

    check_memory(memory, empty(device="meta"), place)
    check_memory(LayerMemory(seen(StaticCache, 3), memory.position), empty(), place)
    with pytest.raises(ValueError, match=r"memory.core.key has shape \(3, 2, 4, 4\).*need \(2, 2, any, 4\)"):
        check_memory(memory, empty(batch=2), place)
    with pytest.raises(ValueError, match=r"need \(3, 5, any, 4\)"):
        check_memory(memory, empty(heads=5), place)
    with pytest.raises(ValueError, match=r"memory.core.key is on cpu and the tokens are on meta"):
        check_memory(memory, empty(), place.to("meta"))
    with pytest.raises(TypeError, match=r"memory.core is a KeyValueCache.*continues from a RollingWindow"):
        check_memory(memory, empty(kind=RollingWindow), place)
    with pytest.raises(TypeError, match="memory is a dict"):
        check_memory({}, empty(), place)


def test_files(tmp_path):
    memory, path = (seen(KeyValueCache, 4), LinearState.start(B, G, D, DV)), tmp_path / "memory"
    save(memory, path)
    empty = (KeyValueCache.start(B, G, D, DV, dtype=torch.float64), LinearState.start(B, G, D, DV))
    found = load(path, empty)
    assert [type(part) for part in found] == [KeyValueCache, LinearState]
    assert found[0].key.dtype == torch.float64
    assert_close(found[0].key.float(), memory[0].key)
    assert list(named_tensors(found)) == ["memory.0.key", "memory.0.value", "memory.1.state", "memory.1.normaliser"]

    with pytest.raises(ValueError, match=r"holds memory.0.key.*but this memory has memory.key, memory.value"):
        load(path, empty[0])
    with pytest.raises(ValueError, match=r"has shape \(3, 2, 4, 4\).*need \(1, 2, any, 4\)"):
        load(path, (KeyValueCache.start(1, G, D, DV), empty[1]))
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="no memory that regard wrote"):
        load(tmp_path / "other", empty)


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "memory"
    save(seen(KeyValueCache, 4), path)
    before = path.read_bytes()

    def fails(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr("regard.memory.files.save_file", fails)
    with pytest.raises(OSError, match="no space"):
        save(seen(KeyValueCache, 2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
