//! The two routes that generate: from a body to an answer.
//!
//! In this order, each step refusing as early as it can: content type, shutdown, body, readiness,
//! the limit at the door, the fields, a place for every choice, encoding, context length.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use millstream_proto::{Grammar, WorkerInfo};
use tracing::error;
use uuid::Uuid;

use super::App;
use super::answer::AnswerForm;
use super::best_of::best_of_each;
use super::chat::ChatRequest;
use super::chunks::{ChunkWriter, Envelope, Shape, TokenIds, Usage, WholeChoice, finish_reason};
use super::completions::{CompletionRequest, EncodedPrompt};
use super::constraints::Asked;
use super::drain::InFlight;
use super::error::{ApiError, Overloaded};
use super::fields::{Fields, quoted};
use super::ignored::Ignored;
use super::options::Options;
use super::stream::{EventStream, OpenAiEvents, StreamPlan, WriteEvents, failure};
use super::unix_time;
use crate::generate::{Generation, GenerationRequest, Places, Prompt};
use crate::text::{Constraint, PoolError, TextModel};

/// Bytes beyond the limit that are read, and thrown away, before a body is refused.
const MAX_DISCARDED: usize = 32 << 20;

/// A request whose body has arrived, while the server can take it.
pub(super) struct Received {
    pub(super) body: Bytes,
    pub(super) info: Arc<WorkerInfo>,
    pub(super) in_flight: InFlight,
    /// When its head had arrived.
    pub(super) arrived: Instant,
}

/// Tokens that are generated where a request does not say.
#[derive(Clone, Copy, Debug)]
pub(super) enum DefaultTokens {
    /// So many, if there is room for them.
    Count(u32),
    /// The checkpoint's number, or what is left of the context.
    Recommended,
    /// What is left of the context.
    Rest,
}

/// Where the prompts of a shape come from, and its defaults.
struct Encoded {
    shape: Shape,
    /// The field that an error about the prompt names.
    field: &'static str,
    prompts: Vec<EncodedPrompt>,
    /// Choices per prompt that are returned, of those that are generated.
    num_returned: u32,
    /// How the answers are read; `None` where all text is content.
    form: Option<AnswerForm>,
}

pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let received = app.receive(request).await?;
    let fields = Fields::parse(&received.body)?;
    app.chat(received, fields).await
}

pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let received = app.receive(request).await?;
    let fields = Fields::parse(&received.body)?;
    app.completions(received, fields).await
}

impl App {
    /// Answers a chat; the fields are those of the body.
    pub(super) async fn chat(
        &self,
        received: Received,
        mut fields: Fields,
    ) -> Result<Response, ApiError> {
        let ChatRequest { mut options, conversation, tools } =
            ChatRequest::read(&mut fields, &self.rules(&received.info))?;
        let ignored = Ignored::of(&fields);
        let places = self.admit("n", options.num_choices, 1)?;
        let (tokens, opening) = self.encode(move |text| conversation.encode(text)).await??;
        let form = tools.prepare(&self.text, opening, &mut options.constraint);
        let prompts = vec![EncodedPrompt { tokens, echo: String::new() }];
        let num_returned = options.num_choices;
        let (shape, field) = (Shape::Chat, "messages");
        let encoded = Encoded { shape, field, prompts, num_returned, form };
        Ok(ignored.name_in(self.answer(received, options, places, encoded).await?))
    }

    /// Answers a plain completion; the fields are those of the body.
    pub(super) async fn completions(
        &self,
        received: Received,
        mut fields: Fields,
    ) -> Result<Response, ApiError> {
        let CompletionRequest { options, prompts, echo, num_returned } =
            CompletionRequest::read(&mut fields, &self.rules(&received.info))?;
        let ignored = Ignored::of(&fields);
        let field = if options.num_choices == num_returned { "n" } else { "best_of" };
        let places = self.admit(field, options.num_choices, prompts.len())?;
        let prompts = self.encode(move |text| prompts.encode(text, echo)).await??;
        let (shape, field) = (Shape::Completion, "prompt");
        let encoded = Encoded { shape, field, prompts, num_returned, form: None };
        Ok(ignored.name_in(self.answer(received, options, places, encoded).await?))
    }

    /// Takes in a request for a generation.
    pub(super) async fn receive(&self, request: Request) -> Result<Received, ApiError> {
        let received = self.receive_any(request).await?;
        // The exact check is `admit`; this one spares the reading of what cannot be admitted.
        let (taken, limit) = self.generator.engine().load();
        if taken >= limit {
            return Err(Overloaded { limit }.into());
        }
        Ok(received)
    }

