// The driver's interface over the emulation: two GPUs of compute capability 9.0 and 8.0, whose memory is the system's and
// whose launches run before they return. ISONORM_EMULATED_GPUS is another number of them; where ISONORM_EMULATED_LAUNCHES
// is 0 nothing runs, which leaves the host's side to be timed. Like the driver it refuses
// streams and code of another GPU than the current context's. An access right after an allocation ends the program.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <elf.h>
#include <filesystem>
#include <map>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace {

enum Status { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_CONTEXT = 201, NO_BINARY = 209,
              INVALID_HANDLE = 400, NOT_FOUND = 500 };

struct Context {
    int device;
};
struct Stream {
    Context* context;
};
struct Kernel {
    void (*run)(const void*, unsigned, unsigned, unsigned);
    std::string arch;
};

Context primary[] = {{0}, {1}};
thread_local std::vector<Context*> current;
thread_local int capture_mode = 0;
constexpr std::size_t PAGE = 4096;
std::mutex mutex;
std::map<std::uint64_t, std::pair<char*, std::size_t>> allocations;

int gpus() {
    const char* count = std::getenv("ISONORM_EMULATED_GPUS");
    return count ? std::atoi(count) : 2;
}

bool runs() {
    static const char* launches = std::getenv("ISONORM_EMULATED_LAUNCHES");
    return !launches || std::atoi(launches) != 0;
}

Context* top() { return current.empty() ? nullptr : current.back(); }

bool runs_on(const std::string& arch, int device) {
    const int capability = device == 0 ? 90 : 80, built = std::atoi(arch.c_str() + arch.find('_') + 1);
    return arch.starts_with("sm_") ? built == capability : built <= capability;
}

struct Config { // CUlaunchConfig
    unsigned grid[3], block[3], shared_bytes;
    Stream* stream;
    const struct Attribute {
        int id, padding;
        unsigned value[16];
    }* attributes;
    unsigned attribute_count;
};

} // namespace

extern "C" {

int cuInit(unsigned) { return gpus() > 0 ? SUCCESS : NO_DEVICE; }
int cuGetErrorName(int status, const char** name) {
    *name = status == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_EMULATED";
    return SUCCESS;
}
int cuGetErrorString(int status, const char** text) {
    *text = status == OUT_OF_MEMORY ? "out of memory" : "as the emulation says";
    return SUCCESS;
}
int cuDeviceGetCount(int* count) {
    *count = gpus();
    return SUCCESS;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    if (attribute != 75 && attribute != 76) return INVALID_VALUE;
    *value = attribute == 76 ? 0 : device == 0 ? 9 : 8;
    return SUCCESS;
}
int cuDevicePrimaryCtxRetain(Context** context, int device) {
    *context = &primary[device];
    return SUCCESS;
}
int cuCtxGetCurrent(Context** context) {
    *context = top();
    return SUCCESS;
}
int cuCtxGetDevice(int* device) {
    if (!top()) return INVALID_CONTEXT;
    *device = top()->device;
    return SUCCESS;
}
int cuCtxPushCurrent_v2(Context* context) {
    current.push_back(context);
    return SUCCESS;
}
int cuCtxPopCurrent_v2(Context** context) {
    if (!top()) return INVALID_CONTEXT;
    *context = top();
    current.pop_back();
    return SUCCESS;
}
int cuThreadExchangeStreamCaptureMode(int* mode) {
    std::swap(*mode, capture_mode);
    return SUCCESS;
}

int cuLibraryLoadData(void** library, const void* code, int*, void**, unsigned, int*, void**, unsigned) {
    Elf64_Ehdr header;
    std::memcpy(&header, code, sizeof header);
    const std::size_t bytes = header.e_shoff + std::size_t(header.e_shnum) * header.e_shentsize;
    std::string path = (std::filesystem::temp_directory_path() / "isonorm-kernel-XXXXXX").string();
    const int file = mkstemp(path.data());
    const bool written = write(file, code, bytes) == ssize_t(bytes);
    close(file);
    *library = written ? dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
    unlink(path.c_str());
    return *library ? SUCCESS : INVALID_VALUE;
}
int cuLibraryGetKernel(Kernel** kernel, void* library, const char* name) {
    const auto run = dlsym(library, "isonorm_run");
    const auto arch = static_cast<const char*>(dlsym(library, "isonorm_arch"));
    if (!dlsym(library, name) || !run || !arch) return NOT_FOUND;
    *kernel = new Kernel{reinterpret_cast<decltype(Kernel::run)>(run), arch};
    return SUCCESS;
}
int cuKernelGetFunction(Kernel** function, Kernel* kernel) {
    *function = kernel;
    return top() ? SUCCESS : INVALID_CONTEXT;
}
int cuLaunchKernelEx(const Config* config, Kernel* kernel, void** arguments, void**) {
    if (!top()) return INVALID_CONTEXT;
    if (config->stream && config->stream->context != top()) return INVALID_HANDLE;
    if (!runs_on(kernel->arch, top()->device)) return NO_BINARY;
    unsigned cluster = 1;
    for (unsigned i = 0; i < config->attribute_count; ++i) {
        if (config->attributes[i].id == 4) cluster = config->attributes[i].value[0];
    }
    if (config->grid[0] == 0 || config->block[0] == 0 || config->block[0] > 1024 || config->grid[0] % cluster != 0) {
        return INVALID_VALUE;
    }
    if (cluster > 1 && top()->device != 0) return INVALID_VALUE;
    if (runs()) kernel->run(arguments[0], config->grid[0], config->block[0], cluster);
    return SUCCESS;
}

// The block ends where the page ends that must not be touched, but for its alignment.
int cuMemAlloc_v2(std::uint64_t* address, std::size_t bytes) {
    if (!top()) return INVALID_CONTEXT;
    const std::size_t room = (bytes + PAGE - 1) / PAGE * PAGE, all = room + PAGE;
    void* start = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return OUT_OF_MEMORY;
    mprotect(static_cast<char*>(start) + room, PAGE, PROT_NONE);
    std::memset(start, 0xA5, room);
    *address = reinterpret_cast<std::uint64_t>(start) + (room - bytes) / 16 * 16;
    const std::lock_guard lock(mutex);
    allocations[*address] = {static_cast<char*>(start), all};
    return SUCCESS;
}
int cuMemFree_v2(std::uint64_t address) {
    const std::lock_guard lock(mutex);
    const auto found = allocations.find(address);
    if (found == allocations.end()) return INVALID_VALUE;
    munmap(found->second.first, found->second.second);
    allocations.erase(found);
    return SUCCESS;
}
int cuMemcpyHtoDAsync_v2(std::uint64_t to, const void* from, std::size_t bytes, Stream*) {
    std::memcpy(reinterpret_cast<void*>(to), from, bytes);
    return SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void* to, std::uint64_t from, std::size_t bytes, Stream*) {
    std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
    return SUCCESS;
}
int cuStreamCreate(Stream** stream, unsigned) {
    if (!top()) return INVALID_CONTEXT;
    *stream = new Stream{top()};
    return SUCCESS;
}
int cuStreamDestroy_v2(Stream* stream) {
    delete stream;
    return SUCCESS;
}
int cuStreamSynchronize(Stream*) { return top() ? SUCCESS : INVALID_CONTEXT; }

} // extern "C"
