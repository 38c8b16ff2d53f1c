//! TGI's own API: `inputs` and `parameters` in, `generated_text` and `details` out.
//!
//! The fields, their defaults and the forms of answers are TGI's, so that its clients work
//! unchanged. What differs is told where it stands: values that change nothing are accepted, and a
//! refused stream has a status.
//!
//! [`request`] reads, [`handlers`] runs, [`answer`] and [`stream`] write; [`tokens`] has the routes
//! that show tokens without generating any.

mod answer;
mod error;
mod handlers;
mod request;
mod stream;
mod tokens;

pub(super) use error::TgiError;
pub(super) use handlers::{compat, generate, generate_stream, info};
pub(super) use request::{Form, GenerateRequest};
pub(super) use tokens::{chat_tokenize, detokenize, tokenize};
