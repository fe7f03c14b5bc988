# SPDX-License-Identifier: MIT
"""The examples: their parts on hand-made cases, and the whole programs on tiny settings."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import image as pictures
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import train_detector as program
import train_frameworks
import train_translator
from detection.assigner import Assignment, TaskAlignedAssigner
from detection.evaluation import (
    Objects,
    average_precision,
    box_iou,
    detect,
    mean_average_precision,
    non_maximum_suppression,
)
from detection.losses import BOX_LOSSES, CLASSIFICATION_LOSSES, fused_loss, plain_pytorch_loss
from detection.model import STRIDES, Detector, Predictions
from detection.scenes import NUM_CLASSES, SCENE_SIZE, Scenes, draw_scenes, load_digit_split
from detection.training import curve_difference, ground_truths, make_trainers
from translation.model import Translator
from translation.numbers import END, LARGEST, WORDS, draw_numbers, read, spell, translate
from translation.training import IGNORED, LONGEST, evaluate, labels_of, log_probabilities

import fastloss


def objects(*rows: tuple[list[float], int, float]) -> Objects:
    """Makes objects from (box, label, score)."""
    return Objects(
        torch.tensor([row[0] for row in rows]).reshape(-1, 4),
        torch.tensor([row[1] for row in rows], dtype=torch.int64),
        torch.tensor([row[2] for row in rows], dtype=torch.float32),
    )


NEAR = [0.0, 0.0, 10.0, 10.0]
FAR = [20.0, 20.0, 30.0, 30.0]
NOWHERE = [50.0, 50.0, 60.0, 60.0]


class TestMeanAveragePrecision:
    """Hand-computed cases."""

    def test_box_iou(self) -> None:
        half = [5.0, 0.0, 15.0, 10.0]  # 50 of 150
        point = [3.0, 3.0, 3.0, 3.0]
        iou = box_iou(torch.tensor([NEAR, point]), torch.tensor([NEAR, half, FAR]))
        torch.testing.assert_close(iou, torch.tensor([[1.0, 1 / 3, 0.0], [0.0, 0.0, 0.0]]))

    def test_one_false_detection_between_two_right_ones(self) -> None:
        truth = objects((NEAR, 0, 1.0), (FAR, 0, 1.0))
        found = objects((FAR, 0, 0.7), (NOWHERE, 0, 0.8), (NEAR, 0, 0.9))
        # precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1
        assert average_precision([found], [truth], 0, 0.5) == pytest.approx(0.5 + 0.5 * 2 / 3)

    def test_precision_is_interpolated_from_higher_recall(self) -> None:
        truth = objects((NEAR, 0, 1.0), (FAR, 0, 1.0))
        found = objects((NOWHERE, 0, 0.9), (NEAR, 0, 0.8), (FAR, 0, 0.7))
        # precision 0, 1/2, 2/3 at recall 0, 1/2, 1: 2/3 is reached beyond every recall
        assert average_precision([found], [truth], 0, 0.5) == pytest.approx(2 / 3)

    def test_second_detection_of_one_truth_is_false(self) -> None:
        truth = objects((NEAR, 0, 1.0), (FAR, 0, 1.0))
        found = objects((NEAR, 0, 0.9), (NEAR, 0, 0.8), (FAR, 0, 0.7))
        assert average_precision([found], [truth], 0, 0.5) == pytest.approx(0.5 + 0.5 * 2 / 3)

    def test_detections_are_ranked_over_all_images(self) -> None:
        truths = [objects((NEAR, 0, 1.0)), objects((NEAR, 0, 1.0))]
        found = [objects((NOWHERE, 0, 0.6), (NEAR, 0, 0.5)), objects((NEAR, 0, 0.9))]
        # right, false, right
        assert average_precision(found, truths, 0, 0.5) == pytest.approx(0.5 + 0.5 * 2 / 3)

    def test_a_box_of_another_image_or_too_far_off_does_not_count(self) -> None:
        truths = [objects((NEAR, 0, 1.0)), objects((FAR, 0, 1.0))]
        assert average_precision(truths[::-1], truths, 0, 0.5) == 0.0
        shifted = [objects(([4.0, 0.0, 14.0, 10.0], 0, 1.0)), objects((FAR, 0, 1.0))]
        # IoU 60 / 140 < 0.5
        assert average_precision(shifted, truths, 0, 0.5) == pytest.approx(0.25)
        assert average_precision(shifted, truths, 0, 0.4) == pytest.approx(1.0)

    def test_mean_over_the_classes_that_occur(self) -> None:
        truth = objects((NEAR, 2, 1.0), (FAR, 5, 1.0))
        found = objects((NEAR, 2, 0.9), (FAR, 2, 0.8), (NOWHERE, 7, 0.9))
        assert mean_average_precision([found], [truth]) == pytest.approx(0.5)  # classes 2 and 5

    def test_nothing_found(self) -> None:
        assert mean_average_precision([objects()], [objects((NEAR, 0, 1.0))]) == 0.0


class TestNonMaximumSuppression:
    """Of a class, the best of those that overlap stays."""

    def test_only_what_is_kept_suppresses(self) -> None:
        # each overlaps its neighbour by 7 of 13, and the next but one by 4 of 16
        row = [([float(x), 0.0, x + 10.0, 10.0], 1, score) for x, score in ((0, 0.9), (3, 0.8))]
        kept = non_maximum_suppression(objects(*row, ([6.0, 0.0, 16.0, 10.0], 1, 0.7)), 0.5)
        assert kept.scores.tolist() == pytest.approx([0.9, 0.7])
        assert kept.boxes[:, 0].tolist() == [0.0, 6.0]

    def test_classes_do_not_meet(self) -> None:
        box = [0.0, 0.0, 10.0, 10.0]
        kept = non_maximum_suppression(objects((box, 1, 0.5), (box, 2, 0.6), (box, 1, 0.7)), 0.5)
        assert kept.labels.tolist() == [1, 2]
        assert kept.scores.tolist() == pytest.approx([0.7, 0.6])

    def test_nothing(self) -> None:
        assert len(non_maximum_suppression(objects(), 0.5).boxes) == 0

    def test_detect_reads_every_confident_class_of_a_location(self) -> None:
        logits = torch.full((1, 2, 3), -20.0)
        logits[0, 0, 1], logits[0, 0, 2] = 2.0, 1.0
        boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]]])
        (found,) = detect(Predictions(logits, boxes, torch.zeros(2, 2)))
        assert found.labels.tolist() == [1, 2]
        assert found.boxes.tolist() == [[0.0, 0.0, 10.0, 10.0]] * 2
        torch.testing.assert_close(found.scores, torch.tensor([2.0, 1.0]).sigmoid())


class TestAssigner:
    """Three classes, boxes laid by hand."""

    def assign(
        self, centres: list[list[float]], boxes: list[list[float]], truths: Scenes, topk: int
    ) -> Assignment:
        predictions = Predictions(
            torch.zeros(1, len(boxes), 3), torch.tensor([boxes]), torch.tensor(centres)
        )
        return TaskAlignedAssigner(topk=topk)(predictions, truths)

    def truths(self, *rows: tuple[list[float], int]) -> Scenes:
        """Makes one image with these boxes and one place of padding."""
        padded = [*rows, ([0.0] * 4, 0)]
        return Scenes(
            images=torch.zeros(1, 1, 16, 16),
            boxes=torch.tensor([[row[0] for row in padded]]),
            labels=torch.tensor([[row[1] for row in padded]]),
            valid=torch.tensor([[True] * len(rows) + [False]]),
        )

    def test_best_locations_inside_win(self) -> None:
        truths = self.truths(([0.0, 0.0, 10.0, 10.0], 2))
        centres = [[5.0, 5.0], [2.0, 2.0], [8.0, 8.0], [12.0, 5.0]]
        boxes = [
            [0.0, 0.0, 10.0, 8.0],  # good
            [0.0, 0.0, 4.0, 4.0],  # poor
            [0.0, 0.0, 10.0, 10.0],  # perfect
            [0.0, 0.0, 10.0, 10.0],  # perfect, but its centre lies outside
        ]
        assignment = self.assign(centres, boxes, truths, topk=2)
        assert assignment.labels.tolist() == [[2, 3, 2, 3]]
        assert assignment.positive.tolist() == [0, 2]
        assert assignment.boxes.tolist() == [[0.0, 0.0, 10.0, 10.0]] * 2
        assert assignment.weight[1] == pytest.approx(1.0, abs=1e-5)  # the best has its own IoU
        assert 0.3 < assignment.weight[0] < 0.8**4 + 0.01  # (IoU 0.8)^beta, a little less for CIoU
        assert assignment.weight_sum == pytest.approx(float(assignment.weight.sum()))

    def test_the_score_of_the_own_class_counts(self) -> None:
        truths = self.truths(([0.0, 0.0, 10.0, 10.0], 1))
        logits = torch.zeros(1, 2, 3)
        logits[0, 0, 0], logits[0, 1, 1] = 5.0, 1.0
        boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0]] * 2])
        predictions = Predictions(logits, boxes, torch.tensor([[5.0, 5.0], [6.0, 6.0]]))
        assert TaskAlignedAssigner(topk=1)(predictions, truths).positive.tolist() == [1]

    def test_a_contested_location_goes_to_the_truth_it_overlaps_most(self) -> None:
        truths = self.truths(([0.0, 0.0, 10.0, 10.0], 0), ([2.0, 2.0, 12.0, 12.0], 1))
        centres = [[6.0, 6.0], [1.0, 1.0]]
        boxes = [[2.0, 2.0, 12.0, 11.0], [0.0, 0.0, 9.0, 9.0]]
        assignment = self.assign(centres, boxes, truths, topk=5)
        assert assignment.labels.tolist() == [[1, 0]]
        assert assignment.boxes.tolist() == [[2.0, 2.0, 12.0, 12.0], [0.0, 0.0, 10.0, 10.0]]

    def test_a_hopeless_location_inside_is_still_positive(self) -> None:
        truths = self.truths(([0.0, 0.0, 10.0, 10.0], 0))
        assignment = self.assign([[5.0, 5.0]], [[40.0, 40.0, 41.0, 41.0]], truths, topk=5)
        assert assignment.labels.tolist() == [[0]]
        assert assignment.weight.tolist() == [0.0]
        assert assignment.weight_sum == 1.0  # never divides by zero

    def test_images_do_not_meet(self) -> None:
        scenes = draw_scenes(load_digit_split()[0], 3, np.random.default_rng(0))
        torch.manual_seed(0)
        with torch.no_grad():
            predictions = Detector(NUM_CLASSES)(scenes.images)
        assigner = TaskAlignedAssigner()
        together = assigner(predictions, scenes)
        for image in range(3):
            part = slice(image, image + 1)
            own = Predictions(
                predictions.logits[part], predictions.boxes[part], predictions.centres
            )
            alone = assigner(own, scenes[part])
            assert torch.equal(together.labels[part], alone.labels)
            mine = together.positive // predictions.logits.shape[1] == image
            torch.testing.assert_close(together.boxes[mine], alone.boxes)
            torch.testing.assert_close(together.weight[mine], alone.weight)


@pytest.mark.parametrize("classification", CLASSIFICATION_LOSSES)
@pytest.mark.parametrize("box", BOX_LOSSES)
def test_both_losses_are_the_same_function(box: str, classification: str) -> None:
    """Values and gradients agree, for every loss the program offers."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(40, 2, generator=generator) * 80
    side = 8 + torch.rand(40, 2, generator=generator) * 30
    truths = torch.cat((corner, corner + side), dim=1)
    weight = torch.rand(40, generator=generator)
    assignment = Assignment(
        labels=torch.randint(NUM_CLASSES + 1, (2, 50), generator=generator),
        positive=torch.arange(40),
        boxes=truths,
        weight=weight,
        weight_sum=weight.sum(),
    )
    boxes = (truths + 3 * torch.randn(40, 4, generator=generator)).requires_grad_()
    logits = (3 * torch.randn(2, 50, NUM_CLASSES, generator=generator)).requires_grad_()
    outcomes = []
    for loss in (plain_pytorch_loss(box, classification), fused_loss(box, classification)):
        value = loss(logits, boxes, assignment)
        outcomes.append((value, *torch.autograd.grad(value, (logits, boxes))))
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=2e-5, atol=1e-7)


