// The emulator's runtime, compiled once: runs blocks one after the other, each thread as a fiber,
// in an order that a seed chooses; barriers and warp collectives that detect divergence; faults
// caught and explained.
#include "runtime.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>

#include <memory>
#include <numeric>
#include <random>

#include "fibers.h"
#include "guarded_memory.h"
#include "launch.h"

namespace emulator {

Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

enum class State { READY, IN_WARP, AT_BARRIER, DONE };

// Where a thread waits.
struct Site {
  const char* what;
  const char* file;
  int line;
  bool operator!=(const Site& other) const {
    return line != other.line || strcmp(what, other.what) != 0 || strcmp(file, other.file) != 0;
  }
};

// A cp.async that has been issued and not waited for.
struct Copy {
  void* shared;
  const void* global;
  int bytes;
  bool valid;
  long long group;
};

struct Thread {
  void* stack_pointer;
  State state;
  Site site;
  int vote;
  bool odd;  // which of the warp's two exchanges the next collective uses
  long long group;
  std::vector<Copy> copies;
};

struct Warp {
  Exchange exchanges[2];
  int arrived;
};

struct Machine {
  const Launch* launch;
  std::vector<void*> arguments;
  std::vector<uint64_t> values;
  std::vector<std::unique_ptr<Guarded>> regions;
  std::vector<int> region_of;
  std::unique_ptr<Guarded> shared;

  Thread threads[MAX_THREADS];
  Warp warps[MAX_THREADS / LANES];
  std::mt19937_64 random;
  long long seed;
  unsigned char poison;
  int current;
  int vote_result;
  void* scheduler;

  sigjmp_buf abandon;
  volatile bool in_kernel;
  char* message;
  size_t message_bytes;
};

Machine machine;

int num_warps() { return (machine.launch->block + LANES - 1) / LANES; }

// Order of `count` things: 0 forward, 1 backward, any other seed a new permutation each time.
void arrange(std::vector<int>& order, int count) {
  order.resize(count);
  std::iota(order.begin(), order.end(), 0);
  if (machine.seed == 1) std::reverse(order.begin(), order.end());
  if (machine.seed > 1) {
    for (int i = count; i > 1; --i) std::swap(order[i - 1], order[machine.random() % i]);
  }
}

// Faults

__attribute__((format(printf, 1, 2))) void append(const char* format, ...) {
  const size_t used = strlen(machine.message);
  va_list values;
  va_start(values, format);
  vsnprintf(machine.message + used, machine.message_bytes - used, format, values);
  va_end(values);
}

void append_place() {
  append("block (%u, %u, %u), thread %d: ", blockIdx.x, blockIdx.y, blockIdx.z, machine.current);
}

void append_site(const Site& site) {
  const char* slash = strrchr(site.file, '/');
  append("%s (%s:%d)", site.what, slash == nullptr ? site.file : slash + 1, site.line);
}

[[noreturn]] void abandon() { siglongjmp(machine.abandon, 1); }

void append_address(const void* address) {
  const auto* byte = static_cast<const unsigned char*>(address);
  if (machine.shared->covers(address)) {
    append("shared memory, byte %td of %zu", byte - machine.shared->data(),
           machine.shared->bytes());
    return;
  }
  for (int i = 0; i < machine.launch->count; ++i) {
    if (machine.region_of[i] < 0 || !machine.regions[machine.region_of[i]]->covers(address)) {
      continue;
    }
    const auto* start =
        static_cast<const unsigned char*>(*static_cast<void**>(machine.arguments[i]));
    append("argument %d, byte %td of %lld", i, byte - start, machine.launch->arguments[i].bytes);
    return;
  }
  if (reinterpret_cast<uintptr_t>(address) < (1 << 16)) {
    append("the null pointer (address %p)", address);
  } else {
    append("address %p, in no argument", address);
  }
}

struct sigaction previous_action[NSIG];

void on_signal(int signal, siginfo_t* info, void* context) {
  if (!machine.in_kernel) {
    sigaction(signal, &previous_action[signal], nullptr);
    return;  // the instruction repeats, and the process' own handler has it
  }
  machine.in_kernel = false;
  append_place();
  bool is_write = false;
#if defined(__x86_64__)
  auto* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  is_write = registers[REG_ERR] & 2;
  *machine.launch->program_counter = registers[REG_RIP];
#else
  (void)context;
#endif
  if (signal == SIGILL || signal == SIGTRAP) {
    append("misaligned access, index outside a local array, or shift beyond the width");
  } else if (signal == SIGFPE) {
    append("integer division by zero");
  } else if (info->si_code == SI_KERNEL) {
    append("misaligned vector access, or a wild pointer");
  } else {
    append("out-of-bounds %s of ", is_write ? "write" : "access");
    append_address(info->si_addr);
  }
  abandon();
}

constexpr int CAUGHT[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};

// While it lives, faults of this thread come to on_signal, on a stack of their own.
class Catching {
 public:
  Catching() : stack_(64 << 10) {
    stack_t alternative = {};
    alternative.ss_sp = stack_.data();
    alternative.ss_size = stack_.size();
    sigaltstack(&alternative, &previous_stack_);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int signal : CAUGHT) sigaction(signal, &action, &previous_action[signal]);
  }
  ~Catching() {
    for (int signal : CAUGHT) sigaction(signal, &previous_action[signal], nullptr);
    sigaltstack(&previous_stack_, nullptr);
  }

