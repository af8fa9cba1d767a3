"""What the user did wrong, in one line."""

import sys
from collections.abc import Generator
from contextlib import contextmanager

import typer


@contextmanager
def plain_errors() -> Generator[None]:
    """Turn what the user did wrong into one line and exit code 2; defects of ours keep their traceback."""
    try:
        yield
    except BrokenPipeError:
        raise typer.Exit(0) from None
    except ModuleNotFoundError:
        raise
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"regard: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        print("regard: stopped", file=sys.stderr)
        raise typer.Exit(130) from None
