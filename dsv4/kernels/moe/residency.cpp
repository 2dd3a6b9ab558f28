#include "residency.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "expert_files.h"

using namespace dsv4;

namespace {

constexpr int64_t CHUNK = int64_t(4) << 20;  // of one read: a few of them keep a disk busy
constexpr int READERS = 6;
constexpr double COLD = -std::numeric_limits<double>::infinity();

int64_t down(int64_t n) { return n / BLOCK * BLOCK; }
int64_t up(int64_t n) { return down(n + BLOCK - 1); }

using Clock = std::chrono::steady_clock;

}  // namespace

namespace dsv4 {

// Everything known of an expert that was asked for once. Its heat outlives its stay.
struct Resident {
    struct Part {
        int file;
        int64_t first, last, at;  // bytes of the file, and where the first of them lies in the place
    };
    std::vector<Part> parts;
    Piece pieces[PIECES];
    int piece_part[PIECES];
    int64_t place = -1;
    std::atomic<int> missing{0};  // reads to go
    int begun = 0, holds = 0;
    bool guessed = false;
    bool early = false;    // read ahead, not taken yet
    bool failed = false;
    double heat = COLD;
};

}  // namespace dsv4

namespace {

struct Read {
    Resident* expert;
    int file;
    int64_t first, bytes;
    char* to;
};

}  // namespace

namespace dsv4 {

struct Arena {
    std::mutex lock, turn;
    std::condition_variable work, done;
    std::vector<ExpertFile> files;
    std::deque<Read> wanted, ahead;
    std::unordered_map<const void*, std::unique_ptr<Resident>> known;
    std::vector<Resident*> in_place;
    char* memory = nullptr;
    int64_t place_bytes = 0, memory_bytes = 0, uses = 0;
    int busy = 0;             // readers
    Clock::time_point since;  // when the first of them became busy
    Clock::duration reading{};
    bool closed = false;
    std::atomic<int64_t> places{0}, read_bytes{0}, taken{0}, missed{0}, foreseen{0}, layer{0}, layers{0};
    std::string problem;

    Resident* find(const Piece* pieces);
    bool seat(Resident* expert, std::unique_lock<std::mutex>& hold, bool wait);
    int64_t empty_place(double below);
    void queue(Resident* expert, std::deque<Read>& to);
    void move_forward(Resident* expert);
    void use(Resident* expert) {
        const double now = double(++uses) / double(places), old = expert->heat;
        expert->heat = old == COLD ? now : std::max(old, now) + std::log2(1 + std::exp2(-std::abs(old - now)));
    }
    void forget_guesses();
    void close();
    void serve();
};

}  // namespace dsv4

namespace {

// The arenas, and where the maps of their files lie.
struct Registry {
    struct Map {
        const char* end;
        std::shared_ptr<Arena> arena;
    };
    std::mutex lock;
    std::map<int64_t, std::shared_ptr<Arena>> arenas;  // by handle
    std::map<const char*, Map> maps;                   // by first byte
    std::atomic<int64_t> count{0};                     // of arenas
    int64_t last = 0;
};

// never destroyed: steps may run while the process ends
Registry& registry() {
    static Registry* r = new Registry;
    return *r;
}

}  // namespace

// The expert whose first piece lies at this address; null if no piece lies in a registered file.
Resident* Arena::find(const Piece* pieces) {
    const auto found = known.find(pieces[0].data);
    if (found != known.end()) return found->second.get();
    auto made = std::make_unique<Resident>();
    struct At {
        int piece, file;
        int64_t first, last;
    };
    std::vector<At> order;
    for (int i = 0; i < PIECES; i++) {
        made->pieces[i] = pieces[i], made->piece_part[i] = -1;
        const char* data = (const char*)pieces[i].data;
        for (int f = 0; data && f < int(files.size()); f++)
            if (data >= files[f].base && data + pieces[i].bytes <= files[f].base + files[f].bytes)
                order.push_back({i, f, data - files[f].base, data - files[f].base + pieces[i].bytes});
    }
    if (order.empty()) return nullptr;
    std::sort(order.begin(), order.end(),
              [](const At& a, const At& b) { return std::pair(a.file, a.first) < std::pair(b.file, b.first); });
    int64_t at = 0;
    for (const At& piece : order) {  // pieces that share a block or lie side by side are one part
        Resident::Part* last = made->parts.empty() ? nullptr : &made->parts.back();
        if (!last || last->file != piece.file || down(piece.first) > up(last->last)) {
            if (last) at += up(last->last) - last->first;
            made->parts.push_back({piece.file, down(piece.first), piece.last, at});
        } else {
            last->last = std::max(last->last, piece.last);
        }
        made->piece_part[piece.piece] = int(made->parts.size()) - 1;
    }
    if (at + up(made->parts.back().last) - made->parts.back().first > place_bytes) return nullptr;
    return (known[pieces[0].data] = std::move(made)).get();
}

