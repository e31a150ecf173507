// A LAPACK for tests: cyclic Jacobi rotations behind the one routine that the library asks for.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernelgrowth/lapack.hpp"

namespace kernelgrowth::testing {

inline void jacobi(char* job, char*, int* order, double* a, int* lda, double* values, double*, int*, int*, int*,
                   int* info) {
  const int n = *order;
  auto at = [&](int i, int j) -> double& { return a[i + j * *lda]; };
  std::vector<double> v(static_cast<std::size_t>(n) * static_cast<std::size_t>(n));
  auto vector = [&](int i, int j) -> double& { return v[static_cast<std::size_t>(i + j * n)]; };
  for (int i = 0; i < n; ++i) {
    vector(i, i) = 1;
    for (int j = i + 1; j < n; ++j) at(i, j) = at(j, i);
  }
  for (int sweep = 0; sweep < 60; ++sweep) {
    double off = 0, all = 0;
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) {
        all += at(i, j) * at(i, j);
        if (i != j) off += at(i, j) * at(i, j);
      }
    }
    if (off <= 1e-34 * all) break;
    for (int p = 0; p < n; ++p) {
      for (int q = p + 1; q < n; ++q) {
        if (at(p, q) == 0) continue;
        const double theta = (at(q, q) - at(p, p)) / (2 * at(p, q));
        const double t = (theta >= 0 ? 1 : -1) / (std::abs(theta) + std::hypot(theta, 1.0));
        const double c = 1 / std::hypot(t, 1.0), s = t * c;
        for (int i = 0; i < n; ++i) {
          const double x = at(i, p), y = at(i, q);
          at(i, p) = c * x - s * y;
          at(i, q) = s * x + c * y;
        }
        for (int i = 0; i < n; ++i) {
          const double x = at(p, i), y = at(q, i);
          at(p, i) = c * x - s * y;
          at(q, i) = s * x + c * y;
        }
        for (int i = 0; i < n; ++i) {
          const double x = vector(i, p), y = vector(i, q);
          vector(i, p) = c * x - s * y;
          vector(i, q) = s * x + c * y;
        }
      }
    }
  }
  std::vector<int> places(static_cast<std::size_t>(n));
  for (int i = 0; i < n; ++i) places[static_cast<std::size_t>(i)] = i;
  std::sort(places.begin(), places.end(), [&](int i, int j) { return at(i, i) < at(j, j); });
  for (int j = 0; j < n; ++j) values[j] = at(places[static_cast<std::size_t>(j)], places[static_cast<std::size_t>(j)]);
  if (*job == 'V') {
    for (int j = 0; j < n; ++j) {
      for (int i = 0; i < n; ++i) at(i, j) = vector(i, places[static_cast<std::size_t>(j)]);
    }
  }
  *info = 0;
}

inline void use_jacobi() {
  Lapack table;
  table.dsyevd = &jacobi;
  set_lapack(table);
}

}  // namespace kernelgrowth::testing
