// Memory that faults at its borders: the copies of a launch's tensors, and a block's shared memory.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace emulator {

constexpr unsigned char CANARY = 0xa5;

inline size_t page_bytes() {
  static const size_t bytes = sysconf(_SC_PAGESIZE);
  return bytes;
}
inline size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

// `bytes` of memory that end at an inaccessible page and follow another. Their address is equal to
// `alignment_of` modulo 16, so up to 15 bytes after them, and less than a page before them, exist:
// these hold canaries.
class Guarded {
 public:
  Guarded(size_t bytes, uintptr_t alignment_of) : bytes_(bytes) {
    const size_t page = page_bytes();
    const size_t after = (16 - (alignment_of + bytes) % 16) % 16;
    inner_ = std::max(round_up(bytes + after, page), page);
    void* memory = mmap(nullptr, inner_ + 2 * page, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    begin_ = static_cast<unsigned char*>(memory) + page;
    data_ = begin_ + inner_ - after - bytes;
    mprotect(begin_ - page, page, PROT_NONE);
    mprotect(begin_ + inner_, page, PROT_NONE);
    memset(begin_, CANARY, data_ - begin_);
    memset(data_ + bytes_, CANARY, after);
  }
  ~Guarded() { munmap(begin_ - page_bytes(), inner_ + 2 * page_bytes()); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  unsigned char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

  void forbid_writes() const { mprotect(begin_, inner_, PROT_READ); }

  // Whether an address lies in this memory or its guards.
  bool covers(const void* address) const {
    const auto* byte = static_cast<const unsigned char*>(address);
    return byte >= begin_ - page_bytes() && byte < begin_ + inner_ + page_bytes();
  }
  bool contains(const void* address, size_t size) const {
    const auto* byte = static_cast<const unsigned char*>(address);
    return byte >= data_ && byte + size <= data_ + bytes_;
  }

  // First byte outside the data that was written, relative to the data; 0 where none was (0 lies
  // inside).
  ptrdiff_t overwritten() const {
    for (const unsigned char* byte = data_; byte-- > begin_;) {
      if (*byte != CANARY) return byte - data_;
    }
    for (const unsigned char* byte = data_ + bytes_; byte < begin_ + inner_; ++byte) {
      if (*byte != CANARY) return byte - data_;
    }
    return 0;
  }

 private:
  size_t bytes_, inner_;
  unsigned char *begin_, *data_;
};

}  // namespace emulator
