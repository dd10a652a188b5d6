#include "virt/virt_error.h"

#include <libvirt/virterror.h>

#include <cerrno>
#include <string>

namespace virtvault {
namespace {

// VIR_ERR_AGENT_COMMAND_TIMEOUT and _FAILED: newer daemons send them, libvirt
// 9.0 does not declare them.
constexpr int kAgentCommandTimeout = 111;
constexpr int kAgentCommandFailed = 112;

// System errors carry their errno in int1, also when the daemon reported them.
std::string systemErrorCode(const virError& error) {
  const int error_number = error.int1;
  if (error_number == ENOSPC || error_number == EDQUOT) return "E_NO_SPACE";
  if (error.domain != VIR_FROM_RPC) return "E_LIBVIRT";
  return error_number == EACCES || error_number == EPERM ? "E_LIBVIRT_DENIED" : "E_LIBVIRT_CONNECT";
}

std::string codeOf(const virError& error) {
  switch (error.code) {
    case VIR_ERR_NO_DOMAIN:
    case VIR_ERR_NO_STORAGE_POOL:
    case VIR_ERR_NO_STORAGE_VOL:
    case VIR_ERR_NO_DOMAIN_CHECKPOINT:
    case VIR_ERR_NO_DOMAIN_BACKUP:
    case VIR_ERR_NO_DOMAIN_METADATA:
      return "E_NOT_FOUND";
    case VIR_ERR_NO_CONNECT:
    case VIR_ERR_INVALID_CONN:
      return "E_LIBVIRT_CONNECT";
    case VIR_ERR_SYSTEM_ERROR:
      return systemErrorCode(error);
    // "client socket is closed" is an internal error of the RPC layer.
    case VIR_ERR_RPC:
    case VIR_ERR_INTERNAL_ERROR:
      return error.domain == VIR_FROM_RPC ? "E_LIBVIRT_CONNECT" : "E_LIBVIRT";
    case VIR_ERR_AUTH_FAILED:
    case VIR_ERR_AUTH_CANCELLED:
    case VIR_ERR_AUTH_UNAVAILABLE:
    case VIR_ERR_ACCESS_DENIED:
    case VIR_ERR_OPERATION_DENIED:
      return "E_LIBVIRT_DENIED";
    case VIR_ERR_NO_SUPPORT:
    case VIR_ERR_CONFIG_UNSUPPORTED:
    case VIR_ERR_OPERATION_UNSUPPORTED:
      return "E_UNSUPPORTED";
    case VIR_ERR_OPERATION_INVALID:
      return "E_DOMAIN_STATE";
    case VIR_ERR_OPERATION_TIMEOUT:
      return "E_DOMAIN_BUSY";
    case VIR_ERR_ARGUMENT_UNSUPPORTED:
    case VIR_ERR_AGENT_UNRESPONSIVE:
    case VIR_ERR_AGENT_UNSYNCED:
    case kAgentCommandTimeout:
    case kAgentCommandFailed:
      return "E_AGENT";
    case VIR_ERR_OPERATION_ABORTED:
      return "E_INTERRUPTED";
    case VIR_ERR_CHECKPOINT_INCONSISTENT:
      return "E_CHAIN_BROKEN";
    default:
      return "E_LIBVIRT";
  }
}

}  // namespace

void throwVirt(std::string_view what) {
  const virErrorPtr error = virGetLastError();
  if (error == nullptr) throw NativeError("E_LIBVIRT", std::string(what) + ": libvirt gave no reason");
  throw NativeError(codeOf(*error), std::string(what) + ": " + (error->message ? error->message : "no detail"),
                    error->code, error->domain);
}

int lastVirtCode() noexcept {
  const virErrorPtr error = virGetLastError();
  return error == nullptr ? 0 : error->code;
}

}  // namespace virtvault
