# SPDX-License-Identifier: MIT
"""The language pair: numbers in digits, and as they are written out in English."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LARGEST = 999_999
END = 0  # ends a sentence, and fills what is behind its end

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
WORDS = ("<end>", *_ONES, *_TENS, "hundred", "thousand", "and")
_WORD_IDS = {word: index for index, word in enumerate(WORDS)}
NUM_DIGIT_IDS = 11  # the end and ten digits


def spell(number: int) -> list[str]:
    """Returns a number up to 999999 in words: 312 is three hundred and twelve."""
    if number >= 1000:
        rest = number % 1000
        joint = ["and"] if 0 < rest < 100 else []
        return [*spell(number // 1000), "thousand", *joint, *(spell(rest) if rest else [])]
    if number >= 100:
        rest = number % 100
        return [_ONES[number // 100], "hundred", *(["and", *spell(rest)] if rest else [])]
    if number >= 20:
        return [_TENS[number // 10 - 2], *([_ONES[number % 10]] if number % 10 else [])]
    return [_ONES[number]]


@dataclass(frozen=True)
class Sentences:
    """Numbers in both languages, each padded with END, of which every sentence has one at least.

    Attributes:
        digits: (B, S): END, or 1 + the digit.
        words: (B, T): indices of WORDS.
    """

    digits: Tensor
    words: Tensor

    def __len__(self) -> int:
        return len(self.digits)

    def to(self, device: torch.device) -> Sentences:
        """Returns the same on a device."""
        return Sentences(self.digits.to(device), self.words.to(device))


def translate(numbers: list[int]) -> Sentences:
    """Returns numbers as sentences of both languages."""
    return Sentences(
        _padded([[1 + int(digit) for digit in str(number)] for number in numbers]),
        _padded([[_WORD_IDS[word] for word in spell(number)] for number in numbers]),
    )


def read(words: Tensor) -> str:
    """Returns one sentence of words as text, up to its end."""
    spelled = [WORDS[index] for index in words.tolist()]
    return " ".join(spelled[: spelled.index("<end>")] if "<end>" in spelled else spelled)


def draw_numbers(count: int, rng: np.random.Generator, *, held_out: bool) -> list[int]:
    """Returns random numbers, short and long ones alike. Every seventh number is held out."""
    numbers: list[int] = []
    while len(numbers) < count:
        digits = rng.integers(1, len(str(LARGEST)) + 1, 8 * count)
        drawn = rng.integers(0, 10**digits)
        numbers += drawn[(drawn % 7 == 3) == held_out].tolist()
    return numbers[:count]


def _padded(sentences: list[list[int]]) -> Tensor:
    longest = max(map(len, sentences))
    return torch.tensor([tokens + [END] * (longest + 1 - len(tokens)) for tokens in sentences])
