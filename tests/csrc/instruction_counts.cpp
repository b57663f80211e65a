// The hot paths, each a piece of work of fixed size, for callgrind to count the instructions of:
//
//   instruction_counts NAME [REPEATS]     prints units of work a repeat; what is to be counted runs inside `counted`
//   instruction_counts                    prints the names
//
// bench/instruction_counts.py counts them and compares with the committed numbers. AVX2: callgrind knows no AVX-512.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "batcher/core.h"
#include "batcher/pack.h"
#include "engine/kernels.h"
#include "scorer/scorer.h"
#include "topk/topk.h"

namespace engine = rgalign::engine;

// Callgrind counts from here to its return, with all that it calls.
extern "C" __attribute__((noinline)) void counted(const std::function<void()>& work, int repeats) {
  for (int i = 0; i < repeats; ++i) work();
}

namespace {

struct Work {
  std::function<void()> run;
  double units;  // of one run
};

template <typename T>
std::vector<T> numbers(std::size_t count, double scale) {
  static std::mt19937 random(1);
  std::vector<T> values(count);
  for (T& value : values) {
    value = static_cast<T>(scale * (static_cast<double>(random()) / static_cast<double>(random.max()) * 2 - 1));
  }
  return values;
}

// A unit: a request submitted, dispatched and answered, in batches of 32.
Work batcher() {
  return {[] {
            rgalign::Limits limits;
            limits.max_queue = 64;
            rgalign::BatcherCore core(limits);
            const std::vector<rgalign::Outcome> rows(32, rgalign::Outcome::kRow);
            rgalign::Nanoseconds now = 0;
            core.step(rgalign::Ready{0}, now);
            for (std::uint64_t request = 0; request < 32 * 64; ++request) {
              core.step(
                  rgalign::Submit{request, 100, now + 1'000'000'000, rgalign::kNobody, rgalign::Priority::kInteractive},
                  now);
              if (request % 32 != 31) continue;
              now += 1'000'000;
              core.step(rgalign::Ready{0}, now);
              core.step(rgalign::Finish{0, rows.data()}, now);
              core.step(rgalign::Ready{0}, now);
              core.step(rgalign::Finish{0, rows.data()}, now);
            }
          },
          32 * 64};
}

// A unit: a token.
Work pack() {
  const auto tokens = std::make_shared<std::vector<std::int32_t>>(100, 7);
  const auto buffers = std::make_shared<std::vector<std::int32_t>>(3 * 8192);
  return {[=] {
            const std::vector<rgalign::TokenRow> rows(32, {tokens->data(), 100});
            std::int32_t* out = buffers->data();
            rgalign::pack(rgalign::Limits{}, {}, rows.data(), 32, {out, out + 8192, out + 2 * 8192});
          },
          32 * 100};
}

// A unit: a catalogue row of 128 coordinates scored for one session.
Work scan(bool int8) {
  constexpr std::int64_t kRows = 4096, kDim = 128, kSessions = 1;
  const auto rows = numbers<float>(kRows * kDim, 1.0);
  const auto index = std::make_shared<rgalign::ScorerIndex>(rows.data(), kRows, kDim, int8);
  const auto user = std::make_shared<std::vector<float>>(numbers<float>(kSessions * kDim, 1.0));
  return {[=] {
            const std::vector<float> omega(kSessions, 1.0F);
            std::vector<std::int64_t> winners(3), rescored(1);
            std::vector<float> scores(3), user_part(3), query_part(3);
            rgalign::ScoreInput input;
            input.num_sessions = kSessions;
            input.user = user->data();
            input.omega = omega.data();
            const rgalign::ScoreOutput output{
                3, winners.data(), scores.data(), user_part.data(), query_part.data(), rescored.data()};
            const rgalign::Kernels* kernels = rgalign::kernels_of(rgalign::InstructionSet::kAvx2);
            if (rgalign::score(*index, input, output, {kernels, 1, int8})) std::abort();
          },
          kRows};
}

// A unit: a score looked at.
Work topk() {
  const auto scores = std::make_shared<std::vector<float>>(numbers<float>(4 * 5000, 1.0));
  return {[=] {
            std::vector<std::int64_t> rows(4 * 3);
            std::vector<float> best(4 * 3);
            if (rgalign::topk({scores->data(), 4, 5000, nullptr, 0}, {rows.data(), best.data(), 3}, 1)) std::abort();
          },
          4 * 5000};
}

// A unit: a thousand multiply-adds of a product [12, 576] x [576, 256].
Work product(bool int8) {
  constexpr std::int64_t kRows = 12, kIn = 576, kPanels = 16;
  const auto weight8 = std::make_shared<std::vector<std::int8_t>>(numbers<std::int8_t>(kPanels * 16 * kIn, 127));
  const auto weight32 = std::make_shared<std::vector<float>>(numbers<float>(kPanels * 16 * kIn, 1));
  const auto codes = std::make_shared<std::vector<std::int16_t>>(numbers<std::int16_t>(kRows * kIn, 127));
  const auto rows = std::make_shared<std::vector<float>>(numbers<float>(kRows * kIn, 1));
  const auto ones = std::make_shared<std::vector<float>>(kPanels * 16, 1.0F);
  const auto out = std::make_shared<std::vector<float>>(kRows * kPanels * 16);
  return {[=] {
            engine::Product task{};
            task.weight = {weight32->data(), weight8->data(), ones->data(), nullptr, nullptr, kIn};
            task.last_panel = kPanels;
            task.num_rows = kRows;
            task.rows = rows->data();
            task.codes = codes->data();
            task.row_scales = ones->data();
            task.row_stride = kIn;
            task.epilogue = engine::Epilogue::kStore;
            task.out = out->data();
            task.out_stride = kPanels * 16;
            const engine::Kernels* kernels = engine::kernels_of(engine::InstructionSet::kAvx2);
            int8 ? kernels->matmul_int8(task) : kernels->matmul_fp32(task);
          },
          kRows * kIn * kPanels * 16 / 1000.0};
}

// A unit: an element of a row, normed and quantised.
Work norm_and_quantise() {
  constexpr std::int64_t kIn = 576;
  const auto row = std::make_shared<std::vector<float>>(numbers<float>(kIn, 1));
  const auto codes = std::make_shared<std::vector<std::int16_t>>(engine::num_codes(1, kIn));
  return {[=] {
            std::vector<float> normed(kIn);
            const engine::Kernels* kernels = engine::kernels_of(engine::InstructionSet::kAvx2);
            kernels->rms_norm(row->data(), row->data(), kIn, 1e-5F, normed.data());
            kernels->quantize(normed.data(), kIn, 127, 0, codes->data());
          },
          kIn};
}

// A unit: a key of 64 coordinates that one row attends to; 6 rows, 256 shared keys.
Work attention() {
  constexpr std::int64_t kDim = 64, kKeys = 256, kRows = 6;
  const auto store = std::make_shared<std::vector<float>>(numbers<float>(2 * kKeys * kDim, 1));
  const auto rows = std::make_shared<std::vector<float>>(numbers<float>(2 * kRows * kDim, 1));
  const auto scores = std::make_shared<std::vector<float>>(kRows * (kKeys + engine::kPanel));
  return {[=] {
            const engine::Run run{0, kKeys};
            engine::Attention task{};
            task.keys = store->data();
            task.values = store->data() + kKeys * kDim;
            task.value_stride = kDim;
            task.head_dim = kDim;
            task.scale = 0.125F;
            task.runs = &run;
            task.num_runs = 1;
            task.num_keys = kKeys;
            task.num_rows = kRows;
            for (std::int64_t row = 0; row < kRows; ++row) {
              task.queries[row] = rows->data() + row * kDim;
              task.visible[row] = kKeys;
              task.out[row] = rows->data() + (kRows + row) * kDim;
            }
            task.scores = scores->data();
            task.score_stride = kKeys + engine::kPanel;
            engine::kernels_of(engine::InstructionSet::kAvx2)->attend(task);
          },
          kRows * kKeys};
}

const std::map<std::string, std::function<Work()>> kWork = {
    {"batcher: a request", batcher},
    {"batcher: a packed token", pack},
    {"scorer: a row, fp32", [] { return scan(false); }},
    {"scorer: a row, int8", [] { return scan(true); }},
    {"topk: a score", topk},
    {"engine: 1,000 products, fp32", [] { return product(false); }},
    {"engine: 1,000 products, int8", [] { return product(true); }},
    {"engine: norm and quantise an element", norm_and_quantise},
    {"engine: attend to a key", attention},
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    for (const auto& [name, make] : kWork) std::puts(name.c_str());
    return 0;
  }
  const auto found = kWork.find(argv[1]);
  const int repeats = argc > 2 ? std::atoi(argv[2]) : 1;
  if (found == kWork.end() || repeats < 1) return 2;
  const Work work = found->second();
  counted(work.run, repeats);
  std::printf("%.17g\n", work.units);
  return 0;
}