    /// Takes in a request for something that the engine has no part in.
    pub(super) async fn receive_any(&self, request: Request) -> Result<Received, ApiError> {
        let arrived = Instant::now();
        let kind = request.headers().get(header::CONTENT_TYPE);
        check_content_type(kind)?;
        let in_flight = self.drain.enter().ok_or(ApiError::Draining)?;
        let body = self.read_body(request.into_body()).await?;
        let state = self.generator.state();
        let info = match state.info() {
            Some(info) => info.clone(),
            None => return Err(ApiError::Loading(self.why_not_ready().unwrap_or_default())),
        };
        Ok(Received { body, info, in_flight, arrived })
    }

    async fn read_body(&self, body: Body) -> Result<Bytes, ApiError> {
        let body = collect(body, self.limits.payload_limit);
        match tokio::time::timeout(self.client_timeout, body).await {
            Err(_) => Err(ApiError::BodyTimeout { seconds: self.client_timeout.as_secs() }),
            Ok(body) => body,
        }
    }

    /// Takes a place for every choice of every prompt; `field` says how many choices.
    pub(super) fn admit(
        &self,
        field: &'static str,
        num_choices: u32,
        num_prompts: usize,
    ) -> Result<Places, ApiError> {
        let (count, limit) =
            (num_choices as usize * num_prompts, self.limits.max_concurrent_requests);
        if count > limit {
            let rule = format!(
                "({num_choices}) times the number of prompts ({num_prompts}) must not exceed \
                 {limit}"
            );
            return Err(ApiError::field(field, rule));
        }
        Ok(self.generator.admit(count)?)
    }

