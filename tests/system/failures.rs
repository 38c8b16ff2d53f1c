//! What ends: workers, the server, both; and what their clients see of it.

use std::fs::DirEntry;
use std::os::unix::fs::PermissionsExt;

use crate::common::{Server, is_running, long_chat, send_signal, wait_until};

const QUESTION: &str = "Tell me a story about a fox and a red kite.";
const NUM_TOKENS: u32 = 400;

fn temporary_files(server: &Server) -> Vec<DirEntry> {
    std::fs::read_dir(server.temporary()).unwrap().map(Result::unwrap).collect()
}

/// Starts a stream and does something to the server in the middle of it; returns the whole text.
fn disturb(server: &Server, disturb: impl FnOnce()) -> String {
    let mut stream = server.stream(&long_chat(QUESTION, NUM_TOKENS));
    let mut text: String = (0..3).map(|_| stream.next_text().expect("it ended early")).collect();
    disturb();
    text += &stream.rest();
    text
}

#[test]
fn a_stream_goes_on_after_the_death_of_its_worker_and_its_text_is_the_same() {
    let server = Server::start(&[]);
    let undisturbed = disturb(&server, || {});
    for signal in ["KILL", "TERM"] {
        let dead = server.worker();
        let text = disturb(&server, || send_signal(signal, dead));
        assert_eq!(text, undisturbed, "after SIG{signal}");
        assert_ne!(server.worker(), dead, "nobody died");
        assert!(!is_running(dead));
    }
    assert_eq!(server.workers().len(), 3);
    assert_eq!(server.metric("millstream_worker_losses_total"), 2.0);
}

#[test]
fn workers_that_are_asked_to_leave_are_no_fault_of_the_request_that_they_run() {
    let server = Server::start(&[]);
    let request = long_chat(QUESTION, 900);
    let undisturbed = server.stream(&request).rest();
    let mut stream = server.stream(&request);
    let mut text = String::new();
    for _ in 0..3 {
        text += &stream.next_text().expect("it ended early");
        let leaving = server.worker();
        send_signal("TERM", leaving);
        wait_until("another worker is ready", || {
            server.worker() != leaving && server.get("/ready").status == 200
        });
    }
    text += &stream.rest();
    assert_eq!(text, undisturbed);
    assert_eq!(server.workers().len(), 4);
    assert!(!server.log_contains("worker lost"), "a worker broke its stream off");
}

#[test]
fn a_worker_that_hangs_is_killed_and_its_stream_goes_on() {
    let server = Server::start(&["--step-timeout", "5"]);
    let undisturbed = disturb(&server, || {});
    let hanging = server.worker();
    let text = disturb(&server, || send_signal("STOP", hanging));
    assert_eq!(text, undisturbed);
    assert!(!is_running(hanging));
    assert_eq!(server.workers().len(), 2);
}

#[test]
fn a_server_is_not_ready_while_it_has_no_worker_and_then_again() {
    let server = Server::start(&[]);
    assert_eq!(server.get("/ready").status, 200);
    send_signal("KILL", server.worker());
    wait_until("the loss is noticed", || server.metric("millstream_worker_losses_total") == 1.0);
    assert_eq!(server.get("/live").status, 200);
    wait_until("another worker is ready", || server.get("/ready").status == 200);
    assert_eq!(server.workers().len(), 2);
}

#[test]
fn a_server_that_is_told_to_end_finishes_its_streams_first() {
    let mut server = Server::start(&[]);
    let worker = server.worker();
    let pid = server.pid();
    let text = disturb(&server, || {
        send_signal("TERM", pid);
        wait_until("the signal is noticed", || server.log_contains("SIGTERM"));
    });
    assert!(!text.is_empty());
    assert_eq!(server.wait().code(), Some(0));
    assert!(!is_running(worker));
    assert!(temporary_files(&server).is_empty());
}

#[test]
fn streams_that_do_not_finish_in_time_end_with_an_error_event() {
    let mut server = Server::start(&["--graceful-termination-timeout", "0"]);
    let mut stream = server.stream(&long_chat(QUESTION, 900));
    assert!(stream.next_text().is_some());
    send_signal("INT", server.pid());
    let error = std::iter::from_fn(|| stream.next_event()).find(|event| event["error"].is_object());
    assert!(error.is_some(), "the stream ended without an error");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_second_interrupt_ends_the_server_at_once() {
    let mut server = Server::start(&[]);
    let worker = server.worker();
    let mut stream = server.stream(&long_chat(QUESTION, 900));
    assert!(stream.next_text().is_some());
    send_signal("INT", server.pid());
    wait_until("the signal is noticed", || server.log_contains("SIGINT"));
    send_signal("INT", server.pid());
    assert_eq!(server.wait().code(), Some(130));
    wait_until("the worker ends", || !is_running(worker));
}

#[test]
fn nothing_is_left_of_a_server_that_was_killed() {
    let mut server = Server::start(&[]);
    let worker = server.worker();
    let mut stream = server.stream(&long_chat(QUESTION, 900));
    assert!(stream.next_text().is_some());
    assert!(is_running(worker));
    let [socket_directory] = &temporary_files(&server)[..] else { panic!("not one directory") };
    let mode = socket_directory.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700, "others can reach the worker");
    send_signal("KILL", server.pid());
    server.wait();
    wait_until("the worker ends", || !is_running(worker));
    wait_until("its socket is removed", || temporary_files(&server).is_empty());
}
