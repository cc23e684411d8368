/* The C ABI from C99, without a tensor: versions, messages, null handles. */
#include <hypatia/hypatia.h>
#include <stdio.h>
#include <string.h>

static int failures = 0;

static void check(int ok, const char* what) {
  if (ok) return;
  printf("consumer.c: failed: %s (last error: %s)\n", what,
         hypatia_last_error());
  ++failures;
}

int main(void) {
  HypatiaTensor* result = NULL;
  const char* info = hypatia_build_info();

  check(hypatia_abi_version() == HYPATIA_ABI_VERSION, "ABI version");
  check(strncmp(hypatia_libtorch_version(), "2.", 2) == 0, "LibTorch version");
  check(info[0] == '{' && info[strlen(info) - 1] == '}', "build info is JSON");
  check(strstr(info, "\"abi_version\": 1") != NULL, "build info's ABI version");
  check(info == hypatia_build_info(), "build info stays");
  check(hypatia_last_error()[0] == '\0', "no message before the first call");

  check(hypatia_fused_linear_relu(NULL, NULL, NULL, &result) == HYPATIA_ERROR,
        "a null input is an error");
  check(strcmp(hypatia_last_error(),
               "hypatia::fused_linear_relu: expected a tensor for input, got a "
               "null pointer") == 0,
        "message for a null input");
  check(result == NULL, "nothing is written on an error");

  check(hypatia_fused_linear_relu(NULL, NULL, NULL, NULL) == HYPATIA_ERROR,
        "a null result is an error");
  check(strstr(hypatia_last_error(), "result") != NULL,
        "message for a null result");

  check(hypatia_fused_linear_relu_backward(NULL, NULL, NULL, NULL, NULL, NULL,
                                           NULL) == HYPATIA_ERROR,
        "null handles are an error in backward");
  check(strcmp(hypatia_last_error(),
               "hypatia::fused_linear_relu_backward: expected a tensor for "
               "grad_output, got a null pointer") == 0,
        "message for a null grad_output");

  check(hypatia_fused_mlp(NULL, NULL, NULL, 1, 0, &result) == HYPATIA_ERROR,
        "null weights are an error in mlp");
  check(strcmp(hypatia_last_error(),
               "hypatia::fused_mlp: expected a tensor for weights, got a null "
               "pointer") == 0,
        "message for null weights");

  hypatia_tensor_free(NULL);
  return failures != 0;
}
