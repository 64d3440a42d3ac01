//! `sampan store check`: reads all of a data directory, changes nothing, and says what is whole and what is not.

use std::path::Path;

use sampan_base::disk::SharedDisk;

use crate::Revision;
use crate::keys::KeyRing;
use crate::log::survey;
use crate::manifest::{self, ManifestError};
use crate::store::{LOG_DIR, OpenError};

/// What a check found. The data opens and is complete when `problems` is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The newest revision up to which everything could be read.
    pub revision: Revision,
    /// The revision of the snapshot, if there is one.
    pub snapshot: Option<Revision>,
    pub segments: usize,
    pub transactions: u64,
    /// Values in the snapshot and the segments.
    pub values: u64,
    /// Bytes of a record at the very end that was never acknowledged: the next opening cuts them off. Not a problem.
    pub torn: u64,
    /// In the words of the errors that an opening would end with.
    pub problems: Vec<String>,
}

/// Checks the data in `dir`: formats, every record of every file, and that every value opens with `keys`. Blocks.
pub fn check(disk: &SharedDisk, dir: &Path, keys: &KeyRing) -> Report {
    let mut report = Report::default();
    match manifest::check(&**disk, dir) {
        Ok(true) => {}
        Ok(false) => report.problems.push(format!("{}: no manifest of formats", dir.display())),
        Err(error) => {
            let newer = matches!(error, ManifestError::Newer { .. });
            report.problems.push(error.to_string());
            if newer {
                return report;
            }
        }
    }
    let mut values = 0;
    let mut unopened = Vec::new();
    let found = survey(&**disk, &dir.join(LOG_DIR), &mut |key, revision, value| {
        values += 1;
        if let Err(reason) = keys.open(key, value) {
            unopened.push(OpenError::Value { key: key.clone(), revision, reason }.to_string());
        }
    });
    report.problems.extend(found.problems.iter().map(ToString::to_string));
    report.problems.extend(unopened);
    Report {
        revision: found.revision,
        snapshot: found.snapshot,
        segments: found.segments,
        transactions: found.transactions,
        values,
        torn: found.torn,
        problems: report.problems,
    }
}
