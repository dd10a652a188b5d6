#include "nbd/worker.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace virtvault::nbd {

namespace {

// Bounds what one connection makes the server hold for us, and us for it.
constexpr std::uint64_t kMaxBytesInFlight = 64 << 20;
// Zeroing is cheap on the wire but may be slow behind it; the deadline is per request.
constexpr std::uint64_t kZeroStep = 64 << 20;
constexpr std::size_t kZeroDepth = 4;
constexpr TimePoint kNever = TimePoint::max();

bool carriesData(Kind kind) { return kind == Kind::kRead || kind == Kind::kWrite; }

std::uint64_t roundDown(std::uint64_t value, std::uint64_t unit) { return value / unit * unit; }

const char* verb(Kind kind) {
  switch (kind) {
    case Kind::kRead:
      return "read";
    case Kind::kWrite:
      return "write";
    case Kind::kZero:
      return "zero";
    case Kind::kFlush:
      return "flush";
    case Kind::kBlockStatus:
      return "block status";
  }
  return "request";
}

NativeError requestError(const Command& command, std::uint64_t offset, int number) {
  const bool reads = command.kind == Kind::kRead || command.kind == Kind::kBlockStatus;
  const bool full = !reads && (number == ENOSPC || number == EDQUOT);
  const char* code = full ? "E_NO_SPACE" : reads ? "E_NBD_READ" : "E_NBD";
  return NativeError(code,
                     std::string("NBD ") + verb(command.kind) + " at offset " + std::to_string(offset) + ": " +
                         std::strerror(number),
                     number);
}

}  // namespace

// Run under the handle's lock: they record and return, and call nothing of libnbd.
struct Worker::Callbacks {
  static int onChunk(void* user, const void* bytes, std::size_t count, std::uint64_t offset, unsigned status,
                     int* error) {
    static_cast<void>(bytes);
    static_cast<void>(error);
    auto* request = static_cast<Request*>(user);
    if (status == LIBNBD_READ_ERROR) {
      if (!request->error_offset) request->error_offset = offset;
      return 0;
    }
    try {
      if (!request->coverage.add(offset, count)) request->is_sound = false;
    } catch (const std::exception&) {
      request->is_sound = false;
    }
    return 0;
  }

  static int onExtents(void* user, const char* context, std::uint64_t offset, std::uint32_t* entries,
                       std::size_t count, int* error) {
    static_cast<void>(error);
    auto* request = static_cast<Request*>(user);
    if (request->collector) request->collector->add(context, offset, entries, count);
    return 0;
  }

  static int onDone(void* user, int* error) {
    auto* request = static_cast<Request*>(user);
    request->error = *error;
    request->is_done = true;
    return 1;  // libnbd forgets the request
  }
};

std::size_t Worker::takeSettled() noexcept {
  const std::size_t count = settled_;
  settled_ = 0;
  return count;
}

void Worker::fill() {
  for (auto& command : active_) {
    if (command->error) continue;
    while (command->hasNext()) {
      if (!issueNext(*command)) return;  // the pipe is full; later commands wait their turn
      if (command->error) break;
    }
  }
}

