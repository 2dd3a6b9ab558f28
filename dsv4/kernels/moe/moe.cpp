// A layer of experts in one call: tokens gathered by expert, gate and up projection, clamped SwiGLU times the routing
// weight, down projection, and each token's experts added in the order of its ids, the shared expert last.
//
// T tokens, D hidden size, F expert inner size, E experts, K experts per token. A slot is one expert for one token;
// slots are numbered expert by expert.
#include <algorithm>
#include <atomic>
#include <vector>

#include "matmul/gemm.h"
#include "moe_math.h"
#include "native/near.h"
#include "quant/quant.h"
#include "residency.h"

using namespace dsv4;

namespace {

constexpr int64_t ROOM = int64_t(48) << 20;  // floats between the projections: bounds the tokens of one band

// some slots of one expert, and where it is read
struct Job {
    int64_t expert, first, last;
    Taken taken{};
    bool holds = false;  // gives the expert back
};

// Pointers to the stored weights, E of each (E + 1 with the shared expert last). Scales are null for float weights.
struct Experts {
    const void *const *w1, *const *w2, *const *w3, *const *s1, *const *s2, *const *s3;
    int64_t E, D, F;
    int kind, shared_kind;  // shared_kind < 0: no shared expert
    int quantize, shared_quantize;
    float limit;
    const int64_t* near;  // the memory node that holds each routed expert; null: unknown

    int64_t near_of(int64_t e) const { return near && e < E ? near[e] : ANY_NODE; }
    int kind_of(int64_t e) const { return e == E ? shared_kind : kind; }
    bool quantizes(int64_t e) const { return e == E ? shared_quantize : quantize; }
    Weight gate(const Job& job) const { return weight(job, 0, F, D); }
    Weight up(const Job& job) const { return weight(job, 2, F, D); }
    Weight down(const Job& job) const { return weight(job, 4, D, F); }
    // where an expert's matrices lie in its file: gate, up, down, the scale of each behind it
    void stored(int64_t e, Piece* pieces) const {
        const void *const* const data[] = {w1, w3, w2}, *const* const scales[] = {s1, s3, s2};
        for (int i = 0; i < 3; i++) {
            const void* scale = scales[i] ? scales[i][e] : nullptr;
            const Weight w{kind_of(e), data[i][e], scale, i == 2 ? D : F, i == 2 ? F : D};
            pieces[2 * i] = {w.data, data_bytes(w)};
            pieces[2 * i + 1] = {scale, scale_bytes(w)};
        }
    }

   private:
    // NOTE: it reads the scales, so the expert must be there
    Weight weight(const Job& job, int piece, int64_t N, int64_t K) const {
        const void* scale = job.taken.at[piece + 1];
        return {exact_kind(kind_of(job.expert), scale, N, K), job.taken.at[piece], scale, N, K};
    }
};

// One band of tokens and where its slots are.
struct Band {
    const Experts& experts;
    int64_t T, K;
    bool bf16;
    std::vector<int64_t> slot_of;   // [T * K]: slot of the k-th expert of token t; the shared ones follow, by token
    std::vector<int64_t> token_of;  // by slot
    std::vector<float> weight_of;   // by slot
    std::vector<Job> jobs;
    std::shared_ptr<Arena> arena;  // where its routed experts are read; null: where they lie

