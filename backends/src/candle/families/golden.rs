//! What released configurations read as, against dumps that a person has looked at.
//!
//! `tests/fixtures/configs/*.json` are the configurations, `tests/fixtures/specs/*.txt` the dumps.
//! After a change that is meant, `MILLSTREAM_BLESS=1 cargo test -p millstream-backends golden`
//! writes them anew, and the diff says what changed for whom.

use super::super::spec::{LayerSpec, ModelSpec};
use super::parse;
use std::fmt::Write;
use std::path::Path;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

/// A spec, with layers that are alike told once.
fn dump(spec: &ModelSpec) -> String {
    let mut distinct: Vec<(&LayerSpec, Vec<String>)> = Vec::new();
    for (index, layer) in spec.layers.iter().enumerate() {
        match distinct.iter_mut().find(|(known, _)| *known == layer) {
            Some((_, indices)) => indices.push(index.to_string()),
            None => distinct.push((layer, vec![index.to_string()])),
        }
    }
    let rest = ModelSpec { layers: Vec::new(), ..spec.clone() };
    let mut text = format!("{rest:#?}\n");
    for (layer, indices) in distinct {
        writeln!(text, "\nlayers {}: {layer:#?}", indices.join(" ")).expect("strings grow");
    }
    text
}

#[test]
fn released_configurations_read_as_they_did() {
    let configs = std::fs::read_dir(Path::new(FIXTURES).join("configs")).expect("the fixtures");
    let paths = configs.map(|entry| entry.expect("the fixtures").path());
    let mut paths: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "json")).collect();
    paths.sort();
    assert!(paths.len() > 20, "the fixtures are there");
    let mut changed = Vec::new();
    for path in paths {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let config = std::fs::read(&path).expect("a fixture");
        let got = match parse(&config) {
            Ok(spec) => dump(&spec),
            Err(error) => format!("refused: {error}\n"),
        };
        let golden = Path::new(FIXTURES).join("specs").join(format!("{name}.txt"));
        if std::env::var_os("MILLSTREAM_BLESS").is_some() {
            std::fs::write(&golden, &got).expect("the dump is written");
        }
        if std::fs::read_to_string(&golden).ok().as_ref() != Some(&got) {
            changed.push(format!("{name}:\n{got}"));
        }
    }
    assert!(changed.is_empty(), "{}", changed.join("\n"));
}
