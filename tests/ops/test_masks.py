import pytest
import torch

from regard.ops.masks import check_mask, check_tokens, from_key_padding_mask, positions


def test_what_fits_passes():
    check_mask(None, 2, 3)
    check_mask(torch.ones(2, 3, dtype=torch.bool), 2, 3)
    check_tokens(torch.zeros(2, 3, 4), 4)


def test_refusals():
    with pytest.raises(TypeError, match=r"query_mask is torch.int64.*query_mask\.bool\(\)"):
        check_mask(torch.ones(2, 3, dtype=torch.long), 2, 3, "query_mask")
    with pytest.raises(ValueError, match=r"key_mask has shape \(3, 2\).*\(2, 3\)"):
        check_mask(torch.ones(3, 2, dtype=torch.bool), 2, 3)
    for shape in ((3, 4), (2, 3, 5)):
        with pytest.raises(ValueError, match=r"x has shape .*expected \(batch, length, 4\)"):
            check_tokens(torch.zeros(shape), 4)
    with pytest.raises(TypeError, match=r"key_padding_mask is torch.float32"):
        from_key_padding_mask(torch.zeros(2, 3))


def test_torch_means_the_opposite():
    ignored = torch.tensor([[False, True]])
    x = torch.randn(1, 2, 4)
    theirs = torch.nn.MultiheadAttention(4, 1, batch_first=True)
    out = theirs(x, x, x, key_padding_mask=ignored, need_weights=False)[0]
    alone = theirs(x, x[:, from_key_padding_mask(ignored)[0]], x[:, :1], need_weights=False)[0]
    torch.testing.assert_close(out, alone)


def test_positions_count_real_tokens():
    mask = torch.tensor([[False, False, True, True], [True, False, True, False], [False] * 4])
    assert positions(mask).tolist() == [[0, 1, 2, 3]]
    assert positions(mask, mask).tolist() == [[0, 0, 0, 1], [0, 0, 1, 1], [0] * 4]


def test_positions_start_anew_in_every_document():
    segments = torch.tensor([[3, 3, 1, 3, 1], [0, 0, 0, 9, 9]])
    mask = torch.tensor([[False, True, True, True, True], [True, True, False, False, True]])
    assert positions(segments, None, segments).tolist() == [[0, 1, 0, 2, 1], [0, 1, 2, 0, 1]]
    assert positions(segments, mask, segments)[mask].tolist() == [0, 0, 1, 1, 0, 1, 0]
