//! What a browser asks before, and reads after, a page's request to another origin.

use hyper::Method;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD,
    AUTHORIZATION, ORIGIN,
};
use serde_json::json;

use super::*;

const PAGE: &str = "https://chat.example.com";

fn preflight(path: &str, origin: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(Method::OPTIONS)
        .uri(path)
        .header(ORIGIN, origin)
        .header(ACCESS_CONTROL_REQUEST_METHOD, "POST")
        .header(ACCESS_CONTROL_REQUEST_HEADERS, "authorization,content-type,x-stainless-os")
        .body(Full::default())
        .unwrap()
}

fn ask(path: &str, origin: &str, key: &str) -> Request<Full<Bytes>> {
    let mut request = post(path, json!({"prompt": "p"}).to_string());
    request.headers_mut().insert(ORIGIN, origin.parse().unwrap());
    request.headers_mut().insert(AUTHORIZATION, format!("Bearer {key}").parse().unwrap());
    request
}

fn allowed_origin(answer: &Answer) -> Option<&str> {
    answer.headers.get(ACCESS_CONTROL_ALLOW_ORIGIN).map(|origin| origin.to_str().unwrap())
}

#[tokio::test]
async fn a_page_of_an_allowed_origin_may_send_its_key_and_read_the_answer() {
    let configure = |config: &mut RouterConfig| {
        config.api_key = Some("k-1".into());
        config.cors_allow_origin = vec![PAGE.parse().unwrap()];
    };
    let server = start_answering(configure, |_| "a".into()).await;
    let answer = server.call(preflight(COMPLETIONS, PAGE)).await;
    assert_eq!((answer.status, allowed_origin(&answer)), (StatusCode::OK, Some(PAGE)));
    let headers = answer.headers[ACCESS_CONTROL_ALLOW_HEADERS].to_str().unwrap();
    assert_eq!(headers, "authorization,content-type,x-stainless-os");
    assert_eq!(answer.headers[ACCESS_CONTROL_ALLOW_METHODS], "GET,POST");

    let answer = server.call(ask(COMPLETIONS, PAGE, "k-1")).await;
    assert_eq!((answer.status, allowed_origin(&answer)), (StatusCode::OK, Some(PAGE)));
    let exposed = &answer.headers[ACCESS_CONTROL_EXPOSE_HEADERS];
    assert_eq!(exposed, "x-request-id,x-ignored-fields,retry-after");
    // The page is told why it is refused, too.
    let answer = server.call(ask(COMPLETIONS, PAGE, "k-2")).await;
    assert_eq!((answer.status, allowed_origin(&answer)), (StatusCode::UNAUTHORIZED, Some(PAGE)));
}

#[tokio::test]
async fn a_page_of_another_origin_may_not_read_anything() {
    let configure = |config: &mut RouterConfig| {
        config.cors_allow_origin = vec![PAGE.parse().unwrap()];
    };
    let server = start_answering(configure, |_| "a".into()).await;
    for origin in ["https://evil.example", "https://chat.example.com.evil", "null"] {
        let answer = server.call(preflight(COMPLETIONS, origin)).await;
        assert_eq!(allowed_origin(&answer), None, "{origin}");
        let answer = server.call(ask(COMPLETIONS, origin, "any")).await;
        assert_eq!(allowed_origin(&answer), None, "{origin}");
    }
}

#[tokio::test]
async fn every_page_is_allowed_where_none_is_named() {
    for allowed in [vec![], vec!["*".parse().unwrap(), PAGE.parse().unwrap()]] {
        let configure = |config: &mut RouterConfig| config.cors_allow_origin = allowed;
        let server = start_answering(configure, |_| "a".into()).await;
        let answer = server.call(ask(COMPLETIONS, "https://any.example", "any")).await;
        assert_eq!((answer.status, allowed_origin(&answer)), (StatusCode::OK, Some("*")));
    }
}

#[tokio::test]
async fn a_preflight_tells_nothing_of_what_is_here() {
    let configure = |config: &mut RouterConfig| config.api_key = Some("k-1".into());
    let server = start_answering(configure, |_| "a".into()).await;
    let answer = |path: &'static str| server.call(preflight(path, PAGE));
    let (served, unknown) = (answer(CHAT).await, answer("/no/such/route").await);
    assert_eq!((served.status, &served.body), (unknown.status, &unknown.body));
    let without_date = |mut headers: HeaderMap| {
        headers.remove("date");
        headers
    };
    assert_eq!(without_date(served.headers), without_date(unknown.headers));
}
