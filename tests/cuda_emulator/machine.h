// The state of the emulated device during a launch, and what the files of the runtime offer each
// other. One launch runs at a time; the rest of the process never sees this.
#pragma once

#include <setjmp.h>

#include <memory>
#include <random>
#include <vector>

#include "fibers.h"
#include "guarded_memory.h"
#include "launch.h"
#include "runtime.h"

namespace emulator {

enum class State : unsigned char { READY, IN_WARP, AT_BARRIER, DONE };

// Where a thread waits.
struct Site {
  const char* what;
  const char* file;
  int line;
};

// A cp.async that was started and not waited for.
struct Copy {
  void* shared;
  const void* global;
  int bytes;
  bool valid;
  long long group;
};

struct Thread {
  void* stack_pointer;
  Site site;
  bool odd;  // which of the warp's two exchanges the next collective uses
  long long group;
  std::vector<Copy> copies;
};

// Those of a warp, or a block, that wait for each other.
struct Meeting {
  int arrived, first;  // how many, and which thread came first
  int votes;
};

struct Warp {
  Exchange exchanges[2];
  Meeting meeting;
};

struct Machine {
  const Launch* launch;
  std::vector<void*> arguments;  // where each argument's value stands
  std::vector<uint64_t> values;
  std::vector<std::unique_ptr<Guarded>> regions;  // copies of the tensors
  std::vector<int> region_of;                     // an argument's, or -1
  std::unique_ptr<Guarded> shared;

  Thread threads[MAX_THREADS];
  State states[MAX_THREADS];
  Warp warps[MAX_THREADS / LANES];
  int current;  // thread
  Meeting barrier;
  int votes;  // of the barrier passed last
  void* scheduler;
  unsigned long long switches;

  long long seed;
  std::mt19937_64 random;
  unsigned char poison;

  sigjmp_buf abandoned;
  char* message;
  size_t message_bytes;
};

extern Machine machine;

// scheduler.cpp
void run_grid();

// faults.cpp. What follows an append is part of the launch's message.
__attribute__((format(printf, 1, 2))) void append(const char* format, ...);
void append_place();
void append_address(const void* address);
[[noreturn]] void abandon();
[[noreturn]] void fail_divergence(int waiting, int other);

// While it lives, faults of this thread end the launch with a message, as does a thread that never
// waits or ends.
class Catching {
 public:
  Catching();
  ~Catching();
  Catching(const Catching&) = delete;
  Catching& operator=(const Catching&) = delete;

 private:
  std::vector<char> stack_;
};

}  // namespace emulator
