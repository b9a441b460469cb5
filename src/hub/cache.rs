//! The cache's layout on disk: the one of `huggingface_hub`, so that either finds what the other has downloaded.
//!
//! ```text
//! models--org--name/
//!   blobs/<etag>                     contents; written beside it as <etag>.incomplete and renamed when it is right
//!   snapshots/<commit>/<file>        a relative link to the blob
//!   refs/<branch or tag>             the commit it stood for when it was last asked
//!   .no_exist/<commit>/<file>        what the commit is known not to have
//!   .sconce/<commit>                 ours: the names of all its files, so that a name means the same offline
//! .locks/models--org--name/<etag>.lock
//! ```
//!
//! No network here. Whatever is visible under `snapshots` is whole.

use std::fs::{self, File, FileTimes, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::error::HubError;
use super::name::{ModelName, is_relative};
use super::selection::{INDEX, OPTIONAL, Selection, every, select};
use super::settings::HubSettings;

/// The folder that holds every downloaded repository.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// A model of which at least one file is in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedModel {
    /// `org/name`.
    pub repo: String,
    /// The commit whose files these are.
    pub commit: String,
    /// Branches and tags that stood for it.
    pub refs: Vec<String>,
    /// The folder with the files.
    pub path: PathBuf,
    /// Paths in it, with their bytes, by name.
    pub files: Vec<(String, u64)>,
    /// When each was last read, as far as the file system notes it.
    read: Vec<Option<SystemTime>>,
}

impl CachedModel {
    /// When one of the files was last read, as far as the file system notes it.
    pub fn last_used(&self) -> Option<SystemTime> {
        self.read.iter().copied().flatten().max()
    }

    /// Makes looking into the files no use of them: their times of reading are as they were when they were listed.
    pub fn forget_looking(&self) {
        for ((name, _), read) in self.files.iter().zip(&self.read) {
            if let (Some(read), Ok(file)) = (read, File::open(self.path.join(name))) {
                // Somebody else's file keeps the time of the look.
                let _ = file.set_times(FileTimes::new().set_accessed(*read));
            }
        }
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|(_, size)| size).sum()
    }

    /// What can be served of these files; nothing while weights are missing.
    pub fn servable(&self) -> Vec<Servable> {
        let Ok(repo) = self.repo.parse::<ModelName>() else {
            return Vec::new();
        };
        let names: Vec<String> = self.files.iter().map(|(name, _)| name.clone()).collect();
        let size_of = |file: &str| {
            self.files
                .iter()
                .find(|(name, _)| name == file)
                .map_or(0, |(_, size)| *size)
        };
        let models = every(&repo, &names).into_iter();
        let whole = models.filter_map(|(tag, mut selection)| {
            selection.read_index(&self.path.join(INDEX)).ok()?;
            let whole = selection
                .files()
                .all(|file| names.iter().any(|known| known == file));
            whole.then_some((tag, selection))
        });
        let servable = whole.map(|(tag, selection)| Servable {
            name: repo.with_tag(tag),
            path: selection
                .entry
                .as_ref()
                .map_or(self.path.clone(), |entry| self.path.join(entry)),
            size: selection.files().map(size_of).sum(),
        });
        servable.collect()
    }
}

/// One model of a repository: its safetensors, or one of its GGUF files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Servable {
    /// The name by which it is served.
    pub name: ModelName,
    /// The folder or the GGUF file.
    pub path: PathBuf,
    /// Bytes of its files.
    pub size: u64,
}

/// How much of a model the cache holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Holding {
    /// All of it.
    Whole(Selection),
    /// What a server needs; whether there are optional files that are not here is unknown.
    Enough(Selection),
    /// Too little, in words.
    TooLittle(String),
}

