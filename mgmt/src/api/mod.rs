//! The HTTPS API of mgmt: `/v1`, described by docs/openapi.json.
//!
//! | module | what |
//! |---|---|
//! | [`server`] | the port: TLS, limits, who is asking |
//! | [`routes`] | what can be asked: one table, from which requests are answered and the description is made |
//! | [`openapi`] | that description |
//! | [`types`] | the shapes |
//! | [`problem`] | errors |
//! | [`key`] | tokens |
//! | [`view`] | machines and volumes, put together from the catalogue and what members report |
//! | [`recoveries`] | failovers, tests and plans of all appliances |
//! | [`readiness`], [`protect`] | whether a machine can be protected, and doing it |
//! | [`local`] | the same routes over the control socket |
//! | [`client`] | the other end, which the commands use |
//!
//! The network is async (tokio, hyper), because thousands of slow clients must cost neither threads nor time of the barriers. What
//! a request does is ordinary code in a thread of a pool with a limit. Strangers hear 401 and nothing else, whatever they ask for.

pub mod client;
mod events;
pub mod groups;
pub mod key;
pub mod local;
mod machines;
mod members;
pub mod openapi;
mod policies;
pub mod problem;
pub mod protect;
pub mod readiness;
pub mod recoveries;
pub mod routes;
pub mod server;
mod tokens;
pub mod types;
pub mod view;

pub use server::{Api, DEFAULT_API_PORT};

#[cfg(test)]
#[path = "../api_tests.rs"]
mod tests;
