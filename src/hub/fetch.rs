//! From a name to files on this machine: out of the cache if the model is whole there, from the hub otherwise.

use std::path::PathBuf;

use futures::{StreamExt, TryStreamExt};

use super::cache::{Cache, Holding, MAIN};
use super::client::{Client, FileFacts, Listing};
use super::download::{Wanted, disk_full, fetch as fetch_file, free_bytes, is_there, patiently};
use super::error::{HubError, size};
use super::name::ModelName;
use super::progress::Progress;
use super::selection::{INDEX, Selection, select};
use super::settings::HubSettings;

/// A model whose files are all here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// A folder with `config.json` and safetensors, or a GGUF file.
    pub path: PathBuf,
    /// The commit they belong to.
    pub commit: String,
    /// Bytes that had to be downloaded.
    pub downloaded: u64,
}

/// Files on their way at once.
const AT_ONCE: usize = 4;

/// The most bytes of a file beside the weights; tokenizers of large vocabularies have a tenth of it.
const LARGEST_SMALL: u64 = 256 << 20;

/// Finds a model for serving. One that is whole in the cache is used as it is, with and without a network; what is
/// missing is downloaded, unless the settings say offline. If another tool has filled the cache, the hub is asked what
/// else that commit has, and whatever it answers, the model is served.
///
/// Errors: what is missing cannot be had, with what to do about it.
pub fn fetch(
    settings: &HubSettings,
    name: &ModelName,
    revision: Option<&str>,
) -> Result<Fetched, HubError> {
    let cache = Cache::new(settings)?;
    let revision = revision.unwrap_or(MAIN);
    let fallback = match held(&cache, name, revision) {
        Held::Whole(found) => return Ok(found),
        Held::Enough(found) => Some(found),
        Held::TooLittle(_) => None,
    };
    let Some(found) = fallback else {
        return update(settings, name, Some(revision));
    };
    update(settings, name, Some(&found.commit)).or_else(|error| {
        if !settings.offline {
            tracing::warn!(
                "{error}; serving `{name}` from the cache, where optional files may be missing"
            );
        }
        Ok(found)
    })
}

/// Finds a model in the cache alone.
///
/// Errors: it is not there, or not whole.
pub fn find(
    settings: &HubSettings,
    name: &ModelName,
    revision: Option<&str>,
) -> Result<Fetched, HubError> {
    let cache = Cache::new(settings)?;
    let found = cached(&cache, name, revision.unwrap_or(MAIN));
    found.map_err(|missing| HubError::NotCached {
        model: name.clone(),
        cache: cache.root().to_owned(),
        missing,
    })
}

/// Asks the hub what a revision is now, and downloads what is missing of it.
///
/// Errors: as [`fetch`].
pub fn update(
    settings: &HubSettings,
    name: &ModelName,
    revision: Option<&str>,
) -> Result<Fetched, HubError> {
    let cache = Cache::new(settings)?;
    let revision = revision.unwrap_or(MAIN);
    if settings.offline {
        return cached(&cache, name, revision).map_err(|missing| HubError::Offline {
            model: name.clone(),
            cache: cache.root().to_owned(),
            missing,
        });
    }
    tracing::info!(model = %name, revision, "asking the hub");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = runtime.map_err(HubError::io(cache.root()))?;
    runtime.block_on(
        Download {
            settings,
            cache: &cache,
            name,
            revision,
        }
        .run(),
    )
}

enum Held {
    Whole(Fetched),
    Enough(Fetched),
    TooLittle(String),
}

/// Errors: what is missing, in words.
fn cached(cache: &Cache, name: &ModelName, revision: &str) -> Result<Fetched, String> {
    match held(cache, name, revision) {
        Held::Whole(found) | Held::Enough(found) => Ok(found),
        Held::TooLittle(missing) => Err(missing),
    }
}

fn held(cache: &Cache, name: &ModelName, revision: &str) -> Held {
    let Some(commit) = cache.commit(name.repo(), revision) else {
        return Held::TooLittle(format!("no commit is known for the revision `{revision}`"));
    };
    let found = |selection: Selection| fetched(cache, name, &commit, &selection, 0);
    match cache.holding(name, &commit) {
        Holding::Whole(selection) => Held::Whole(found(selection)),
        Holding::Enough(selection) => Held::Enough(found(selection)),
        Holding::TooLittle(missing) => {
            let older = cache
                .commits(name.repo())
                .into_iter()
                .map(|model| model.commit);
            let mut older =
                older.filter(|older| !matches!(cache.holding(name, older), Holding::TooLittle(_)));
            Held::TooLittle(match older.next() {
                Some(older) => format!("{missing}; `--revision {older}` is"),
                None => missing,
            })
        }
    }
}