impl Cache {
    /// The cache of the settings; the folder need not exist.
    ///
    /// Errors: no variable says where it is.
    pub fn new(settings: &HubSettings) -> Result<Self, HubError> {
        let root = settings.cache.clone().ok_or(HubError::NoCache)?;
        Ok(Self { root })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn folder(&self, repo: &str) -> PathBuf {
        self.root.join(folder_name(repo))
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, repo: &str, commit: &str) -> PathBuf {
        self.folder(repo).join("snapshots").join(commit)
    }

    pub(super) fn blob(&self, repo: &str, etag: &str) -> PathBuf {
        self.folder(repo).join("blobs").join(etag)
    }

    /// Where a file that is on its way is written.
    pub(super) fn partial(&self, repo: &str, etag: &str) -> PathBuf {
        self.folder(repo)
            .join("blobs")
            .join(format!("{etag}.incomplete"))
    }

    fn ref_file(&self, repo: &str, revision: &str) -> PathBuf {
        self.folder(repo).join("refs").join(revision)
    }

    fn listing_file(&self, repo: &str, commit: &str) -> PathBuf {
        self.folder(repo).join(".sconce").join(commit)
    }

    /// Notes the names of all files of a commit, and which optional ones it has not.
    pub(super) fn set_listing(
        &self,
        repo: &str,
        commit: &str,
        files: &[String],
    ) -> Result<(), HubError> {
        write_whole(
            &self.listing_file(repo, commit),
            files.join("\n").as_bytes(),
        )?;
        let absent = OPTIONAL
            .iter()
            .filter(|&&file| !files.iter().any(|known| known == file));
        for file in absent {
            let path = self.absent_file(repo, commit, file);
            make_parent(&path)?;
            fs::write(&path, b"").map_err(HubError::io(&path))?;
        }
        Ok(())
    }

    /// The names of all files of a commit, if they are known.
    pub(super) fn listing(&self, repo: &str, commit: &str) -> Option<Vec<String>> {
        let text = fs::read_to_string(self.listing_file(repo, commit)).ok()?;
        Some(text.lines().map(str::to_owned).collect())
    }

    fn absent_file(&self, repo: &str, commit: &str, file: &str) -> PathBuf {
        self.folder(repo).join(".no_exist").join(commit).join(file)
    }

    /// The commit that a revision stood for when the hub was last asked; a commit stands for itself.
    pub(super) fn commit(&self, repo: &str, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        if let Ok(text) = fs::read_to_string(self.ref_file(repo, revision)) {
            return Some(text.trim().to_owned()).filter(|commit| is_commit(commit));
        }
        // The beginning of a commit's hash, as it is printed.
        let is_hex = revision.len() >= 7 && revision.bytes().all(|b| b.is_ascii_hexdigit());
        let mut begun = self.commits(repo).into_iter().map(|model| model.commit);
        let mut begun = begun
            .by_ref()
            .filter(|commit| is_hex && commit.starts_with(revision));
        match (begun.next(), begun.next()) {
            (Some(commit), None) => Some(commit),
            _ => None,
        }
    }

    /// Notes which commit a revision stands for.
    pub(super) fn set_ref(&self, repo: &str, revision: &str, commit: &str) -> Result<(), HubError> {
        if is_commit(revision) || !is_relative(revision) {
            return Ok(());
        }
        write_whole(&self.ref_file(repo, revision), commit.as_bytes())
    }

    fn is_absent(&self, repo: &str, commit: &str, file: &str) -> bool {
        self.absent_file(repo, commit, file).exists()
    }

    /// Makes a blob visible as a file of a commit.
    ///
    /// A file system without links gets a second name for the same bytes, or else a copy.
    pub(super) fn place(
        &self,
        repo: &str,
        commit: &str,
        file: &str,
        etag: &str,
    ) -> Result<(), HubError> {
        let pointer = self.snapshot(repo, commit).join(file);
        let blob = self.blob(repo, etag);
        make_parent(&pointer)?;
        let up = "../".repeat(2 + file.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        if fs::read_link(&pointer).is_ok_and(|present| present == target) {
            return Ok(());
        }
        let beside = beside(&pointer);
        match symlink(&target, &beside) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
                ) =>
            {
                fs::hard_link(&blob, &beside)
                    .or_else(|_| fs::copy(&blob, &beside).map(|_| ()))
                    .map_err(HubError::io(&beside))?;
            }
            Err(error) => return Err(HubError::io(&beside)(error)),
        }
        fs::rename(&beside, &pointer).map_err(HubError::io(&pointer))
    }