// a place that nothing needs now, its expert's heat below `below`; -1: none
int64_t Arena::empty_place(double below) {
    int64_t best = -1;
    double least = below;
    for (int64_t p = 0; p < int64_t(in_place.size()); p++) {
        const Resident* r = in_place[p];
        if (!r) return p;
        if (!r->holds && !r->missing && !r->guessed && r->heat < least) best = p, least = r->heat;
    }
    if (best >= 0) in_place[best]->place = -1, in_place[best]->early = false, in_place[best] = nullptr;
    return best;
}

bool Arena::seat(Resident* expert, std::unique_lock<std::mutex>& hold, bool wait) {
    int64_t place = empty_place(std::numeric_limits<double>::infinity());
    while (place < 0 && wait) {
        forget_guesses();
        if ((place = empty_place(std::numeric_limits<double>::infinity())) < 0) done.wait(hold);
    }
    if (place < 0) return false;
    in_place[place] = expert, expert->place = place, expert->failed = false, expert->begun = 0;
    return true;
}

void Arena::queue(Resident* expert, std::deque<Read>& to) {
    char* place = memory + expert->place * place_bytes;
    int count = 0;
    for (const Resident::Part& part : expert->parts)
        for (int64_t first = part.first; first < part.last; first += CHUNK, count++)
            to.push_back({expert, part.file, first, std::min(CHUNK, up(part.last) - first),
                          place + part.at + (first - part.first)});
    expert->missing = count;
    work.notify_all();
}

void Arena::move_forward(Resident* expert) {
    const auto rest = std::stable_partition(ahead.begin(), ahead.end(), [&](const Read& r) { return r.expert != expert; });
    wanted.insert(wanted.end(), rest, ahead.end());
    ahead.erase(rest, ahead.end());
}

void Arena::forget_guesses() {
    for (int64_t p = 0; p < int64_t(in_place.size()); p++) {
        Resident* r = in_place[p];
        if (!r || !r->guessed) continue;
        r->guessed = false;
        if (r->begun) continue;
        ahead.erase(std::remove_if(ahead.begin(), ahead.end(), [&](const Read& read) { return read.expert == r; }),
                    ahead.end());
        r->missing = 0, r->place = -1, r->early = false, in_place[p] = nullptr;
    }
}

// one reader, until the arena is closed
void Arena::serve() {
    std::unique_lock<std::mutex> hold(lock);
    for (;;) {
        work.wait(hold, [&] { return closed || !wanted.empty() || !ahead.empty(); });
        if (closed) return;
        std::deque<Read>& from = wanted.empty() ? ahead : wanted;
        const Read read = from.front();
        from.pop_front();
        if (!busy++) since = Clock::now();
        read.expert->begun++;
        const ExpertFile file = files[read.file];
        hold.unlock();
        const int wrong = read_file(file, read.first, read.bytes, read.to);
        hold.lock();
        if (!--busy) reading += Clock::now() - since;
        read_bytes += read.bytes;
        if (wrong) {
            read.expert->failed = true;
            problem = std::strerror(wrong);
        }
        if (--read.expert->missing == 0 || !busy) done.notify_all();
    }
}

// Waits for a layer that uses the arena, and ends the readers.
void Arena::close() {
    const std::lock_guard<std::mutex> no_layer(turn);
    std::unique_lock<std::mutex> hold(lock);
    wanted.clear(), ahead.clear();
    done.wait(hold, [&] { return !busy; });
    known.clear(), in_place.clear();
    for (const ExpertFile& file : files) close_file(file);
    files.clear();
    free_memory(memory, memory_bytes);
    memory = nullptr, places = 0, closed = true;
    work.notify_all();
}

