#!/usr/bin/env python3
"""Goldens from the Python `tokenizers` library: ids and texts of mixed-language strings under several tokenizers.

Writes, beside itself:
  corpus.json.xz              the strings
  <name>.tokenizer.json.xz    a tokenizer, as the library saves it
  <name>.golden.json.xz       {"library", "ids": [[...]], "special_ids": [[...]], "text": [...], "kept": [...]}: the ids without
                              and with special tokens, and what the latter decode to without and with them
  smollm2.tokenizer.json.xz   SmolLM2's vocabulary, merges and chat template as GGUF metadata, beside its goldens
  sentencepiece_{bpe,unigram}.tokenizer.json.xz and .golden.json.xz: the same of models that the sentencepiece library trains
                              and runs ("ids"; "text" where nothing is unknown)
  chat.json.xz                conversations rendered by Jinja2 from chat templates as models publish them
Command (versions, seed and date go into the goldens):
  make_tokenizers.py --minilm DIR/tokenizer.json --smollm2 FILE.gguf --text wikitext2-calibration.txt --date YYYY-MM-DD
Needs: tokenizers==0.23.3, sentencepiece==0.2.3, jinja2==3.1.6, gguf, and the files of the two model wheels that scripts/setup names.
"""
import argparse
import json
import lzma
import pathlib
import random

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).resolve().parent
SEED = 20240229

SNIPPETS = [
    "The quick brown fox jumps over the lazy dog.", "It's 3.14159, isn't it? We've done; they'll see, I'd say.",
    "naïve café, Ærøskøbing, Füße, İstanbul, ŒUVRE, ſtraße", "Cửa Việt, Đà Nẵng, Trường Sa",
    "Быстрая коричневая лиса, нещо на Български, Україна їжак", "Ελληνικά: ΣΟΦΟΣ σοφός, ΌΧΙ",
    "我想在apple工作1314151天～", "今日は良い天気ですね。カタカナ、ひらがな。", "대한민국 서울특별시 한국어",
    "السلام عليكم ورحمة الله", "שלום עולם", "สวัสดีชาวโลก ภาษาไทย", "កាន់តែពិសេសអាចខលចេញ", "नमस्ते दुनिया, क्षत्रिय",
    "வணக்கம் உலகம்", "ქართული ენა", "Հայերեն լեզու", "ᏣᎳᎩ ꮳꮃꭹ", "ʻŌlelo Hawaiʻi", "Zażółć gęślą jaźń",
    "🚀 😶‍🌫️ 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇺🇦🇯🇵 ✅ ❤️ 🦙", "e\u0301 a\u0308\u0323 Z\u0351\u036b\u0343 o\u0302\u0300",
    "ﬁnance ① ½ ㎏ Ⅻ ｆｕｌｌ　ｗｉｄｔｈ ²³", "\u200bzero\u200dwidth\ufeff \u00adsoft\u2028line\u2029para\u0085next\u180emvs",
    "tab\there\r\nnew\n\n\nlines  \t \n  end   ", " leading", "trailing ", "   ", "\n", "\t\t", "", "\u00a0nbsp\u3000ideo",
    "def f(x: int) -> str:\n    return f\"{x:>10}\"  # ok\n", "#include <vector>\nint main(){return 0;}//!",
    "SELECT * FROM t WHERE a<>b AND c>=10;", "http://example.org/a?b=c&d=%20#frag", "user@example.com, C:\\dir\\file.txt",
    "1234567890 12,345.67 1e-9 0xDEADBEEF ٣٤٥ ४२ ⅔", "'''```\"\"\"......!!!!!!??????----====",
    "<|im_start|>user\nhi<|im_end|>", "[CLS] a [MASK] b [SEP] [UNK]", "<s>x</s><unk>", "a<mask>b <mask> c  <mask>  d",
    "\x00\x01\x02\x1b[0m\x7f", "\ufffd replacement", "\U00020000\U0002A6D6𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "\ue000private\U000F0000",
    "don't DON'T Don'T we'RE I'Ll ’twas", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "Donaudampfschifffahrtsgesellschaftskapitän",
    "supercalifragilisticexpialidocious" * 4, "▁under▁line ▁ ▁▁", "Ġbyte Ċlevel Ã©", "##ing ## #", "<0x41><0x0A>",
]


