//! Log output: one line an event on standard error, levels from `SAMPAN_LOG` (tracing's filter syntax).

use tracing_subscriber::EnvFilter;

/// Installs the process-wide subscriber. `default` applies where `SAMPAN_LOG` is not set; a filter that does not parse
/// is reported and the default taken. Calling it twice is harmless.
pub fn init(default: &str) {
    let filter = match std::env::var("SAMPAN_LOG") {
        Ok(text) => EnvFilter::try_new(&text).unwrap_or_else(|error| {
            eprintln!("SAMPAN_LOG: {error}; using {default}");
            EnvFilter::new(default)
        }),
        Err(_) => EnvFilter::new(default),
    };
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init();
}
