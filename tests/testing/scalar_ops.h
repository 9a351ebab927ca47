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

// x [B * length, heads * head_dim]: pairs (2i, 2i+1) of each head turn by position * frequency[i].
template <typename T>
Values<T> ScalarRope(Values<T> x, const std::vector<double>& frequencies, size_t length,
                     size_t heads, size_t head_dim) {
  for (size_t head = 0; head < x.size() / head_dim; ++head) {
    const double position = static_cast<double>(head / heads % length);
    for (size_t i = 0; i < frequencies.size(); ++i) {
      const double angle = position * frequencies[i];
      T& a = x[head * head_dim + 2 * i];
      T& b = x[head * head_dim + 2 * i + 1];
      const T turned = a * std::cos(angle) - b * std::sin(angle);
      b = a * std::sin(angle) + b * std::cos(angle);
      a = turned;
    }
  }
  return x;
}

struct ScalarAttentionShape {
  size_t batch, length, heads, kv_heads, head_dim;
};

template <typename T>
Values<T> ScalarAttention(const ScalarAttentionShape& s, const Values<T>& q, const Values<T>& k,
                          const Values<T>& v) {
  Values<T> out(q.size());
  const size_t n = s.head_dim;
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
        weights.push_back(std::exp(score / std::sqrt(static_cast<double>(n))));
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
