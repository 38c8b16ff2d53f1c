//! Generations on a scripted engine, without HTTP.

use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::*;
use crate::engine::{EngineHandle, FinishReason};
use crate::metrics::Metrics;
use crate::testing::{EOS, ScriptedEngine, event, logprobs, text_model, tokens};

const PATIENT: Duration = Duration::from_secs(3600);

fn start(max_sequences: usize, client_timeout: Duration) -> (Generator, ScriptedEngine) {
    let (handle, inbox) = EngineHandle::new(max_sequences);
    let metrics = Metrics::new().generation.clone();
    let (generator, sink) = Generator::new(handle, text_model(), metrics, client_timeout).unwrap();
    (generator, ScriptedEngine::new(inbox, sink))
}

fn request(stop: &[&str]) -> GenerationRequest {
    GenerationRequest {
        prompts: vec![Prompt {
            tokens: tokens("p").into(),
            max_tokens: 100,
            num_shown_before: 0,
            seed: 1,
        }],
        num_choices: 1,
        sampling: SamplingParams::default(),
        stop_token_ids: [EOS].into(),
        stop: stop.iter().map(|stop| (*stop).into()).collect(),
        include_stop: false,
        skip_special_tokens: true,
        shown_tokens: Arc::default(),
        cache_salt: None,
        prompt_logprobs: false,
        grammar: None,
        continues_prompt: false,
        streamed: true,
    }
}

fn submit(generator: &Generator, request: &GenerationRequest) -> Generation {
    let count = request.prompts.len() * request.num_choices as usize;
    generator.submit(generator.admit(count).unwrap(), request).unwrap()
}

/// Everything that the first choice says, and its end.
async fn read(generation: &mut Generation) -> (String, Vec<TokenEntry>, Finish) {
    let (mut text, mut entries, mut end) = (String::new(), Vec::new(), None);
    while let Some(news) = generation.next().await {
        text.push_str(&news[0].text);
        entries.append(&mut news[0].tokens);
        end = news[0].finish.take().or(end);
    }
    (text, entries, end.expect("a generation has an end"))
}

#[tokio::test]
async fn a_stop_string_ends_the_text_before_it_and_aborts_the_sequence() {
    // What is said, the stop strings, what is seen, how many tokens are counted.
    let cases: &[(&str, &[&str], &str, u32)] = &[
        ("one\nUser: two", &["\nUser:"], "one", 9),
        ("aab", &["ab", "zz"], "a", 3),
        ("stop", &["s"], "", 1),
        ("caf\u{e9}!!", &["\u{e9}"], "caf", 5),
    ];
    for (said, stop, seen, num_tokens) in cases {
        let (generator, mut engine) = start(1, PATIENT);
        let mut generation = submit(&generator, &request(stop));
        let (id, _) = engine.added().await;
        engine.say(id, said, None);
        assert_eq!(engine.aborted().await, id);
        let (text, _, finish) = read(&mut generation).await;
        assert_eq!((text.as_str(), finish.num_tokens), (*seen, *num_tokens), "{said:?}");
        let FinishKind::Stop(StopCause::Text(found)) = finish.kind else { panic!("{finish:?}") };
        assert!(stop.contains(&&*found), "{found:?}");
    }
}

#[tokio::test]
async fn the_last_token_leaves_together_with_the_end() {
    let (generator, mut engine) = start(1, PATIENT);
    let mut wanted = request(&[]);
    wanted.sampling.logprobs = true;
    let mut generation = submit(&generator, &wanted);
    let (id, _) = engine.added().await;
    let mut last = event(id, tokens("ab"), Some(FinishReason::Length));
    last.logprobs = tokens("ab").into_iter().map(|token| logprobs(token, 0)).collect();
    last.waited = Some(Duration::from_secs(2));
    engine.step(vec![last]);
    let (mut pieces, mut waited) = (Vec::new(), None);
    while let Some(news) = generation.next().await {
        let finish = news[0].finish.take();
        waited = finish.as_ref().map(|finish| finish.waited).or(waited);
        let lens = news[0].tokens.iter().map(|entry| entry.text_len).sum::<usize>();
        pieces.push((news[0].text.clone(), lens, finish.map(|finish| finish.kind)));
    }
    // The first may have been taken before the second came.
    let (text, len, kind) = pieces.pop().unwrap();
    assert!(text.ends_with('b') && len == text.len(), "{text}");
    assert_eq!((kind, waited), (Some(FinishKind::Length), Some(Duration::from_secs(2))));
}

#[tokio::test]
async fn a_stop_token_is_told_with_its_log_probability() {
    let (generator, mut engine) = start(1, PATIENT);
    let mut generation = submit(&generator, &request(&[]));
    let (id, _) = engine.added().await;
    let mut last = event(id, vec![EOS], Some(FinishReason::StopToken(EOS)));
    last.logprobs = vec![logprobs(EOS, 2)];
    engine.step(vec![last]);
    let (text, entries, finish) = read(&mut generation).await;
    assert_eq!((text.as_str(), entries.len()), ("", 0));
    let logprobs = Some(logprobs(EOS, 2));
    assert_eq!(finish.kind, FinishKind::Stop(StopCause::Token { token: EOS, logprobs }));
}

#[tokio::test]
async fn what_a_stop_string_held_back_is_shown_at_the_end() {
    let (generator, mut engine) = start(1, PATIENT);
    let mut generation = submit(&generator, &request(&["abc"]));
    let (id, _) = engine.added().await;
    engine.say(id, "xxab", Some(FinishReason::StopToken(EOS)));
    let (text, _, finish) = read(&mut generation).await;
    assert_eq!(text, "xxab");
    let kind = FinishKind::Stop(StopCause::Token { token: EOS, logprobs: None });
    let waited = Duration::ZERO;
    assert_eq!(finish, Finish { kind, num_tokens: 5, cached_tokens: 0, waited });
}

