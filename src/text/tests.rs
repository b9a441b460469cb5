//! Tests of the floor as a whole, on small tokenizers of four families, trained here or committed: what each family does with
//! text it knows, text it does not know, and ids in any order.

use std::sync::LazyLock;

use proptest::prelude::*;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::models::wordpiece::{WordPiece, WordPieceTrainer};
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::whitespace::Whitespace;
use tokenizers::{
    AddedToken, Model, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, decoders,
};

use super::*;
use crate::generation::TokenId;

type Library = tokenizers::Tokenizer;

const CORPUS: &[&str] = &[
    "The quick brown fox jumps over the lazy dog, and the dog didn't care.",
    "It's 2024; they're counting 1 22 333 4444 things that we'll never need.",
    "Größe, Übermut und Straße: für naïve Füße à la façade, déjà vu — cœur.",
    "Привет, мир! Как дела? Хорошо, спасибо. Мир хорош.",
    "日本語のテキストと漢字。日本の首都は東京です。東京は大きい。",
    "Emoji: 🙂🙂 🎉 👩‍👩‍👧‍👦 are here, and 🙂 again.",
    "  indented\n\tlines\r\n\n  with   many   spaces\n",
    "the theme then there these them thing think this that than",
];

/// Text of any kind: words of the corpus, other scripts, broken-up emoji, runs of white space, digits.
fn any_text() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("the theme ".to_owned()),
        Just(" Straße".to_owned()),
        Just("日本語".to_owned()),
        Just("👩‍👩‍👧‍👦🙂".to_owned()),
        Just("e\u{301}".to_owned()),
        Just("they'LL".to_owned()),
        Just(" zzq ".to_owned()),
        "[ \t\r\n]{1,4}",
        "[0-9٣]{1,5}",
        "[a-zA-Zéß ]{1,8}",
        "\\PC{1,4}",
    ];
    prop::collection::vec(word, 0..12).prop_map(|words| words.concat())
}

fn train(mut library: Library, trainer: impl Into<TrainerWrapper>) -> Library {
    let mut trainer: TrainerWrapper = trainer.into();
    let corpus = CORPUS.iter().map(|line| (*line).to_owned());
    library.train(&mut trainer, corpus).unwrap();
    library
}

fn special(names: &[&str]) -> Vec<AddedToken> {
    names
        .iter()
        .map(|name| AddedToken::from(*name, true))
        .collect()
}

fn byte_trainer(vocab_size: usize) -> BpeTrainer {
    BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab_size)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(special(&["<|end|>", "<|start|>"]))
        .build()
}

/// A byte-level BPE with the given steps before merging.
fn byte_level(steps: Vec<PreTokenizerWrapper>, nfc: bool) -> Library {
    let mut library = Library::new(BPE::default());
    if nfc {
        library.with_normalizer(Some(NFC)).unwrap();
    }
    library.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
    library.with_decoder(Some(ByteLevel::new(false, false, false)));
    let mut library = train(library, byte_trainer(420));
    library
        .add_tokens([AddedToken::from("<tool>", false).normalized(false)])
        .unwrap();
    library
}

fn split(pattern: &str) -> PreTokenizerWrapper {
    let pattern = SplitPattern::Regex(pattern.to_owned());
    Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
        .unwrap()
        .into()
}

fn smollm() -> Library {
    let steps = vec![
        Digits::new(true).into(),
        ByteLevel::new(false, true, true).into(),
    ];
    byte_level(steps, false)
}

