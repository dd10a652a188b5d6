#include "nbd/extents.h"

#include <algorithm>

#include "base/error.h"

namespace virtvault::nbd {

ExtentCollector::ExtentCollector(const std::vector<std::string>& contexts, std::uint64_t offset, std::uint64_t length,
                                 std::uint64_t asked, std::uint64_t asked_length)
    : contexts_(contexts),
      begin_(offset),
      end_(offset + length),
      asked_(asked),
      asked_end_(asked + asked_length),
      lists_(contexts.size()),
      answered_(contexts.size()) {}

void ExtentCollector::fail(std::string problem) noexcept {
  if (problem_.empty()) problem_ = std::move(problem);
}

void ExtentCollector::add(const char* context, std::uint64_t offset, const std::uint32_t* entries,
                          std::size_t count) noexcept {
  if (!problem_.empty()) return;
  try {
    const auto found = std::find(contexts_.begin(), contexts_.end(), context);
    if (found == contexts_.end()) return fail("a meta context that was not asked for");
    const auto index = static_cast<std::size_t>(found - contexts_.begin());
    if (answered_[index]) return fail("two answers for " + *found);
    answered_[index] = true;
    if (offset != asked_) return fail("extents of another place");
    if (count == 0 || count % 2 != 0) return fail("no extents for " + *found);
    if (count / 2 > kMaxEntries) return fail("too many extents in one answer");

    ExtentList& list = lists_[index];
    std::uint64_t at = asked_;
    std::uint64_t covered = begin_;
    for (std::size_t i = 0; i < count; i += 2) {
      const std::uint64_t length = entries[i];
      const auto flags = static_cast<double>(entries[i + 1]);
      if (length == 0) return fail("an extent of no length in " + *found);
      if (at >= asked_end_) return fail("extents beyond the range asked for in " + *found);
      at += length;  // cannot overflow: at < 2^53 and length < 2^32
      // Only the last one may reach further than was asked; it is clipped.
      const std::uint64_t upto = std::min(at, end_);
      if (upto <= covered) continue;
      const auto part = static_cast<double>(upto - covered);
      covered = upto;
      if (!list.empty() && list.back() == flags) {
        list[list.size() - 2] += part;
      } else {
        list.push_back(part);
        list.push_back(flags);
      }
    }
    if (list.empty()) return fail("extents that do not reach the range asked for in " + *found);
  } catch (const std::exception& error) {
    fail(error.what());
  }
}

std::vector<ExtentList> ExtentCollector::finish() {
  for (std::size_t i = 0; problem_.empty() && i < contexts_.size(); i++) {
    // Silence is not "nothing to report": taken as clean it would lose data.
    if (!answered_[i]) problem_ = "no extents for " + contexts_[i];
  }
  if (!problem_.empty()) throw NativeError("E_NBD_PROTOCOL", "the NBD server sent " + problem_);
  return std::move(lists_);
}

}  // namespace virtvault::nbd
