// absl::Status everywhere; nothing of ours throws. Codes and messages: CONTRIBUTING.md, rules
// 10-14.
#pragma once
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define ASSAY_CONCAT_INNER_(a, b) a##b
#define ASSAY_CONCAT_(a, b) ASSAY_CONCAT_INNER_(a, b)

#define RETURN_IF_ERROR(expr) \
  if (absl::Status assay_status_ = (expr); !assay_status_.ok()) return assay_status_

#define ASSIGN_OR_RETURN_INNER_(tmp, lhs, expr)  \
  auto tmp = (expr);                             \
  if (!tmp.ok()) return std::move(tmp).status(); \
  lhs = *std::move(tmp)

#define ASSIGN_OR_RETURN(lhs, expr) \
  ASSIGN_OR_RETURN_INNER_(ASSAY_CONCAT_(assay_or_, __LINE__), lhs, expr)

namespace assay {

// `status` with "`context`: " in front of its message; OK stays OK.
absl::Status Annotate(const absl::Status& status, std::string_view context);

}  // namespace assay