/// A SentencePiece-like BPE: `▁` for a space, `<0x..>` for bytes it has no token for.
fn byte_fallback() -> Library {
    let mut library = Library::new(BPE::default());
    let escape: NormalizerWrapper = Replace::new(" ", "▁").unwrap().into();
    let prepend: NormalizerWrapper = Prepend::new("▁".to_owned()).into();
    library
        .with_normalizer(Some(Normalizers::new(vec![prepend, escape])))
        .unwrap();
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let names = ["<unk>", "<s>", "</s>"].map(str::to_owned);
    let tokens = names.into_iter().chain(bytes);
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(420)
        .limit_alphabet(40)
        .max_token_length(Some(8))
        .special_tokens(tokens.map(|token| AddedToken::from(token, true)).collect())
        .build();
    let trained = train(library.clone(), trainer);
    let json: serde_json::Value = serde_json::from_str(&trained.to_string(false).unwrap()).unwrap();
    let merges = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| {
            let part = |index: usize| pair[index].as_str().unwrap().to_owned();
            (part(0), part(1))
        });
    let model = BPE::builder()
        .vocab_and_merges(
            trained
                .get_model()
                .get_vocab()
                .into_iter()
                .collect::<tokenizers::models::bpe::Vocab>(),
            merges.collect(),
        )
        .byte_fallback(true)
        .fuse_unk(true)
        .unk_token("<unk>".to_owned())
        .build()
        .unwrap();
    library.with_model(model);
    library
        .add_special_tokens(special(&["<unk>", "<s>", "</s>"]))
        .unwrap();
    library.with_decoder(Some(decoders::sequence::Sequence::new(vec![
        Replace::new("▁", " ").unwrap().into(),
        decoders::byte_fallback::ByteFallback::new().into(),
        decoders::fuse::Fuse::new().into(),
        decoders::strip::Strip::new(' ', 1, 0).into(),
    ])));
    library
}

fn unigram() -> Library {
    let mut library = Library::new(Unigram::default());
    let metaspace = Metaspace::new('▁', PrependScheme::Always, true);
    library.with_pre_tokenizer(Some(metaspace.clone()));
    library.with_decoder(Some(metaspace));
    let trainer = UnigramTrainer::builder()
        .show_progress(false)
        .vocab_size(200)
        .unk_token(Some("<unk>".to_owned()))
        .special_tokens(special(&["<unk>", "</s>"]))
        .build()
        .unwrap();
    train(library, trainer)
}

fn wordpiece() -> Library {
    let model = WordPiece::builder()
        .unk_token("[UNK]".to_owned())
        .build()
        .unwrap();
    let mut library = Library::new(model);
    library.with_pre_tokenizer(Some(Whitespace {}));
    library.with_decoder(Some(decoders::wordpiece::WordPiece::new(
        "##".to_owned(),
        true,
    )));
    let trainer = WordPieceTrainer::builder()
        .show_progress(false)
        .vocab_size(250)
        .special_tokens(special(&["[UNK]", "[SEP]"]))
        .build();
    let mut library = train(library, trainer);
    library
        .add_tokens([AddedToken::from("<tool>", false)])
        .unwrap();
    library
}

fn wrap(library: &Library) -> Tokenizer {
    let json = library.to_string(false).unwrap();
    Tokenizer::from_json(json.as_bytes(), SpecialTokens::default()).unwrap()
}

static SMOLLM: LazyLock<Library> = LazyLock::new(smollm);
static BYTE_FALLBACK: LazyLock<Library> = LazyLock::new(byte_fallback);
/// Four trained here, then the four of `tests/tokenizers`, in the same order of families.
static FAMILIES: LazyLock<[Tokenizer; 8]> = LazyLock::new(|| {
    let committed = |json: &str| {
        Tokenizer::from_json(json.as_bytes(), SpecialTokens::default()).expect("a sound file")
    };
    [
        wrap(&SMOLLM),
        wrap(&BYTE_FALLBACK),
        wrap(&unigram()),
        wrap(&wordpiece()),
        committed(include_str!("../../tests/tokenizers/byte_level.json")),
        committed(include_str!("../../tests/tokenizers/byte_fallback.json")),
        committed(include_str!("../../tests/tokenizers/unigram.json")),
        committed(include_str!("../../tests/tokenizers/wordpiece.json")),
    ]
});

/// Pushes `ids` behind `prompt` and returns what each emits, and then the rest.
fn emissions(
    tokenizer: &Tokenizer,
    prompt: &[TokenId],
    ids: &[TokenId],
) -> (Vec<Emission>, String) {
    let mut detokenizer = Detokenizer::new(tokenizer.clone(), prompt);
    let emissions: Vec<Emission> = ids
        .iter()
        .map(|id| detokenizer.push(*id).unwrap())
        .collect();
    let rest = detokenizer.finish();
    let generated = emissions
        .iter()
        .map(Emission::generated)
        .chain([rest.as_str()]);
    assert_eq!(generated.collect::<String>(), detokenizer.generated_text());
    (emissions, rest)
}

