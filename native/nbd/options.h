// What a connection is asked for, and what is known of an export. Plain data.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace virtvault::nbd {

using Clock = std::chrono::steady_clock;
using TimePoint = Clock::time_point;
using Milliseconds = std::chrono::milliseconds;

struct TlsOptions {
  std::string certificates;
  std::string psk_file;
  std::string username;
  bool verify_peer = true;
};

// Exactly one of `socket`, `host`, `uri` and `command` is set.
struct Address {
  std::string socket;
  std::string host;
  std::string port = "10809";
  std::string uri;
  std::vector<std::string> command;
  std::optional<TlsOptions> tls;
  Milliseconds connect_timeout{10'000};

  // For messages.
  std::string name() const;
};

struct ConnectOptions {
  Address address;
  std::string export_name;
  // All must be granted.
  std::vector<std::string> contexts;
  // Used where granted; they follow `contexts` in every answer.
  std::vector<std::string> optional_contexts;
  Milliseconds request_timeout{30'000};
  bool writable = false;
};

struct ExportInfo {
  std::uint64_t size = 0;
  std::uint32_t minimum_block = 1;
  std::uint32_t preferred_block = 4096;
  std::uint32_t maximum_block = 0;
  bool multi_conn = false;
  bool read_only = true;
  bool can_zero = false;
  bool can_trim = false;
  bool can_flush = false;
  // Granted meta contexts, in the order in which block status is answered.
  std::vector<std::string> contexts;
};

struct ListedExport {
  std::string name;
  std::string description;
  std::optional<std::uint64_t> size;
};

// [offset, offset + length) of the export, at `at` in the caller's buffer.
struct Piece {
  std::uint64_t offset;
  std::uint64_t length;
  std::uint64_t at;
};

// One context's extents: pairs (length, flags).
using ExtentList = std::vector<double>;

// The largest size that JavaScript counts exactly: 2^53 - 1.
inline constexpr std::uint64_t kMaxSize = (std::uint64_t{1} << 53) - 1;

}  // namespace virtvault::nbd
