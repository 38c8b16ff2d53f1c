//! Values with units, as people write them on a command line.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde_json::{Map, Value};

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// Parses any text, and keeps it hidden; an empty one is no key.
///
/// Files and vaults end a key with a new line, which no client could send.
pub(crate) fn secret(text: &str) -> Result<Secret, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("must not be empty".into());
    }
    Ok(Secret(text.to_owned()))
}

/// Parses an amount of memory into bytes: `1073741824`, `512MB`, `1.5 GiB`, `2g`.
///
/// KB, MB, GB and TB count in thousands; KiB, MiB, GiB, TiB and the bare letters in 1024s.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit_bytes: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1000_u64.pow(2),
        "gb" => 1000_u64.pow(3),
        "tb" => 1000_u64.pow(4),
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        other => return Err(format!("`{other}` is no unit of memory; use KiB, MiB, GiB or bytes")),
    };
    let number: f64 =
        number.parse().map_err(|_| "expected a number of bytes, such as 512MiB".to_owned())?;
    let total = number * unit_bytes as f64;
    // Above 2^53 a float no longer counts bytes, and no machine has as many.
    if !(1.0..=9e15).contains(&total) {
        return Err(format!("must be from 1 byte to 9 petabytes, is {total:e} bytes"));
    }
    Ok(total as u64)
}

/// Parses a JSON object.
pub(crate) fn json_object(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("expected a JSON object, such as {\"enable_thinking\": false}".to_owned()),
        Err(error) => Err(format!("is not JSON: {error}")),
    }
}

/// Parses a number of seconds, fractions allowed.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 =
        text.trim().parse().map_err(|_| "expected a number of seconds".to_owned())?;
    // A year bounds what is added to clocks.
    if !(0.0..=31_536_000.0).contains(&seconds) {
        return Err(format!("must be from 0 to 31536000 seconds, is {seconds}"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Parses a positive number of seconds, fractions allowed.
pub(crate) fn positive_seconds(text: &str) -> Result<Duration, String> {
    let duration = seconds(text)?;
    if duration.is_zero() {
        return Err("must be more than 0 seconds".into());
    }
    Ok(duration)
}

/// Parses an `http://host[:port]` address; nothing but its root can be meant.
pub(crate) fn http_url(text: &str) -> Result<String, String> {
    let Some(authority) = text.strip_prefix("http://") else {
        return Err("expected http://HOST:PORT (TLS is not spoken here)".into());
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if authority.is_empty() || authority.contains('/') {
        return Err("expected http://HOST:PORT without a path".into());
    }
    Ok(format!("http://{authority}"))
}

/// Parses the path of a route, as it stands in a URL.
pub(crate) fn route(text: &str) -> Result<String, String> {
    let text = text.trim();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()+,;=:@%".contains(&byte);
    let is_segment = |segment: &str| !segment.starts_with(':') && segment.bytes().all(is_plain);
    match text.strip_prefix('/') {
        Some(rest) if rest.split('/').all(is_segment) => Ok(text.to_owned()),
        _ => Err("must begin with / and be a path without a query, such as /predict".into()),
    }
}

/// Parses a text that fits a header.
pub(crate) fn header_text(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Err("must be a text of printable ASCII characters".into());
    }
    Ok(text.to_owned())
}

/// The address to listen on; `None` for a value that is neither an address nor `localhost`.
///
/// Docker and some login shells put the name of the machine into HOSTNAME. That is nobody's wish
/// to be reached from outside, so it must not open a port to everybody.
pub(crate) fn listen_address(text: &str) -> Option<IpAddr> {
    let bare = text.trim().trim_start_matches('[').trim_end_matches(']');
    match bare.parse() {
        Ok(address) => Some(address),
        Err(_) => bare.eq_ignore_ascii_case("localhost").then_some(Ipv4Addr::LOCALHOST.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_an_object_of_json() {
        assert_eq!(json_object(r#"{"a": false}"#).unwrap()["a"], false);
        assert!(json_object("[1]").unwrap_err().starts_with("expected a JSON object"));
        assert!(json_object("{").unwrap_err().starts_with("is not JSON: EOF"));
    }

    #[test]
    fn memory_is_read_with_decimal_and_binary_units() {
        let cases = [
            ("4096", 4096),
            ("512MB", 512_000_000),
            ("512MiB", 512 << 20),
            ("1.5 GiB", 3 << 29),
            ("2g", 2 << 30),
            ("7KB", 7000),
            ("7kib", 7168),
        ];
        for (text, expected) in cases {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "GiB", "1 gallon", "-1", "0", "1e9", "99999999TiB", "1.2.3"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn seconds_may_have_fractions_and_end() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(seconds("90"), Ok(Duration::from_secs(90)));
        for text in ["", "-1", "NaN", "inf", "1e30", "5m"] {
            assert!(seconds(text).is_err(), "{text}");
        }
        assert!(seconds("0").is_ok() && positive_seconds("0").is_err());
    }

    #[test]
    fn a_host_name_that_is_no_address_opens_no_port_to_everybody() {
        assert_eq!(listen_address("127.0.0.1"), Some("127.0.0.1".parse().unwrap()));
        assert_eq!(listen_address("[::1]"), Some("::1".parse().unwrap()));
        assert_eq!(listen_address("localhost"), Some("127.0.0.1".parse().unwrap()));
        assert_eq!(listen_address("f00dcafe4711"), None);
    }

    #[test]
    fn a_route_is_a_path_and_no_pattern() {
        for text in ["/predict", "/", "/v1/endpoints/1/deployedModels/2:predict"] {
            assert_eq!(route(text).as_deref(), Ok(text));
        }
        for text in ["", "predict", "/a?b", "/{a}", "/*a", "/:a", "/a b", "/a#b"] {
            assert!(route(text).is_err(), "{text}");
        }
        assert!(header_text("1-nvidia-a10g").is_ok() && header_text("a\nb").is_err());
    }

    #[test]
    fn a_url_is_a_scheme_and_an_authority() {
        assert_eq!(http_url("http://h:1/").as_deref(), Ok("http://h:1"));
        for text in ["https://h", "h:1", "http://", "http://h/v1"] {
            assert!(http_url(text).is_err(), "{text}");
        }
    }
}