/// Pushes `ids` behind `prompt` and returns the pieces and the generated text.
fn detokenize(tokenizer: &Tokenizer, prompt: &[TokenId], ids: &[TokenId]) -> (Vec<String>, String) {
    let (emissions, rest) = emissions(tokenizer, prompt, ids);
    let generated: String = emissions
        .iter()
        .map(Emission::generated)
        .chain([rest.as_str()])
        .collect();
    let pieces = emissions
        .into_iter()
        .map(|emission| emission.text)
        .collect();
    (pieces, generated)
}

/// TGI's `decode_token`, word for word: prefix and read offsets over the whole list, counting characters.
fn reference_pieces(tokenizer: &Tokenizer, prompt: &[TokenId], ids: &[TokenId]) -> Vec<String> {
    let mut all = prompt.to_vec();
    let mut prefix = prompt.len().saturating_sub(5);
    let mut read = prompt.len();
    let mut pieces = Vec::new();
    for id in ids {
        all.push(*id);
        let old = tokenizer.decode(&all[prefix..read], false).unwrap();
        let new = tokenizer.decode(&all[prefix..], false).unwrap();
        let old_length = old.chars().count();
        if new.chars().count() > old_length && !new.ends_with('\u{FFFD}') {
            pieces.push(new.chars().skip(old_length).collect());
            prefix = read;
            read = all.len();
        } else {
            pieces.push(String::new());
        }
    }
    pieces
}

fn ids_below(size: usize) -> impl Strategy<Value = Vec<TokenId>> {
    let id = (0..u32::try_from(size).unwrap() + 3).prop_map(TokenId);
    prop::collection::vec(id, 0..40)
}

#[test]
fn a_tokenizer_can_be_shared_between_threads() {
    fn shareable<T: Send + Sync + Clone>() {}
    shareable::<Tokenizer>();
    shareable::<Detokenizer>();
}

#[test]
fn offsets_count_bytes_of_the_original() {
    let tokenizer = wrap(&SMOLLM);
    let text = "Straße für 日本語 🙂!";
    let encoding = tokenizer.encode(text, true).unwrap();
    assert_eq!(encoding.ids.len(), encoding.offsets.len());
    assert_eq!(encoding.offsets.last(), Some(&(text.len() - 1, text.len())));
    let mut end = 0;
    for (start, stop) in &encoding.offsets {
        assert!(*start <= end && text.is_char_boundary(*start) && text.is_char_boundary(*stop));
        end = *stop;
    }
    assert_eq!(end, text.len());
    let fallback = wrap(&BYTE_FALLBACK);
    let encoding = fallback.encode("the 𓀀 the", true).unwrap();
    let (first, last) = (encoding.offsets[0], *encoding.offsets.last().unwrap());
    assert_eq!((first.0, last.1), (0, "the 𓀀 the".len()));
}

#[test]
fn truncation_and_padding_of_the_file_are_off() {
    let mut library = SMOLLM.clone();
    library
        .with_truncation(Some(tokenizers::TruncationParams {
            max_length: 3,
            ..Default::default()
        }))
        .unwrap();
    library.with_padding(Some(tokenizers::PaddingParams {
        strategy: tokenizers::PaddingStrategy::Fixed(50),
        ..Default::default()
    }));
    let text = "one two three four five six";
    assert_eq!(
        wrap(&library).encode(text, true).unwrap(),
        wrap(&SMOLLM).encode(text, true).unwrap()
    );
}

