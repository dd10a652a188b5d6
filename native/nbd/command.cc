#include "nbd/command.h"

namespace virtvault::nbd {

namespace {

[[noreturn]] void refuse(const Piece& piece, const char* why) {
  throw NativeError("E_INTERNAL",
                    "NBD piece at offset " + std::to_string(piece.offset) + ", length " +
                        std::to_string(piece.length) + ": " + why);
}

}  // namespace

void validate(const Command& command, const ExportInfo& info, std::uint64_t buffer_length) {
  const bool changes = command.kind == Kind::kWrite || command.kind == Kind::kZero;
  const bool carries_data = command.kind == Kind::kRead || command.kind == Kind::kWrite;
  if (changes && info.read_only) throw NativeError("E_NBD", "the NBD export is read-only");
  if (command.kind == Kind::kZero && !info.can_zero) {
    throw NativeError("E_UNSUPPORTED", "the NBD export takes no zero requests");
  }
  if (command.kind == Kind::kBlockStatus && info.contexts.empty()) {
    throw NativeError("E_UNSUPPORTED", "the NBD export has no meta context");
  }
  for (const Piece& piece : command.pieces) {
    if (piece.length == 0) refuse(piece, "empty");
    if (piece.offset > info.size || piece.length > info.size - piece.offset) refuse(piece, "beyond the export");
    if (carries_data && (piece.at > buffer_length || piece.length > buffer_length - piece.at)) {
      refuse(piece, "beyond the buffer");
    }
    const std::uint64_t end = piece.offset + piece.length;
    const bool splits = piece.offset % info.minimum_block != 0 ||
                        (end % info.minimum_block != 0 && end != info.size);
    if (changes && splits) {
      throw NativeError("E_NBD", "NBD write at offset " + std::to_string(piece.offset) +
                                     " splits a block of the export (" + std::to_string(info.minimum_block) +
                                     " bytes at least)");
    }
  }
}

}  // namespace virtvault::nbd
