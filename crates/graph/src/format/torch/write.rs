//! Writes the archive `torch.load` reads: a zip of stored entries, each starting at a multiple of 64 bytes.

use std::io::{Cursor, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::format::pickle::encode::{Pickled, Py, encode};
use crate::{Error, Result};

/// Folder everything in the archive lies in.
const FOLDER: &str = "archive";
/// PyTorch maps storages into memory where they are; it aligns them to this.
const ALIGNMENT: u16 = 64;

/// The file `torch.save` would write for `root`; `path` is for messages. The same value gives the same bytes.
///
/// # Errors
/// The archive would be larger than a zip without 64-bit extensions can be.
pub(in crate::format) fn archive(root: &Py<'_>, path: &Path) -> Result<Vec<u8>> {
    let Pickled { pickle, storages } = encode(root);
    let entries = [("data.pkl".to_owned(), pickle), ("byteorder".to_owned(), b"little".to_vec())]
        .into_iter()
        .chain(storages.into_iter().enumerate().map(|(i, raw)| (format!("data/{i}"), raw)))
        .chain([("version".to_owned(), b"3\n".to_vec())]);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(zip::DateTime::DEFAULT)
        .with_alignment(ALIGNMENT);
    for (name, bytes) in entries {
        let name = format!("{FOLDER}/{name}");
        let fail = |e: String| Error::format(path, format!("cannot be written: {e}")).at(&name);
        zip.start_file(&name, options).map_err(|e| fail(e.to_string()))?;
        zip.write_all(&bytes).map_err(|e| fail(e.to_string()))?;
    }
    let bytes = zip.finish().map_err(|e| Error::format(path, format!("cannot be written: {e}")))?;
    Ok(bytes.into_inner())
}
