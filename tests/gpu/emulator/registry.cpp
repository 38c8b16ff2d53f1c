// The kernels: each file of them is a shared object in `kernels/` beside this library.
#include <dirent.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "grid.h"

namespace emulator {

namespace {

auto& kernels = *new std::map<std::string, const Kernel*>;

void load_folder(const std::string& folder) {
    DIR* listing = opendir(folder.c_str());
    if (!listing) return;
    while (const dirent* entry = readdir(listing)) {
        std::string name = entry->d_name;
        if (name.size() < 3 || name.compare(name.size() - 3, 3, ".so") != 0) continue;
        if (!dlopen((folder + "/" + name).c_str(), RTLD_NOW | RTLD_LOCAL)) {
            fprintf(stderr, "emulator: %s\n", dlerror());
            abort();
        }
    }
    closedir(listing);
}

}  // namespace

// Called while a kernel file is loaded.
void register_kernel(const Kernel* kernel) {
    auto [existing, is_new] = kernels.try_emplace(kernel->name, kernel);
    if (!is_new && existing->second != kernel) {
        fprintf(stderr, "emulator: two kernels are named %s\n", kernel->name);
        abort();
    }
}

void load_kernels() {
    static std::once_flag loaded;
    std::call_once(loaded, [] {
        Dl_info self;
        dladdr(reinterpret_cast<void*>(&load_kernels), &self);
        std::string path = self.dli_fname;
        load_folder(path.substr(0, path.rfind('/')) + "/kernels");
    });
}

const Kernel* find_kernel(const char* name) {
    auto found = kernels.find(name);
    return found == kernels.end() ? nullptr : found->second;
}

}  // namespace emulator