#[test]
fn bos_and_eos_follow_the_configuration() {
    let json = BYTE_FALLBACK.to_string(false).unwrap();
    let with = |settings| Tokenizer::from_json(json.as_bytes(), settings).unwrap();
    let settings = SpecialTokens {
        bos: Some("<s>".into()),
        eos: Some("</s>".into()),
        ..Default::default()
    };
    let plain = with(settings.clone());
    let (bos, eos) = (plain.bos().unwrap(), plain.eos().unwrap());
    assert!(plain.is_special(bos) && plain.is_special(eos));
    let bare = plain.encode("the", true).unwrap();
    let both = with(SpecialTokens {
        add_bos: Some(true),
        add_eos: Some(true),
        ..settings.clone()
    });
    let framed = both.encode("the", true).unwrap();
    assert_eq!(framed.ids, [&[bos], &bare.ids[..], &[eos]].concat());
    assert_eq!(framed.offsets[0], (0, 0));
    assert_eq!(framed.offsets.last(), Some(&(0, 0)));
    assert_eq!(both.encode("the", false).unwrap(), bare);

    let mut library = BYTE_FALLBACK.clone();
    let template = tokenizers::processors::template::TemplateProcessing::builder()
        .try_single("<s> $A </s>")
        .unwrap()
        .special_tokens(vec![("<s>", bos.0), ("</s>", eos.0)])
        .build()
        .unwrap();
    library.with_post_processor(Some(template));
    let json = library.to_string(false).unwrap();
    for (add, expected) in [(None, &framed), (Some(true), &framed), (Some(false), &bare)] {
        let settings = SpecialTokens {
            add_bos: add,
            add_eos: add,
            ..settings.clone()
        };
        let tokenizer = Tokenizer::from_json(json.as_bytes(), settings).unwrap();
        assert_eq!(
            tokenizer.encode("the", true).unwrap().ids,
            expected.ids,
            "{add:?}"
        );
    }
}

#[test]
fn named_tokens_are_special_and_must_exist() {
    let json = SMOLLM.to_string(false).unwrap();
    let read = |settings| Tokenizer::from_json(json.as_bytes(), settings);
    let tool = wrap(&SMOLLM).id_of("<tool>").unwrap();
    assert!(!wrap(&SMOLLM).is_special(tool));
    let others = vec!["<tool>".to_owned(), "<absent>".to_owned()];
    let tokenizer = read(SpecialTokens {
        others,
        ..Default::default()
    })
    .unwrap();
    assert!(tokenizer.is_special(tool));
    assert_eq!(tokenizer.decode(&[tool], true).unwrap(), "");
    assert_eq!(tokenizer.token_text(tool).unwrap(), "<tool>");
    let bos = Some("<absent>".to_owned());
    let error = read(SpecialTokens {
        bos,
        ..Default::default()
    })
    .unwrap_err();
    assert!(error.to_string().contains("`bos_token`"), "{error}");
    let add_bos = Some(true);
    let error = read(SpecialTokens {
        add_bos,
        ..Default::default()
    })
    .unwrap_err();
    assert!(error.to_string().contains("`add_bos_token`"), "{error}");
    let error = Tokenizer::from_json(b"{}", SpecialTokens::default()).unwrap_err();
    assert!(
        error.to_string().starts_with("invalid tokenizer.json: "),
        "{error}"
    );
}

#[test]
fn an_emoji_comes_whole_from_its_last_token() {
    for tokenizer in &FAMILIES[..2] {
        let ids = tokenizer.encode("the \u{1F9FF}", false).unwrap().ids;
        let (pieces, text) = detokenize(tokenizer, &[], &ids);
        let (last, before) = pieces.split_last().unwrap();
        assert_eq!(last.trim_start(), "\u{1F9FF}");
        assert_eq!(before.last().map(String::as_str), Some(""));
        assert_eq!(text, "the \u{1F9FF}");
        let (_, cut) = detokenize(tokenizer, &[], &ids[..ids.len() - 1]);
        assert_eq!(cut, "the ");
    }
}

#[test]
fn a_special_token_drops_the_character_it_interrupts() {
    let tokenizer = &FAMILIES[0];
    let end = tokenizer.id_of("<|end|>").unwrap();
    let half = tokenizer.encode("\u{1F9FF}", false).unwrap().ids[0];
    let letter = tokenizer.id_of("a").unwrap();
    let (pieces, text) = detokenize(tokenizer, &[], &[letter, half, end]);
    assert_eq!(pieces, ["a", "", "<|end|>"]);
    assert_eq!(text, "a");
    let (pieces, text) = detokenize(tokenizer, &[], &[half, letter]);
    assert_eq!(pieces, ["", "\u{FFFD}a"]);
    assert_eq!(text, "\u{FFFD}a");
}

