// What every file of the CPU engine shares: how functions are exported, how they fail, and the
// table of the kernels that are compiled once for each instruction set. The ABI is plain C; no
// torch or Python header is needed.
#pragma once

#include <cstddef>
#include <cstdint>

#define POINTLIB_API extern "C" __attribute__((visibility("default")))

// Raised whenever an exported signature or struct changes; pointlib/ops/_cpu/engine.py expects the
// same number.
#define POINTLIB_ABI 1

namespace pointlib {

// Exported functions return 0, or a count >= 0; on failure they return FAILED and leave a message
// for this thread.
constexpr int64_t FAILED = -1;
int64_t fail(const char* message);

// Runs `body`, an int64_t(), and turns any exception into a failure.
template <typename Body>
int64_t guarded(Body body) noexcept;

}  // namespace pointlib

#include <exception>

template <typename Body>
int64_t pointlib::guarded(Body body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    return fail(error.what());
  }
}
