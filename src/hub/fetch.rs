//! From a name to files on this machine: out of the cache if the model is whole there, from the hub otherwise.

use std::path::PathBuf;

use futures::{StreamExt, TryStreamExt};

use super::cache::{Cache, Holding, shards_of};
use super::client::{Client, FileFacts, Listing};
use super::download::{Wanted, disk_full, fetch as fetch_file, free_bytes, patiently};
use super::error::{HubError, size};
use super::name::ModelName;
use super::progress::Progress;
use super::selection::{INDEX, OPTIONAL, Selection, select};
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

/// The revision that stands where none is named.
const MAIN: &str = "main";
/// Files on their way at once.
const AT_ONCE: usize = 4;

/// Finds a model for serving. One that is whole in the cache is used as it is, with and without a network; what is
/// missing is downloaded, unless the settings say offline.
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
    match (update(settings, name, Some(revision)), fallback) {
        (Err(error @ HubError::Unreachable { .. }), Some(found)) => {
            tracing::warn!(
                "{error}; serving `{name}` from the cache, where optional files may be missing"
            );
            Ok(found)
        }
        (result, _) => result,
    }
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
    tracing::info!(model = %name, revision, hub = settings.endpoint, "asking the hub");
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
        Holding::TooLittle(missing) => Held::TooLittle(missing),
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
        let selection = select(name, &files)?;
        let progress = Progress::new();
        let mut downloaded = self
            .carry(&client, &commit, &selection.small, &progress)
            .await?;
        if selection.entry.is_none() {
            for file in OPTIONAL
                .iter()
                .filter(|&&file| !files.iter().any(|known| known == file))
            {
                cache.set_absent(repo, &commit, file)?;
            }
        }
        let mut weights = selection.weights.clone();
        if selection.small.iter().any(|file| file == INDEX) {
            weights = shards_of(&cache.snapshot(repo, &commit).join(INDEX));
            if let Some(missing) = weights.iter().find(|shard| !files.contains(shard)) {
                return Err(HubError::NothingToServe {
                    repo: repo.to_owned(),
                    problem: format!(
                        "its index of weights names {missing}, which it does not have"
                    ),
                });
            }
        }
        downloaded += self.carry(&client, &commit, &weights, &progress).await?;
        cache.set_ref(repo, revision, &commit)?;
        Ok(fetched(cache, name, &commit, &selection, downloaded))
    }

    /// Brings files in, several at once, and returns the bytes that were missing.
    async fn carry(
        &self,
        client: &Client,
        commit: &str,
        files: &[String],
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
                fetch_file(client, cache, &wanted, self.settings.xet, progress).await?;
                cache.place(repo, commit, file, &facts.etag)
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        Ok(needed)
    }

    fn missing_bytes(&self, facts: &FileFacts) -> u64 {
        let repo = self.name.repo();
        if self.cache.blob(repo, &facts.etag).exists() {
            return 0;
        }
        let partial = std::fs::metadata(self.cache.partial(repo, &facts.etag));
        facts
            .size
            .saturating_sub(partial.map_or(0, |facts| facts.len()))
    }
}
