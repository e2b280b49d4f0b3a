// CUDA's execution model: blocks one after the other, each thread a fiber that runs until it waits
// or ends. Which of the threads that can run goes first is a fixed order, forward or backward, or
// one drawn from a seed: what threads do between two barriers thereby happens in either order, and
// a result that depends on it shows.
#include <numeric>

#include "machine.h"

namespace emulator {

Index3 threadIdx, blockIdx, blockDim, gridDim;
Machine machine;

namespace {

constexpr long long FORWARD = 0, BACKWARD = 1;

// Brings the numbers below `count` into the schedule's order.
void arrange(std::vector<int>& order, int count) {
  if (machine.seed <= BACKWARD && order.size() == static_cast<size_t>(count)) return;
  order.resize(count);
  std::iota(order.begin(), order.end(), 0);
  if (machine.seed == BACKWARD) std::reverse(order.begin(), order.end());
  if (machine.seed <= BACKWARD) return;
  for (int i = count; i > 1; --i) std::swap(order[i - 1], order[machine.random() % i]);
}

// Not on the stack, which a fault leaves by a jump.
std::vector<int> block_order, warp_order, lane_order, last_lane_order;

void yield() {
  ++machine.switches;
  emulator_switch(&machine.threads[machine.current].stack_pointer, machine.scheduler);
}

void thread_main() {
  machine.launch->body(machine.arguments.data());
  machine.states[machine.current] = State::DONE;
  yield();
}

// Runs a warp's lanes until each waits for the block's barrier or has ended.
void run_warp(int warp) {
  const int first = warp * LANES, count = std::min(LANES, machine.launch->block - first);
  std::vector<int>& order = count == LANES ? lane_order : last_lane_order;
  for (bool progress = true; progress;) {
    progress = false;
    arrange(order, count);
    for (int lane : order) {
      const int thread = first + lane;
      if (machine.states[thread] != State::READY) continue;
      machine.current = thread;
      threadIdx.x = thread;
      emulator_switch(&machine.scheduler, machine.threads[thread].stack_pointer);
      progress = true;
    }
  }
  if (machine.warps[warp].meeting.arrived == 0) return;
  int other = first;
  while (machine.states[other] == State::IN_WARP) ++other;
  fail_divergence(machine.warps[warp].meeting.first, other);
}

bool is_same(const Site& a, const Site& b) {
  if (a.line != b.line) return false;
  return (a.what == b.what || strcmp(a.what, b.what) == 0) &&
         (a.file == b.file || strcmp(a.file, b.file) == 0);
}

// The current thread joins those that wait for each other, which must be at the same site.
void join(Meeting& meeting, State state, const Site& site, int vote) {
  const int thread = machine.current;
  machine.threads[thread].site = site;
  machine.states[thread] = state;
  if (meeting.arrived++ == 0) meeting = {1, thread, 0};
  meeting.votes += vote;
  if (!is_same(site, machine.threads[meeting.first].site)) fail_divergence(meeting.first, thread);
}

// All threads wait at a barrier or have ended: lets them go on. Whether any waits.
bool pass_barrier() {
  const int block = machine.launch->block;
  if (machine.barrier.arrived == 0) return false;
  if (machine.barrier.arrived < block) {
    int ended = 0;
    while (machine.states[ended] != State::DONE) ++ended;
    fail_divergence(machine.barrier.first, ended);
  }
  machine.votes = machine.barrier.votes;
  machine.barrier.arrived = 0;
  std::fill_n(machine.states, block, State::READY);
  return true;
}

void check_canaries() {
  if (const ptrdiff_t byte = machine.shared->overwritten()) {
    append_place();
    append("out-of-bounds write, found after the block: ");
    append_address(machine.shared->data() + byte);
    abandon();
  }
  for (const auto& region : machine.regions) {
    if (const ptrdiff_t byte = region->overwritten()) {
      append_place();
      append("out-of-bounds write, found after the block: ");
      append_address(region->data() + byte);
      abandon();
    }
  }
}

void run_block() {
  const int block = machine.launch->block, num_warps = (block + LANES - 1) / LANES;
  memset(machine.shared->data(), machine.poison, machine.shared->bytes());
  for (int i = 0; i < block; ++i) {
    Thread& thread = machine.threads[i];
    thread.stack_pointer = prepare_fiber(i, thread_main);
    thread.odd = false;
    thread.group = 0;
    thread.copies.clear();
  }
  std::fill_n(machine.states, block, State::READY);
  for (int i = 0; i < num_warps; ++i) machine.warps[i].meeting.arrived = 0;
  machine.barrier.arrived = 0;
  do {
    arrange(warp_order, num_warps);
    for (int warp : warp_order) run_warp(warp);
  } while (pass_barrier());
  check_canaries();
}

}  // namespace

void run_grid() {
  const Launch& launch = *machine.launch;
  blockDim = {static_cast<unsigned>(launch.block), 1, 1};
  gridDim = {launch.grid[0], launch.grid[1], launch.grid[2]};
  threadIdx = {0, 0, 0};
  machine.random.seed(machine.seed);
  for (auto* order : {&block_order, &warp_order, &lane_order, &last_lane_order}) order->clear();
  arrange(block_order, launch.grid[0] * launch.grid[1] * launch.grid[2]);
  for (int number : block_order) {
    const unsigned row = number / gridDim.x;
    blockIdx = {number % gridDim.x, row % gridDim.y, row / gridDim.y};
    run_block();
  }
}

// What kernels call

int barrier(Vote vote, int predicate, const char* file, int line) {
  static constexpr const char* NAMES[] = {"__syncthreads", "__syncthreads_or", "__syncthreads_and",
                                          "__syncthreads_count"};
  const Site site = {NAMES[static_cast<int>(vote)], file, line};
  join(machine.barrier, State::AT_BARRIER, site, predicate != 0);
  yield();
  if (vote == Vote::OR) return machine.votes != 0;
  if (vote == Vote::AND) return machine.votes == machine.launch->block;
  return machine.votes;
}

Exchange& exchange() {
  return machine.warps[machine.current / LANES].exchanges[machine.threads[machine.current].odd];
}

void meet(const char* what, unsigned mask, void (*combine)(Exchange&), const char* file, int line) {
  const int thread = machine.current, first = thread / LANES * LANES;
  if (mask != 0xffffffffu) fail(file, line, "%s: mask must name all lanes, got 0x%x", what, mask);
  if (first + LANES > machine.launch->block) {
    fail(file, line,
         "%s: must be called by 32 lanes, but a block of %d threads has a smaller last warp", what,
         machine.launch->block);
  }
  Meeting& meeting = machine.warps[thread / LANES].meeting;
  join(meeting, State::IN_WARP, {what, file, line}, 0);
  if (meeting.arrived == LANES) {
    if (combine != nullptr) combine(exchange());
    std::fill_n(machine.states + first, LANES, State::READY);
    meeting.arrived = 0;
  }
  yield();  // the last to arrive too, so that the schedule's order holds from here on
  machine.threads[thread].odd = !machine.threads[thread].odd;
}

}  // namespace emulator
