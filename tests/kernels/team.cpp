// Checks of a team of threads, for test_team.py: exits with 0, or says what is wrong.
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <thread>
#include <vector>

#include "native/near.h"
#include "native/parallel.h"

using namespace dsv4;
using namespace std::chrono_literals;

namespace {

void require(bool good, const char* what) {
    if (good) return;
    std::printf("wrong: %s\n", what);
    std::exit(1);
}

// every piece once, and what pieces of work before it wrote is there
void count_all(int rounds) {
    for (int round = 0; round < rounds; round++) {
        const int threads = 1 + round % 4;
        const int64_t count = round % 67, together = 1 + round % 5;
        std::vector<int> seen(size_t(count), 0), after(size_t(count), 0);
        const TeamUse use(threads);
        parallel(threads, count, [&](int64_t i) { seen[size_t(i)]++; }, together);
        parallel(threads, count, [&](int64_t i) { after[size_t(i)] = seen[size_t(count - 1 - i)]; });
        for (int64_t i = 0; i < count; i++) require(after[size_t(i)] == 1, "a piece was computed once");
    }
}

// pieces long enough that a helper that wakes takes one
void until_helped() {
    const auto until = std::chrono::steady_clock::now() + 120s;
    std::atomic<bool> helped{false};
    const auto caller = std::this_thread::get_id();
    while (!helped && std::chrono::steady_clock::now() < until) {
        std::this_thread::sleep_for(5ms);  // helpers sleep again
        const TeamUse use(2);
        parallel(2, 20, [&](int64_t) {
            if (std::this_thread::get_id() != caller) helped = true;
            std::this_thread::sleep_for(1ms);
        });
    }
    require(helped, "a helper that slept took part");
}

// a step in which the thread waits 50 ms for a piece that a helper has begun, once one is there
void wait_for_helper() {
    const TeamUse use(2);
    const auto caller = std::this_thread::get_id();
    std::atomic<bool> begun{false};
    const auto until = std::chrono::steady_clock::now() + 120s;
    while (!begun && std::chrono::steady_clock::now() < until)
        parallel(2, 2, [&](int64_t) {
            if (std::this_thread::get_id() != caller) {
                begun = true;
                std::this_thread::sleep_for(50ms);
            } else {
                for (int i = 0; i < 5 && !begun; i++) std::this_thread::sleep_for(1ms);
            }
        });
    require(begun, "a helper took part");
}

bool rests() {
    const TeamUse use(2);
    return resting(use.team());
}

// What is lost during a rest, which makes use of helpers for large work only, does not begin the next one.
void rest_once() {
    const auto until = std::chrono::steady_clock::now() + 120s;
    bool rested = false;
    while (!rested && std::chrono::steady_clock::now() < until) wait_for_helper(), rested = rests();
    require(rested, "helpers that cost much rest");
    wait_for_helper();
    std::this_thread::sleep_for(600ms);
    require(!rests(), "a rest ends");
    require(!rests(), "a rest does not begin by what was lost in the one before");
}

int64_t tasks() {
    int64_t count = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) count++;
    return count;
}

std::vector<int64_t> cpus_of_this_thread() {
    cpu_set_t set;
    require(!sched_getaffinity(0, sizeof set, &set), "the system tells the processors of a thread");
    std::vector<int64_t> found;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &set)) found.push_back(cpu);
    return found;
}

// where the helper of this thread's team computes, once it takes part
std::vector<int64_t> cpus_of_helper(const ThreadPlaces* places) {
    const auto until = std::chrono::steady_clock::now() + 120s;
    const auto caller = std::this_thread::get_id();
    std::vector<int64_t> found;
    while (found.empty() && std::chrono::steady_clock::now() < until) {
        const TeamUse use(2, places);
        require(near_nodes(use.team()) == (places ? 2 : 1), "a team without places has one node");
        std::mutex lock;
        parallel(2, 20, [&](int64_t) {
            std::this_thread::sleep_for(1ms);
            const std::lock_guard hold(lock);
            if (std::this_thread::get_id() != caller) found = cpus_of_this_thread();
        });
    }
    return found;
}

// Steps on two nodes whose processors are those of this machine. Every piece is computed once, by a thread at its place.
void stay_at_places(int rounds) {
    const std::vector<int64_t> all = cpus_of_this_thread();
    const std::vector<int64_t> cpus{all.front(), all.back()}, first{0, 1, 2}, node{0, 1};
    const ThreadPlaces places{cpus.data(), first.data(), node.data(), 2, 2};
    const auto caller = std::this_thread::get_id();
    for (int round = 0; round < rounds; round++) {
        const int64_t count = round % 67;
        std::vector<int> seen(size_t(count), 0);
        std::atomic<int> astray{0};
        {
            const TeamUse use(2, &places);
            require(near_nodes(use.team()) == 2, "a team knows its nodes");
            const auto near = [](int64_t i) { return i % 3 - 1; };  // ANY_NODE too
            parallel_near(2, count, near, [&](int64_t i) {
                seen[size_t(i)]++;
                const size_t own = std::this_thread::get_id() == caller ? 0 : 1;
                astray += near_node() != node[own] || cpus_of_this_thread() != std::vector{cpus[own]};
            });
        }
        for (const int times : seen) require(times == 1, "a piece near a node was computed once");
        require(astray == 0, "threads compute at their places");
        require(cpus_of_this_thread() == all, "the caller goes back after a step");
    }
    require(cpus_of_helper(&places) == std::vector{cpus[1]}, "a helper computes at its place");
    require(cpus_of_helper(nullptr) == all, "a helper without a place runs anywhere again");
}

void take_near_pieces_first() {
    const std::vector<int64_t> node{1, 0, ANY_NODE, 1, 2, 0};
    const auto order = [&](int64_t of) {
        NearPieces pieces(6, 3, [&](int64_t i) { return node[size_t(i)]; });
        std::vector<int64_t> found;
        for (int i = 0; i < 6; i++) found.push_back(pieces.take(of));
        return found;
    };
    require(order(0) == std::vector<int64_t>{1, 5, 2, 0, 3, 4}, "node 0 takes its own, then shared, then others' pieces");
    require(order(2) == std::vector<int64_t>{4, 2, 1, 5, 0, 3}, "node 2 does too");
}

}  // namespace

int main() {
    require(active_team() == nullptr, "no team outside of a step");
    count_all(2000);
    take_near_pieces_first();
    std::thread(stay_at_places, 300).join();
    until_helped();
    std::thread(rest_once).join();  // in a team of its own
    const int64_t before = tasks();
    std::vector<std::thread> callers;
    for (int i = 0; i < 3; i++) callers.emplace_back(count_all, 300);
    for (std::thread& caller : callers) caller.join();
    require(tasks() == before, "helpers end with their caller");
    const pid_t child = fork();
    if (child == 0) {
        count_all(300);
        std::exit(0);
    }
    int status = 1;
    waitpid(child, &status, 0);
    require(status == 0, "a forked process has a team of its own");
    std::puts("good");
}
