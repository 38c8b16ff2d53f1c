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
use super::ignored::Ignored;
use super::options::{Options, Rules};
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
    let fields = Fields::parse(&received.body)?;
    match Kind::of(&fields) {
        Kind::Instances => Ok(app.predict(received, fields).await?),
        Kind::Inputs => Ok(app.generate(received, fields, Form::Compat).await?),
        Kind::Messages => Ok(app.chat(received, fields).await.into_response()),
        Kind::Prompt => Ok(app.completions(received, fields).await.into_response()),
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
    fn read(fields: &mut Fields, rules: &Rules<'_>) -> Result<Instance, ApiError> {
        if fields.has("messages") {
            let chat = ChatRequest::read(fields, rules)?;
            refuse_stream(chat.options.stream)?;
            if chat.tools.offers_calls() {
                let rule = "cannot be called in an instance, whose prediction is a text; use \
                            /v1/chat/completions";
                return Err(ApiError::field("tools", rule));
            }
            return Ok(Instance::Chat(chat));
        }
        refuse_stream(fields.value("stream").is_some_and(|stream| stream == true))?;
        Ok(Instance::Inputs(GenerateRequest::read(fields, rules, Form::Object)?))
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
    async fn predict(&self, received: Received, mut fields: Fields) -> Result<Response, ApiError> {
        let Received { info, in_flight: _in_flight, .. } = received;
        let instances = read_instances(&mut fields, &self.rules(&info))?;
        let ignored = Ignored::of(&fields);
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
        Ok(ignored.name_in(Json(json!({"predictions": predictions})).into_response()))
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

/// Reads the instances. `parameters` beside them are those of instances that have none.
fn read_instances(fields: &mut Fields, rules: &Rules<'_>) -> Result<Vec<Instance>, ApiError> {
    let parameters = fields.object("parameters")?;
    let max = rules.limits.max_client_batch_size;
    let instances = match fields.value("instances") {
        Some(Value::Array(instances)) if (1..=max).contains(&instances.len()) => instances,
        Some(Value::Array(instances)) => {
            let rule = format!("must hold 1 to {max} instances, not {}", instances.len());
            return Err(ApiError::field("instances", rule));
        }
        other => return Err(must_be("instances", "a list of objects", &other.unwrap_or_default())),
    };
    let mut read = |instance| {
        let Value::Object(mut instance) = instance else {
            return Err(must_be("instances", "a list of objects", &instance));
        };
        if let (true, Some(parameters)) = (instance.contains_key("inputs"), &parameters) {
            let own = instance.entry("parameters");
            own.or_insert_with(|| Value::Object(parameters.clone()));
        }
        let mut instance = Fields::from(instance);
        let request = Instance::read(&mut instance, rules)?;
        fields.keep(instance);
        Ok(request)
    };
    instances.into_iter().map(&mut read).collect()
}
