// A launch as emulator.py describes it to the runtime: the same layouts stand there as ctypes
// structures.
#pragma once

namespace emulator {

struct Argument {
  unsigned long long value;  // a tensor's address, or the bits of an int64_t or a float
  long long bytes;           // of a tensor
  int is_tensor;
  int writable;
};

struct Launch {
  void (*body)(void* const*);  // one thread; takes the address of each argument
  const Argument* arguments;
  const long long* seeds;
  unsigned long long* program_counter;  // of a fault
  long long shared_bytes;
  int count, num_seeds, block;
  unsigned grid[3];
};

}  // namespace emulator
