// What JavaScript asks of a connection, and the requests that it becomes.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "nbd/coverage.h"
#include "nbd/extents.h"
#include "nbd/options.h"

namespace virtvault::nbd {

enum class Kind { kRead, kWrite, kZero, kFlush, kBlockStatus };

// One call; confined to the connection's thread once it is submitted.
struct Command {
  Kind kind = Kind::kRead;
  std::vector<Piece> pieces;
  std::uint8_t* buffer = nullptr;
  std::uint64_t max_request = 0;
  std::size_t depth = 1;
  bool punch = false;
  // Called once, on the connection's thread, with `error` null on success. By
  // then nothing touches `buffer` any more.
  std::function<void(const NativeError* error, std::vector<ExtentList> extents)> done;

  // Progress: the piece to ask for next, and how much of it was asked for.
  std::size_t piece = 0;
  std::uint64_t within = 0;
  bool flush_sent = false;
  std::size_t in_flight = 0;
  std::optional<NativeError> error;
  std::uint64_t error_offset = 0;
  std::vector<ExtentList> extents;

  bool hasNext() const { return kind == Kind::kFlush ? !flush_sent : piece < pieces.size(); }
  bool isSettled() const { return in_flight == 0 && (error.has_value() || !hasNext()); }
};

// What one block status request may ask for: the length has 32 bits on the
// wire, and 64 KiB is QEMU's dirty granule.
inline constexpr std::uint64_t kMaxStatusLength = (std::uint64_t{4} << 30) - (64 << 10);

// Throws E_INTERNAL for what lies outside the export or the buffer and E_NBD
// for what the export cannot do (writes and zeroes that split a minimum block).
void validate(const Command& command, const ExportInfo& info, std::uint64_t buffer_length);

// One request on the wire.
struct Request {
  Command* command = nullptr;
  // On the wire: widened to whole minimum blocks.
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  // Wanted by the caller, and where in its buffer.
  std::uint64_t wanted_offset = 0;
  std::uint64_t wanted_length = 0;
  std::uint8_t* target = nullptr;
  // Used where the request had to be widened.
  std::vector<std::uint8_t> bounce;
  Coverage coverage;
  bool is_sound = true;
  // Offset of the first part that the server could not read, where it says so.
  std::optional<std::uint64_t> error_offset;
  std::optional<ExtentCollector> collector;
  TimePoint issued;
  // However much progress others make, it must be answered by then.
  TimePoint last_call;
  int error = 0;
  bool is_done = false;

  bool isWidened() const { return offset != wanted_offset || length != wanted_length; }
};

}  // namespace virtvault::nbd
