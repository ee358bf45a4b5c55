// Where the operators are registered. The tests compile CUDA's kernels for a CPU and register
// them under another name, beside the CPU's own: see cuda/device.h.

#pragma once

#include <torch/library.h>

#if defined(AFF_SEG_EMULATED)
#define AFF_SEG_LIBRARY(m) TORCH_LIBRARY_FRAGMENT(aff_seg_emulated, m)
#define AFF_SEG_CUDA_IMPL(m) TORCH_LIBRARY_IMPL(aff_seg_emulated, CPU, m)
#else
#define AFF_SEG_LIBRARY(m) TORCH_LIBRARY_FRAGMENT(aff_seg, m)
#define AFF_SEG_CUDA_IMPL(m) TORCH_LIBRARY_IMPL(aff_seg, CUDA, m)
#endif
