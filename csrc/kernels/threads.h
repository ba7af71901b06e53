// SPDX-License-Identifier: Apache-2.0
// A small pool of threads that share one loop at a time. Which thread runs which part never changes a result:
// the kernels split work only where parts do not meet.
#pragma once

#include <cstdint>
#include <memory>

namespace pyquant::kernels {

class Threads {
 public:
  /// `count` threads with the caller's, 1 or more, or as many as the system gives; more than the CPU has only
  /// wastes time.
  explicit Threads(int count);
  /// In the child of a fork, where the other threads are not, it leaves memory behind instead of waiting.
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  int count() const;

  /// Calls body(begin, end, thread) for parts of 0 .. n, each a multiple of `grain` long (but the last), and
  /// returns when all are done. thread < count() is the number of the thread, for scratch of its own. Runs in
  /// the caller alone where there is one part, and in the child of a fork. Does not allocate. Bodies do not
  /// throw.
  template <typename Body>
  void run(int64_t n, int64_t grain, const Body& body) {
    start(n, grain, &call<Body>, &body);
  }

 private:
  using Call = void (*)(const void* body, int64_t begin, int64_t end, int thread);

  template <typename Body>
  static void call(const void* body, int64_t begin, int64_t end, int thread) {
    (*static_cast<const Body*>(body))(begin, end, thread);
  }
  void start(int64_t n, int64_t grain, Call call, const void* body);

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace pyquant::kernels
