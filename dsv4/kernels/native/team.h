// The threads that share the work of a step.
//
// OpenMP's threads do not fit there. A region waits for all of them, also for one that has no core at the time; and as
// soon as two threads of a process have used OpenMP on a machine of two cores, its workers sleep between two regions,
// so that each region begins with a wake-up. A helper of a team takes part in a piece of work if it is there in time,
// watches for the next one for a bounded time, and offers its core to others meanwhile.
#pragma once
#include <cstdint>

namespace dsv4 {

// A thread and its helpers. Which of them computes a piece changes no bit of a result.
class Team;

// The team of this thread's running step; null outside of one, where OpenMP shares out the work.
Team* active_team();

using Work = void (*)(const void* body, int64_t index);

// Calls work(body, i) for every i in [0, count), `together` neighbours at a time, on at most `threads` threads.
void share_out(Team& team, Work work, const void* body, int64_t count, int64_t together, int threads);

// Whether the helpers are left alone for a time, because they cost more than they did: the machine gives their cores to
// something else, and the thread waited for pieces that they had begun.
bool resting(const Team& team);

// Where the threads of a team may run: thread t, of which 0 is the caller, on the processors cpus[first[t]] to
// cpus[first[t + 1] - 1], which are near memory node node[t] of `nodes`. Further threads run anywhere, near node 0.
struct ThreadPlaces {
    const int64_t *cpus, *first, *node;
    int64_t threads, nodes;
};

// How many memory nodes the threads of the team are near to; 1 unless they have places.
int64_t near_nodes(const Team& team);
// the one that this thread is near to, within a piece of work
int64_t near_node();

// While it lives, this thread's pieces of work go to its team, with helpers for `threads` threads; they and this thread
// run at their places, if there are any. Where the system refuses, they run where they did: that changes no bit.
class TeamUse {
   public:
    explicit TeamUse(int threads, const ThreadPlaces* places = nullptr);
    ~TeamUse();
    TeamUse(const TeamUse&) = delete;
    const Team& team() const { return team_; }

   private:
    Team& team_;
};

}  // namespace dsv4
