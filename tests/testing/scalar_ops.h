// The mathematics of the decoder, one plain loop per operation, for comparison with the fast code.
// Instantiated with std::complex<double> it gives gradients without subtraction error: the complex
// step Im f(x + ih) / h, h = 1e-50 (Squire, Trapp 1998).
#ifndef FEDGE_TESTS_TESTING_SCALAR_OPS_H_
#define FEDGE_TESTS_TESTING_SCALAR_OPS_H_

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace fedge::testing {

using Complex = std::complex<double>;
inline constexpr double kComplexStep = 1e-50;

inline double RealPart(double x) { return x; }
inline double RealPart(Complex x) { return x.real(); }

template <typename T>
using Values = std::vector<T>;

// y [t, out] = x [t, in] w^T, w [out, in]
template <typename T>
Values<T> ScalarLinear(const Values<T>& x, const Values<T>& w, size_t in, size_t out) {
  Values<T> y(x.size() / in * out);
  for (size_t i = 0; i < y.size(); ++i) {
    for (size_t j = 0; j < in; ++j) y[i] += x[i / out * in + j] * w[i % out * in + j];
  }
  return y;
}

// y += scale * B (A x), A [r, in], B transposed [r, out]
template <typename T>
void ScalarAddLora(const Values<T>& x, const Values<T>& a, const Values<T>& bt, size_t in,
                   size_t out, double scale, Values<T>& y) {
  const size_t rank = a.size() / in;
  const Values<T> u = ScalarLinear(x, a, in, rank);
  for (size_t i = 0; i < y.size(); ++i) {
    for (size_t r = 0; r < rank; ++r) y[i] += scale * u[i / out * rank + r] * bt[r * out + i % out];
  }
}

template <typename T>
Values<T> ScalarRmsNorm(const Values<T>& x, const Values<T>& weight, double epsilon) {
  const size_t n = weight.size();
  Values<T> y(x.size());
  for (size_t row = 0; row < x.size(); row += n) {
    T sum = 0;
    for (size_t i = 0; i < n; ++i) sum += x[row + i] * x[row + i];
    const T inv = 1.0 / std::sqrt(sum / static_cast<double>(n) + epsilon);
    for (size_t i = 0; i < n; ++i) y[row + i] = x[row + i] * inv * weight[i];
  }
  return y;
}

struct ScalarRopeSettings {
  std::vector<double> frequencies;
  bool halves = false;   // pairs (i, i + n/2) of the n rotated values, not (2i, 2i + 1)
  double magnitude = 1;  // of cosine and sine
};

// x [B * length, heads * head_dim]: pairs of each head turn by position * frequency.
template <typename T>
Values<T> ScalarRope(Values<T> x, const ScalarRopeSettings& rope, size_t length, size_t heads,
                     size_t head_dim) {
  const size_t pairs = rope.frequencies.size();
  for (size_t head = 0; head < x.size() / head_dim; ++head) {
    const double position = static_cast<double>(head / heads % length);
    for (size_t i = 0; i < pairs; ++i) {
      const double angle = position * rope.frequencies[i];
      const double cosine = rope.magnitude * std::cos(angle);
      const double sine = rope.magnitude * std::sin(angle);
      T& a = x[head * head_dim + (rope.halves ? i : 2 * i)];
      T& b = x[head * head_dim + (rope.halves ? i + pairs : 2 * i + 1)];
      const T turned = a * cosine - b * sine;
      b = a * sine + b * cosine;
      a = turned;
    }
  }
  return x;
}

struct ScalarAttentionShape {
  size_t batch, length, heads, kv_heads, head_dim;
  double scale = 0;   // 0: 1 / sqrt(head_dim)
  size_t window = 0;  // 0: all earlier keys
};

template <typename T>
Values<T> ScalarAttention(const ScalarAttentionShape& s, const Values<T>& q, const Values<T>& k,
                          const Values<T>& v) {
  Values<T> out(q.size());
  const size_t n = s.head_dim;
  const double scale = s.scale != 0 ? s.scale : 1 / std::sqrt(static_cast<double>(n));
  for (size_t row = 0; row < s.batch * s.length; ++row) {
    for (size_t h = 0; h < s.heads; ++h) {
      const size_t kv = h / (s.heads / s.kv_heads);
      const size_t first = row / s.length * s.length;
      Values<T> weights;
      T sum = 0;
      for (size_t key = first; key <= row; ++key) {
        T score = 0;
        for (size_t d = 0; d < n; ++d) {
          score += q[(row * s.heads + h) * n + d] * k[(key * s.kv_heads + kv) * n + d];
        }
        const bool seen = s.window == 0 || row - key < s.window;
        weights.push_back(seen ? std::exp(score * scale) : T(0));
        sum += weights.back();
      }
      for (size_t j = 0; j < weights.size(); ++j) {
        for (size_t d = 0; d < n; ++d) {
          out[(row * s.heads + h) * n + d] +=
              weights[j] / sum * v[((first + j) * s.kv_heads + kv) * n + d];
        }
      }
    }
  }
  return out;
}

template <typename T>
Values<T> ScalarSwiGlu(const Values<T>& gate, const Values<T>& up) {
  Values<T> y(gate.size());
  for (size_t i = 0; i < y.size(); ++i) y[i] = gate[i] / (1.0 + std::exp(-gate[i])) * up[i];
  return y;
}

template <typename T>
Values<T> ScalarGeluGlu(const Values<T>& gate, const Values<T>& up) {
  const double factor = std::sqrt(2 / 3.14159265358979323846);
  Values<T> y(gate.size());
  for (size_t i = 0; i < y.size(); ++i) {
    const T g = gate[i];
    y[i] = 0.5 * g * (1.0 + std::tanh(factor * (g + 0.044715 * g * g * g))) * up[i];
  }
  return y;
}

template <typename T>
Values<T> ScalarSoftCap(Values<T> x, double cap) {
  for (T& value : x) value = cap * std::tanh(value / cap);
  return x;
}

// Columns [begin, end) of x [rows, width].
template <typename T>
Values<T> ScalarColumns(const Values<T>& x, size_t width, size_t begin, size_t end) {
  Values<T> y;
  for (size_t row = 0; row < x.size(); row += width) {
    for (size_t j = begin; j < end; ++j) y.push_back(x[row + j]);
  }
  return y;
}

// Sum of -log softmax(logits)[target]; rows whose target is negative do not count.
template <typename T>
T ScalarCrossEntropy(const Values<T>& logits, const std::vector<int32_t>& targets,
                     size_t vocabulary) {
  T loss = 0;
  for (size_t i = 0; i < targets.size(); ++i) {
    if (targets[i] < 0) continue;
    const T* const row = logits.data() + i * vocabulary;
    T sum = 0;
    for (size_t j = 0; j < vocabulary; ++j) sum += std::exp(row[j]);
    loss += std::log(sum) - row[targets[i]];
  }
  return loss;
}

// d(function)/d(inputs) at each coordinate in `coordinates`. function: Values<Complex> -> Complex.
template <typename Function>
std::vector<double> ComplexStepGradient(const Function& function, const std::vector<double>& inputs,
                                        const std::vector<size_t>& coordinates) {
  Values<Complex> x(inputs.begin(), inputs.end());
  std::vector<double> gradient;
  for (const size_t i : coordinates) {
    x[i] = Complex(inputs[i], kComplexStep);
    gradient.push_back(function(x).imag() / kComplexStep);
    x[i] = inputs[i];
  }
  return gradient;
}

// The derivative along `direction`.
template <typename Function>
double ComplexStepAlong(const Function& function, const std::vector<double>& inputs,
                        const std::vector<double>& direction) {
  Values<Complex> x(inputs.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = Complex(inputs[i], kComplexStep * direction[i]);
  return function(x).imag() / kComplexStep;
}

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TESTING_SCALAR_OPS_H_
