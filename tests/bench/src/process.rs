//! Child processes on cores of their own, that end with us whatever ends us.

pub(crate) mod usage;

use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use headwater_bench::time::{now, pause};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};

/// How long a process may take to stop by itself.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Lines of a log that are shown when its process fails.
const SHOWN_LINES: usize = 20;

/// Puts the calling thread, and those it starts from now on, on these cores.
pub(crate) fn pin(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core).with_context(|| format!("core {core}"))?;
    }
    sched_setaffinity(Pid::from_raw(0), &set)
        .with_context(|| format!("this machine has no cores {cores:?} for us"))
}

/// Becomes `command`, on `cores`, until `parent` ends. The way from fork to exec without a line of unsafe code: a child of ours runs us
/// again, and we call this.
pub(crate) fn become_child(parent: u32, cores: &[usize], command: &[String]) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    let parent = Pid::from_raw(i32::try_from(parent)?);
    ensure!(
        getppid() == parent,
        "the bench ended before its child began"
    );
    pin(cores)?;
    let [program, arguments @ ..] = command else {
        bail!("no command");
    };
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("{program} can't be started"))
}

/// A running child. Ends when dropped, and when this process ends in any way.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program` on `cores`, its output in a log in `directory`.
    pub(crate) fn start(
        name: &'static str,
        program: &Path,
        arguments: &[String],
        cores: &[usize],
        directory: &Path,
    ) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let output = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
        let cores: Vec<String> = cores.iter().map(usize::to_string).collect();
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["become", &std::process::id().to_string(), &cores.join(",")])
            .arg("--")
            .arg(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output);
        // The environment of whoever measures must not configure what is measured.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("HEADWATER_") {
                command.env_remove(variable);
            }
        }
        let child = command
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { name, child, log })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Writes to its input, and closes that.
    pub(crate) fn tell(&mut self, text: &str) -> Result<()> {
        let mut input = self.child.stdin.take().context("told already")?;
        Ok(input.write_all(text.as_bytes())?)
    }

    /// Fails, with the end of its log, if it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else {
            return Ok(());
        };
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let shown = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
        bail!("{} ended ({status}):\n{shown}", self.name)
    }

    /// Asks until `ready`.
    pub(crate) fn wait_until(
        &mut self,
        limit: Duration,
        mut ready: impl FnMut() -> bool,
    ) -> Result<()> {
        let since = now();
        while !ready() {
            self.check()?;
            if since.elapsed() > limit {
                bail!("{} isn't ready after {limit:?}", self.name);
            }
            pause(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Asks it to stop, waits a while, and then makes it.
    pub(crate) fn stop(&mut self) {
        if let Ok(id) = i32::try_from(self.id())
            && matches!(self.child.try_wait(), Ok(None))
        {
            let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        }
        let since = now();
        while matches!(self.child.try_wait(), Ok(None)) && since.elapsed() < STOP_TIMEOUT {
            pause(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}
