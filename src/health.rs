//! `millstream health`: asks a running server whether it can serve, as container probes do.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::args::{HealthArgs, listen_address};

/// How long connecting, and the answer, may take.
const TIMEOUT: Duration = Duration::from_secs(3);
const DEFAULT_PORT: u16 = 3000;
/// Bytes of an answer that are read.
const MAX_STATUS_LINE: u64 = 256;

/// Succeeds if the server answers that it can serve.
pub(crate) fn run(args: &HealthArgs) -> anyhow::Result<()> {
    let address = match &args.url {
        Some(url) => url.strip_prefix("http://").unwrap_or(url).to_owned(),
        None => {
            let variable = |name| std::env::var(name).unwrap_or_default();
            // Vertex AI's port wins, as it does for the server.
            let ports = [variable("AIP_HTTP_PORT"), variable("PORT")];
            let port = ports.iter().find(|port| !port.trim().is_empty());
            local_address(&variable("HOSTNAME"), port.map_or("", |port| port))?.to_string()
        }
    };
    let status =
        ask(&address).with_context(|| format!("no answer from http://{address}/health"))?;
    if status != 200 {
        bail!("http://{address}/health answers {status}");
    }
    println!("healthy");
    Ok(())
}

/// Where a server with these variables is reached from its own machine.
fn local_address(hostname: &str, port: &str) -> anyhow::Result<SocketAddr> {
    let ip: IpAddr = match listen_address(hostname) {
        Some(IpAddr::V6(ip)) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        Some(ip) if !ip.is_unspecified() => ip,
        // The name of a machine, or every interface.
        _ => Ipv4Addr::LOCALHOST.into(),
    };
    let port = match port.trim() {
        "" => DEFAULT_PORT,
        port => port.parse().with_context(|| format!("PORT ({port}) must be from 1 to 65535"))?,
    };
    Ok(SocketAddr::new(ip, port))
}

/// The status that `GET /health` is answered with.
fn ask(address: &str) -> anyhow::Result<u16> {
    let with_port = if has_port(address) { address.to_owned() } else { format!("{address}:80") };
    let target = with_port.to_socket_addrs()?.next().context("the host has no address")?;
    let mut stream = TcpStream::connect_timeout(&target, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request = format!("GET /health HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_STATUS_LINE)).read_line(&mut line)?;
    let mut words = line.split_whitespace();
    ensure!(words.next().is_some_and(|word| word.starts_with("HTTP/")), "this is not HTTP");
    words.next().and_then(|status| status.parse().ok()).context("the answer has no status")
}

fn has_port(address: &str) -> bool {
    // An IPv6 address has colons of its own, within brackets.
    address.rsplit(']').next().is_some_and(|rest| rest.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn the_server_of_this_machine_is_where_its_variables_say() {
        for (hostname, port, expected) in [
            ("", "", "127.0.0.1:3000"),
            ("f00dcafe4711", "80", "127.0.0.1:80"),
            ("0.0.0.0", "80", "127.0.0.1:80"),
            ("::", "80", "[::1]:80"),
            ("10.1.2.3", "8080", "10.1.2.3:8080"),
        ] {
            assert_eq!(local_address(hostname, port).unwrap().to_string(), expected);
        }
        assert!(local_address("", "http").unwrap_err().to_string().contains("PORT (http)"));
    }

    #[test]
    fn an_answer_is_its_status() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\n", Some(200)),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", Some(503)),
            ("SSH-2.0-x 200\r\n", None),
            ("", None),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let server = std::thread::spawn(move || {
                let (stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                assert_eq!(lines.next().unwrap().unwrap(), "GET /health HTTP/1.1");
                // A connection that is closed with unread bytes is reset, and its answer lost.
                lines.map(Result::unwrap).find(String::is_empty).unwrap();
                (&stream).write_all(answer.as_bytes()).unwrap();
            });
            assert_eq!(ask(&address.to_string()).ok(), expected, "{answer}");
            server.join().unwrap();
        }
    }
}
