// status_page.html, embedded.
#pragma once
#include <string_view>

namespace assay {

extern const std::string_view kStatusPageHtml;

}  // namespace assay