#[test]
fn a_token_ending_inside_a_character_waits_whole_but_not_for_ever() {
    let mut library = SMOLLM.clone();
    library
        .add_tokens([AddedToken::from("aÃ", false), AddedToken::from("©Ã", false)])
        .unwrap();
    let tokenizer = wrap(&library);
    let [open, chain] = ["aÃ", "©Ã"].map(|token| tokenizer.id_of(token).unwrap());
    let end = tokenizer.id_of("<|end|>").unwrap();
    let letter = tokenizer.id_of("b").unwrap();
    let (pieces, text) = detokenize(&tokenizer, &[], &[open, letter]);
    assert_eq!(pieces, ["", "a\u{FFFD}b"]);
    assert_eq!(text, "a\u{FFFD}b");
    let (emissions, rest) = emissions(&tokenizer, &[], &[open, chain, end]);
    assert_eq!(emissions[2].text, "aé<|end|>");
    assert_eq!((emissions[2].generated(), rest.as_str()), ("aé", ""));
    let (pieces, text) = detokenize(&tokenizer, &[], &[open, chain, chain, chain, chain, chain]);
    assert_eq!(pieces, ["", "", "", "aééé", "", ""]);
    assert_eq!(text, "aééééé");
}

#[test]
fn the_space_before_a_word_survives() {
    let tokenizer = &FAMILIES[1];
    let ids = tokenizer.encode("the the", false).unwrap().ids;
    let (pieces, _) = detokenize(tokenizer, &ids, &ids);
    assert!(pieces.concat().starts_with(" the"), "{pieces:?}");
    let (pieces, _) = detokenize(tokenizer, &[], &ids);
    assert_eq!(pieces.concat(), "the the");
}

#[test]
fn ids_outside_the_vocabulary_add_nothing() {
    for tokenizer in FAMILIES.iter() {
        let word = tokenizer.encode("the the", false).unwrap().ids;
        let outside = TokenId(u32::try_from(tokenizer.vocab_size()).unwrap());
        let (pieces, _) = detokenize(
            tokenizer,
            &[outside],
            &[&word[..], &[outside; 9], &word[..]].concat(),
        );
        let (expected, _) = detokenize(tokenizer, &[], &[&word[..], &word[..]].concat());
        assert_eq!(pieces.concat(), expected.concat());
        assert_eq!(tokenizer.token_bytes(outside).unwrap(), b"");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn only_special_tokens_are_left_out_of_the_generated_text(
        family in 0_usize..8,
        (prompt, ids) in (ids_below(400), ids_below(420)),
    ) {
        let tokenizer = &FAMILIES[family];
        let (emissions, _) = emissions(tokenizer, &prompt, &ids);
        for (id, emission) in ids.iter().zip(&emissions) {
            let left_out = &emission.text[emission.generated_bytes..];
            if tokenizer.is_special(*id) {
                prop_assert_eq!(left_out.trim_start(), tokenizer.token_text(*id).unwrap());
            } else {
                prop_assert_eq!(left_out, "");
            }
        }
        let silent = emissions
            .iter()
            .zip(&ids)
            .filter(|(_, id)| tokenizer.token_bytes(**id).is_ok_and(|bytes| !bytes.is_empty()));
        let mut run = 0;
        for (emission, _) in silent {
            run = if emission.text.is_empty() { run + 1 } else { 0 };
            prop_assert!(run < 4);
        }
    }

    #[test]
    fn any_bytes_decode_as_they_would_at_once(ids in ids_below(423)) {
        let tokenizer = &FAMILIES[0];
        let ids: Vec<TokenId> = ids.into_iter().filter(|id| !tokenizer.is_special(*id)).collect();
        let mut text = detokenize(tokenizer, &[], &ids).1;
        let whole = tokenizer.decode(&ids, false).unwrap();
        if text != whole {
            text.push('\u{FFFD}');
        }
        prop_assert_eq!(&text, &whole);
        let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id).unwrap()).collect();
        prop_assert_eq!(String::from_utf8_lossy(&bytes), whole);
    }

    #[test]
    fn byte_level_text_comes_back(text in any_text()) {
        let tokenizer = &FAMILIES[0];
        let ids = tokenizer.encode(&text, false).unwrap().ids;
        let (pieces, generated) = detokenize(tokenizer, &[], &ids);
        prop_assert_eq!(pieces.concat(), text.as_str());
        prop_assert_eq!(generated, text);
    }

    #[test]
    fn text_comes_back_as_the_whole_decodes(family in 0_usize..8, text in any_text()) {
        let tokenizer = &FAMILIES[family];
        let ids = tokenizer.encode(&text, false).unwrap().ids;
        let (pieces, _) = detokenize(tokenizer, &[], &ids);
        prop_assert_eq!(pieces.concat(), tokenizer.decode(&ids, false).unwrap());
    }

    #[test]
    fn pieces_are_those_of_tgi(family in 0_usize..8, prompt in any_text(), text in any_text()) {
        prop_assume!(!text.contains('\u{FFFD}') && !prompt.is_empty());
        let tokenizer = &FAMILIES[family];
        let prompt = tokenizer.encode(&prompt, false).unwrap().ids;
        let ids = tokenizer.encode(&text, false).unwrap().ids;
        let reference = reference_pieces(tokenizer, &prompt, &ids);
        prop_assume!(reference.windows(4).all(|run| run.iter().any(|piece| !piece.is_empty())));
        prop_assert_eq!(detokenize(tokenizer, &prompt, &ids).0, reference);
    }

    #[test]
    fn offsets_are_slices_of_the_text(family in 0_usize..8, text in any_text()) {
        let encoding = FAMILIES[family].encode(&text, true).unwrap();
        prop_assert_eq!(encoding.ids.len(), encoding.offsets.len());
        for (start, end) in encoding.offsets {
            prop_assert!(text.get(start..end).is_some(), "{}..{} of {:?}", start, end, text);
        }
    }
}

