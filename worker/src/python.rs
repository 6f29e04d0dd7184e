//! The Python package for the trainer's side, carried in the binary: a rank finds it on its `PYTHONPATH`, of the same
//! release as the sidecar that it speaks to.

use std::io;
use std::path::Path;

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../python/slipway/", $name)))),*]
    };
}

/// The package's files: name and text.
pub const FILES: [(&str, &str); 11] = files![
    "__init__.py",
    "batch.py",
    "collective.py",
    "dataset.py",
    "environment.py",
    "errors.py",
    "feed.py",
    "handoff.py",
    "py.typed",
    "reporting.py",
    "tcp_store.py",
];

/// Writes the package below `folder`, which then belongs on `PYTHONPATH`.
///
/// # Errors
/// When the folder cannot be written to.
pub fn unpack(folder: &Path) -> io::Result<()> {
    let package = folder.join("slipway");
    std::fs::create_dir_all(&package)?;
    for (name, text) in FILES {
        std::fs::write(package.join(name), text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_file_of_the_package_is_left_out() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/slipway");
        let names = std::fs::read_dir(source)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "__pycache__");
        assert_eq!(names.collect::<BTreeSet<_>>(), FILES.map(|(name, _)| name.to_owned()).into());
    }

    #[test]
    fn what_is_unpacked_is_the_package() {
        let folder = tempfile::tempdir().unwrap();
        unpack(folder.path()).unwrap();
        // Over an older copy as well.
        unpack(folder.path()).unwrap();
        for (name, text) in FILES {
            assert_eq!(std::fs::read_to_string(folder.path().join("slipway").join(name)).unwrap(), text);
        }
    }
}
