//! How does this process count, and how does Prometheus read it?
//!
//! Others count through the `metrics` crate. On a hot path hold the handle that `metrics::counter!` returns:
//! looking it up hashes name and labels each time.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::process;

/// Bucket bounds of every histogram whose name ends in `_seconds`.
///
/// Close together below a millisecond, where a call between two nodes is over. They are counted out: what
/// `metrics-exporter-prometheus` renders knows no native histograms and no exemplars.
pub const SECONDS_BUCKETS: &[f64] = &[
    0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// Bucket bounds of every histogram whose name ends in `_bytes`.
pub const BYTES_BUCKETS: &[f64] =
    &[64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0];

/// The `Content-Type` of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Metrics could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// Another recorder than ours is there.
    #[error("this process has a metrics recorder already")]
    Recorder,
    /// The buckets above are refused; cannot happen.
    #[error("histogram buckets: {0}")]
    Buckets(#[from] metrics_exporter_prometheus::BuildError),
}

/// What this process counted so far.
#[derive(Clone, Debug)]
pub struct Metrics {
    service: &'static str,
    recorder: PrometheusHandle,
}

/// Starts counting for this process. Asked again, it returns the same metrics, under the first service's name.
///
/// # Errors
/// When somebody else installed a recorder.
pub fn install(service: &'static str) -> Result<Metrics, MetricsError> {
    static INSTALLED: OnceLock<Result<Metrics, MetricsError>> = OnceLock::new();
    match INSTALLED.get_or_init(|| {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS_BUCKETS)?
            .set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), BYTES_BUCKETS)?
            .build_recorder();
        let handle = recorder.handle();
        ::metrics::set_global_recorder(recorder).map_err(|_| MetricsError::Recorder)?;
        Ok(Metrics { service, recorder: handle })
    }) {
        Ok(metrics) => Ok(metrics.clone()),
        Err(_) => Err(MetricsError::Recorder),
    }
}

impl Metrics {
    /// All metrics in Prometheus' text format ([`CONTENT_TYPE`]), those of the process and the build included.
    pub fn render(&self, ready: bool) -> String {
        let mut out = self.recorder.render();
        out.push_str("# HELP switchboard_ready ");
        out.push_str("1 while this process is ready for work, as /readyz says, otherwise 0.\n");
        out.push_str(&format!("# TYPE switchboard_ready gauge\nswitchboard_ready {}\n\n", u8::from(ready)));
        out.push_str("# HELP switchboard_build_info Always 1; which version runs as which service.\n");
        out.push_str("# TYPE switchboard_build_info gauge\n");
        let (version, service) = (crate::args::version(), self.service);
        out.push_str(&format!("switchboard_build_info{{version=\"{version}\",service=\"{service}\"}} 1\n\n"));
        process::render(&mut out);
        out
    }

    /// Sorts what histograms gathered into their buckets; they grow until then. [`crate::admin::Admin::serve`] does
    /// it every second.
    pub fn upkeep(&self) {
        self.recorder.run_upkeep();
    }
}

/// What kind of metric a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution; its name ends in its unit, `_seconds` or `_bytes`.
    Histogram,
}

/// Gives each metric its help text: kind, name and one sentence. Once a process, before the first count.
pub fn describe(metrics: &[(Kind, &'static str, &'static str)]) {
    for (kind, name, help) in metrics.iter().copied() {
        match kind {
            Kind::Counter => ::metrics::describe_counter!(name, help),
            Kind::Gauge => ::metrics::describe_gauge!(name, help),
            Kind::Histogram => ::metrics::describe_histogram!(name, help),
        }
    }
}

/// Names in a rendered text that have no help; for tests, empty when all is well.
pub fn undescribed(rendered: &str) -> Vec<String> {
    let names = |what| {
        let name = move |line: &str| Some(line.strip_prefix(what)?.split(' ').next()?.to_owned());
        rendered.lines().filter_map(name).collect::<BTreeSet<_>>()
    };
    names("# TYPE ").difference(&names("# HELP ")).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_help_and_its_buckets() {
        let metrics = install("test").unwrap();
        describe(&[
            (Kind::Counter, "switchboard_calls_total", "Calls by outcome."),
            (Kind::Histogram, "switchboard_call_seconds", "Time of the whole call."),
            (Kind::Histogram, "switchboard_packet_bytes", "Size of packets."),
        ]);
        ::metrics::counter!("switchboard_calls_total", "outcome" => "answered").increment(3);
        ::metrics::histogram!("switchboard_call_seconds").record(0.002);
        ::metrics::histogram!("switchboard_packet_bytes").record(100.0);
        ::metrics::gauge!("switchboard_forgotten").set(1.0);
        metrics.upkeep();

        let text = install("again").unwrap().render(true);
        for line in [
            "# HELP switchboard_calls_total Calls by outcome.",
            "# TYPE switchboard_calls_total counter",
            "switchboard_calls_total{outcome=\"answered\"} 3",
            "switchboard_call_seconds_bucket{le=\"0.0025\"} 1",
            "switchboard_call_seconds_bucket{le=\"0.001\"} 0",
            "switchboard_packet_bytes_bucket{le=\"256\"} 1",
            "# TYPE process_cpu_seconds_total counter",
            "switchboard_ready 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} not in:\n{text}");
        }
        assert!(text.contains("service=\"test\""), "the first service names the process");
        assert_eq!(undescribed(&text), ["switchboard_forgotten"]);
    }
}
