// Python module aff_seg._C. Importing it loads the operators' registrations; it has no functions.

#include <Python.h>

extern "C" PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition{};
  definition.m_base = PyModuleDef_HEAD_INIT;
  definition.m_name = "_C";
  definition.m_size = -1;
  return PyModule_Create(&definition);
}
