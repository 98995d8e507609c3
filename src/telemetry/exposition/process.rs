//! What the process is, which configuration it serves, and what it takes of the machine: the last by the names that every
//! Prometheus client library gives it.

use std::fmt;

use procfs::process::{LimitValue, Process as ProcessFiles};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::{Progress, as_gauge, gauge};
use crate::telemetry::reloads::ReloadResult;

/// This process.
#[derive(Debug)]
pub(super) struct Process(pub(super) Progress);

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.encode_progress(&mut encoder)?;
        gauge(&mut encoder, "api_gateway_build_info", "The gateway's version", |mut metric| {
            let labels = [("version", env!("CARGO_PKG_VERSION")), ("commit", env!("BUILD_COMMIT"))];
            metric.encode_family(&labels)?.encode_gauge(&1i64)
        })?;
        // Where /proc is hidden there is nothing to show.
        let Ok(files) = ProcessFiles::myself() else { return Ok(()) };
        encode_usage(&files, &mut encoder)
    }
}

impl Process {
    fn encode_progress(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Progress { seam, reloads, lost_spans } = &self.0;
        gauge(encoder, "api_gateway_config_generation", "The snapshot last published", |mut metric| {
            metric.encode_gauge(&as_gauge(seam.generation()))
        })?;
        let help = "The snapshot that each worker serves with";
        gauge(encoder, "api_gateway_config_generation_adopted", help, |mut metric| {
            for (worker, generation) in seam.adopted().enumerate() {
                metric.encode_family(&[("worker", worker.to_string())])?.encode_gauge(&as_gauge(generation))?;
            }
            Ok(())
        })?;
        gauge(encoder, "api_gateway_config_reload_failed", "Whether the last reload was refused", |mut metric| {
            metric.encode_gauge(&i64::from(reloads.has_failed()))
        })?;
        let help = "Configurations read while running, by what became of them";
        let mut metric = encoder.encode_descriptor("api_gateway_config_reload", help, None, MetricType::Counter)?;
        for result in ReloadResult::ALL {
            let labels = [("result", result.as_str())];
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&reloads.get(result), None)?;
        }
        let help = "Spans that the collector did not take";
        let mut metric = encoder.encode_descriptor("api_gateway_spans_lost", help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&lost_spans.get(), None)
    }
}

fn encode_usage(files: &ProcessFiles, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    if let Ok(stat) = files.stat() {
        let ticks = procfs::ticks_per_second() as f64;
        let help = "CPU time of the process, in seconds";
        let mut metric = encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, f64>(&((stat.utime + stat.stime) as f64 / ticks), None)?;
        if let Ok(boot) = procfs::boot_time_secs() {
            let started = boot as f64 + stat.starttime as f64 / ticks;
            let help = "When the process started, in seconds since the Unix epoch";
            gauge(encoder, "process_start_time_seconds", help, |mut metric| metric.encode_gauge(&started))?;
        }
        gauge(encoder, "process_resident_memory_bytes", "Resident memory of the process", |mut metric| {
            metric.encode_gauge(&as_gauge(stat.rss * procfs::page_size()))
        })?;
        gauge(encoder, "process_virtual_memory_bytes", "Virtual memory of the process", |mut metric| {
            metric.encode_gauge(&as_gauge(stat.vsize))
        })?;
        gauge(encoder, "process_threads", "Threads of the process", |mut metric| {
            metric.encode_gauge(&stat.num_threads)
        })?;
    }
    if let Ok(count) = files.fd_count() {
        gauge(encoder, "process_open_fds", "Open descriptors of the process", |mut metric| {
            metric.encode_gauge(&(count as i64))
        })?;
    }
    if let Ok(limits) = files.limits()
        && let LimitValue::Value(most) = limits.max_open_files.soft_limit
    {
        gauge(encoder, "process_max_fds", "The most descriptors that the process may open", |mut metric| {
            metric.encode_gauge(&as_gauge(most))
        })?;
    }
    Ok(())
}
