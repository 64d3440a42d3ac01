//! What a pretended process does.

use std::time::Duration;

/// What one process does, of a container or of an exec.
#[derive(Clone, Debug, PartialEq)]
pub struct Behaviour {
    /// When it ends by itself; `None`: it runs until it is stopped.
    pub ends_after: Option<Duration>,
    pub exit_code: i32,
    pub oom_killed: bool,
    /// How long it takes to end after the stop signal; `None`: it ignores the signal and has to be killed.
    pub stops_after: Option<Duration>,
    /// The process cannot be started at all; the text of the error.
    pub start_error: Option<String>,
    /// What it writes at its start.
    pub stdout: String,
    pub stderr: String,
    /// It copies its standard input to its standard output and ends with it.
    pub copies_stdin: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            ends_after: None,
            exit_code: 0,
            oom_killed: false,
            stops_after: Some(Duration::ZERO),
            start_error: None,
            stdout: String::new(),
            stderr: String::new(),
            copies_stdin: false,
        }
    }
}

impl Behaviour {
    /// Ends at once with this code.
    pub fn exits(exit_code: i32) -> Self {
        Self { ends_after: Some(Duration::ZERO), exit_code, ..Self::default() }
    }

    /// Ends with this code after a while.
    pub fn exits_after(after: Duration, exit_code: i32) -> Self {
        Self { ends_after: Some(after), exit_code, ..Self::default() }
    }

    /// The few commands the contract suite uses are understood (`true`, `false`, `echo`, `sleep N`, `cat`, and `sh -c`
    /// with these, `exit N`, `echo … >&2` and `trap '' TERM` joined by `;`); `no-such-command` does not
    /// exist; everything else runs until it is stopped.
    pub fn of_command(command: &[String]) -> Self {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["sh" | "/bin/sh", "-c", script] => Self::of_script(script),
            _ => {
                let mut behaviour = Self::exits(0);
                behaviour.step(&words);
                behaviour
            }
        }
    }

    fn of_script(script: &str) -> Self {
        let mut behaviour = Self::exits(0);
        for step in script.split(';') {
            let words: Vec<&str> = step.split_whitespace().collect();
            if !behaviour.step(&words) {
                break;
            }
        }
        behaviour
    }

    /// Adds one command of a sequence; `false` when nothing can follow it.
    fn step(&mut self, words: &[&str]) -> bool {
        match words {
            [] => return true,
            ["true"] => self.exit_code = 0,
            ["false"] => self.exit_code = 1,
            ["exit", code] => {
                self.exit_code = code.parse().unwrap_or(2);
                return false;
            }
            ["trap", "''", "TERM"] => self.stops_after = None,
            ["echo", text @ .., ">&2"] => self.stderr.push_str(&format!("{}\n", text.join(" "))),
            ["echo", text @ ..] => self.stdout.push_str(&format!("{}\n", text.join(" "))),
            ["sleep", seconds] => {
                let pause = Duration::from_secs(seconds.parse().unwrap_or(0));
                self.ends_after = self.ends_after.map(|so_far| so_far + pause);
            }
            ["cat"] => self.copies_stdin = true,
            ["no-such-command", ..] => {
                self.start_error = Some(r#"exec: "no-such-command": executable file not found in $PATH"#.to_owned());
                return false;
            }
            _ => {
                self.ends_after = None;
                return false;
            }
        }
        true
    }
}