def corpus():
    rng = random.Random(SEED)
    strings = list(SNIPPETS)
    while len(strings) < 330:
        parts = rng.sample(SNIPPETS, rng.randint(2, 4))
        strings.append(rng.choice(["", " ", "  ", "\n", "\t "]).join(parts))
    blocks = [(0x20, 0x7E), (0xA0, 0x17F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x6FF), (0x900, 0x97F),
              (0xE00, 0xE7F), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x4FFF),
              (0xAC00, 0xACFF), (0xF900, 0xFAFF), (0xFE00, 0xFFEF), (0x1F300, 0x1F64F), (0x1F900, 0x1F9FF)]
    import unicodedata
    while len(strings) < 420:
        chars = []
        while len(chars) < rng.randint(5, 40):
            c = chr(rng.randint(*rng.choice(blocks)))
            # Code points assigned after Unicode 9 differ between the libraries' tables; blanks between keep words short.
            if unicodedata.ucd_3_2_0.category(c) != "Cn" or ord(c) > 0x1F000:
                chars.append(c)
            if rng.random() < 0.2:
                chars.append(" ")
        strings.append("".join(chars))
    return strings


def save(name, data):
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    (HERE / f"{name}.xz").write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    print(name, (HERE / f"{name}.xz").stat().st_size)


def goldens(name, tokenizer, strings, date, tokenizer_json=None):
    tokenizer.no_padding()
    tokenizer.no_truncation()
    encoded = [tokenizer.encode(s, add_special_tokens=True).ids for s in strings]
    save(f"{name}.tokenizer.json", tokenizer_json or tokenizer.to_str())
    save(f"{name}.golden.json", {
        "library": f"tokenizers {tokenizers.__version__}", "date": date, "seed": SEED,
        "ids": [tokenizer.encode(s, add_special_tokens=False).ids for s in strings],
        "special_ids": encoded,
        "text": [tokenizer.decode(ids, skip_special_tokens=True) for ids in encoded],
        "kept": [tokenizer.decode(ids, skip_special_tokens=False) for ids in encoded],
    })


def byte_level_bpe(lines):
    """As RoBERTa: prefix blank, <s> </s>, a <mask> that swallows the blank before it; added words that are normalized."""
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    t.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    t.add_tokens([AddedToken("lazy", single_word=True), AddedToken("apple", rstrip=True)])
    t.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=True)
    return t


def llama3_like(lines):
    """The pre-tokenizer of Llama 3, and ignore_merges."""
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
               r"|\s+(?!\S)|\s+")
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<|begin|>", "<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    t.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])])
    return t


def llama2_like(lines):
    """BPE with byte fallback: Prepend and Replace instead of a pre-tokenizer, a decoder in four steps."""
    t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    t.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=1500, special_tokens=special, show_progress=False))
    state = json.loads(t.to_str())
    state["added_tokens"] = state["added_tokens"][:3]
    state["model"]["byte_fallback"] = True
    t = Tokenizer.from_str(json.dumps(state))
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return t


def unigram(lines):
    """As XLM-R or T5 saved by the library: NFKC, Metaspace, </s> behind."""
    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.decoder = decoders.Metaspace()
    t.train_from_iterator(lines, trainers.UnigramTrainer(
        vocab_size=1200, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False))
    t.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return t


def wordpiece_cased(lines):
    """Accents and case kept, punctuation and digits cut by their own steps, no decoder's clean-up."""
    t = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=20))
    t.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Strip(),
                                         normalizers.Lowercase()])
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.Digits(False)])
    t.decoder = decoders.WordPiece(cleanup=False)
    t.train_from_iterator(lines, trainers.WordPieceTrainer(
        vocab_size=1000, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False))
    t.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return t


def smollm2(path):
    """The library's tokenizer with the merges of the GGUF, and the GGUF's metadata for the other side."""
    from gguf import GGUFReader
    meta = {k: f.contents() for k, f in GGUFReader(path).fields.items() if k.startswith("tokenizer.")}
    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ", 1)) for m in meta["tokenizer.ggml.merges"]]
    t = Tokenizer(models.BPE({text: i for i, text in enumerate(tokens)}, merges))
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([tokens[i] for i, kind in enumerate(meta["tokenizer.ggml.token_type"]) if kind == 3])
    return t, {"format": "gguf", "metadata": meta}


def sentencepiece_model(lines, **options):
    """A trained model: the processor, its protocol buffer and the same as GGUF metadata."""
    import io
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    blob = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(l for l in lines if l.strip()), model_writer=blob,
                                             minloglevel=2, num_threads=1, **options)
    proto = sentencepiece_model_pb2.ModelProto.FromString(blob.getvalue())
    is_bpe = options["model_type"] == "bpe"
    meta = {
        "tokenizer.ggml.model": "llama" if is_bpe else "t5",
        "tokenizer.ggml.tokens": [p.piece for p in proto.pieces],
        "tokenizer.ggml.scores": [p.score for p in proto.pieces],
        "tokenizer.ggml.token_type": [p.type for p in proto.pieces],
        "tokenizer.ggml.unknown_token_id": proto.trainer_spec.unk_id,
        "tokenizer.ggml.bos_token_id": proto.trainer_spec.bos_id,
        "tokenizer.ggml.eos_token_id": proto.trainer_spec.eos_id,
        "tokenizer.ggml.add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
        "tokenizer.ggml.remove_extra_whitespaces": proto.normalizer_spec.remove_extra_whitespaces,
    }
    if not is_bpe:
        meta["tokenizer.ggml.precompiled_charsmap"] = list(proto.normalizer_spec.precompiled_charsmap)
    return sentencepiece.SentencePieceProcessor(model_proto=blob.getvalue()), proto, meta


