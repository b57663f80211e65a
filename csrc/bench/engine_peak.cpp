// What this processor gives when nothing is loaded or stored: one line an instruction, 10^9 operations a second over
// all threads, the best of several runs. See engine_work.py.
//
//   engine_peak THREADS        with VNNI in AVX-512              in AVX2
//   fp32                       vfmadd231ps: 32 operations        vfmadd231ps: 16
//   int8                       vpdpbusd: 128                     vpmaddwd and vpaddd: 32, the engine's exact 8-bit
//   product int16                      vpdpwssd: 64                      the same two
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

constexpr int kLoops = 20'000'000;
constexpr int kRuns = 5;
constexpr int kSums = 10;  // independent chains: latency times throughput of any loop, and no more than fit

// In registers by name: left to itself, GCC keeps the sums in memory, and the loop measures that.
#define SUMS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9)
#define LOOP(CLEAR, X) \
  int loops = kLoops;  \
  __asm__ volatile(CLEAR(10) SUMS(CLEAR) "1:\n\t" SUMS(X) "decl %0\n\tjnz 1b\n\t"                                   \
                   "vzeroupper"                                                                                     \
                   : "+r"(loops)                                                                                    \
                   :                                                                                                \
                   : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
                     "xmm11")

#define CLEAR_YMM(i) "vpxor %%ymm" #i ", %%ymm" #i ", %%ymm" #i "\n\t"
#define FP32_YMM(i) "vfmadd231ps %%ymm10, %%ymm10, %%ymm" #i "\n\t"
#define PAIRS_YMM(i) "vpmaddwd %%ymm10, %%ymm10, %%ymm11\n\tvpaddd %%ymm11, %%ymm" #i ", %%ymm" #i "\n\t"
#define CLEAR_ZMM(i) "vpxord %%zmm" #i ", %%zmm" #i ", %%zmm" #i "\n\t"
#define FP32_ZMM(i) "vfmadd231ps %%zmm10, %%zmm10, %%zmm" #i "\n\t"
#define BYTES_ZMM(i) "vpdpbusd %%zmm10, %%zmm10, %%zmm" #i "\n\t"
#define PAIRS_ZMM(i) "vpdpwssd %%zmm10, %%zmm10, %%zmm" #i "\n\t"

void fp32_avx2() { LOOP(CLEAR_YMM, FP32_YMM); }
void pairs_avx2() { LOOP(CLEAR_YMM, PAIRS_YMM); }
void fp32_avx512() { LOOP(CLEAR_ZMM, FP32_ZMM); }
void bytes_avx512() { LOOP(CLEAR_ZMM, BYTES_ZMM); }
void pairs_avx512() { LOOP(CLEAR_ZMM, PAIRS_ZMM); }

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
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni");
  std::printf("fp32 %.1f\n", best_rate(wide ? fp32_avx512 : fp32_avx2, wide ? 32 : 16, num_threads));
  std::printf("int8 %.1f\n", best_rate(wide ? bytes_avx512 : pairs_avx2, wide ? 128 : 32, num_threads));
  std::printf("int16 %.1f\n", best_rate(wide ? pairs_avx512 : pairs_avx2, wide ? 64 : 32, num_threads));
  return 0;
}
