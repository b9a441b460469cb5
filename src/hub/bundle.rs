//! Cached models as one file, to be carried to a machine without a network.
//!
//! A bundle is a plain tar archive: `sconce-bundle.json` (which models, which files, a SHA-256 for each part),
//! `sconce-bundle.sha256` (of that description), then each distinct content once as `blobs/<sha256>`. It is read and
//! written as a stream. Importing reads it twice: first to check every byte, then to write; nothing is written before
//! all of it has been found sound.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tar::{Archive, Builder, Entry, EntryType, Header};

use super::cache::{Cache, Holding, MAIN, beside, is_commit, make_parent};
use super::download::{ContentHash, disk_full, free_bytes, hex, is_there};
use super::error::HubError;
use super::name::{ModelName, is_relative};
use super::progress::Progress;

const FORMAT: &str = "sconce-bundle";
const VERSION: u32 = 1;
const DESCRIPTION: &str = "sconce-bundle.json";
const DIGEST: &str = "sconce-bundle.sha256";
const BLOBS: &str = "blobs/";
/// A description of more files than models have is none.
const LONGEST_DESCRIPTION: u64 = 16 << 20;
const BUFFER: usize = 1 << 20;

/// What a bundle holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    format: String,
    version: u32,
    /// The models, in the order in which they were named.
    pub models: Vec<BundledModel>,
}

/// One commit of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundledModel {
    /// `org/name`.
    pub repo: String,
    /// The commit.
    pub commit: String,
    /// Branches and tags that stand for it.
    pub refs: Vec<String>,
    /// Its files.
    pub files: Vec<BundledFile>,
    /// The names of all files of the commit, as far as they are known.
    pub listing: Vec<String>,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundledFile {
    /// Its path in the repository.
    pub path: String,
    /// What the hub calls its content.
    pub etag: String,
    /// Its bytes.
    pub size: u64,
    /// SHA-256 of its content.
    pub sha256: String,
}

impl Contents {
    /// Bytes of all distinct parts.
    pub fn size(&self) -> u64 {
        self.parts().values().map(|files| files[0].size).sum()
    }

    /// Distinct contents by their hash, each with all files that have it.
    fn parts(&self) -> BTreeMap<&str, Vec<&BundledFile>> {
        let mut parts = BTreeMap::<_, Vec<_>>::new();
        for file in self.models.iter().flat_map(|model| &model.files) {
            parts.entry(file.sha256.as_str()).or_default().push(file);
        }
        parts
    }

    /// Errors: a name that would lead out of the cache, or a hash that is none.
    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err("it is no bundle of sconce".to_owned());
        }
        if self.version != VERSION {
            return Err(format!(
                "it is a bundle of version {}, and this sconce reads version {VERSION}",
                self.version
            ));
        }
        let is_hash = |text: &str| {
            text.len() == 64
                && text
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let is_name =
            |text: &str| is_relative(text) && !text.contains('/') && !text.starts_with('.');
        for model in &self.models {
            let repo = model.repo.parse::<ModelName>();
            let sound = repo.is_ok_and(|name| name.tag().is_none())
                && is_commit(&model.commit)
                && model.refs.iter().all(|name| is_relative(name))
                && model.listing.iter().all(|path| is_relative(path))
                && model.files.iter().all(|file| {
                    is_relative(&file.path) && is_name(&file.etag) && is_hash(&file.sha256)
                });
            if !sound {
                return Err(format!(
                    "its description of {:?} cannot be followed",
                    model.repo
                ));
            }
        }
        let parts = self.parts();
        let one_size =
            |files: &&Vec<&BundledFile>| files.iter().all(|file| file.size == files[0].size);
        let total = parts
            .values()
            .try_fold(0_u64, |total, files| total.checked_add(files[0].size));
        if total.is_none() || !parts.values().all(|files| one_size(&files)) {
            return Err("its description gives sizes that cannot be".to_owned());
        }
        Ok(())
    }
}

