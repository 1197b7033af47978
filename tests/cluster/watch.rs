//! A kubectl that watches, and what it has printed so far.

use std::io::{BufRead as _, BufReader};
use std::process::Child;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use tests::lab::{Kubectl, until};

pub struct Watch {
    watching: Child,
    coming: Receiver<String>,
    lines: Vec<String>,
}

impl Watch {
    /// Starts it; it has begun to watch once it prints, or as soon as there is something to print.
    pub fn start(kubectl: &Kubectl, arguments: &[&str]) -> Self {
        let mut watching = kubectl.start(arguments);
        let printed = BufReader::new(watching.stdout.take().unwrap());
        let (to, coming) = channel();
        thread::spawn(move || {
            for line in printed.lines().map_while(Result::ok) {
                if to.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            watching,
            coming,
            lines: Vec::new(),
        }
    }

    /// Waits until a line is as asked for.
    pub fn until(&mut self, what: &str, is_so: impl Fn(&str) -> bool) {
        until(&format!("{what} in what a watch prints"), || {
            self.lines.extend(self.coming.try_iter());
            self.lines.iter().any(|line| is_so(line))
        });
    }

    /// Ends it. Returns all lines.
    pub fn end(mut self) -> Vec<String> {
        self.watching.kill().unwrap();
        self.watching.wait().unwrap();
        self.lines.extend(self.coming.iter());
        self.lines
    }
}
