// SPDX-License-Identifier: MIT
// What differs between the compilers of one formula: g++ for each instruction set, nvcc for CUDA.
#pragma once

// Every file that holds kernel code is compiled once per target, each time into its own namespace,
// so that the linker can never serve an AVX-512 copy of a function to the baseline. The build
// passes the name.
#ifndef FASTLOSS_TARGET
#error "the build must define FASTLOSS_TARGET (baseline, avx2, avx512, cuda or cuda_emulation)"
#endif

#if defined(__CUDACC__)
#define FASTLOSS_INLINE __host__ __device__ __forceinline__
#elif defined( \
    FASTLOSS_TARGET_IS_CUDA)  // the host emulation: quick to compile matters, speed does not
#define FASTLOSS_INLINE inline
#else
#define FASTLOSS_INLINE inline __attribute__((always_inline))
#endif

#if defined(__AVX512F__)
#define FASTLOSS_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define FASTLOSS_VECTOR_BYTES 32
#else
#define FASTLOSS_VECTOR_BYTES 16
#endif

// Before a loop over an array that has to stay in registers. (nvcc's host pass knows no such
// pragma.)
#if defined(__CUDA_ARCH__)
#define FASTLOSS_UNROLL _Pragma("unroll")
#else
#define FASTLOSS_UNROLL
#endif
