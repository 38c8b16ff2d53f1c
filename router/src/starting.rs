//! What the port answers while there is no model yet: that the process lives, and why it is not
//! ready.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::api::error::ApiError;
use crate::api::{health, listen, refuse};

/// Says what is being done, in words for whoever asks.
pub type Reason = Arc<dyn Fn() -> String + Send + Sync>;

/// Does `work`, and answers on `listener` meanwhile that the server is not ready, and why.
///
/// Returns the listener, still bound, for [`serve()`](crate::serve()) to go on with: whoever
/// connects in between waits for a moment and is answered.
pub async fn while_starting<T>(
    listener: TcpListener,
    client_timeout: Duration,
    reason: Reason,
    work: impl Future<Output = T>,
) -> io::Result<(TcpListener, T)> {
    let listener = listener.into_std()?;
    let twin = TcpListener::from_std(listener.try_clone()?)?;
    let (close, closed) = watch::channel(false);
    let routes = Router::new().fallback(answer).with_state(reason);
    // Ends by itself, once what it is in the middle of answering is answered.
    tokio::spawn(listen::listen(twin, routes, client_timeout, closed));
    let done = work.await;
    close.send_replace(true);
    Ok((TcpListener::from_std(listener)?, done))
}

async fn answer(State(reason): State<Reason>, request: Request) -> Response {
    match request.uri().path() {
        "/live" => health::live().await,
        "/health" | "/ping" => health::unhealthy(),
        "/" if request.method() == Method::GET => health::unhealthy(),
        "/ready" => {
            let body = Json(json!({"status": "not ready", "reason": reason()}));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
        path => refuse(path, ApiError::Loading(reason())),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_port_answers_while_the_model_is_on_its_way_and_stays_bound_after() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let reason: Reason = Arc::new(|| "downloading: 43 %".into());
        let questions = async {
            let mut answers = Vec::new();
            for path in ["/live", "/health", "/ping", "/", "/ready", "/v1/models", "/info"] {
                answers.push(ask(address, path).await);
            }
            answers
        };
        let timeout = Duration::from_secs(60);
        let (listener, answers) =
            while_starting(listener, timeout, reason, questions).await.unwrap();
        let expected = [
            ("200", "alive"),
            ("503", "unhealthy"),
            ("503", "unhealthy"),
            ("503", "unhealthy"),
            ("503", "\"reason\":\"downloading: 43 %\""),
            ("503", "the model is not ready yet: downloading: 43 %"),
            ("503", "\"error_type\":\"healthcheck\""),
        ];
        for ((status, part), answer) in expected.into_iter().zip(answers) {
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            assert!(answer.contains(part), "{answer}");
        }
        let (accepted, connected) = tokio::join!(listener.accept(), TcpStream::connect(address));
        assert_eq!(accepted.unwrap().1, connected.unwrap().local_addr().unwrap());
    }
}