 private:
  std::vector<char> stack_;
  stack_t previous_stack_;
};

// The scheduler

void yield() {
  emulator_switch(&machine.threads[machine.current].stack_pointer, machine.scheduler);
}

void thread_main() {
  machine.launch->body(machine.arguments.data());
  machine.threads[machine.current].state = State::DONE;
  yield();
}

void resume(int thread) {
  machine.current = thread;
  threadIdx = {static_cast<unsigned>(thread), 0, 0};
  emulator_switch(&machine.scheduler, machine.threads[thread].stack_pointer);
}

[[noreturn]] void fail_divergence(int waiting, int other) {
  machine.current = waiting;
  append_place();
  append("waits at ");
  append_site(machine.threads[waiting].site);
  append(", but thread %d ", other);
  if (machine.threads[other].state == State::DONE) {
    append("has ended");
  } else {
    append("waits at ");
    append_site(machine.threads[other].site);
  }
  abandon();
}

// Runs a warp's lanes until each waits for the block's barrier or has ended.
void run_warp(int warp, std::vector<int>& order) {
  const int first = warp * LANES, count = std::min(LANES, machine.launch->block - first);
  for (bool progress = true; progress;) {
    progress = false;
    arrange(order, count);
    for (int lane : order) {
      if (machine.threads[first + lane].state != State::READY) continue;
      resume(first + lane);
      progress = true;
    }
  }
  if (machine.warps[warp].arrived == 0) return;
  int waiting = first, other = first;
  while (machine.threads[waiting].state != State::IN_WARP) ++waiting;
  while (machine.threads[other].state == State::IN_WARP) ++other;
  fail_divergence(waiting, other);
}

// All threads wait at a barrier or have ended: checks that it is the same for all, and lets them go
// on.
bool pass_barrier() {
  const int block = machine.launch->block;
  int waiting = 0, ended = -1;
  while (waiting < block && machine.threads[waiting].state == State::DONE) ended = waiting++;
  if (waiting == block) return false;
  if (ended >= 0) fail_divergence(waiting, ended);
  const Site& site = machine.threads[0].site;
  int sum = 0;
  for (int i = 0; i < block; ++i) {
    if (machine.threads[i].state == State::DONE || machine.threads[i].site != site) {
      fail_divergence(0, i);
    }
    sum += machine.threads[i].vote;
    machine.threads[i].state = State::READY;
  }
  machine.vote_result = sum;
  return true;
}

void check_canaries() {
  if (const ptrdiff_t byte = machine.shared->overwritten()) {
    append_place();
    append("out-of-bounds write of shared memory, byte %td of %zu", byte, machine.shared->bytes());
    abandon();
  }
  for (const auto& region : machine.regions) {
    if (const ptrdiff_t byte = region->overwritten()) {
      append_place();
      append("out-of-bounds write (found after the block) of ");
      append_address(region->data() + byte);
      abandon();
    }
  }
}

void run_block() {
  const int block = machine.launch->block;
  memset(machine.shared->data(), machine.poison, machine.shared->bytes());
  for (int i = 0; i < block; ++i) {
    Thread& thread = machine.threads[i];
    thread.stack_pointer = prepare_fiber(i, thread_main);
    thread.state = State::READY;
    thread.odd = false;
    thread.group = 0;
    thread.copies.clear();
  }
  for (int i = 0; i < num_warps(); ++i) machine.warps[i].arrived = 0;
  static std::vector<int> warps, lanes;
  do {
    arrange(warps, num_warps());
    for (int warp : warps) run_warp(warp, lanes);
  } while (pass_barrier());
  check_canaries();
}