/// Writes cached models into one stream.
///
/// Errors: a model is not whole in the cache, one of its files is damaged, or writing fails.
pub fn export(
    cache: &Cache,
    models: &[(ModelName, Option<String>)],
    out: impl Write,
) -> Result<Contents, HubError> {
    let progress = Progress::new();
    let mut bundled = Vec::new();
    let mut sources = BTreeMap::new();
    for (name, revision) in models {
        let model = describe(cache, name, revision.as_deref(), &progress)?;
        for file in &model.files {
            let path = cache.snapshot(&model.repo, &model.commit).join(&file.path);
            sources
                .entry(file.sha256.clone())
                .or_insert((path, file.clone()));
        }
        bundled.push(model);
    }
    let contents = Contents {
        format: FORMAT.to_owned(),
        version: VERSION,
        models: bundled,
    };
    let written = Path::new("the bundle");
    let text = serde_json::to_vec_pretty(&contents)
        .map_err(io::Error::from)
        .map_err(HubError::io(written))?;
    let mut archive = Builder::new(BufWriter::with_capacity(BUFFER, out));
    let mut append = |name: &str, size: u64, data: &mut dyn Read| {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_size(size);
        header.set_mode(0o644);
        archive
            .append_data(&mut header, name, data)
            .map_err(HubError::io(written))
    };
    append(DESCRIPTION, text.len() as u64, &mut text.as_slice())?;
    let digest = format!("{}\n", hex(&Sha256::digest(&text)));
    append(DIGEST, digest.len() as u64, &mut digest.as_bytes())?;
    for (sha256, (path, file)) in &sources {
        let source = File::open(path).map_err(HubError::io(path))?;
        let bar = progress.file("packing", &file.path, file.size);
        let mut source = Counting {
            inner: BufReader::with_capacity(BUFFER, source),
            count: 0,
            seen: |count| bar.at(count),
        };
        append(&format!("{BLOBS}{sha256}"), file.size, &mut source)?;
    }
    let buffered = archive.into_inner().map_err(HubError::io(written))?;
    let mut out = buffered
        .into_inner()
        .map_err(|error| HubError::io(written)(error.into_error()))?;
    out.flush().map_err(HubError::io(written))?;
    Ok(contents)
}

/// Hashes a model's files, and checks them against what the hub calls them.
fn describe(
    cache: &Cache,
    name: &ModelName,
    revision: Option<&str>,
    progress: &Progress,
) -> Result<BundledModel, HubError> {
    let repo = name.repo();
    let revision = revision.unwrap_or(MAIN);
    let too_little = |missing: String| HubError::NothingToServe {
        repo: repo.to_owned(),
        problem: format!(
            "it is not whole in {} ({missing}); `sconce pull {name}` fetches it",
            cache.root().display()
        ),
    };
    let commit = cache.commit(repo, revision);
    let commit = commit
        .ok_or_else(|| too_little(format!("no commit is known for the revision `{revision}`")))?;
    let selection = match cache.holding(name, &commit) {
        Holding::Whole(selection) | Holding::Enough(selection) => selection,
        Holding::TooLittle(missing) => return Err(too_little(missing)),
    };
    let mut files = Vec::new();
    for file in selection.files() {
        let path = cache.snapshot(repo, &commit).join(file);
        let size = fs::metadata(&path).map_err(HubError::io(&path))?.len();
        let bar = progress.file("checking", file, size);
        let etag = cache.etag(repo, &commit, file);
        let mut content = ContentHash::of(etag.as_deref().unwrap_or(""), size);
        let mut sha256 = Sha256::new();
        let mut source = File::open(&path).map_err(HubError::io(&path))?;
        let mut done = 0;
        read_all(&mut source, |part| {
            content.update(part);
            sha256.update(part);
            done += part.len() as u64;
            bar.at(done);
            Ok(())
        })
        .map_err(HubError::io(&path))?;
        let sha256 = hex(&sha256.finalize());
        if let Some(etag) = &etag {
            content.check(etag).map_err(|problem| HubError::Spoiled {
                path,
                problem,
                model: name.without_tag(),
            })?;
        }
        // A copy that no link names is called by its hash, as a large file is.
        files.push(BundledFile {
            path: file.to_owned(),
            etag: etag.unwrap_or_else(|| sha256.clone()),
            size,
            sha256,
        });
    }
    let mut refs: Vec<String> = cache
        .commits(repo)
        .into_iter()
        .filter(|known| known.commit == commit)
        .flat_map(|known| known.refs)
        .collect();
    refs.dedup();
    Ok(BundledModel {
        repo: repo.to_owned(),
        listing: cache.listing(repo, &commit).unwrap_or_default(),
        commit,
        refs,
        files,
    })
}

