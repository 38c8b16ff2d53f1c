//! How errors look in either API.

use utoipa::ToSchema;

/// An error in OpenAI's form; in a stream, an event of its own.
#[derive(ToSchema)]
pub(super) struct ErrorBody {
    error: ErrorDetail,
}

/// What is wrong.
#[derive(ToSchema)]
struct ErrorDetail {
    /// The field, the rule and the value.
    message: String,
    r#type: ErrorType,
    /// The field that breaks a rule.
    #[schema(required)]
    param: Option<String>,
    #[schema(required)]
    code: Option<ErrorCode>,
}

/// Whose the error is.
#[derive(ToSchema)]
enum ErrorType {
    #[serde(rename = "invalid_request_error")]
    Request,
    #[serde(rename = "rate_limit_error")]
    RateLimit,
    #[serde(rename = "server_error")]
    Server,
}

/// Which kind of error it is.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
enum ErrorCode {
    InvalidValue,
    UnsupportedParameter,
    ContextLengthExceeded,
    InvalidJson,
    UnsupportedContentType,
    RequestTooLarge,
    RequestTimeout,
    InvalidApiKey,
    ModelNotFound,
    UnknownUrl,
    MethodNotAllowed,
    RateLimitExceeded,
    ModelLoading,
    ShuttingDown,
    Interrupted,
    GenerationFailed,
}

/// An error in TGI's form.
#[derive(ToSchema)]
pub(super) struct TgiErrorBody {
    /// The field, the rule and the value.
    error: String,
    error_type: TgiErrorType,
}

/// Which kind of error it is.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
enum TgiErrorType {
    Validation,
    Generation,
    IncompleteGeneration,
    Overloaded,
    Healthcheck,
    Authentication,
    Internal,
}