#[tokio::test]
async fn stop_strings_count_only_after_min_tokens() {
    let (generator, mut engine) = start(1, PATIENT);
    let mut wanted = request(&["."]);
    wanted.sampling.min_tokens = 3;
    let mut generation = submit(&generator, &wanted);
    let (id, _) = engine.added().await;
    engine.say(id, "a.b.c", None);
    assert_eq!(engine.aborted().await, id);
    assert_eq!(read(&mut generation).await.0, "a.b");
}

#[tokio::test]
async fn a_tokens_entry_leaves_with_the_text_it_belongs_to() {
    let (generator, mut engine) = start(1, PATIENT);
    let mut wanted = request(&["END"]);
    wanted.sampling.logprobs = true;
    let mut generation = submit(&generator, &wanted);
    let (id, _) = engine.added().await;
    let said = "\u{20ac} EN\u{e9}END";
    for token in tokens(said) {
        let mut event = event(id, vec![token], None);
        event.logprobs = vec![logprobs(token, 0)];
        engine.step(vec![event]);
    }
    engine.aborted().await;
    let (mut text, mut entries) = (String::new(), Vec::new());
    while let Some(news) = generation.next().await {
        let choice = &news[0];
        let (mut from, mut token) = (0, 0);
        for piece in &choice.pieces {
            let bytes: Vec<u8> =
                choice.tokens[token..piece.tokens_end].iter().map(|e| e.token as u8).collect();
            assert_eq!(bytes, &choice.text.as_bytes()[from..piece.text_end]);
            (from, token) = (piece.text_end, piece.tokens_end);
        }
        text.push_str(&choice.text);
        entries.extend(choice.tokens.iter().map(|entry| entry.text_offset));
    }
    assert_eq!(text, "\u{20ac} EN\u{e9}");
    assert_eq!(entries, [0, 0, 0, 1, 2, 3, 4, 4]);
}

#[tokio::test]
async fn a_dropped_generation_is_aborted_and_a_dropped_place_is_free() {
    let (generator, mut engine) = start(2, PATIENT);
    let mut both = generator.admit(2).unwrap();
    let one = both.split(1);
    drop(both);
    assert!(generator.admit(2).is_err() && generator.admit(1).is_ok());
    drop(one);
    let mut wanted = request(&[]);
    wanted.num_choices = 2;
    let generation = submit(&generator, &wanted);
    assert!(generator.admit(1).is_err());
    let ids = [engine.added().await.0, engine.added().await.0];
    engine.say(ids[0], "x", None);
    drop(generation);
    let mut aborted = [engine.aborted().await, engine.aborted().await];
    aborted.sort();
    assert_eq!(aborted, ids);
    assert!(generator.admit(2).is_ok());
}

#[tokio::test]
async fn a_reader_that_takes_nothing_delays_nobody_and_misses_nothing() {
    let (generator, mut engine) = start(2, PATIENT);
    let mut slow = submit(&generator, &request(&[]));
    let mut fast = submit(&generator, &request(&[]));
    let (slow_id, fast_id) = (engine.added().await.0, engine.added().await.0);
    let mut said = String::new();
    for i in 0..500 {
        let byte = b'a' + (i % 26) as u8;
        said.push(char::from(byte));
        let token = vec![u32::from(byte)];
        engine.step(vec![event(slow_id, token.clone(), None), event(fast_id, token, None)]);
        let news = fast.next().await.unwrap();
        assert_eq!((news[0].text.len(), news[0].pieces.len()), (1, 1));
    }
    let finish = Some(FinishReason::Length);
    engine.step(vec![event(slow_id, vec![], finish.clone()), event(fast_id, vec![], finish)]);
    while fast.next().await.is_some() {}
    let news = slow.next().await.unwrap();
    assert_eq!(news[0].text, said);
    assert!(news[0].pieces.len() < 100 && news[0].finish.is_some());
    assert!(slow.next().await.is_none());
}

#[tokio::test]
async fn a_reader_that_takes_nothing_for_too_long_is_left() {
    let (generator, mut engine) = start(1, Duration::from_millis(1));
    let mut generation = submit(&generator, &request(&[]));
    let (id, _) = engine.added().await;
    engine.step(vec![event(id, tokens("unread"), None)]);
    assert_eq!(engine.aborted().await, id);
    let (text, _, finish) = read(&mut generation).await;
    assert_eq!(text, "unread");
    assert!(matches!(finish.kind, FinishKind::Interrupted(_)), "{finish:?}");
}

#[tokio::test]
async fn every_generation_ends_when_the_engine_is_gone() {
    let (generator, mut engine) = start(1, PATIENT);
    let mut generation = submit(&generator, &request(&[]));
    engine.added().await;
    drop(engine);
    let (_, _, finish) = read(&mut generation).await;
    assert_eq!(finish.kind, FinishKind::Failed("the engine has stopped".into()));
}

#[tokio::test]
async fn the_engine_can_end_once_the_last_generator_and_generation_are_gone() {
    let (generator, mut engine) = start(1, PATIENT);
    let mut generation = submit(&generator, &request(&[]));
    let (id, _) = engine.added().await;
    drop(generator);
    engine.say(id, "still served", Some(FinishReason::Length));
    assert_eq!(read(&mut generation).await.0, "still served");
    drop(generation);
    assert!(engine.is_closed().await);
}

#[test]
fn a_reader_is_told_to_wait_without_being_blocked() {
    let (generator, _engine) = start(1, PATIENT);
    let mut generation = submit(&generator, &request(&[]));
    let mut context = Context::from_waker(Waker::noop());
    assert!(matches!(generation.poll_next(&mut context), Poll::Pending));
}
