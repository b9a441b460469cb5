//! Which files of a repository are needed: from their names, and for a sharded model from its index.

use std::path::Path;

use super::HubError;
use super::name::{ModelName, is_relative};

/// Files to have, in the order in which they must arrive: when the last one is there, all are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selection {
    /// Settings and tokenizer; some of them are optional.
    pub(super) small: Vec<String>,
    /// Weights; of a sharded model none until its index has been read.
    pub(super) weights: Vec<String>,
    /// The index says which files hold the weights.
    pub(super) sharded: bool,
    /// What is served: the snapshot's folder, or one GGUF file in it.
    pub(super) entry: Option<String>,
}

impl Selection {
    /// Takes the weights of a sharded model from its index.
    ///
    /// Errors: in words, what is wrong with the index.
    pub(super) fn read_index(&mut self, index: &Path) -> Result<(), String> {
        if !self.sharded {
            return Ok(());
        }
        let long = std::fs::metadata(index).is_ok_and(|facts| facts.len() > LONGEST_INDEX);
        let text = if long {
            Vec::new()
        } else {
            std::fs::read(index).unwrap_or_default()
        };
        let index: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let names = index["weight_map"]
            .as_object()
            .into_iter()
            .flat_map(|map| map.values());
        let mut names: Vec<String> = names
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect();
        names.sort();
        names.dedup();
        if names.is_empty() || !names.iter().all(|name| is_relative(name)) {
            return Err(format!("its `{INDEX}` names no files of weights"));
        }
        self.weights = names;
        Ok(())
    }

    /// All files, weights last.
    pub(super) fn files(&self) -> impl Iterator<Item = &str> {
        self.small.iter().chain(&self.weights).map(String::as_str)
    }
}

pub(super) const CONFIG: &str = "config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// What is read if it is there.
pub(super) const OPTIONAL: [&str; 6] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
];
/// Longer than any index.
const LONGEST_INDEX: u64 = 64 << 20;
const TEMPLATES: &str = "additional_chat_templates/";

/// The quantisation taken where none is named: the first of these that there is, as other tools choose.
const PREFERRED: [&str; 8] = [
    "Q4_K_M", "Q4_K_S", "Q5_K_M", "Q4_0", "Q6_K", "Q8_0", "BF16", "F16",
];

/// Chooses among all files of a repository.
///
/// Errors: nothing can be served, or nothing has the tag; both say what there is instead.
pub(super) fn select(name: &ModelName, files: &[String]) -> Result<Selection, HubError> {
    let ggufs = gguf_models(files);
    if let Some(tag) = name.tag() {
        return match by_tag(&ggufs, tag) {
            Some(model) => Ok(gguf(model)),
            None => Err(HubError::NoSuchFile {
                repo: name.repo().to_owned(),
                tag: tag.to_owned(),
                available: ggufs.iter().map(GgufModel::short_name).collect(),
            }),
        };
    }
    let has = |file: &str| files.iter().any(|known| known == file);
    let sharded = !has(SINGLE) && has(INDEX);
    let no_weights = !has(SINGLE) && !sharded;
    let problem = match (no_weights, has(CONFIG), has(TOKENIZER)) {
        (false, true, true) => {
            let optional = OPTIONAL
                .iter()
                .filter(|file| has(file))
                .map(|&file| file.to_owned());
            let index = sharded.then(|| INDEX.to_owned());
            let templates = files.iter().filter(|file| {
                file.strip_prefix(TEMPLATES)
                    .is_some_and(|rest| !rest.contains('/') && rest.ends_with(".jinja"))
            });
            let small = [CONFIG.to_owned(), TOKENIZER.to_owned()].into_iter();
            return Ok(Selection {
                small: small
                    .chain(optional)
                    .chain(templates.cloned())
                    .chain(index)
                    .collect(),
                weights: (!sharded).then(|| SINGLE.to_owned()).into_iter().collect(),
                sharded,
                entry: None,
            });
        }
        _ if !ggufs.is_empty() => {
            let preferred = PREFERRED.iter().find_map(|tag| by_tag(&ggufs, tag));
            return Ok(gguf(preferred.unwrap_or(&ggufs[0])));
        }
        (false, _, false) => "its weights come without a `tokenizer.json`",
        (false, false, _) => "its weights come without a `config.json`",
        (true, ..)
            if files
                .iter()
                .any(|file| file.ends_with(".bin") || file.ends_with(".pth")) =>
        {
            "its weights are PyTorch pickles, which can run code and are not read; look for the same model as safetensors or GGUF"
        }
        (true, ..) if files.is_empty() => "it has no files",
        (true, ..) => "it has neither `model.safetensors` nor a GGUF file",
    };
    Err(HubError::NothingToServe {
        repo: name.repo().to_owned(),
        problem: problem.to_owned(),
    })
}

