//! The routes that generate, and `/info`.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use millstream_proto::WorkerInfo;
use serde_json::json;

use super::answer::{Clock, Plan, response, timing_headers};
use super::error::TgiError;
use super::request::{Form, GenerateRequest};
use super::stream::TgiEvents;
use crate::api::App;
use crate::api::best_of::best_first;
use crate::api::error::ApiError;
use crate::api::fields::Fields;
use crate::api::handlers::{DefaultTokens, Received, gather, json_answer, random_seed, streamed};
use crate::api::ignored::Ignored;
use crate::api::stream::EventStream;
use crate::generate::{Generation, Places, Prompt};
use crate::text::TextModel;

/// So many new tokens must fit where more are asked for; beyond, the context is the limit.
const CERTAIN_TOKENS: usize = 1024;

/// `POST /`.
pub(crate) async fn compat(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, TgiError> {
    app.receive_and_generate(request, Form::Compat).await
}

/// `POST /generate`.
pub(crate) async fn generate(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, TgiError> {
    app.receive_and_generate(request, Form::Object).await
}

/// `POST /generate_stream`.
pub(crate) async fn generate_stream(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, TgiError> {
    app.receive_and_generate(request, Form::Stream).await
}

/// `GET /info`: what is served, and within which limits.
pub(crate) async fn info(State(app): State<Arc<App>>) -> Result<Response, TgiError> {
    let state = app.generator.state();
    let Some(info) = state.info() else {
        return Err(ApiError::Loading(app.why_not_ready().unwrap_or_default()).into());
    };
    let limits = &app.limits;
    let max_total_tokens = app.max_model_len(info);
    Ok(Json(json!({
        "model_id": app.names[0],
        "model_sha": app.deployment.model_sha,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": limits.max_concurrent_requests,
        "max_best_of": limits.max_choices,
        "max_stop_sequences": limits.max_stop_sequences,
        "max_input_tokens": app.max_input_tokens(info),
        "max_total_tokens": max_total_tokens,
        "validation_workers": app.validation_workers,
        "max_client_batch_size": limits.max_client_batch_size,
        "router": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
        "sha": app.deployment.build_sha,
        "docker_label": null,
    }))
    .into_response())
}

impl App {
    async fn receive_and_generate(
        &self,
        request: Request,
        form: Form,
    ) -> Result<Response, TgiError> {
        let received = self.receive(request).await?;
        let fields = Fields::parse(&received.body)?;
        Ok(self.generate(received, fields, form).await?)
    }

    /// Answers a request of TGI's API; the fields are those of the body.
    pub(in crate::api) async fn generate(
        &self,
        received: Received,
        mut fields: Fields,
        form: Form,
    ) -> Result<Response, ApiError> {
        let Received { info, in_flight, arrived, .. } = received;
        let request = GenerateRequest::read(&mut fields, &self.rules(&info), form)?;
        let ignored = Ignored::of(&fields);
        let stream = request.options.stream;
        let places = self.admit("best_of", request.options.num_choices, 1)?;
        let (generation, plan) = self.start(&info, request, places).await?;
        let clock = Clock { arrived, submitted: Instant::now() };
        if stream {
            let num_characters = plan.num_characters;
            let events = TgiEvents::new(plan, self.text.clone());
            let events = EventStream::new(generation, events, self.keep_alive, in_flight);
            let mut response = streamed(events);
            self.compute_headers(response.headers_mut(), num_characters);
            return Ok(ignored.name_in(response));
        }
        let choices = best_first(gather(generation, plan.echoes()).await?);
        let answer = response(&self.text, &plan, &choices);
        let body = match form {
            Form::Compat => serde_json::to_vec(&[answer]),
            Form::Object | Form::Stream => serde_json::to_vec(&answer),
        };
        let mut response = json_answer(body.expect("an answer can be written to memory"));
        self.compute_headers(response.headers_mut(), plan.num_characters);
        if let Some(finish) = &choices[0].finish {
            timing_headers(response.headers_mut(), clock, &plan, finish);
        }
        Ok(ignored.name_in(response))
    }

    /// Encodes the prompt and hands it to the engine.
    pub(in crate::api) async fn start(
        &self,
        info: &WorkerInfo,
        request: GenerateRequest,
        places: Places,
    ) -> Result<(Generation, Plan), ApiError> {
        let GenerateRequest { inputs, mut options, truncate, .. } = request;
        let encode = move |text: &TextModel| (text.encode(&inputs, true), inputs);
        let (tokens, inputs) = self.encode(encode).await?;
        let mut tokens = tokens
            .map_err(|error| ApiError::field("inputs", format!("cannot be encoded: {error}")))?;
        if let Some(truncate) = truncate {
            tokens.drain(..tokens.len().saturating_sub(truncate));
        }
        let tokens: Arc<[u32]> = tokens.into();
        let room = (self.max_model_len(info) as usize).saturating_sub(tokens.len());
        if let Some(asked) = options.max_tokens.as_mut().filter(|_| room >= CERTAIN_TOKENS) {
            asked.count = asked.count.min(room as u32);
        }
        let max_tokens = self.fit(info, &options, DefaultTokens::Rest, ("inputs", tokens.len()))?;
        let seed = options.seed.unwrap_or_else(random_seed);
        let plan = Plan {
            num_characters: inputs.chars().count(),
            num_choices: options.num_choices as usize,
            echo: if request.return_full_text { inputs } else { String::new() },
            seed: (options.sampling.temperature > 0.0).then_some(seed),
            details: request.details,
            top_tokens: options.sampling.top_logprobs > 0,
            prompt: tokens.clone(),
        };
        let prompt = Prompt { tokens, max_tokens, num_shown_before: 0, seed };
        let generation = self.generation(info, options, vec![prompt]).await?;
        Ok((self.generator.submit(places, &generation)?, plan))
    }

    fn compute_headers(&self, headers: &mut HeaderMap, num_characters: usize) {
        let kind = self.deployment.compute_type.as_deref().unwrap_or("cpu");
        if let Ok(kind) = HeaderValue::from_str(kind) {
            headers.insert("x-compute-type", kind);
        }
        headers.insert("x-compute-characters", num_characters.into());
    }
}
