// SPDX-License-Identifier: MIT
// An n-gram is the pair of the (n - 1)-gram it begins with and its last token. Those of a sentence
// are numbered order by order, and only the ones that continue a match are looked at, so that the
// work grows with the number of tokens alone. Of short sentences only the tokens are numbered; the
// rest is done on bits.
#include "engines/arena.h"
#include "engines/kernels.h"
#include "losses/bleu.h"

namespace fastloss::FASTLOSS_TARGET {
namespace {

// Enough tokens for a task to be worth a thread.
constexpr int64_t kTokensPerTask = 4096;
constexpr int64_t kMaxTasks = 256;

// Numbers the n-grams of one order after the other: a hash table that nobody has to clear, because
// the numbers of earlier orders are too small to count.
class NgramTable {
 public:
  NgramTable(Arena& arena, int64_t count)
      : bits_(bits_for(count)), slots_(arena.take<Slot>(int64_t{1} << bits_)) {
    for (int64_t i = 0; i < int64_t{1} << bits_; ++i) slots_[i].number = 0;
  }
  static int64_t bytes(int64_t count) {
    return Arena::size_of<Slot>(int64_t{1} << bits_for(count));
  }

  void begin_order() { first_ = next_; }
  int32_t size() const { return static_cast<int32_t>(next_ - first_); }

  int32_t find_or_add(uint64_t key) {
    Slot& slot = find_slot(key);
    if (slot.number < first_) slot = {key, next_++};
    return static_cast<int32_t>(slot.number - first_);
  }

  // -1: it is none of them.
  int32_t find(uint64_t key) const {
    const Slot& slot = find_slot(key);
    return slot.number < first_ ? -1 : static_cast<int32_t>(slot.number - first_);
  }

 private:
  struct Slot {
    uint64_t key;
    int64_t number;
  };

  // Slots for so many n-grams: a power of two, and so many that hardly a search goes on (which the
  // processor could not foresee).
  static int bits_for(int64_t count) {
    int bits = 1;
    while (int64_t{1} << bits < 4 * count) ++bits;
    return bits;
  }

  // The slot of the key, or the free one it would take.
  Slot& find_slot(uint64_t key) const {
    const uint64_t mask = (uint64_t{1} << bits_) - 1;
    uint64_t place = ((key ^ (key >> 32)) * 0x9e3779b97f4a7c15u) >> (64 - bits_);
    while (slots_[place].number >= first_ && slots_[place].key != key) place = (place + 1) & mask;
    return slots_[place];
  }

  int bits_;
  Slot* slots_;
  int64_t first_ = 1, next_ = 1;
};

// A sentence or a reference. Numbers are those of the table, -1 where nothing can match any more.
struct Row {
  int64_t* tokens;
  int32_t* words;   // of the tokens, as n-grams of order 1
  int32_t* ngrams;  // of the last order, by their first token
  int64_t length = 0;

  Row(Arena& arena, int64_t size)
      : tokens(arena.take<int64_t>(size)),
        words(arena.take<int32_t>(size)),
        ngrams(arena.take<int32_t>(size)) {}
  static int64_t bytes(int64_t size) {
    return Arena::size_of<int64_t>(size) + 2 * Arena::size_of<int32_t>(size);
  }

  // Padding ends it.
  void read(const Input& input, int64_t offset, int64_t stride, int64_t size, int64_t pad_index) {
    const auto from = [&](const auto* typed) {
      typed += offset;
      for (length = 0; length < size; ++length) {
        tokens[length] = int64_t{typed[length * stride]};
        if (tokens[length] == pad_index) return;
      }
    };
    switch (input.dtype) {
      case DType::kUInt8:
        return from(static_cast<const uint8_t*>(input.data));
      case DType::kInt16:
        return from(static_cast<const int16_t*>(input.data));
      case DType::kInt32:
        return from(static_cast<const int32_t*>(input.data));
      default:
        return from(static_cast<const int64_t*>(input.data));
    }
  }

