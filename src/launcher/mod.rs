//! The worker as a child process: started, watched, started again, and never left behind.
//!
//! The child's standard input is a pipe whose other end only this process holds, so the child
//! learns of this process's end, however it comes, and ends itself. Its standard output says one
//! thing, the line [`READY_LINE`]; its standard error is ours.
//!
//! This module knows processes. It does not know what they say to each other over the socket.

mod restarts;

pub(crate) use restarts::RestartPolicy;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use restarts::Restarts;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

/// What a worker writes to standard output once it has loaded its model.
pub(crate) const READY_LINE: &str = "ready";

/// How long a worker may take to end after it was asked to, before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the pipe of an ended worker may take to deliver what the worker wrote.
const PIPE_TIMEOUT: Duration = Duration::from_secs(1);

/// How workers are started.
#[derive(Clone, Debug)]
pub(crate) struct WorkerCommand {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// Where the worker will listen; what a dead one left there is removed before each start.
    pub(crate) socket: PathBuf,
    /// A worker that is not ready after this long is killed, and counts as failed.
    pub(crate) start_timeout: Duration,
}

/// Why there is no worker any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("cannot start the worker `{}`: {source}", program.display())]
    Spawn { program: PathBuf, source: io::Error },
    #[error("cannot wait for the worker: {0}")]
    Wait(io::Error),
    /// The first worker ended before it was ready. If it exited with a code, it has said why.
    #[error("the worker ended while it was starting ({0})")]
    FailedStart(ExitStatus),
    #[error(
        "the worker was not ready after {} s; raise --worker-start-timeout if it needs longer",
        .0.as_secs_f64()
    )]
    StartTimeout(Duration),
    #[error("{num_failed} workers in a row ended before they were ready, the last with {last}")]
    GaveUp { num_failed: u32, last: String },
}

impl LaunchError {
    /// The exit code of a first worker that ended by itself, and so has said why.
    pub(crate) fn told_by_worker(&self) -> Option<u8> {
        let LaunchError::FailedStart(status) = self else { return None };
        status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0)
    }
}

/// Kills the worker that runs now, from any thread; another will be started.
#[derive(Clone, Debug, Default)]
pub(crate) struct KillSwitch(Arc<Notify>);

impl KillSwitch {
    pub(crate) fn kill(&self) {
        // Reaches whoever waits at this moment: a worker that is already gone leaves no order
        // behind that would hit the next one.
        self.0.notify_waiters();
    }
}

/// How the life of one worker ended.
enum Ended {
    /// By itself, or by the kill switch.
    Exited(ExitStatus),
    /// Killed here, because it was not ready in time.
    TimedOut,
    /// Because `stop` was resolved.
    Stopped,
}

/// Keeps one worker running until `stop` resolves, then ends it; `Err` when no worker can run.
pub(crate) async fn supervise(
    command: &WorkerCommand,
    policy: RestartPolicy,
    kill: &KillSwitch,
    stop: impl Future<Output = ()>,
) -> Result<(), LaunchError> {
    let mut stop = pin!(stop);
    let mut restarts = Restarts::new(policy);
    let mut was_ever_ready = false;
    loop {
        let (ended, ready_for) = run_worker(command, kill, stop.as_mut()).await?;
        was_ever_ready |= ready_for.is_some();
        let last = match ended {
            Ended::Stopped => return Ok(()),
            Ended::Exited(status) if !was_ever_ready => {
                return Err(LaunchError::FailedStart(status));
            }
            Ended::TimedOut if !was_ever_ready => {
                return Err(LaunchError::StartTimeout(command.start_timeout));
            }
            Ended::Exited(status) => status.to_string(),
            Ended::TimedOut => format!("no answer after {} s", command.start_timeout.as_secs_f64()),
        };
        let Some(pause) = restarts.worker_ended(ready_for) else {
            return Err(LaunchError::GaveUp { num_failed: policy.max_failed_starts, last });
        };
        warn!(end = last, pause_ms = pause.as_millis() as u64, "worker ended, starting another");
        if timeout(pause, stop.as_mut()).await.is_ok() {
            return Ok(());
        }
    }
}

/// One worker from its start to its end; also says for how long it was ready, if ever.
async fn run_worker(
    command: &WorkerCommand,
    kill: &KillSwitch,
    mut stop: std::pin::Pin<&mut impl Future<Output = ()>>,
) -> Result<(Ended, Option<Duration>), LaunchError> {
    let mut child = spawn(command)?;
    // Held here, because `Child::wait` would close it, and with it the worker.
    let stdin = child.stdin.take();
    let mut killed = pin!(kill.0.notified());
    let mut ready_line = pin!(wait_for_ready(child.stdout.take()));
    let start_deadline = Instant::now() + command.start_timeout;
    let mut stdout_read = false;
    let mut ready_at = None;
    let ended = loop {
        tokio::select! {
            // In this order: a worker that has ended is not waited for or killed again.
            biased;
            status = child.wait() => break Ended::Exited(status.map_err(LaunchError::Wait)?),
            () = stop.as_mut() => break Ended::Stopped,
            () = &mut killed => {
                warn!("worker hangs, killing it");
                let status = kill_and_wait(&mut child).await?;
                break Ended::Exited(status);
            }
            is_ready = &mut ready_line, if !stdout_read => {
                stdout_read = true;
                if is_ready {
                    ready_at = Some(Instant::now());
                    debug!(pid = child.id(), "worker ready");
                }
            }
            () = sleep_until(start_deadline), if ready_at.is_none() => {
                kill_and_wait(&mut child).await?;
                break Ended::TimedOut;
            }
        }
    };
    if matches!(ended, Ended::Stopped) {
        drop(stdin);
        stop_gently(&mut child).await?;
    } else if !stdout_read && timeout(PIPE_TIMEOUT, ready_line).await == Ok(true) {
        // It died so soon after it was ready that its end was seen first.
        ready_at = Some(Instant::now());
    }
    Ok((ended, ready_at.map(|ready_at| ready_at.elapsed())))
}

