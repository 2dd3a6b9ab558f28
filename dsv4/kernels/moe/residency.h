// Experts larger than memory: read from their files into an arena of equal places, within a budget of bytes. Every model
// with a budget has an arena of its own, which is found by the address of an expert in the map of its file.
//
// An expert is `taken` before a layer uses it and given back afterwards. Threads read experts that are not in the arena,
// past the page cache where the system allows it. The place of the expert with the least `heat` is used again: heat
// counts uses, and halves with as many uses of any expert as there are places.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

namespace dsv4 {

constexpr int PIECES = 6;  // three matrices and their scales

// where a piece lies in the map of its file; null: there is none
struct Piece {
    const void* data;
    int64_t bytes;
};

struct Resident;

// An expert in use: where its pieces can be read once it is ready.
struct Taken {
    const void* at[PIECES];
    Resident* resident;  // null: the expert does not lie in a registered file, and is read where it lies
};

enum class Guess {
    SURE,   // it will be taken in this step
    MAYBE,  // `residency_forget` takes it back
};

struct Arena;
class GuessRecord;

// The arena of the first of these addresses that lies in a registered file; null: none does. Who keeps it may use it
// after its budget has ended: then it has no places and no files.
std::shared_ptr<Arena> arena_of(const void* const* addresses, int64_t count);

// how many experts an arena holds; 0 without one
int64_t residency_places(const Arena* arena);

// One layer of one step uses an arena at a time: who calls `residency_take` is between these two.
void residency_enter(Arena& arena);
void residency_leave(Arena& arena);

// Starts reading an expert that is not there. It stays until it is given back. A caller may hold as many as there are
// places.
Taken residency_take(Arena& arena, const Piece* pieces);
// Whether an expert can be read, or reading it has failed; does not wait.
bool residency_here(const Taken& taken);
// Waits until that holds for one of some experts.
void residency_wait(Arena& arena, const std::vector<const Taken*>& experts);
// Waits until an expert can be read. False if its file could not be read.
bool residency_ready(Arena& arena, const Taken& taken);
void residency_give_back(Arena& arena, const Taken& taken);
// `dsv4_residency_problem` in this thread is about this arena.
void residency_explain(Arena& arena);

// Reads an expert ahead, after all that were taken. It gets a place when its reading begins.
void residency_hint(Arena& arena, const Piece* pieces, Guess guess);
// Forgets guesses, and what of them is still to be read.
void residency_forget(Arena& arena);
// Whether an expert is in memory, being read, or read ahead soon.
bool residency_known(Arena& arena, const Piece* pieces);
// How often guesses were right. One step of a model uses it at a time.
GuessRecord& residency_guesses(Arena& arena);

// What the running step has done: layers of all layers, for those who wait for it. Nothing without an arena.
void residency_progress(Arena* arena, int64_t done, int64_t layers);

}  // namespace dsv4
