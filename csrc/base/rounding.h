// Two roundings that the standard library has only as slow calls.
#pragma once

#include <cmath>

namespace rgalign {

// To the nearest integer, ties to even, for |x| < 2^51 in the default float environment: adding 1.5 * 2^52 leaves no
// bits for a fraction.
inline double round_to_nearest(double x) {
  constexpr double kShift = 6755399441055744.0;
  return (x + kShift) - kShift;
}

// The least float at or above a non-negative double.
inline float round_up(double value) {
  const float nearest = static_cast<float>(value);
  return static_cast<double>(nearest) >= value ? nearest : std::nextafter(nearest, HUGE_VALF);
}

}  // namespace rgalign
