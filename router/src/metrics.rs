//! What Prometheus is told: requests, tokens, latencies, and the state of the engine.
//!
//! Own names begin with `millstream_`. Where a dashboard for TGI or vLLM reads a quantity that we
//! have with the same meaning, it is exported under that name as well. No label takes its value
//! from a client: routes are those of the table, everything else is `other`.

use std::sync::{Arc, Mutex};

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

use crate::engine::scheduler::Stats;
use crate::generate::FinishKind;

/// Everything that is measured, and the registry that reports it.
pub struct Metrics {
    registry: Registry,
    /// Requests, as HTTP sees them.
    pub http: HttpMetrics,
    /// Generations, as the pump sees them.
    pub generation: Arc<GenerationMetrics>,
    /// Steps, as the engine sees them.
    pub engine: Arc<EngineMetrics>,
}

impl Metrics {
    /// A registry of its own; nothing is global.
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let register = Register(&registry);
        Metrics {
            http: HttpMetrics::new(&register),
            generation: Arc::new(GenerationMetrics::new(&register)),
            engine: Arc::new(EngineMetrics::new(&register)),
            registry,
        }
    }

    /// The text format of Prometheus.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("writing to memory cannot fail");
        String::from_utf8(text).expect("the format is text")
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

/// Names are constants of this file, so registration cannot fail.
struct Register<'a>(&'a Registry);

impl Register<'_> {
    fn add<M: Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect("the names of metrics are valid");
        self.0.register(Box::new(metric.clone())).expect("the names of metrics are distinct");
        metric
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    fn ratio(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(name, help))
    }

    /// Seconds from 0.5 ms to about four minutes, in steps of 1.6.
    fn seconds(&self, name: &str, help: &str) -> Histogram {
        let buckets = prometheus::exponential_buckets(0.0005, 1.6, 28);
        let buckets = buckets.expect("the buckets grow");
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
    }

    /// Tokens from 1 to a million, in powers of two.
    fn tokens(&self, name: &str, help: &str) -> Histogram {
        let buckets = prometheus::exponential_buckets(1.0, 2.0, 21).expect("the buckets grow");
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
    }
}

/// Requests, as HTTP sees them.
pub struct HttpMetrics {
    /// By route and status code.
    pub requests: IntCounterVec,
    tgi_requests: IntCounter,
    tgi_failures: IntCounterVec,
}

impl HttpMetrics {
    fn new(register: &Register<'_>) -> HttpMetrics {
        HttpMetrics {
            requests: register.counters(
                "millstream_http_requests_total",
                "HTTP requests answered, by route and status code",
                &["route", "status"],
            ),
            tgi_requests: register.counter("tgi_request_count", "Generation requests received"),
            tgi_failures: register.counters(
                "tgi_request_failure",
                "Generation requests refused, by reason",
                &["err"],
            ),
        }
    }

    /// Counts one answered request. `route` is a row of the route table or `other`.
    pub fn answered(&self, route: &'static str, status: u16, generates: bool) {
        self.requests.with_label_values(&[route, status_text(status)]).inc();
        if !generates {
            return;
        }
        self.tgi_requests.inc();
        let reason = match status {
            200..400 => return,
            429 => "overloaded",
            400..500 => "validation",
            _ => "generation",
        };
        self.tgi_failures.with_label_values(&[reason]).inc();
    }
}

/// The statuses that this server answers with; anything else is a class.
fn status_text(status: u16) -> &'static str {
    match status {
        200 => "200",
        400 => "400",
        401 => "401",
        404 => "404",
        405 => "405",
        408 => "408",
        413 => "413",
        415 => "415",
        422 => "422",
        424 => "424",
        429 => "429",
        500 => "500",
        503 => "503",
        other if other < 400 => "ok",
        other if other < 500 => "4xx",
        _ => "5xx",
    }
}

/// Generations, as the pump sees them. One choice of one prompt is one generation.
pub struct GenerationMetrics {
    pub(crate) time_to_first_token: Histogram,
    pub(crate) inter_token_latency: Histogram,
    pub(crate) duration: Histogram,
    pub(crate) prompt_tokens: Histogram,
    pub(crate) generated_tokens: Histogram,
    pub(crate) aborted: IntCounter,
    finished: IntCounterVec,
    tgi_success: IntCounter,
}

impl GenerationMetrics {
    fn new(register: &Register<'_>) -> GenerationMetrics {
        GenerationMetrics {
            time_to_first_token: register.seconds(
                "millstream_time_to_first_token_seconds",
                "From the submission of a sequence to its first token",
            ),
            inter_token_latency: register.seconds(
                "millstream_inter_token_latency_seconds",
                "Between two tokens of a sequence",
            ),
            duration: register.seconds(
                "millstream_generation_duration_seconds",
                "From the submission of a sequence to its end",
            ),
            prompt_tokens: register
                .tokens("millstream_prompt_tokens", "Prompt tokens of an ended sequence"),
            generated_tokens: register
                .tokens("millstream_generated_tokens", "Tokens generated for an ended sequence"),
            aborted: register
                .counter("millstream_aborted_total", "Sequences whose client left before the end"),
            finished: register.counters(
                "millstream_finished_total",
                "Sequences that ended, by reason",
                &["reason"],
            ),
            tgi_success: register
                .counter("tgi_request_success", "Sequences that ended without an error"),
        }
    }