/// The vocabulary of a trained BPE as a GGUF file would hold it.
fn to_gguf(library: &Library, model: &str, pre: Option<&str>) -> GgufVocabulary {
    let json: serde_json::Value = serde_json::from_str(&library.to_string(false).unwrap()).unwrap();
    let added = library.get_added_tokens_decoder();
    let size = library.get_vocab_size(true);
    let tokens: Vec<String> = (0..u32::try_from(size).unwrap())
        .map(|id| library.id_to_token(id).unwrap())
        .collect();
    let token_types = (0..)
        .zip(&tokens)
        .map(|(id, token)| match added.get(&id) {
            _ if token == "<unk>" => 2,
            Some(token) if token.special => 3,
            Some(_) => 4,
            None if token.starts_with("<0x") => 6,
            None => 1,
        })
        .collect();
    let merges = json["model"]["merges"].as_array().unwrap().iter();
    GgufVocabulary {
        model: model.to_owned(),
        pre: pre.map(str::to_owned),
        token_types,
        scores: if model == "llama" {
            (0..size).map(|rank| -(rank as f32)).collect()
        } else {
            Vec::new()
        },
        merges: merges
            .map(|pair| {
                format!(
                    "{} {}",
                    pair[0].as_str().unwrap(),
                    pair[1].as_str().unwrap()
                )
            })
            .collect(),
        bos: library
            .token_to_id("<s>")
            .or(library.token_to_id("<|start|>")),
        eos: library
            .token_to_id("</s>")
            .or(library.token_to_id("<|end|>")),
        unk: library.token_to_id("<unk>"),
        tokens,
        ..Default::default()
    }
}

