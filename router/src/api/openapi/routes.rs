//! What every path takes and answers.

use utoipa::ToSchema;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathItem, PathsBuilder,
};
use utoipa::openapi::request_body::{RequestBody, RequestBodyBuilder};
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{Content, Object, Paths, Ref, RefOr, Required, Response, ResponseBuilder};

use super::answers::{ChatCompletion, ChatEvent, Completion, CompletionEvent};
use super::errors::{ErrorBody, TgiErrorBody};
use super::openai::{ChatCompletionRequest, CompletionRequest};
use super::platforms::{InvokeError, InvokeEvent, InvokeRequest, InvokeResponse};
use super::server::{Live, Model, ModelList, Ready};
use super::tgi::{CompatGenerateRequest, GenerateRequest, GenerateResponse, Info, StreamEvent};
use super::tokens::{
    ChatTokenizeRequest, ChatTokenizeResponse, DetokenizeRequest, DetokenizeResponse,
    TokenizeRequest, TokenizeResponse,
};
use super::{DOCUMENT, PAGE, TGI_DOCUMENT};
use crate::api::options::unsupported;
use crate::api::{CHAT, COMPLETIONS, INVOCATIONS, VERTEX};

/// Errors are statuses with what they mean.
type Errors = &'static [(&'static str, &'static str)];

const INVALID: (&str, &str) = ("400", "A field breaks a rule, or the body is not a JSON object");
const NOT_JSON: (&str, &str) = ("400", "The body is not a JSON object");
const BREAKS_A_RULE: (&str, &str) = ("422", "A field breaks a rule");
const UNAUTHORIZED: (&str, &str) = ("401", "The key is missing or wrong");
const UNKNOWN_MODEL: (&str, &str) = ("404", "No such model is served");
/// What any request with a body may meet.
const BODY: Errors = &[
    ("408", "The body did not arrive in time"),
    ("413", "The body is larger than the server accepts"),
    ("415", "The content type is not application/json"),
    ("500", "An internal error; the server's log says more"),
    ("503", "The model is not ready, or the server is shutting down"),
];
const BUSY: (&str, &str) = ("429", "Too many requests are queued or running; try again later");
const FAILED: (&str, &str) = ("424", "The generation was begun and failed");

/// The operations, and the schemas that they name.
pub(super) struct Routes {
    pub(super) paths: Paths,
    pub(super) schemas: Vec<(String, RefOr<Schema>)>,
}

impl Routes {
    pub(super) fn all() -> Routes {
        let mut routes = Routes { paths: PathsBuilder::new().build(), schemas: Vec::new() };
        routes.openai();
        routes.tgi();
        routes.tokens();
        routes.platforms();
        routes.server();
        routes
    }

    fn openai(&mut self) {
        let refused: Vec<&str> = unsupported().collect();
        let refused = format!(
            "Refused by name, unless their value changes nothing: `{}`.",
            refused.join("`, `")
        );
        let errors: &[Errors] = &[&[INVALID, UNAUTHORIZED, UNKNOWN_MODEL, BUSY], BODY];
        let operation = describe("OpenAI", "chat_completions", "Answer a conversation")
            .description(Some(&refused))
            .request_body(Some(self.body::<ChatCompletionRequest>()))
            .response("200", self.answer::<ChatCompletion, ChatEvent>());
        self.post::<ErrorBody>(CHAT, operation, errors);
        let operation = describe("OpenAI", "completions", "Continue a text")
            .description(Some(&refused))
            .request_body(Some(self.body::<CompletionRequest>()))
            .response("200", self.answer::<Completion, CompletionEvent>());
        self.post::<ErrorBody>(COMPLETIONS, operation, errors);
        let operation = describe("OpenAI", "models", "List the accepted names of the model")
            .response("200", self.json::<ModelList>("The names"));
        self.get::<ErrorBody>("/v1/models", operation, &[&[UNAUTHORIZED]]);
        let name = ParameterBuilder::new()
            .name("name")
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .description(Some("An accepted name; it may have slashes."))
            .schema(Some(Object::with_type(Type::String)))
            .build();
        let operation = describe("OpenAI", "model", "Look up a name")
            .parameter(name)
            .response("200", self.json::<Model>("The model of this name"));
        self.get::<ErrorBody>("/v1/models/{name}", operation, &[&[UNAUTHORIZED, UNKNOWN_MODEL]]);
    }