  // From the n-grams of the order before to those of this one: number(key) has their numbers.
  template <class Number>
  FASTLOSS_INLINE void advance(int64_t order, const Number& number) {
    if (order == 1) {
      for (int64_t i = 0; i < length; ++i) ngrams[i] = number(static_cast<uint64_t>(tokens[i]));
      return;
    }
    for (int64_t i = 0; i <= length - order; ++i) {
      const int32_t prefix = ngrams[i], word = words[i + order - 1];
      const auto key = uint64_t{static_cast<uint32_t>(prefix)} << 32 | static_cast<uint32_t>(word);
      ngrams[i] = prefix < 0 || word < 0 ? -1 : number(key);
    }
  }
};

// Rows up to this length fit into a word of bits, and n-grams are then counted by bits.
constexpr int64_t kBits = 64;

// For every place of a sentence, the places of a row, as bits: where the same token stands, and
// where the same n-gram begins, if its tokens match at all.
struct Places {
  uint64_t* of_token;
  uint64_t* of_ngram;

  Places(Arena& arena, int64_t size)
      : of_token(arena.take<uint64_t>(size)), of_ngram(arena.take<uint64_t>(size)) {}
  static int64_t bytes(int64_t size) { return 2 * Arena::size_of<uint64_t>(size); }

  // Order 1, for so many different words. `of_word` has room for one more: that of no word.
  void start(const Row& sentence, const Row& row, int64_t words, uint64_t* of_word) {
    for (int64_t i = 0; i <= words; ++i) of_word[i] = 0;
    for (int64_t j = 0; j < row.length; ++j) of_word[row.words[j] + 1] |= uint64_t{1} << j;
    of_word[0] = 0;
    for (int64_t i = 0; i < sentence.length; ++i)
      of_token[i] = of_ngram[i] = of_word[sentence.words[i] + 1];
  }

  // From the order before to this one, of which the sentence has `count` n-grams.
  void advance(int64_t order, int64_t count) {
    const int64_t last = order - 1;
    for (int64_t i = 0; i < count; ++i) of_ngram[i] &= of_token[i + last] >> last;
  }
};

// Scores one sentence after the other, in the memory of one task.
class Scorer {
 public:
  explicit Scorer(const NgramsArguments& arguments)
      : arguments_(arguments),
        arena_(bytes(arguments)),
        table_(arena_, arguments.length),
        counts_(arena_.take<int32_t>(arguments.length)),
        seen_(arena_.take<int32_t>(arguments.length)),
        most_(arena_.take<int32_t>(arguments.length)),
        candidate_(arena_, arguments.length),
        references_(arena_.take<Row>(arguments.references)),
        fits_bits_(fits_bits(arguments)),
        earlier_(arena_, fits_bits_ ? arguments.length : 0),
        reference_places_(arena_.take<Places>(arguments.references)) {
    for (int64_t r = 0; r < arguments.references; ++r) {
      new (references_ + r) Row(arena_, arguments.reference_length);
      new (reference_places_ + r) Places(arena_, fits_bits_ ? arguments.length : 0);
    }
  }

  float score(int64_t sentence) {
    read(sentence);
    SentenceBleu bleu(arguments_.added, arguments_.unmatched, arguments_.fading);
    const int64_t length = candidate_.length;
    const int64_t orders = arguments_.max_order < length ? arguments_.max_order : length;
    int64_t matches = 0;
    for (int64_t order = 1; order <= orders; ++order) {
      // Where no n-gram matches, no longer one does.
      if (order == 1 || matches > 0)
        matches = order > 1 && fits_bits_ ? count_bits(order) : count_matches(order);
      bleu.add_order(matches, length - order + 1);
    }
    bleu.add_empty_orders(arguments_.max_order - orders);
    return bleu.score(length, reference_length_);
  }

 private:
  static int64_t bytes(const NgramsArguments& arguments) {
    return NgramTable::bytes(arguments.length) + 3 * Arena::size_of<int32_t>(arguments.length) +
           Row::bytes(arguments.length) + Arena::size_of<Row>(arguments.references) +
           arguments.references * Row::bytes(arguments.reference_length) +
           Arena::size_of<Places>(arguments.references) +
           (arguments.references + 1) * Places::bytes(fits_bits(arguments) ? arguments.length : 0);
  }

  static bool fits_bits(const NgramsArguments& arguments) {
    return arguments.length <= kBits && arguments.reference_length <= kBits;
  }

  void read(int64_t sentence) {
    candidate_.read(arguments_.candidates, sentence * arguments_.candidate_stride[0],
                    arguments_.candidate_stride[1], arguments_.length, arguments_.pad_index);
    ClosestLength closest(candidate_.length);
    for (int64_t r = 0; r < arguments_.references; ++r) {
      const int64_t offset =
          sentence * arguments_.reference_stride[0] + r * arguments_.reference_stride[1];
      references_[r].read(arguments_.reference_tokens, offset, arguments_.reference_stride[2],
                          arguments_.reference_length, arguments_.pad_index);
      closest.see(references_[r].length);
    }
    reference_length_ = closest.get();
  }

