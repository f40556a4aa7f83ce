// What the C++ files share besides the maths: fixed-width vectors, threads and memory.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#else
inline int omp_get_thread_num() { return 0; }
#endif

namespace codetr {

// W numbers that live in vector registers. Compilers split what is wider than the machine's own registers.
template <typename T, int W>
struct Pack {
  typedef T type __attribute__((vector_size(W * sizeof(T))));
};

template <typename V, typename T>
inline __attribute__((always_inline)) V load(const T* from) {
  V pack;
  std::memcpy(&pack, from, sizeof(V));
  return pack;
}

template <typename V, typename T>
inline __attribute__((always_inline)) void store(T* to, const V& pack) {
  std::memcpy(to, &pack, sizeof(V));
}

// The sums of the lanes of four packs.
template <typename T, int W>
inline __attribute__((always_inline)) void sum_lanes(const typename Pack<T, W>::type (&packs)[4], T* sums) {
  if constexpr (W > 4) {
    using Half = typename Pack<T, W / 2>::type;
    Half halves[4];
    for (int i = 0; i < 4; ++i) {
      Half parts[2];
      std::memcpy(parts, &packs[i], sizeof(parts));
      halves[i] = parts[0] + parts[1];
    }
    sum_lanes<T, W / 2>(halves, sums);
  } else {
    for (int i = 0; i < 4; ++i) sums[i] = (packs[i][0] + packs[i][1]) + (packs[i][2] + packs[i][3]);
  }
}

// Memory for intermediate results, aligned to cache lines; false where there is none.
template <typename T>
class Scratch {
 public:
  explicit Scratch(std::int64_t count) : memory_(std::aligned_alloc(64, (std::size_t(count) * sizeof(T) / 64 + 1) * 64)) {}
  ~Scratch() { std::free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  explicit operator bool() const { return memory_ != nullptr; }
  T* data() const { return static_cast<T*>(memory_); }

 private:
  void* memory_;
};

// Large results come from the system as untouched pages; with 2 MB pages the first touch costs a fraction of the time.
// Only advice: where it is not heeded, everything works as before.
inline void expect_large_pages(void* memory, std::int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr std::uintptr_t kPage = std::uintptr_t(1) << 21;
  const std::uintptr_t begin = (reinterpret_cast<std::uintptr_t>(memory) + kPage - 1) & ~(kPage - 1);
  const std::uintptr_t end = (reinterpret_cast<std::uintptr_t>(memory) + std::uintptr_t(bytes)) & ~(kPage - 1);
  if (end > begin + kPage) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

template <typename T>
void fill_zero(T* memory, std::int64_t count, int threads) {
  constexpr std::int64_t kPart = (std::int64_t(1) << 20) / sizeof(T);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && count > kPart)
  for (std::int64_t at = 0; at < count; at += kPart)
    std::memset(memory + at, 0, sizeof(T) * (count - at < kPart ? count - at : kPart));
}

}  // namespace codetr
