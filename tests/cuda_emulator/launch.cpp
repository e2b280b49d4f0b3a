// One launch: its tensors copied behind guards, the grid run once under each schedule, the results
// compared and copied back.
#include "launch.h"

#include "machine.h"

namespace emulator {

namespace {

bool has_result(const Argument& argument) {
  return argument.is_tensor && argument.writable && argument.bytes > 0;
}

// Copies arguments [first, last) of `order`, which overlap, into one region.
void copy_region(const std::vector<int>& order, size_t first, size_t last, uint64_t stop,
                 bool at_end) {
  const Argument* arguments = machine.launch->arguments;
  const uint64_t origin = arguments[order[first]].value;
  // Large numbers of either sign, so that a sum with what stands outside a tensor shows them.
  const unsigned char canary = at_end ? 0x7f : 0xfe;
  auto region = std::make_unique<Guarded>(stop - origin, origin, at_end, canary);
  memcpy(region->data(), reinterpret_cast<const void*>(origin), stop - origin);
  bool writable = false;
  for (size_t i = first; i < last; ++i) {
    const uint64_t offset = arguments[order[i]].value - origin;
    machine.values[order[i]] = reinterpret_cast<uint64_t>(region->data()) + offset;
    machine.region_of[order[i]] = static_cast<int>(machine.regions.size());
    writable |= arguments[order[i]].writable != 0;
  }
  if (!writable) region->forbid_writes();
  machine.regions.push_back(std::move(region));
}

// Copies the tensors behind their guards; tensors that overlap share one copy, as they do on a
// device.
void copy_in(bool at_end) {
  const Launch& launch = *machine.launch;
  machine.regions.clear();
  machine.region_of.assign(launch.count, -1);
  machine.values.resize(launch.count);
  machine.arguments.resize(launch.count);
  std::vector<int> order;
  for (int i = 0; i < launch.count; ++i) {
    machine.arguments[i] = &machine.values[i];
    machine.values[i] = launch.arguments[i].value;
    if (launch.arguments[i].is_tensor && launch.arguments[i].bytes > 0) order.push_back(i);
  }
  const auto start = [&](int i) { return uint64_t{launch.arguments[i].value}; };
  std::sort(order.begin(), order.end(), [&](int a, int b) { return start(a) < start(b); });
  for (size_t first = 0, last; first < order.size(); first = last) {
    uint64_t stop = 0;
    for (last = first; last < order.size() && (last == first || start(order[last]) < stop);
         ++last) {
      const uint64_t bytes = launch.arguments[order[last]].bytes;
      stop = std::max(stop, start(order[last]) + bytes);
    }
    copy_region(order, first, last, stop, at_end);
  }
}

const unsigned char* result_of(int argument) {
  return reinterpret_cast<const unsigned char*>(machine.values[argument]);
}

using Results = std::vector<std::vector<unsigned char>>;

Results results() {
  Results copies(machine.launch->count);
  for (int i = 0; i < machine.launch->count; ++i) {
    const Argument& argument = machine.launch->arguments[i];
    if (has_result(argument)) copies[i].assign(result_of(i), result_of(i) + argument.bytes);
  }
  return copies;
}

// Whether this schedule wrote the same bits as the first one.
bool agrees(const Results& first_results) {
  for (int i = 0; i < machine.launch->count; ++i) {
    const std::vector<unsigned char>& expected = first_results[i];
    if (expected.empty() || memcmp(expected.data(), result_of(i), expected.size()) == 0) continue;
    size_t byte = 0;
    while (expected[byte] == result_of(i)[byte]) ++byte;
    append(
        "race, or use of undefined memory: argument %d, byte %zu of %zu differs between "
        "schedules %lld and %lld",
        i, byte, expected.size(), machine.launch->seeds[0], machine.seed);
    return false;
  }
  return true;
}

// Runs every schedule; false where the results differ. A fault leaves it by a jump.
bool run_schedules(Results& first_results) {
  for (int i = 0; i < machine.launch->num_seeds; ++i) {
    machine.seed = machine.launch->seeds[i];
    machine.poison = i % 2 == 0 ? 0xff : 0xcd;
    const bool at_end = i % 2 == 0;
    copy_in(at_end);
    run_grid();
    if (i == 0) first_results = results();
    if (i > 0 && !agrees(first_results)) return false;
  }
  return true;
}

}  // namespace

}  // namespace emulator

// In the namespace of the kernels, whose declaration of their shared memory declares this.
namespace pointlib {
EMULATOR_API unsigned char (*emulated_shared_memory())[];
unsigned char (*emulated_shared_memory())
    [] { return reinterpret_cast<unsigned char (*)[]>(emulator::machine.shared->data()); }
}  // namespace pointlib

// Runs a launch under every schedule. Returns 0, or 1 and leaves a message and nothing changed.
extern "C" EMULATOR_API int emulator_launch(const emulator::Launch* launch, char* message,
                                            long long message_bytes) {
  using namespace emulator;
  machine.launch = launch;
  machine.message = message;
  machine.message_bytes = message_bytes;
  message[0] = '\0';
  if (stack_of(0) == nullptr) {
    append("no address space for %d stacks of %zu bytes", MAX_THREADS, STACK_BYTES);
    return 1;
  }
  Results first_results;
  volatile bool agreed = false;
  try {
    machine.shared = std::make_unique<Guarded>(launch->shared_bytes, 0, true, 0x5a);
    Catching catching;
    if (sigsetjmp(machine.abandoned, 1) == 0) agreed = run_schedules(first_results);
  } catch (const std::bad_alloc&) {
    append("no memory for copies of the tensors");
  }
  for (int i = 0; agreed && i < launch->count; ++i) {
    const Argument& argument = launch->arguments[i];
    if (has_result(argument)) {
      memcpy(reinterpret_cast<void*>(argument.value), result_of(i), argument.bytes);
    }
  }
  machine.regions.clear();
  machine.shared.reset();
  return agreed ? 0 : 1;
}