    pub(crate) fn finished(&self, kind: &FinishKind) {
        let reason = match kind {
            FinishKind::Stop(_) => "stop",
            FinishKind::Length => "length",
            FinishKind::Failed(_) => "failed",
            FinishKind::Interrupted(_) => "interrupted",
        };
        self.finished.with_label_values(&[reason]).inc();
        if matches!(kind, FinishKind::Stop(_) | FinishKind::Length) {
            self.tgi_success.inc();
        }
    }
}

/// Steps, as the engine sees them.
pub struct EngineMetrics {
    running: [IntGauge; 3],
    waiting: [IntGauge; 3],
    used_blocks: IntGauge,
    num_blocks: IntGauge,
    cache_usage: [Gauge; 2],
    counters: Vec<(IntCounter, Total)>,
    /// What the counters stand at: the engine reports totals, Prometheus adds.
    counted: Mutex<Stats>,
}

impl EngineMetrics {
    fn new(register: &Register<'_>) -> EngineMetrics {
        let running = "Sequences that run";
        let waiting = "Sequences that wait to run";
        let usage = "Share of the KV blocks that is held in the fullest cache group, from 0 to 1";
        EngineMetrics {
            running: [
                register.gauge("millstream_running", running),
                register.gauge("vllm:num_requests_running", running),
                register.gauge("tgi_batch_current_size", running),
            ],
            waiting: [
                register.gauge("millstream_waiting", waiting),
                register.gauge("vllm:num_requests_waiting", waiting),
                register.gauge("tgi_queue_size", waiting),
            ],
            used_blocks: register
                .gauge("millstream_kv_blocks_used", "KV blocks held, in all cache groups"),
            num_blocks: register
                .gauge("millstream_kv_blocks", "KV blocks of the worker, in all cache groups"),
            cache_usage: [
                register.ratio("millstream_kv_cache_usage", usage),
                register.ratio("vllm:kv_cache_usage_perc", usage),
            ],
            counters: COUNTERS
                .iter()
                .map(|(name, help, total)| (register.counter(name, help), *total))
                .collect(),
            counted: Mutex::new(Stats::default()),
        }
    }

    /// Takes over what the engine reports after a step.
    pub fn observe(&self, stats: &Stats) {
        self.running.iter().for_each(|gauge| gauge.set(stats.running as i64));
        self.waiting.iter().for_each(|gauge| gauge.set(stats.waiting as i64));
        self.used_blocks.set(stats.used_blocks as i64);
        self.num_blocks.set(stats.num_blocks as i64);
        self.cache_usage.iter().for_each(|gauge| gauge.set(stats.cache_usage));
        let mut counted = self.counted.lock().expect("nothing panics while it counts");
        for (counter, total) in &self.counters {
            counter.inc_by(total(stats).saturating_sub(total(&counted)));
        }
        *counted = *stats;
    }
}

/// A total in the engine's report.
type Total = fn(&Stats) -> u64;

/// Name, help and total.
type Counter = (&'static str, &'static str, Total);

const COUNTERS: &[Counter] = &[
    ("millstream_steps_total", "Steps sent to the worker", |s| s.steps),
    ("millstream_prompt_tokens_computed_total", "Prompt tokens computed", |s| s.prompt_tokens),
    ("millstream_prefix_cache_hits_total", "Prompt tokens found in the prefix cache", |s| {
        s.cached_tokens
    }),
    ("millstream_prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache", |s| {
        s.queried_tokens
    }),
    ("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache", |s| {
        s.cached_tokens
    }),
    ("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache", |s| {
        s.queried_tokens
    }),
    ("millstream_generated_tokens_total", "Tokens generated", |s| s.generated_tokens),
    ("vllm:generation_tokens_total", "Tokens generated", |s| s.generated_tokens),
    ("millstream_preemptions_total", "Sequences that lost their blocks to an older one", |s| {
        s.preemptions
    }),
    ("vllm:num_preemptions_total", "Sequences that lost their blocks to an older one", |s| {
        s.preemptions
    }),
    ("millstream_evictions_total", "Blocks that lost a cached prefix to make room", |s| {
        s.evictions
    }),
    ("millstream_window_frees_total", "Blocks given back because a window had passed them", |s| {
        s.window_frees
    }),
    ("millstream_overruns_total", "Rows computed for sequences that had ended", |s| s.overruns),
    ("millstream_worker_losses_total", "Workers lost", |s| s.worker_losses),
    ("millstream_fenced_total", "Sequences ended because workers kept dying under them", |s| {
        s.fenced
    }),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_reports_totals_and_the_counters_follow_them() {
        let metrics = Metrics::new();
        let mut stats = Stats { running: 3, cache_usage: 0.25, ..Stats::default() };
        for total in [0, 5, 5, 9] {
            stats.generated_tokens = total;
            metrics.engine.observe(&stats);
        }
        let text = metrics.render();
        for line in [
            "millstream_generated_tokens_total 9",
            "vllm:generation_tokens_total 9",
            "vllm:num_requests_running 3",
            "tgi_batch_current_size 3",
            "vllm:kv_cache_usage_perc 0.25",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn no_request_can_add_a_label_of_its_own() {
        let metrics = Metrics::new();
        for status in 100..1000 {
            metrics.http.answered("other", status, false);
        }
        let series = metrics.render().lines().filter(|l| l.contains("route=\"other\"")).count();
        assert!(series <= 16, "{series} series");
    }
}
