// NVRTC's interface over g++: what it "compiles" is a library for the CPU with the kernel and a function `isonorm_run`
// that emulates a launch. EMULATION is the folder of cuda.hpp.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>
#include <unistd.h>

namespace {

struct Program {
    std::string source, log, code;
    std::vector<std::pair<std::string, std::string>> headers;
};

std::string content(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void put(const std::filesystem::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

const char* const RUN = R"(
template <class Args> void call(void (*kernel)(Args), const void* args) { kernel(*static_cast<const Args*>(args)); }
extern "C" void isonorm_run(const void* args, unsigned blocks, unsigned threads, unsigned cluster) {
    emulation::launch([](const void* args) { call(KERNEL, args); }, args, blocks, threads, cluster);
}
extern "C" const char isonorm_arch[] = ARCH;
)";

int give(const std::string& bytes, char* to) {
    std::memcpy(to, bytes.data(), bytes.size());
    return 0;
}

} // namespace

extern "C" {

int nvrtcVersion(int* major, int* minor) {
    *major = 0;
    *minor = 1;
    return 0;
}

int nvrtcGetNumSupportedArchs(int* count) {
    *count = 2;
    return 0;
}

int nvrtcGetSupportedArchs(int* archs) {
    archs[0] = 80;
    archs[1] = 90;
    return 0;
}

int nvrtcCreateProgram(Program** program, const char* source, const char*, int count, const char* const* texts,
                       const char* const* names) {
    *program = new Program{source, "", "", {}};
    for (int i = 0; i < count; ++i) (*program)->headers.emplace_back(names[i], texts[i]);
    return 0;
}

int nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    std::string pattern = (std::filesystem::temp_directory_path() / "isonorm-emulation-XXXXXX").string();
    const std::filesystem::path folder = mkdtemp(pattern.data());
    for (const auto& [name, text] : program->headers) put(folder / name, text);
    // Files of the emulation replace those of the same name.
    for (const auto& file : std::filesystem::directory_iterator(EMULATION)) {
        if (file.path().extension() != ".cpp") put(folder / file.path().filename(), content(file.path()));
    }
    std::string defines;
    for (int i = 0; i < count; ++i) {
        const std::string option = options[i], define = "--define-macro=", arch = "--gpu-architecture=";
        if (option.starts_with(define)) {
            std::string macro = option.substr(define.size());
            macro[macro.find('=')] = ' ';
            defines += "#define " + macro + "\n";
        } else if (option.starts_with(arch)) {
            defines += "#define ARCH \"" + option.substr(arch.size()) + "\"\n";
        }
    }
    put(folder / "kernel.cpp", "#include \"cuda.hpp\"\n" + defines + program->source + RUN);
    const std::string in = folder.string(), flags = "-std=c++20 -O1 -ffp-contract=off -fPIC -shared -w";
    const int status = std::system(
        ("g++ " + flags + " -o " + in + "/kernel.so " + in + "/kernel.cpp >" + in + "/log 2>&1").c_str());
    program->log = content(folder / "log");
    program->code = content(folder / "kernel.so");
    std::filesystem::remove_all(folder);
    return status == 0 ? 0 : 6; // NVRTC_ERROR_COMPILATION
}

int nvrtcGetProgramLogSize(Program* program, size_t* size) {
    *size = program->log.size();
    return 0;
}
int nvrtcGetProgramLog(Program* program, char* to) { return give(program->log, to); }
int nvrtcGetPTXSize(Program* program, size_t* size) {
    *size = program->code.size();
    return 0;
}
int nvrtcGetPTX(Program* program, char* to) { return give(program->code, to); }
int nvrtcGetCUBINSize(Program* program, size_t* size) {
    *size = program->code.size();
    return 0;
}
int nvrtcGetCUBIN(Program* program, char* to) { return give(program->code, to); }
int nvrtcDestroyProgram(Program** program) {
    delete *program;
    *program = nullptr;
    return 0;
}

} // extern "C"