  // How many n-grams of an order match: each as often as it stands in the sentence, but no more
  // often than in the reference that has most of it.
  int64_t count_matches(int64_t order) {
    table_.begin_order();
    clear(counts_, candidate_.length);
    candidate_.advance(order, [&](uint64_t key) {
      const int32_t ngram = table_.find_or_add(key);
      ++counts_[ngram];
      return ngram;
    });
    const int64_t different = table_.size();
    clear(most_, different);
    for (int64_t r = 0; r < arguments_.references; ++r) {
      clear(seen_, different);
      references_[r].advance(order, [&](uint64_t key) {
        const int32_t ngram = table_.find(key);
        if (ngram >= 0) ++seen_[ngram];
        return ngram;
      });
      for (int64_t i = 0; i < different; ++i) most_[i] = most_[i] < seen_[i] ? seen_[i] : most_[i];
    }
    int64_t matches = 0;
    for (int64_t i = 0; i < different; ++i)
      matches += counts_[i] < most_[i] ? counts_[i] : most_[i];
    for (int64_t i = 0; i <= candidate_.length - order; ++i) {
      int32_t& ngram = candidate_.ngrams[i];
      if (ngram >= 0 && most_[ngram] == 0) ngram = -1;
    }
    if (order == 1) {
      keep_words(candidate_);
      for (int64_t r = 0; r < arguments_.references; ++r) keep_words(references_[r]);
    }
    return matches;
  }

  // The same for rows of bits: an n-gram matches if fewer of its kind stand before it than in the
  // reference that has most of them.
  int64_t count_bits(int64_t order) {
    const int64_t count = candidate_.length - order + 1;
    if (order == 2) {
      uint64_t of_word[kBits + 1];
      earlier_.start(candidate_, candidate_, table_.size(), of_word);
      for (int64_t i = 0; i < candidate_.length; ++i)
        earlier_.of_ngram[i] &= (uint64_t{1} << i) - 1;
      for (int64_t r = 0; r < arguments_.references; ++r)
        reference_places_[r].start(candidate_, references_[r], table_.size(), of_word);
    }
    clear(most_, count);
    for (int64_t r = 0; r < arguments_.references; ++r) {
      reference_places_[r].advance(order, count);
      for (int64_t i = 0; i < count; ++i) {
        const int32_t seen = __builtin_popcountll(reference_places_[r].of_ngram[i]);
        most_[i] = most_[i] < seen ? seen : most_[i];
      }
    }
    earlier_.advance(order, count);
    int64_t matches = 0;
    for (int64_t i = 0; i < count; ++i)
      matches += __builtin_popcountll(earlier_.of_ngram[i]) < most_[i] ? 1 : 0;
    return matches;
  }

  static void clear(int32_t* numbers, int64_t count) {
    for (int64_t i = 0; i < count; ++i) numbers[i] = 0;
  }
  static void keep_words(Row& row) { copy(row.words, row.ngrams, row.length); }

  const NgramsArguments& arguments_;
  Arena arena_;
  NgramTable table_;
  // Of every different n-gram of the order: how often it stands in the sentence, in a reference,
  // and in the reference that has most of it.
  int32_t *counts_, *seen_, *most_;
  Row candidate_;
  Row* references_;
  int64_t reference_length_ = 0;
  bool fits_bits_;
  Places earlier_;  // those of the sentence itself, before each place
  Places* reference_places_;
};

}  // namespace

void ngrams(const NgramsArguments& arguments, const Execution& execution) {
  const int64_t tokens = arguments.length + arguments.references * arguments.reference_length;
  const int64_t useful = arguments.sentences * tokens / kTokensPerTask + 1;
  const int64_t most = arguments.sentences < kMaxTasks ? arguments.sentences : kMaxTasks;
  const int64_t tasks = useful < most ? useful : most;
  auto run_task = [&](int64_t task) {
    Scorer scorer(arguments);
    const int64_t end = (task + 1) * arguments.sentences / tasks;
    for (int64_t s = task * arguments.sentences / tasks; s < end; ++s)
      arguments.scores[s] = scorer.score(s);
  };
  using RunTask = decltype(run_task);
  execution.parallel.run(
      tasks, [](void* context, int64_t task) { (*static_cast<RunTask*>(context))(task); },
      &run_task);
}

}  // namespace fastloss::FASTLOSS_TARGET
