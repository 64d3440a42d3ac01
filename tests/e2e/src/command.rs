//! Running a program and looking at what it did.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// A program that has ended.
#[derive(Clone, Debug)]
pub struct Done {
    pub command: String,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    fn new(command: &Command, output: Output) -> Self {
        let arguments = command.get_args().map(OsStr::to_string_lossy);
        let command = std::iter::once(command.get_program().to_string_lossy()).chain(arguments).collect::<Vec<_>>();
        Self {
            command: command.join(" "),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub fn succeeded(&self) -> bool {
        self.code == Some(0)
    }

    /// What it wrote to standard output; the test fails if it failed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.succeeded(), "{}: code {:?}\n{}{}", self.command, self.code, self.stdout, self.stderr);
        self.stdout
    }

    /// What it wrote to standard error; the test fails if it did not fail with this code.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{}\n{}{}", self.command, self.stdout, self.stderr);
        self.stderr
    }

    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        let command = self.command.clone();
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command}: {error}\n{text}"))
    }
}

pub fn run(command: &mut Command) -> Done {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", command.get_program().to_string_lossy()));
    Done::new(command, output)
}

/// The input must fit into a pipe's buffer or be read before much is written, as kubectl and sampan do.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Done {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{}: {error}", command.get_program().to_string_lossy()));
    // A program that does not want its input may end before it has read it.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    Done::new(command, output)
}
