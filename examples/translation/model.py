# SPDX-License-Identifier: MIT
"""A recurrent encoder and decoder with attention."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from translation.numbers import END, NUM_DIGIT_IDS, WORDS


class Source(NamedTuple):
    """What the encoder makes of a batch of sentences.

    Attributes:
        memory: (B, S, D): what attention looks at.
        exists: (B, S): where there is something to look at.
        state: (1, B, D): what the decoder begins with.
    """

    memory: Tensor
    exists: Tensor
    state: Tensor

    def repeated(self, times: int) -> Source:
        """Returns every sentence several times, one copy after the other."""
        return Source(
            self.memory.repeat_interleave(times, 0),
            self.exists.repeat_interleave(times, 0),
            self.state.repeat_interleave(times, 1),
        )


class Translator(nn.Module):
    """Gated recurrent units; attention is the scaled product of states."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.digit_vectors = nn.Embedding(NUM_DIGIT_IDS, width)
        self.encoder = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)
        self.word_vectors = nn.Embedding(len(WORDS), width)
        self.decoder = nn.GRU(width, width, batch_first=True)
        self.mix = nn.Linear(2 * width, width)
        self.to_words = nn.Linear(width, len(WORDS))

    def encode(self, digits: Tensor) -> Source:
        """Reads sentences (B, S)."""
        exists = digits != END
        read = pack_padded_sequence(
            self.digit_vectors(digits), exists.sum(1).cpu(), batch_first=True, enforce_sorted=False
        )
        packed, state = self.encoder(read)
        memory, _ = pad_packed_sequence(packed, batch_first=True, total_length=digits.shape[1])
        return Source(memory, exists, state.transpose(0, 1).flatten(1).unsqueeze(0))

    def decode(self, source: Source, before: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logits (B, T, words) of what follows words (B, T), and the last state."""
        hidden, state = self.decoder(self.word_vectors(before), state)
        fit = hidden @ source.memory.transpose(1, 2) / hidden.shape[-1] ** 0.5
        fit = fit.masked_fill(~source.exists.unsqueeze(1), -torch.inf)
        seen = fit.softmax(2) @ source.memory
        return self.to_words(self.mix(torch.cat((hidden, seen), 2)).tanh()), state

    def forward(self, source: Source, words: Tensor) -> Tensor:
        """Returns the logits (B, T, words) of every word of sentences (B, T) after those before it.

        A sentence begins as the one before ended, with END.
        """
        before = torch.cat((torch.full_like(words[:, :1], END), words[:, :-1]), 1)
        return self.decode(source, before, source.state)[0]

    @torch.no_grad()
    def write(self, source: Source, longest: int, *, sample: bool) -> Tensor:
        """Writes translations (B, longest), word by word: the likeliest, or a random one."""
        word = torch.full_like(source.state[0, :, :1], END, dtype=torch.int64)
        words, state = [], source.state
        for _ in range(longest):
            logits, state = self.decode(source, word, state)
            likely = logits[:, 0]
            word = likely.softmax(1).multinomial(1) if sample else likely.argmax(1, keepdim=True)
            words.append(word)
        return torch.cat(words, 1)
