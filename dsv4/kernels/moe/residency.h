// Experts used in place from the memory map of their file, within a budget: those about to be read are asked of the
// disk at once, those not used for longest are let go. Off until `dsv4_residency_budget` is called.
#pragma once
#include <cstdint>

namespace dsv4 {

struct Piece {
    const void* data;
    int64_t bytes;
};

// the bytes that experts may take at most; 0 = off
int64_t residency_budget();

// Announces one expert: its pieces are read ahead as one request where they lie side by side. Lets go the oldest ones
// beyond the budget. Pieces outside the registered maps are left alone.
void residency_want(const Piece* pieces, int count);

}  // namespace dsv4
