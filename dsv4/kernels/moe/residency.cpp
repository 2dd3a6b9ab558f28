#include "residency.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#define DSV4_POSIX 1
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

using namespace dsv4;

namespace {

constexpr int64_t BLOCK = 4096;              // what reads past the page cache are aligned to
constexpr int64_t CHUNK = int64_t(4) << 20;  // of one read: a few of them keep a disk busy
constexpr int READERS = 6;
constexpr double COLD = -std::numeric_limits<double>::infinity();

int64_t down(int64_t n) { return n / BLOCK * BLOCK; }
int64_t up(int64_t n) { return down(n + BLOCK - 1); }

// A registered file: its map, and descriptors with and without the page cache.
struct File {
    const char* base;
    int64_t bytes;
    int cached = -1, direct = -1;
};

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
    bool guessed = false, failed = false;
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

struct State {
    std::mutex lock, turn;
    std::condition_variable work, done;
    std::vector<File> files;
    std::deque<Read> wanted, ahead;
    std::unordered_map<const void*, std::unique_ptr<Resident>> known;
    std::vector<Resident*> in_place;
    char* arena = nullptr;
    int64_t place_bytes = 0, arena_bytes = 0, uses = 0, readers = 0, busy = 0;
    std::atomic<int64_t> places{0}, read_bytes{0}, taken{0}, missed{0}, layer{0}, layers{0};
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
    void clear();
    void serve();
};

// never destroyed: readers may wait in it while the process ends
State& state() {
    static State* s = new State;
    return *s;
}

// The expert whose first piece lies at this address; null if no piece lies in a registered file.
Resident* State::find(const Piece* pieces) {
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
int64_t State::empty_place(double below) {
    int64_t best = -1;
    double least = below;
    for (int64_t p = 0; p < int64_t(in_place.size()); p++) {
        const Resident* r = in_place[p];
        if (!r) return p;
        if (!r->holds && !r->missing && !r->guessed && r->heat < least) best = p, least = r->heat;
    }
    if (best >= 0) in_place[best]->place = -1, in_place[best] = nullptr;
    return best;
}

bool State::seat(Resident* expert, std::unique_lock<std::mutex>& hold, bool wait) {
    int64_t place = empty_place(std::numeric_limits<double>::infinity());
    while (place < 0 && wait) {
        forget_guesses();
        if ((place = empty_place(std::numeric_limits<double>::infinity())) < 0) done.wait(hold);
    }
    if (place < 0) return false;
    in_place[place] = expert, expert->place = place, expert->failed = false, expert->begun = 0;
    return true;
}

void State::queue(Resident* expert, std::deque<Read>& to) {
    char* place = arena + expert->place * place_bytes;
    int count = 0;
    for (const Resident::Part& part : expert->parts)
        for (int64_t first = part.first; first < part.last; first += CHUNK, count++)
            to.push_back({expert, part.file, first, std::min(CHUNK, up(part.last) - first),
                          place + part.at + (first - part.first)});
    expert->missing = count;
    work.notify_all();
}

void State::move_forward(Resident* expert) {
    const auto rest = std::stable_partition(ahead.begin(), ahead.end(), [&](const Read& r) { return r.expert != expert; });
    wanted.insert(wanted.end(), rest, ahead.end());
    ahead.erase(rest, ahead.end());
}

void State::forget_guesses() {
    for (int64_t p = 0; p < int64_t(in_place.size()); p++) {
        Resident* r = in_place[p];
        if (!r || !r->guessed) continue;
        r->guessed = false;
        if (r->begun) continue;
        ahead.erase(std::remove_if(ahead.begin(), ahead.end(), [&](const Read& read) { return read.expert == r; }),
                    ahead.end());
        r->missing = 0, r->place = -1, in_place[p] = nullptr;
    }
}

#ifdef DSV4_POSIX
#ifdef __APPLE__
using Seen = char;
#else
using Seen = unsigned char;
#endif

// whether the first and the last page of a range are in the page cache, so that copying beats the disk
bool in_page_cache(const File& file, int64_t first, int64_t bytes) {
    static const int64_t page = sysconf(_SC_PAGESIZE);
    for (const int64_t at : {first, std::min(first + bytes, file.bytes) - 1}) {
        Seen there = 0;
        if (mincore((void*)(file.base + at / page * page), size_t(page), &there) || !(there & 1)) return false;
    }
    return true;
}

bool read_fully(int file, char* to, int64_t bytes, int64_t first, int64_t least) {
    int64_t got = 0;
    while (got < least) {
        const ssize_t n = pread(file, to + got, size_t(bytes - got), off_t(first + got));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            if (n == 0) errno = ENODATA;
            return false;
        }
        got += n;
    }
    return true;
}

bool fill(const File& file, const Read& r) {
    const int64_t least = std::min(r.bytes, file.bytes - r.first);
    if (file.direct >= 0 && !in_page_cache(file, r.first, r.bytes) &&
        read_fully(file.direct, r.to, r.bytes, r.first, least))
        return true;
    return read_fully(file.cached, r.to, least, r.first, least);
}

void open_file(File& file, const char* path) {
    file.cached = open(path, O_RDONLY | O_CLOEXEC);
#ifdef O_DIRECT
    file.direct = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);  // not every file system has it
#endif
}

