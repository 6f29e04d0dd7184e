//! Data sets made on the spot.

use std::path::PathBuf;

use crate::program::User;

/// Record files of `u16` tokens: `files` files of `records` records of `items` items, every byte a function of its
/// place. Returns the folder.
pub fn tokens(user: &User, name: &str, files: usize, records: usize, items: usize) -> PathBuf {
    let folder = user.work().join(name);
    for file in 0..files {
        let values = (0..records * items).map(|i| u16::try_from((i * 31 + file * 7) % 65_521).unwrap());
        let bytes: Vec<u8> = values.flat_map(u16::to_le_bytes).collect();
        user.write(&format!("{name}/tokens-{file:03}.bin"), bytes);
    }
    folder
}
