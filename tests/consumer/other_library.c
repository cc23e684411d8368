/* Answers of another build of the library; run.sh preloads it to see what
 * hypatia.hpp says then. */
#include <stdint.h>

uint32_t hypatia_abi_version(void) { return OTHER_ABI; }
const char* hypatia_libtorch_version(void) { return OTHER_LIBTORCH; }