/// Each trained original with the tokenizer rebuilt from its GGUF form.
static ROUND_TRIPS: LazyLock<Vec<(&str, Tokenizer, Tokenizer)>> = LazyLock::new(|| {
    let no_regex = || ByteLevel::new(false, true, false).into();
    let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let qwen2 = llama3.replace("{1,3}", "");
    let mut llama_bpe = byte_level(vec![split(llama3), no_regex()], false);
    let mut json: serde_json::Value =
        serde_json::from_str(&llama_bpe.to_string(false).unwrap()).unwrap();
    json["model"]["ignore_merges"] = true.into();
    let size = json["model"]["vocab"].as_object().unwrap().len();
    json["model"]["vocab"]["Ġzzq"] = size.into();
    llama_bpe = json.to_string().parse().unwrap();
    [
        ("smollm", SMOLLM.clone()),
        (
            "gpt-2",
            byte_level(vec![ByteLevel::new(false, true, true).into()], false),
        ),
        ("qwen2", byte_level(vec![split(&qwen2), no_regex()], true)),
        ("llama-bpe", llama_bpe),
        ("llama", BYTE_FALLBACK.clone()),
    ]
    .into_iter()
    .map(|(name, library)| {
        let (model, pre) = if name == "llama" {
            ("llama", None)
        } else {
            ("gpt2", Some(name))
        };
        let rebuilt = Tokenizer::from_gguf(to_gguf(&library, model, pre)).unwrap();
        (name, wrap(&library), rebuilt)
    })
    .collect()
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_gguf_vocabulary_encodes_as_its_original(text in any_text(), marked in any::<bool>()) {
        let text = if marked { format!("{text}<|end|> x<tool>{text}</s>") } else { text };
        for (name, original, rebuilt) in ROUND_TRIPS.iter() {
            let expected = original.encode(&text, false).unwrap();
            let encoding = rebuilt.encode(&text, false).unwrap();
            prop_assert_eq!(&encoding.ids, &expected.ids, "{} {:?}", name, text);
            prop_assert_eq!(&encoding.offsets, &expected.offsets, "{} {:?}", name, text);
            prop_assert_eq!(
                rebuilt.decode(&encoding.ids, true).unwrap(),
                original.decode(&expected.ids, true).unwrap()
            );
        }
    }
}

#[test]
fn gguf_special_tokens_and_bos_defaults() {
    for (name, original, rebuilt) in ROUND_TRIPS.iter() {
        assert_eq!(rebuilt.vocab_size(), original.vocab_size(), "{name}");
        for id in (0..u32::try_from(rebuilt.vocab_size()).unwrap()).map(TokenId) {
            assert_eq!(
                rebuilt.is_special(id),
                original.is_special(id),
                "{name} {id:?}"
            );
        }
        let adds_bos = matches!(*name, "llama" | "llama-bpe");
        let ids = rebuilt.encode("the", true).unwrap().ids;
        assert_eq!(ids.first() == rebuilt.bos().as_ref(), adds_bos, "{name}");
        assert!(ids.last() != rebuilt.eos().as_ref(), "{name}");
    }
}

#[test]
fn a_gguf_file_can_refuse_the_space_prefix_and_bos() {
    let vocabulary = GgufVocabulary {
        add_space_prefix: Some(false),
        add_bos: Some(false),
        add_eos: Some(true),
        ..to_gguf(&BYTE_FALLBACK, "llama", None)
    };
    let tokenizer = Tokenizer::from_gguf(vocabulary).unwrap();
    let ids = tokenizer.encode("the", true).unwrap().ids;
    assert_eq!(ids.last(), tokenizer.eos().as_ref());
    assert!(ids.first() != tokenizer.bos().as_ref());
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "the");
    let spaced = tokenizer.encode(" the", false).unwrap().ids;
    assert_eq!(tokenizer.decode(&spaced, true).unwrap(), " the");
    assert!(ids[..ids.len() - 1] != spaced[..]);
}

