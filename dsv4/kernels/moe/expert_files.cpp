#include "expert_files.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#if defined(__unix__) || defined(__APPLE__)
#define DSV4_POSIX 1
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace dsv4 {

#ifdef DSV4_POSIX

namespace {

#ifdef __APPLE__
using Seen = char;
#else
using Seen = unsigned char;
#endif

// whether the first and the last page of a range are in the page cache, so that copying beats the disk
bool in_page_cache(const ExpertFile& file, int64_t first, int64_t bytes) {
    static const int64_t page = sysconf(_SC_PAGESIZE);
    for (const int64_t at : {first, std::min(first + bytes, file.bytes) - 1}) {
        Seen there = 0;
        if (mincore((void*)(file.base + at / page * page), size_t(page), &there) || !(there & 1)) return false;
    }
    return true;
}

// Reads until `least` bytes are there; asks for `bytes`. Returns 0, or the system's error.
int read_fully(int file, char* to, int64_t bytes, int64_t first, int64_t least) {
    int64_t got = 0;
    while (got < least) {
        const ssize_t n = pread(file, to + got, size_t(bytes - got), off_t(first + got));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n == 0 ? ENODATA : errno;
        got += n;
    }
    return 0;
}

}  // namespace

int open_file(ExpertFile& file, const char* path) {
    file.cached = open(path, O_RDONLY | O_CLOEXEC);
    if (file.cached < 0) return errno;
#ifdef O_DIRECT
    file.direct = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);  // not every file system has it
#endif
    return 0;
}

void close_file(const ExpertFile& file) {
    if (file.cached >= 0) close(file.cached);
    if (file.direct >= 0) close(file.direct);
}

int read_file(const ExpertFile& file, int64_t first, int64_t bytes, char* to) {
    const int64_t least = std::min(bytes, file.bytes - first);
    if (file.direct >= 0 && !in_page_cache(file, first, bytes) && !read_fully(file.direct, to, bytes, first, least))
        return 0;
    return read_fully(file.cached, to, least, first, least);
}

char* new_memory(int64_t bytes) {
    void* made = mmap(nullptr, size_t(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE
    (void)madvise(made, size_t(bytes), MADV_HUGEPAGE);
#endif
    return (char*)made;
}

void free_memory(char* memory, int64_t bytes) { munmap(memory, size_t(bytes)); }

#else  // the map of the file is the only way to it

int open_file(ExpertFile&, const char*) { return 0; }
void close_file(const ExpertFile&) {}

int read_file(const ExpertFile& file, int64_t first, int64_t bytes, char* to) {
    std::memcpy(to, file.base + first, size_t(std::min(bytes, file.bytes - first)));
    return 0;
}

char* new_memory(int64_t bytes) { return (char*)std::calloc(1, size_t(bytes)); }
void free_memory(char* memory, int64_t) { std::free(memory); }

#endif

}  // namespace dsv4