    fn tgi(&mut self) {
        let errors: &[Errors] = &[&[NOT_JSON, UNAUTHORIZED, BREAKS_A_RULE, FAILED, BUSY], BODY];
        let operation = describe("TGI", "generate", "Continue a text")
            .request_body(Some(self.body::<GenerateRequest>()))
            .response("200", naming_ignored(self.json::<GenerateResponse>("The whole answer")));
        self.post::<TgiErrorBody>("/generate", operation, errors);
        let events = ResponseBuilder::new()
            .description("Events, one for each token")
            .content("text/event-stream", self.content::<StreamEvent>());
        let operation = describe("TGI", "generate_stream", "Continue a text, token by token")
            .request_body(Some(self.body::<GenerateRequest>()))
            .response("200", naming_ignored(events));
        self.post::<TgiErrorBody>("/generate_stream", operation, errors);
        let operation = describe("TGI", "compat_generate", "Continue a text, streamed or not")
            .request_body(Some(self.body::<CompatGenerateRequest>()))
            .response("200", self.answer::<Vec<GenerateResponse>, StreamEvent>());
        self.post::<TgiErrorBody>("/", operation, errors);
        let operation = describe("TGI", "info", "What is served, and within which limits")
            .response("200", self.json::<Info>("The model and the limits"));
        self.public::<TgiErrorBody>("/info", operation, &[&[("503", "The model is not ready")]]);
    }

    fn tokens(&mut self) {
        let operation = describe("Tokens", "tokenize", "Turn a text into tokens")
            .request_body(Some(self.body::<TokenizeRequest>()))
            .response("200", self.json::<TokenizeResponse>("The tokens"));
        let errors: Errors = &[INVALID, UNAUTHORIZED, UNKNOWN_MODEL, BREAKS_A_RULE];
        self.post::<InvokeError>("/tokenize", operation, &[errors, BODY]);
        let operation = describe("Tokens", "chat_tokenize", "Turn a conversation into tokens")
            .request_body(Some(self.body::<ChatTokenizeRequest>()))
            .response("200", self.json::<ChatTokenizeResponse>("The prompt and its tokens"));
        let errors: Errors = &[NOT_JSON, UNAUTHORIZED, UNKNOWN_MODEL, BREAKS_A_RULE];
        self.post::<TgiErrorBody>("/chat_tokenize", operation, &[errors, BODY]);
        let operation = describe("Tokens", "detokenize", "Turn tokens into a text")
            .request_body(Some(self.body::<DetokenizeRequest>()))
            .response("200", self.json::<DetokenizeResponse>("The text"));
        let errors: Errors = &[INVALID, UNAUTHORIZED, UNKNOWN_MODEL];
        self.post::<ErrorBody>("/detokenize", operation, &[errors, BODY]);
    }

    fn platforms(&mut self) {
        let platforms = [
            (INVOCATIONS, "invocations", "SageMaker's one path for every request"),
            (VERTEX, "vertex", "Vertex AI's one path for every request"),
        ];
        for (path, id, summary) in platforms {
            let operation = describe("Platforms", id, summary)
                .request_body(Some(self.body::<InvokeRequest>()))
                .response("200", self.answer::<InvokeResponse, InvokeEvent>());
            let errors: Errors =
                &[INVALID, UNAUTHORIZED, UNKNOWN_MODEL, BREAKS_A_RULE, FAILED, BUSY];
            self.post::<InvokeError>(path, operation, &[errors, BODY]);
        }
    }

