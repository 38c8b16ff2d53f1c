//! JSON schemas, from what a client sends to the text that a model writes.
//!
//! Some 230 schemas lie in `tests/fixtures/schemas`, by theme. For each one that is followed:
//! - a model with random weights, which has no mind of its own, writes documents under it, many
//!   sequences in each step of a worker; every one that is finished is valid for an independent
//!   validator (the crate `jsonschema`, formats included);
//! - documents that are known to be valid are accepted token by token, in three ways of writing;
//! - documents with one violation are not.
//!
//! Those that are not followed are refused with a reason that names the keyword: see
//! `refused.json` there. What llguidance would accept and not enforce is listed with
//! `router/src/text/constraint/schema`. `--nocapture` prints the count of each file:
//!
//! | | |
//! |---|---|
//! | followed | 190 schemas; of 12 texts for each, 96 % end within 400 tokens, and all of these are valid |
//! | refused | 43: `uniqueItems`, `contains`, `not`, `if`, `dependent...`, `propertyNames`, `unevaluated...`, `$dynamicRef`, references to other documents, `oneOf` that may overlap, unknown formats, look-around in patterns, numbers beyond 2^53, schemas that nothing satisfies, ... |
//! | wrong | none |
//!
//! Two things of JSON itself: a number may be written in digits that a float of 64 bits does not
//! hold (`1e999`), which a reader may refuse; and llguidance wants some numbers with their trailing
//! zeros (2.20 where the maximum is 2.25).

mod data;
mod rig;

use std::collections::BTreeMap;

use millstream_proto::Grammar;
use millstream_router::text::{Constraint, TextModel};
use serde_json::Value;

use data::Case;
use rig::{Request, Worker};

/// Texts that are generated for each schema.
const SEEDS: u64 = 12;
/// Share of them that must end by themselves.
const FINISHED: f64 = 0.8;
/// What the tokens that close a string, an object, a list or the text gain, by seed: random texts
/// would never end, and those that end at once would prove little.
const CLOSING: [f32; 3] = [2.0, 4.0, 6.0];

/// The cases that are followed, with their grammars.
fn followed(text: &TextModel) -> Vec<(Case, Grammar)> {
    let cases = data::cases().into_iter().filter(|case| case.refused.is_none());
    let grammar = |case: Case| {
        let grammar = accept(text, &case).unwrap_or_else(|why| panic!("{}: {why}", case.name));
        (case, grammar)
    };
    cases.map(grammar).collect()
}

fn accept(text: &TextModel, case: &Case) -> Result<Grammar, String> {
    text.accept(&Constraint::json_schema(&case.schema)?)
}

fn validator(case: &Case) -> jsonschema::Validator {
    let options = jsonschema::options().should_validate_formats(true);
    options.build(&case.schema).unwrap_or_else(|error| panic!("{}: {error}", case.name))
}

/// Panics with all that went wrong at once.
fn check(problems: &[String]) {
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

/// What has been generated for the schemas of a file.
#[derive(Default)]
struct Count {
    schemas: usize,
    texts: usize,
    finished: usize,
    tokens: usize,
}

#[test]
fn what_is_generated_satisfies_its_schema() {
    let text = rig::text_model();
    let cases = followed(&text);
    let mut closing = vec![rig::EOS];
    for mark in ["\"", "}", "]"] {
        closing.extend(text.encode(mark, false).unwrap());
    }
    let request = |grammar: &Grammar, seed: u64| {
        let gain = CLOSING[seed as usize % CLOSING.len()];
        let bias = closing.iter().map(|token| (*token, gain)).collect();
        Request { grammar: grammar.clone(), seed, bias }
    };
    let requests: Vec<Request> = cases
        .iter()
        .flat_map(|(_, grammar)| (0..SEEDS).map(|seed| request(grammar, seed)))
        .collect();
    let outputs = Worker::new().generate(&requests);

    let mut problems = Vec::new();
    let mut counts: BTreeMap<&str, Count> = BTreeMap::new();
    for ((case, _), outputs) in cases.iter().zip(outputs.chunks(SEEDS as usize)) {
        let validator = validator(case);
        let count = counts.entry(&case.file).or_default();
        count.schemas += 1;
        for output in outputs {
            let bytes: Vec<u8> =
                output.tokens.iter().flat_map(|token| text.token_text(*token).1).collect();
            let wrong = match (&output.error, output.finished) {
                (Some(error), _) => Some(error.clone()),
                (None, true) => why_invalid(&validator, &bytes),
                (None, false) => None,
            };
            let written = String::from_utf8_lossy(&bytes);
            problems.extend(wrong.map(|wrong| format!("{}: {wrong}: {written}", case.name)));
            count.texts += 1;
            count.finished += usize::from(output.finished);
            count.tokens += output.tokens.len();
        }
    }
    println!("{:14} {:>8} {:>6} {:>9} {:>8}", "file", "schemas", "texts", "finished", "tokens");
    for (file, Count { schemas, texts, finished, tokens }) in &counts {
        println!("{file:14} {schemas:8} {texts:6} {finished:9} {tokens:8}");
    }
    check(&problems);
    let finished: usize = counts.values().map(|count| count.finished).sum();
    let share = finished as f64 / outputs.len() as f64;
    assert!(share >= FINISHED, "{share:.2} of the texts are finished");
}

/// Why a text is not a document of a schema.
fn why_invalid(validator: &jsonschema::Validator, text: &[u8]) -> Option<String> {
    match serde_json::from_slice::<Value>(text) {
        // JSON, which says nothing of the size of numbers.
        Err(error) if error.to_string().starts_with("number out of range") => None,
        Err(error) => Some(error.to_string()),
        Ok(document) => validator.validate(&document).err().map(|error| error.to_string()),
    }
}

#[test]
fn documents_are_accepted_exactly_if_they_satisfy_their_schema() {
    let text = rig::text_model();
    let worker = Worker::new();
    let mut problems = Vec::new();
    for (case, grammar) in followed(&text) {
        let validator = validator(&case);
        let mut expect = |written: &str, is_valid: bool| {
            let document = serde_json::from_str(written).unwrap();
            let known = if is_valid { "valid" } else { "invalid" };
            if validator.is_valid(&document) != is_valid {
                problems.push(format!("{}: {written} is not {known}", case.name));
            }
            let refusal = worker.refusal(&grammar, &text.encode(written, false).unwrap());
            if refusal.is_none() != is_valid {
                let why = refusal.unwrap_or_else(|| "accepted".into());
                problems.push(format!("{}: {written} is {known}: {why}", case.name));
            }
        };
        for (documents, texts, is_valid) in
            [(&case.valid, &case.valid_texts, true), (&case.invalid, &case.invalid_texts, false)]
        {
            let written = documents.iter().flat_map(data::writings);
            written.chain(texts.iter().cloned()).for_each(|written| expect(&written, is_valid));
        }
    }
    check(&problems);
}

#[test]
fn what_cannot_be_followed_is_refused_with_a_reason() {
    let text = rig::text_model();
    let mut problems = Vec::new();
    for case in data::cases() {
        let Some(part) = &case.refused else { continue };
        match accept(&text, &case) {
            Err(why) if why.contains(part) => {}
            Err(why) => problems.push(format!("{}: {part} is not in: {why}", case.name)),
            Ok(_) => problems.push(format!("{}: accepted", case.name)),
        }
    }
    check(&problems);
}
