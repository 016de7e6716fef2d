#include "engine/lifecycle/labelled.h"

#include <nlohmann/json.hpp>

#include "tests/engine/lifecycle/admission_fixture.h"

namespace assay {
namespace {

using absl::StatusCode;
using nlohmann::json;
using testing::HasSubstr;
using testing::SizeIs;

// Letters, as a WordPiece tokenizer of 32 entries.
json LetterTokenizer() {
  json vocab = {{"[PAD]", 0}, {"[UNK]", 1}, {"[CLS]", 2}, {"[SEP]", 3}, {"[MASK]", 4}};
  for (char letter = 'a'; letter <= 'z'; ++letter) vocab[std::string(1, letter)] = 5 + letter - 'a';
  return {{"format", "huggingface"},
          {"tokenizer",
           {{"pre_tokenizer", {{"type", "BertPreTokenizer"}}},
            {"model",
             {{"type", "WordPiece"},
              {"unk_token", "[UNK]"},
              {"continuing_subword_prefix", "##"},
              {"max_input_chars_per_word", 100},
              {"vocab", vocab}}}}},
          {"config", json::object()}};
}

class LabelledTest : public testing::Test {
 protected:
  void Open(const std::string& path) {
    ASSERT_OK_AND_ASSIGN(checkpoint_, OpenCheckpoint(path));
    ASSERT_OK_AND_ASSIGN(model_, BuildUniform(*checkpoint_, "f32", {}));
    const bool own = path == Stories260k();
    ASSERT_OK_AND_ASSIGN(tokenizer_,
                         MakeTokenizer(own ? checkpoint_->tokenizer() : LetterTokenizer()));
  }
  absl::StatusOr<LabelledSet> Read(const std::string& lines) {
    return ReadLabelledSet(lines, "labels.jsonl", model_->spec());
  }
  std::map<std::string, double> Measure(const Model& model, const std::string& lines) {
    const LabelledSet set = Read(lines).value();
    std::map<std::string, double> figures;
    const auto measured = MeasureTask(model, set, {*tokenizer_, pool_});
    EXPECT_OK(measured.status());
    for (const TaskFigure& f : *measured) figures[f.metric] = f.value;
    return figures;
  }
  ThreadPool pool_{{.num_threads = 2}};
  std::unique_ptr<const Checkpoint> checkpoint_;
  std::unique_ptr<const Model> model_;
  std::unique_ptr<const Tokenizer> tokenizer_;
};

// The golden continuations (data/stories260k: made by the model's own reference code) are what the
// greedy answers must be, so that BLEU and chrF are 100; against texts of others they are not.
TEST_F(LabelledTest, GreedyAnswersAreTheGoldenOnes) {
  Open(Stories260k());
  std::string right, wrong;
  std::vector<std::string> answers, prompts;
  const json golden = ReadGoldenJson("../../data/stories260k/golden.json");
  for (const auto& [prompt, g] : golden.items()) {
    prompts.push_back(prompt);
    answers.push_back(
        tokenizer_->Decode(g["greedy_ids"].get<std::vector<int32_t>>(), true).value());
  }
  for (size_t i = 0; i < prompts.size(); ++i) {
    right += json{{"text", prompts[i]}, {"references", {answers[i]}}}.dump() + "\n";
    wrong +=
        json{{"text", prompts[i]}, {"references", {"no such words anywhere at all"}}}.dump() + "\n";
  }
  const auto same = Measure(*model_, right), other = Measure(*model_, wrong);
  EXPECT_NEAR(same.at("bleu"), 100, 1e-9);
  EXPECT_NEAR(same.at("chrf"), 100, 1e-9);
  EXPECT_LT(other.at("bleu"), 20);
  EXPECT_LT(other.at("chrf"), 50);
}

TEST_F(LabelledTest, AClassifiersAccuracyIsThatOfItsOwnChoices) {
  Open(GoldenPath("models/bert_classifier"));
  const std::vector<std::string> texts = {"a b c", "z z z", "h e l l o", "q"};
  // What it says, found by asking for label 0 alone.
  std::string asked;
  std::vector<int> says;
  for (const std::string& text : texts) {
    const auto is = [&](int label) {
      return Measure(*model_, json{{"text", text}, {"label", label}}.dump()).at("accuracy") == 1;
    };
    int label = 0;
    while (!is(label)) ASSERT_LT(++label, model_->spec().num_labels);
    says.push_back(label);
  }
  for (size_t i = 0; i < texts.size(); ++i) {
    const int label = i == 0 ? (says[0] + 1) % model_->spec().num_labels : says[i];
    asked += json{{"text", texts[i]}, {"label", label}}.dump() + "\n\n";
  }
  const auto figures = Measure(*model_, asked);
  EXPECT_DOUBLE_EQ(figures.at("accuracy"), 0.75);
  EXPECT_DOUBLE_EQ(figures.at("f1_micro"), 0.75);
  EXPECT_LT(figures.at("f1_macro"), 1);
}

TEST_F(LabelledTest, EmbeddingsOfTheSameTextHaveCosineOne) {
  Open(GoldenPath("models/bert_mean"));
  const auto same = Measure(*model_, R"({"text": "a b c", "other": "a b c"})");
  const auto other = Measure(*model_, R"({"text": "a b c", "other": "x y"})");
  EXPECT_NEAR(same.at("cosine"), 1, 1e-6);
  EXPECT_LT(other.at("cosine"), 0.9999);
}

TEST_F(LabelledTest, BadLinesAreNamedWithTheirValue) {
  Open(GoldenPath("models/bert_classifier"));
  const std::string good = "{\"text\": \"a\", \"label\": 0}\n";
  const std::pair<const char*, const char*> cases[] = {
      {"nonsense", "labels.jsonl:2"},
      {"[1]", "expected {\"text\""},
      {R"({"text": "a"})", "\"label\""},
      {R"({"text": "a", "label": 0, "more": 1})", "more"},
      {R"({"text": 3, "label": 0})", "expected {\"text\""},
      {R"({"text": "a", "label": 99})", "99"},
      {R"({"text": "a", "label": -1})", "-1"},
      {R"({"text": "a", "label": "joy"})", "joy"},
      {R"({"text": "a", "label": 0.5})", "0.5"}};
  for (const auto& [line, named] : cases) {
    EXPECT_THAT(Read(good + line), StatusIs(StatusCode::kInvalidArgument, HasSubstr(named)))
        << line;
  }
  EXPECT_THAT(Read("\n \n"),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("no labelled items")));
  Open(Stories260k());
  for (const char* line :
       {R"({"text": "a", "references": []})", R"({"text": "a", "references": 1})",
        R"({"text": "a", "references": [1]})"}) {
    EXPECT_THAT(Read(line), StatusIs(StatusCode::kInvalidArgument, HasSubstr("references")));
  }
  std::string many;
  for (int i = 0; i < 4097; ++i)
    many += R"({"text": "a", "references": ["b"]})"
            "\n";
  EXPECT_THAT(Read(many), StatusIs(StatusCode::kInvalidArgument, HasSubstr("4097")));
}

TEST_F(LabelledTest, AnItemThatDoesNotFitIsNamed) {
  Open(Stories260k());
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "word ";
  const json line = {{"text", text}, {"references", {"b"}}};
  ASSERT_OK_AND_ASSIGN(const LabelledSet set, Read(line.dump()));
  EXPECT_THAT(MeasureTask(*model_, set, {*tokenizer_, pool_}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("labelled item 1")));
}

}  // namespace
}  // namespace assay
