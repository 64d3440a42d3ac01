//! Container logs in CRI format: `TIME STREAM TAGS TEXT`, where tag `P` marks a line that goes on in the next entry.
//!
//! Rotated files are `NAME.YYYYMMDD-HHMMSS` beside the current one; readers take them in order, so a rotation loses
//! nothing. Parsing and selecting are pure; [`read`] is the one place that opens files.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// One entry of a log file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    pub time: Timestamp,
    /// The time as written.
    pub stamp: &'a str,
    pub is_stderr: bool,
    /// The line goes on.
    pub partial: bool,
    pub text: &'a [u8],
}

/// Reads one line of a log file, without its end. `None`: it is not of the format.
pub fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let stamp = std::str::from_utf8(parts.next()?).ok()?;
    let stream = parts.next()?;
    let tags = parts.next()?;
    let text = parts.next().unwrap_or_default();
    let is_stderr = match stream {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    let partial = tags.split(|byte| *byte == b':').next() == Some(b"P");
    Some(Entry { time: stamp.parse().ok()?, stamp, is_stderr, partial, text })
}

/// What a reader asks for (`PodLogOptions`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail: Option<usize>,
    pub since: Option<Timestamp>,
    pub limit_bytes: Option<u64>,
    /// Only standard error (`true`) or only standard output (`false`).
    pub only_stderr: Option<bool>,
}

/// Turns entries into what the reader sees.
pub struct Printer {
    query: Query,
    at_line_start: bool,
    left: u64,
}

impl Printer {
    pub fn new(query: &Query) -> Self {
        Self { at_line_start: true, left: query.limit_bytes.unwrap_or(u64::MAX), query: query.clone() }
    }

