// What this processor's AVX2 units give when nothing is loaded or stored: one line an instruction, 10^9 operations a
// second over all threads, the best of several runs. See engine_work.py.
//
//   engine_peak THREADS
//   fp32 64.6     vfmadd231ps: 16 operations
//   int8 97.0     vpmaddwd and vpaddd: 32 operations, the two instructions of the engine's 8-bit product
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

constexpr int kLoops = 20'000'000;
constexpr int kRuns = 5;
constexpr int kSums = 10;  // independent chains: latency times throughput of either loop, and no more than fit

// In registers by name: left to itself, GCC keeps the sums in memory, and the loop measures that.
#define SUMS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9)
#define CLEAR(i) "vpxor %%ymm" #i ", %%ymm" #i ", %%ymm" #i "\n\t"
#define FP32(i) "vfmadd231ps %%ymm10, %%ymm10, %%ymm" #i "\n\t"
#define INT8(i) "vpmaddwd %%ymm10, %%ymm10, %%ymm11\n\tvpaddd %%ymm11, %%ymm" #i ", %%ymm" #i "\n\t"
#define LOOP(X)       \
  int loops = kLoops; \
  __asm__ volatile("vpxor %%ymm10, %%ymm10, %%ymm10\n\t" SUMS(CLEAR) "1:\n\t" SUMS(X) "decl %0\n\tjnz 1b\n\t" \
                   "vzeroupper"                                                                               \
                   : "+r"(loops)                                                                              \
                   :                                                                                          \
                   : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",    \
                     "xmm10", "xmm11")

void multiply_add_fp32() { LOOP(FP32); }
void multiply_add_int8() { LOOP(INT8); }

double best_rate(void (*loop)(), double operations, int num_threads) {
  double best = 0;
  for (int run = 0; run < kRuns; ++run) {
    std::vector<std::thread> threads;
    const auto began = std::chrono::steady_clock::now();
    for (int i = 0; i < num_threads; ++i) threads.emplace_back(loop);
    for (std::thread& thread : threads) thread.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - began;
    best = std::max(best, operations * kLoops * kSums * num_threads / seconds.count() / 1e9);
  }
  return best;
}

}  // namespace

int main(int count, char** arguments) {
  const int num_threads = count == 2 ? std::atoi(arguments[1]) : 0;
  if (num_threads < 1) {
    std::fprintf(stderr, "usage: engine_peak THREADS\n");
    return 2;
  }
  std::printf("fp32 %.1f\n", best_rate(multiply_add_fp32, 16, num_threads));
  std::printf("int8 %.1f\n", best_rate(multiply_add_int8, 32, num_threads));
  return 0;
}
