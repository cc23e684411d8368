/* probe LIBRARY LIBTORCH_LIB: loads the library and prints the LibTorch version
 * that it was built against. One sentence and status 1 where it does not load
 * or where its ABI is not the header's. */
#define HYPATIA_NO_LINK
#include <dlfcn.h>
#include <hypatia/hypatia.h>
#include <stdio.h>
#include <string.h>

typedef uint32_t (*AbiVersion)(void);
typedef const char* (*LibTorchVersion)(void);

static void* open_library(const char* path, const char* libtorch) {
  static const char* const names[] = {"libc10.so", "libtorch_cpu.so"};
  void* library = dlopen(path, RTLD_NOW);
  if (library != NULL) return library;
  /* Its own run-time path may name another machine's folder; libraries that are
   * already loaded are taken by name. */
  for (size_t i = 0; i < sizeof names / sizeof *names; ++i) {
    char file[4096];
    snprintf(file, sizeof file, "%s/%s", libtorch, names[i]);
    if (dlopen(file, RTLD_NOW | RTLD_GLOBAL) == NULL) return NULL;
  }
  return dlopen(path, RTLD_NOW);
}

int main(int argc, char** argv) {
  void* library;
  /* Read through memcpy: ISO C has no cast from an object to a function. */
  AbiVersion abi = NULL;
  LibTorchVersion version = NULL;
  void* symbol;
  if (argc != 3) {
    fputs("expected probe LIBRARY LIBTORCH_LIB", stderr);
    return 1;
  }
  library = open_library(argv[1], argv[2]);
  if (library == NULL) {
    fputs(dlerror(), stderr);
    return 1;
  }
  symbol = dlsym(library, "hypatia_abi_version");
  memcpy(&abi, &symbol, sizeof abi);
  symbol = dlsym(library, "hypatia_libtorch_version");
  memcpy(&version, &symbol, sizeof version);
  if (abi == NULL || version == NULL) {
    fputs("a library without Hypatia's C ABI", stderr);
    return 1;
  }
  if (abi() != HYPATIA_ABI_VERSION) {
    fprintf(stderr, "ABI version %u where the header has %u", (unsigned)abi(),
            (unsigned)HYPATIA_ABI_VERSION);
    return 1;
  }
  puts(version());
  return 0;
}
