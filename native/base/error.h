// The one exception type of the native code, and what it carries to JavaScript.
#pragma once

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

namespace virtvault {

// `code` is one of ERROR_CODES in src/base/errors.ts. The message is never
// empty: an empty message would mean success to Napi::AsyncWorker.
class NativeError : public std::runtime_error {
 public:
  NativeError(std::string code, const std::string& message, int error_number = 0)
      : std::runtime_error(message.empty() ? code : message), code_(std::move(code)), errno_(error_number) {}

  // For a failed libvirt call: virError's `code` and `domain`.
  NativeError(std::string code, const std::string& message, int virt_code, int virt_domain)
      : std::runtime_error(message.empty() ? code : message),
        code_(std::move(code)),
        virt_code_(virt_code),
        virt_domain_(virt_domain) {}

  const std::string& code() const noexcept { return code_; }
  int errorNumber() const noexcept { return errno_; }
  // 0 when the error is not libvirt's.
  int virtCode() const noexcept { return virt_code_; }
  int virtDomain() const noexcept { return virt_domain_; }

 private:
  std::string code_;
  int errno_ = 0;
  int virt_code_ = 0;
  int virt_domain_ = 0;
};

// Throws for the errno of a failed system call; ENOSPC and EDQUOT become
// E_NO_SPACE, everything else E_IO.
[[noreturn]] inline void throwErrno(std::string_view what, int error_number = errno) {
  const bool full = error_number == ENOSPC || error_number == EDQUOT;
  throw NativeError(full ? "E_NO_SPACE" : "E_IO", std::string(what) + ": " + std::strerror(error_number), error_number);
}

}  // namespace virtvault
