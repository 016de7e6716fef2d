#include "server/infer_job.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/model_description.h"
#include "server/prompts.h"
#include "server/status_convert.h"

namespace assay {
namespace {

constexpr int64_t kMaxRows = 256;  // of one request; more belong into several requests

absl::Status RowsError(const InputTensor& tensor, std::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat("unexpected shape for input '", tensor.name(),
                                                 "': expected ", std::string(expected), ", got ",
                                                 ShapeText(tensor.shape())));
}

}  // namespace

std::string_view Name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
    case FinishReason::kDeadline:
      return "deadline";
  }
  return "error";
}

void InferJob::Start(const inference::ModelInferRequest& request,
                     const std::function<void()>& taken) {
  const absl::Status opened = Open(request);
  if (!opened.ok()) {
    Finish(opened);
    return taken();
  }
  const absl::Status waits = record_->RunOnText(request.ByteSizeLong(), [this, &request, taken] {
    const absl::Status prepared = Prepare(request);
    prepared.ok() ? Submit() : Finish(prepared);
    taken();
  });
  if (waits.ok()) return;
  Finish(waits);
  taken();
}

absl::Status InferJob::Open(const inference::ModelInferRequest& request) {
  id_ = request.id();
  ASSIGN_OR_RETURN(const VersionSelector version, ParseVersion(request.model_version()));
  ASSIGN_OR_RETURN(record_,
                   RequestRecord::Open(context_, request.model_name(), version, options_.origin));
  return absl::OkStatus();
}

void InferJob::Submit() {
  const bool generates = record_->servable()->spec.task == ModelTask::kGenerate;
  Servable* servable = record_->servable().get();
  group_.SubmitAll(
      {rows_.size(), RowsInEngine(context_.config.engine)},
      [this, generates](size_t row) {
        absl::StatusOr<SequenceId> id = generates ? SubmitGenerate(row) : SubmitEncode(row);
        // No sink reads this before SubmitAll lets go of the group.
        progress_ = id.ok() ? Progress::kAccepted : std::max(progress_, Progress::kSubmitted);
        return id;
      },
      [servable, generates](SequenceId id) {
        generates ? servable->generate->Cancel(id) : servable->encode->Cancel(id);
      },
      [this](const absl::Status& status) { AllEnded(status); });
}

void InferJob::Cancel() {
  if (!IsExpiry(arrival_, options_.deadline, context_.clock.Now())) group_.Cancel();
}

absl::Status InferJob::Prepare(const inference::ModelInferRequest& request) {
  RETURN_IF_ERROR(CheckWanted(group_.cancelled(), options_.deadline, context_.clock.Now()));
  const Servable& servable = *record_->servable();
  ASSIGN_OR_RETURN(parameters_, ParseParameters(request.parameters(), servable.spec.task));
  RETURN_IF_ERROR(CheckRequestedOutputs(request));
  ASSIGN_OR_RETURN(const std::vector<InputView> inputs, CheckInputs(request));
  const InputView *text = nullptr, *ids = nullptr, *mask = nullptr;
  for (const InputView& input : inputs) {
    const std::string& name = input.tensor->name();
    const bool encoder = servable.spec.task != ModelTask::kGenerate;
    if (name == kTextInput) {
      text = &input;
    } else if (encoder && name == kInputIds) {
      ids = &input;
    } else if (encoder && name == kAttentionMask) {
      mask = &input;
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("unexpected inference input '", name, "' for model '", servable.name, "'"));
    }
  }
  if ((text == nullptr) == (ids == nullptr)) {
    return absl::InvalidArgumentError(
        absl::StrCat("model '", servable.name, "' needs ",
                     servable.spec.task == ModelTask::kGenerate
                         ? "the input 'text_input'"
                         : "one of the inputs 'text_input' and 'input_ids'",
                     ", got ", inputs.size(), " inputs"));
  }
  if (mask != nullptr && ids == nullptr) {
    return absl::InvalidArgumentError("input 'attention_mask' goes with 'input_ids' only");
  }
  RETURN_IF_ERROR(text != nullptr ? ReadTexts(*text) : ReadTokenIds(*ids, mask));
  streams_ = options_.can_stream && parameters_.stream && rows_.size() == 1 &&
             servable.spec.task == ModelTask::kGenerate;
  return absl::OkStatus();
}

