// Which experts a step reads ahead. Those of a hash layer are known from the token. Those of another layer are guessed:
// its router sees the streams as they are before its attention, not as that will leave them.
#include <algorithm>

#include "moe/guesses.h"
#include "step_calls.h"

namespace dsv4 {

namespace {

constexpr int64_t MOST_TOKENS = 64;  // whose choices are guessed: they name most of what a prompt needs
constexpr double WORTH = 0.5;        // the least chance of being needed with which an expert is read (docs/log.md)

int64_t hint(const StepRun& run, const StepExperts& e, const int64_t* ids, int64_t count, int64_t room, bool sure) {
    const StepModel& m = run.model;
    count = std::min(count, room);
    dsv4_expert_hint(ids, count, e.w1, e.w2, e.w3, e.s1, e.s2, e.s3, m.experts, m.dim, e.inner, int(e.kind), sure);
    return room - count;
}

// Layers that choose by the token, from `first` on, as many as there is room for. Returns the room that is left.
int64_t hint_known(const StepRun& run, int64_t first, int64_t room) {
    const StepModel& m = run.model;
    const int64_t T = run.T(), K = m.per_token;
    std::vector<int64_t> ids;
    for (int64_t i = first; i < m.layers && room; i++) {
        const StepLayer& layer = m.layer[i];
        if (layer.router_bias) continue;
        ids.clear();
        for (int64_t t = 0; t < T; t++) {
            const int64_t* row = layer.router_table + run.batch.token_T[t] * K;
            for (int64_t k = 0; k < K; k++)
                if (std::find(ids.begin(), ids.end(), row[k]) == ids.end()) ids.push_back(row[k]);
        }
        room = hint(run, layer.experts, ids.data(), int64_t(ids.size()), room, true);
    }
    return room;
}

// The choices [T, K] of the last T tokens, from their streams.
void guess(const StepRun& run, const StepLayer& layer, const char* x, int64_t T) {
    const StepModel& m = run.model;
    const StepConnection& c = layer.mixture;
    const int64_t S = m.streams, D = m.dim, E = m.experts, K = m.per_token;
    x += (run.T() - T) * S * D * run.bytes();
    void* y = run.act(run.space.guess_y, T * D);
    float *gates = run.space.guess_gates.floats(T * S * (S + 1)), *score = run.space.guess_score.floats(T * E);
    dsv4_hyper_enter(x, c.fn, c.scale, c.base, c.norm, y, gates, gates + T * S, T, S, D, int(m.iterations),
                     m.connection_eps, m.norm_eps, run.bf16(), run.threads(double(T) * double(S * D * (2 + S) * S)));
    apply_float(run, layer.router, floats_of(run, y, T * D, run.space.x_float), T, score, E);
    dsv4_affinity(score, score, T * E, run.threads(double(T * E) * 16));
    run.space.guessed.resize(size_t(T * K));
    dsv4_choose_experts(score, layer.router_bias, run.space.guessed.data(), T, E, K, run.threads(double(T * E) * 4));
}

}  // namespace

void step_read_ahead(const StepRun& run, int64_t index, const void* x) {
    const StepModel& m = run.model;
    run.space.guessed.clear();
    // what is read ahead must not drive out what is needed first
    int64_t room = residency_places(run.arena.get()) / 4;
    if (!room) return;
    const StepLayer& layer = m.layer[index];
    if (layer.router_bias) {
        const int64_t T = std::min(run.T(), MOST_TOKENS), K = m.per_token;
        guess(run, layer, (const char*)x, T);
        const std::vector<int64_t> ids = residency_guesses(*run.arena)
                                             .worth_reading(layer.experts.w1, run.space.guessed.data(), T, K,
                                                            m.experts, WORTH);
        room = hint(run, layer.experts, ids.data(), int64_t(ids.size()), room, false);
    }
    hint_known(run, index, room);
}

void step_learn_guesses(const StepRun& run, const StepLayer& layer) {
    const std::vector<int64_t>& guessed = run.space.guessed;
    if (guessed.empty()) return;
    const int64_t K = run.model.per_token, T = int64_t(guessed.size()) / K;
    const int64_t* chosen = run.space.ids.data() + run.space.ids.size() - guessed.size();
    residency_guesses(*run.arena).learn(layer.experts.w1, guessed.data(), chosen, T, K);
    run.space.guessed.clear();
}

}  // namespace dsv4
