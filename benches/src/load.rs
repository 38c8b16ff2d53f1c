//! The closed loop: a number of streams, each of which sends its next request when the last ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::client::{Answer, Client, Target};
use crate::prompts;
use crate::report::Report;

/// What is asked of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Endpoint {
    /// `/v1/chat/completions`, a message of random words.
    Chat,
    /// `/v1/completions`, a prompt of random token ids.
    #[default]
    Completions,
}

/// A load to put on a server.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Load {
    /// `http://host:port`
    pub url: String,
    /// Sent as `Authorization: Bearer`.
    #[serde(skip)]
    pub api_key: Option<String>,
    /// The model to ask for; the first that the server lists, if not given.
    pub model: Option<String>,
    /// What is asked.
    pub endpoint: Endpoint,
    /// Streams at the same time.
    pub concurrency: u32,
    /// Requests in all.
    pub requests: u32,
    /// Length of a prompt, in tokens (completions) or words (chat).
    pub prompt_tokens: u32,
    /// Tokens that each request generates.
    pub output_tokens: u32,
    /// Token ids of prompts are below this.
    pub vocab_size: u32,
    /// Equal seeds send equal prompts.
    pub seed: u64,
}

/// What one stream, and then all of them, measured.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) answers: Vec<Answer>,
    pub(crate) gaps_us: Vec<u32>,
    pub(crate) num_errors: u64,
    pub(crate) first_error: Option<String>,
}

/// Puts the load on the server and reports what its clients saw.
///
/// Fails where nothing could be measured: the server cannot be reached or lists no model. Requests
/// that fail are counted.
pub async fn run(mut load: Load) -> anyhow::Result<Report> {
    let target = Target::new(&load.url, load.api_key.clone())?;
    let model = match load.model.take() {
        Some(model) => model,
        None => first_model(target.clone()).await?,
    };
    load.model = Some(model.clone());

    let load = Arc::new(load);
    let next_request = Arc::new(AtomicU32::new(0));
    let mut streams = JoinSet::new();
    let begin = Instant::now();
    for _ in 0..load.concurrency.min(load.requests) {
        let client = Client::new(target.clone());
        streams.spawn(one_stream(client, load.clone(), model.clone(), next_request.clone()));
    }
    let mut all = Measured::default();
    while let Some(measured) = streams.join_next().await {
        let measured = measured.context("a stream ended early")?;
        all.answers.extend(measured.answers);
        all.gaps_us.extend(measured.gaps_us);
        all.num_errors += measured.num_errors;
        all.first_error = all.first_error.or(measured.first_error);
    }
    let duration = begin.elapsed();
    Ok(Report::new(&load, all, duration))
}

async fn first_model(target: Target) -> anyhow::Result<String> {
    let models = Client::new(target).models().await?;
    let Some(model) = models.into_iter().next() else { bail!("the server lists no model") };
    Ok(model)
}

async fn one_stream(
    mut client: Client,
    load: Arc<Load>,
    model: String,
    next_request: Arc<AtomicU32>,
) -> Measured {
    let mut measured = Measured::default();
    let path = prompts::path(load.endpoint);
    loop {
        let index = next_request.fetch_add(1, Ordering::Relaxed);
        if index >= load.requests {
            return measured;
        }
        let body = prompts::body(&load, &model, index);
        match client.stream(path, body, &mut measured.gaps_us).await {
            Ok(answer) => measured.answers.push(answer),
            Err(error) => {
                measured.num_errors += 1;
                measured.first_error.get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }
}
