//! A container's log in CRI's format: `2026-01-02T03:04:05.123456789Z stdout F line`.
//!
//! A write that fails (a full disk) loses lines, never the container's progress: they are counted, and a marker line says
//! how many once writing works again.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;

/// A line longer than this is written in parts, as containerd does.
const LINE_BYTES_MAX: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    Stdout,
    Stderr,
}

pub struct Log {
    path: PathBuf,
    file: Option<File>,
    /// Lines that did not fit on the disk.
    lost: u64,
}

/// What one stream wrote since its last newline.
#[derive(Default)]
pub struct Pending(Vec<u8>);

impl Log {
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let file = open(&path)?;
        Ok(Self { path, file: Some(file), lost: 0 })
    }

    /// Goes on in a new file, after the old one was renamed away.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = Some(open(&self.path)?);
        Ok(())
    }

    /// Takes output of a stream; whole lines are written at once.
    pub fn write(&mut self, stream: Stream, pending: &mut Pending, mut data: &[u8], time: i64) {
        let mut out = Vec::with_capacity(data.len() + 64);
        let mut lines = 0;
        let stamp = timestamp(time);
        while !data.is_empty() {
            let room = LINE_BYTES_MAX - pending.0.len();
            let newline = data.iter().take(room).position(|&byte| byte == b'\n');
            let taken = newline.unwrap_or(room.min(data.len()));
            pending.0.extend_from_slice(&data[..taken]);
            data = &data[taken + usize::from(newline.is_some())..];
            if newline.is_some() || pending.0.len() == LINE_BYTES_MAX {
                frame(&mut out, &stamp, stream, newline.is_some(), &pending.0);
                pending.0.clear();
                lines += 1;
            }
        }
        self.append(&out, lines, &stamp);
    }

    /// The stream has ended: what it wrote last counts as a line.
    pub fn finish(&mut self, stream: Stream, pending: &mut Pending, time: i64) {
        let rest = std::mem::take(&mut pending.0);
        if !rest.is_empty() {
            let (mut out, stamp) = (Vec::new(), timestamp(time));
            frame(&mut out, &stamp, stream, true, &rest);
            self.append(&out, 1, &stamp);
        }
    }

    fn append(&mut self, data: &[u8], lines: u64, stamp: &str) {
        if lines == 0 {
            return;
        }
        let marker = match self.lost {
            0 => Vec::new(),
            lost => {
                format!("{stamp} stderr F [{lost} lines are missing here: the log could not be written]\n").into_bytes()
            }
        };
        let whole = [marker.as_slice(), data].concat();
        let written = match &mut self.file {
            Some(file) => append_whole(file, &whole),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        match written {
            Ok(()) => self.lost = 0,
            Err(_) => self.lost += lines,
        }
    }
}

fn open(path: &PathBuf) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    File::options().append(true).create(true).mode(0o640).open(path)
}

/// All of it or nothing: half a line would spoil the next.
fn append_whole(file: &mut File, data: &[u8]) -> io::Result<()> {
    let before = file.metadata()?.len();
    let result = file.write_all(data);
    if result.is_err() {
        let _ = file.set_len(before);
    }
    result
}

fn frame(out: &mut Vec<u8>, stamp: &str, stream: Stream, full: bool, line: &[u8]) {
    let stream = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    out.extend_from_slice(stamp.as_bytes());
    out.push(b' ');
    out.extend_from_slice(stream.as_bytes());
    out.extend_from_slice(if full { b" F " } else { b" P " });
    out.extend_from_slice(line);
    out.push(b'\n');
}

/// RFC 3339 with nine digits, in UTC. Days to dates as in Howard Hinnant's `civil_from_days`.
fn timestamp(nanoseconds: i64) -> String {
    let seconds = nanoseconds.div_euclid(1_000_000_000);
    let days = seconds.div_euclid(86_400) + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let time = seconds.rem_euclid(86_400);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        time / 3600,
        time / 60 % 60,
        time % 60,
        nanoseconds.rem_euclid(1_000_000_000)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_utc_with_nine_digits() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(timestamp(951_782_400_000_000_001), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(timestamp(1_767_323_045_123_456_789), "2026-01-02T03:04:05.123456789Z");
    }

    fn log(name: &str) -> (Log, PathBuf) {
        let path = std::env::temp_dir().join(format!("sampan-holder-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        (Log::open(path.clone()).expect("a log"), path)
    }

    #[test]
    fn lines_are_framed_and_long_ones_are_parted() {
        let (mut log, path) = log("frames");
        let mut pending = Pending::default();
        log.write(Stream::Stdout, &mut pending, b"one\ntw", 0);
        log.write(Stream::Stdout, &mut pending, b"o\n\n", 0);
        let long = vec![b'x'; LINE_BYTES_MAX + 1];
        log.write(Stream::Stderr, &mut pending, &long, 0);
        log.finish(Stream::Stderr, &mut pending, 0);
        let text = std::fs::read_to_string(&path).expect("a log file");
        std::fs::remove_file(&path).expect("removed");
        let lines: Vec<&str> = text.lines().map(|line| line.split_once("Z ").expect("a time").1).collect();
        let long = format!("stderr P {}", "x".repeat(LINE_BYTES_MAX));
        assert_eq!(lines, ["stdout F one", "stdout F two", "stdout F ", long.as_str(), "stderr F x"]);
    }

    #[test]
    fn a_full_disk_loses_lines_and_says_so() {
        let (mut log, path) = log("full");
        let mut pending = Pending::default();
        log.file = File::options().write(true).open("/dev/full").ok();
        log.write(Stream::Stdout, &mut pending, b"a\nb\n", 0);
        assert_eq!(log.lost, 2);
        log.reopen().expect("it opens again");
        log.write(Stream::Stdout, &mut pending, b"c\n", 0);
        let text = std::fs::read_to_string(&path).expect("a log file");
        std::fs::remove_file(&path).expect("removed");
        assert!(text.contains(" stderr F [2 lines are missing") && text.ends_with(" stdout F c\n"), "{text}");
    }
}