    /// Renders or encodes, away from the threads of connections.
    pub(super) async fn encode<T: Send + 'static>(
        &self,
        task: impl FnOnce(&TextModel) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        self.encoders.run(task).await.map_err(|error| match error {
            PoolError::Closed => ApiError::Draining,
            PoolError::Panicked(message) => {
                error!(message, "encoding panicked");
                ApiError::Internal
            }
        })
    }

    /// Checks the lengths, starts the generation, and answers whole or as a stream.
    async fn answer(
        &self,
        received: Received,
        mut options: Options,
        places: Places,
        encoded: Encoded,
    ) -> Result<Response, ApiError> {
        let Received { info, in_flight, .. } = received;
        let Encoded { shape, field, prompts, num_returned, form } = encoded;
        let mut echoes = Vec::new();
        let mut usage = Usage::default();
        let mut fitting = Vec::with_capacity(prompts.len());
        let default = match shape {
            Shape::Chat => DefaultTokens::Recommended,
            Shape::Completion => DefaultTokens::Count(CompletionRequest::DEFAULT_MAX_TOKENS),
        };
        for EncodedPrompt { tokens, echo } in prompts {
            let max_tokens = self.fit(&info, &options, default, (field, tokens.len()))?;
            usage.prompt_tokens += tokens.len();
            let (tokens, num_shown_before) = (tokens.into(), echo.chars().count());
            echoes.extend((0..options.num_choices).map(|_| echo.clone()));
            let seed = options.seed.unwrap_or_else(random_seed);
            fitting.push(Prompt { tokens, max_tokens, num_shown_before, seed });
        }
        let prefix = if shape == Shape::Chat { "chatcmpl" } else { "cmpl" };
        let envelope = Envelope {
            shape,
            id: format!("{prefix}-{}", Uuid::new_v4().simple()),
            created: unix_time(),
            model: options.model.clone(),
            fingerprint: fingerprint(&info),
        };
        let (stream, include_usage) = (options.stream, options.include_usage);
        let num_choices = options.num_choices as usize;
        let logprobs = options.sampling.logprobs.then_some(options.sampling.top_logprobs > 0);
        let token_ids = options.return_token_ids.then(|| TokenIds {
            prompts: fitting.iter().map(|prompt| prompt.tokens.clone()).collect(),
            num_choices: num_returned as usize,
        });
        // The best are found by them, and tokens are told with them.
        options.sampling.logprobs |= num_returned < options.num_choices || token_ids.is_some();
        let own_stops = options.stop_token_ids.clone();
        let mut request = self.generation(&info, options, fitting).await?;
        request.continues_prompt = shape == Shape::Completion;
        request.shown_tokens = form.as_ref().map(|form| form.markers.clone()).unwrap_or_default();
        let generation = self.generator.submit(places, &request)?;
        let writer = if stream {
            ChunkWriter::for_stream(&envelope, self.text.clone(), include_usage)
        } else {
            ChunkWriter::for_body(&envelope, self.text.clone())
        };
        let writer = writer.with_stop_token_ids(own_stops).with_token_ids(token_ids);
        let writer = match logprobs {
            Some(top) => writer.with_logprobs(top),
            None => writer,
        };
        let answers = form.iter().flat_map(|form| echoes.iter().map(|_| form.begin())).collect();
        let plan = StreamPlan { writer, usage, include_usage, num_choices, echoes, answers };
        if stream {
            let events = OpenAiEvents::new(plan);
            return Ok(streamed(EventStream::new(generation, events, self.keep_alive, in_flight)));
        }
        let response = whole(generation, plan, num_returned as usize).await;
        drop(in_flight);
        response
    }

    /// The grammar of a constraint. One that cannot be followed is left out if it is not needed.
    async fn accept(
        &self,
        Asked { field, constraint, is_needed }: Asked,
        info: &WorkerInfo,
        stop_token_ids: &[u32],
    ) -> Result<Option<Arc<Grammar>>, ApiError> {
        match self.grammar(field, constraint, info, stop_token_ids).await {
            Err(_) if !is_needed => Ok(None),
            accepted => accepted.map(Some),
        }
    }

    async fn grammar(
        &self,
        field: &'static str,
        constraint: Constraint,
        info: &WorkerInfo,
        stop_token_ids: &[u32],
    ) -> Result<Arc<Grammar>, ApiError> {
        if !info.no_grammars.is_empty() {
            let rule = format!("cannot be followed: {}", info.no_grammars);
            return Err(ApiError::field(field, rule));
        }
        if stop_token_ids.is_empty() {
            let rule = "cannot be followed: this model has no token that ends a text";
            return Err(ApiError::field(field, rule));
        }
        let accepted = self.encode(move |text| text.accept(&constraint)).await?;
        accepted.map(Arc::new).map_err(|reason| ApiError::field(field, reason))
    }

    /// What the engine is asked for: a continuation of each prompt. A constraint that cannot be
    /// followed is refused.
    pub(super) async fn generation(
        &self,
        info: &WorkerInfo,
        options: Options,
        prompts: Vec<Prompt>,
    ) -> Result<GenerationRequest, ApiError> {
        let stop_token_ids = self.stop_token_ids(info, &options);
        // Who wants no end wants no grammar that would need one.
        let asked = options.constraint.filter(|asked| asked.is_needed || !options.ignore_eos);
        let grammar = match asked {
            Some(asked) => self.accept(asked, info, &stop_token_ids).await?,
            None => None,
        };
        Ok(GenerationRequest {
            prompts,
            num_choices: options.num_choices,
            stop_token_ids,
            sampling: options.sampling,
            stop: options.stop,
            include_stop: options.include_stop,
            skip_special_tokens: options.skip_special_tokens,
            shown_tokens: Arc::default(),
            continues_prompt: true,
            cache_salt: options.cache_salt,
            prompt_logprobs: options.prompt_logprobs,
            grammar,
            streamed: options.stream,
        })
    }

    /// The tokens that may be generated after a prompt, of which the field and the length are
    /// given.
    pub(super) fn fit(
        &self,
        info: &WorkerInfo,
        options: &Options,
        default: DefaultTokens,
        (field, num_prompt): (&'static str, usize),
    ) -> Result<u32, ApiError> {
        let context = self.max_model_len(info) as usize;
        let max_input = self.max_input_tokens(info);
        if num_prompt == 0 {
            return Err(ApiError::field(field, "must have at least one token, and has none"));
        }
        if num_prompt > max_input {
            let message = format!(
                "{field} has {num_prompt} tokens, more than the {max_input} that a prompt may \
                 have; this model's maximum context length is {context} tokens"
            );
            return Err(ApiError::ContextLength { param: field, message });
        }
        let available = (context - num_prompt) as u32;
        let count = match options.max_tokens {
            Some(asked) if asked.count > available => {
                let message = format!(
                    "{} ({}) exceeds the context left after the prompt ({available}); this \
                     model's maximum context length is {context} tokens, and the prompt has \
                     {num_prompt}",
                    asked.field, asked.count
                );
                return Err(ApiError::ContextLength { param: asked.field, message });
            }
            Some(asked) => asked.count,
            None => match default {
                DefaultTokens::Count(count) => count.min(available),
                DefaultTokens::Recommended => {
                    // The authors' number is a default: it must not refuse what a request asks for.
                    let recommended = self.text.generation_defaults().max_new_tokens;
                    let min_tokens = options.sampling.min_tokens;
                    recommended.map_or(available, |count| available.min(count.max(min_tokens)))
                }
                DefaultTokens::Rest => available,
            },
        };
        let min_tokens = options.sampling.min_tokens;
        if min_tokens > count {
            let rule = format!("({min_tokens}) exceeds the tokens to generate ({count})");
            return Err(ApiError::field("min_tokens", rule));
        }
        Ok(count)
    }

    /// What ends a text without being shown.
    fn stop_token_ids(&self, info: &WorkerInfo, options: &Options) -> Arc<[u32]> {
        let mut ids = options.stop_token_ids.clone();
        if !options.ignore_eos {
            ids.extend_from_slice(&info.eos_token_ids);
            ids.extend_from_slice(&self.text.generation_defaults().eos_token_ids);
        }
        ids.sort_unstable();
        ids.dedup();
        ids.into()
    }
}

