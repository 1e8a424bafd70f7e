//! What coordinates: the words in which users name a moment, the control socket, and the policy of automatic points.
//!
//! This crate knows neither agent nor appliance. What it asks of them is the trait [`site::Site`], which the
//! `afterimage` binary implements.
//!
//! | module | what |
//! |---|---|
//! | [`when`] | WHEN: `latest`, `@SEQ`, a point's name, RFC 3339, `-10m`; and what seq it means |
//! | [`units`] | sizes, durations and times as people write them |
//! | [`protocol`] | requests and replies of the control socket, and the shapes that `--json` prints |
//! | [`server`], [`client`] | the two ends of that socket |
//! | [`retention`] | what is kept |
//! | [`app`] | how app-consistent points were made |
//! | [`verify`] | what a verification is asked for and finds |
//! | [`target`] | where machines run after a failover: QEMU on this host |
//! | [`failover`] | test failovers: jobs that survive a kill, or leave nothing |
//! | [`plan`] | recovery plans: machines in order, and what is done between them |
//! | [`lines`], [`fdpass`] | its lines and its file descriptors |
//! | [`groups`] | groups of machines, and the barriers that make their points |
//! | [`schedule`] | when automatic points are due |
//! | [`authority`], [`catalogue`] | mgmt's CA, and what it knows |
//! | [`office`] | mgmt's port 20004 |
//! | [`members`], [`reports`] | what it asks its members, and what they say of themselves |
//! | [`metrics`] | the status as metrics |
//! | [`api`] | its HTTPS API, both ends |

pub mod api;
pub mod app;
pub mod attach;
pub mod authority;
pub mod catalogue;
pub mod client;
pub mod failover;
pub mod fdpass;
pub mod groups;
pub mod lines;
pub mod members;
pub mod metrics;
pub mod office;
pub mod plan;
pub mod protocol;
pub mod reports;
pub mod retention;
pub mod schedule;
pub mod server;
pub mod site;
pub mod target;
pub mod units;
pub mod verify;
pub mod when;
