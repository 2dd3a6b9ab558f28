#include "arena.h"

#include <algorithm>
#include <cstring>
#include <thread>

namespace dsv4 {

namespace {

constexpr int64_t CHUNK = int64_t(4) << 20;  // of one read: a few of them keep a disk busy
constexpr int GUESSES = 3;  // reads for guesses at a time: what is running when a layer chooses delays what it chose

int64_t down(int64_t n) { return n / BLOCK * BLOCK; }
int64_t up(int64_t n) { return down(n + BLOCK - 1); }

}  // namespace

// Takes memory and starts the readers. False if the system gives no memory; `places` says how many experts fit.
bool Arena::open(int64_t budget, int64_t largest) {
    place_bytes = up(largest) + PIECES * 2 * BLOCK;
    const int64_t count = budget / place_bytes;
    if (count < 2) return true;
    memory_bytes = count * place_bytes;
    memory = new_memory(memory_bytes);
    if (!memory) return false;
    in_place.assign(size_t(count), nullptr);
    places = count;
    return true;
}

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

void Arena::use(Resident* expert) {
    uses++;
    const double old = expert->heat, n = now();
    expert->heat = old == COLD ? n : std::max(old, n) + std::log2(1 + std::exp2(-std::abs(old - n)));
    expert->lent = COLD;
}

// a place that nothing needs now, that of the coldest expert; -1: none
int64_t Arena::empty_place() {
    int64_t best = -1;
    double least = 0;
    for (int64_t p = 0; p < int64_t(in_place.size()); p++) {
        const Resident* r = in_place[p];
        if (!r) return p;
        const double heat = std::max(r->heat, r->lent);
        if (!r->holds && !r->missing && !r->guessed && (best < 0 || heat < least)) best = p, least = heat;
    }
    if (best >= 0) unseat(in_place[best]);
    return best;
}

bool Arena::seat(Resident* expert, std::unique_lock<std::mutex>& hold, bool wait) {
    int64_t place = empty_place();
    while (place < 0 && wait) {
        forget_guesses();
        if ((place = empty_place()) < 0) done.wait(hold);
    }
    if (place < 0) return false;
    in_place[place] = expert, expert->place = place, expert->failed = false;
    return true;
}

void Arena::unseat(Resident* expert) {
    in_place[expert->place] = nullptr;
    expert->place = -1, expert->early = expert->guessed = false;
    expert->cut.clear();
}

void Arena::queue(Resident* expert, std::deque<Read>& to) {
    char* place = memory + expert->place * place_bytes;
    int count = 0;
    for (const Resident::Part& part : expert->parts)
        for (int64_t first = part.first; first < part.last; first += CHUNK, count++)
            to.push_back({expert, part.file, first, std::min(CHUNK, up(part.last) - first),
                          place + part.at + (first - part.first), false});
    expert->missing = count;
    work.notify_all();
}

// What is left to read of an expert that has a place comes before all that is read ahead.
void Arena::move_forward(Resident* expert) {
    wanted.insert(wanted.end(), expert->cut.begin(), expert->cut.end());
    expert->missing += int(expert->cut.size());
    expert->cut.clear();
    const auto rest = std::stable_partition(ahead_reads.begin(), ahead_reads.end(),
                                            [&](const Read& r) { return r.expert != expert; });
    wanted.insert(wanted.end(), rest, ahead_reads.end());
    ahead_reads.erase(rest, ahead_reads.end());
    work.notify_all();
}

void Arena::read_ahead(Resident* expert, bool guess) {
    if (expert->queued || (expert->place >= 0 && expert->cut.empty())) return;
    expert->guessed = guess, expert->early = true;
    if (expert->place >= 0) {  // its reading goes on
        ahead_reads.insert(ahead_reads.end(), expert->cut.begin(), expert->cut.end());
        expert->missing += int(expert->cut.size());
        expert->cut.clear();
    } else {
        expert->queued = true;
        ahead.push_back(expert);
    }
    work.notify_one();
}

void Arena::forget_guesses() {
    const auto guesses = std::stable_partition(ahead.begin(), ahead.end(), [](Resident* r) { return !r->guessed; });
    for (auto at = guesses; at != ahead.end(); at++) (*at)->queued = (*at)->guessed = (*at)->early = false;
    ahead.erase(guesses, ahead.end());
    for (Resident* r : std::vector<Resident*>(in_place)) {
        if (!r || !r->guessed) continue;
        r->guessed = false;
        const auto rest = std::stable_partition(ahead_reads.begin(), ahead_reads.end(),
                                                [&](const Read& read) { return read.expert != r; });
        r->cut.assign(rest, ahead_reads.end());
        ahead_reads.erase(rest, ahead_reads.end());
        r->missing -= int(r->cut.size());
        if (!r->missing && !r->cut.empty()) unseat(r);
    }
    done.notify_all();
    if (has_work()) work.notify_one();
}

bool Arena::may_begin(bool guess) const { return !guess || guessing < GUESSES; }

bool Arena::has_work() const {
    return !wanted.empty() || (!ahead_reads.empty() && may_begin(ahead_reads.front().expert->guessed)) ||
           (ahead_reads.empty() && !ahead.empty() && may_begin(ahead.front()->guessed));
}

// The read that comes first, where there is one. An expert that is read ahead gets its place here.
bool Arena::next_read(std::unique_lock<std::mutex>& hold, Read& read) {
    if (wanted.empty() && ahead_reads.empty()) {
        Resident* expert = ahead.front();
        ahead.pop_front();
        expert->queued = false;
        if (!seat(expert, hold, false)) {
            expert->guessed = expert->early = false;
            return false;
        }
        expert->lent = now();
        queue(expert, ahead_reads);
    }
    std::deque<Read>& from = wanted.empty() ? ahead_reads : wanted;
    read = from.front();
    from.pop_front();
    read.guess = read.expert->guessed;
    if (!busy++) since = Clock::now();
    guessing += read.guess;
    if (has_work()) work.notify_one();
    return true;
}

void Arena::read_done(const Read& read, int wrong) {
    Resident* expert = read.expert;
    guessing -= read.guess;
    if (!--busy) reading += Clock::now() - since;
    read_bytes += read.bytes;
    if (wrong) {
        expert->failed = true;
        problem = std::strerror(wrong);
    }
    if (--expert->missing == 0 && !expert->cut.empty()) unseat(expert);
    if (!expert->missing || !busy) done.notify_all();
}

// one reader, until the arena is closed
void Arena::serve() {
    std::unique_lock<std::mutex> hold(lock);
    for (;;) {
        work.wait(hold, [&] { return closed || has_work(); });
        if (closed) return;
        Read read;
        if (!next_read(hold, read)) continue;
        const ExpertFile file = files[read.file];
        hold.unlock();
        const int wrong = read_file(file, read.first, read.bytes, read.to);
        hold.lock();
        read_done(read, wrong);
    }
}

// Waits for a layer that uses the arena, and ends the readers.
void Arena::close() {
    const std::lock_guard<std::mutex> no_layer(turn);
    std::unique_lock<std::mutex> hold(lock);
    wanted.clear(), ahead_reads.clear(), ahead.clear();
    done.wait(hold, [&] { return !busy; });
    known.clear(), in_place.clear();
    for (const ExpertFile& file : files) close_file(file);
    files.clear();
    free_memory(memory, memory_bytes);
    memory = nullptr, places = 0, closed = true;
    work.notify_all();
}

}  // namespace dsv4