/// The bytes of a body, at most `limit`.
async fn collect(mut body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut kept = BytesMut::new();
    let mut num_read = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| ApiError::BodyLost)?.into_data() else { continue };
        num_read += data.len();
        if num_read <= limit {
            kept.extend_from_slice(&data);
        } else if num_read > limit.saturating_add(MAX_DISCARDED) {
            break;
        } else {
            // A client that is cut off while it sends sees a broken connection, not our answer.
            kept.clear();
        }
    }
    if num_read > limit { Err(ApiError::BodyTooLarge { limit }) } else { Ok(kept.freeze()) }
}

fn check_content_type(kind: Option<&HeaderValue>) -> Result<(), ApiError> {
    let Some(kind) = kind else { return Err(ApiError::ContentType("absent".into())) };
    let kind = String::from_utf8_lossy(kind.as_bytes());
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json = essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"));
    if is_json { Ok(()) } else { Err(ApiError::ContentType(quoted(&kind))) }
}

/// Shows which model and build answered, without showing where it lies.
fn fingerprint(info: &WorkerInfo) -> String {
    let digits = info.fingerprint.chars().filter(char::is_ascii_alphanumeric).take(10);
    format!("fp_{}", digits.collect::<String>())
}

pub(super) fn random_seed() -> u64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    // Some bits of either half are fixed, and not the same ones after the rotation.
    high ^ low.rotate_left(32)
}

pub(super) fn streamed<W: WriteEvents>(events: EventStream<W>) -> Response {
    let mut response = Response::new(Body::new(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Tells nginx to pass every event on at once.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

async fn whole(
    generation: Generation,
    plan: StreamPlan,
    num_returned: usize,
) -> Result<Response, ApiError> {
    let StreamPlan { writer, mut usage, num_choices, echoes, mut answers, .. } = plan;
    let mut choices = gather(generation, echoes).await?;
    for (choice, answer) in choices.iter_mut().zip(&mut answers) {
        choice.message = Some(answer.whole(&choice.text));
    }
    for (index, choice) in choices.iter().enumerate() {
        if let Some(finish) = &choice.finish {
            usage.count(index, num_choices, finish);
        }
    }
    let choices = best_of_each(choices, num_choices, num_returned);
    let mut body = BytesMut::new();
    writer.body(&mut body, &choices, &usage);
    Ok(json_answer(body.freeze()))
}

/// Waits for every choice to end. Each begins with its echo; the first error is the answer's.
pub(super) async fn gather(
    mut generation: Generation,
    echoes: Vec<String>,
) -> Result<Vec<WholeChoice>, ApiError> {
    let begin = |echo| WholeChoice { text: echo, ..WholeChoice::default() };
    let mut choices: Vec<WholeChoice> = echoes.into_iter().map(begin).collect();
    while let Some(news) = generation.next().await {
        for (choice, news) in choices.iter_mut().zip(news) {
            choice.text.push_str(&news.text);
            choice.prompt.append(&mut news.prompt);
            choice.tokens.append(&mut news.tokens);
            let Some(finish) = news.finish.take() else { continue };
            if finish_reason(&finish).is_none() {
                return Err(failure(&finish));
            }
            choice.finish = Some(finish);
        }
    }
    Ok(choices)
}

/// A whole answer with this body.
pub(super) fn json_answer(body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
