// The threads that carry out one step together. A step has hundreds of short phases (a matrix
// product, a norm), so entering a parallel region for each would cost more than many of them take:
// there is one region a step, and between phases the threads meet at a barrier of our own.

#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace {

// Tells the core that this is a loop that waits.
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Team {
 public:
  explicit Team(int size) : size_(size), taken_(size) {}

  int size() const { return size_; }

  // Waits for the others. Whoever waits spins for some 20 us, the length of a phase: less would
  // put it to sleep between any two phases, more would keep its core from the thread it waits
  // for where something else runs on the machine. (Decode steps of a 0.6B model in int4 on two
  // cores, alone and beside one busy process: with 5 us 10.5 and 21 ms, with 20 us 10.2 and 26 ms,
  // with 100 us 10.2 and 55 ms. Yielding instead of spinning is no better.)
  void meet() {
    if (size_ == 1) return reset();
    const uint32_t phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
      reset();
      arrived_.store(0, std::memory_order_relaxed);
      phase_.fetch_add(1, std::memory_order_acq_rel);
      phase_.notify_all();
      return;
    }
    for (int spin = 0; spin < SPINS; spin++) {
      if (phase_.load(std::memory_order_acquire) != phase) return;
      relax();
    }
    phase_.wait(phase, std::memory_order_acquire);
  }

  // Calls f(i) for each i in 0 … num_items-1, on whichever thread, and meets. Every thread begins
  // with a contiguous share of its own, the same in every step (memory that it has touched before
  // is near), and then helps the others with theirs (one that lost its core holds nobody up).
  template <typename F>
  void share(int rank, int num_items, F f) {
    for (int k = 0; k < size_; k++) {
      const int owner = (rank + k) % size_;
      const int first = start_of(owner, num_items), end = start_of(owner + 1, num_items);
      for (int i; (i = first + taken_[owner].count.fetch_add(1, std::memory_order_relaxed)) < end;)
        f(i);
    }
    meet();
  }

 private:
  static constexpr int SPINS = 1000;

  struct alignas(64) Taken {
    std::atomic<int> count{0};
  };

  int start_of(int rank, int num_items) const { return int64_t(num_items) * rank / size_; }
  void reset() {
    for (Taken& taken : taken_) taken.count.store(0, std::memory_order_relaxed);
  }

  const int size_;
  std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  std::vector<Taken> taken_;
};

// One thread's view of its team.
struct Member {
  Team& team;
  const int rank;

  template <typename F>
  void share(int num_items, F f) const {
    team.share(rank, num_items, f);
  }
};

// Runs f(member) on up to `num_threads` threads at once.
template <typename F>
void with_team(int num_threads, F f) {
  if (num_threads <= 1) {
    Team team(1);
    return f(Member{team, 0});
  }
  Team* team = nullptr;
#pragma omp parallel num_threads(num_threads)
  {
#pragma omp single
    team = new Team(omp_get_num_threads());  // may be fewer than were asked for
    f(Member{*team, omp_get_thread_num()});
  }
  delete team;
}

}  // namespace