    /// What names the content that a commit's file points to; `None` for a file that is no link.
    pub(super) fn etag(&self, repo: &str, commit: &str, file: &str) -> Option<String> {
        let target = fs::read_link(self.snapshot(repo, commit).join(file)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// A commit's files that are here, by name.
    pub(super) fn files(&self, repo: &str, commit: &str) -> Vec<String> {
        let files = read_snapshot(&self.snapshot(repo, commit)).files;
        files.into_iter().map(|(name, _)| name).collect()
    }

    /// How much of a model is here. What a name means is decided by all files of the commit where they are known, and
    /// otherwise by those that are here.
    pub(super) fn holding(&self, name: &ModelName, commit: &str) -> Holding {
        let repo = name.repo();
        let files = self.files(repo, commit);
        if files.is_empty() {
            return Holding::TooLittle("none of its files is there".to_owned());
        }
        let listing = self.listing(repo, commit);
        let selection =
            select(name, listing.as_ref().unwrap_or(&files)).map_err(|error| error.to_string());
        let selection = selection.and_then(|mut selection| {
            selection.read_index(&self.snapshot(repo, commit).join(INDEX))?;
            let missing = selection
                .files()
                .find(|file| !files.iter().any(|known| known == file));
            let missing = missing.map(|missing| format!("{missing} is not there"));
            missing.map_or(Ok(selection), Err)
        });
        let unknown = |file: &str| {
            !files.iter().any(|known| known == file) && !self.is_absent(repo, commit, file)
        };
        match selection {
            Err(missing) => Holding::TooLittle(missing),
            Ok(selection) if listing.is_some() => Holding::Whole(selection),
            Ok(selection)
                if selection.entry.is_some() || OPTIONAL.iter().any(|file| unknown(file)) =>
            {
                Holding::Enough(selection)
            }
            Ok(selection) => Holding::Whole(selection),
        }
    }

    /// Takes a blob's lock, if nobody else has it. It is given back when the file is dropped.
    ///
    /// `Ok(None)`: another process has it. On a file system without locks everybody gets it: files are written under
    /// names of their own there.
    pub(super) fn try_lock(&self, repo: &str, etag: &str) -> Result<Option<Lock>, HubError> {
        let path = self
            .root
            .join(".locks")
            .join(folder_name(repo))
            .join(format!("{etag}.lock"));
        make_parent(&path)?;
        let file = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path);
        let file = file.map_err(HubError::io(&path))?;
        match file.try_lock() {
            // Whoever removed the file in between left a lock that nobody else can see.
            Ok(()) if !is_same(&file, &path) => Ok(None),
            Ok(()) => Ok(Some(Lock {
                _file: file,
                shared: false,
            })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(_)) => Ok(Some(Lock {
                _file: file,
                shared: true,
            })),
        }
    }

    /// Every model that is here, by name; of one with several commits each.
    ///
    /// Errors: the folder is there and cannot be read.
    pub fn models(&self) -> Result<Vec<CachedModel>, HubError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(HubError::io(&self.root)(error)),
        };
        let mut models = Vec::new();
        for folder in entries.flatten() {
            let name = folder.file_name();
            let Some(repo) = name.to_str().and_then(|name| name.strip_prefix("models--")) else {
                continue;
            };
            models.extend(self.commits(&repo.replace("--", "/")));
        }
        models.sort_by(|a, b| (&a.repo, &a.commit).cmp(&(&b.repo, &b.commit)));
        Ok(models)
    }

    /// A repository's commits of which at least one file is here.
    pub(super) fn commits(&self, repo: &str) -> Vec<CachedModel> {
        let folder = self.folder(repo);
        let refs = read_refs(&folder.join("refs"));
        let Ok(commits) = fs::read_dir(folder.join("snapshots")) else {
            return Vec::new();
        };
        let commits = commits.flatten().filter_map(|entry| {
            let commit = entry.file_name().to_str()?.to_owned();
            let Snapshot { files, read } = read_snapshot(&entry.path());
            (!files.is_empty()).then(|| CachedModel {
                repo: repo.to_owned(),
                refs: refs
                    .iter()
                    .filter(|(_, known)| *known == commit)
                    .map(|(name, _)| name.clone())
                    .collect(),
                commit,
                path: entry.path(),
                files,
                read,
            })
        });
        commits.collect()
    }

    /// Removes a repository, or with a tag only that model's files, and returns the bytes that this freed.
    ///
    /// Errors: it is not here, cannot be removed, or is being fetched.
    pub fn remove(&self, name: &ModelName) -> Result<u64, HubError> {
        let repo = name.repo();
        let folder = self.folder(repo);
        if !folder.exists() {
            return Err(HubError::NotHere {
                model: name.clone(),
                cache: self.root.clone(),
            });
        }
        let before = bytes_below(&folder.join("blobs"));
        if name.tag().is_some() {
            self.remove_files(name)?;
            return Ok(before.saturating_sub(bytes_below(&folder.join("blobs"))));
        }
        let blobs = fs::read_dir(folder.join("blobs"))
            .into_iter()
            .flatten()
            .flatten();
        let etags = blobs
            .filter_map(|entry| Some(entry.file_name().to_str()?.split('.').next()?.to_owned()));
        let _locks = self.lock_all(repo, etags)?;
        // Under a name that is no model's, so that what a crash leaves is never taken for one.
        for stale in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            if stale
                .file_name()
                .to_str()
                .is_some_and(|name| name.starts_with(REMOVED))
            {
                // Somebody else may be at it.
                let _ = fs::remove_dir_all(stale.path());
            }
        }
        let gone = self
            .root
            .join(format!("{REMOVED}{}", uuid::Uuid::new_v4().simple()));
        fs::rename(&folder, &gone).map_err(HubError::io(&folder))?;
        fs::remove_dir_all(&gone).map_err(HubError::io(&gone))?;
        Ok(before)
    }

    /// Removes one model's files, and their contents unless other files have them too.
    fn remove_files(&self, name: &ModelName) -> Result<(), HubError> {
        let repo = name.repo();
        let mut pointers = Vec::new();
        for model in self.commits(repo) {
            let here: Vec<String> = model.files.iter().map(|(file, _)| file.clone()).collect();
            let listing = self.listing(repo, &model.commit);
            let Ok(selection) = select(name, listing.as_ref().unwrap_or(&here)) else {
                continue;
            };
            let files = selection
                .files()
                .filter(|file| here.iter().any(|known| known == file));
            pointers.extend(files.map(|file| (model.commit.clone(), file.to_owned())));
        }
        if pointers.is_empty() {
            let files = self.commits(repo).into_iter().flat_map(|model| model.files);
            let files: Vec<String> = files.map(|(file, _)| file).collect();
            select(name, &files)?;
            return Ok(());
        }
        let etags = pointers
            .iter()
            .filter_map(|(commit, file)| self.etag(repo, commit, file));
        let etags: Vec<String> = etags.collect();
        let _locks = self.lock_all(repo, etags.iter().cloned())?;
        for (commit, file) in &pointers {
            let pointer = self.snapshot(repo, commit).join(file);
            fs::remove_file(&pointer).map_err(HubError::io(&pointer))?;
        }
        let linked: Vec<String> = self
            .commits(repo)
            .into_iter()
            .flat_map(|model| {
                let etags = model
                    .files
                    .iter()
                    .map(|(file, _)| self.etag(repo, &model.commit, file));
                etags.flatten().collect::<Vec<_>>()
            })
            .collect();
        for etag in etags.iter().filter(|etag| !linked.contains(etag)) {
            let blob = self.blob(repo, etag);
            match fs::remove_file(&blob) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(HubError::io(&blob)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Errors: somebody else has one of them.
    fn lock_all(
        &self,
        repo: &str,
        etags: impl Iterator<Item = String>,
    ) -> Result<Vec<Lock>, HubError> {
        let mut etags: Vec<String> = etags.collect();
        etags.sort();
        etags.dedup();
        let locks = etags.into_iter().map(|etag| {
            let lock = self.try_lock(repo, &etag)?;
            lock.ok_or_else(|| HubError::InUse {
                repo: repo.to_owned(),
                file: etag,
            })
        });
        locks.collect()
    }
}

/// The right to write a blob.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
    /// The file system has no locks, so others may have it too.
    pub(super) shared: bool,
}

struct Snapshot {
    files: Vec<(String, u64)>,
    read: Vec<Option<SystemTime>>,
}

/// Files whose contents are there, at any depth.
fn read_snapshot(root: &Path) -> Snapshot {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            // Follows the link: one to a blob that is gone is no file.
            let Ok(facts) = fs::metadata(&path) else {
                continue;
            };
            if facts.is_dir() {
                folders.push(path);
            } else if let Some(name) = path.strip_prefix(root).ok().and_then(Path::to_str)
                && !name.ends_with(".tmp")
            {
                found.push(((name.to_owned(), facts.len()), facts.accessed().ok()));
            }
        }
    }
    found.sort();
    let (files, read) = found.into_iter().unzip();
    Snapshot { files, read }
}

