// What `residency.h` keeps: the experts in memory, their places, and the reads that fill them.
#pragma once
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "expert_files.h"
#include "guesses.h"
#include "residency.h"

namespace dsv4 {

using Clock = std::chrono::steady_clock;

constexpr int READERS = 6;  // threads of an arena
constexpr double COLD = -std::numeric_limits<double>::infinity();

struct Read {
    Resident* expert;
    int file;
    int64_t first, bytes;
    char* to;
    bool guess;  // while it runs it counts as a read that may be in vain
};

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
    std::vector<Read> cut;        // of a wrong guess whose other reads are running: not to be read unless it is taken
    int holds = 0;
    bool queued = false;   // in `Arena::ahead`: it has no place yet
    bool guessed = false;  // `residency_forget` takes it back
    bool early = false;    // read ahead, not taken yet
    bool failed = false;
    double heat = COLD, lent = COLD;  // by its uses; since it was read ahead, until it is used
};

struct Arena {
    std::mutex lock, turn;
    std::condition_variable work, done;
    std::vector<ExpertFile> files;
    std::deque<Read> wanted, ahead_reads;  // of experts with a place: taken ones, and those that are read ahead
    std::deque<Resident*> ahead;           // to be read ahead; a place is chosen when their reading begins
    std::unordered_map<const void*, std::unique_ptr<Resident>> known;
    std::vector<Resident*> in_place;
    char* memory = nullptr;
    int64_t place_bytes = 0, memory_bytes = 0, uses = 0;
    int busy = 0, guessing = 0;  // readers; those of them that read for guesses
    Clock::time_point since;     // when the first of them became busy
    Clock::duration reading{}, waiting{};
    bool closed = false;
    std::atomic<int64_t> places{0}, read_bytes{0}, taken{0}, missed{0}, foreseen{0}, layer{0}, layers{0};
    std::string problem;
    GuessRecord guesses;

    bool open(int64_t budget, int64_t largest);
    Resident* find(const Piece* pieces);
    double now() const { return double(uses) / double(places); }
    void use(Resident* expert);
    // A place for an expert: false if there is none. `wait`: until there is one.
    bool seat(Resident* expert, std::unique_lock<std::mutex>& hold, bool wait);
    void unseat(Resident* expert);
    void queue(Resident* expert, std::deque<Read>& to);
    void move_forward(Resident* expert);
    void read_ahead(Resident* expert, bool guess);
    void forget_guesses();
    void close();
    void serve();

   private:
    int64_t empty_place();
    bool may_begin(bool guess) const;
    bool has_work() const;
    bool next_read(std::unique_lock<std::mutex>& hold, Read& read);
    void read_done(const Read& read, int wrong);
};

}  // namespace dsv4
