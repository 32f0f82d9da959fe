//! Child processes whose output is kept, shown when the test fails, and that never outlive it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{eventually, now, pause};

/// Lines shown of each process when a test fails.
const SHOWN_LINES: usize = 60;

/// A running child.
pub(crate) struct Process {
    pub(crate) name: String,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
    reaped: bool,
}

impl Process {
    /// Starts `command`. Its output goes to the log of this handle.
    pub(crate) fn start(name: &str, command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start ({command:?}): {error}"));
        let log = Arc::new(Mutex::new(Vec::new()));
        let readers = [
            child.stdout.take().map(|out| follow(out, &log)),
            child.stderr.take().map(|err| follow(err, &log)),
        ];
        Self {
            name: name.to_owned(),
            child,
            log,
            readers: readers.into_iter().flatten().collect(),
            reaped: false,
        }
    }

    /// The child's stdin, if it was piped.
    pub(crate) fn stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }

    /// Everything it printed.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How many lines it printed.
    pub(crate) fn printed(&self) -> usize {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.len()
    }

    /// What it printed from line `first` on.
    pub(crate) fn lines_from(&self, first: usize) -> Vec<String> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.get(first..).unwrap_or_default().to_vec()
    }

    /// Whether it printed a line that contains `text`.
    pub(crate) fn said(&self, text: &str) -> bool {
        self.lines().iter().any(|line| line.contains(text))
    }

    /// Whether it still runs.
    pub(crate) fn running(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The names of the programs it runs as children of its own.
    pub(crate) fn children(&self) -> Vec<String> {
        let processes = std::fs::read_dir("/proc").expect("Linux");
        let stats = processes
            .filter_map(|process| std::fs::read_to_string(process.ok()?.path().join("stat")).ok());
        // "pid (name) state parent …", where the name may have anything in it.
        stats
            .filter_map(|stat| {
                let (before, after) = stat.rsplit_once(')')?;
                let parent = after.split_whitespace().nth(1)?.parse::<u32>().ok()?;
                let (_, name) = before.split_once('(')?;
                (parent == self.pid()).then(|| name.to_owned())
            })
            .collect()
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.reaped = true;
    }

    /// Asks it to stop, as Kubernetes and systemd do.
    pub(crate) fn terminate(&self) {
        self.signal("-TERM");
    }

    /// As by Ctrl+C.
    pub(crate) fn interrupt(&self) {
        self.signal("-INT");
    }

    /// Holds it, as a machine does that hangs.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Ends [`Self::freeze`].
    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([signal, &self.pid().to_string()])
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "{} could not be signalled",
            self.name
        );
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        let status = eventually(&format!("{} ends", self.name), limit, || {
            self.child.try_wait().ok().flatten()
        });
        self.reaped = true;
        // What it said last may still be in the pipes.
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
        }
        if std::thread::panicking() {
            // The readers end with the pipes; a grandchild may hold those open, so they get a moment only.
            let since = now();
            while self.readers.iter().any(|reader| !reader.is_finished())
                && since.elapsed() < Duration::from_millis(300)
            {
                pause(Duration::from_millis(10));
            }
            let lines = self.lines();
            let skipped = lines.len().saturating_sub(SHOWN_LINES);
            eprintln!(
                "--- {} (pid {}, {skipped} lines before)",
                self.name,
                self.pid()
            );
            for line in lines.iter().skip(skipped) {
                eprintln!("    {line}");
            }
        }
    }
}

fn follow(stream: impl Read + Send + 'static, log: &Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            log.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(line);
        }
    })
}
