// Files that are there whole or not at all, whoever else writes beside this process: other threads,
// other processes, other hosts and containers on a shared volume (where two may have one pid).
//
// Thread rule: any thread.
#pragma once
#include <string>
#include <string_view>

#include "base/status.h"

namespace assay {

// A name beside `path` for what is renamed to it once it is whole: "<path>.tmp.<16 hex digits>" of
// 64 random bits. Whoever creates it must take its being there for an error (O_EXCL, mkdir).
std::string TemporaryName(const std::string& path);
// Whether a name (or path) is one of those.
bool IsTemporaryName(const std::string& path);

// Text into a new file at `path`, through a temporary name, fsync and rename. ResourceExhausted: no
// room; Internal: other errors, with the path. What a killed process leaves under the temporary
// name is for the owner of the folder to remove.
absl::Status WriteFileAtomically(const std::string& path, const std::string& text);

// All of the bytes, however many calls it takes. `path` is for the error, a FileError.
absl::Status WriteAll(int fd, const std::string& path, std::string_view bytes);

// The status of errno: ResourceExhausted (no room on the disk) or Internal, "<what>: path= error=".
absl::Status FileError(const std::string& what, const std::string& path);

}  // namespace assay
