// Which experts of a mapped file are in memory: least recently used ones go first.
#include "residency.h"

#include <algorithm>
#include <list>
#include <mutex>
#include <unordered_map>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif

using namespace dsv4;

namespace {

constexpr uintptr_t NEAR = 64 << 10;  // pieces at most this far apart are asked for together

struct Span {
    uintptr_t begin, end;
};

#if defined(__unix__) || defined(__APPLE__)
uintptr_t page() {
    static const uintptr_t size = uintptr_t(sysconf(_SC_PAGESIZE));
    return size;
}
void advise(const Span& s, int advice) {
    const uintptr_t begin = s.begin / page() * page(), end = (s.end + page() - 1) / page() * page();
    (void)madvise((void*)begin, end - begin, advice);  // advice: nothing is wrong when it is not taken
}
void read_ahead(const Span& s) { advise(s, MADV_WILLNEED); }
// clean pages of a private file map: the next read brings them back from the file
void let_go(const Span& s) { advise(s, MADV_DONTNEED); }
#else
void read_ahead(const Span&) {}
void let_go(const Span&) {}
#endif

struct Expert {
    std::vector<Span> spans;
    int64_t bytes;
};

struct State {
    std::mutex lock;
    int64_t budget = 0, used = 0;
    std::vector<Span> maps;
    std::list<Expert> order;  // most recently used first
    std::unordered_map<uintptr_t, std::list<Expert>::iterator> known;  // by the first span's start

    const Span* map_of(const Span& s) const {
        for (const Span& m : maps)
            if (m.begin <= s.begin && s.end <= m.end) return &m;
        return nullptr;
    }
    void drop_oldest() {
        const Expert& last = order.back();
        for (const Span& s : last.spans) {
            const Span& m = *map_of(s);  // the system brought in some neighbouring pages too
            let_go({std::max(m.begin, s.begin - NEAR), std::min(m.end, s.end + NEAR)});
        }
        used -= last.bytes;
        known.erase(last.spans[0].begin);
        order.pop_back();
    }
    void want(Expert expert) {
        const auto found = known.find(expert.spans[0].begin);
        if (found != known.end()) {
            order.splice(order.begin(), order, found->second);
            return;
        }
        for (const Span& s : expert.spans) read_ahead(s);
        while (!order.empty() && used + expert.bytes > budget) drop_oldest();
        used += expert.bytes;
        order.push_front(std::move(expert));
        known[order.front().spans[0].begin] = order.begin();
    }
};

State& state() {
    static State s;
    return s;
}

}  // namespace

namespace dsv4 {

int64_t residency_budget() { return state().budget; }

void residency_want(const Piece* pieces, int count) {
    State& s = state();
    const std::lock_guard<std::mutex> hold(s.lock);
    std::vector<Span> spans;
    for (int i = 0; i < count; i++) {
        const Span span{uintptr_t(pieces[i].data), uintptr_t(pieces[i].data) + uintptr_t(pieces[i].bytes)};
        if (pieces[i].data && s.map_of(span)) spans.push_back(span);
    }
    if (spans.empty()) return;
    std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
    Expert expert{{spans[0]}, 0};
    for (const Span& span : spans) {
        Span& last = expert.spans.back();
        if (span.begin <= last.end + NEAR && s.map_of({last.begin, span.end}))
            last.end = std::max(last.end, span.end);
        else
            expert.spans.push_back(span);
    }
    for (const Span& span : expert.spans) expert.bytes += int64_t(span.end - span.begin);
    s.want(std::move(expert));
}

}  // namespace dsv4

// Experts may take `bytes` from now on; 0 = no limit, nothing is read ahead or let go. Forgets what was used before.
extern "C" void dsv4_residency_budget(int64_t bytes) {
    State& s = state();
    const std::lock_guard<std::mutex> hold(s.lock);
    s.budget = bytes, s.used = 0;
    s.order.clear(), s.known.clear(), s.maps.clear();
}

// Memory [base, base + bytes) is a private, never written map of a file: its pages may be let go.
extern "C" void dsv4_residency_map(const void* base, int64_t bytes) {
    State& s = state();
    const std::lock_guard<std::mutex> hold(s.lock);
    s.maps.push_back({uintptr_t(base), uintptr_t(base) + uintptr_t(bytes)});
}

// Bytes of the experts that count as in memory.
extern "C" int64_t dsv4_residency_used() {
    State& s = state();
    const std::lock_guard<std::mutex> hold(s.lock);
    return s.used;
}
