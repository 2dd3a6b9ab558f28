// Experts larger than memory: read from their files into an arena of equal places, within a budget of bytes.
//
// An expert is `taken` before a layer uses it and given back afterwards. Threads read experts that are not in the arena,
// past the page cache where the system allows it. The place of the expert with the least `heat` is used again: heat
// counts uses, and halves with as many uses of any expert as there are places. Off until `dsv4_residency_start`.
#pragma once
#include <cstdint>

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

// how many experts the arena holds; 0 = off
int64_t residency_places();

// One layer of one step uses the arena at a time: who calls `residency_take` is between these two.
void residency_enter();
void residency_leave();

// Starts reading an expert that is not there. It stays until it is given back. A caller may hold as many as there are
// places.
Taken residency_take(const Piece* pieces);
// Waits until an expert can be read. False if its file could not be read.
bool residency_ready(const Taken& taken);
void residency_give_back(const Taken& taken);

// Reads an expert ahead, after all that were taken.
void residency_hint(const Piece* pieces, Guess guess);
// Forgets guesses whose reading has not begun.
void residency_forget();

// What the running step has done: layers of all layers, for those who wait for it.
void residency_progress(int64_t done, int64_t layers);

}  // namespace dsv4