    fn server(&mut self) {
        let healths = [("/health", "health"), ("/ping", "ping"), ("/", "compat_health")];
        for (path, id) in healths {
            let healthy = ResponseBuilder::new().description("It can");
            let operation =
                describe("Server", id, "Whether the server can answer").response("200", healthy);
            self.public::<TgiErrorBody>(path, operation, &[&[("503", "It cannot")]]);
        }
        let operation = describe("Server", "live", "Whether the process runs")
            .response("200", self.json::<Live>("It does"));
        self.public::<ErrorBody>("/live", operation, &[]);
        let operation = describe("Server", "ready", "Whether new requests are welcome")
            .response("200", self.json::<Ready>("They are"));
        self.public::<Ready>("/ready", operation, &[&[("503", "They are not, and why")]]);
        let text = Content::new(Some(Object::with_type(Type::String)));
        let files = [
            ("/metrics", "metrics", "Metrics in Prometheus's format", "text/plain"),
            (PAGE, "docs", "This API as a page", "text/html"),
        ];
        for (path, id, summary, kind) in files {
            let file = ResponseBuilder::new().description("The text").content(kind, text.clone());
            let operation = describe("Server", id, summary).response("200", file);
            self.public::<ErrorBody>(path, operation, &[]);
        }
        for (path, id) in [(DOCUMENT, "openapi"), (TGI_DOCUMENT, "tgi_openapi")] {
            let document = Content::new(Some(Object::with_type(Type::Object)));
            let document =
                ResponseBuilder::new().description("OpenAPI").content("application/json", document);
            let operation = describe("Server", id, "This document").response("200", document);
            self.public::<ErrorBody>(path, operation, &[]);
        }
    }

    fn post<E: ToSchema>(&mut self, path: &str, operation: OperationBuilder, errors: &[Errors]) {
        self.add::<E>(HttpMethod::Post, path, operation, errors);
    }

    fn get<E: ToSchema>(&mut self, path: &str, operation: OperationBuilder, errors: &[Errors]) {
        self.add::<E>(HttpMethod::Get, path, operation, errors);
    }

    /// A path that asks for no key.
    fn public<E: ToSchema>(&mut self, path: &str, operation: OperationBuilder, errors: &[Errors]) {
        let operation = operation.securities(Some([] as [SecurityRequirement; 0]));
        self.get::<E>(path, operation, errors);
    }

    fn add<E: ToSchema>(
        &mut self,
        method: HttpMethod,
        path: &str,
        mut operation: OperationBuilder,
        errors: &[Errors],
    ) {
        for (status, meaning) in errors.iter().copied().flatten() {
            operation = operation.response(*status, self.json::<E>(meaning));
        }
        let item = PathItem::new(method, operation);
        match self.paths.paths.get_mut(path) {
            Some(known) => known.merge_operations(item),
            None => {
                self.paths.paths.insert(path.into(), item);
            }
        }
    }

    /// The schema of a type, which is put among those with names; a list has none of its own.
    fn content<T: ToSchema>(&mut self) -> Content {
        T::schemas(&mut self.schemas);
        let name = T::name();
        if name == "Vec" {
            return Content::new(Some(T::schema()));
        }
        self.schemas.push((name.to_string(), T::schema()));
        Content::new(Some(Ref::from_schema_name(name)))
    }

    fn body<T: ToSchema>(&mut self) -> RequestBody {
        RequestBodyBuilder::new()
            .content("application/json", self.content::<T>())
            .required(Some(Required::True))
            .build()
    }

    fn json<T: ToSchema>(&mut self, meaning: &str) -> ResponseBuilder {
        ResponseBuilder::new().description(meaning).content("application/json", self.content::<T>())
    }

    /// An answer that a request gets whole or as events.
    fn answer<T: ToSchema, Event: ToSchema>(&mut self) -> Response {
        let answer = self
            .json::<T>("The whole answer; with `stream`, events")
            .content("text/event-stream", self.content::<Event>());
        naming_ignored(answer)
    }
}

fn describe(tag: &str, id: &str, summary: &str) -> OperationBuilder {
    OperationBuilder::new().tag(tag).operation_id(Some(id)).summary(Some(summary))
}

/// An answer that names the fields of the request that it ignored.
fn naming_ignored(answer: ResponseBuilder) -> Response {
    let names = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some("^[A-Za-z0-9_.-]{1,64}(,[A-Za-z0-9_.-]{1,64}){0,15}$"));
    let header = HeaderBuilder::new()
        .schema(Some(names))
        .description(Some("Fields of the request that are not known here, separated by commas"));
    answer.header("x-ignored-fields", header.build()).build()
}
