// Helpers that share pieces of work with the thread that calls them. See team.h.
#include "team.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include <unistd.h>
#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dsv4 {

namespace {

using std::chrono::microseconds, std::chrono::milliseconds;

// how long a helper watches for work after the last piece: longer than what happens between two steps
constexpr auto AWAKE = milliseconds(2);
constexpr auto SLOW = microseconds(100);     // waiting for helpers that is not counted as lost
constexpr milliseconds LEAST(1), MOST(256);  // for which helpers are left alone
constexpr double KEPT = 0.9;                 // of earlier steps in the sums over steps
constexpr double TOO_MUCH = 1.0 / 3;         // of the time, lost: helpers save little more
constexpr int SPINS = 64;                    // looks between two offers of the core to others, about 1 us
constexpr int64_t LINE = 64;                 // bytes of a cache line

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#endif
}

thread_local int64_t near_this = 0;  // the memory node of this thread's place

// The processors that a thread may use.
#if defined(__linux__)
class Cpus {
   public:
    Cpus() { CPU_ZERO(&set_); }
    Cpus(const int64_t* first, const int64_t* last) : Cpus() {
        for (; first < last; first++)
            if (*first >= 0 && *first < CPU_SETSIZE) CPU_SET(*first, &set_);
    }
    static Cpus of_this_thread() {
        Cpus cpus;
        if (pthread_getaffinity_np(pthread_self(), sizeof cpus.set_, &cpus.set_)) CPU_ZERO(&cpus.set_);
        return cpus;
    }
    // NOTE: what the system refuses is told when the places are planned (dsv4/planning/placement.py), not in each step
    void give(pthread_t thread) const {
        if (CPU_COUNT(&set_)) pthread_setaffinity_np(thread, sizeof set_, &set_);
    }
    void give_this_thread() const { give(pthread_self()); }
    bool known() const { return CPU_COUNT(&set_) > 0; }

   private:
    cpu_set_t set_;
};
#else
class Cpus {
   public:
    Cpus() = default;
    Cpus(const int64_t*, const int64_t*) {}
    static Cpus of_this_thread() { return {}; }
    void give(std::thread::native_handle_type) const {}
    void give_this_thread() const {}
    bool known() const { return false; }
};
#endif

}  // namespace

class Team {
   public:
    Team() = default;
    Team(const Team&) = delete;
    ~Team() {
        stop_ = true;
        rouse();
        for (std::thread& thread : threads_) thread.join();
    }

    void enter(int threads, const ThreadPlaces* places);
    void leave();
    void run(Work piece, const void* body, int64_t count, int64_t together, int threads);
    bool resting() const { return resting_; }
    int64_t nodes() const { return nodes_; }

   private:
    using Clock = std::chrono::steady_clock;

    void settle(const ThreadPlaces* places);
    int64_t node_of(size_t thread) const { return thread < node_.size() ? node_[thread] : 0; }
    void rouse();
    void work() noexcept;
    void wait();
    void help(int which);
    uint64_t watch(uint64_t seen);
    void sleep();

    // the number of the piece of work; odd = it is open to helpers
    alignas(LINE) std::atomic<uint64_t> number_{0};
    Work piece_ = nullptr;
    const void* body_ = nullptr;
    int64_t count_ = 0, together_ = 1;
    int helpers_ = 0;  // that may take part
    alignas(LINE) std::atomic<int64_t> next_{0};
    alignas(LINE) std::atomic<int> inside_{0};  // helpers that take part now
    alignas(LINE) std::atomic<bool> asleep_{false};  // a helper sleeps and was not roused yet
    std::atomic<bool> stop_{false};
    std::mutex mutex_;
    std::condition_variable roused_;
    uint64_t calls_ = 0;  // of `rouse`
    std::vector<std::thread> threads_;

    std::vector<int64_t> cpus_, first_, node_;  // of the places; empty without them
    int64_t nodes_ = 1;
    size_t settled_ = 0;  // helpers that are at their places
    Cpus own_;            // of the caller, outside of a step

    bool resting_ = false;
    Clock::time_point began_{}, again_{};
    Clock::duration pause_{};
    double helped_ = 0, lost_ = 0;  // seconds of late steps with helpers, and of waiting in them
};

void Team::enter(int threads, const ThreadPlaces* places) {
    while (int(threads_.size()) < threads - 1) threads_.emplace_back([this, n = int(threads_.size())] { help(n); });
    if (places || !node_.empty()) settle(places);
    began_ = Clock::now();
    resting_ = threads <= 1 || began_ < again_;
    if (!resting_ && asleep_.load(std::memory_order_relaxed)) rouse();
}

// Moves the caller to its place for one step, and helpers to theirs if they are new or the places are.
// NOTE: the caller goes back after the step, because the threads that it starts later would inherit its place
void Team::settle(const ThreadPlaces* places) {
    const int64_t count = places ? places->threads : 0;
    const std::vector<int64_t> first(places ? places->first : nullptr, places ? places->first + count + 1 : nullptr);
    const std::vector<int64_t> cpus(places ? places->cpus : nullptr, places ? places->cpus + first.back() : nullptr);
    const std::vector<int64_t> node(places ? places->node : nullptr, places ? places->node + count : nullptr);
    if (cpus != cpus_ || first != first_ || node != node_) settled_ = 0;
    cpus_ = cpus, first_ = first, node_ = node, nodes_ = places ? places->nodes : 1;
    own_ = Cpus::of_this_thread();
    const auto place = [&](size_t t) {
        return t < node_.size() ? Cpus(&cpus_[0] + first_[t], &cpus_[0] + first_[t + 1]) : own_;
    };
    for (; settled_ < threads_.size(); settled_++) place(settled_ + 1).give(threads_[settled_].native_handle());
    if (!node_.empty() && own_.known()) place(0).give_this_thread();  // else it could not go back
    near_this = node_of(0);
}

