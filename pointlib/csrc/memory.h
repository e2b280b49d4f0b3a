// Memory of the engine: aligned scratch, and large pages for large fresh arrays, whose page faults
// would otherwise cost as much as filling them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pointlib {

// Asks for large pages in what lies whole inside [memory, memory + bytes); a hint, and none of it
// is touched.
inline void prefer_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t LARGE = uintptr_t(1) << 21;
  const uintptr_t from = (reinterpret_cast<uintptr_t>(memory) + LARGE - 1) / LARGE * LARGE;
  const uintptr_t to = (reinterpret_cast<uintptr_t>(memory) + bytes) / LARGE * LARGE;
  if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#else
  (void)memory;
  (void)bytes;
#endif
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
template <typename T>
using Scratch = std::unique_ptr<T[], Free>;

// Uninitialised, aligned to cache lines.
template <typename T>
Scratch<T> scratch(int64_t count) {
  const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 127) / 64 * 64;
  void* memory = std::aligned_alloc(64, bytes);
  if (!memory) throw std::bad_alloc();
  prefer_large_pages(memory, static_cast<int64_t>(bytes));
  return Scratch<T>(static_cast<T*>(memory));
}

}  // namespace pointlib