/// Checks a whole bundle, then writes what it holds into the cache.
///
/// Errors: it is damaged or cut off, and then nothing has been written; or the cache cannot be written.
pub fn import(cache: &Cache, path: &Path) -> Result<Contents, HubError> {
    let mut file = File::open(path).map_err(HubError::io(path))?;
    let progress = Progress::new();
    let bytes = file.metadata().map_err(HubError::io(path))?.len();
    let checking = progress.file("checking", "the bundle", bytes);
    let contents = read(&mut file, &mut Nowhere, |done| checking.at(done))
        .map_err(|stop| stop.into_error(path))?;
    drop(checking);
    let files = contents
        .models
        .iter()
        .flat_map(|model| model.files.iter().map(move |file| (model, file)));
    let new =
        files.filter(|(model, file)| !is_there(&cache.blob(&model.repo, &file.etag), file.size));
    let needed = new.fold(0_u64, |needed, (_, file)| needed.saturating_add(file.size));
    if free_bytes(cache.root()).is_some_and(|free| free < needed) {
        return Err(disk_full(&cache.root().join("x"), needed));
    }
    file.seek(SeekFrom::Start(0)).map_err(HubError::io(path))?;
    let writing = progress.file("importing", "the bundle", bytes);
    let mut writer = Writer {
        cache,
        contents: &contents,
        part: None,
        open: Vec::new(),
    };
    let again = read(&mut file, &mut writer, |done| writing.at(done))
        .map_err(|stop| stop.into_error(path))?;
    if again != contents {
        return Err(Stop::Wrong("it changed while it was read".to_owned()).into_error(path));
    }
    for model in &contents.models {
        finish(cache, model)?;
    }
    Ok(contents)
}

/// Takes a bundle's parts as they pass.
trait Parts {
    /// More of a part.
    fn bytes(&mut self, sha256: &str, bytes: &[u8]) -> Result<(), HubError>;
    /// The part has passed whole, and its content was right.
    fn end(&mut self, sha256: &str) -> Result<(), HubError>;
}

/// Only looks.
struct Nowhere;

impl Parts for Nowhere {
    fn bytes(&mut self, _: &str, _: &[u8]) -> Result<(), HubError> {
        Ok(())
    }

    fn end(&mut self, _: &str) -> Result<(), HubError> {
        Ok(())
    }
}

/// Writes each part under every name that it has in the cache; visible only once it is whole.
struct Writer<'a> {
    cache: &'a Cache,
    contents: &'a Contents,
    part: Option<String>,
    open: Vec<Target>,
}

struct Target {
    file: File,
    beside: PathBuf,
    blob: PathBuf,
}

impl Drop for Target {
    /// What did not come to its end is of no use to anybody.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.beside);
    }
}

impl Writer<'_> {
    fn begin(&mut self, sha256: &str) -> Result<(), HubError> {
        if self.part.as_deref() == Some(sha256) {
            return Ok(());
        }
        let models = self.contents.models.iter();
        let mut names: Vec<(&str, &str, u64)> = models
            .flat_map(|model| model.files.iter().map(|file| (model.repo.as_str(), file)))
            .filter(|(_, file)| file.sha256 == sha256)
            .map(|(repo, file)| (repo, file.etag.as_str(), file.size))
            .collect();
        names.sort_unstable();
        names.dedup();
        self.open.clear();
        for (repo, etag, size) in names {
            let blob = self.cache.blob(repo, etag);
            if is_there(&blob, size) {
                continue;
            }
            let beside = beside(&blob);
            make_parent(&beside)?;
            let file = File::create(&beside).map_err(HubError::io(&beside))?;
            self.open.push(Target { file, beside, blob });
        }
        self.part = Some(sha256.to_owned());
        Ok(())
    }
}

impl Parts for Writer<'_> {
    fn bytes(&mut self, sha256: &str, bytes: &[u8]) -> Result<(), HubError> {
        self.begin(sha256)?;
        for Target { file, beside, .. } in &mut self.open {
            file.write_all(bytes)
                .map_err(|source| match source.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                        disk_full(beside, self.contents.size())
                    }
                    _ => HubError::Io {
                        path: beside.clone(),
                        source,
                    },
                })?;
        }
        Ok(())
    }

    fn end(&mut self, sha256: &str) -> Result<(), HubError> {
        self.begin(sha256)?;
        for target in self.open.drain(..) {
            let Target { file, beside, blob } = &target;
            file.sync_all().map_err(HubError::io(beside))?;
            fs::rename(beside, blob).map_err(HubError::io(blob))?;
        }
        Ok(())
    }
}

/// Makes a model's files visible, weights and names last.
fn finish(cache: &Cache, model: &BundledModel) -> Result<(), HubError> {
    for file in &model.files {
        cache.place(&model.repo, &model.commit, &file.path, &file.etag)?;
    }
    if !model.listing.is_empty() {
        cache.set_listing(&model.repo, &model.commit, &model.listing)?;
    }
    for name in &model.refs {
        cache.set_ref(&model.repo, name, &model.commit)?;
    }
    Ok(())
}

