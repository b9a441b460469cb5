//! Small files that outlive a restart: replaced whole or not at all, read leniently.
//!
//! Nothing here holds a caller's text or a credential.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use serde_json::Value;

/// Puts a document in a file's place at once, making its folder if there is none: whoever reads the file, even
/// after a crash, sees the old document or the new one.
///
/// Errors: the folder cannot be made or written.
pub(super) fn replace(path: &Path, document: &Value) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let fresh = folder.join(name);
    let written = write(&fresh, document).and_then(|()| fs::rename(&fresh, path));
    if written.is_err() {
        // What could not be put in place is of no use; the fault is the one above.
        let _ = fs::remove_file(&fresh);
    }
    written?;
    // A rename is on the disk when its folder is.
    File::open(folder)?.sync_all()
}

fn write(path: &Path, document: &Value) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    file.write_all(document.to_string().as_bytes())?;
    file.sync_all()
}

/// The document in a file; none if there is no such file.
///
/// Errors: in words, where the file can't be read or is no JSON; whoever asks goes on without it.
pub(super) fn read(path: &Path) -> Result<Option<Value>, String> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| e.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// An upstream's name as part of a file's name.
pub(super) fn file_name(name: &str) -> String {
    name.chars()
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' => c,
            _ => '_',
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_replaced_whole_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state/x.json");
        assert_eq!(read(&path), Ok(None));
        for n in 0..3 {
            replace(&path, &serde_json::json!({ "n": n })).expect("it is written");
        }
        assert_eq!(read(&path), Ok(Some(serde_json::json!({ "n": 2 }))));
        let files = fs::read_dir(path.parent().expect("a folder")).expect("readable");
        assert_eq!(files.count(), 1);
        fs::write(&path, b"{\"n\":").expect("it is written");
        assert!(read(&path).is_err());
    }

    #[test]
    fn names_cannot_leave_their_folder() {
        assert_eq!(file_name("../hf router"), "___hf_router");
    }
}