/// Branches and tags with their commits.
fn read_refs(root: &Path) -> Vec<(String, String)> {
    let mut refs = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Some(name) = path.strip_prefix(root).ok().and_then(Path::to_str)
                && !name.ends_with(".tmp")
                && let Ok(commit) = fs::read_to_string(&path)
            {
                refs.push((name.to_owned(), commit.trim().to_owned()));
            }
        }
    }
    refs.sort();
    refs
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|facts| facts.len())
        .sum()
}

/// The revision that stands where none is named.
pub(super) const MAIN: &str = "main";
/// How the name of a repository begins on its way out.
const REMOVED: &str = ".removed-";

/// A name beside a path that nobody else has.
pub(super) fn beside(path: &Path) -> PathBuf {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    path.with_file_name(format!("{name}.{}.tmp", uuid::Uuid::new_v4().simple()))
}

/// Writes a small file so that it is never seen half.
fn write_whole(path: &Path, text: &[u8]) -> Result<(), HubError> {
    make_parent(path)?;
    let beside = beside(path);
    fs::write(&beside, text).map_err(HubError::io(&beside))?;
    fs::rename(&beside, path).map_err(HubError::io(path))
}

/// Whether an open file is still the one of that name.
#[cfg(unix)]
pub(super) fn is_same(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let open = file.metadata().map(|facts| (facts.dev(), facts.ino()));
    let named = fs::metadata(path).map(|facts| (facts.dev(), facts.ino()));
    open.is_ok() && open.ok() == named.ok()
}

