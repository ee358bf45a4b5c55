#include <torch/library.h>
TORCH_LIBRARY_FRAGMENT(aff_seg, m) {
  m.def("knn(Tensor query, Tensor database, int k) -> (Tensor, Tensor)");
  m.def("cluster_attention(Tensor q, Tensor k, Tensor v, Tensor pos, Tensor clusters, int m, Tensor pos_weight, Tensor pos_bias, Tensor blank_k, Tensor blank_v) -> (Tensor, Tensor)");
  m.def("cluster_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor pos, Tensor clusters, int m, Tensor pos_weight, Tensor pos_bias, Tensor blank_k, Tensor blank_v, Tensor out, Tensor lse) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
