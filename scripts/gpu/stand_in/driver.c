/* A CUDA driver without a GPU: it says what an H100 says of itself, and does nothing. Whatever is read from it is zero. With this, programs
   compile the kernels that they would run. With STAND_IN_COUNTS in the environment it says at the end how often the device would have been told
   something. */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MEMORY (80ull << 30)

/* Addresses and handles are told apart, and never followed. */
static uint64_t unused = 1ull << 46;

static uint64_t take(size_t bytes) { return __atomic_fetch_add(&unused, (bytes + 511) / 512 * 512, __ATOMIC_RELAXED); }

static int handle(void **made) {
  *made = (void *)take(1);
  return 0;
}

static struct {
  uint64_t launches, to_device, from_device, on_device, waits;
} counts;

static void count(uint64_t *calls) { __atomic_fetch_add(calls, 1, __ATOMIC_RELAXED); }

__attribute__((destructor)) static void say_counts(void) {
  if (getenv("STAND_IN_COUNTS"))
    fprintf(stderr, "launches %lu, copies to the device %lu, from it %lu, on it %lu, waits %lu\n", counts.launches, counts.to_device,
            counts.from_device, counts.on_device, counts.waits);
}

/* The device. */

int cuInit(unsigned flags) { return 0; }
/* NVRTC asks for tables of its own, and does without if there are none. */
int cuGetExportTable(const void **table, const void *id) { return 500; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = MEMORY, 0; }
int cuMemGetInfo_v2(size_t *available, size_t *total) { return *available = *total = MEMORY, 0; }

/* By the numbers of CUdevice_attribute. */
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
  case 1: *value = 1024; break;         /* threads per block */
  case 2: *value = 1024; break;         /* along x */
  case 3: *value = 1024; break;         /* along y */
  case 4: *value = 64; break;           /* along z */
  case 5: *value = INT32_MAX; break;    /* blocks along x */
  case 6: *value = UINT16_MAX; break;   /* along y */
  case 7: *value = UINT16_MAX; break;   /* along z */
  case 10: *value = 32; break;          /* threads per warp */
  case 16: *value = 132; break;         /* multiprocessors */
  case 75: *value = 9; break;           /* compute capability, major */
  case 76: *value = 0; break;           /* and minor */
  case 97: *value = 227 * 1024; break;  /* shared memory per block, opted in */
  default: *value = 1;
  }
  return 0;
}

/* Contexts, streams, events. */

int cuDevicePrimaryCtxRetain(void **context, int device) { return handle(context); }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuCtxGetCurrent(void **context) { return handle(context); }
int cuCtxSynchronize(void) { return 0; }
int cuStreamCreate(void **stream, unsigned flags) { return handle(stream); }
int cuStreamDestroy_v2(void *stream) { return 0; }
int cuStreamSynchronize(void *stream) { return count(&counts.waits), 0; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return 0; }
int cuEventCreate(void **event, unsigned flags) { return handle(event); }
int cuEventDestroy_v2(void *event) { return 0; }
int cuEventQuery(void *event) { return 0; }
int cuEventRecord(void *event, void *stream) { return 0; }
int cuEventSynchronize(void *event) { return count(&counts.waits), 0; }

/* Memory. */

int cuMemAlloc_v2(uint64_t *address, size_t bytes) { return *address = take(bytes), 0; }
int cuMemAllocAsync(uint64_t *address, size_t bytes, void *stream) { return cuMemAlloc_v2(address, bytes); }
int cuMemFree_v2(uint64_t address) { return 0; }
int cuMemFreeAsync(uint64_t address, void *stream) { return 0; }
int cuMemAllocHost_v2(void **memory, size_t bytes) { return *memory = calloc(1, bytes), *memory ? 0 : 2; }
int cuMemFreeHost(void *memory) { return free(memory), 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) { return count(&counts.to_device), 0; }
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
  count(&counts.from_device);
  return memset(to, 0, bytes), 0;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) { return count(&counts.on_device), 0; }
int cuMemsetD8Async(uint64_t address, unsigned char value, size_t bytes, void *stream) { return count(&counts.on_device), 0; }

struct side {
  size_t x, y;
  unsigned type;
  void *host;
  uint64_t device;
  void *array;
  size_t pitch;
};

/* CUDA_MEMCPY2D. */
struct copy {
  struct side from, to;
  size_t bytes, height;
};

int cuMemcpy2DAsync_v2(const struct copy *copy, void *stream) {
  const unsigned host = 1;
  count(copy->to.type == host ? &counts.from_device : copy->from.type == host ? &counts.to_device : &counts.on_device);
  for (size_t row = 0; copy->to.type == host && row < copy->height; row++)
    memset((char *)copy->to.host + (copy->to.y + row) * copy->to.pitch + copy->to.x, 0, copy->bytes);
  return 0;
}

/* Kernels. */

int cuModuleLoadData(void **module, const void *image) { return handle(module); }
int cuModuleUnload(void *module) { return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) { return handle(function); }
int cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
int cuTensorMapEncodeTiled(void *map) { return 0; }
int cuTensorMapEncodeIm2col(void *map) { return 0; }
int cuTensorMapEncodeIm2colWide(void *map) { return 0; }
int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned dx, unsigned dy, unsigned dz, unsigned shared, void *stream,
                   void **arguments, void **more) {
  return count(&counts.launches), 0;
}

/* Errors. */

int cuGetErrorName(int error, const char **text) { return *text = "CUDA_ERROR", 0; }
int cuGetErrorString(int error, const char **text) { return *text = "of the stand-in", 0; }
