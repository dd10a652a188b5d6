// Proves that the chunks of one read cover it exactly once.
#pragma once

#include <cstdint>
#include <map>

namespace virtvault::nbd {

// libnbd 1.14 only adds lengths up, so one half sent twice would pass for the
// whole, and the other half would keep what was in the buffer before.
class Coverage {
 public:
  // More fragments than this are not waited for: a server may send chunks of
  // one byte in any order, and each out of order costs memory.
  static constexpr std::size_t kMaxFragments = 65'536;

  void reset(std::uint64_t begin, std::uint64_t length) {
    next_ = begin;
    end_ = begin + length;
    later_.clear();
  }

  // False for a chunk that overlaps another or lies outside.
  bool add(std::uint64_t offset, std::uint64_t length) {
    if (offset < next_ || offset > end_ || length > end_ - offset) return false;
    if (length == 0) return true;
    if (offset == next_) {
      next_ += length;
    } else {
      const auto after = later_.lower_bound(offset);
      if (after != later_.end() && after->first < offset + length) return false;
      if (after != later_.begin()) {
        const auto before = std::prev(after);
        if (before->first + before->second > offset) return false;
      }
      if (later_.size() >= kMaxFragments) return false;
      later_.emplace(offset, length);
    }
    for (auto first = later_.begin(); first != later_.end() && first->first <= next_; first = later_.begin()) {
      if (first->first < next_) return false;
      next_ += first->second;
      later_.erase(first);
    }
    return true;
  }

  bool isComplete() const { return next_ == end_; }

 private:
  std::uint64_t next_ = 0;
  std::uint64_t end_ = 0;
  // Offset to length of what came before its turn.
  std::map<std::uint64_t, std::uint64_t> later_;
};

}  // namespace virtvault::nbd
