//! How an app-consistent point was made, as the control socket tells it and `--json` prints it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a point was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AppPoint {
    /// `app`, or `crash`: like after a power cut; `failed` if that was not wanted.
    pub consistency: String,
    /// The first step that failed, and why; null if none did.
    pub reason: Option<String>,
    /// Milliseconds for which something was frozen.
    pub frozen_ms: u64,
    /// The steps, in order.
    pub steps: Vec<AppStep>,
}

/// How a step went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AppStep {
    /// `pre`, `freeze`, `marker`, `thaw` or `post`.
    pub step: String,
    /// Whether it did what it should.
    pub ok: bool,
    /// Milliseconds.
    pub ms: u64,
    /// Why not, or what was done; the end of what a script printed.
    pub said: String,
}