void close_file(const File& file) {
    if (file.cached >= 0) close(file.cached);
    if (file.direct >= 0) close(file.direct);
}

char* new_arena(int64_t bytes) {
    void* made = mmap(nullptr, size_t(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE
    (void)madvise(made, size_t(bytes), MADV_HUGEPAGE);
#endif
    return (char*)made;
}

void free_arena(char* arena, int64_t bytes) { munmap(arena, size_t(bytes)); }

#else  // the map of the file is the only way to it

bool fill(const File& file, const Read& r) {
    std::memcpy(r.to, file.base + r.first, size_t(std::min(r.bytes, file.bytes - r.first)));
    return true;
}
void open_file(File&, const char*) {}
void close_file(const File&) {}
char* new_arena(int64_t bytes) { return (char*)std::malloc(size_t(bytes)); }
void free_arena(char* arena, int64_t) { std::free(arena); }

#endif

// one reader
void State::serve() {
    std::unique_lock<std::mutex> hold(lock);
    for (;;) {
        work.wait(hold, [&] { return !wanted.empty() || !ahead.empty(); });
        std::deque<Read>& from = wanted.empty() ? ahead : wanted;
        const Read read = from.front();
        from.pop_front();
        read.expert->begun++, busy++;
        const File file = files[read.file];
        hold.unlock();
        const bool good = fill(file, read);
        const int why = errno;
        hold.lock();
        busy--;
        read_bytes += read.bytes;
        if (!good) {
            read.expert->failed = true;
            problem = std::strerror(why);
        }
        if (--read.expert->missing == 0 || !busy) done.notify_all();
    }
}

void State::clear() {
    wanted.clear(), ahead.clear(), known.clear(), in_place.clear();
    for (const File& file : files) close_file(file);
    files.clear();
    if (arena) free_arena(arena, arena_bytes);
    arena = nullptr, places = 0, uses = 0, read_bytes = 0, taken = 0, missed = 0, layer = 0, layers = 0;
    problem.clear();
}

}  // namespace

namespace dsv4 {

int64_t residency_places() { return state().places; }

void residency_enter() {
    State& s = state();
    s.turn.lock();
}

void residency_leave() { state().turn.unlock(); }

Taken residency_take(const Piece* pieces) {
    State& s = state();
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
    } else if (expert->missing) {
        s.move_forward(expert);
    }
    expert->guessed = false;
    taken.resident = expert;
    for (int i = 0; i < PIECES; i++)
        if (expert->piece_part[i] >= 0) {
            const Resident::Part& part = expert->parts[expert->piece_part[i]];
            const int64_t first = (const char*)pieces[i].data - s.files[part.file].base;
            taken.at[i] = s.arena + expert->place * s.place_bytes + part.at + (first - part.first);
        }
    return taken;
}

bool residency_ready(const Taken& taken) {
    if (!taken.resident) return true;
    if (taken.resident->missing) {
        State& s = state();
        std::unique_lock<std::mutex> hold(s.lock);
        s.done.wait(hold, [&] { return !taken.resident->missing; });
    }
    return !taken.resident->failed;
}

void residency_give_back(const Taken& taken) {
    if (!taken.resident) return;
    State& s = state();
    const std::lock_guard<std::mutex> hold(s.lock);
    taken.resident->holds--;
    s.done.notify_all();
}

void residency_hint(const Piece* pieces, Guess guess) {
    State& s = state();
    const std::unique_lock<std::mutex> turn(s.turn, std::try_to_lock);
    if (!turn) return;  // another step takes its experts now
    std::unique_lock<std::mutex> hold(s.lock);
    Resident* expert = s.find(pieces);
    if (!expert || expert->place >= 0 || !s.seat(expert, hold, false)) return;
    if (expert->heat == COLD) expert->heat = double(s.uses) / double(s.places);
    expert->guessed = guess == Guess::MAYBE;
    s.queue(expert, s.ahead);
}

void residency_forget() {
    State& s = state();
    const std::lock_guard<std::mutex> hold(s.lock);
    s.forget_guesses();
}

void residency_progress(int64_t done, int64_t layers) {
    State& s = state();
    s.layer = done, s.layers = layers;
}

}  // namespace dsv4

