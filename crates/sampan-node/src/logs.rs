//! Container logs in CRI format: `TIME STREAM TAGS TEXT`, where tag `P` marks a line that goes on in the next entry.
//!
//! Rotated files are `NAME.YYYYMMDD-HHMMSS` beside the current one.

use std::io;
use std::path::Path;

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

/// The last lines of a log as text, at most so many lines and bytes.
pub fn tail_text(path: &Path, lines: usize, bytes: usize) -> io::Result<String> {
    let content = std::fs::read(path)?;
    let mut text = Vec::new();
    for entry in content.split(|byte| *byte == b'\n').filter_map(parse) {
        text.extend_from_slice(entry.text);
        if !entry.partial {
            text.push(b'\n');
        }
    }
    let all = String::from_utf8_lossy(&text);
    let kept: Vec<&str> = all.lines().rev().take(lines).collect();
    let mut out: String = kept.into_iter().rev().flat_map(|line| [line, "\n"]).collect();
    if out.len() > bytes {
        let mut start = out.len() - bytes;
        while !out.is_char_boundary(start) {
            start += 1;
        }
        out.drain(..start);
    }
    Ok(out)
}