namespace {

// of this thread, for `dsv4_residency_problem`
thread_local std::string explained;

std::shared_ptr<Arena> arena_named(int64_t handle) {
    Registry& r = registry();
    const std::lock_guard<std::mutex> hold(r.lock);
    const auto found = r.arenas.find(handle);
    return found == r.arenas.end() ? nullptr : found->second;
}

}  // namespace

namespace dsv4 {

std::shared_ptr<Arena> arena_of(const void* const* addresses, int64_t count) {
    Registry& r = registry();
    if (!r.count) return nullptr;
    const std::lock_guard<std::mutex> hold(r.lock);
    for (int64_t i = 0; i < count; i++) {
        const char* address = (const char*)addresses[i];
        const auto after = r.maps.upper_bound(address);
        if (after == r.maps.begin()) continue;
        const Registry::Map& map = std::prev(after)->second;
        if (address < map.end) return map.arena;
    }
    return nullptr;
}

int64_t residency_places(const Arena* arena) { return arena ? arena->places.load() : 0; }

void residency_enter(Arena& arena) { arena.turn.lock(); }

void residency_leave(Arena& arena) { arena.turn.unlock(); }

Taken residency_take(Arena& s, const Piece* pieces) {
    std::unique_lock<std::mutex> hold(s.lock);
    Taken taken{};
    for (int i = 0; i < PIECES; i++) taken.at[i] = pieces[i].data;
    Resident* expert = s.find(pieces);
    if (!expert) return taken;
    s.use(expert), s.taken++;
    expert->holds++;
    if (expert->place >= 0 && expert->failed && !expert->missing) s.in_place[expert->place] = nullptr, expert->place = -1;
    if (expert->place < 0) {
        s.missed++;
        s.seat(expert, hold, true);
        s.queue(expert, s.wanted);
    } else {
        if (expert->early) (expert->begun ? s.foreseen : s.missed)++;
        if (expert->missing) s.move_forward(expert);
    }
    expert->guessed = expert->early = false;
    taken.resident = expert;
    for (int i = 0; i < PIECES; i++)
        if (expert->piece_part[i] >= 0) {
            const Resident::Part& part = expert->parts[expert->piece_part[i]];
            const int64_t first = (const char*)pieces[i].data - s.files[part.file].base;
            taken.at[i] = s.memory + expert->place * s.place_bytes + part.at + (first - part.first);
        }
    return taken;
}

bool residency_here(const Taken& taken) { return !taken.resident || !taken.resident->missing; }

void residency_wait(Arena& s, const std::vector<const Taken*>& experts) {
    const auto one = [&] {
        return std::any_of(experts.begin(), experts.end(), [](const Taken* taken) { return residency_here(*taken); });
    };
    if (one()) return;
    std::unique_lock<std::mutex> hold(s.lock);
    s.done.wait(hold, one);
}

bool residency_ready(Arena& s, const Taken& taken) {
    if (!taken.resident) return true;
    if (taken.resident->missing) {
        std::unique_lock<std::mutex> hold(s.lock);
        s.done.wait(hold, [&] { return !taken.resident->missing; });
    }
    return !taken.resident->failed;
}

void residency_give_back(Arena& s, const Taken& taken) {
    if (!taken.resident) return;
    const std::lock_guard<std::mutex> hold(s.lock);
    taken.resident->holds--;
    s.done.notify_all();
}

void residency_explain(Arena& s) {
    const std::lock_guard<std::mutex> hold(s.lock);
    explained = s.problem;
}

void residency_hint(Arena& s, const Piece* pieces, Guess guess) {
    const std::unique_lock<std::mutex> turn(s.turn, std::try_to_lock);
    if (!turn) return;  // another step takes its experts now
    std::unique_lock<std::mutex> hold(s.lock);
    Resident* expert = s.find(pieces);
    if (!expert || expert->place >= 0 || !s.seat(expert, hold, false)) return;
    if (expert->heat == COLD) expert->heat = double(s.uses) / double(s.places);
    expert->guessed = guess == Guess::MAYBE, expert->early = true;
    s.queue(expert, s.ahead);
}

void residency_forget(Arena& s) {
    const std::lock_guard<std::mutex> hold(s.lock);
    s.forget_guesses();
}

void residency_progress(Arena* arena, int64_t done, int64_t layers) {
    if (arena) arena->layer = done, arena->layers = layers;
}

}  // namespace dsv4

