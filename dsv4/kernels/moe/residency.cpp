#include "residency.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <thread>

#include "arena.h"

using namespace dsv4;

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
    if (expert->place >= 0 && expert->failed && !expert->missing) s.unseat(expert);
    if (expert->place < 0) {
        s.missed++;
        if (expert->queued) s.ahead.erase(std::find(s.ahead.begin(), s.ahead.end(), expert)), expert->queued = false;
        s.seat(expert, hold, true);
        s.queue(expert, s.wanted);
    } else {
        s.foreseen += expert->early;
        if (expert->missing || !expert->cut.empty()) s.move_forward(expert);
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
    const auto since = Clock::now();
    s.done.wait(hold, one);
    s.waiting += Clock::now() - since;
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
    if (Resident* expert = s.find(pieces)) s.read_ahead(expert, guess == Guess::MAYBE);
}

bool residency_known(Arena& s, const Piece* pieces) {
    const std::lock_guard<std::mutex> hold(s.lock);
    const Resident* expert = s.find(pieces);
    return !expert || expert->place >= 0 || expert->queued;
}

GuessRecord& residency_guesses(Arena& s) { return s.guesses; }

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
    if (!arena->open(budget, largest)) return -1;
    *places = arena->places;
    if (!*places) return 0;
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

// counts[0..9) of an arena, or of all for handle 0: bytes read, experts taken, those of them that were not there, experts
// there now, layers done in the running step, layers of a step, experts taken for the first time since they were read
// ahead, nanoseconds in which something was read, and in which layers waited for that
extern "C" void dsv4_residency_counts(int64_t handle, int64_t* counts) {
    Registry& r = registry();
    std::fill(counts, counts + 9, 0);
    const std::lock_guard<std::mutex> all(r.lock);
    for (const auto& [name, arena] : r.arenas) {
        if (handle && name != handle) continue;
        Arena& s = *arena;
        const std::lock_guard<std::mutex> hold(s.lock);
        counts[0] += s.read_bytes, counts[1] += s.taken, counts[2] += s.missed;
        counts[3] += int64_t(s.in_place.size()) - std::count(s.in_place.begin(), s.in_place.end(), nullptr);
        if (s.layers) counts[4] = s.layer, counts[5] = s.layers;
        counts[6] += s.foreseen;
        counts[8] += std::chrono::nanoseconds(s.waiting).count();
        counts[7] += std::chrono::nanoseconds(s.reading + (s.busy ? Clock::now() - s.since : Clock::duration{})).count();
    }
}

// Why an expert could not be read in this thread's last call that failed so, as the system words it.
extern "C" void dsv4_residency_problem(char* text, int64_t bytes) {
    std::strncpy(text, explained.c_str(), size_t(bytes));
    text[bytes - 1] = 0;
}