#[cfg(not(unix))]
pub(super) fn is_same(_: &File, path: &Path) -> bool {
    path.exists()
}

fn folder_name(repo: &str) -> String {
    format!("models--{}", repo.replace('/', "--"))
}

pub(super) fn make_parent(path: &Path) -> Result<(), HubError> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(HubError::io(parent)),
        None => Ok(()),
    }
}

/// Whether a revision is a commit's whole hash.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn cache() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("hub");
        (folder, Cache { root })
    }

    fn put(cache: &Cache, file: &str, etag: &str, text: &str) {
        let blob = cache.blob("a/b", etag);
        make_parent(&blob).expect("a folder");
        fs::write(&blob, text).expect("a blob");
        cache.place("a/b", COMMIT, file, etag).expect("a link");
    }

    #[test]
    fn what_is_placed_is_found_and_what_lost_its_blob_is_not() {
        let (_folder, cache) = cache();
        put(&cache, "config.json", "e1", "{}");
        put(&cache, "sub/deep/x.gguf", "e2", "12345");
        cache.set_ref("a/b", "main", COMMIT).expect("a ref");
        cache.set_ref("a/b", "feature/x", COMMIT).expect("a ref");
        assert_eq!(cache.commit("a/b", "main").as_deref(), Some(COMMIT));
        assert_eq!(cache.commit("a/b", "other"), None);
        let deep = cache.snapshot("a/b", COMMIT).join("sub/deep/x.gguf");
        assert_eq!(fs::read_to_string(deep).expect("through the link"), "12345");
        let models = cache.models().expect("a folder");
        assert_eq!(models.len(), 1);
        assert_eq!(models[0].refs, ["feature/x", "main"]);
        assert_eq!(models[0].size(), 7);
        fs::remove_file(cache.blob("a/b", "e1")).expect("a blob");
        assert_eq!(cache.files("a/b", COMMIT), ["sub/deep/x.gguf"]);
    }

    #[test]
    fn a_model_is_whole_when_nothing_about_it_is_unknown() {
        let (_folder, cache) = cache();
        let name: ModelName = "a/b".parse().expect("a name");
        assert!(matches!(
            cache.holding(&name, COMMIT),
            Holding::TooLittle(_)
        ));
        put(&cache, "config.json", "e1", "{}");
        put(&cache, "tokenizer.json", "e2", "{}");
        put(
            &cache,
            INDEX,
            "e3",
            r#"{"weight_map":{"x":"model-00001-of-00002.safetensors","y":"model-00002-of-00002.safetensors"}}"#,
        );
        put(&cache, "model-00001-of-00002.safetensors", "e4", "x");
        let Holding::TooLittle(missing) = cache.holding(&name, COMMIT) else {
            panic!("a shard is missing");
        };
        assert_eq!(missing, "model-00002-of-00002.safetensors is not there");
        put(&cache, "model-00002-of-00002.safetensors", "e5", "y");
        assert!(matches!(cache.holding(&name, COMMIT), Holding::Enough(_)));
        let files = cache.files("a/b", COMMIT);
        cache.set_listing("a/b", COMMIT, &files).expect("a list");
        assert!(matches!(cache.holding(&name, COMMIT), Holding::Whole(_)));
    }

    #[test]
    fn removing_one_quantisation_leaves_the_others() {
        let (_folder, cache) = cache();
        put(&cache, "x-Q4_0.gguf", "e1", "1234");
        put(&cache, "x-Q8_0.gguf", "e2", "12345678");
        let gone = cache
            .remove(&"a/b:q4_0".parse().expect("a name"))
            .expect("removed");
        assert_eq!(gone, 4);
        assert_eq!(cache.files("a/b", COMMIT), ["x-Q8_0.gguf"]);
        assert!(!cache.blob("a/b", "e1").exists() && cache.blob("a/b", "e2").exists());
        let again = cache
            .remove(&"a/b:q4_0".parse().expect("a name"))
            .expect_err("gone");
        assert!(again.to_string().contains("it has Q8_0"), "{again}");
        assert_eq!(
            cache
                .remove(&"a/b".parse().expect("a name"))
                .expect("removed"),
            8
        );
        let gone = cache
            .remove(&"a/b".parse().expect("a name"))
            .expect_err("gone");
        assert!(gone.to_string().contains("sconce list"), "{gone}");
        assert!(cache.models().expect("a folder").is_empty());
    }

    #[test]
    fn a_name_means_what_the_whole_repository_makes_it_mean() {
        let (_folder, cache) = cache();
        put(&cache, "x-UD-Q4_K_M.gguf", "e1", "1234");
        let name: ModelName = "a/b:Q4_K_M".parse().expect("a name");
        // As long as nobody knows what else there is, it may be meant.
        assert!(matches!(cache.holding(&name, COMMIT), Holding::Enough(_)));
        let all = ["x-Q4_K_M.gguf", "x-UD-Q4_K_M.gguf"].map(str::to_owned);
        cache.set_listing("a/b", COMMIT, &all).expect("a list");
        assert!(matches!(
            cache.holding(&name, COMMIT),
            Holding::TooLittle(_)
        ));
        assert!(cache.remove(&name).is_ok_and(|freed| freed == 0));
        assert_eq!(cache.files("a/b", COMMIT), ["x-UD-Q4_K_M.gguf"]);
    }

    #[test]
    fn what_is_being_fetched_is_not_removed_and_beginnings_are_left_alone() {
        let (_folder, cache) = cache();
        put(&cache, "x-Q8_0.gguf", "e1", "1234");
        fs::write(cache.partial("a/b", "e2"), "12").expect("a beginning");
        let lock = cache.try_lock("a/b", "e2").expect("a lock");
        let repo: ModelName = "a/b".parse().expect("a name");
        let refused = cache.remove(&repo).expect_err("in use").to_string();
        assert!(
            refused.contains("another process is fetching e2 of `a/b`"),
            "{refused}"
        );
        cache
            .remove(&"a/b:Q8_0".parse().expect("a name"))
            .expect("removed");
        assert!(cache.partial("a/b", "e2").exists() && !cache.blob("a/b", "e1").exists());
        drop(lock);
        cache.remove(&repo).expect("removed");
    }

    #[test]
    fn a_commit_may_be_named_by_its_beginning() {
        let (_folder, cache) = cache();
        put(&cache, "x-Q8_0.gguf", "e1", "1234");
        assert_eq!(cache.commit("a/b", &COMMIT[..12]).as_deref(), Some(COMMIT));
        assert_eq!(cache.commit("a/b", "0123"), None);
        assert_eq!(cache.commit("a/b", "fedcba98"), None);
    }

    #[test]
    fn a_lock_is_had_by_one() {
        let (_folder, cache) = cache();
        let first = cache.try_lock("a/b", "e").expect("a lock");
        assert!(first.is_some());
        assert!(cache.try_lock("a/b", "e").expect("a lock").is_none());
        drop(first);
        assert!(cache.try_lock("a/b", "e").expect("a lock").is_some());
    }
}