def test_scenes_are_as_described() -> None:
    """Fixed by the seed, in the image, hardly overlapping, and held-out digits stay held out."""
    train, held_out = load_digit_split()
    assert len(train) + len(held_out) == 1797
    assert not {id(digit) for digit in train} & {id(digit) for digit in held_out}
    scenes = draw_scenes(held_out, 20, np.random.default_rng(3))
    again = draw_scenes(held_out, 20, np.random.default_rng(3))
    assert torch.equal(scenes.images, again.images)
    assert torch.equal(scenes.boxes, again.boxes)
    counts = scenes.valid.sum(dim=1)
    assert counts.min() >= 1
    assert counts.max() <= 8
    for truth in ground_truths(scenes):
        assert (truth.boxes >= 0).all()
        assert (truth.boxes <= SCENE_SIZE).all()
        assert ((truth.boxes[:, 2:] - truth.boxes[:, :2]) >= 6).all()
        overlap = box_iou(truth.boxes, truth.boxes).fill_diagonal_(0.0)
        assert overlap.max() <= 0.1


def test_detector_looks_where_it_says() -> None:
    """Locations of both strides cover the scene, and boxes surround their location."""
    torch.manual_seed(0)
    predictions = Detector(NUM_CLASSES)(torch.rand(2, 1, SCENE_SIZE, SCENE_SIZE))
    fine = (SCENE_SIZE // STRIDES[0]) ** 2
    assert predictions.centres.shape == (fine + (SCENE_SIZE // STRIDES[1]) ** 2, 2)
    assert predictions.centres[:2].tolist() == [[4.0, 4.0], [12.0, 4.0]]
    assert predictions.centres[fine].tolist() == [8.0, 8.0]
    assert (predictions.boxes[..., :2] < predictions.centres).all()
    assert (predictions.boxes[..., 2:] > predictions.centres).all()


def test_two_piece_backward_is_one_backward() -> None:
    """Timing the loss alone does not change the gradients of the weights."""
    scenes = draw_scenes(load_digit_split()[0], 2, np.random.default_rng(1))
    loss = plain_pytorch_loss("ciou", "focal")
    trainer, other = make_trainers((loss, loss), steps=10, seed=0, device=torch.device("cpu"))
    initial = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.step(scenes)

    predictions = other.model(scenes.images)
    assignment = TaskAlignedAssigner()(predictions, scenes)
    positives = predictions.boxes.reshape(-1, 4)[assignment.positive]
    value = loss(predictions.logits, positives, assignment)
    value.backward()
    assert trainer.history.loss == [pytest.approx(value.item(), rel=1e-6)]
    for before, after, expected in zip(
        initial, trainer.model.parameters(), other.model.parameters(), strict=True
    ):
        assert expected.grad is not None
        moved = after.detach() - before
        clear = expected.grad.abs() > 1e-4  # Adam's first step is the sign of a clear gradient
        assert torch.equal(moved[clear].sign(), -expected.grad[clear].sign())


class TestProgram:
    """The program on a setting of seconds."""

    settings = program.Settings(steps=6, batch=2, evaluation_scenes=8)

    def test_curves_agree_and_files_are_written(self, tmp_path: Path) -> None:
        settings = replace(self.settings, output=tmp_path / "deep" / "er")
        comparison = program.compare(settings, Console(file=io.StringIO()))
        assert comparison.largest_difference <= program.CURVE_TOLERANCE
        assert program.find_failures(comparison, settings) == []
        for result in (comparison.plain, comparison.fused):
            assert len(result.history.loss) == settings.steps
            assert 0 < result.history.median_loss_ms < result.history.median_step_ms
            assert 0.0 <= result.mean_average_precision <= 1.0

        curves, detections, numbers = program.write_report(comparison, settings, seconds=1.0)
        for picture in (curves, detections):
            assert pictures.imread(picture).std() > 0.01  # something is drawn
        read = json.loads(numbers.read_text())
        assert [run["implementation"] for run in read["runs"]] == [
            "plain PyTorch (torchvision's formulas)",
            "fastloss",
        ]
        assert read["runs"][1]["curves"]["loss"] == comparison.fused.history.loss
        assert read["settings"]["steps"] == settings.steps

        broken = replace(comparison, difference=[0.0, float("nan"), 0.0])
        assert len(program.find_failures(broken, settings)) == 1
        assert len(program.find_failures(comparison, program.Settings())) == 2  # both are untrained

    def test_command_line(self) -> None:
        assert program.parse_arguments([]) == program.Settings()
        elsewhere = program.parse_arguments(["--output", "x", "--threads", "1"])
        assert elsewhere.is_default_training()
        assert not program.parse_arguments(["--steps", "10"]).is_default_training()
        assert program.parse_arguments(["--loss", "siou"]).loss == "siou"
        with pytest.raises(SystemExit):
            program.parse_arguments(["--steps", "0"])
        with pytest.raises(SystemExit):
            program.parse_arguments(["--loss", "mystery"])


def test_curve_difference_is_relative_to_the_first() -> None:
    """Of 2 and 2.5 the difference is a quarter."""
    assert curve_difference([2.0, 4.0], [2.5, 4.0]) == [0.25, 0.0]


# -------------------------------------------------------------------------------- the translator


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (70, "seventy"),
        (45, "forty five"),
        (312, "three hundred and twelve"),
        (900, "nine hundred"),
        (1000, "one thousand"),
        (3005, "three thousand and five"),
        (20_100, "twenty thousand one hundred"),
        (
            777_777,
            "seven hundred and seventy seven thousand seven hundred and seventy seven",
        ),
    ],
)
def test_numbers_are_spelled(number: int, words: str) -> None:
    assert " ".join(spell(number)) == words
    sentences = translate([number, 8])
    assert read(sentences.words[0]) == words
    assert sentences.digits[1, 0] == 9
    assert (sentences.digits[1, 1:] == END).all()
    assert len(spell(number)) < LONGEST


def test_numbers_held_out_stay_held_out() -> None:
    drawn = [draw_numbers(500, np.random.default_rng(2), held_out=held) for held in (True, False)]
    assert not set(drawn[0]) & set(drawn[1])
    for numbers in drawn:
        assert len(numbers) == 500
        assert 0 <= min(numbers) < 10
        assert LARGEST // 10 < max(numbers) <= LARGEST


def test_labels_end_once() -> None:
    words = torch.tensor([[5, 6, END, END], [5, END, 6, END], [END] * 4, [1, 2, 3, 4]])
    expected = [
        *([5, 6, END, IGNORED], [5, END, IGNORED, IGNORED]),
        *([END, IGNORED, IGNORED, IGNORED], [1, 2, 3, 4]),
    ]
    assert labels_of(words).tolist() == expected


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Several would only wait for each other in a model this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_log_probability_of_a_sentence() -> None:
    """What the model gives word by word as it writes; padding makes no difference."""
    torch.manual_seed(0)
    model, alone, both = Translator(), translate([312]), translate([312, 45_678])
    source = model.encode(alone.digits)
    state, before, expected = source.state, torch.tensor([[END]]), torch.zeros(1)
    for word in alone.words[0].tolist():
        logits, state = model.decode(source, before, state)
        expected = expected + logits[0, 0].log_softmax(0)[word]
        before = torch.tensor([[word]])
    torch.testing.assert_close(log_probabilities(model, source, alone.words), expected)
    together = log_probabilities(model, model.encode(both.digits), both.words)
    torch.testing.assert_close(together[:1], expected)


@pytest.mark.usefixtures("_one_thread")
class TestTranslatorProgram:
    """The program on a setting of seconds."""

    settings = train_translator.Settings(
        steps=4, bleu_steps=3, batch=4, samples=2, evaluation_sentences=10
    )

    def test_both_phases_run_and_files_are_written(self, tmp_path: Path) -> None:
        settings = replace(self.settings, output=tmp_path / "deep" / "er")
        outcome = train_translator.train(settings, Console(file=io.StringIO()))
        phases = ["untrained", *["cross-entropy"] * 4, *["BLEU"] * 3]
        assert [point.phase for point in outcome.points] == phases
        assert [point.step for point in outcome.points] == list(range(8))
        assert all(0.0 <= point.quality.bleu <= 100.0 for point in outcome.points)
        for number, first, _, right in outcome.examples:
            assert " ".join(spell(int(number))) == right != first
        assert train_translator.find_failures(outcome, settings) == []

        curve, numbers = train_translator.write_report(outcome, settings)
        assert pictures.imread(curve).std() > 0.01  # something is drawn
        read_back = json.loads(numbers.read_text())
        assert len(read_back["points"]) == 8
        assert read_back["settings"]["bleu_steps"] == 3

        last = outcome.points[-1]
        for bleu, failures in ((-1.0, 1), (float("nan"), 1), (101.0, 0)):
            changed = replace(last, quality=replace(last.quality, bleu=bleu))
            other = replace(outcome, points=[*outcome.points[:-1], changed])
            found = train_translator.find_failures(other, train_translator.Settings())
            assert len(found) == failures

    def test_cross_entropy_learns(self) -> None:
        """A few numbers by heart, and BLEU sees it."""
        torch.manual_seed(0)
        model, few = Translator(), translate([7, 12, 30])
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            train_translator.cross_entropy_loss(model, few).backward()
            optimizer.step()
        quality, written = evaluate(model, few)
        assert [read(words) for words in written] == ["seven", "twelve", "thirty"]
        assert (quality.bleu, quality.exact) == (pytest.approx(100.0), 1.0)
        assert written.max() < len(WORDS)

    def test_command_line(self) -> None:
        assert train_translator.parse_arguments([]) == train_translator.Settings()
        assert train_translator.parse_arguments(["--output", "x"]).is_default_training()
        assert not train_translator.parse_arguments(["--bleu-steps", "9"]).is_default_training()
        with pytest.raises(SystemExit):
            train_translator.parse_arguments(["--samples", "0"])


# -------------------------------------------------------------------------------------- frameworks


@pytest.mark.parametrize("framework", train_frameworks.FRAMEWORKS)
def test_a_framework_is_trained_stock_and_patched(
    framework: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    if not fastloss.patch.available()[framework].usable:
        pytest.skip(f"{framework} is not installed")
    threads = torch.get_num_threads()
    try:
        status = train_frameworks.main([framework, "--steps", "3", "--batch", "2"])
    finally:
        torch.set_num_threads(threads)
    shown = capsys.readouterr().out
    assert status == 0, shown
    assert "left out" not in shown
    assert f" {framework} " in shown


def test_frameworks_that_are_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_frameworks.main(["caffe"])
    assert (
        "framework must be among torchvision, transformers, ultralytics, got"
        in capsys.readouterr().err
    )