fn fetched(
    cache: &Cache,
    name: &ModelName,
    commit: &str,
    selection: &Selection,
    downloaded: u64,
) -> Fetched {
    let folder = cache.snapshot(name.repo(), commit);
    Fetched {
        path: selection
            .entry
            .as_ref()
            .map_or(folder.clone(), |entry| folder.join(entry)),
        commit: commit.to_owned(),
        downloaded,
    }
}

struct Download<'a> {
    settings: &'a HubSettings,
    cache: &'a Cache,
    name: &'a ModelName,
    revision: &'a str,
}

impl Download<'_> {
    /// Small files first and weights last, so that weights never stand without what belongs to them.
    async fn run(&self) -> Result<Fetched, HubError> {
        let Self {
            settings,
            cache,
            name,
            revision,
        } = self;
        let repo = name.repo();
        let client = Client::new(settings, repo)?;
        let Listing { id, commit, files } = patiently(async || client.list(revision).await).await?;
        if !id.eq_ignore_ascii_case(repo) && !id.is_empty() {
            tracing::warn!(
                "`{repo}` has been renamed to `{id}`; the old name still works, and the new one will for longer"
            );
        }
        let mut selection = select(name, &files)?;
        let progress = Progress::new();
        let mut downloaded = self
            .carry(&client, &commit, &selection.small, true, &progress)
            .await?;
        let nothing = |problem: String| HubError::NothingToServe {
            repo: repo.to_owned(),
            problem,
        };
        let index = cache.snapshot(repo, &commit).join(INDEX);
        selection.read_index(&index).map_err(nothing)?;
        if let Some(missing) = selection.weights.iter().find(|file| !files.contains(file)) {
            return Err(nothing(format!(
                "its `{INDEX}` names {missing}, which it does not have"
            )));
        }
        downloaded += self
            .carry(&client, &commit, &selection.weights, false, &progress)
            .await?;
        cache.set_listing(repo, &commit, &files)?;
        cache.set_ref(repo, revision, &commit)?;
        Ok(fetched(cache, name, &commit, &selection, downloaded))
    }

    /// Brings files in, several at once, and returns the bytes that were missing.
    async fn carry(
        &self,
        client: &Client,
        commit: &str,
        files: &[String],
        small: bool,
        progress: &Progress,
    ) -> Result<u64, HubError> {
        let (cache, repo) = (self.cache, self.name.repo());
        let present = cache.files(repo, commit);
        let missing: Vec<&String> = files
            .iter()
            .filter(|file| !present.contains(file))
            .collect();
        let facts = futures::stream::iter(missing)
            .map(|file| async move {
                let facts = patiently(async || client.facts(commit, file).await).await?;
                Ok::<_, HubError>((file, facts))
            })
            .buffered(AT_ONCE);
        let wanted: Vec<(&String, FileFacts)> = facts.try_collect().await?;
        let too_large = wanted
            .iter()
            .find(|(_, facts)| small && facts.size > LARGEST_SMALL);
        if let Some((file, facts)) = too_large {
            return Err(HubError::NothingToServe {
                repo: repo.to_owned(),
                problem: format!(
                    "its {file} has {}, where at most {} are read",
                    size(facts.size),
                    size(LARGEST_SMALL)
                ),
            });
        }
        let needed: u64 = wanted
            .iter()
            .map(|(_, facts)| self.missing_bytes(facts))
            .sum();
        let free = free_bytes(cache.root());
        if free.is_some_and(|free| free < needed) {
            return Err(disk_full(&cache.blob(repo, ""), needed));
        }
        if needed > 0 {
            tracing::debug!(repo, commit, size = size(needed), "downloading");
        }
        futures::stream::iter(&wanted)
            .map(|(file, facts)| async move {
                let wanted = Wanted {
                    repo,
                    commit,
                    file: file.as_str(),
                    facts,
                };
                fetch_file(client, cache, &wanted, self.settings.xet_storage, progress).await?;
                cache.place(repo, commit, file, &facts.etag)
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        Ok(needed)
    }

    fn missing_bytes(&self, facts: &FileFacts) -> u64 {
        let repo = self.name.repo();
        if is_there(&self.cache.blob(repo, &facts.etag), facts.size) {
            return 0;
        }
        let partial = std::fs::metadata(self.cache.partial(repo, &facts.etag));
        facts
            .size
            .saturating_sub(partial.map_or(0, |facts| facts.len()))
    }
}
