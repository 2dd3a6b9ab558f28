// Newton-Schulz of many matrices, and the whole step of Muon around it: threads take matrices, and what Muon reads and
// writes of each passes memory once.
#include <algorithm>
#include <cmath>

#include "native/parallel.h"
#include "newton_schulz/newton_schulz.h"
#include "structs.h"

using namespace dsv4;

namespace {

double multiply_adds(int64_t n, int64_t m, int64_t steps) { return double(n * m) * double(std::min(n, m) * steps); }

void step_one(const MuonMatrix& w, const MuonStep& call, NewtonSchulzSteps steps) {
    static thread_local Scratch memory;
    const int64_t count = w.rows * w.columns;
    float* x = memory.floats(count);
    for (int64_t i = 0; i < count; i++) {
        const float m = w.momentum[i] * call.momentum + w.gradient[i];
        w.momentum[i] = m;
        x[i] = call.nesterov ? m * call.momentum + w.gradient[i] : m;
    }
    (call.int16 ? newton_schulz_int16 : newton_schulz)(x, w.rows, w.columns, steps, call.tiny);
    const float rate = call.rate * std::sqrt(float(std::max(w.rows, w.columns)));
    for (int64_t i = 0; i < count; i++) w.weight[i] = w.weight[i] * call.kept - x[i] * rate;
    memory.trim();
}

}  // namespace

// x [N, n, m] in place, see newton_schulz.h
extern "C" void dsv4_newton_schulz(float* x, const float* abc, int64_t steps, int64_t N, int64_t n, int64_t m,
                                   float tiny, int int16, int threads) {
    threads = worth(double(N) * multiply_adds(n, m, steps), threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < N; i++)
        (int16 ? newton_schulz_int16 : newton_schulz)(x + i * n * m, n, m, {abc, steps}, tiny);
}

// see dsv4/training/muon.py
extern "C" void dsv4_muon_step(const MuonStep* call) {
    double work = 0;
    for (int64_t i = 0; i < call->count; i++)
        work += multiply_adds(call->matrices[i].rows, call->matrices[i].columns, call->steps);
    const int threads = worth(work, call->threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < call->count; i++) step_one(call->matrices[i], *call, {call->abc, call->steps});
}