/// Why reading a bundle stopped.
enum Stop {
    /// Something is wrong with it, in words.
    Wrong(String),
    /// Its parts could not be taken.
    Taking(HubError),
}

impl Stop {
    fn broken(error: io::Error) -> Self {
        Self::Wrong(format!("it is cut off or damaged: {error}"))
    }

    fn into_error(self, path: &Path) -> HubError {
        match self {
            Self::Wrong(problem) => HubError::Bundle {
                path: path.to_owned(),
                problem,
            },
            Self::Taking(error) => error,
        }
    }
}

impl From<String> for Stop {
    fn from(problem: String) -> Self {
        Self::Wrong(problem)
    }
}

/// Reads a bundle from its beginning to its end and checks all of it, while its parts pass.
fn read(
    source: &mut File,
    parts: &mut impl Parts,
    mut seen: impl FnMut(u64),
) -> Result<Contents, Stop> {
    let mut archive = Archive::new(BufReader::with_capacity(BUFFER, source));
    // As they are: names too long for a plain head belong to no bundle.
    let mut entries = archive.entries().map_err(Stop::broken)?.raw(true);
    let text = small(entries.next(), DESCRIPTION)?;
    let digest = small(entries.next(), DIGEST)?;
    if digest != format!("{}\n", hex(&Sha256::digest(&text))).as_bytes() {
        return Err("its description is damaged".to_owned().into());
    }
    let contents: Contents = serde_json::from_slice(&text)
        .map_err(|error| format!("its description cannot be read: {error}"))?;
    contents.check()?;
    let mut missing = contents.parts();
    let mut passed = 0;
    for entry in entries {
        let mut entry = entry.map_err(Stop::broken)?;
        let name = path_of(&entry)?;
        let Some((sha256, files)) =
            missing.remove_entry(name.strip_prefix(BLOBS).unwrap_or_default())
        else {
            return Err(format!("{name:?} does not belong into it").into());
        };
        let file = files[0];
        let mut hash = Sha256::new();
        let mut names: Vec<_> = files
            .iter()
            .map(|file| (file.etag.as_str(), ContentHash::of(&file.etag, file.size)))
            .collect();
        let mut size = 0;
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = entry.read(&mut buffer).map_err(Stop::broken)?;
            if count == 0 {
                break;
            }
            let bytes = &buffer[..count];
            hash.update(bytes);
            names.iter_mut().for_each(|(_, hash)| hash.update(bytes));
            size += count as u64;
            if size > file.size {
                return Err(format!("{} is damaged", file.path).into());
            }
            parts.bytes(sha256, bytes).map_err(Stop::Taking)?;
            seen(passed + size);
        }
        passed += size;
        if size != file.size || hex(&hash.finalize()) != sha256 {
            return Err(format!("{} is damaged", file.path).into());
        }
        for (etag, hash) in names {
            hash.check(etag)
                .map_err(|problem| format!("{} is not what it is called: {problem}", file.path))?;
        }
        parts.end(sha256).map_err(Stop::Taking)?;
    }
    match missing.values().next() {
        Some(files) => Err(format!("it ends before {}", files[0].path).into()),
        None => Ok(contents),
    }
}

/// The whole of a small entry.
fn small<R: Read>(entry: Option<io::Result<Entry<'_, R>>>, name: &str) -> Result<Vec<u8>, Stop> {
    let entry = entry
        .and_then(Result::ok)
        .filter(|entry| path_of(entry).is_ok_and(|path| path == name));
    let Some(mut entry) = entry else {
        return Err("it is no bundle of sconce".to_owned().into());
    };
    if entry.size() > LONGEST_DESCRIPTION {
        return Err(format!("{name} is too long").into());
    }
    let mut text = Vec::new();
    entry.read_to_end(&mut text).map_err(Stop::broken)?;
    if text.len() as u64 != entry.size() {
        return Err("it is cut off".to_owned().into());
    }
    Ok(text)
}

fn path_of<R: Read>(entry: &Entry<'_, R>) -> Result<String, Stop> {
    let path = entry.path().map_err(Stop::broken)?;
    Ok(path.to_str().unwrap_or_default().to_owned())
}

fn read_all(
    source: &mut impl Read,
    mut part: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok(()),
            count => part(&buffer[..count])?,
        }
    }
}

/// Tells how much has been read.
struct Counting<R, F> {
    inner: R,
    count: u64,
    seen: F,
}

impl<R: Read, F: FnMut(u64)> Read for Counting<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        (self.seen)(self.count);
        Ok(count)
    }
}
