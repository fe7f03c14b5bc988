# SPDX-License-Identifier: MIT
"""The page of losses is what its script makes of the sources as they are now."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from docs.curves import curves_of, has_curves
from docs.page import FOLDER, PAGE, ROOT, TASKS, page
from docs.pictures import draw
from fastloss import functional, modules

DRAWN = [name for name in functional.__all__ if has_curves(name)]


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "make docs"


def test_every_loss_has_its_section_and_every_task_a_loss() -> None:
    text = page()
    headings = re.findall(r"^### (\w+)$", text, flags=re.MULTILINE)
    assert headings == list(functional.__all__)
    for module in modules.__all__:
        assert module == "GradientPenalty" or f"`fastloss.{module}`" in text
    for target in re.findall(r"\]\(#(\w+)\)", text):
        assert target in headings
    for task in ("object detection", "generative networks", "regression and forecasting"):
        assert task in TASKS
        assert f"| {task} |" in text


def test_nothing_of_restructured_text_is_left() -> None:
    assert not re.search(r"``|:\w+:`", page().replace("```", ""))


def test_pictures_are_there_and_small() -> None:
    shown = re.findall(rf"\]\({FOLDER.name}/(\w+)\.svg\)", page())
    assert shown == DRAWN
    assert {file.stem for file in FOLDER.glob("*")} == set(shown)
    for name in shown:
        file = FOLDER / f"{name}.svg"
        assert file.stat().st_size < 60_000
        assert ElementTree.parse(file).getroot().tag.endswith("svg")


@pytest.mark.parametrize("name", ["complete_box_iou_loss", "huber_loss", "cross_entropy"])
def test_pictures_are_the_same_every_time(name: str, tmp_path: Path) -> None:
    first, second = (draw(name, tmp_path / f"{number}.svg").read_bytes() for number in (1, 2))
    assert first == second
    assert re.search(rb"<dc:date>|20\d\d-\d\d-\d\d", first) is None


@pytest.mark.parametrize("name", DRAWN)
def test_curves_show_something(name: str) -> None:
    curves = curves_of(name)
    assert curves
    for drawn in curves:
        assert drawn.case.function == name
        assert drawn.loss.isfinite().all()
        assert drawn.slope.isfinite().all()
        assert drawn.loss.std() > 0
        # The slope is the loss's, but where the formula holds a factor constant.
        if drawn.case.exact_gradient:
            step = float(drawn.axis.places[1] - drawn.axis.places[0])
            middle = (drawn.loss[2:] - drawn.loss[:-2]) / (2 * step)
            smooth = (drawn.slope[2:] - drawn.slope[:-2]).abs() < 0.05 * drawn.slope.abs().max()
            error = (middle - drawn.slope[1:-1]).abs()[smooth]
            assert (error < 0.03 * drawn.slope.abs().max()).all()


def test_the_readme_leads_to_the_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(docs/losses.md)" in readme
