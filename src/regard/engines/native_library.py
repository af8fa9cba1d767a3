"""The shared library of regard-native: found and loaded when first asked for, and its C structs.

``REGARD_NATIVE=0`` hides it; any other value is the path of another build, but for 1: the installed one, as when
nothing is set, and tests insist on it. ``native/cpp/calls.h`` has the meaning of every field.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, Structure, c_double, c_int32, c_int64, c_uint64, c_void_p
from functools import lru_cache

import torch

VERSION = 3  # of the structs below; the library says the same or is not used
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
ISAS = ("amx", "avx512bf16", "avx512", "avx2", "portable")


class CTensor(Structure):
    """``Tensor``."""

    _fields_ = [
        ("data", c_void_p),
        *((name, c_int64) for name in ("batch", "head", "row", "column")),
        ("dtype", c_int32),
    ]


class CPart(Structure):
    """``Part``."""

    _fields_ = [
        *((name, c_int64) for name in ("planes_batch", "by_head", "heads")),
        ("head", c_void_p),
        *((name, c_int64) for name in ("natural", "rows", "columns")),
        *(
            (name, c_void_p)
            for name in (
                *("query_rows", "key_rows", "row_pointer", "column", "mask", "column_pointer", "by_column", "row"),
                *("mask_by_query", "mask_by_key"),
            )
        ),
    ]


class CDifference(Structure):
    """``Difference``."""

    _fields_ = [
        ("values", c_void_p),
        ("head", c_int64),
        ("shift", c_int64),
        *((name, c_void_p) for name in ("query_code", "key_code", "gradient")),
        ("length", c_int64),
    ]


class CTerm(Structure):
    """``Term``."""

    _fields_ = [("cap", c_double), ("bias", CDifference)]


class CAttention(Structure):
    """``Attention``."""

    _fields_ = [
        *((name, c_int64) for name in ("batch", "heads", "groups", "n", "m", "width", "value_width")),
        *((name, CTensor) for name in ("query", "key", "value", "out")),
        ("lse", c_void_p),
        ("scale", c_double),
        ("parts", c_int64),
        ("part", POINTER(CPart)),
        *((name, c_void_p) for name in ("key_mask", "key_mask_row")),
        ("attn_mask", CTensor),
        ("attn_mask_bool", c_int64),
        ("attn_mask_row", c_void_p),
        ("terms", c_int64),
        ("term", POINTER(CTerm)),
        ("dropout", c_double),
        ("seed", c_uint64),
        ("threads", c_int64),
    ]


class CAttentionGradients(Structure):
    """``AttentionGradients``."""

    _fields_ = [
        ("call", CAttention),
        ("grad_out", CTensor),
        *((name, c_void_p) for name in ("grad_lse", "mean")),
        *((name, CTensor) for name in ("query", "key", "value")),
        *((name, c_int64) for name in ("query_slot", "accumulate")),
        ("attn_mask", c_void_p),
        ("attn_mask_strides", c_int64 * 4),
        *((name, c_int64) for name in ("attn_mask_slot", "slots", "together")),
    ]


@torch.compiler.assume_constant_result  # torch.compile asks while it traces, and cannot look into ctypes
def missing() -> str | None:
    """Why there is no library to call, in words; None when there is one."""
    found = _load(os.environ.get("REGARD_NATIVE", ""))
    return found if isinstance(found, str) else None


def library() -> ctypes.CDLL:
    """The library.

    Raises:
        RuntimeError: there is none.
    """
    found = _load(os.environ.get("REGARD_NATIVE", ""))
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def isa() -> str:
    """The instruction set in use: the best of the machine, or the one that ``REGARD_ISA`` names where it has that."""
    return library().regard_isa().decode()


def isas() -> list[str]:
    """The instruction sets that this machine can run, best first."""
    return [name for name in ISAS if library().regard_has_isa(name.encode())]


@lru_cache(maxsize=8)
def _load(setting: str) -> ctypes.CDLL | str:
    """The library that a value of ``REGARD_NATIVE`` asks for, or the reason why there is none."""
    if setting == "0":
        return "REGARD_NATIVE=0 hides regard-native"
    try:
        if setting in ("", "1"):
            from regard_native import library  # pyright: ignore[reportMissingImports]

            setting = str(library())
        found = ctypes.CDLL(setting)
    except ImportError:
        return "regard-native is not installed: pip install ./native in a checkout, else pip install regard-native"
    except OSError as error:
        return f"regard-native does not load: {error}"
    found.regard_isa.restype = ctypes.c_char_p
    if found.regard_version() != VERSION:
        return f"regard-native has interface {found.regard_version()} and this regard wants {VERSION}: upgrade both"
    return found
