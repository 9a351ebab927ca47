// Runs a fuzz target over every file of the given folders: `<name>_fuzzer corpus/<name>`. Also over
// every truncation of each, which a corpus need not hold one by one.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "common/base/env.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

// A heap copy of exactly the input's size, so that a sanitizer sees one byte too many.
void Run(const std::string& input) {
  const std::unique_ptr<uint8_t[]> copy(new uint8_t[input.size()]);
  std::copy(input.begin(), input.end(), copy.get());
  LLVMFuzzerTestOneInput(copy.get(), input.size());
}

}  // namespace

int main(int argc, char** argv) {
  fedge::Env& env = *fedge::Env::Posix();
  int files = 0;
  for (int i = 1; i < argc; ++i) {
    const auto names = env.ListDir(argv[i]);
    if (!names.ok()) {
      std::fprintf(stderr, "%s\n", names.status().ToString().c_str());
      return 1;
    }
    for (const std::string& name : *names) {
      const auto input = env.ReadFile(fedge::JoinPath(argv[i], name));
      if (!input.ok()) {
        std::fprintf(stderr, "%s\n", input.status().ToString().c_str());
        return 1;
      }
      for (size_t size = 0; size <= input->size(); ++size) Run(input->substr(0, size));
      ++files;
    }
  }
  std::printf("%d files\n", files);
  return files > 0 ? 0 : 1;  // an empty corpus is a mistake
}
