"""The program: `triptych`, and `python -m triptych`."""

from __future__ import annotations

from triptych.allocator import begin_anew


def main() -> None:
    """The entry point of the console command."""
    begin_anew()
    from triptych.cli import app  # behind that, for it takes its time

    app()


if __name__ == "__main__":
    main()
