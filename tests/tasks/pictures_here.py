"""Small pictures in the format of MNIST, made here."""

import gzip

import torch


def write_pictures(folder, train=60, test=20, side=6, classes=10):
    """The four files of MNIST: a bright dot whose place tells the class, black elsewhere."""
    for part, count in (("train", train), ("t10k", test)):
        labels = torch.arange(count) % classes
        images = torch.zeros(count, side, side, dtype=torch.uint8)
        for number, label in enumerate(labels.tolist()):
            images[number, label // 4, label % 4 : label % 4 + 2] = 200
        for kind, axes, tensor in (("images-idx3", 3, images), ("labels-idx1", 1, labels.to(torch.uint8))):
            head = bytes((0, 0, 8, axes)) + b"".join(size.to_bytes(4, "big") for size in tensor.shape)
            with gzip.open(folder / f"{part}-{kind}-ubyte.gz", "wb") as file:
                file.write(head + tensor.numpy().tobytes())
    return folder
