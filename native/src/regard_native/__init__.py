"""The CPU kernels of regard: one shared library, which knows neither Python nor torch. regard finds it by itself."""

from pathlib import Path

__all__ = ["library"]

NAMES = ("libregard_native.so", "libregard_native.dylib", "regard_native.dll")


def library() -> Path:
    """Where the shared library lies.

    Raises:
        FileNotFoundError: the installation is not whole.
    """
    folder = Path(__file__).parent
    for name in NAMES:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{folder} holds none of {', '.join(NAMES)}: install regard-native again")
