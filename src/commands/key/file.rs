//! Reads and replaces a settings file: whole or not at all, with the owner and the mode it had.

use std::error::Error;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// Keeps other commands from editing files of the same folder until it is dropped: an edit reads, changes and
/// replaces, and two at once would lose one. Errors: the folder cannot be opened.
pub(super) fn lock(path: &Path) -> Result<File, Box<dyn Error>> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let open = File::open(folder).and_then(|folder| folder.lock().map(|()| folder));
    open.map_err(|e| at(folder, &e))
}

/// The text of a file. Errors: it cannot be read.
pub(super) fn read(path: &Path) -> Result<String, Box<dyn Error>> {
    fs::read_to_string(path).map_err(|e| at(path, &e))
}

/// The text of a file; empty if there is none yet. Errors: it cannot be read.
pub(super) fn read_or_empty(path: &Path) -> Result<String, Box<dyn Error>> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(|e| at(path, &e)),
    }
}

/// Refuses what these commands cannot edit. Errors: keys stand in one list instead of tables.
pub(super) fn check_form(text: &str, path: &Path) -> Result<(), Box<dyn Error>> {
    let listed = text
        .parse::<toml_edit::DocumentMut>()
        .is_ok_and(|document| document.get("keys").is_some_and(toml_edit::Item::is_value));
    if !listed {
        return Ok(());
    }
    let problem = "`keys` is written as a list; write each key as a table under [[keys]]";
    Err(format!("{}: {problem}", path.display()).into())
}

/// Puts a text in a file's place at once: whoever reads it sees the old text or the new one. A new file can
/// be read by its owner only. Errors: the folder cannot be written.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), Box<dyn Error>> {
    // The file behind a link is replaced, not the link.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let old = fs::metadata(&path).ok();
    let fresh = beside(&path);
    let written = write_new(&fresh, text, old.as_ref()).and_then(|()| fs::rename(&fresh, &path));
    written.map_err(|e| {
        // What could not be put in place is of no use; the fault is the one above.
        let _ = fs::remove_file(&fresh);
        at(&path, &e)
    })
}

fn write_new(path: &Path, text: &str, old: Option<&Metadata>) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    if let Some(old) = old {
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            chown(path, Some(old.uid()), Some(old.gid()))?;
        }
        file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))?;
    }
    file.sync_all()
}

/// A name in the same folder that nothing has.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", uuid::Uuid::new_v4()))
}

fn at(path: &Path, error: &io::Error) -> Box<dyn Error> {
    format!("{}: {error}", path.display()).into()
}