#[test]
fn a_sentencepiece_vocabulary_by_hand() {
    let tokens = [
        "<unk>", "<s>", "▁", "a", "b", "ab", "▁ab", "ba", "x y", "<0x21>",
    ];
    let types = [2, 3, 1, 1, 1, 1, 1, 1, 4, 6];
    let scores = [0.0, 0.0, -9.0, -8.0, -7.0, -2.0, -1.0, -3.0, 0.0, 0.0];
    let tokenizer = Tokenizer::from_gguf(GgufVocabulary {
        model: "llama".to_owned(),
        tokens: tokens.map(str::to_owned).to_vec(),
        token_types: types.to_vec(),
        scores: scores.to_vec(),
        bos: Some(1),
        unk: Some(0),
        ..Default::default()
    })
    .unwrap();
    let spelled = |text: &str| -> Vec<&str> {
        let ids = tokenizer.encode(text, true).unwrap().ids;
        ids.iter().map(|id| tokens[id.0 as usize]).collect()
    };
    assert_eq!(spelled("ab"), ["<s>", "▁ab"]);
    assert_eq!(spelled("bab"), ["<s>", "▁", "b", "ab"]);
    assert_eq!(spelled("baa!"), ["<s>", "▁", "ba", "a", "<0x21>"]);
    assert_eq!(spelled("aqqq a"), ["<s>", "▁", "a", "<unk>", "▁", "a"]);
    assert_eq!(spelled("ax yb"), ["<s>", "▁", "a", "x y", "▁", "b"]);
    assert!(tokenizer.is_special(TokenId(0)) && tokenizer.is_special(TokenId(1)));
    assert!(!tokenizer.is_special(TokenId(8)));
    let ids = tokenizer.encode("ab<s>x y!", true).unwrap().ids;
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "abx y !");
}

#[test]
fn gguf_errors_name_the_key() {
    let good = to_gguf(&SMOLLM, "gpt2", Some("smollm"));
    let sentencepiece = to_gguf(&BYTE_FALLBACK, "llama", None);
    let cases: Vec<(&str, &str, GgufVocabulary)> = vec![
        (
            "tokenizer.ggml.model",
            "`t5`",
            GgufVocabulary {
                model: "t5".into(),
                ..good.clone()
            },
        ),
        (
            "tokenizer.ggml.pre",
            "`mystery` is not supported; known are default, gpt-2",
            GgufVocabulary {
                pre: Some("mystery".into()),
                ..good.clone()
            },
        ),
        (
            "tokenizer.ggml.pre",
            "absent",
            GgufVocabulary {
                pre: None,
                ..good.clone()
            },
        ),
        (
            "tokenizer.ggml.tokens",
            "absent",
            GgufVocabulary {
                tokens: vec![],
                ..good.clone()
            },
        ),
        (
            "tokenizer.ggml.tokens",
            "two ids",
            GgufVocabulary {
                tokens: [&good.tokens[..1], &good.tokens[..good.tokens.len() - 1]].concat(),
                ..good.clone()
            },
        ),
        (
            "tokenizer.ggml.token_type",
            "1 entries",
            GgufVocabulary {
                token_types: vec![1],
                ..good.clone()
            },
        ),
        (
            "tokenizer.ggml.merges",
            "absent",
            GgufVocabulary {
                merges: vec![],
                ..good.clone()
            },
        ),
        (
            "tokenizer.ggml.merges",
            "not a pair",
            GgufVocabulary {
                merges: vec!["ab".into()],
                ..good.clone()
            },
        ),
        (
            "tokenizer.ggml.merges",
            "does not exist",
            GgufVocabulary {
                merges: vec!["<|start|> <|start|>".into()],
                ..good.clone()
            },
        ),
        (
            "tokenizer.ggml.bos_token_id",
            "99999",
            GgufVocabulary {
                bos: Some(99_999),
                ..good.clone()
            },
        ),
        (
            "tokenizer.ggml.bos_token_id",
            "absent",
            GgufVocabulary {
                bos: None,
                add_bos: Some(true),
                ..good.clone()
            },
        ),
        (
            "tokenizer.ggml.eos_token_id",
            "absent",
            GgufVocabulary {
                eos: None,
                add_eos: Some(true),
                ..good
            },
        ),
        (
            "tokenizer.ggml.scores",
            "absent",
            GgufVocabulary {
                scores: vec![],
                ..sentencepiece.clone()
            },
        ),
        (
            "tokenizer.ggml.bos_token_id",
            "absent",
            GgufVocabulary {
                bos: None,
                ..sentencepiece
            },
        ),
    ];
    for (key, reason, vocabulary) in cases {
        let error = Tokenizer::from_gguf(vocabulary).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("GGUF metadata `{key}`: ")),
            "{error}"
        );
        assert!(error.contains(reason), "{error}");
    }
}
