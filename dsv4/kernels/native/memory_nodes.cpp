// Pages of memory put on memory nodes (NUMA), by the system calls of Linux alone: no libnuma.
#include <cerrno>
#include <cstdint>
#include <vector>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

namespace {

// <linux/mempolicy.h>
constexpr int POLICY_PREFERRED = 1, POLICY_INTERLEAVE = 3, MOVE_OWN = 2;
constexpr int64_t MOST_NODES = 1024, WORD = 8 * sizeof(unsigned long);
constexpr int64_t TOGETHER = 4096;  // pages of one call

// This thread's policy of new pages, until it ends.
class NewPages {
   public:
    NewPages(const int64_t* nodes, int64_t count) {
        if (syscall(SYS_get_mempolicy, &before_, before_nodes_, MOST_NODES + 1, nullptr, 0)) wrong_ = errno;
        unsigned long wanted[MOST_NODES / WORD + 1]{};
        for (int64_t i = 0; i < count; i++) wanted[nodes[i] / WORD] |= 1ul << nodes[i] % WORD;
        const int policy = count == 1 ? POLICY_PREFERRED : POLICY_INTERLEAVE;
        if (!wrong_ && syscall(SYS_set_mempolicy, policy, wanted, MOST_NODES + 1)) wrong_ = errno;
    }
    NewPages(const NewPages&) = delete;
    ~NewPages() {
        if (!wrong_) syscall(SYS_set_mempolicy, before_, before_nodes_, MOST_NODES + 1);
    }
    int wrong() const { return wrong_; }

   private:
    int before_ = 0, wrong_ = 0;
    unsigned long before_nodes_[MOST_NODES / WORD + 1]{};
};

}  // namespace
#endif

// The pages of memory [base, base + bytes) are read, on the nodes where they belong if they were not in memory; those that
// lie elsewhere are moved. The page at address a belongs on nodes[a / page size % count]. elsewhere: bytes of pages that
// lie on another node in the end, because other processes use them too or the node is full. Returns 0, or the system's
// error.
extern "C" int dsv4_place_pages(const void* base, int64_t bytes, const int64_t* nodes, int64_t count,
                                int64_t* elsewhere) {
    *elsewhere = 0;
#if defined(__linux__)
    for (int64_t i = 0; i < count; i++)
        if (nodes[i] < 0 || nodes[i] >= MOST_NODES) return EINVAL;
    if (count < 1) return EINVAL;
    const NewPages policy(nodes, count);
    if (policy.wrong()) return policy.wrong();
    const intptr_t page = sysconf(_SC_PAGESIZE), end = (intptr_t)base + bytes;
    std::vector<void*> pages;
    std::vector<int> wanted, found;
    for (intptr_t at = (intptr_t)base / page * page; at < end;) {
        pages.clear(), wanted.clear();
        for (; at < end && int64_t(pages.size()) < TOGETHER; at += page) {
            (void)*(const volatile char*)at;
            pages.push_back((void*)at), wanted.push_back(int(nodes[at / page % count]));
        }
        found.assign(pages.size(), -1);
        if (syscall(SYS_move_pages, 0, pages.size(), pages.data(), wanted.data(), found.data(), MOVE_OWN) < 0)
            return errno;
        // NOTE: some kernels leave the state of pages that they did not move as an error: it is asked for apart
        if (syscall(SYS_move_pages, 0, pages.size(), pages.data(), nullptr, found.data(), 0) < 0) return errno;
        for (size_t i = 0; i < pages.size(); i++) *elsewhere += found[i] == wanted[i] ? 0 : page;
    }
    return 0;
#else
    (void)base, (void)bytes, (void)nodes, (void)count;
    return ENOSYS;
#endif
}
