# SPDX-License-Identifier: MIT
"""``python -m fastloss info`` and ``python -m fastloss losses``."""

from __future__ import annotations

import argparse
import inspect
import sys

import fastloss
from fastloss import functional


def print_info() -> None:
    """Prints what is installed, a line each."""
    for name, value in fastloss.build_info().items():
        print(f"{name:20} {value if value != '' else '-'}")


def print_losses() -> None:
    """Prints every function with the first line of its description."""
    for name in sorted(functional.__all__):
        summary = (inspect.getdoc(getattr(functional, name)) or "").partition("\n")[0]
        print(f"{name:36} {summary}")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="fastloss", description="Fused losses for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="version, torch, instruction set, CUDA").set_defaults(
        run=print_info
    )
    commands.add_parser("losses", help="the losses, a line each").set_defaults(run=print_losses)
    parser.parse_args(arguments).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
