import gzip

import pytest
import torch

from regard.tasks.documents import InputError
from regard.tasks.fashion_mnist import DIGEST, fashion_mnist


def idx(tensor):
    head = bytes((0, 0, 8, tensor.ndim)) + b"".join(side.to_bytes(4, "big") for side in tensor.shape)
    return head + bytes(tensor.flatten().tolist())


def write(folder, packed=True, rows=6, side=28):
    """Tiny data in the format of Fashion-MNIST; pictures and labels of both parts."""
    parts = []
    for number, part in enumerate(("train", "t10k")):
        count = rows - 2 * number
        images = (torch.arange(count * side * side) * (number + 3) % 251).view(count, side, side).to(torch.uint8)
        labels = (torch.arange(count) % 2).to(torch.uint8)
        for name, tensor in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            data = idx(tensor)
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(data) if packed else data)
        parts += [images, labels]
    return parts


@pytest.mark.parametrize("packed", [True, False])
def test_reads_the_four_files(tmp_path, packed):
    expected = write(tmp_path, packed)
    found = fashion_mnist(tmp_path)
    assert all(map(torch.equal, found, expected))
    assert found.train_images.shape == (6, 28, 28)
    assert found.digest == fashion_mnist(tmp_path).digest != DIGEST


def test_what_is_missing_is_said_with_the_commands_that_get_it(tmp_path):
    with pytest.raises(InputError) as caught:
        fashion_mnist(tmp_path)
    for words in (str(tmp_path), "apt-get install dataset-fashion-mnist", "apt-get download", "dpkg -x"):
        assert words in str(caught.value)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"\1" + data[1:], lambda data: data[:8]])
@pytest.mark.parametrize("packed", [True, False])
def test_damaged_files_are_refused(tmp_path, damage, packed):
    write(tmp_path, packed)
    path = tmp_path / ("t10k-labels-idx1-ubyte" + ".gz" * packed)
    data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    path.write_bytes(gzip.compress(damage(data)) if packed else damage(data))
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte.*is damaged"):
        fashion_mnist(tmp_path)


def test_a_file_that_was_cut_while_it_was_copied_is_refused(tmp_path):
    write(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz is damaged"):
        fashion_mnist(tmp_path)


def test_images_and_labels_must_be_as_many(tmp_path):
    write(tmp_path, packed=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(torch.zeros(5, dtype=torch.uint8)))
    with pytest.raises(InputError, match="6 train images, but 5 labels"):
        fashion_mnist(tmp_path)
