/* The C ABI of libhypatia.so: the operators on LibTorch's own tensor handles,
 * for C and for every language that can call C.
 *
 * No function unwinds, throws or ends the process. Any thread may call any
 * function; messages are kept per thread.
 */
#ifndef HYPATIA_HYPATIA_H_
#define HYPATIA_HYPATIA_H_

#include <stdint.h>

/* The ABI that this header describes; hypatia_abi_version() is the library's.
 * It changes when a function changes or goes, not when one is added. */
#define HYPATIA_ABI_VERSION 1u

/* Statuses. */
#define HYPATIA_OK 0
/* An argument was wrong, or LibTorch reported an error. */
#define HYPATIA_ERROR 1
/* A bug in Hypatia. */
#define HYPATIA_INTERNAL 2

#ifdef __cplusplus
extern "C" {
#endif

/* An at::Tensor. A handle is an at::Tensor*, as tch (Tensor::as_ptr),
 * AOTInductor's shim (AtenTensorHandle) and C++ (&tensor) hold it; cast it.
 *
 * Ownership: functions borrow the handles they take, for the call only. A
 * handle they write is a new at::Tensor on the heap that belongs to the caller,
 * who ends it with hypatia_tensor_free (C++ may `delete` it, and tch may adopt
 * it with Tensor::from_ptr). The memory behind it is LibTorch's, counted. */
typedef struct HypatiaTensor HypatiaTensor;

/* Version of the loaded library's ABI; does no work. */
uint32_t hypatia_abi_version(void);

/* `major.minor.patch` of the LibTorch that the library was built against, the
 * only minor version it works with. The string lives for ever. */
const char* hypatia_libtorch_version(void);

/* What this build is, as JSON: version, LibTorch, CUDA architectures, CPU
 * features, revision. Made at the first call; the string lives for ever. */
const char* hypatia_build_info(void);

/* Message of this thread's last call that returned a status: one sentence,
 * `hypatia::op: expected ..., got ...`, or LibTorch's own; empty after
 * HYPATIA_OK. The string lives until this thread's next such call. */
const char* hypatia_last_error(void);

/* *result = relu(input . weight^T + bias), differentiable where an argument
 * requires a gradient.
 *
 *   input   [*, K]   any strides; * may be empty and any size 0
 *   weight  [N, K]
 *   bias    [N], or NULL for none
 *   *result [*, N], written on HYPATIA_OK only; the caller owns it
 *
 * All of one dtype (float32, float64, float16, bfloat16) and one device. */
int32_t hypatia_fused_linear_relu(const HypatiaTensor* input,
                                  const HypatiaTensor* weight,
                                  const HypatiaTensor* bias,
                                  HypatiaTensor** result);

/* Gradients of hypatia_fused_linear_relu.
 *
 *   grad_output  [*, N]
 *   output       [*, N], what the forward call returned
 *   *grad_input  [*, K]
 *   *grad_weight [N, K]
 *   *grad_bias   [N]
 *
 * A result whose pointer is NULL is not computed. The others are written on
 * HYPATIA_OK only; the caller owns them. */
int32_t hypatia_fused_linear_relu_backward(const HypatiaTensor* grad_output,
                                           const HypatiaTensor* input,
                                           const HypatiaTensor* weight,
                                           const HypatiaTensor* output,
                                           HypatiaTensor** grad_input,
                                           HypatiaTensor** grad_weight,
                                           HypatiaTensor** grad_bias);

/* *result = `layers` linear layers in turn, each but the last followed by a
 * ReLU, the last only if relu_last is not 0; differentiable as above.
 *
 *   input      [*, K]
 *   weights    `layers` handles, none NULL: [N, K], the K of each the N of the
 *              one before
 *   biases     `layers` handles, [N] or NULL for none each; or NULL for none
 *              at all
 *   layers     at least 1
 *   *result    [*, N of the last layer], written on HYPATIA_OK only; the caller
 *              owns it
 *
 * The arrays are the caller's, read during the call only, and their handles are
 * borrowed as all others. Strides, dtypes and devices as above. */
int32_t hypatia_fused_mlp(const HypatiaTensor* input,
                          const HypatiaTensor* const* weights,
                          const HypatiaTensor* const* biases, int64_t layers,
                          int32_t relu_last, HypatiaTensor** result);

/* Ends a tensor that a function above returned, once; NULL is allowed. */
void hypatia_tensor_free(HypatiaTensor* tensor);

/* A TorchScript module. A handle is a torch::jit::Module*, as tch
 * (CModule's pointer) and C++ (&module) hold it; cast it.
 *
 * Ownership: as for tensors. A module that is written is a new
 * torch::jit::Module on the heap that belongs to the caller, who ends it with
 * hypatia_module_free (C++ may `delete` it). The object behind it is
 * LibTorch's, counted. */
typedef struct HypatiaModule HypatiaModule;

/* *result = a module that computes what `module` does, with the same tensors
 * as parameters and buffers; `module` is untouched. Written on HYPATIA_OK only;
 * the caller owns it. */
int32_t hypatia_optimize(const HypatiaModule* module, HypatiaModule** result);

/* *result = what hypatia_optimize would do and why, as JSON. Written on
 * HYPATIA_OK only; the caller owns it and ends it with hypatia_string_free. */
int32_t hypatia_explain(const HypatiaModule* module, char** result);

/* Ends a module that hypatia_optimize wrote, once; NULL is allowed. */
void hypatia_module_free(HypatiaModule* module);

/* Ends a string that hypatia_explain wrote, once; NULL is allowed. */
void hypatia_string_free(char* text);

#ifdef __cplusplus
} /* extern "C" */
#endif

/* A program that reaches the operators through LibTorch alone (a TorchScript
 * file, the dispatcher) mentions no symbol of the library, and a linker with
 * --as-needed would drop it. This mention keeps it. A program that opens the
 * library itself, with dlopen, defines HYPATIA_NO_LINK first. */
#if defined(__GNUC__) && !defined(HYPATIA_NO_LINK)
static uint32_t (*const hypatia_keep_linked)(void)
    __attribute__((used)) = hypatia_abi_version;
#endif

#endif /* HYPATIA_HYPATIA_H_ */