    Band(const Experts& experts, const int64_t* ids, const float* weight, int64_t T, int64_t K, bool bf16)
        : experts(experts), T(T), K(K), bf16(bf16), slot_of(T * K), arena(arena_of(experts.w1, experts.E)) {
        const bool shared = experts.shared_kind >= 0;
        std::vector<int64_t> start(experts.E + 1);
        for (int64_t a = 0; a < T * K; a++) start[ids[a] + 1]++;
        for (int64_t e = 0; e < experts.E; e++) start[e + 1] += start[e];
        for (int64_t e = 0; e < experts.E; e++) add_jobs(e, start[e], start[e + 1]);
        if (shared) add_jobs(experts.E, T * K, T * K + T);
        token_of.resize(T * K + (shared ? T : 0));
        weight_of.resize(token_of.size(), 1.0f);
        for (int64_t a = 0; a < T * K; a++) {
            const int64_t slot = start[ids[a]]++;
            slot_of[a] = slot, token_of[slot] = a / K, weight_of[slot] = weight[a];
        }
        if (shared)
            for (int64_t t = 0; t < T; t++) token_of[T * K + t] = t;
    }
    void add_jobs(int64_t expert, int64_t first, int64_t last) {
        if (first == last) return;
        Job job{expert, first, last};
        Piece pieces[PIECES];
        experts.stored(expert, pieces);
        for (int i = 0; i < PIECES; i++) job.taken.at[i] = pieces[i].data;
        for (; first < last; first += TILE_ROWS) {
            job.first = first, job.last = std::min(first + TILE_ROWS, last);
            jobs.push_back(job);
        }
    }
    int64_t slots() const { return int64_t(token_of.size()); }
};

// Memory of a band: x as either kind of expert reads it, the activations between the projections, and their outputs.
struct Room {
    float *x, *shared_x, *hidden, *y;
    int64_t x_pitch, shared_pitch, hidden_pitch;
};

// silu(min(gate, limit)) * clip(up, -limit, limit) * weight, in place of `gate`; limit 0: no clamp
void swiglu(float* gate, const float* up, int64_t count, float limit, float weight, bool bf16) {
    for (int64_t i = 0; i < count; i += W) {
        const int part = int(std::min<int64_t>(W, count - i));
        vf g = part == W ? load(gate + i) : load_part(gate + i, part);
        vf u = part == W ? load(up + i) : load_part(up + i, part);
        if (bf16) g = round_bf16(g), u = round_bf16(u);
        if (limit > 0) {
            g = g > limit ? splat(limit) : g;
            u = u > limit ? splat(limit) : u < -limit ? splat(-limit) : u;
        }
        vf h = silu(g) * u * weight;
        if (bf16) h = round_bf16(h);
        if (part == W)
            store(gate + i, h);
        else
            store_part(gate + i, h, part);
    }
}

// columns [n0, n1) of the hidden activations of a job
void hidden_part(const Band& band, const Room& room, const Job& job, int64_t n0, int64_t n1) {
    float up[TILE_ROWS * PANEL_ROWS];
    const Experts& experts = band.experts;
    const bool shared = job.expert == experts.E;
    const Input in{shared ? room.shared_x : room.x, shared ? room.shared_pitch : room.x_pitch,
                   band.token_of.data() + job.first};
    const int64_t rows = job.last - job.first, pitch = room.hidden_pitch;
    float* gate = room.hidden + job.first * pitch;
    multiply(experts.gate(job), n0, n1, in, 0, rows, Output{gate, pitch, false});
    multiply(experts.up(job), n0, n1, in, 0, rows, Output{up - n0, PANEL_ROWS, false});
    for (int64_t r = 0; r < rows; r++)
        swiglu(gate + r * pitch + n0, up + r * PANEL_ROWS, n1 - n0, experts.limit, band.weight_of[job.first + r],
               band.bf16);
}

void down_part(const Band& band, const Room& room, const Job& job, int64_t n0, int64_t n1) {
    const Input in{room.hidden + job.first * room.hidden_pitch, room.hidden_pitch, nullptr};
    const int64_t D = band.experts.D;
    multiply(band.experts.down(job), n0, n1, in, 0, job.last - job.first,
             Output{room.y + job.first * D, D, false});
}

// columns [d0, d1) of the sum over a token's experts
void add_up(const Band& band, const Room& room, int64_t t, int64_t d0, int64_t d1, float* out) {
    const int64_t D = band.experts.D, count = band.K + (band.experts.shared_kind >= 0);
    for (int64_t k = 0; k < count; k++) {
        const float* y = room.y + (k < band.K ? band.slot_of[t * band.K + k] : band.T * band.K + t) * D;
        for (int64_t d = d0; d < d1; d++) {
            const float v = band.bf16 ? round_bf16(y[d]) : y[d];
            out[t * D + d] = k ? out[t * D + d] + v : v;
        }
    }
}

void prepare_token(const Band& band, const Room& room, const char* x, int64_t t) {
    const Experts& e = band.experts;
    x += t * e.D * (band.bf16 ? 2 : 4);
    prepare(e.kind, x, band.bf16, e.D, e.quantize, room.x + t * room.x_pitch);
    if (room.shared_x != room.x)
        prepare(e.shared_kind, x, band.bf16, e.D, e.shared_quantize, room.shared_x + t * room.shared_pitch);
}

void prepare_hidden(const Band& band, const Room& room, const Job& job, int64_t slot) {
    float* h = room.hidden + slot * room.hidden_pitch;
    const Experts& e = band.experts;
    prepare(e.kind_of(job.expert), h, false, e.F, e.quantizes(job.expert), h);
}

// Experts that are in memory or being read come first, and the shared one: what is read ahead is used before it is driven
// out, and there is something to compute while the others are read.
void known_first(Band& band) {
    std::vector<char> known(size_t(band.experts.E) + 1, 1);
    for (const Job& job : band.jobs) {
        Piece pieces[PIECES];
        if (job.expert == band.experts.E) continue;
        band.experts.stored(job.expert, pieces);
        known[size_t(job.expert)] = residency_known(*band.arena, pieces);
    }
    std::stable_partition(band.jobs.begin(), band.jobs.end(),
                          [&](const Job& job) { return known[size_t(job.expert)] != 0; });
}

// Where groups of jobs start: all jobs are one group, unless experts are read from disk within a budget. Then a group
// takes at most half of the places, so that the next group can be read while this one is computed.
std::vector<int64_t> groups_of(const Band& band) {
    const int64_t jobs = int64_t(band.jobs.size()), most = residency_places(band.arena.get()) / 2;
    std::vector<int64_t> start{0};
    int64_t used = 0;
    for (int64_t j = 0; most && j < jobs; j++) {
        if (j && band.jobs[j].expert == band.jobs[j - 1].expert) continue;
        if (used == most) start.push_back(j), used = 0;
        used++;
    }
    start.push_back(jobs);
    return start;
}

// The routed experts of jobs [first, last) begin to be read.
void take(Band& band, int64_t first, int64_t last) {
    for (int64_t j = first; j < last; j++) {
        Job& job = band.jobs[j];
        if (job.expert == band.experts.E) continue;
        if (j > first && band.jobs[j - 1].expert == job.expert) {
            job.taken = band.jobs[j - 1].taken;
            continue;
        }
        Piece pieces[PIECES];
        band.experts.stored(job.expert, pieces);
        job.taken = residency_take(*band.arena, pieces), job.holds = true;
    }
}

void give_back(const Band& band, int64_t first, int64_t last) {
    for (int64_t j = first; j < last; j++)
        if (band.jobs[j].holds) residency_give_back(*band.arena, band.jobs[j].taken);
}

// jobs [first, last); an expert that cannot be read sets `unread`
void run_jobs(const Band& band, const Room& room, int64_t first, int64_t last, int threads, std::atomic<bool>& unread) {
    const int64_t D = band.experts.D, F = band.experts.F, jobs = last - first;
    const int64_t wide = (F + PANEL_ROWS - 1) / PANEL_ROWS, deep = (D + PANEL_ROWS - 1) / PANEL_ROWS;
    const auto near = [&](int64_t job) { return band.experts.near_of(band.jobs[first + job].expert); };
    parallel_near(threads, jobs * wide, [&](int64_t unit) { return near(unit / wide); }, [&](int64_t unit) {
        const int64_t n = unit % wide * PANEL_ROWS;
        const Job& job = band.jobs[first + unit / wide];
        if (!band.arena || residency_ready(*band.arena, job.taken))
            hidden_part(band, room, job, n, std::min(n + PANEL_ROWS, F));
        else
            unread = true;
    });
    parallel(threads, jobs, [&](int64_t i) {
        const Job& job = band.jobs[first + i];
        for (int64_t s = job.first; s < job.last; s++) prepare_hidden(band, room, job, s);
    });
    parallel_near(threads, jobs * deep, [&](int64_t unit) { return near(unit / deep); }, [&](int64_t unit) {
        const int64_t n = unit % deep * PANEL_ROWS;
        down_part(band, room, band.jobs[first + unit / deep], n, std::min(n + PANEL_ROWS, D));
    });
}

// Waits until one of the jobs [first, last) can run, and moves all that can to the front; where those end.
int64_t bring_forward(Band& band, int64_t first, int64_t last) {
    std::vector<const Taken*> waiting;
    for (int64_t j = first; j < last; j++) waiting.push_back(&band.jobs[j].taken);
    residency_wait(*band.arena, waiting);
    const auto begin = band.jobs.begin();
    const auto here = [](const Job& job) { return residency_here(job.taken); };
    return std::stable_partition(begin + first, begin + last, here) - begin;
}

// Jobs [first, last) in the order in which their experts can be read, so that the rest is read meanwhile.
void run_as_read(Band& band, const Room& room, int64_t first, int64_t last, int threads, std::atomic<bool>& unread) {
    while (first < last) {
        const int64_t end = bring_forward(band, first, last);
        run_jobs(band, room, first, end, threads, unread);
        first = end;
    }
}

// Returns false if an expert could not be read.
bool run_band(Band& band, const Room& room, const char* x, float* out, int threads) {
    const int64_t D = band.experts.D;
    constexpr int64_t STEP = 1024;
    const int64_t steps = (D + STEP - 1) / STEP;
    const bool streaming = band.arena != nullptr;
    if (streaming) {
        residency_enter(*band.arena);  // the budget does not change from here on
        known_first(band);
    }
    const std::vector<int64_t> group = groups_of(band);
    const int64_t groups = int64_t(group.size()) - 1;
    std::atomic<bool> unread{false};
    if (streaming) {
        take(band, group[0], group[1]);
        residency_forget(*band.arena);
    }
    const auto prepare_x = [&](int64_t t) { prepare_token(band, room, x, t); };
    parallel(threads, band.T, prepare_x, shares(band.T, threads));
    for (int64_t g = 0; g < groups; g++) {
        if (!streaming) {
            run_jobs(band, room, group[g], group[g + 1], threads, unread);
            continue;
        }
        if (g + 1 < groups) take(band, group[g + 1], group[g + 2]);
        run_as_read(band, room, group[g], group[g + 1], threads, unread);
        give_back(band, group[g], group[g + 1]);
    }
    const auto add_part = [&](int64_t unit) {
        const int64_t d = unit % steps * STEP;
        add_up(band, room, unit / steps, d, std::min(d + STEP, D), out);
    };
    parallel(threads, band.T * steps, add_part, shares(band.T * steps, threads));
    if (streaming) residency_leave(*band.arena);
    if (unread) residency_explain(*band.arena);
    return !unread;
}

bool run(const Experts& experts, const char* x, bool bf16, const int64_t* ids, const float* weight, float* out,
         int64_t T, int64_t K, int threads) {
    bool good = true;
    static thread_local Scratch memory;
    const bool shared = experts.shared_kind >= 0;
    const bool two_forms =
        shared && (experts.shared_kind != experts.kind || experts.shared_quantize != experts.quantize);
    Room room{};
    room.x_pitch = prepared_size(experts.kind, experts.D) + 16;
    room.shared_pitch = two_forms ? prepared_size(experts.shared_kind, experts.D) + 16 : room.x_pitch;
    // a row is prepared where it lies
    const int64_t shared_size = two_forms ? prepared_size(experts.shared_kind, experts.F) : 0;
    room.hidden_pitch = std::max({experts.F, prepared_size(experts.kind, experts.F), shared_size}) + 16;
    const int64_t per_slot = room.hidden_pitch + experts.D, x_size = room.x_pitch + (two_forms ? room.shared_pitch : 0);
    const int64_t band_tokens = std::max<int64_t>(1, ROOM / ((K + shared) * per_slot + x_size));
    for (int64_t t = 0; t < T; t += band_tokens) {
        Band band(experts, ids + t * K, weight + t * K, std::min(band_tokens, T - t), K, bf16);
        room.x = memory.floats(band.T * x_size + band.slots() * per_slot);
        room.shared_x = two_forms ? room.x + band.T * room.x_pitch : room.x;
        room.hidden = room.x + band.T * x_size;
        room.y = room.hidden + band.slots() * room.hidden_pitch;
        good &= run_band(band, room, x + t * experts.D * (bf16 ? 2 : 4), out + t * experts.D, threads);
    }
    memory.trim();
    return good;
}

}  // namespace

