# SPDX-License-Identifier: MIT
"""The two objectives, and how well a model translates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import fastloss.functional as F
from translation.model import Source, Translator
from translation.numbers import END, Sentences

LONGEST = 12  # words that a model may write, the end included: the longest number has 11
IGNORED = -100


@dataclass(frozen=True)
class Quality:
    """How well a model translates.

    Attributes:
        bleu: The mean of the sentences' BLEU, from 0 to 100.
        exact: The share of sentences without an error.
    """

    bleu: float
    exact: float


def labels_of(words: Tensor) -> Tensor:
    """Returns what is to be predicted: the words, the end once, and nothing behind it."""
    ends = (words == END).int()
    return words.masked_fill(ends.cumsum(1) > ends, IGNORED)


def cross_entropy_loss(model: Translator, batch: Sentences) -> Tensor:
    """The likelihood of the right words, one by one: each is predicted after right ones only."""
    logits = model(model.encode(batch.digits), batch.words)
    return F.cross_entropy(logits.flatten(0, 1), labels_of(batch.words).flatten())


def bleu_risk_loss(model: Translator, batch: Sentences, samples: int, alpha: float) -> Tensor:
    """What is missing to a BLEU of 100, to be expected of the model's own translations.

    Minimum Risk Training for Neural Machine Translation, 2016, arXiv 1512.02433.
    """
    source = model.encode(batch.digits)
    several = source.repeated(samples)
    candidates = model.write(several, LONGEST, sample=True)
    references = batch.words.repeat_interleave(samples, 0)
    risks = 100 - F.sentence_bleu(candidates, references, pad_index=END)
    log_probs = log_probabilities(model, several, candidates)
    shape = (len(batch), samples)
    return F.minimum_risk_loss(log_probs.view(shape), risks.view(shape), alpha)


def log_probabilities(model: Translator, source: Source, words: Tensor) -> Tensor:
    """Returns the log-probability (B,) of sentences (B, T), their ends included."""
    logits, labels = model(source, words), labels_of(words)
    of_words = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return -of_words.view(words.shape).sum(1)


@torch.no_grad()
def evaluate(model: Translator, sentences: Sentences) -> tuple[Quality, Tensor]:
    """Returns how well the likeliest words translate, and those words."""
    written = model.write(model.encode(sentences.digits), LONGEST, sample=False)
    bleu = F.sentence_bleu(written, sentences.words, pad_index=END)
    exact = bleu > 100 - 1e-3
    return Quality(bleu.mean().item(), exact.float().mean().item()), written
