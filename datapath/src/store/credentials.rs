//! Secrets as Kubernetes mounts them: a folder, in it a file per key. Kept in memory, shown nowhere.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Bytes of a secret's file at the most.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A folder of credentials.
#[derive(Debug)]
pub(super) struct Credentials(PathBuf);

impl Credentials {
    /// The folder must be there; else what is wrong with it.
    pub(super) fn open(folder: &Path) -> Result<Self, String> {
        let found = std::fs::metadata(folder)
            .and_then(|found| if found.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) });
        match found {
            Ok(()) => Ok(Self(folder.to_owned())),
            Err(error) => {
                Err(format!("the credentials folder {} cannot be opened: {error}", folder.display()))
            }
        }
    }

    /// The path of the first of these files that is there.
    pub(super) fn file(&self, names: &[&str]) -> Option<PathBuf> {
        names.iter().map(|name| self.0.join(name)).find(|path| path.is_file())
    }

    /// The text of the first of these files that is there, without blanks around it.
    pub(super) fn text(&self, names: &[&str]) -> io::Result<Option<String>> {
        let Some(path) = self.file(names) else { return Ok(None) };
        let mut text = String::new();
        File::open(path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
        let text = text.trim();
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("userKey"), "AQ==\n").unwrap();
        std::fs::write(folder.path().join("empty"), "\n").unwrap();
        let credentials = Credentials::open(folder.path()).unwrap();
        assert_eq!(credentials.text(&["key", "userKey"]).unwrap().as_deref(), Some("AQ=="));
        assert_eq!(credentials.text(&["empty"]).unwrap(), None);
        assert_eq!(credentials.text(&["adminKey"]).unwrap(), None);
        let gone = folder.path().join("gone");
        let not_found = std::fs::metadata(&gone).unwrap_err();
        assert_eq!(not_found.kind(), io::ErrorKind::NotFound);
        assert_eq!(
            Credentials::open(&gone).unwrap_err(),
            format!("the credentials folder {} cannot be opened: {not_found}", gone.display())
        );
    }
}
