"""``regard verify``: the authors' numbers, repeated on this machine, device and dtype.

Example:
    >>> [result.status for result in verify(["sparse_transformer/openai_strided"])]
    ['ok']
"""

from regard.verify.results import Result, verify

__all__ = ["Result", "verify"]
