#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/status.h"
#include "common/formats/gguf.h"
#include "common/model/tokenizer.h"
#include "tools/fedge/commands.h"

namespace fedge {
namespace {

struct TokenizeOptions {
  std::string model;
  std::string text;
  std::string file;
  bool decode = false;
  bool no_special = false;
  bool pieces = false;
  OutputFormat format = OutputFormat::kText;
};

// Ids separated by blanks, commas or brackets: what this command prints is what it reads.
absl::StatusOr<std::vector<TokenId>> ParseIds(absl::string_view text, int64_t vocab_size) {
  std::vector<TokenId> ids;
  for (const absl::string_view word :
       absl::StrSplit(text, absl::ByAnyChar(" ,[]\t\r\n"), absl::SkipEmpty())) {
    TokenId id = 0;
    if (!absl::SimpleAtoi(word, &id)) {
      return absl::InvalidArgumentError(absl::StrCat("\"", word, "\" is not a token id"));
    }
    if (id < 0 || id >= vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", id, " is outside the vocabulary of ", vocab_size, " tokens"));
    }
    ids.push_back(id);
  }
  return ids;
}

absl::Status RunTokenize(const TokenizeOptions& options, CommandContext& context) {
  Env& env = context.env();
  ASSIGN_OR_RETURN(const std::shared_ptr<const GgufFile> file, GgufFile::Open(options.model, env));
  ASSIGN_OR_RETURN(const std::shared_ptr<const Tokenizer> tokenizer, Tokenizer::FromGguf(*file));
  std::string text = options.text;
  if (!options.file.empty()) {
    ASSIGN_OR_RETURN(text, env.ReadFile(options.file));
  }
  if (options.decode) {
    ASSIGN_OR_RETURN(const std::vector<TokenId> ids, ParseIds(text, tokenizer->vocab_size()));
    const std::string decoded = tokenizer->Decode(ids, !options.no_special);
    if (options.format == OutputFormat::kJson) {
      context.PrintJson(decoded);
    } else {
      context.out() << decoded << std::endl;
    }
    return absl::OkStatus();
  }
  Tokenizer::EncodeOptions encode;
  encode.add_special = !options.no_special;
  encode.parse_special = !options.no_special;
  const std::vector<TokenId> ids = tokenizer->Encode(text, encode);
  if (options.pieces && options.format == OutputFormat::kText) {
    for (const TokenId id : ids) {
      context.out() << id << "\t"
                    << nlohmann::json(tokenizer->TokenBytes(id, true))
                           .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                    << "\n";
    }
    context.out() << std::flush;
    return absl::OkStatus();
  }
  context.out() << nlohmann::json(ids).dump() << std::endl;
  return absl::OkStatus();
}

}  // namespace

void RegisterTokenize(CLI::App& app, CommandContext& context) {
  auto options = std::make_shared<TokenizeOptions>();
  CLI::App* command = app.add_subcommand("tokenize", "Turn text into token ids, or back");
  command->add_option("--model", options->model, "GGUF with a vocabulary")
      ->required()
      ->type_name("FILE");
  CLI::Option_group* const source = command->add_option_group("Text", "What to convert");
  source->add_option("--text", options->text, "The text itself")->type_name("TEXT");
  source->add_option("--file", options->file, "A file with the text")->type_name("FILE");
  source->require_option(1);
  command->add_flag("--decode", options->decode,
                    "The text is a list of ids; print what they spell");
  command->add_flag("--no-special", options->no_special,
                    "No begin or end token; \"<s>\" and the like are plain text");
  command->add_flag("--pieces", options->pieces, "One token a line, with what it spells");
  AddFormatOption(command, options->format);
  command->footer(
      "Prints a JSON list of ids.\n\nExample:\n"
      "  fedge tokenize --model model.gguf --text \"Hello world\" --no-special");
  context.AddCommand(command, [options, &context] { return RunTokenize(*options, context); });
}

}  // namespace fedge
