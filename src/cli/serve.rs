//! `rsnet serve`

use super::Failure;
use crate::app::{self, memory};
use crate::config::{Given, LogFormat};
use crate::telemetry;

pub fn run(given: &Given) -> Result<(), Failure> {
    let settings = given.settle(std::env::vars())?;
    telemetry::log(settings.log.clone(), settings.log_format == LogFormat::Json);
    memory::share_heap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async { app::build(settings).await?.run().await })?;
    Ok(())
}
