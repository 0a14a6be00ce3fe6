// Counts the wavefronts of shared memory that device code needs: the number of turns in which the 32 banks
// serve an access of a warp. Bank conflicts make it larger than the number for the same accesses without
// conflicts.
#pragma once
#include "simt.h"  // before the device code

namespace simt {

struct Wavefronts {
  long counted = 0, without_conflicts = 0;
  double ratio() const {
    return static_cast<double>(counted) / static_cast<double>(std::max(without_conflicts, 1L));
  }
};

// Between the two calls, the accesses of all threads are recorded.
void start_recording();
Wavefronts stop_recording();

}  // namespace simt