bool Worker::issueNext(Command& command) {
  const std::size_t depth = command.kind == Kind::kZero ? kZeroDepth : command.depth;
  if (in_flight_.size() >= depth) return false;
  std::unique_ptr<Request> request;
  if (spare_.empty()) {
    request = std::make_unique<Request>();
  } else {
    request = std::move(spare_.back());
    spare_.pop_back();
  }
  request->command = &command;
  plan(command, *request);
  if (carriesData(command.kind) && !in_flight_.empty() && bytes_in_flight_ + request->length > kMaxBytesInFlight) {
    spare_.push_back(std::move(request));
    return false;
  }

  request->issued = Clock::now();
  request->last_call = request->issued + timeout_ * static_cast<int>(in_flight_.size() + 1);
  Request* sent = request.get();
  // Before sending: the answer's callback may run inside the call.
  in_flight_.push_back(std::move(request));
  command.in_flight++;
  if (carriesData(command.kind)) bytes_in_flight_ += sent->length;
  if (send(*sent) == -1) {
    const NativeError error = lastError(std::string("NBD ") + verb(command.kind) + " at offset " +
                                            std::to_string(sent->wanted_offset),
                                        "E_NBD");
    if (!handle_.isUsable()) throw error;
    // libnbd refused to send it, so nothing will be answered.
    if (!sent->is_done) {
      if (!command.error) command.error = error;
      sent->error = error.errorNumber() != 0 ? error.errorNumber() : EINVAL;
      sent->is_done = true;
    }
  }
  // Whatever happens to this one, the next is another.
  if (command.kind == Kind::kFlush) {
    command.flush_sent = true;
  } else if (command.kind == Kind::kBlockStatus) {
    command.piece++;  // one request; what it leaves out, the caller asks for again
  } else {
    const Piece& piece = command.pieces[command.piece];
    command.within += sent->wanted_length;
    if (command.within >= piece.length) {
      command.piece++;
      command.within = 0;
    }
  }
  return true;
}

void Worker::plan(Command& command, Request& request) const {
  request.coverage.reset(0, 0);
  request.collector.reset();
  request.is_sound = true;
  request.error_offset.reset();
  request.error = 0;
  request.is_done = false;
  request.offset = request.length = request.wanted_offset = request.wanted_length = 0;
  request.target = nullptr;
  if (command.kind == Kind::kFlush) return;

  const Piece& piece = command.pieces[command.piece];
  const std::uint64_t unit = info_.minimum_block;
  const std::uint64_t at = piece.offset + command.within;
  const std::uint64_t left = piece.length - command.within;
  std::uint64_t limit = left;
  if (carriesData(command.kind)) limit = std::min<std::uint64_t>(command.max_request, info_.maximum_block);
  if (command.kind == Kind::kZero) limit = kZeroStep;
  limit = std::max(roundDown(limit, unit), unit);

  //   minimum block  |.......|.......|.......|.......|
  //   wanted                 ....#########........
  //   on the wire            |.......|.......|
  const std::uint64_t start = roundDown(at, unit);
  std::uint64_t end = left <= limit && at - start <= limit - left ? at + left : start + limit;
  if (command.kind == Kind::kBlockStatus) end = std::min(at + left, start + kMaxStatusLength);
  request.wanted_offset = at;
  request.wanted_length = end - at;
  request.offset = start;
  const std::uint64_t over = end % unit;
  const std::uint64_t widened = over == 0 ? end : end + (unit - over);
  request.length = std::min(widened, info_.size) - start;
  if (command.buffer != nullptr) request.target = command.buffer + piece.at + command.within;

  if (command.kind == Kind::kRead) {
    request.coverage.reset(request.offset, request.length);
    if (request.isWidened()) request.bounce.resize(request.length);
  } else if (command.kind == Kind::kBlockStatus) {
    request.collector.emplace(info_.contexts, request.wanted_offset, request.wanted_length, request.offset,
                              request.length);
  }
}

std::int64_t Worker::send(Request& request) {
  nbd_handle* h = handle_.get();
  const nbd_completion_callback done{.callback = Callbacks::onDone, .user_data = &request, .free = nullptr};
  switch (request.command->kind) {
    case Kind::kRead: {
      const nbd_chunk_callback chunk{.callback = Callbacks::onChunk, .user_data = &request, .free = nullptr};
      void* into = request.isWidened() ? request.bounce.data() : request.target;
      return nbd_aio_pread_structured(h, into, request.length, request.offset, chunk, done, 0);
    }
    case Kind::kWrite:
      return nbd_aio_pwrite(h, request.target, request.length, request.offset, done, 0);
    case Kind::kZero:
      return nbd_aio_zero(h, request.length, request.offset, done,
                          request.command->punch ? 0 : LIBNBD_CMD_FLAG_NO_HOLE);
    case Kind::kFlush:
      return nbd_aio_flush(h, done, 0);
    case Kind::kBlockStatus: {
      const nbd_extent_callback extent{.callback = Callbacks::onExtents, .user_data = &request, .free = nullptr};
      return nbd_aio_block_status(h, request.length, request.offset, extent, done, 0);
    }
  }
  return -1;
}