void Team::leave() {
    if (!node_.empty()) own_.give_this_thread();
    if (resting_) return;
    helped_ = KEPT * helped_ + std::chrono::duration<double>(Clock::now() - began_).count();
    if (lost_ > TOO_MUCH * helped_) {
        pause_ = std::clamp<Clock::duration>(2 * pause_, LEAST, MOST);
        again_ = Clock::now() + pause_;
        helped_ = lost_ = 0;
    } else {
        pause_ /= 2;
        lost_ *= KEPT;
    }
}

void Team::run(Work piece, const void* body, int64_t count, int64_t together, int threads) {
    piece_ = piece, body_ = body, count_ = count, together_ = together, helpers_ = threads - 1;
    next_.store(0, std::memory_order_relaxed);
    const uint64_t open = number_.load(std::memory_order_relaxed) + 1;
    number_.store(open);
    if (asleep_.load(std::memory_order_relaxed)) rouse();
    work();
    // NOTE: a helper counts itself in before it looks at the number again, so it is seen here or it sees this
    number_.store(open + 1);
    if (inside_.load()) wait();
}

// NOTE: a piece that throws ends the process, as in OpenMP: helpers still use what the exception would take away.
void Team::work() noexcept {
    const int64_t count = count_, together = together_;
    for (int64_t from; (from = next_.fetch_add(together, std::memory_order_relaxed)) < count;)
        for (int64_t i = from; i < std::min(from + together, count); i++) piece_(body_, i);
}

void Team::wait() {
    for (int spins = 0; spins < 16 * SPINS; spins++) {
        if (!inside_.load(std::memory_order_acquire)) return;
        relax();
    }
    const auto began = Clock::now();
    while (inside_.load(std::memory_order_acquire)) {
        for (int spins = 0; spins < SPINS; spins++) relax();
        std::this_thread::yield();
    }
    const auto took = Clock::now() - began;
    if (!resting_ && took > SLOW) lost_ += std::chrono::duration<double>(took).count();
}

void Team::rouse() {
    {
        const std::lock_guard lock(mutex_);
        calls_++;
        asleep_ = false;
    }
    roused_.notify_all();
}

void Team::help(int which) {
    uint64_t seen = 0;
    while (!stop_.load(std::memory_order_relaxed)) {
        const uint64_t number = watch(seen);
        if (!number) {
            sleep();
            continue;
        }
        inside_.fetch_add(1);
        if (number_.load() == number && which < helpers_) {
            near_this = node_of(size_t(which) + 1);
            work();
        }
        inside_.fetch_sub(1, std::memory_order_release);
        seen = number;
    }
}

// The number of a piece of work other than `seen`, once there is one; 0 when none came for a time, or the team ends.
uint64_t Team::watch(uint64_t seen) {
    const auto began = Clock::now();
    do {
        for (int round = 0; round < 16; round++) {
            for (int spins = 0; spins < SPINS; spins++) {
                const uint64_t number = number_.load(std::memory_order_acquire);
                if (number % 2 && number != seen) return number;
                relax();
            }
            std::this_thread::yield();
        }
    } while (!stop_.load(std::memory_order_relaxed) && Clock::now() - began < AWAKE);
    return 0;
}

// NOTE: a piece of work that comes just before `asleep_` is set does without this helper; the next one rouses it.
void Team::sleep() {
    std::unique_lock lock(mutex_);
    const uint64_t calls = calls_;
    asleep_ = true;
    roused_.wait(lock, [&] { return stop_.load() || calls_ != calls; });
}

namespace {

thread_local Team* active = nullptr;

// This thread's team. A forked process has none of its parent's threads, so it gets a team of its own.
// NOTE: the parent's stays where it is: joining threads that do not exist would never end.
Team& own_team() {
    struct Owner {
        Team* team = nullptr;
        pid_t process = 0;
        ~Owner() {
            if (process == getpid()) delete team;
        }
    };
    static thread_local Owner owner;
    if (owner.process != getpid()) owner.team = new Team, owner.process = getpid();
    return *owner.team;
}

}  // namespace

Team* active_team() { return active; }

void share_out(Team& team, Work piece, const void* body, int64_t count, int64_t together, int threads) {
    team.run(piece, body, count, together, threads);
}

bool resting(const Team& team) { return team.resting(); }

int64_t near_nodes(const Team& team) { return team.nodes(); }

int64_t near_node() { return near_this; }

TeamUse::TeamUse(int threads, const ThreadPlaces* places) : team_(own_team()) {
    team_.enter(threads, places);
    active = &team_;
}

TeamUse::~TeamUse() {
    active = nullptr;
    team_.leave();
}

}  // namespace dsv4