void run_grid() {
  const Launch& launch = *machine.launch;
  blockDim = {static_cast<unsigned>(launch.block), 1, 1};
  gridDim = {launch.grid[0], launch.grid[1], launch.grid[2]};
  machine.random.seed(machine.seed);
  static std::vector<int> blocks;  // not on this stack, which a fault leaves by a jump
  arrange(blocks, launch.grid[0] * launch.grid[1] * launch.grid[2]);
  for (int number : blocks) {
    const unsigned row = number / gridDim.x;
    blockIdx = {number % gridDim.x, row % gridDim.y, row / gridDim.y};
    run_block();
  }
}

// Global memory

// Copies the tensors behind their guards; tensors that overlap share one copy, as they do on a
// device.
void copy_in() {
  const Launch& launch = *machine.launch;
  machine.regions.clear();
  machine.region_of.assign(launch.count, -1);
  machine.values.assign(launch.count, 0);
  machine.arguments.resize(launch.count);
  std::vector<int> order;
  for (int i = 0; i < launch.count; ++i) {
    machine.arguments[i] = &machine.values[i];
    memcpy(&machine.values[i], &launch.arguments[i].value, sizeof(uint64_t));
    if (launch.arguments[i].is_tensor && launch.arguments[i].bytes > 0) order.push_back(i);
  }
  const auto start = [&](int i) { return launch.arguments[i].value; };
  const auto end = [&](int i) { return start(i) + launch.arguments[i].bytes; };
  std::sort(order.begin(), order.end(), [&](int a, int b) { return start(a) < start(b); });
  for (size_t first = 0, last; first < order.size(); first = last) {
    uint64_t stop = end(order[first]);
    bool writable = false;
    for (last = first; last < order.size() && (last == first || start(order[last]) < stop);
         ++last) {
      stop = std::max<uint64_t>(stop, end(order[last]));
      writable |= launch.arguments[order[last]].writable != 0;
    }
    const uint64_t origin = start(order[first]);
    auto region = std::make_unique<Guarded>(stop - origin, origin);
    memcpy(region->data(), reinterpret_cast<const void*>(origin), stop - origin);
    if (!writable) region->forbid_writes();
    for (size_t i = first; i < last; ++i) {
      const uint64_t address =
          reinterpret_cast<uint64_t>(region->data()) + start(order[i]) - origin;
      machine.values[order[i]] = address;
      machine.region_of[order[i]] = static_cast<int>(machine.regions.size());
    }
    machine.regions.push_back(std::move(region));
  }
}

const void* result_of(int argument) {
  return reinterpret_cast<const void*>(machine.values[argument]);
}

// Compares what this schedule wrote with what the first one wrote.
void compare(std::vector<std::vector<unsigned char>>& first_results) {
  const Launch& launch = *machine.launch;
  const bool is_first = first_results.empty();
  if (is_first) first_results.resize(launch.count);
  for (int i = 0; i < launch.count; ++i) {
    const Argument& argument = launch.arguments[i];
    if (!argument.is_tensor || !argument.writable || argument.bytes == 0) continue;
    const auto* result = static_cast<const unsigned char*>(result_of(i));
    if (is_first) {
      first_results[i].assign(result, result + argument.bytes);
      continue;
    }
    for (long long byte = 0; byte < argument.bytes; ++byte) {
      if (result[byte] == first_results[i][byte]) continue;
      append(
          "race or uninitialised memory: argument %d differs at byte %lld between schedules %lld "
          "and %lld",
          i, byte, launch.seeds[0], machine.seed);
      abandon();
    }
  }
}

void copy_out() {
  const Launch& launch = *machine.launch;
  for (int i = 0; i < launch.count; ++i) {
    const Argument& argument = launch.arguments[i];
    if (!argument.is_tensor || !argument.writable || argument.bytes == 0) continue;
    memcpy(reinterpret_cast<void*>(argument.value), result_of(i), argument.bytes);
  }
}

}  // namespace

// What kernels call

void fail(const char* file, int line, const char* format, ...) {
  append_place();
  va_list values;
  va_start(values, format);
  const size_t used = strlen(machine.message);
  vsnprintf(machine.message + used, machine.message_bytes - used, format, values);
  va_end(values);
  append(" (");
  const char* slash = strrchr(file, '/');
  append("%s:%d)", slash == nullptr ? file : slash + 1, line);
  abandon();
}