    /// Appends what a line of the file shows. `false` when the limit is reached.
    pub fn print(&mut self, line: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(entry) = parse(line) else { return true };
        let unwanted = self.query.since.is_some_and(|since| entry.time < since)
            || self.query.only_stderr.is_some_and(|wanted| wanted != entry.is_stderr);
        if unwanted {
            return true;
        }
        let start = out.len();
        if self.query.timestamps && self.at_line_start {
            out.extend_from_slice(entry.stamp.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(entry.text);
        if !entry.partial {
            out.push(b'\n');
        }
        self.at_line_start = !entry.partial;
        let added = (out.len() - start) as u64;
        if added >= self.left {
            out.truncate(start + usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left = 0;
            return false;
        }
        self.left -= added;
        true
    }
}

/// The rotated files of a log, oldest first, then the current one.
pub fn files(current: &Path) -> Vec<PathBuf> {
    let name = current.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let prefix = format!("{name}.");
    let mut rotated: Vec<PathBuf> = current
        .parent()
        .and_then(|directory| fs::read_dir(directory).ok())
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect();
    rotated.sort();
    rotated.push(current.to_owned());
    rotated
}

/// How many whole lines a file holds.
fn lines(path: &Path) -> io::Result<usize> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    let mut count = 0;
    while reader.read_until(b'\n', &mut line)? > 0 {
        let is_whole = line.ends_with(b"\n") && parse(trimmed(&line)).is_some_and(|entry| !entry.partial);
        count += usize::from(is_whole);
        line.clear();
    }
    Ok(count)
}

fn trimmed(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\n").unwrap_or(line)
}

/// The files to read and how many lines of the first to pass over.
fn start(current: &Path, tail: Option<usize>) -> (Vec<PathBuf>, usize) {
    let all = files(current);
    let Some(tail) = tail else { return (all, 0) };
    let mut seen = 0;
    for index in (0..all.len()).rev() {
        seen += lines(&all[index]).unwrap_or(0);
        if seen >= tail {
            return (all[index..].to_vec(), seen - tail);
        }
    }
    (all, 0)
}

/// Where a reader of the current file is.
pub struct Position {
    file: File,
    inode: u64,
    /// A line whose end has not been written yet.
    rest: Vec<u8>,
}

/// Reads everything there is now. `emit` gets chunks and says whether to go on. Returns where to continue; `None` when
/// the reader has had enough.
pub fn read(
    current: &Path,
    query: &Query,
    printer: &mut Printer,
    emit: &mut dyn FnMut(Vec<u8>) -> bool,
) -> io::Result<Option<Position>> {
    let (files, mut skip) = start(current, query.tail);
    let last = files.len().saturating_sub(1);
    for (index, path) in files.iter().enumerate() {
        let file = match File::open(path) {
            Ok(file) => file,
            // A rotated file may go while it is being read about.
            Err(error) if error.kind() == io::ErrorKind::NotFound && index < last => continue,
            Err(error) => return Err(error),
        };
        let inode = file.metadata()?.ino();
        let mut position = Position { file, inode, rest: Vec::new() };
        if !position.advance(printer, &mut skip, emit)? {
            return Ok(None);
        }
        if index == last {
            return Ok(Some(position));
        }
    }
    Ok(None)
}

const CHUNK: usize = 64 * 1024;

impl Position {
    /// Reads what has been written since; after a rotation the rest of the old file and then the new one.
    pub fn catch_up(
        &mut self,
        current: &Path,
        printer: &mut Printer,
        emit: &mut dyn FnMut(Vec<u8>) -> bool,
    ) -> io::Result<bool> {
        if !self.advance(printer, &mut 0, emit)? {
            return Ok(false);
        }
        match File::open(current) {
            Ok(file) if file.metadata()?.ino() != self.inode => {
                // What was written to the old file up to its end has been read before the name was looked at again,
                // but for a last bit between the two.
                if !self.advance(printer, &mut 0, emit)? {
                    return Ok(false);
                }
                *self = Self { inode: file.metadata()?.ino(), file, rest: Vec::new() };
                self.advance(printer, &mut 0, emit)
            }
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn advance(
        &mut self,
        printer: &mut Printer,
        skip: &mut usize,
        emit: &mut dyn FnMut(Vec<u8>) -> bool,
    ) -> io::Result<bool> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = self.file.read(&mut buffer)?;
            if count == 0 {
                return Ok(true);
            }
            self.rest.extend_from_slice(&buffer[..count]);
            let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { continue };
            let whole: Vec<u8> = self.rest.drain(..=end).collect();
            let mut out = Vec::new();
            let mut wants_more = true;
            for line in whole.split_inclusive(|byte| *byte == b'\n').map(trimmed) {
                if *skip > 0 {
                    *skip -= usize::from(parse(line).is_some_and(|entry| !entry.partial));
                    continue;
                }
                wants_more = printer.print(line, &mut out);
                if !wants_more {
                    break;
                }
            }
            if !out.is_empty() && !emit(out) || !wants_more {
                return Ok(false);
            }
        }
    }
}

/// The last lines of a log as text, at most so many lines and bytes.
pub fn tail_text(path: &Path, lines: usize, bytes: usize) -> io::Result<String> {
    let query = Query { tail: Some(lines), ..Query::default() };
    let mut text = Vec::new();
    read(path, &query, &mut Printer::new(&query), &mut |chunk| {
        text.extend_from_slice(&chunk);
        true
    })?;
    let start = text.len().saturating_sub(bytes);
    Ok(String::from_utf8_lossy(&text[start..]).into_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn entry(second: u32, rest: &str) -> String {
        format!("2030-01-01T00:00:{second:02}.5Z {rest}\n")
    }

    fn show(path: &Path, query: &Query) -> String {
        let mut text = Vec::new();
        let mut emit = |chunk: Vec<u8>| {
            text.extend_from_slice(&chunk);
            true
        };
        read(path, query, &mut Printer::new(query), &mut emit).expect("read");
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn files_lines_and_selections() {
        let directory = tempfile::tempdir().expect("a directory");
        let current = directory.path().join("0.log");
        let old = entry(1, "stdout F one") + &entry(2, "stdout P tw") + &entry(2, "stdout F o");
        fs::write(directory.path().join("0.log.20300101-000003"), old).expect("written");
        let new = entry(4, "stderr F three")
            + "garbage\n"
            + &entry(5, "stdout F four")
            + "2030-01-01T00:00:06Z stdout F half";
        fs::write(&current, new).expect("written");
        let ask = |query: Query| show(&current, &query);
        assert_eq!(ask(Query::default()), "one\ntwo\nthree\nfour\n");
        assert_eq!(ask(Query { tail: Some(1), ..Query::default() }), "four\n");
        assert_eq!(ask(Query { tail: Some(3), ..Query::default() }), "two\nthree\nfour\n");
        assert_eq!(ask(Query { tail: Some(99), ..Query::default() }), "one\ntwo\nthree\nfour\n");
        assert_eq!(ask(Query { tail: Some(0), ..Query::default() }), "");
        assert_eq!(ask(Query { limit_bytes: Some(6), ..Query::default() }), "one\ntw");
        assert_eq!(ask(Query { only_stderr: Some(true), ..Query::default() }), "three\n");
        let since = Some("2030-01-01T00:00:04Z".parse().expect("a time"));
        assert_eq!(ask(Query { since, ..Query::default() }), "three\nfour\n");
        let stamped = ask(Query { timestamps: true, tail: Some(3), ..Query::default() });
        assert!(stamped.starts_with("2030-01-01T00:00:02.5Z two\n2030-01-01T00:00:04.5Z three\n"), "{stamped}");
        assert_eq!(tail_text(&current, 2, 7).expect("read"), "e\nfour\n");
    }

    #[test]
    fn a_follower_reads_on_and_through_a_rotation() {
        let directory = tempfile::tempdir().expect("a directory");
        let current = directory.path().join("0.log");
        let mut file = File::create(&current).expect("a file");
        write!(file, "{}", entry(1, "stdout F one")).expect("written");
        let query = Query::default();
        let mut printer = Printer::new(&query);
        let text = std::cell::RefCell::new(String::new());
        let mut emit = |chunk: Vec<u8>| {
            text.borrow_mut().push_str(&String::from_utf8_lossy(&chunk));
            true
        };
        let mut position = read(&current, &query, &mut printer, &mut emit).expect("read").expect("there is more");
        write!(file, "{}", entry(2, "stdout F two")).expect("written");
        assert!(position.catch_up(&current, &mut printer, &mut emit).expect("read"));
        write!(file, "{}", entry(3, "stdout F three")).expect("written");
        fs::rename(&current, directory.path().join("0.log.20300101-000004")).expect("renamed");
        fs::write(&current, entry(4, "stdout F four")).expect("written");
        assert!(position.catch_up(&current, &mut printer, &mut emit).expect("read"));
        assert_eq!(*text.borrow(), "one\ntwo\nthree\nfour\n");
    }
}
