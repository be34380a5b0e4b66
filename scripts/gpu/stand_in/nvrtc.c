/* NVRTC, whose "PTX" is the machine code itself: the driver loads either, and this without compiling once more. What is not here is in the
   library that this is linked with. */

#include <stddef.h>

int nvrtcGetCUBINSize(void *program, size_t *size);
int nvrtcGetCUBIN(void *program, char *code);

int nvrtcGetPTXSize(void *program, size_t *size) { return nvrtcGetCUBINSize(program, size); }
int nvrtcGetPTX(void *program, char *code) { return nvrtcGetCUBIN(program, code); }