int barrier(Vote vote, int predicate, const char* file, int line) {
  static constexpr const char* NAMES[] = {"__syncthreads", "__syncthreads_or", "__syncthreads_and",
                                          "__syncthreads_count"};
  Thread& thread = machine.threads[machine.current];
  thread.site = {NAMES[static_cast<int>(vote)], file, line};
  thread.vote = predicate != 0;
  thread.state = State::AT_BARRIER;
  yield();
  if (vote == Vote::OR) return machine.vote_result != 0;
  if (vote == Vote::AND) return machine.vote_result == machine.launch->block;
  return machine.vote_result;
}

int lane() { return machine.current % LANES; }

Exchange& exchange() {
  return machine.warps[machine.current / LANES].exchanges[machine.threads[machine.current].odd];
}

void meet(const char* what, unsigned mask, void (*combine)(Exchange&), const char* file, int line) {
  const int first = machine.current / LANES * LANES;
  if (mask != 0xffffffffu) fail(file, line, "%s: mask must name all lanes, got 0x%x", what, mask);
  if (first + LANES > machine.launch->block) {
    fail(file, line, "%s: the last warp of a block of %d threads has too few lanes", what,
         machine.launch->block);
  }
  Thread& thread = machine.threads[machine.current];
  Warp& warp = machine.warps[machine.current / LANES];
  thread.site = {what, file, line};
  thread.state = State::IN_WARP;
  if (++warp.arrived == LANES) {
    for (int i = first; i < first + LANES; ++i) {
      if (machine.threads[i].site != thread.site) fail_divergence(machine.current, i);
    }
    if (combine != nullptr) combine(exchange());
    for (int i = first; i < first + LANES; ++i) machine.threads[i].state = State::READY;
    warp.arrived = 0;
  }
  yield();
  thread.odd = !thread.odd;
}

bool is_shared(const void* pointer, size_t bytes) {
  return machine.shared->contains(pointer, bytes);
}

void copy_async(void* shared, const void* global, int bytes, bool valid, const char* file,
                int line) {
  if (reinterpret_cast<uintptr_t>(shared) % bytes != 0) {
    fail(file, line, "cp_async: the shared address must be a multiple of %d", bytes);
  }
  if (!is_shared(shared, bytes)) fail(file, line, "cp_async: must write to shared memory");
  if (valid && reinterpret_cast<uintptr_t>(global) % bytes != 0) {
    fail(file, line, "cp_async: the global address must be a multiple of %d", bytes);
  }
  if (valid && is_shared(global, 1)) fail(file, line, "cp_async: must read global memory");
  // Faults here, at the call, when the source is out of bounds.
  if (valid) memcpy(shared, global, bytes);
  memset(shared, machine.poison, bytes);
  Thread& thread = machine.threads[machine.current];
  thread.copies.push_back({shared, global, bytes, valid, thread.group});
}

void copy_commit() { ++machine.threads[machine.current].group; }

void copy_wait(int groups_in_flight) {
  Thread& thread = machine.threads[machine.current];
  const long long last = thread.group - groups_in_flight;  // groups below it must have arrived
  size_t kept = 0;
  for (const Copy& copy : thread.copies) {
    if (copy.group >= last) {
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

// In the namespace of the kernels, whose declaration of their shared memory declares this.
namespace pointlib {
EMULATOR_API unsigned char (*emulated_shared_memory())
    [] { return reinterpret_cast<unsigned char (*)[]>(emulator::machine.shared->data()); }
}  // namespace pointlib

// Runs one launch under every schedule. 0, or 1 and a message.
extern "C" EMULATOR_API int emulator_launch(const emulator::Launch* launch, char* message,
                                            long long message_bytes) {
  using namespace emulator;
  machine.launch = launch;
  machine.message = message;
  machine.message_bytes = message_bytes;
  message[0] = '\0';
  Catching catching;
  std::vector<std::vector<unsigned char>> first_results;
  machine.shared = std::make_unique<Guarded>(launch->shared_bytes, 0);
  int failed = 0;
  if (sigsetjmp(machine.abandon, 1) == 0) {
    for (int i = 0; i < launch->num_seeds; ++i) {
      machine.seed = launch->seeds[i];
      machine.poison = i % 2 == 0 ? 0xff : 0xcd;
      copy_in();
      machine.in_kernel = true;
      run_grid();
      machine.in_kernel = false;
      compare(first_results);
    }
    copy_out();
  } else {
    failed = 1;
  }
  machine.in_kernel = false;
  machine.regions.clear();
  machine.shared.reset();
  return failed;
}
