// What compiled kernels call in the emulator's runtime, which runtime.cpp implements once for all
// of them.
#pragma once

#include <stddef.h>

#define EMULATOR_API __attribute__((visibility("default")))
// Where a device function was called: the value of these default arguments is the caller's line.
#define EMULATOR_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace emulator {

struct Index3 {
  unsigned x, y, z;
};
extern EMULATOR_API Index3 threadIdx, blockIdx, blockDim, gridDim;

enum class Vote { BARRIER, OR, AND, COUNT };

// Waits for all threads of the block and combines their predicates.
EMULATOR_API int barrier(Vote vote, int predicate, const char* file, int line);

constexpr int LANES = 32;
constexpr int SLOT_BYTES = 64;

// What the lanes of a warp show each other in one collective.
struct alignas(16) Exchange {
  unsigned char slots[LANES][SLOT_BYTES];

  template <class T>
  T& at(int lane) {
    static_assert(sizeof(T) <= SLOT_BYTES, "a lane's part of a collective must fit its slot");
    return *reinterpret_cast<T*>(slots[lane]);
  }
};

// A collective has two steps: a lane writes its slot of `exchange()`, then meets the others. The
// last to arrive runs `combine` over all slots. The slots stay until the lane's next collective but
// one.
EMULATOR_API Exchange& exchange();
EMULATOR_API void meet(const char* what, unsigned mask, void (*combine)(Exchange&),
                       const char* file, int line);
inline int lane() { return static_cast<int>(threadIdx.x % LANES); }

EMULATOR_API bool is_shared(const void* pointer, size_t bytes);
EMULATOR_API void copy_async(void* shared, const void* global, int bytes, bool valid,
                             const char* file, int line);
EMULATOR_API void copy_commit();
EMULATOR_API void copy_wait(int groups_in_flight);

// Ends the launch with a message.
[[noreturn]] EMULATOR_API void fail(const char* file, int line, const char* format, ...)
    __attribute__((format(printf, 3, 4)));

}  // namespace emulator
