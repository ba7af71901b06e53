// SPDX-License-Identifier: Apache-2.0
// Threads wait a short while for the next loop before they sleep: operators follow each other within
// microseconds. A loop never waits for a thread that has not joined it (one that sleeps, or that the system
// has interrupted).
#include "kernels/threads.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__unix__)
#include <pthread.h>
#endif

namespace pyquant::kernels {
namespace {

constexpr int kSpins = 4000;  // tens of microseconds
constexpr int kMost = 1024;   // threads

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

std::atomic<int64_t> forks{0};  // since the program began, until this process

/// Which process this is: another number in the child of a fork.
int64_t this_process() {
#if defined(__unix__)
  static const int registered = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
  static_cast<void>(registered);
#endif
  return forks.load(std::memory_order_relaxed);
}

// The gate of a loop in one word: how many workers are inside, whether more may join, and the loop's number.
constexpr uint64_t kInside = 0xffff;
constexpr uint64_t kOpen = uint64_t{1} << 16;
constexpr int kNumberShift = 17;

}  // namespace

struct Threads::State {
  std::vector<std::thread> workers;
  const int64_t process = this_process();
  std::atomic<uint64_t> gate{0};
  std::atomic<int64_t> next{0};
  std::atomic<int> sleeping{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::condition_variable wake;
  // The loop. Written while the gate is closed and nobody is inside.
  int64_t n = 0;
  int64_t part = 1;
  Call call = nullptr;
  const void* body = nullptr;

  void work(int thread) {
    for (;;) {
      const int64_t begin = next.fetch_add(part, std::memory_order_relaxed);
      if (begin >= n) return;
      call(body, begin, std::min(begin + part, n), thread);
    }
  }

  static bool is_new(uint64_t gate, uint64_t seen) {
    return (gate & kOpen) != 0 && gate >> kNumberShift != seen;
  }

  void sleep(uint64_t seen) {
    std::unique_lock<std::mutex> lock(mutex);
    sleeping.fetch_add(1);
    wake.wait(lock, [&] { return stop.load() || is_new(gate.load(), seen); });
    sleeping.fetch_sub(1);
  }

  void worker(int thread) {
    uint64_t seen = 0;
    int spins = 0;
    while (!stop.load(std::memory_order_acquire)) {
      uint64_t now = gate.load(std::memory_order_acquire);
      if (!is_new(now, seen)) {
        if (++spins < kSpins) {
          pause_briefly();
        } else {
          sleep(seen);
          spins = 0;
        }
        continue;
      }
      if (!gate.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel)) continue;
      seen = now >> kNumberShift;
      spins = 0;
      work(thread);
      gate.fetch_sub(1, std::memory_order_release);
    }
  }
};

Threads::Threads(int count) : state_(std::make_unique<State>()) {
  count = std::min(count, kMost);
  state_->workers.reserve(static_cast<size_t>(std::max(count, 1)));
  try {
    for (int i = 1; i < count; ++i) {
      state_->workers.emplace_back([state = state_.get(), i] { state->worker(i); });
    }
  } catch (const std::system_error&) {  // the system has no more
  }
}

Threads::~Threads() {
  if (state_->process != this_process()) {
    // A fork: its copy of the state has no threads that one could wait for.
    static_cast<void>(state_.release());
    return;
  }
  {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->stop.store(true);
  }
  state_->wake.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

int Threads::count() const { return static_cast<int>(state_->workers.size()) + 1; }

void Threads::start(int64_t n, int64_t grain, Call call, const void* body) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t grains = (n + grain - 1) / grain;
  State& s = *state_;
  // In the child of a fork there are no workers, and their locks may be held for good.
  if (grains == 1 || s.workers.empty() || s.process != this_process()) return call(body, 0, n, 0);
  // A few parts for each thread: one that the system interrupts does not hold up the rest.
  const int64_t parts = std::min<int64_t>(grains, 4 * count());
  s.n = n;
  s.part = (grains + parts - 1) / parts * grain;
  s.call = call;
  s.body = body;
  s.next.store(0, std::memory_order_relaxed);
  const uint64_t number = (s.gate.load(std::memory_order_relaxed) >> kNumberShift) + 1;
  s.gate.store(number << kNumberShift | kOpen);
  if (s.sleeping.load() > 0) {
    // The lock: a worker that has looked at the gate already is in wait(), or will look again.
    {
      const std::lock_guard<std::mutex> lock(s.mutex);
    }
    s.wake.notify_all();
  }
  s.work(0);
  s.gate.fetch_and(~kOpen, std::memory_order_acq_rel);
  for (int spins = 0; (s.gate.load(std::memory_order_acquire) & kInside) != 0; ++spins) {
    if (spins < kSpins) {
      pause_briefly();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace pyquant::kernels
