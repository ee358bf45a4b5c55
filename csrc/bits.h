// Values seen as those of another type.

#pragma once

#include <c10/macros/Macros.h>

#include <cstring>

namespace aff_seg {

// Another type's value of the same bits, on the host and on a device.
template <typename To, typename From>
C10_HOST_DEVICE inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace aff_seg
