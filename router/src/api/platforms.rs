//! The routes of SageMaker and Vertex AI, which know one path for everything.
//!
//! What a body asks for is told by its fields, and it gets the answer, and the errors, of the route
//! that is meant: `inputs` is `POST /`, `messages` a chat, `prompt` a completion. `instances` is
//! Vertex AI's own form, several requests that are answered together and whole.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use millstream_proto::WorkerInfo;
use serde_json::{Value, json};

use super::App;
use super::answer::AnswerForm;
use super::best_of::best_first;
use super::chat::ChatRequest;
use super::error::ApiError;
use super::fields::{Fields, must_be};
use super::handlers::{DefaultTokens, Received, gather, random_seed};
use super::options::Options;
use super::tgi::{Form, GenerateRequest, TgiError};
use crate::generate::{Generation, Places, Prompt};

/// What a body is, by the field that it must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Instances,
    Inputs,
    Messages,
    Prompt,
    /// It has none of them.
    Unknown,
}

impl Kind {
    pub(crate) fn of(fields: &Fields) -> Kind {
        let kinds = [
            ("instances", Kind::Instances),
            ("inputs", Kind::Inputs),
            ("messages", Kind::Messages),
            ("prompt", Kind::Prompt),
        ];
        let found = kinds.into_iter().find(|(field, _)| fields.has(field));
        found.map_or(Kind::Unknown, |(_, kind)| kind)
    }
}

/// `POST /invocations` and `POST /vertex`.
pub(crate) async fn invoke(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, TgiError> {
    let received = app.receive(request).await?;
    match Kind::of(&Fields::parse(&received.body)?) {
        Kind::Instances => Ok(app.predict(received).await?),
        Kind::Inputs => Ok(app.generate(received, Form::Compat).await?),
        Kind::Messages => Ok(app.chat(received).await.into_response()),
        Kind::Prompt => Ok(app.completions(received).await.into_response()),
        Kind::Unknown => {
            let rule = "(or prompt, messages or instances) must be given";
            Err(ApiError::field("inputs", rule).into())
        }
    }
}

/// One of the requests in `instances`.
enum Instance {
    Inputs(GenerateRequest),
    Chat(ChatRequest),
}

impl Instance {
    /// `parameters` are those of instances that have none of their own.
    fn read(
        app: &App,
        info: &WorkerInfo,
        instance: Value,
        parameters: Option<&Value>,
    ) -> Result<Instance, ApiError> {
        let Value::Object(mut fields) = instance else {
            return Err(must_be("instances", "a list of objects", &instance));
        };
        let rules = app.rules(info);
        if fields.contains_key("messages") {
            let body = Value::Object(fields).to_string();
            let chat = ChatRequest::read(body.as_bytes(), &rules)?;
            refuse_stream(chat.options.stream)?;
            if chat.tools.offers_calls() {
                let rule = "cannot be called in an instance, whose prediction is a text; use \
                            /v1/chat/completions";
                return Err(ApiError::field("tools", rule));
            }
            return Ok(Instance::Chat(chat));
        }
        refuse_stream(fields.get("stream").is_some_and(|stream| *stream == true))?;
        if let (false, Some(parameters)) = (fields.contains_key("parameters"), parameters) {
            fields.insert("parameters".into(), parameters.clone());
        }
        Ok(Instance::Inputs(GenerateRequest::read(fields.into(), &rules, Form::Object)?))
    }

    fn options(&self) -> &Options {
        match self {
            Instance::Inputs(request) => &request.options,
            Instance::Chat(request) => &request.options,
        }
    }
}

fn refuse_stream(stream: bool) -> Result<(), ApiError> {
    if !stream {
        return Ok(());
    }
    Err(ApiError::field("stream", "(true) cannot be asked for by one of several instances"))
}

impl App {
    /// Answers Vertex AI's form: one text for each instance.
    async fn predict(&self, received: Received) -> Result<Response, ApiError> {
        let Received { body, info, in_flight: _in_flight, .. } = received;
        let mut fields = Fields::parse(&body)?;
        let parameters = fields.object("parameters")?.map(Value::Object);
        let instances = read_instances(&mut fields, self.limits.max_client_batch_size)?;
        let read = |instance| Instance::read(self, &info, instance, parameters.as_ref());
        let instances = instances.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let count = |instance: &Instance| instance.options().num_choices as usize;
        let total: usize = instances.iter().map(count).sum();
        let limit = self.limits.max_concurrent_requests;
        if total > limit {
            let rule = format!("ask for {total} choices together, more than {limit}");
            return Err(ApiError::field("instances", rule));
        }
        let mut places = self.generator.admit(total)?;
        let mut running = Vec::with_capacity(instances.len());
        for instance in instances {
            let places = places.split(count(&instance));
            running.push(self.start_instance(&info, instance, places).await?);
        }
        let mut predictions = Vec::with_capacity(running.len());
        for Running { generation, echoes, form } in running {
            let best = best_first(gather(generation, echoes).await?).into_iter().next();
            predictions.push(best.map(|choice| match &form {
                Some(form) => form.begin().whole(&choice.text).into_content(),
                None => choice.text,
            }));
        }
        Ok(Json(json!({"predictions": predictions})).into_response())
    }

    async fn start_instance(
        &self,
        info: &WorkerInfo,
        instance: Instance,
        places: Places,
    ) -> Result<Running, ApiError> {
        let ChatRequest { mut options, conversation, tools } = match instance {
            Instance::Chat(chat) => chat,
            Instance::Inputs(request) => {
                let (generation, plan) = self.start(info, request, places).await?;
                return Ok(Running { generation, echoes: plan.echoes(), form: None });
            }
        };
        let (tokens, opening) = self.encode(move |text| conversation.encode(text)).await??;
        let form = tools.prepare(&self.text, opening, &mut options.constraint);
        let default = DefaultTokens::Recommended;
        let max_tokens = self.fit(info, &options, default, ("messages", tokens.len()))?;
        let seed = options.seed.unwrap_or_else(random_seed);
        let echoes = vec![String::new(); options.num_choices as usize];
        let prompt = Prompt { tokens: tokens.into(), max_tokens, num_shown_before: 0, seed };
        let mut request = self.generation(info, options, vec![prompt]).await?;
        request.continues_prompt = false;
        request.shown_tokens = form.as_ref().map(|form| form.markers.clone()).unwrap_or_default();
        Ok(Running { generation: self.generator.submit(places, &request)?, echoes, form })
    }
}

/// An instance that is being answered.
struct Running {
    generation: Generation,
    /// What each of its choices begins with.
    echoes: Vec<String>,
    /// How the answer is read, where not all of it is content.
    form: Option<AnswerForm>,
}

fn read_instances(fields: &mut Fields, max: usize) -> Result<Vec<Value>, ApiError> {
    match fields.value("instances") {
        Some(Value::Array(instances)) if (1..=max).contains(&instances.len()) => Ok(instances),
        Some(Value::Array(instances)) => {
            let rule = format!("must hold 1 to {max} instances, not {}", instances.len());
            Err(ApiError::field("instances", rule))
        }
        other => Err(must_be("instances", "a list of objects", &other.unwrap_or_default())),
    }
}
