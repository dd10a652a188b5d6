// Takes the answers to one block status request and believes none of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "nbd/options.h"

namespace virtvault::nbd {

// Confined to its connection's thread.
class ExtentCollector {
 public:
  // Entries of one context in one answer; QEMU sends at most 131072.
  static constexpr std::size_t kMaxEntries = std::size_t{1} << 20;

  // [offset, offset + length) is what the caller wants; [asked, asked +
  // asked_length) what goes on the wire, which the minimum block size may have widened.
  ExtentCollector(const std::vector<std::string>& contexts, std::uint64_t offset, std::uint64_t length,
                  std::uint64_t asked, std::uint64_t asked_length);

  // From libnbd's callback: `count` numbers, (length, flags) in turn.
  void add(const char* context, std::uint64_t offset, const std::uint32_t* entries, std::size_t count) noexcept;

  // One list per context; throws E_NBD_PROTOCOL for an answer that was not
  // sound, or that said nothing about one of the contexts.
  std::vector<ExtentList> finish();

 private:
  void fail(std::string problem) noexcept;

  const std::vector<std::string>& contexts_;
  std::uint64_t begin_;
  std::uint64_t end_;
  std::uint64_t asked_;
  std::uint64_t asked_end_;
  std::vector<ExtentList> lists_;
  std::vector<bool> answered_;
  std::string problem_;
};

}  // namespace virtvault::nbd
