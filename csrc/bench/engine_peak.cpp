// What this processor gives when nothing is loaded or stored: one line an instruction, 10^9 operations a second over
// all threads, the best of several runs. See engine_work.py.
//
//   engine_peak THREADS        with VNNI in AVX-512              in AVX2
//   fp32                       vfmadd231ps: 32 operations        vfmadd231ps: 16
//   int8                       vpdpbusd: 128                     vpmaddwd and vpaddd: 32, the engine's exact 8-bit
//   product int16                      vpdpwssd: 64                      the same two tiles                      with
//   AMX, tdpbssd: 32768, a product of bytes, of which one of 12 bits takes two
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int kLoops = 20'000'000;
constexpr int kTileLoops = kLoops / 16;  // cycles of a product of tiles
constexpr int kTileSums = 6;
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

#if defined(__linux__)
struct alignas(64) TileShapes {
  unsigned char palette = 1, start_row = 0, reserved[14] = {};
  unsigned short row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  unsigned char rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

#define CLEAR_TMM(i) "tilezero %%tmm" #i "\n\t"
#define BYTES_TMM(i) "tdpbssd %%tmm7, %%tmm6, %%tmm" #i "\n\t"
#define TILES(X) X(0) X(1) X(2) X(3) X(4) X(5)

void bytes_amx() {
  int loops = kTileLoops;
  const TileShapes shapes;
  __asm__ volatile("ldtilecfg %1\n\t" TILES(CLEAR_TMM) CLEAR_TMM(6)
                       CLEAR_TMM(7) "1:\n\t" TILES(BYTES_TMM) "decl %0\n\tjnz 1b\n\ttilerelease"
                   : "+r"(loops)
                   : "m"(shapes)
                   : "cc");
}

// As csrc/engine/dispatch.cpp does.
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d >> 24 & 3) != 3) return false;
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}
#endif

// Operations of one run of the loop in one thread.
double best_rate(void (*loop)(), double operations, int num_threads) {
  double best = 0;
  for (int run = 0; run < kRuns; ++run) {
    std::vector<std::thread> threads;
    const auto began = std::chrono::steady_clock::now();
    for (int i = 0; i < num_threads; ++i) threads.emplace_back(loop);
    for (std::thread& thread : threads) thread.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - began;
    best = std::max(best, operations * num_threads / seconds.count() / 1e9);
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
  const double steps = static_cast<double>(kLoops) * kSums;
  std::printf("fp32 %.1f\n", best_rate(wide ? fp32_avx512 : fp32_avx2, (wide ? 32 : 16) * steps, num_threads));
  std::printf("int8 %.1f\n", best_rate(wide ? bytes_avx512 : pairs_avx2, (wide ? 128 : 32) * steps, num_threads));
  std::printf("int16 %.1f\n", best_rate(wide ? pairs_avx512 : pairs_avx2, (wide ? 64 : 32) * steps, num_threads));
#if defined(__linux__)
  constexpr double kTileOperations = 2.0 * 16 * 16 * 64 * kTileLoops * kTileSums;
  if (has_amx()) std::printf("tiles %.1f\n", best_rate(bytes_amx, kTileOperations, num_threads));
#endif
  return 0;
}
