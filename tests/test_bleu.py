# SPDX-License-Identifier: MIT
"""BLEU of sentences: sacrebleu's numbers, by hand, dtypes, layouts, padding, long sentences and
torch's machinery.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch._dynamo
from cases import BLEU, INTEGER_DTYPES
from torch import Tensor

import fastloss.functional as F
from fastloss import reference

SMOOTHINGS: list[tuple[str, float | None]] = [
    *(("none", None), ("exp", None)),
    *(("floor", None), ("floor", 0.0), ("floor", 0.4)),
    *(("add-k", None), ("add-k", 0.0), ("add-k", 0.25)),
]
Sentence = list[int]


def padded(sentences: list[Sentence], size: int, pad: int = -1) -> Tensor:
    return torch.tensor([[*tokens, *[pad] * (size - len(tokens))] for tokens in sentences])


def random_sentences(count: int, longest: int, references: int) -> tuple[list[Sentence], list[Any]]:
    """Of few words, so that they have much in common; some are empty, some are a reference."""
    source = random.Random(0)

    def sentence() -> Sentence:
        return [source.randrange(5) for _ in range(source.randrange(longest + 1))]

    others = [[sentence() for _ in range(references)] for _ in range(count)]
    return [list(own[0]) if i % 5 == 0 else sentence() for i, own in enumerate(others)], others


# ---------------------------------------------------------------------------------------- sacrebleu


@pytest.mark.parametrize("max_order", [1, 2, 4, 7])
@pytest.mark.parametrize(("smoothing", "value"), SMOOTHINGS)
def test_scores_are_sacrebleus(smoothing: str, value: float | None, max_order: int) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    metric = sacrebleu.BLEU(
        tokenize="none",
        smooth_method=smoothing,
        smooth_value=value,
        max_ngram_order=max_order,
        effective_order=True,
    )
    candidates, references = random_sentences(200, 9, 3)
    expected = []
    for sentence, others in zip(candidates, references, strict=True):
        # A reference without tokens is to be None; without any, sacrebleu asks for an empty one.
        known = [" ".join(map(str, other)) for other in others if other] or [""]
        expected.append(metric.sentence_score(" ".join(map(str, sentence)), known).score)
    arguments = (padded(candidates, 9), torch.stack([padded(others, 12) for others in references]))
    options: dict[str, Any] = {"smoothing": smoothing, "smoothing_value": value}
    found = F.sentence_bleu(*arguments, max_order=max_order, **options)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=0)
    # Longer rows are counted another way.
    wide = torch.nn.functional.pad(arguments[0], (0, 60), value=-1)
    assert torch.equal(F.sentence_bleu(wide, arguments[1], max_order=max_order, **options), found)
    again = reference.sentence_bleu(*arguments, max_order=max_order, **options)
    torch.testing.assert_close(again, torch.tensor(expected), rtol=1e-6, atol=0)


# -------------------------------------------------------------------------- values on every device


def check(device: str, candidates: Tensor, references: Tensor, **options: Any) -> Tensor:
    """Compares with the twin."""
    found = F.sentence_bleu(candidates.to(device), references.to(device), **options).cpu()
    expected = reference.sentence_bleu(candidates, references, **options)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    return found


@pytest.mark.table
@pytest.mark.parametrize(("smoothing", "value"), SMOOTHINGS)
def test_smoothing(smoothing: str, value: float | None, device: str) -> None:
    candidates, references = random_sentences(25, 8, 2)
    arguments = padded(candidates, 8), torch.stack([padded(others, 9) for others in references])
    for max_order in (1, 3, 4, 6):
        options = {"smoothing": smoothing, "smoothing_value": value, "max_order": max_order}
        found = check(device, *arguments, **options)
        assert found.min() >= 0.0
        assert found.max() <= 100.0 + 1e-4
        assert (found[::5][(arguments[0][::5, 0] >= 0)] > 99.99).all()  # the reference itself


@pytest.mark.table
def test_by_hand(device: str) -> None:
    """A candidate of five tokens has 4 / 5, 2 / 4, 1 / 3 and 0 / 2 matches."""
    candidate, other = torch.tensor([[1, 2, 3, 9, 5]]), torch.tensor([[1, 2, 3, 4, 5, 6]])
    penalty = torch.tensor(1 - 6 / 5).exp()
    precisions = torch.tensor([4 / 5, 2 / 4, 1 / 3, 0.5 / 2])
    expected = 100 * penalty * precisions.log().mean().exp()
    torch.testing.assert_close(check(device, candidate, other)[0], expected)
    # More than one reference: each n-gram as often as in the best one, and the closest length.
    candidate = torch.tensor([[7, 7, 7, 8]])
    others = torch.tensor([[[7, 7, 1, -1, -1], [8, 7, 1, 2, 3]]])
    # 7 twice and 8 once of 4; 7 7 once of 3; the lengths 3 and 5 are as close: the shorter counts.
    expected = 100 * torch.tensor([3 / 4, 1 / 3]).log().mean().exp()
    torch.testing.assert_close(check(device, candidate, others, max_order=2)[0], expected)


@pytest.mark.table
def test_dtypes(device: str) -> None:
    """Also different ones, and numbers that only the wider one holds."""
    candidates = torch.tensor([[1, 2, 255, 3, 0], [1, 2, 3, 4, 5]])
    references = torch.tensor([[1, 2, 255, 3, 3], [1, 2, 3, 0, 0]])
    expected = check("cpu", candidates, references, pad_index=0)
    for dtype in INTEGER_DTYPES:
        for other in INTEGER_DTYPES:
            found = F.sentence_bleu(
                candidates.to(device, dtype), references.to(device, other), pad_index=0
            )
            assert found.dtype == torch.float32
            assert torch.equal(found.cpu(), expected)
    big = candidates + (1 << 40)
    assert torch.equal(check(device, big, big), torch.tensor([100.0, 100.0]))
    assert (check(device, big, candidates) == 0).all()
    assert (check(device, candidates.to(torch.uint8), candidates - 256) == 0).all()


@pytest.mark.table
def test_padding_ends_a_sentence(device: str) -> None:
    """What stands behind it has no meaning, and references may be fewer."""
    candidates = torch.tensor([[4, 5, 6, 0, 9], [4, 0, 0, 0, 0], [0, 4, 5, 6, 7]])
    references = torch.tensor(
        [[[4, 5, 6], [0, 7, 7]], [[0, 4, 4], [4, 5, 0]], [[4, 5, 6], [0] * 3]]
    )
    found = check(device, candidates, references, pad_index=0)
    assert found[0] == 100.0
    # One token of two; the absent reference is not the closest one.
    torch.testing.assert_close(found[1], 100 * torch.tensor(-1.0).exp())
    assert found[2] == 0.0
    same = candidates.where(candidates != 9, 3), references.where(references != 7, 8)
    assert torch.equal(check(device, *same, pad_index=0), found)


@pytest.mark.table
def test_strides(device: str) -> None:
    generator = torch.Generator().manual_seed(1)
    candidates = torch.randint(-1, 6, (5, 11), generator=generator).to(device)
    references = torch.randint(-1, 6, (5, 2, 7), generator=generator).to(device)
    expected = F.sentence_bleu(candidates, references)
    wide = torch.zeros(10, 22, dtype=torch.int64, device=device)
    wide[::2, 1::2] = candidates
    swapped = references.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(F.sentence_bleu(wide[::2, 1::2], swapped), expected)
    assert torch.equal(F.sentence_bleu(candidates.t().contiguous().t(), references), expected)
    shared = references[:1].expand(5, -1, -1)
    assert torch.equal(F.sentence_bleu(candidates, shared), check(device, candidates, shared))


@pytest.mark.table
def test_nothing_to_count(device: str) -> None:
    some = torch.ones(2, 3, dtype=torch.int64, device=device)
    for candidates, references in (
        (some[:0], some[:0]),
        (some[:, :0], some),
        (some, some[:, :0]),
        (some, some.unsqueeze(1)[:, :0]),
        (some.neg(), some.neg()),  # all is padding
    ):
        found = F.sentence_bleu(candidates, references)
        assert torch.equal(found, torch.zeros(len(candidates), device=device))


@pytest.mark.table
@pytest.mark.parametrize("length", [31, 33, 64, 65, 130])
def test_lengths(length: int, device: str) -> None:
    """Around the widths of a warp and of a word of bits, and more than a block has threads."""
    generator = torch.Generator().manual_seed(length)
    references = torch.randint(3, (2, 2, length), generator=generator)
    candidates = torch.where(torch.rand(2, length, generator=generator) < 0.1, 9, references[:, 0])
    check(device, candidates, references[..., : length - 1])
    check(device, candidates, references, max_order=9)


def test_same_bits_and_nothing_mutated() -> None:
    arguments = BLEU.arguments((300, 20))
    before = {name: value.clone() for name, value in arguments.items()}
    found = BLEU.loss(arguments)
    assert not found.requires_grad
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(BLEU.loss(arguments), found)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(arguments[name], value) for name, value in before.items())


def test_long_sentences() -> None:
    """Their n-grams are not compared with each other one by one: that would take minutes."""
    generator = torch.Generator().manual_seed(0)
    long = torch.randint(50, (1, 200_000), generator=generator)
    assert torch.equal(F.sentence_bleu(long, long), torch.tensor([100.0]))
    assert torch.equal(F.sentence_bleu(long * 0, long * 0), torch.tensor([100.0]))
    torch.testing.assert_close(
        F.sentence_bleu(long.flip(1), long[:, ::2], max_order=1),
        torch.tensor([50.0]),
        atol=1,
        rtol=0,
    )
    # Orders beyond the sentence cost nothing.
    options: dict[str, Any] = {"smoothing": "add-k", "max_order": 10**12}
    torch.testing.assert_close(
        F.sentence_bleu(long[:, :3], long[:, :3], **options), torch.tensor([100.0])
    )


# -------------------------------------------------------------------------------- torch's machinery


def test_compiled() -> None:
    torch._dynamo.reset()
    arguments = BLEU.arguments(7)
    for options in ({}, {"smoothing": "floor", "smoothing_value": 0.2, "max_order": 3}):
        compiled = torch.compile(F.sentence_bleu, fullgraph=True, backend="aot_eager")
        expected = F.sentence_bleu(**arguments, **options)
        assert torch.equal(compiled(**arguments, **options), expected)
    torch._dynamo.reset()


def test_operators() -> None:
    arguments = BLEU.arguments(5)
    for references in (arguments["references"], arguments["references"].unsqueeze(1)):
        values = (arguments["candidates"], references, 4, "exp", None, -1)
        torch.library.opcheck(torch.ops.fastloss.sentence_bleu.default, values)
        torch.library.opcheck(
            torch.ops.fastloss.sentence_bleu_forward.default,
            values,
            test_utils=("test_schema", "test_faketensor"),
        )
    found = F.sentence_bleu(**{name: value.to("meta") for name, value in arguments.items()})
    assert (found.shape, found.dtype) == ((5,), torch.float32)


def test_under_vmap() -> None:
    candidates = torch.stack([BLEU.arguments(4, seed=seed)["candidates"] for seed in (0, 1)])
    references = BLEU.arguments(4)["references"]
    found = torch.func.vmap(lambda c: F.sentence_bleu(c, references))(candidates)
    expected = torch.stack([F.sentence_bleu(part, references) for part in candidates])
    torch.testing.assert_close(found, expected)
