// The k best of a stream of scored rows, under the order that holds everywhere in rgalign: score descending, then row
// ascending. -0.0 ties with +0.0.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace rgalign {

struct Entry {
  float score;
  std::int64_t row;
};

// The order of an answer. As a heap's comparator it keeps the worst of the winners on top.
inline bool ranks_before(const Entry& a, const Entry& b) {
  return a.score > b.score || (a.score == b.score && a.row < b.row);
}

// The k best of the entries offered so far, in any order. No NaN may be offered. Does not allocate after construction.
class Winners {
 public:
  explicit Winners(std::size_t k) : k_(k) { heap_.reserve(k); }

  void clear() { heap_.clear(); }
  bool full() const { return heap_.size() == k_; }
  float worst_score() const { return heap_.front().score; }  // of a full one

  // What a score must exceed to be worth offering, if rows come in ascending order: then a tie with the worst loses.
  float threshold() const { return full() ? worst_score() : -std::numeric_limits<float>::infinity(); }

  void offer(Entry entry) {
    if (!full()) {
      heap_.push_back(entry);
      std::push_heap(heap_.begin(), heap_.end(), ranks_before);
    } else if (ranks_before(entry, heap_.front())) {
      std::pop_heap(heap_.begin(), heap_.end(), ranks_before);
      heap_.back() = entry;
      std::push_heap(heap_.begin(), heap_.end(), ranks_before);
    }
  }

  void offer_all(const Winners& other) {
    for (const Entry& entry : other.heap_) offer(entry);
  }

  // Writes the winners best first and pads to k with row -1, score -inf; the heap is no heap afterwards.
  void write(std::int64_t* rows, float* scores) {
    std::sort(heap_.begin(), heap_.end(), ranks_before);
    for (std::size_t i = 0; i < k_; ++i) {
      const bool filled = i < heap_.size();
      rows[i] = filled ? heap_[i].row : -1;
      scores[i] = filled ? heap_[i].score : -std::numeric_limits<float>::infinity();
    }
  }

 private:
  std::size_t k_;
  std::vector<Entry> heap_;
};

}  // namespace rgalign