absl::Status InferJob::ReadTexts(const InputView& input) {
  const auto& shape = input.tensor->shape();
  const bool fits = shape.size() == 1 || (shape.size() == 2 && shape[1] == 1);
  if (!fits || shape[0] < 1 || shape[0] > kMaxRows) {
    return RowsError(*input.tensor, absl::StrCat("[n] or [n,1] with n from 1 to ", kMaxRows));
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> texts, ReadBytes(input));
  shape_.assign(shape.begin(), shape.end());
  const Servable& servable = *record_->servable();
  size_t bytes = 0;
  for (const std::string& text : texts) bytes += text.size();
  if (texts.size() > 1) RETURN_IF_ERROR(CheckTotalBytes(bytes));
  rows_.resize(texts.size());
  for (size_t row = 0; row < texts.size(); ++row) {
    ASSIGN_OR_RETURN(rows_[row].tokens,
                     servable.spec.task == ModelTask::kGenerate
                         ? EncodePrompt(servable, texts[row])
                         : EncodeForEncoder(servable, texts[row], parameters_.truncate));
  }
  return absl::OkStatus();
}

absl::Status InferJob::ReadTokenIds(const InputView& ids, const InputView* mask) {
  const auto& shape = ids.tensor->shape();
  if (shape.size() != 2 || shape[0] < 1 || shape[0] > kMaxRows || shape[1] < 1) {
    return RowsError(*ids.tensor,
                     absl::StrCat("[n,length] with n from 1 to ", kMaxRows, ", length from 1"));
  }
  ASSIGN_OR_RETURN(const std::vector<int64_t> values, ReadIntegers(ids));
  std::vector<bool> keep(values.size(), true);
  if (mask != nullptr) {
    if (!std::equal(shape.begin(), shape.end(), mask->tensor->shape().begin(),
                    mask->tensor->shape().end())) {
      return RowsError(*mask->tensor, absl::StrCat("that of 'input_ids', ", ShapeText(shape)));
    }
    if (mask->tensor->datatype().rfind("FP", 0) == 0 || mask->tensor->datatype() == "BF16") {
      ASSIGN_OR_RETURN(const std::vector<float> floats, ReadFloats(*mask));
      for (size_t i = 0; i < keep.size(); ++i) keep[i] = floats[i] != 0;
    } else {
      ASSIGN_OR_RETURN(const std::vector<int64_t> integers, ReadIntegers(*mask));
      for (size_t i = 0; i < keep.size(); ++i) keep[i] = integers[i] != 0;
    }
  }
  for (size_t i = 1; i < keep.size(); ++i) {  // positions count from the left
    const bool same_row = i % static_cast<size_t>(shape[1]) != 0;
    if (!same_row || keep[i - 1] || !keep[i]) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("input 'attention_mask' must be ones, then zeros (padding on the right): row=",
                     i / static_cast<size_t>(shape[1])));
  }
  rows_.resize(static_cast<size_t>(shape[0]));
  shape_ = {shape[0], 1};
  const int64_t vocab = record_->servable()->spec.vocab;
  for (size_t i = 0; i < values.size(); ++i) {
    if (!keep[i]) continue;
    if (values[i] < 0 || values[i] >= vocab) {
      return absl::InvalidArgumentError(absl::StrCat("input 'input_ids': token id ", values[i],
                                                     " is outside the vocabulary of ", vocab));
    }
    rows_[i / static_cast<size_t>(shape[1])].tokens.push_back(static_cast<int32_t>(values[i]));
  }
  for (const Row& row : rows_) {
    if (row.tokens.empty()) return absl::InvalidArgumentError("a row of 'input_ids' has no tokens");
  }
  return absl::OkStatus();
}

absl::Status InferJob::CheckRequestedOutputs(const inference::ModelInferRequest& request) {
  const Servable& servable = *record_->servable();
  const std::vector<TensorDescription> known = DescribeOutputs(servable.spec);
  for (const auto& output : request.outputs()) {
    const bool exists = std::any_of(known.begin(), known.end(),
                                    [&](const auto& t) { return t.name == output.name(); });
    if (!exists) {
      return absl::InvalidArgumentError(absl::StrCat("unexpected inference output '", output.name(),
                                                     "' for model '", servable.name, "'"));
    }
    for (const auto& [key, value] : output.parameters()) {
      if (key != "binary_data") {
        return absl::InvalidArgumentError(
            absl::StrCat("output '", output.name(), "': parameter '", key, "' is not supported"));
      }
    }
    outputs_.push_back(output.name());
  }
  return absl::OkStatus();
}

absl::StatusOr<SequenceId> InferJob::SubmitGenerate(size_t row) {
  GenerateRequest request{
      .prompt = rows_[row].tokens,
      .sampling = parameters_.sampling,
      .deadline = std::min(options_.deadline, record_->arrival() + parameters_.timeout),
      .trace = {},
      .follows = row > 0};
  return record_->servable()->generate->Submit(
      std::move(request), [this, row](TokenEvent&& event) { OnToken(row, std::move(event)); });
}

