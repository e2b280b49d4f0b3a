// Asynchronous copies to shared memory: the destination is poisoned when a copy starts, and the
// data arrive when its thread waits for them, which is as late as they may on a device.
#include "machine.h"

namespace emulator {

bool is_shared(const void* pointer, size_t bytes) {
  return machine.shared->contains(pointer, bytes);
}

void copy_async(void* shared, const void* global, int bytes, bool valid, const char* file,
                int line) {
  if (reinterpret_cast<uintptr_t>(shared) % bytes != 0) {
    fail(file, line, "cp_async: the shared address must be a multiple of %d", bytes);
  }
  if (!is_shared(shared, bytes)) fail(file, line, "cp_async: must write inside shared memory");
  if (valid && reinterpret_cast<uintptr_t>(global) % bytes != 0) {
    fail(file, line, "cp_async: the global address must be a multiple of %d", bytes);
  }
  if (valid && is_shared(global, 1)) fail(file, line, "cp_async: must read global memory");
  // Where the source is out of bounds, the fault belongs to this call.
  if (valid) memcpy(shared, global, bytes);
  memset(shared, machine.poison, bytes);
  Thread& thread = machine.threads[machine.current];
  thread.copies.push_back({shared, global, bytes, valid, thread.group});
}

void copy_commit() { ++machine.threads[machine.current].group; }

void copy_wait(int groups_in_flight) {
  Thread& thread = machine.threads[machine.current];
  const long long in_flight = thread.group - groups_in_flight;  // from this group on
  size_t kept = 0;
  for (const Copy& copy : thread.copies) {
    if (copy.group >= in_flight) {
      thread.copies[kept++] = copy;
    } else if (copy.valid) {
      memcpy(copy.shared, copy.global, copy.bytes);
    } else {
      memset(copy.shared, 0, copy.bytes);
    }
  }
  thread.copies.resize(kept);
}

}  // namespace emulator