// A new arena of `budget` bytes for experts of at most `largest`; places: how many fit. Returns its handle, 0 if fewer
// than two fit, or -1 if the system gives no memory.
extern "C" int64_t dsv4_residency_open(int64_t budget, int64_t largest, int64_t* places) {
    const auto arena = std::make_shared<Arena>();
    arena->place_bytes = up(largest) + PIECES * 2 * BLOCK;
    *places = budget / arena->place_bytes;
    if (*places < 2) return 0;
    arena->memory_bytes = *places * arena->place_bytes;
    arena->memory = new_memory(arena->memory_bytes);
    if (!arena->memory) return -1;
    arena->in_place.assign(size_t(*places), nullptr);
    arena->places = *places;
    for (int i = 0; i < READERS; i++) std::thread([arena] { arena->serve(); }).detach();
    Registry& r = registry();
    const std::lock_guard<std::mutex> hold(r.lock);
    r.arenas[++r.last] = arena;
    r.count++;
    return r.last;
}

// Memory [base, base + bytes) is the map of the file at `path`, whose experts this arena reads from now on. Returns 0, or
// the system's error if it cannot be read; EEXIST if the map belongs to an arena already.
extern "C" int dsv4_residency_file(int64_t handle, const char* path, const void* base, int64_t bytes) {
    const std::shared_ptr<Arena> arena = arena_named(handle);
    ExpertFile file{(const char*)base, bytes};
    if (arena_of(&base, 1)) return EEXIST;
    if (const int wrong = open_file(file, path)) return wrong;
    {
        const std::lock_guard<std::mutex> hold(arena->lock);
        arena->files.push_back(file);
    }
    Registry& r = registry();
    const std::lock_guard<std::mutex> hold(r.lock);
    r.maps[file.base] = {file.base + bytes, arena};
    return 0;
}

// The experts of this arena are used where they lie from now on. Waits for a layer that uses it.
extern "C" void dsv4_residency_close(int64_t handle) {
    const std::shared_ptr<Arena> arena = arena_named(handle);
    if (!arena) return;
    Registry& r = registry();
    {
        const std::lock_guard<std::mutex> hold(r.lock);
        for (auto map = r.maps.begin(); map != r.maps.end();)
            map = map->second.arena == arena ? r.maps.erase(map) : std::next(map);
        r.arenas.erase(handle);
        r.count--;
    }
    arena->close();
}

// counts[0..8) of an arena, or of all for handle 0: bytes read, experts taken, those of them that were not there, experts
// there now, layers done in the running step, layers of a step, experts taken for the first time since they were read
// ahead, nanoseconds in which something was read
extern "C" void dsv4_residency_counts(int64_t handle, int64_t* counts) {
    Registry& r = registry();
    std::fill(counts, counts + 8, 0);
    const std::lock_guard<std::mutex> all(r.lock);
    for (const auto& [name, arena] : r.arenas) {
        if (handle && name != handle) continue;
        Arena& s = *arena;
        const std::lock_guard<std::mutex> hold(s.lock);
        counts[0] += s.read_bytes, counts[1] += s.taken, counts[2] += s.missed;
        counts[3] += int64_t(s.in_place.size()) - std::count(s.in_place.begin(), s.in_place.end(), nullptr);
        if (s.layers) counts[4] = s.layer, counts[5] = s.layers;
        counts[6] += s.foreseen;
        counts[7] += std::chrono::nanoseconds(s.reading + (s.busy ? Clock::now() - s.since : Clock::duration{})).count();
    }
}

// Why an expert could not be read in this thread's last call that failed so, as the system words it.
extern "C" void dsv4_residency_problem(char* text, int64_t bytes) {
    std::strncpy(text, explained.c_str(), size_t(bytes));
    text[bytes - 1] = 0;
}
