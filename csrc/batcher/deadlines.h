// The earliest of the slots' deadlines: a binary heap that knows where each slot is, so that one can leave it and its
// size is that of the slots, whatever the rate of requests.
#pragma once

#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "batcher/limits.h"

namespace rgalign {

class Deadlines {
 public:
  static constexpr Nanoseconds kNever = std::numeric_limits<Nanoseconds>::max();

  explicit Deadlines(std::int64_t num_slots) : place_(static_cast<std::size_t>(num_slots), kAbsent) {
    heap_.reserve(place_.size());
  }

  Nanoseconds earliest() const { return heap_.empty() ? kNever : heap_.front().first; }
  std::int32_t earliest_slot() const { return heap_.front().second; }

  // `slot` is not in the heap.
  void add(std::int32_t slot, Nanoseconds deadline) {
    heap_.emplace_back(deadline, slot);
    rise(heap_.size() - 1);
  }

  // `slot` is in the heap.
  void remove(std::int32_t slot) {
    const std::size_t hole = place_[static_cast<std::size_t>(slot)];
    place_[static_cast<std::size_t>(slot)] = kAbsent;
    const Entry last = heap_.back();
    heap_.pop_back();
    if (hole == heap_.size()) return;
    heap_[hole] = last;
    rise(hole);
    sink(place_[static_cast<std::size_t>(last.second)]);
  }

 private:
  using Entry = std::pair<Nanoseconds, std::int32_t>;  // deadline, slot
  static constexpr std::size_t kAbsent = static_cast<std::size_t>(-1);

  void put(std::size_t at, const Entry& entry) {
    heap_[at] = entry;
    place_[static_cast<std::size_t>(entry.second)] = at;
  }

  void rise(std::size_t at) {
    const Entry entry = heap_[at];
    for (; at > 0 && entry < heap_[(at - 1) / 2]; at = (at - 1) / 2) put(at, heap_[(at - 1) / 2]);
    put(at, entry);
  }

  void sink(std::size_t at) {
    const Entry entry = heap_[at];
    while (true) {
      std::size_t child = 2 * at + 1;
      if (child >= heap_.size()) break;
      if (child + 1 < heap_.size() && heap_[child + 1] < heap_[child]) ++child;
      if (!(heap_[child] < entry)) break;
      put(at, heap_[child]);
      at = child;
    }
    put(at, entry);
  }

  std::vector<Entry> heap_;
  std::vector<std::size_t> place_;  // of each slot in heap_
};

}  // namespace rgalign
