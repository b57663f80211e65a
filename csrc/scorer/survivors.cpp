#include "scorer/survivors.h"

#include <algorithm>
#include <functional>
#include <limits>

namespace rgalign {

Survivors::Survivors(std::size_t k)
    : k_(k), capacity_(4 * k + 64), threshold_(-std::numeric_limits<double>::infinity()), winners_(k) {
  lower_bounds_.reserve(k);
  pending_.reserve(capacity_);
}

void Survivors::offer(std::int64_t row, double lower, double upper, const ExactScorer& exact, const float* query) {
  if (upper < threshold_) return;
  if (pending_.size() == capacity_) {
    drop_losers();
    if (pending_.size() > capacity_ / 2) rescore_pending(exact, query);
  }
  pending_.push_back(Candidate{upper, row});
  offer_lower_bound(lower);
}

void Survivors::offer_lower_bound(double lower) {
  if (lower_bounds_.size() < k_) {
    lower_bounds_.push_back(lower);
    std::push_heap(lower_bounds_.begin(), lower_bounds_.end(), std::greater<>());
  } else if (lower > lower_bounds_.front()) {
    std::pop_heap(lower_bounds_.begin(), lower_bounds_.end(), std::greater<>());
    lower_bounds_.back() = lower;
    std::push_heap(lower_bounds_.begin(), lower_bounds_.end(), std::greater<>());
  }
  if (lower_bounds_.size() == k_) threshold_ = std::max(threshold_, lower_bounds_.front());
}

void Survivors::drop_losers() {
  const auto loses = [this](const Candidate& candidate) { return candidate.upper < threshold_; };
  pending_.erase(std::remove_if(pending_.begin(), pending_.end(), loses), pending_.end());
}

void Survivors::rescore_pending(const ExactScorer& exact, const float* query) {
  for (std::size_t done = 0; done < pending_.size();) {
    std::int64_t rows[kMaxDots];
    float scores[kMaxDots];
    int count = 0;
    // Rows that fell below the threshold meanwhile are passed over.
    for (; done < pending_.size() && count < kMaxDots; ++done) {
      if (pending_[done].upper >= threshold_) rows[count++] = pending_[done].row;
    }
    exact(query, rows, count, scores);
    for (int i = 0; i < count; ++i) winners_.offer(Entry{scores[i], rows[i]});
    num_rescored_ += count;
    if (winners_.full()) threshold_ = std::max(threshold_, static_cast<double>(winners_.worst_score()));
  }
  pending_.clear();
}

void Survivors::merge(const Survivors& other) {
  threshold_ = std::max(threshold_, other.threshold_);
  for (const double lower : other.lower_bounds_) offer_lower_bound(lower);
  winners_.offer_all(other.winners_);
  if (winners_.full()) threshold_ = std::max(threshold_, static_cast<double>(winners_.worst_score()));
  pending_.insert(pending_.end(), other.pending_.begin(), other.pending_.end());
  num_rescored_ += other.num_rescored_;
}

Winners& Survivors::finish(const ExactScorer& exact, const float* query) {
  drop_losers();
  // The best bounds first raise the threshold soonest.
  std::sort(pending_.begin(), pending_.end(), [](const Candidate& a, const Candidate& b) { return a.upper > b.upper; });
  rescore_pending(exact, query);
  return winners_;
}

}  // namespace rgalign
