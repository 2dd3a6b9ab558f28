// Pieces of work shared out by the memory that they read. The threads of a team that has places (team.h) take pieces
// whose memory is near them first, and then help with the others, so that no thread waits while there is work.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "parallel.h"

namespace dsv4 {

constexpr int64_t ANY_NODE = -1;  // memory that is spread over all nodes

// The pieces by their node; those of ANY_NODE last.
class NearPieces {
   public:
    template <class Near>
    NearPieces(int64_t count, int64_t nodes, const Near& near) : nodes_(nodes), lists_(size_t(nodes + 1)) {
        order_.reserve(size_t(count));
        for (int64_t list = 0; list <= nodes; list++) {
            lists_[size_t(list)].next = int64_t(order_.size());
            for (int64_t i = 0; i < count; i++)
                if (list_of(near(i)) == list) order_.push_back(i);
            lists_[size_t(list)].end = int64_t(order_.size());
        }
    }

    // A piece that no other call gets. As many calls as there are pieces get one.
    int64_t take(int64_t node) {
        for (int64_t turn = 0; turn <= nodes_; turn++) {
            // its own, then what is as near to all, then those of the others
            List& list = lists_[size_t(turn == 0 ? list_of(node) : turn == 1 ? nodes_ : (node + turn - 1) % nodes_)];
            const int64_t place = list.next.fetch_add(1, std::memory_order_relaxed);
            if (place < list.end) return order_[size_t(place)];
        }
        return -1;  // never: every call before took one piece at most
    }

   private:
    struct alignas(64) List {
        std::atomic<int64_t> next{0};
        int64_t end = 0;
    };

    int64_t list_of(int64_t node) const { return node >= 0 && node < nodes_ ? node : nodes_; }

    int64_t nodes_;
    std::vector<int64_t> order_;
    std::vector<List> lists_;
};

// As `parallel`, one piece at a time; near(i) is the memory node of piece i, or ANY_NODE.
template <class Near, class Body>
void parallel_near(int threads, int64_t count, const Near& near, const Body& body) {
    const Team* team = active_team();
    const int64_t nodes = team ? near_nodes(*team) : 1;
    if (nodes <= 1 || threads <= 1 || count <= 1) return parallel(threads, count, body);
    NearPieces pieces(count, nodes, near);
    parallel(threads, count, [&](int64_t) { body(pieces.take(near_node())); });
}

}  // namespace dsv4