/// Every model that files make up: tag (none for safetensors) and selection.
pub(super) fn every(repo: &ModelName, files: &[String]) -> Vec<(Option<String>, Selection)> {
    let plain = select(&repo.without_tag(), files)
        .ok()
        .filter(|selection| selection.entry.is_none());
    let ggufs = gguf_models(files);
    let tagged = ggufs.iter().map(|model| {
        let short = model.short_name();
        // A tag that leads to another file is no name for this one.
        let leads_here = by_tag(&ggufs, &short).is_some_and(|found| found == model);
        (
            Some(if leads_here {
                short
            } else {
                model.parts[0].clone()
            }),
            gguf(model),
        )
    });
    plain
        .map(|selection| (None, selection))
        .into_iter()
        .chain(tagged)
        .collect()
}

fn gguf(model: &GgufModel) -> Selection {
    Selection {
        small: Vec::new(),
        weights: model.parts.clone(),
        sharded: false,
        entry: model.parts.first().cloned(),
    }
}

/// A model as GGUF: one file, or all parts of one that was split, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
struct GgufModel {
    /// The path without the part's number and the ending.
    stem: String,
    parts: Vec<String>,
}

impl GgufModel {
    /// The quantisation that the name tells, or else the file's name.
    fn short_name(&self) -> String {
        let base = self.stem.rsplit('/').next().unwrap_or(&self.stem);
        let upper = base.to_ascii_uppercase();
        let known = |piece: &&str| {
            [
                "Q2", "Q3", "Q4", "Q5", "Q6", "Q8", "IQ", "TQ", "F16", "F32", "BF16", "FP16",
                "MXFP4",
            ]
            .iter()
            .any(|start| piece.starts_with(start))
        };
        upper
            .split(['-', '.'])
            .rev()
            .find(known)
            .map_or_else(|| self.parts[0].clone(), str::to_owned)
    }

    fn has_tag(&self, tag: &str) -> bool {
        let stem = self.stem.to_ascii_lowercase();
        stem.match_indices(tag).any(|(at, _)| {
            let border = |c: Option<char>| c.is_none_or(|c| matches!(c, '-' | '.' | '/'));
            border(stem[..at].chars().next_back()) && border(stem[at + tag.len()..].chars().next())
        })
    }
}

/// All models in GGUF files, by name; projectors of pictures are none, nor sets of which a part is missing.
fn gguf_models(files: &[String]) -> Vec<GgufModel> {
    let mut models = Vec::<(GgufModel, usize)>::new();
    let mut sorted: Vec<&String> = files
        .iter()
        .filter(|file| file.ends_with(".gguf"))
        .collect();
    sorted.sort();
    for file in sorted {
        let base = file.rsplit('/').next().unwrap_or(file).to_ascii_lowercase();
        if base.contains("mmproj") || base.contains("imatrix") {
            continue;
        }
        let name = &file[..file.len() - ".gguf".len()];
        let (stem, count) = match part_of(name) {
            Some((stem, count)) => (stem, count),
            None => (name, 1),
        };
        match models.last_mut() {
            Some((model, _)) if model.stem == stem && count > 1 => model.parts.push(file.clone()),
            _ => models.push((
                GgufModel {
                    stem: stem.to_owned(),
                    parts: vec![file.clone()],
                },
                count,
            )),
        }
    }
    let whole = models
        .into_iter()
        .filter(|(model, count)| model.parts.len() == *count);
    whole.map(|(model, _)| model).collect()
}

/// Splits `name-00001-of-00003` into the name and the number of parts.
fn part_of(name: &str) -> Option<(&str, usize)> {
    let (rest, count) = name.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    (digits(number) && digits(count)).then(|| count.parse().ok().map(|count| (stem, count)))?
}

