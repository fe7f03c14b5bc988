// SPDX-License-Identifier: MIT
// BLEU of one sentence, from how many of its n-grams match. Papineni et al. 2002, BLEU: a Method
// for Automatic Evaluation of Machine Translation; smoothing: Chen and Cherry 2014, A Systematic
// Comparison of Smoothing Techniques for Sentence-Level BLEU.
#pragma once
#include <cstdint>

#include "core/macros.h"
#include "core/math.h"

namespace fastloss::FASTLOSS_TARGET {

// 100 · brevity penalty · geometric mean of the precisions of as many orders as the sentence has
// n-grams of (the effective order).
class SentenceBleu {
 public:
  // `added`: to the matches and the n-grams of every order but the first. `unmatched`: how many
  // matches an order without any has; `fading`: what that is multiplied with before each of them.
  FASTLOSS_INLINE SentenceBleu(double added, double unmatched, double fading)
      : added_(added), unmatched_(unmatched), fading_(fading) {}

  // The next order, from 1 on: so many matches among so many n-grams.
  FASTLOSS_INLINE void add_order(int64_t matches, int64_t ngrams) {
    if (orders_ == 0) any_match_ = matches > 0;
    const double added = orders_ == 0 ? 0.0 : added_;
    double hits = double(matches) + added;
    if (hits == 0.0) hits = unmatched_ *= fading_;
    log_precisions_ += log(100.0 * hits / (double(ngrams) + added));
    ++orders_;
  }

  // Orders for which the sentence is too short: they count where something is added, and then as
  // fully matched.
  FASTLOSS_INLINE void add_empty_orders(int64_t count) {
    if (added_ == 0.0) return;
    log_precisions_ += double(count) * log(100.0);
    orders_ += count;
  }

  FASTLOSS_INLINE float score(int64_t length, int64_t reference_length) const {
    if (!any_match_) return 0.0f;
    const double penalty =
        length < reference_length ? exp(1.0 - double(reference_length) / double(length)) : 1.0;
    return float(penalty * exp(log_precisions_ / double(orders_)));
  }

 private:
  double added_, unmatched_, fading_;
  double log_precisions_ = 0.0;
  int64_t orders_ = 0;
  bool any_match_ = false;
};

// The length of the reference that is closest to a sentence's, the shorter one of two; 0 as long as
// none was seen. References without tokens are not there.
class ClosestLength {
 public:
  FASTLOSS_INLINE explicit ClosestLength(int64_t sentence) : sentence_(sentence) {}
  FASTLOSS_INLINE void see(int64_t length) {
    if (length == 0) return;
    const int64_t distance = length < sentence_ ? sentence_ - length : length - sentence_;
    const bool closer =
        closest_ == 0 || distance < distance_ || (distance == distance_ && length < closest_);
    if (!closer) return;
    closest_ = length;
    distance_ = distance;
  }
  FASTLOSS_INLINE int64_t get() const { return closest_; }

 private:
  int64_t sentence_, closest_ = 0, distance_ = 0;
};

}  // namespace fastloss::FASTLOSS_TARGET
