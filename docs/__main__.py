# SPDX-License-Identifier: MIT
"""Writes the page and its pictures. Run from the project's folder: python -m docs."""

from __future__ import annotations

from docs.page import FOLDER, PAGE, page
from docs.pictures import draw_all


def main() -> None:
    """The command line."""
    PAGE.write_text(page(), encoding="utf-8")
    drawn = draw_all(FOLDER)
    print(f"{PAGE}: {len(drawn)} pictures in {FOLDER}")


if __name__ == "__main__":
    main()
