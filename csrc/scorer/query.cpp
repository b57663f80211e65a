#include "scorer/query.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/float_environment.h"
#include "base/rounding.h"

namespace rgalign {
namespace {

constexpr double kEpsilon = 1e-6;  // rgalign/models/layers.py: EPS

// Four partial sums in a fixed order. Squares of floats are exact in float64.
double squared_norm(const float* x, std::int64_t dim) {
  double sums[4] = {};
  for (std::int64_t d = 0; d < dim; ++d) sums[d % 4] += static_cast<double>(x[d]) * static_cast<double>(x[d]);
  return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

// The largest bit pattern without its sign: 0 for zeros only, and from kInfinity on for what is not finite.
constexpr std::uint32_t kInfinity = 0x7F800000U;
std::uint32_t largest_magnitude(const float* x, std::int64_t count) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, x + i, sizeof bits);
    largest = std::max(largest, bits & 0x7FFFFFFFU);
  }
  return largest;
}

bool reads_latent(const ScoreInput& input, std::int64_t session) {
  return input.latents != nullptr && input.omega[session] < 1.0F;
}

// Checks a session in the order of ScoreFault::Kind, and finds whether it has a latent query.
std::optional<ScoreFault> check(const ScoreInput& input, std::int64_t dim, std::int64_t session, bool& has_query) {
  const float omega = input.omega[session];
  if (!(omega >= 0.0F && omega <= 1.0F)) return ScoreFault{ScoreFault::Kind::kOmega, session};
  if (largest_magnitude(input.user + session * dim, dim) >= kInfinity) {
    return ScoreFault{ScoreFault::Kind::kUser, session};
  }
  if (!reads_latent(input, session)) return std::nullopt;
  const std::uint32_t largest = largest_magnitude(input.latents + session * input.latent_dim, input.latent_dim);
  if (largest >= kInfinity) return ScoreFault{ScoreFault::Kind::kLatent, session};
  has_query = largest != 0;
  return std::nullopt;
}

// W e for the sessions in `active`, in blocks of weight rows that the threads share out.
void project(const ScoreInput& input, std::int64_t dim, const std::vector<std::int64_t>& active, float* out,
             const ScoreOptions& options, ThreadPool& pool) {
  const auto count = static_cast<std::int64_t>(active.size());
  const std::int64_t blocks = (dim + kProjectRows - 1) / kProjectRows;
  pool.run(blocks, options.num_threads, [&](std::int64_t block, std::int64_t) {
    const DefaultFloatEnvironment environment;
    const std::int64_t first = block * kProjectRows;
    const std::int64_t num_rows = std::min(kProjectRows, dim - first);
    for (std::int64_t i = 0; i < count; i += kMaxProjectQueries) {
      const std::int64_t together = std::min<std::int64_t>(kMaxProjectQueries, count - i);
      const float* inputs[kMaxProjectQueries] = {};
      float results[kMaxProjectQueries][kProjectRows];
      for (std::int64_t j = 0; j < together; ++j) {
        inputs[j] = input.latents + active[static_cast<std::size_t>(i + j)] * input.latent_dim;
      }
      options.kernels->project(input.weight + first * input.latent_dim, num_rows, input.latent_dim, inputs,
                               static_cast<int>(together), results[0], kProjectRows);
      for (std::int64_t j = 0; j < together; ++j) {
        float* q = out + active[static_cast<std::size_t>(i + j)] * dim + first;
        for (std::int64_t r = 0; r < num_rows; ++r) {
          q[r] = input.bias == nullptr ? results[j][r] : results[j][r] + input.bias[first + r];
        }
      }
    }
  });
}

}  // namespace

void unit(const float* x, std::int64_t dim, float* out) {
  const double norm = std::max(std::sqrt(squared_norm(x, dim)), kEpsilon);
  for (std::int64_t d = 0; d < dim; ++d) out[d] = static_cast<float>(static_cast<double>(x[d]) / norm);
}

