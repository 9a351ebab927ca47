#include "tests/bench/onednn_reference.h"

#if FEDGE_HAVE_DNNL
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#endif

namespace fedge {

#if FEDGE_HAVE_DNNL

namespace {

using dnnl::memory;
using Tag = memory::format_tag;
using Type = memory::data_type;

memory::desc Describe(int64_t rows, int64_t cols, Type type, Tag tag) {
  return memory::desc({rows, cols}, type, tag);
}

// What a product keeps alive.
struct Prepared {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  memory x, x_rounded, weight, y;
  dnnl::matmul product;
};

}  // namespace

bool HasOneDnn() { return true; }

std::function<void()> OneDnnProduct(Precision precision, const float* weight, const float* x,
                                    int64_t t, int64_t rows, int64_t cols, float* y) {
  const bool bf16 = precision == Precision::kBFloat16;
  const Type type = bf16 ? Type::bf16 : Type::f32;
  auto p = std::make_shared<Prepared>();
  const dnnl::matmul::desc desc(Describe(t, cols, type, Tag::ab),
                                Describe(cols, rows, type, Tag::any),
                                Describe(t, rows, Type::f32, Tag::ab));
  const dnnl::matmul::primitive_desc primitive(desc, p->engine);
  p->product = dnnl::matmul(primitive);
  memory dense(Describe(cols, rows, Type::f32, Tag::ba), p->engine, const_cast<float*>(weight));
  p->weight = memory(primitive.weights_desc(), p->engine);
  dnnl::reorder(dense, p->weight).execute(p->stream, dense, p->weight);
  p->x = memory(Describe(t, cols, Type::f32, Tag::ab), p->engine, const_cast<float*>(x));
  if (bf16) p->x_rounded = memory(Describe(t, cols, type, Tag::ab), p->engine);
  p->y = memory(Describe(t, rows, Type::f32, Tag::ab), p->engine, y);
  p->stream.wait();
  return [p, bf16] {
    if (bf16) dnnl::reorder(p->x, p->x_rounded).execute(p->stream, p->x, p->x_rounded);
    p->product.execute(p->stream, {{DNNL_ARG_SRC, bf16 ? p->x_rounded : p->x},
                                   {DNNL_ARG_WEIGHTS, p->weight},
                                   {DNNL_ARG_DST, p->y}});
    p->stream.wait();
  };
}

#else

bool HasOneDnn() { return false; }

std::function<void()> OneDnnProduct(Precision, const float*, const float*, int64_t, int64_t,
                                    int64_t, float*) {
  return nullptr;
}

#endif

}  // namespace fedge