absl::StatusOr<SequenceId> InferJob::SubmitEncode(size_t row) {
  EncodeRequest request{
      .tokens = rows_[row].tokens,
      .token_types = {},
      .deadline = std::min(options_.deadline, record_->arrival() + parameters_.timeout),
      .follows = row > 0};
  return record_->servable()->encode->Submit(std::move(request),
                                             [this, row](EncodeResult&& result) {
                                               const absl::Status status = result.status;
                                               Charge(rows_[row], 0);
                                               rows_[row].encoded = std::move(result);
                                               group_.Ended(status);
                                             });
}

void InferJob::Charge(Row& row, size_t generated) {
  record_->Charge(generated + (std::exchange(row.charged, true) ? 0 : row.tokens.size()));
}

void InferJob::OnToken(size_t row, TokenEvent&& event) {
  const bool end = event.kind == TokenEvent::Kind::kEnd;
  Charge(rows_[row], end ? 0 : 1);
  if (end) {
    rows_[row].text += event.text;
    rows_[row].reason = event.reason;
    rows_[row].usage = event.usage;
    group_.Ended(event.status);
    return;
  }
  if (!streams_) {
    rows_[row].text += event.text;
    return;
  }
  if (event.text.empty() || !Wants(kTextOutput)) return;
  InferEvent out;
  out.response = NewResponse();
  AddBytesOutput(kTextOutput, shape_, std::vector<std::string>{std::move(event.text)},
                 out.response);
  ++responses_;
  sink_(std::move(out));
}

void InferJob::AllEnded(const absl::Status& status) { Finish(status); }

void InferJob::Finish(const absl::Status& status) {
  InferEvent event;
  event.status = status;
  event.last = true;
  if (status.ok()) event.response = LastResponse();
  ++responses_;
  if (record_ != nullptr) record_->Done(status, progress_, Times());
  const InferSink sink = std::move(sink_);  // the job may be gone before the call returns
  sink(std::move(event));
}

inference::ModelInferResponse InferJob::NewResponse() const {
  inference::ModelInferResponse response;
  response.set_model_name(record_->servable()->name);
  response.set_model_version(absl::StrCat(record_->servable()->version));
  response.set_id(id_);
  return response;
}

inference::ModelInferResponse InferJob::LastResponse() {
  inference::ModelInferResponse response = NewResponse();
  if (record_->servable()->spec.task != ModelTask::kGenerate) {
    AddEncoderOutputs(response);
    return response;
  }
  const bool without_outputs =
      streams_ && parameters_.empty_final_response && rows_[0].text.empty();
  if (Wants(kTextOutput) && !without_outputs) {
    std::vector<std::string> texts;
    for (Row& row : rows_) texts.push_back(std::move(row.text));
    AddBytesOutput(kTextOutput, shape_, texts, response);
  }
  if (rows_.size() == 1) {
    auto& parameters = *response.mutable_parameters();
    parameters["finish_reason"].set_string_param(std::string(Name(rows_[0].reason)));
    parameters["prompt_tokens"].set_int64_param(rows_[0].usage.prompt_tokens);
    parameters["generated_tokens"].set_int64_param(rows_[0].usage.generated_tokens);
  }
  return response;
}

void InferJob::AddEncoderOutputs(inference::ModelInferResponse& response) const {
  const ModelSpec& spec = record_->servable()->spec;
  const int64_t rows = static_cast<int64_t>(rows_.size());
  std::vector<float> values;
  std::vector<std::string> labels;
  for (const Row& row : rows_) {
    values.insert(values.end(), row.encoded.values.begin(), row.encoded.values.end());
    labels.push_back(LabelOf(spec, row.encoded.values));
  }
  const int64_t width = static_cast<int64_t>(values.size()) / rows;
  const bool classifies = spec.task == ModelTask::kClassify;
  const std::string_view output = classifies ? kLogits : kEmbedding;
  if (Wants(output)) AddFloatOutput(output, std::vector<int64_t>{rows, width}, values, response);
  if (classifies && Wants(kLabel)) AddBytesOutput(kLabel, shape_, labels, response);
}

RequestTimes InferJob::Times() const {
  RequestTimes times;
  times.responses = responses_;
  for (const Row& row : rows_) {
    times.queued = std::max({times.queued, row.usage.queued, row.encoded.queued});
    times.tokens += row.usage.generated_tokens;
    times.compute =
        std::max({times.compute, row.usage.total - row.usage.queued, row.encoded.compute});
    times.batch_requests = std::max(times.batch_requests, row.encoded.batch_requests);
  }
  times.decoupled = streams_;
  return times;
}

bool InferJob::Wants(std::string_view output) const {
  return outputs_.empty() || std::find(outputs_.begin(), outputs_.end(), output) != outputs_.end();
}

}  // namespace assay
