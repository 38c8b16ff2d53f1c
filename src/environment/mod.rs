//! `millstream env`: what a bug report needs to know about the build, the machine and the
//! variables that are set, and no secret.
//!
//! Nothing here fails: what a system does not tell is `null`, or "unknown" in the table.

mod machine;
mod variables;

use std::fmt::{self, Write as _};

use serde_json::{Map, Value};
use tracing::info;

use crate::args::EnvArgs;
use crate::hub::Settings;

/// The width of the names in the table.
const NAME_WIDTH: usize = 14;

/// Prints the report.
pub(crate) fn run(args: &EnvArgs) -> anyhow::Result<()> {
    let report = Report::new(None);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report.json())?);
    } else {
        print!("{report}");
    }
    Ok(())
}

/// Tells the report at the start of a server: in its log, or to who reads its output. `cache` is
/// what its command line says of HUGGINGFACE_HUB_CACHE.
pub(crate) fn tell(is_json: bool, cache: Option<&str>) {
    let report = Report::new(cache);
    if is_json {
        info!(environment = %report.json(), "environment");
    } else {
        print!("{report}");
    }
}

struct Report {
    rows: Vec<Row>,
    variables: Vec<(String, String)>,
}

/// One fact, for programs and for people.
struct Row {
    name: &'static str,
    value: Value,
    text: String,
}

impl Report {
    fn new(cache: Option<&str>) -> Report {
        let mut rows = build();
        rows.extend(machine::rows());
        let cache = Settings::from_env(cache).ok().map(|settings| settings.cache);
        rows.push(Row::text("hub_cache", cache.map(|path| path.display().to_string())));
        Report { rows, variables: variables::set() }
    }

    fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| (row.name.to_owned(), row.value.clone()));
        let mut object: Map<String, Value> = rows.collect();
        object.insert("variables".into(), self.variables.iter().cloned().collect());
        Value::Object(object)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Row { name, text, .. } in &self.rows {
            writeln!(f, "{:NAME_WIDTH$}  {text}", name.replace('_', " "))?;
        }
        let none = [("none".to_owned(), String::new())];
        let variables = if self.variables.is_empty() { &none[..] } else { &self.variables };
        let mut heading = "variables";
        for (name, value) in variables {
            let mut line = format!("{heading:NAME_WIDTH$}  {name}");
            if !value.is_empty() {
                write!(line, "={value}")?;
            }
            writeln!(f, "{line}")?;
            heading = "";
        }
        Ok(())
    }
}

impl Row {
    fn new(name: &'static str, value: Value, text: impl Into<String>) -> Row {
        Row { name, value, text: text.into() }
    }

    /// A fact that is a text, or not told.
    fn text(name: &'static str, value: Option<String>) -> Row {
        let json = value.clone().map_or(Value::Null, Value::String);
        Row::new(name, json, value.unwrap_or_else(|| "unknown".into()))
    }
}

fn build() -> Vec<Row> {
    let some = |text: &str| Some(text.to_owned());
    let features = env!("MILLSTREAM_CPU_FEATURES");
    vec![
        Row::text("version", some(env!("CARGO_PKG_VERSION"))),
        Row::text("commit", some(env!("MILLSTREAM_COMMIT"))),
        Row::text("target", some(env!("MILLSTREAM_TARGET"))),
        Row::text("profile", some(env!("MILLSTREAM_PROFILE"))),
        Row::text("compiler", some(env!("MILLSTREAM_RUSTC"))),
        Row::text("compiled_for", some(features)),
        Row::text("computes_with", some(millstream_backends::instruction_set())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table_is_in_the_json_too() {
        let report = Report::new(None);
        let (table, json) = (report.to_string(), report.json());
        for row in &report.rows {
            assert!(table.contains(&row.text), "{} is not in:\n{table}", row.name);
            assert_eq!(json[row.name], row.value);
        }
        assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
        assert!(json["variables"].is_object());
    }
}