/// The model of which a file is named so, or that has the quantisation in its name, in whatever case.
fn by_tag<'a>(models: &'a [GgufModel], tag: &str) -> Option<&'a GgufModel> {
    let exact = models
        .iter()
        .find(|model| model.parts.iter().any(|part| part == tag));
    let tag = tag.to_ascii_lowercase();
    // Of `Q4_K_M` and `UD-Q4_K_M` the shorter name is the plain one.
    let tagged = models.iter().filter(|model| model.has_tag(&tag));
    exact.or_else(|| tagged.min_by_key(|model| (model.stem.len(), &model.stem)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn chosen(name: &str, names: &[&str]) -> Result<Selection, String> {
        let name: ModelName = name.parse().expect("a name");
        select(&name, &files(names)).map_err(|error| error.to_string())
    }

    #[test]
    fn safetensors_come_before_gguf_and_with_what_is_read_beside_them() {
        let names = [
            "README.md",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
            "tokenizer_config.json",
            "onnx/model.onnx",
            "model-q4_k_m.gguf",
            "original/consolidated.00.pth",
            "additional_chat_templates/tool_use.jinja",
            "vocab.json",
        ];
        let found = chosen("a/b", &names).expect("a selection");
        assert_eq!(
            found.small,
            [
                "config.json",
                "tokenizer.json",
                "generation_config.json",
                "tokenizer_config.json",
                "additional_chat_templates/tool_use.jinja"
            ]
        );
        assert_eq!(
            (found.weights, found.entry),
            (files(&["model.safetensors"]), None)
        );
    }

    #[test]
    fn shards_come_with_their_index() {
        let names = [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "consolidated.safetensors",
            "model-extra.safetensors",
        ];
        let mut found = chosen("a/b", &names).expect("a selection");
        assert_eq!(
            found.small,
            [
                "config.json",
                "tokenizer.json",
                "model.safetensors.index.json"
            ]
        );
        assert!(found.sharded && found.weights.is_empty());
        let folder = tempfile::tempdir().expect("a folder");
        let index = folder.path().join(INDEX);
        let text =
            r#"{"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}"#;
        std::fs::write(&index, text).expect("a file");
        found.read_index(&index).expect("an index");
        assert_eq!(found.weights, ["a.safetensors", "b.safetensors"]);
        for wrong in [
            "",
            "{}",
            r#"{"weight_map": {}}"#,
            r#"{"weight_map": {"x": "../y"}}"#,
        ] {
            std::fs::write(&index, wrong).expect("a file");
            assert!(found.read_index(&index).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_quantisation_is_found_by_its_tag_in_any_case() {
        let names = [
            "Qwen3-0.6B-Q4_K_M.gguf",
            "Qwen3-0.6B-Q8_0.gguf",
            "Qwen3-0.6B-UD-Q4_K_M.gguf",
            "Qwen3-0.6B-IQ4_XS.gguf",
            "mmproj-Qwen3-F16.gguf",
            "README.md",
            "big/big-Q6_K-00002-of-00002.gguf",
            "big/big-Q6_K-00001-of-00002.gguf",
            "cut-Q5_0-00001-of-00002.gguf",
        ];
        let entry = |name: &str| chosen(name, &names).map(|found| found.entry.expect("a file"));
        assert_eq!(entry("a/b:q8_0").as_deref(), Ok("Qwen3-0.6B-Q8_0.gguf"));
        assert_eq!(entry("a/b:Q4_K_M").as_deref(), Ok("Qwen3-0.6B-Q4_K_M.gguf"));
        assert_eq!(
            entry("a/b:ud-q4_k_m").as_deref(),
            Ok("Qwen3-0.6B-UD-Q4_K_M.gguf")
        );
        assert_eq!(entry("a/b").as_deref(), Ok("Qwen3-0.6B-Q4_K_M.gguf"));
        let exact = "Qwen3-0.6B-IQ4_XS.gguf";
        assert_eq!(entry(&format!("a/b:{exact}")).as_deref(), Ok(exact));
        let split = chosen("a/b:Q6_K", &names).expect("a selection");
        assert_eq!(
            split.weights,
            [
                "big/big-Q6_K-00001-of-00002.gguf",
                "big/big-Q6_K-00002-of-00002.gguf"
            ]
        );
        assert_eq!(
            chosen("a/b:Q4_K", &names),
            Err(
                "`a/b` has no GGUF file `Q4_K`; it has IQ4_XS, Q4_K_M, Q8_0, Q4_K_M, Q6_K"
                    .to_owned()
            )
        );
    }

    #[test]
    fn what_cannot_be_served_is_named() {
        for (names, reason) in [
            (&[][..], "it has no files"),
            (&["config.json", "pytorch_model.bin"], "pickles"),
            (
                &["config.json", "model.safetensors"],
                "without a `tokenizer.json`",
            ),
            (
                &["tokenizer.json", "model.safetensors"],
                "without a `config.json`",
            ),
            (
                &["README.md", "data.parquet"],
                "neither `model.safetensors` nor a GGUF file",
            ),
            (&["x-Q4_0-00001-of-00002.gguf"], "neither"),
        ] {
            let error = chosen("a/b", names).expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
    }
}
