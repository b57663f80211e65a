// How many unfinished requests each client has. Holds the clients that have some, so it is bounded by the slots and
// allocates nothing after construction: open addressing, and what leaves closes its gap.
#pragma once

#include <cstdint>
#include <vector>

namespace rgalign {

class Clients {
 public:
  explicit Clients(std::int64_t num_slots) {
    std::size_t size = 4;
    while (size < 2 * static_cast<std::size_t>(num_slots)) size *= 2;
    entries_.resize(size);
  }

  std::int64_t count(std::uint64_t client) const { return entries_[find(client)].count; }

  void add(std::uint64_t client) {
    Entry& entry = entries_[find(client)];
    entry.client = client;
    ++entry.count;
  }

  // The client has one.
  void remove(std::uint64_t client) {
    std::size_t hole = find(client);
    if (--entries_[hole].count > 0) return;
    for (std::size_t at = next(hole); entries_[at].count > 0; at = next(at)) {
      // An entry may move to the hole unless its home lies behind the hole.
      if (((at - home(entries_[at].client)) & mask()) < ((at - hole) & mask())) continue;
      entries_[hole] = entries_[at];
      hole = at;
    }
    entries_[hole].count = 0;
  }

 private:
  struct Entry {
    std::uint64_t client = 0;
    std::int64_t count = 0;  // 0: free
  };

  std::size_t mask() const { return entries_.size() - 1; }
  std::size_t next(std::size_t at) const { return (at + 1) & mask(); }
  std::size_t home(std::uint64_t client) const {
    return static_cast<std::size_t>((client * 0x9E3779B97F4A7C15U) >> 32) & mask();
  }
  std::size_t find(std::uint64_t client) const {
    std::size_t at = home(client);
    while (entries_[at].count > 0 && entries_[at].client != client) at = next(at);
    return at;
  }

  std::vector<Entry> entries_;
};

}  // namespace rgalign
