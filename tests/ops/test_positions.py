import torch
from torch.testing import assert_close

from regard.ops.positions import from_first_real, put_back, real_first


def test_real_tokens_come_first_in_their_order_and_go_back():
    mask = torch.tensor([[False, True, False, True, True], [True, True, True, True, True]])
    x = torch.arange(20.0).reshape(2, 1, 5, 2)
    (moved,) = real_first(mask, x)
    assert moved[0, 0, :3, 0].tolist() == [2.0, 6.0, 8.0]
    assert_close(moved[1], x[1])
    assert_close(put_back(mask, moved), x * mask[:, None, :, None])


def test_positions_count_tokens_that_ask_or_are_asked():
    key_mask = torch.tensor([[False, True, True, False, True]])
    query_mask = torch.tensor([[False, False, True, True, True]])
    seen = {}

    def attention(q, k, v, keep):
        seen.update(q=q[0, 0, :, 0].tolist(), k=k[0, 0, :, 0].tolist(), keep=keep[0].tolist())
        return q

    x = torch.arange(5.0).reshape(1, 1, 5, 1)
    out = from_first_real(attention, x, x, x, key_mask, query_mask)
    assert seen == {
        "q": [1.0, 2.0, 3.0, 4.0, 0.0],
        "k": [1.0, 2.0, 3.0, 4.0, 0.0],
        "keep": [True, True, False, True, False],
    }
    assert_close(out, x)