// out [T, D] float32 = sum over a token's experts; x [T, D] float32 or (bf16) bfloat16, in which case every projection
// is rounded to bfloat16 as the linear layer does. near: null, or the memory node of each routed expert. Returns the first id outside 0..E-1 (-2 for -1), -3 if an expert could
// not be read from its file, or -1.
extern "C" int64_t dsv4_expert_mlp(const void* x, const int64_t* ids, const float* weight, const void* const* w1,
                                   const void* const* w2, const void* const* w3, const void* const* s1,
                                   const void* const* s2, const void* const* s3, const int64_t* near, float* out,
                                   int64_t T, int64_t K, int64_t E, int64_t D, int64_t F, int kind, int shared_kind,
                                   int quantize, int shared_quantize, float limit, int bf16, int threads) {
    for (int64_t a = 0; a < T * K; a++)
        if (ids[a] < 0 || ids[a] >= E) return ids[a] == -1 ? -2 : ids[a];
    kind = product_kind(kind, quantize);
    shared_kind = product_kind(shared_kind, shared_quantize);
    const Experts experts{w1, w2, w3, s1, s2, s3, E, D, F, kind, shared_kind, quantize, shared_quantize, limit, near};
    threads = worth(double(T) * double(K + (shared_kind >= 0)) * 3.0 * double(D) * double(F), threads);
    return run(experts, (const char*)x, bf16, ids, weight, out, T, K, threads) ? -1 : -3;
}

// The experts `ids` are read ahead, within a budget: sure = a later layer of this step uses them.
extern "C" void dsv4_expert_hint(const int64_t* ids, int64_t count, const void* const* w1, const void* const* w2,
                                 const void* const* w3, const void* const* s1, const void* const* s2,
                                 const void* const* s3, int64_t E, int64_t D, int64_t F, int kind, int sure) {
    const Experts experts{w1, w2, w3, s1, s2, s3, E, D, F, kind, -1, 0, 0, 0.0f, nullptr};
    const std::shared_ptr<Arena> arena = arena_of(w1, E);
    for (int64_t i = 0; arena && i < count; i++) {
        Piece pieces[PIECES];
        if (ids[i] < 0 || ids[i] >= E) continue;
        experts.stored(ids[i], pieces);
        residency_hint(*arena, pieces, sure ? Guess::SURE : Guess::MAYBE);
    }
}