def sentencepiece_goldens(lines, strings, date):
    import sentencepiece
    common = {"library": f"sentencepiece {sentencepiece.__version__}", "date": date, "seed": SEED}
    bpe, _, meta = sentencepiece_model(
        lines, model_type="bpe", vocab_size=1500, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_digits=True, character_coverage=0.999)
    ids = [bpe.encode(s) for s in strings]
    save("sentencepiece_bpe.tokenizer.json", {"format": "gguf", "metadata": meta})
    save("sentencepiece_bpe.golden.json", {**common, "ids": ids, "text": [bpe.decode(i) for i in ids]})
    unigram, proto, meta = sentencepiece_model(
        lines, model_type="unigram", vocab_size=1200, normalization_rule_name="nmt_nfkc", character_coverage=0.999)
    save("sentencepiece_unigram.tokenizer.json", {"format": "gguf", "metadata": meta})
    save("sentencepiece_unigram.golden.json", {**common, "ids": [unigram.encode(s) for s in strings]})
    # The same model as transformers converts it: the compiled rules applied cluster by cluster.
    t = Tokenizer(models.Unigram([(p.piece, p.score) for p in proto.pieces], proto.trainer_spec.unk_id))
    t.normalizer = normalizers.Sequence([
        normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap), normalizers.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    t.decoder = decoders.Metaspace(prepend_scheme="first")
    t.add_special_tokens(["<s>", "</s>", "<unk>"])
    goldens("precompiled", t, strings, date)


CHAT_TEMPLATES = {
    "qwen2": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama3": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "mistral_v1": "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% endif %}{% endfor %}",
    "mistral_v3": "{%- if messages[0][\"role\"] == \"system\" %}{%- set system_message = messages[0][\"content\"] %}{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}{{- bos_token }}{%- for message in loop_messages %}{%- if message[\"role\"] == \"user\" %}{%- if loop.last and system_message is defined %}{{- \"[INST] \" + system_message + \"\\n\\n\" + message[\"content\"] + \"[/INST]\" }}{%- else %}{{- \"[INST] \" + message[\"content\"] + \"[/INST]\" }}{%- endif %}{%- elif message[\"role\"] == \"assistant\" %}{{- \" \" + message[\"content\"]|trim + eos_token}}{%- endif %}{%- endfor %}",
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
}
CHATS = [
    [("user", "Hi")], [("user", " Hello there \n")], [("user", "a"), ("assistant", "b"), ("user", "c")],
    [("system", "Be brief."), ("user", "x")], [("system", "S"), ("user", "1"), ("assistant", "2"), ("user", "3 ")],
]


def chat_goldens(smollm2_template, date):
    """Templates as transformers renders them (blocks trimmed, bos <s> and eos </s>)."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    cases = []
    for name, template in {"smollm2": smollm2_template, **CHAT_TEMPLATES}.items():
        for chat in CHATS:
            if name == "mistral_v1" and chat[0][0] == "system":
                continue  # this template refuses them
            messages = [{"role": role, "content": content} for role, content in chat]
            text = environment.from_string(template).render(
                messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
            cases.append({"name": name, "template": template, "messages": messages, "text": text})
    save("chat.json", {"library": f"jinja2 {jinja2.__version__}", "date": date, "cases": cases})


def main():
    args = argparse.ArgumentParser()
    for name in ("minilm", "smollm2", "text", "date"):
        args.add_argument(f"--{name}", required=True)
    args = args.parse_args()
    strings = corpus()
    save("corpus.json", strings)
    lines = pathlib.Path(args.text).read_text().splitlines() + SNIPPETS[:20]
    goldens("minilm", Tokenizer.from_file(args.minilm), strings, args.date)
    for make in (byte_level_bpe, llama3_like, llama2_like, unigram, wordpiece_cased):
        goldens(make.__name__, make(lines), strings, args.date)
    tokenizer, spec = smollm2(args.smollm2)
    goldens("smollm2", tokenizer, strings, args.date, json.dumps(spec, ensure_ascii=False))
    sentencepiece_goldens(lines, strings, args.date)
    chat_goldens(spec["metadata"]["tokenizer.chat_template"], args.date)


if __name__ == "__main__":
    main()
