// SPDX-License-Identifier: MIT
// Knows which targets are linked in (the build says so), and chooses the one to use.
#include "engines/backend.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "losses/box_crowd.h"
#include "losses/box_pair.h"
#include "losses/graph.h"
#include "losses/pointwise.h"
#include "losses/ranking.h"
#include "losses/region.h"
#include "losses/softmax.h"
#include "losses/triplet.h"

namespace fastloss {

#if defined(FASTLOSS_WITH_CUDA_EMULATION)
namespace cuda_emulation {
extern const Backend kBackend;
}
#else
namespace baseline {
extern const Backend kBackend;
}
#endif
#if defined(FASTLOSS_WITH_X86)
namespace avx2 {
extern const Backend kBackend;
}
namespace avx512 {
extern const Backend kBackend;
}
#endif
#if defined(FASTLOSS_WITH_CUDA)
namespace cuda {
extern const Backend kBackend;
}
#endif

namespace {

struct Candidate {
  const Backend* backend;
  bool (*runs_here)();
};

// The fastest first.
constexpr Candidate kCandidates[] = {
#if defined(FASTLOSS_WITH_CUDA_EMULATION)
    // The build of the tests: the CUDA kernels serve CPU tensors.
    {&cuda_emulation::kBackend, [] { return true; }},
#else
#if defined(FASTLOSS_WITH_X86)
    {&avx512::kBackend,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
     }},
    {&avx2::kBackend,
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
     }},
#endif
    {&baseline::kBackend, [] { return true; }},
#endif
};

const Backend& choose_cpu_backend() {
  const char* wanted = std::getenv("FASTLOSS_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    for (const Candidate& candidate : kCandidates) {
      if (candidate.runs_here()) return *candidate.backend;
    }
  }
  std::string built;
  for (const Candidate& candidate : kCandidates) {
    built += std::string(built.empty() ? "" : ", ") + candidate.backend->name;
    if (std::strcmp(candidate.backend->name, wanted) != 0) continue;
    if (candidate.runs_here()) return *candidate.backend;
    throw std::runtime_error(std::string("FASTLOSS_CPU_ISA=") + wanted +
                             ": this processor does not run it");
  }
  throw std::runtime_error(std::string("FASTLOSS_CPU_ISA must be one of ") + built + ", got " +
                           wanted);
}

template <class Losses>
constexpr LossList list_of() {
  return {Losses::kInfo, Losses::kSize};
}

}  // namespace

const Backend& cpu_backend() {
  static const Backend& chosen = choose_cpu_backend();
  return chosen;
}

const Backend* cuda_backend() {
#if defined(FASTLOSS_WITH_CUDA)
  return &cuda::kBackend;
#else
  return nullptr;
#endif
}

const Catalogue& catalogue() {
  static constexpr Catalogue kCatalogue{
      list_of<FASTLOSS_TARGET::PointwiseLosses>(),    list_of<FASTLOSS_TARGET::BoxPairLosses>(),
      list_of<FASTLOSS_TARGET::BoxSimilarities>(),    list_of<FASTLOSS_TARGET::BoxCrowdLosses>(),
      list_of<FASTLOSS_TARGET::SoftmaxLosses>(),      list_of<FASTLOSS_TARGET::RegionLosses>(),
      list_of<FASTLOSS_TARGET::RankedRegionLosses>(), list_of<FASTLOSS_TARGET::ListLosses>(),
      list_of<FASTLOSS_TARGET::TripletLosses>(),      list_of<FASTLOSS_TARGET::BatchHardLosses>(),
      list_of<FASTLOSS_TARGET::RowPairLosses>(),      list_of<FASTLOSS_TARGET::EdgeLosses>()};
  return kCatalogue;
}

int LossList::find(const char* name) const {
  for (int i = 0; i < size; ++i) {
    if (std::strcmp(begin[i].name, name) == 0) return i;
  }
  return -1;
}

}  // namespace fastloss
