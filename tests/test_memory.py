import pytest
import torch
from torch.testing import assert_close

from regard.memory import KeyValueCache, LinearState, RollingWindow, StaticCache, detach, reorder

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