fn spawn(command: &WorkerCommand) -> Result<Child, LaunchError> {
    // The path is our own, in a directory that only we can write to.
    let _ = std::fs::remove_file(&command.socket);
    let child = Command::new(&command.program)
        .args(&command.args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Ctrl-C goes to the terminal's foreground group, and is for this process alone: it lets
        // streams finish first.
        .process_group(0)
        .kill_on_drop(true)
        // Keys are compared by this process alone.
        .env_remove("API_KEY")
        // Files are downloaded by this process alone.
        .env_remove("HF_TOKEN")
        .env_remove("HUGGING_FACE_HUB_TOKEN")
        .env_remove("HF_API_TOKEN")
        .spawn()
        .map_err(|source| LaunchError::Spawn { program: command.program.clone(), source })?;
    info!(pid = child.id(), "worker started");
    Ok(child)
}

/// True when the ready line is read; false when the output ends without it.
async fn wait_for_ready(stdout: Option<ChildStdout>) -> bool {
    if let Some(stdout) = stdout {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line == READY_LINE {
                return true;
            }
        }
    }
    false
}

async fn kill_and_wait(child: &mut Child) -> Result<ExitStatus, LaunchError> {
    child.start_kill().map_err(LaunchError::Wait)?;
    child.wait().await.map_err(LaunchError::Wait)
}

/// Waits for a worker that was asked to end, and kills it if it does not.
async fn stop_gently(child: &mut Child) -> Result<(), LaunchError> {
    if timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
        warn!("worker does not end, killing it");
        kill_and_wait(child).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const NO_PAUSE: RestartPolicy = RestartPolicy {
        first_pause: Duration::ZERO,
        max_pause: Duration::ZERO,
        healthy_after: Duration::from_secs(60),
        max_failed_starts: 5,
    };

    /// A worker in shell; `$0` is a file of its own, `born` appends a line to it.
    fn worker(diary: &Path, script: &str) -> WorkerCommand {
        let script = format!("born() {{ echo born >> \"$0\"; }}\n{script}");
        WorkerCommand {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into(), diary.as_os_str().to_owned()],
            socket: diary.with_extension("sock"),
            start_timeout: Duration::from_secs(60),
        }
    }

    fn births(diary: &Path) -> usize {
        std::fs::read_to_string(diary).unwrap_or_default().lines().count()
    }

    async fn never_stopped(command: &WorkerCommand) -> Result<(), LaunchError> {
        let kill = KillSwitch::default();
        supervise(command, NO_PAUSE, &kill, std::future::pending()).await
    }

    async fn until(condition: impl Fn() -> bool) {
        let wait = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(Duration::from_secs(60), wait).await.expect("condition never held");
    }

    #[tokio::test]
    async fn a_worker_that_never_was_ready_is_not_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let diary = dir.path().join("diary");
        let command = worker(&diary, "born; exit 7");
        let end = never_stopped(&command).await;
        let Err(LaunchError::FailedStart(status)) = end else { panic!("it started") };
        assert_eq!((status.code(), births(&diary)), (Some(7), 1));
    }

    #[tokio::test]
    async fn a_worker_that_does_not_become_ready_in_time_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = worker(&dir.path().join("diary"), "exec sleep 600");
        command.start_timeout = Duration::from_millis(20);
        let end = never_stopped(&command).await;
        assert!(matches!(end, Err(LaunchError::StartTimeout(_))));
    }

    #[tokio::test]
    async fn a_worker_that_ends_or_is_killed_is_followed_by_another_until_it_is_told_to_stop() {
        let dir = tempfile::tempdir().unwrap();
        let diary = dir.path().join("diary");
        // From the second on it ends with its standard input, as a real worker does.
        let command = worker(
            &diary,
            "born; echo ready; [ $(wc -l < \"$0\") = 1 ] && exit 0
             cat > /dev/null; echo end >> \"$0\"",
        );
        let kill = KillSwitch::default();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let script = async {
            until(|| births(&diary) == 2).await;
            kill.kill();
            until(|| births(&diary) == 3).await;
            stop.send(()).unwrap();
        };
        let stop_signal = async { stopped.await.unwrap() };
        let (end, ()) = tokio::join!(supervise(&command, NO_PAUSE, &kill, stop_signal), script);
        end.unwrap();
        let diary = std::fs::read_to_string(diary).unwrap();
        assert_eq!(diary, "born\nborn\nborn\nend\n");
    }

    #[tokio::test]
    async fn five_failed_restarts_in_a_row_end_it_and_a_stale_socket_is_removed_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let diary = dir.path().join("diary");
        let command = worker(
            &diary,
            "born; [ -e \"$0.sock\" ] && exit 9; touch \"$0.sock\"
             [ $(wc -l < \"$0\") = 1 ] && echo ready && exit 0
             exit 3",
        );
        let command = WorkerCommand { socket: dir.path().join("diary.sock"), ..command };
        let end = never_stopped(&command).await;
        let Err(error @ LaunchError::GaveUp { num_failed: 5, .. }) = end else {
            panic!("it did not give up")
        };
        assert!(error.to_string().contains("exit status: 3"), "{error}");
        assert_eq!(births(&diary), 6);
    }
}
