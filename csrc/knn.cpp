#include "knn.h"

#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(aff_seg, m) {
  m.def("knn(Tensor query, Tensor database, int k) -> (Tensor, Tensor)");
}
