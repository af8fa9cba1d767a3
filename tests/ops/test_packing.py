import torch
from torch.testing import assert_close

from regard.ops.packing import Documents

SEGMENTS = torch.tensor([[7, 7, -1, 7, 2], [2, 2, 2, 2, 9]])


def test_every_document_gets_a_row():
    x = torch.arange(10.0).reshape(2, 1, 5, 1)
    documents = Documents.of(SEGMENTS)
    mask = documents.mask(None)
    rows = [row[real].tolist() for row, real in zip(documents.unpack(x)[:, 0, :, 0], mask, strict=True)]
    assert sorted(rows) == [[0.0, 1.0, 3.0], [2.0], [4.0], [5.0, 6.0, 7.0, 8.0], [9.0]]


def test_packing_undoes_unpacking():
    x = torch.randn(2, 3, 5, 4)
    documents = Documents.of(SEGMENTS)
    assert_close(documents.pack(documents.unpack(x)), x, rtol=0, atol=0)


def test_masks_go_along():
    documents = Documents.of(SEGMENTS)
    mask = torch.rand(2, 5) < 0.5
    packed = documents.pack(documents.mask(mask)[:, None, :, None])[:, 0, :, 0]
    assert packed.tolist() == mask.tolist()
    assert documents.mask(mask).sum() == mask.sum()