TimePoint Worker::deadline() const {
  TimePoint earliest = kNever;
  for (const auto& request : in_flight_) {
    // Requests wait for one another, so each answer gives the others new time.
    const TimePoint patience = std::max(request->issued, last_answer_) + timeout_;
    earliest = std::min({earliest, patience, request->last_call});
  }
  return earliest;
}

void Worker::step() {
  const TimePoint until = in_flight_.empty() ? Clock::now() + std::chrono::hours(1) : deadline();
  if (handle_.step(until) || in_flight_.empty()) return;
  const bool is_answered = std::any_of(in_flight_.begin(), in_flight_.end(), [](const auto& r) { return r->is_done; });
  if (is_answered) return;
  const Request& oldest = *in_flight_.front();
  throw NativeError("E_TIMEOUT", std::string("NBD ") + verb(oldest.command->kind) + " at offset " +
                                     std::to_string(oldest.wanted_offset) + ": no answer in " +
                                     std::to_string(timeout_.count()) + " ms");
}

void Worker::complete(Request& request) {
  Command& command = *request.command;
  command.in_flight--;
  if (carriesData(command.kind)) bytes_in_flight_ -= request.length;
  last_answer_ = Clock::now();

  if (request.error != 0) {
    // The server is going away, or libnbd gave up on it.
    if (request.error == ESHUTDOWN || !handle_.isUsable()) {
      throw NativeError("E_NBD", std::string("NBD ") + verb(command.kind) + ": the connection is lost", request.error);
    }
    const std::uint64_t at = std::max(request.error_offset.value_or(request.wanted_offset), request.wanted_offset);
    if (!command.error || at < command.error_offset) {
      command.error_offset = at;
      command.error = requestError(command, at, request.error);
    }
    return;
  }
  if (command.kind == Kind::kRead) {
    if (!request.is_sound || !request.coverage.isComplete()) {
      throw NativeError("E_NBD_PROTOCOL", "NBD read at offset " + std::to_string(request.wanted_offset) +
                                              ": the answer does not cover the request exactly once");
    }
    if (request.isWidened()) {
      std::memcpy(request.target, request.bounce.data() + (request.wanted_offset - request.offset),
                  request.wanted_length);
    }
  } else if (command.kind == Kind::kBlockStatus) {
    command.extents = request.collector->finish();
  }
}

bool Worker::settle() {
  bool any = false;
  for (std::size_t i = 0; i < in_flight_.size();) {
    if (!in_flight_[i]->is_done) {
      i++;
      continue;
    }
    auto request = std::move(in_flight_[i]);
    in_flight_.erase(in_flight_.begin() + static_cast<std::ptrdiff_t>(i));
    any = true;
    complete(*request);
    spare_.push_back(std::move(request));
  }
  for (auto command = active_.begin(); command != active_.end();) {
    if (!(*command)->isSettled()) {
      ++command;
      continue;
    }
    auto settled = std::move(*command);
    command = active_.erase(command);
    any = true;
    const std::optional<NativeError> error = settled->error;
    finish(std::move(settled), error ? &*error : nullptr);
  }
  return any;
}

void Worker::finish(std::unique_ptr<Command> command, const NativeError* error) noexcept {
  settled_++;
  command->done(error, std::move(command->extents));
}

void Worker::stop(const NativeError& error) {
  for (auto& command : active_) {
    if (command->hasNext() && !command->error) command->error = error;
  }
}

void Worker::fail(const NativeError& error) noexcept {
  in_flight_.clear();
  while (!active_.empty()) {
    auto command = std::move(active_.front());
    active_.pop_front();
    finish(std::move(command), &error);
  }
}

}  // namespace virtvault::nbd