QueriesOrFault make_queries(const ScoreInput& input, std::int64_t dim, const ScoreOptions& options, ThreadPool& pool) {
  QueriesOrFault made;
  Queries& queries = made.queries;
  const auto size = static_cast<std::size_t>(input.num_sessions * dim);
  queries.dim = dim;
  queries.has_query.resize(static_cast<std::size_t>(input.num_sessions));
  std::vector<std::int64_t> active;
  for (std::int64_t session = 0; session < input.num_sessions; ++session) {
    bool has_query = false;
    made.fault = check(input, dim, session, has_query);
    if (made.fault) return made;
    queries.has_query[static_cast<std::size_t>(session)] = has_query;
    if (has_query) active.push_back(session);
  }

  queries.user.resize(size);
  queries.fused.resize(size);
  if (!active.empty()) {
    queries.query.resize(size);
    project(input, dim, active, queries.query.data(), options, pool);
  }
  for (std::int64_t session = 0; session < input.num_sessions; ++session) {
    float* user = queries.user.data() + session * dim;
    float* fused = queries.fused.data() + session * dim;
    unit(input.user + session * dim, dim, user);
    if (!reads_latent(input, session)) {
      std::copy(user, user + dim, fused);
      continue;
    }
    const double omega = input.omega[session];
    if (!queries.has_query[static_cast<std::size_t>(session)]) {
      for (std::int64_t d = 0; d < dim; ++d) fused[d] = static_cast<float>(omega * user[d]);
      continue;
    }
    float* query = queries.query.data() + session * dim;
    if (largest_magnitude(query, dim) >= kInfinity) {
      made.fault = ScoreFault{ScoreFault::Kind::kQuery, session};
      return made;
    }
    unit(query, dim, query);
    for (std::int64_t d = 0; d < dim; ++d) {
      fused[d] = static_cast<float>(omega * user[d] + (1.0 - omega) * query[d]);
    }
  }
  return made;
}

QuantizedQuery quantize_query(const float* v, std::int64_t dim, std::int64_t dim8, int levels, std::uint8_t* bytes) {
  QuantizedQuery out;
  double largest = 0.0;
  for (std::int64_t d = 0; d < dim; ++d) largest = std::max(largest, std::fabs(static_cast<double>(v[d])));
  if (largest > 0.0) out.scale = largest / levels;
  const double inverse = 1.0 / out.scale;
  double norm = 0.0;      // ||v||
  double coded = 0.0;     // ||scale * codes||
  double residual = 0.0;  // ||v - scale * codes||
  std::fill(bytes, bytes + dim8, std::uint8_t{0});
  for (std::int64_t d = 0; d < dim; ++d) {
    const double exact = v[d];
    const double code = std::clamp(round_to_nearest(exact * inverse), -1.0 * levels, 1.0 * levels);
    const double near = code * out.scale;
    bytes[d] = static_cast<std::uint8_t>(static_cast<int>(code) + levels);
    norm += exact * exact;
    coded += near * near;
    residual += (exact - near) * (exact - near);
  }
  norm = std::sqrt(norm);
  coded = std::sqrt(coded);
  residual = std::sqrt(residual);

  // With row = s c + r (s, c its scale and codes) and v = t u + w (t, u the query's):
  //   v·row − t s u·c  =  w·row + t u·r,    |.| <= ||w|| ||row|| + ||t u|| ||r||          (Cauchy–Schwarz)
  // The chain of fused multiply-adds is off v·row by at most γ ||v|| ||row||, γ = D ε / (1 − D ε), ε = 2^-24 (Higham,
  // Accuracy and Stability of Numerical Algorithms, 3.1). The approximate score has three roundings: of the integer,
  // and of its product with s and with t; its magnitude is at most ||t u|| (||row|| + ||r||). The factor at the end
  // covers the float64 arithmetic of all of this.
  const double epsilon = std::ldexp(1.0, -24);
  const double gamma = static_cast<double>(dim) * epsilon / (1.0 - static_cast<double>(dim) * epsilon);
  constexpr double kSlack = 1.0 + 1e-6;
  out.per_norm = (residual + gamma * norm + 4.0 * epsilon * coded) * kSlack;
  out.per_residual = coded * (1.0 + 4.0 * epsilon) * kSlack;
  return out;
}

}  // namespace rgalign
