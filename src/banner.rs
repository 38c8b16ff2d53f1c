//! The greeting: one screen that says what is served, where, and how to ask for a first answer.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use millstream_proto::WorkerInfo;

/// What the greeting says; `Display` is the screen.
pub(crate) struct Banner<'a> {
    pub(crate) model_name: &'a str,
    pub(crate) info: &'a WorkerInfo,
    pub(crate) address: SocketAddr,
    pub(crate) needs_key: bool,
    /// What to ask first: something that the model can answer.
    pub(crate) question: &'a str,
}

impl fmt::Display for Banner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Banner { model_name, info, .. } = self;
        let base = format!("http://{}", reachable(self.address));
        let key = if self.needs_key { " -H \"Authorization: Bearer $API_KEY\"" } else { "" };
        // A name is a path or comes from the user, so it may hold what JSON or a shell would read.
        let body = serde_json::json!({
            "model": model_name,
            "stream": true,
            "messages": [{"role": "user", "content": self.question}],
        });
        let body = body.to_string().replace('\'', "'\\''");
        writeln!(f, "\nMillstream {} is ready, listening on http://{}", VERSION, self.address)?;
        writeln!(f)?;
        writeln!(
            f,
            "  model     {model_name} ({} parameters, {})",
            count(info.num_parameters),
            info.dtype
        )?;
        writeln!(f, "  length    {} tokens at most, prompt and output", info.max_model_len)?;
        writeln!(f, "  KV cache  {} tokens", cache_tokens(info))?;
        writeln!(f, "  metrics   {base}/metrics")?;
        writeln!(f, "  clients   any OpenAI client with base_url={base}/v1")?;
        writeln!(f, "  flags     millstream serve --help")?;
        writeln!(f)?;
        writeln!(f, "Ask it something:")?;
        writeln!(f)?;
        writeln!(f, "  curl -N {base}/v1/chat/completions{key} \\")?;
        writeln!(f, "    -H 'Content-Type: application/json' \\")?;
        writeln!(f, "    -d '{body}'")
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The address under which this machine reaches what listens on `address`.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Tokens that fit into the smallest group of cache blocks, of those that keep all of a sequence if
/// there are any.
fn cache_tokens(info: &WorkerInfo) -> u64 {
    let keeps_all = info.cache_groups.iter().any(|group| group.window == 0);
    let groups = info.cache_groups.iter().filter(|group| !keeps_all || group.window == 0);
    let blocks = groups.map(|group| u64::from(group.num_blocks)).min();
    blocks.unwrap_or(0) * u64::from(info.block_size)
}

/// A large number for people: `4.1 M`.
fn count(number: u64) -> String {
    const UNITS: [(f64, &str); 3] = [(1e9, "B"), (1e6, "M"), (1e3, "k")];
    let number = number as f64;
    match UNITS.into_iter().find(|(size, _)| number >= *size) {
        Some((size, unit)) => format!("{:.1} {unit}", number / size),
        None => format!("{number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_proto::CacheGroup;

    fn greeting(model_name: &str, address: &str, needs_key: bool) -> String {
        let info = WorkerInfo {
            num_parameters: 4_120_000,
            dtype: "f32".into(),
            max_model_len: 1024,
            block_size: 16,
            cache_groups: vec![
                CacheGroup { num_blocks: 10, window: 64, ..Default::default() },
                CacheGroup { num_blocks: 100, ..Default::default() },
            ],
            ..Default::default()
        };
        let address = address.parse().unwrap();
        let question = "Who are you?";
        Banner { model_name, info: &info, address, needs_key, question }.to_string()
    }

    #[test]
    fn the_greeting_fits_one_screen_and_names_what_is_served() {
        let text = greeting("demo", "127.0.0.1:3000", false);
        for part in [
            "listening on http://127.0.0.1:3000\n",
            "demo (4.1 M parameters, f32)",
            "1600 tokens",
            "http://127.0.0.1:3000/metrics",
            "curl -N http://127.0.0.1:3000/v1/chat/completions \\\n",
        ] {
            assert!(text.contains(part), "`{part}` is missing in:\n{text}");
        }
        assert!(text.lines().count() <= 24);
    }

    #[test]
    fn the_command_reaches_a_server_that_listens_everywhere_and_carries_the_key() {
        let text = greeting("demo", "0.0.0.0:80", true);
        assert!(
            text.contains("curl -N http://127.0.0.1:80/v1/chat/completions -H \"Auth"),
            "{text}"
        );
    }

    #[test]
    fn a_name_with_quotes_does_not_leave_the_command() {
        let text = greeting("/models/o'neil \"q\"", "127.0.0.1:80", false);
        assert!(text.contains(r#"/models/o'\''neil \"q\""#), "{text}");
    }
}
