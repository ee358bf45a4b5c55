// Python module aff_seg._C. Importing it loads the operators' registrations; it has no functions,
// and one constant: whether CUDA kernels are built in.

#include <Python.h>

extern "C" PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition{};
  definition.m_base = PyModuleDef_HEAD_INIT;
  definition.m_name = "_C";
  definition.m_size = -1;
  PyObject* module = PyModule_Create(&definition);
#if defined(AFF_SEG_WITH_CUDA)
  constexpr bool kCuda = true;
#else
  constexpr bool kCuda = false;
#endif
  if (module && PyModule_AddObjectRef(module, "CUDA", kCuda ? Py_True : Py_False) < 0) {
    Py_CLEAR(module);
  }
  return module;
}
