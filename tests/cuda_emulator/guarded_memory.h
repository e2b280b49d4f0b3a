// Memory that faults at its borders: the copies of a launch's tensors, and a block's shared memory.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>

namespace emulator {

inline size_t page_bytes() {
  static const size_t bytes = sysconf(_SC_PAGESIZE);
  return bytes;
}

// `bytes` of memory between two inaccessible pages: at its end they touch the second, otherwise the
// first. Their address is equal to `alignment_of` modulo 16, so up to 15 bytes stay on the touching
// side, and less than a page on the other: these hold canaries.
class Guarded {
 public:
  Guarded(size_t bytes, uintptr_t alignment_of, bool at_end, unsigned char canary)
      : bytes_(bytes), canary_(canary) {
    const size_t page = page_bytes(), before = alignment_of % 16;
    const size_t after = (16 - (before + bytes) % 16) % 16;
    inner_ = std::max((before + bytes + after + page - 1) / page * page, page);
    void* memory = mmap(nullptr, inner_ + 2 * page, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    begin_ = static_cast<unsigned char*>(memory) + page;
    data_ = at_end ? begin_ + inner_ - after - bytes : begin_ + before;
    mprotect(begin_ - page, page, PROT_NONE);
    mprotect(begin_ + inner_, page, PROT_NONE);
    memset(begin_, canary, data_ - begin_);
    memset(data_ + bytes, canary, begin_ + inner_ - data_ - bytes);
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

  // A byte outside the data that was written, relative to the data; 0, which lies inside, where
  // none was.
  ptrdiff_t overwritten() const {
    const ptrdiff_t first = begin_ - data_, last = first + static_cast<ptrdiff_t>(inner_);
    for (ptrdiff_t i = -1; i >= first; --i) {
      if (data_[i] != canary_) return i;
    }
    for (ptrdiff_t i = bytes_; i < last; ++i) {
      if (data_[i] != canary_) return i;
    }
    return 0;
  }

 private:
  size_t bytes_, inner_;
  unsigned char canary_;
  unsigned char *begin_, *data_;
};

}  // namespace emulator