// Experts of the registered files may take `budget` bytes from now on, each at most `largest`; budget 0 = no limit, and
// experts are used where they lie. Waits for a layer that uses the arena, and forgets everything from before. Returns
// the number of experts that fit, or -1 if the system gives no memory.
extern "C" int64_t dsv4_residency_start(int64_t budget, int64_t largest) {
    State& s = state();
    const std::lock_guard<std::mutex> turn(s.turn);
    std::unique_lock<std::mutex> hold(s.lock);
    s.wanted.clear(), s.ahead.clear();
    s.done.wait(hold, [&] { return !s.busy; });
    s.clear();
    if (!budget) return 0;
    s.place_bytes = up(largest) + PIECES * 2 * BLOCK;
    const int64_t places = budget / s.place_bytes;
    if (places < 2) return places;
    s.arena_bytes = places * s.place_bytes;
    s.arena = new_arena(s.arena_bytes);
    if (!s.arena) return -1;
    s.in_place.assign(size_t(places), nullptr);
    for (; s.readers < READERS; s.readers++) std::thread([&s] { s.serve(); }).detach();
    s.places = places;
    return places;
}

// Memory [base, base + bytes) is the map of the file at `path`. Returns 0, or the system's error if it cannot be read.
extern "C" int dsv4_residency_file(const char* path, const void* base, int64_t bytes) {
    State& s = state();
    const std::lock_guard<std::mutex> hold(s.lock);
    File file{(const char*)base, bytes};
    open_file(file, path);
#ifdef DSV4_POSIX
    if (file.cached < 0) return errno;
#endif
    s.files.push_back(file);
    return 0;
}

// counts[0..6): bytes read, experts taken, those of them that were not there, experts there now, layers done in the
// running step, layers of a step
extern "C" void dsv4_residency_counts(int64_t* counts) {
    State& s = state();
    const std::lock_guard<std::mutex> hold(s.lock);
    const int64_t there = int64_t(s.in_place.size()) - std::count(s.in_place.begin(), s.in_place.end(), nullptr);
    const int64_t now[] = {s.read_bytes, s.taken, s.missed, there, s.layer, s.layers};
    std::copy(std::begin(now), std::end(now), counts);
}

// The last problem of a read, as the system words it; empty if there was none.
extern "C" void dsv4_residency_problem(char* text, int64_t bytes) {
    State& s = state();
    const std::lock_guard<std::mutex> hold(s.lock);
    std::strncpy(text, s.problem.c_str(), size_t(bytes));
    text[bytes - 1] = 0;
}
